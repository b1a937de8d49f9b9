// Sorts a table by the column whose head is clicked: numbers from the largest, words from A, and the other way next time.
"use strict";
for (const table of document.querySelectorAll(".sorts table")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const text = row => row.cells[column].textContent.trim();
    const number = row => text(row) === "–" ? NaN : Number(text(row).replace(/[,%]/g, "").replace("−", "-"));
    const rows = [...body.rows];
    const words = rows.some(row => text(row) !== "–" && Number.isNaN(number(row)));
    const before = head.getAttribute("aria-sort");
    const ascending = before ? before === "descending" : words;
    const sign = ascending ? 1 : -1;
    const compare = (a, b) => {
      if (words) return sign * text(a).localeCompare(text(b));
      const [one, other] = [number(a), number(b)];
      if (Number.isNaN(one) || Number.isNaN(other)) return Number.isNaN(one) - Number.isNaN(other);
      return sign * (one - other);
    };
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    body.append(...rows.sort(compare));
  }));
}
