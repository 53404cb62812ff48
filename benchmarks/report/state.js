// What the filters show and what is selected; the same in the page's address, so that it can be sent.
const payload = JSON.parse(document.getElementById("payload").textContent);
const form = document.getElementById("filters");
const byId = new Map(payload.rows.map((row) => [row.id, row]));
const selected = new Set();
const BOXES = ["data", "model", "method"];
const FIELDS = ["q", "low", "high", "test", "y"];

function boxes(name) {
  return [...form.querySelectorAll(`input[type=checkbox][name="${name}"]`)];
}

/** Write filters and selection into the address, without a step in its history. */
function saveState() {
  const state = new URLSearchParams();
  for (const name of FIELDS) {
    const value = form.elements[name].value.trim();
    if (value) state.set(name, value);
  }
  if (form.elements.best.checked) state.set("best", "1");
  for (const name of BOXES) {
    const all = boxes(name);
    const on = all.filter((box) => box.checked);
    const off = all.filter((box) => !box.checked);
    // the shorter of the two lists; an empty list of those shown is a list too
    const [key, list] = on.length < off.length ? [name, on] : [`-${name}`, off];
    if (off.length) list.forEach((box) => state.append(key, box.value));
    if (off.length && !list.length) state.append(key, "");
  }
  for (const id of selected) state.append("run", id);
  const theme = document.documentElement.dataset.theme;
  if (theme) state.set("theme", theme);
  const hash = state.toString();
  if (hash !== location.hash.slice(1)) {
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  }
}

/** Set filters and selection from the address. */
function loadState() {
  const state = new URLSearchParams(location.hash.slice(1));
  for (const name of FIELDS) {
    const value = state.get(name) ?? "";
    const field = form.elements[name];
    field.value = field.type === "number" && Number.isNaN(parseFloat(value)) ? "" : value;
    if (field.selectedIndex === -1) field.selectedIndex = 0; // no such choice
  }
  form.elements.best.checked = state.get("best") === "1";
  for (const name of BOXES) {
    const [on, off] = [state.getAll(name), state.getAll(`-${name}`)];
    for (const box of boxes(name)) {
      box.checked = on.length ? on.includes(box.value) : !off.includes(box.value);
    }
  }
  selected.clear();
  state.getAll("run").filter((id) => byId.has(id)).forEach((id) => selected.add(id));
  const theme = state.get("theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

function textOf(row) {
  return `${row.label} ${row.asked} ${row.data} ${row.model}`.toLowerCase();
}

/** Return whether a verdict is the asked one; "no" stands for "no difference shown". */
function passes(row, test) {
  if (!test) return true;
  const [reference, wanted] = test.split(":");
  const verdict = row[`to_${reference}`]?.verdict ?? "";
  return verdict.startsWith(wanted);
}

/** Return a function that says whether a row is shown. */
function rowFilter() {
  const on = Object.fromEntries(
    BOXES.map((name) => [name, new Set(boxes(name).filter((b) => b.checked).map((b) => b.value))]),
  );
  const words = form.elements.q.value.toLowerCase().split(/\s+/).filter(Boolean);
  const low = parseFloat(form.elements.low.value);
  const high = parseFloat(form.elements.high.value);
  const test = form.elements.test.value;
  const best = form.elements.best.checked;
  return (row) =>
    BOXES.every((name) => on[name].has(row[name])) &&
    (Number.isNaN(low) || row.ratio >= low) &&
    (Number.isNaN(high) || row.ratio <= high) &&
    (!best || row.best) &&
    passes(row, test) &&
    words.every((word) => textOf(row).includes(word));
}
