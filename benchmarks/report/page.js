// Puts the parts together: one pass from filters and selection to plots, tables, panel and address.
const sections = [...document.querySelectorAll("section[data-group]")];
const visible = new Set(); // sections in view, whose plots are drawn
let shown = new Set(); // ids of the rows that pass the filters

function rowsOf(section) {
  const group = payload.groups[Number(section.dataset.group)];
  return payload.rows.filter((row) => row.data === group.data && row.model === group.model);
}

function draw(section) {
  drawPlot(section.querySelector(".plot"), rowsOf(section).filter((row) => shown.has(row.id)));
  delete section.dataset.stale;
}

/** Draw what is in view; the rest waits until it is. */
function drawVisible() {
  for (const section of sections) {
    section.dataset.stale = "1";
    if (visible.has(section) && !section.hidden) draw(section);
  }
}

function apply() {
  shown = showRows(rowFilter());
  for (const section of sections) {
    const rows = rowsOf(section);
    const count = rows.filter((row) => shown.has(row.id)).length;
    section.hidden = count === 0;
    section.querySelector(".count").textContent = `${count} of ${rows.length} rows`;
  }
  document.getElementById("count").textContent = `${shown.size} of ${payload.rows.length} rows`;
  markSelected();
  markMenus();
  drawVisible();
  saveState();
}

/** Say in a menu's title how much of it is left out. */
function markMenus() {
  for (const menu of form.querySelectorAll("details.menu")) {
    const all = [...menu.querySelectorAll("input")];
    const on = all.filter((box) => box.checked).length;
    const summary = menu.querySelector("summary");
    summary.dataset.count = on === all.length ? "" : `${on}/${all.length}`;
    for (const button of menu.querySelectorAll("button[data-family]")) {
      const some = button.closest("fieldset").querySelector("input:checked");
      button.textContent = some ? "none" : "all";
    }
  }
}

function select(id, more) {
  const only = selected.size === 1 && selected.has(id);
  if (!more) {
    selected.clear();
    if (!only) selected.add(id);
  } else if (!selected.delete(id)) selected.add(id);
  showSelection();
  const line = document.querySelector(`tr[data-id="${id}"]`);
  if (selected.has(id)) line.scrollIntoView({ block: "nearest" });
}

function clearSelection() {
  const [id] = selected;
  selected.clear();
  showSelection();
  document.querySelector(`tr[data-id="${id}"]`)?.focus();
}

function showSelection() {
  const before = panel.hidden;
  markSelected();
  showDetails();
  drawVisible();
  if (before !== panel.hidden) sections.forEach((section) => fit(section.querySelector(".plot")));
  saveState();
}

/** Fit a plot to the width that the panel leaves. */
function fit(plot) {
  if (plot.data && plot.offsetParent) Plotly.Plots.resize(plot);
}

function nextTheme() {
  const root = document.documentElement;
  const next = { undefined: "light", light: "dark", dark: undefined }[root.dataset.theme];
  if (next) root.dataset.theme = next;
  else delete root.dataset.theme;
  showSelection();
}

function restore() {
  loadState();
  apply();
  showDetails();
}

function debounce(run, wait) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(run, wait);
  };
}

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", debounce(apply, 80));
form.addEventListener("reset", () => setTimeout(apply));
form.addEventListener("click", (event) => {
  if (!event.target.dataset.family) return;
  const field = event.target.closest("fieldset");
  const some = field.querySelector("input:checked");
  for (const box of field.querySelectorAll("input")) box.checked = !some;
  apply();
});
document.addEventListener("click", (event) => {
  for (const menu of form.querySelectorAll("details.menu[open]")) {
    if (!menu.contains(event.target)) menu.open = false;
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  const menu = form.querySelector("details.menu[open]");
  if (menu) {
    menu.open = false;
    menu.querySelector("summary").focus();
  } else if (selected.size) clearSelection();
});
document.getElementById("theme").addEventListener("click", nextTheme);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showSelection);
window.addEventListener("hashchange", restore);

const watcher = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) visible.add(target);
      else visible.delete(target);
      if (isIntersecting && target.dataset.stale) draw(target);
    }
  },
  { rootMargin: "300px" },
);
listenToRows();
restore();
sections.forEach((section) => watcher.observe(section));
