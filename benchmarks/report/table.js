// Sorts a table by the column whose heading is clicked.
"use strict";

function keyOf(row, column) {
  return row.cells[column]?.dataset.key ?? row.cells[column]?.textContent ?? "";
}

/** Compare two keys: numbers by value, all others as text, empty ones last. */
function compareKeys(x, y, up) {
  if (x === "" || y === "") return (x === "") - (y === "");
  const [m, n] = [Number(x), Number(y)];
  const order = Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y) : m - n;
  return up ? order : -order;
}

for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => compareKeys(keyOf(a, column), keyOf(b, column), up));
      table.tBodies[0].append(...rows);
    });
  });
}
