// The panel of the selected rows: curves, runs, configuration.
const panel = document.getElementById("details");
const curves = element("div", undefined, { class: "curves" });
const noCurves = element("p", "The curves of these runs were left out.", { class: "note" });

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function withInterval(values, digits = 4, sign = "") {
  const text = values.map((value) => (sign && value >= 0 ? sign : "") + value.toFixed(digits));
  return `${text[0]} [${text[1]}, ${text[2]}]`;
}

function factsOf(row) {
  const facts = [
    ["size", `${row.serving.toLocaleString("en")} bytes, ${row.ratio.toFixed(2)}x`],
    ["AUC", withInterval(row.auc)],
    ["LogLoss", withInterval(row.logloss)],
  ];
  if (row.gauc) facts.push(["gAUC", withInterval(row.gauc)]);
  for (const name of ["full", "hash"]) {
    const against = row[`to_${name}`];
    if (!against) continue;
    const p = against.p < 1e-99 ? "p < 1e-99" : `p = ${Number(against.p.toPrecision(2))}`;
    facts.push([`AUC to ${name}`, `${withInterval(against.auc, 4, "+")}, ${p}: ${against.verdict}`]);
    facts.push([`LogLoss to ${name}`, withInterval(against.logloss, 4, "+")]);
  }
  return facts;
}

function sizesOf(row) {
  return Object.entries(row.parts).map(([part, size]) => [part, `${size.toLocaleString("en")} bytes`]);
}

function listOf(pairs) {
  const list = element("dl");
  for (const [name, value] of pairs) list.append(element("dt", name), element("dd", value));
  return list;
}

/** Return the validation curve of a run; what a stage is called comes with its points. */
function curveTrace(row, id, number) {
  const run = payload.runs[id];
  const { stage = [], epoch = [], valid_auc = [] } = run.curve;
  const look = payload.looks[row.method];
  return {
    type: "scatter",
    mode: "lines+markers",
    name: `${row.label} ${row.asked} s${run.seed}`,
    x: valid_auc.map((_, index) => index + 1),
    y: valid_auc,
    line: { color: isDark() ? look.dark : look.light, width: 1.5, dash: ["solid", "dash", "dot"][number % 3] },
    marker: { size: 4 },
    text: stage.map((name, index) => `${name}, epoch ${epoch[index]}`),
    hovertemplate: "%{text}<br>validation AUC %{y:.5f}<extra>%{fullData.name}</extra>",
  };
}

/** Draw the validation AUC of all runs of the selected rows. */
function drawCurves(rows) {
  const drawn = rows
    .flatMap((row) => row.runs.map((id, number) => curveTrace(row, id, number)))
    .filter((one) => one.y.some((value) => value !== null));
  curves.hidden = !drawn.length;
  noCurves.hidden = !curves.hidden;
  if (curves.hidden) return;
  const axis = { gridcolor: color("--line"), zeroline: false };
  Plotly.react(
    curves,
    drawn,
    {
      height: 230,
      margin: { l: 52, r: 8, t: 8, b: 38 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: color("--soft"), family: "system-ui, sans-serif", size: 11 },
      hoverlabel: { bgcolor: color("--band"), font: { color: color("--ink") }, namelength: -1 },
      showlegend: false,
      xaxis: { ...axis, title: { text: "evaluation" }, rangemode: "tozero" },
      yaxis: { ...axis, title: { text: "validation AUC" } },
    },
    { responsive: true, displayModeBar: false },
  );
}

function runDetails(id) {
  const run = payload.runs[id];
  const box = element("details");
  box.append(element("summary", `seed ${run.seed}, test AUC ${run.test.toFixed(5)}`));
  box.append(element("code", id, { class: "id" }));
  box.append(element("pre", JSON.stringify(run.facts, null, 1), { tabindex: "0" }));
  return box;
}

function rowDetails(row) {
  const part = element("section");
  part.append(element("h3", `${row.label} ${row.asked}`), element("p", `${row.data}, ${row.model}`));
  part.append(listOf(factsOf(row)), element("h4", "Serving bytes by part"), listOf(sizesOf(row)));
  const runs = row.runs.map(runDetails);
  runs[0].open = runs.length === 1 || selected.size === 1;
  part.append(element("h4", runs.length === 1 ? "Run" : "Runs"), ...runs);
  return part;
}

function showDetails() {
  const rows = [...selected].map((id) => byId.get(id));
  panel.hidden = !rows.length;
  if (!rows.length) {
    panel.replaceChildren();
    return;
  }
  const head = element("header");
  const close = element("button", "Close", { type: "button", title: "Escape" });
  close.addEventListener("click", () => clearSelection());
  head.append(element("h2", rows.length === 1 ? "Selected" : `${rows.length} selected`), close);
  panel.replaceChildren(head, curves, noCurves, ...rows.map(rowDetails));
  drawCurves(rows);
}
