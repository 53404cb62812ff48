// Rows of the tables: hiding them, and selecting them by mouse and keyboard.
const lines = [...document.querySelectorAll("tr[data-id]")];

function showRows(keeps) {
  const shown = new Set();
  for (const line of lines) {
    const row = byId.get(line.dataset.id);
    line.hidden = !keeps(row);
    if (!line.hidden) shown.add(row.id);
  }
  return shown;
}

function markSelected() {
  for (const line of lines) {
    line.setAttribute("aria-selected", String(selected.has(line.dataset.id)));
  }
}

/** Move the focus to the next or last visible row. */
function moveFocus(line, step) {
  let next = line;
  do next = step > 0 ? next.nextElementSibling : next.previousElementSibling;
  while (next && next.hidden);
  next?.focus();
}

function onRowKey(event, line) {
  if (event.target !== line) return;
  if (event.key === "Enter" || event.key === " ") select(line.dataset.id, event.shiftKey);
  else if (event.key === "ArrowDown") moveFocus(line, 1);
  else if (event.key === "ArrowUp") moveFocus(line, -1);
  else return;
  event.preventDefault();
}

function listenToRows() {
  for (const line of lines) {
    const plot = line.closest("section").querySelector(".plot");
    const row = byId.get(line.dataset.id);
    line.addEventListener("click", (event) => select(row.id, event.shiftKey || event.ctrlKey));
    line.addEventListener("keydown", (event) => onRowKey(event, line));
    for (const name of ["mouseenter", "focus"]) {
      line.addEventListener(name, () => isolateRow(plot, row));
    }
    for (const name of ["mouseleave", "blur"]) {
      line.addEventListener(name, () => isolateRow(plot, null));
    }
  }
}
