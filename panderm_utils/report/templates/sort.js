// Turns the headings of every table.sortable into buttons that sort its rows: numbers by value, the rest as text.
"use strict";

function keyOf(row, column) {
  const cell = row.cells[column];
  return (cell.dataset.key ?? cell.textContent).trim();
}

function numberOf(key) {
  return /^[+-]?[\d.]/.test(key) ? parseFloat(key.replaceAll(",", "")) : NaN;
}

function sortBy(table, column, sign) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => ({ row, key: keyOf(row, column) }));
  const numeric = rows.every(({ key }) => key === "" || key === "–" || !Number.isNaN(numberOf(key)));
  const empty = (key) => key === "" || key === "–";
  rows.sort((a, b) => {
    if (empty(a.key) || empty(b.key)) return empty(a.key) - empty(b.key); // last in both directions
    return sign * (numeric ? numberOf(a.key) - numberOf(b.key) : a.key.localeCompare(b.key, "en", { numeric: true }));
  });
  body.append(...rows.map(({ row }) => row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", direction);
      sortBy(table, column, direction === "ascending" ? 1 : -1);
    });
  });
}
