// The Pareto plots: one a data set and model, drawn when it comes into view.
const AXES = {
  "": { title: "test AUC", of: (row) => row.auc },
  to_full: { title: "test AUC minus full table", of: (row) => row.to_full?.auc },
  to_hash: { title: "test AUC minus hash of the same size", of: (row) => row.to_hash?.auc },
  logloss: { title: "test LogLoss", of: (row) => row.logloss },
  gauc: { title: "test gAUC", of: (row) => row.gauc },
};

// 1, 2 and 5 in every power of ten: a short logarithmic axis has few powers
const TICK_VALUES = Array.from({ length: 16 }, (_, n) => n - 8)
  .flatMap((power) => [1, 2, 5].map((digit) => Number(`${digit}e${power}`)));
const TICKS = { tickvals: TICK_VALUES, ticktext: TICK_VALUES.map((value) => value.toLocaleString("en", { maximumFractionDigits: 8 })) };

// the page stays offline: no button may send a plot away
const OPTIONS = {
  responsive: true,
  displaylogo: false,
  plotlyServerURL: "",
  modeBarButtonsToRemove: ["lasso2d", "select2d", "sendChartToCloud", "sendDataToCloud"],
};

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function isDark() {
  const theme = document.documentElement.dataset.theme;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

/** Return a line of a method, or the full table's point. */
function trace(rows, number, style, of) {
  const points = rows.filter((row) => of(row)).sort((a, b) => a.serving - b.serving);
  const values = points.map(of);
  const chosen = (yes, no) => points.map((row) => (selected.has(row.id) ? yes : no));
  return {
    type: "scatter",
    mode: "lines+markers",
    uid: `line${number}`,
    name: style.name,
    legendgroup: style.family,
    legendgrouptitle: { text: style.family },
    x: points.map((row) => row.serving / 1e6),
    y: values.map((value) => value[0]),
    error_y: {
      type: "data",
      symmetric: false,
      array: values.map((value) => value[2] - value[0]),
      arrayminus: values.map((value) => value[0] - value[1]),
      thickness: 1,
      width: 2,
    },
    line: { color: style.color, dash: style.dash, width: 1.5 },
    marker: {
      symbol: style.symbol,
      size: chosen(15, style.full ? 14 : 9),
      line: { width: chosen(2, 0), color: color("--ink") },
    },
    customdata: points.map((row) => row.id),
    text: points.map((row) => row.hover),
    hovertemplate: "%{text}<extra></extra>",
  };
}

/** Return the traces of the rows shown, by family and method; the full table comes last. */
function traces(rows, of) {
  const lines = new Map();
  for (const row of rows) {
    if (!lines.has(row.label)) lines.set(row.label, []);
    lines.get(row.label).push(row);
  }
  const dark = isDark();
  const order = Object.keys(payload.looks);
  const place = (label) => order.indexOf(lines.get(label)[0].method);
  const labels = [...lines.keys()].sort((a, b) => place(a) - place(b) || a.localeCompare(b));
  const found = labels.map((label, number) => {
    const [first] = lines.get(label);
    const look = payload.looks[first.method];
    const style = { ...look, name: label, color: dark ? look.dark : look.light };
    if (first.full) {
      Object.assign(style, { full: true, symbol: "star", color: color("--soft"), family: "reference" });
    }
    return trace(lines.get(label), number, style, of);
  });
  return found.filter((one) => one.x.length);
}

/** Return the Pareto front as a step line below the points: fewer bytes never score less. */
function frontLine(rows) {
  const best = rows.filter((row) => row.best).sort((a, b) => a.serving - b.serving);
  return {
    type: "scatter",
    mode: "lines",
    uid: "front",
    name: "Pareto front",
    legendgroup: "reference",
    legendgrouptitle: { text: "reference" },
    x: best.map((row) => row.serving / 1e6),
    y: best.map((row) => row.auc[0]),
    line: { shape: "hv", color: color("--soft"), width: 1, dash: "dot" },
    hoverinfo: "skip",
  };
}

function layout(axis, rows) {
  const grid = color("--line");
  const full = rows.find((row) => row.full);
  const level = axis.of === AXES[""].of ? full?.auc[0] : axis.title.includes("minus") ? 0 : null;
  const line = { type: "line", xref: "paper", x0: 0, x1: 1, y0: level, y1: level };
  const narrow = document.querySelector("main").clientWidth < 900;
  return {
    height: narrow ? 560 : 520,
    margin: { l: 64, r: 12, t: 12, b: 50 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: color("--soft"), family: "system-ui, sans-serif", size: 12 },
    hovermode: "closest",
    hoverlabel: { align: "left", bgcolor: color("--band"), font: { color: color("--ink") } },
    dragmode: "zoom",
    uirevision: axis.title, // zoom and hidden lines stay while filters change
    showlegend: true,
    legend: {
      groupclick: "toggleitem",
      font: { size: 11 },
      tracegroupgap: 4,
      ...(narrow ? { orientation: "h", y: -0.16 } : { x: 1.01, y: 1 }),
    },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: color("--soft"), activecolor: color("--ink") },
    xaxis: {
      type: "log",
      title: { text: "serving MB (10<sup>6</sup> bytes)", standoff: 8 },
      gridcolor: grid,
      ...TICKS,
    },
    yaxis: { title: { text: axis.title, standoff: 8 }, gridcolor: grid, zeroline: false },
    shapes: level == null ? [] : [{ ...line, line: { color: color("--soft"), width: 1, dash: "dash" } }],
  };
}

/** Draw a plot, or draw it again after a change. */
function drawPlot(plot, rows) {
  const axis = AXES[form.elements.y.value] ?? AXES[""];
  const data = traces(rows, axis.of);
  if (axis === AXES[""]) data.unshift(frontLine(rows));
  const fresh = !plot.data;
  const drawn = Plotly.react(plot, data, layout(axis, rows), OPTIONS);
  if (fresh) drawn.then(() => listen(plot));
}

function listen(plot) {
  plot.on("plotly_click", (event) => {
    const [point] = event.points;
    if (point.customdata) select(point.customdata, event.event.shiftKey);
  });
  plot.on("plotly_hover", (event) => isolate(plot, event.points[0].data.uid));
  plot.on("plotly_unhover", () => isolate(plot, null));
}

/** Fade all lines but one; none fades without a line. */
function isolate(plot, uid) {
  for (const line of plot.querySelectorAll(".scatterlayer > .trace")) {
    line.classList.toggle("faded", uid !== null && !line.classList.contains(`trace${uid}`));
  }
}

/** Fade all lines but a row's. */
function isolateRow(plot, row) {
  const line = row && plot.data?.find((one) => one.customdata?.includes(row.id));
  isolate(plot, line ? line.uid : null);
}
