// Comforts only: the pages are whole without this file.
"use strict";

function valueOf(cell) {
  const text = cell.textContent.trim().replace(/\u2212/g, "-").replace(/[\u202f\s]/g, "");
  const number = parseFloat(text);
  return Number.isNaN(number) ? null : number;
}

function sortBy(table, column, descending) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows).map((row) => [row, row.cells[column]]);
  const numeric = table.tHead.rows[0].cells[column].classList.contains("n");
  rows.sort(([, a], [, b]) => {
    if (!numeric) return a.textContent.trim().localeCompare(b.textContent.trim(), undefined, { numeric: true });
    const [x, y] = [valueOf(a), valueOf(b)];
    if (x === null || y === null) return (x === null) - (y === null) || 0;
    return x - y;
  });
  if (descending) rows.reverse();
  body.append(...rows.map(([row]) => row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sortBy(table, column, descending);
    });
  });
}

function choice(name, options, onChange) {
  const box = document.createElement("div");
  box.className = "choice";
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", name);
  options.forEach(([value, text], number) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.setAttribute("aria-pressed", number === 0);
    button.addEventListener("click", () => {
      for (const other of box.children) other.setAttribute("aria-pressed", other === button);
      onChange(value);
    });
    box.append(button);
  });
  return box;
}

for (const cards of document.querySelectorAll(".cards")) {
  const tools = document.createElement("div");
  tools.className = "tools";
  const labels = [...new Set(Array.from(cards.querySelectorAll(".card"), (card) => card.dataset.label))];
  if (labels.length > 1) {
    const select = document.createElement("select");
    select.setAttribute("aria-label", "Modes of one label");
    select.add(new Option("all labels", ""));
    labels.filter(Boolean).sort().forEach((label) => select.add(new Option(label, label)));
    select.addEventListener("change", () => {
      for (const card of cards.querySelectorAll(".card")) {
        card.hidden = Boolean(select.value) && card.dataset.label !== select.value;
      }
    });
    tools.append(select);
  }
  if (cards.dataset.maps) {
    const rows = Array.from(cards.querySelectorAll(".row.map"));
    const parts = [...new Set(rows.map((row) => row.dataset.part))];
    const show = (part) => { for (const row of rows) row.hidden = Boolean(part) && row.dataset.part !== part; };
    const all = ["", "all maps"], each = parts.map((part) => [part, part]);
    const options = parts[0] === "contributes" ? [...each, all] : [all, ...each];
    tools.append(choice("Maps", options, show));
    show(options[0][0]);
  }
  if (tools.children.length) cards.prepend(tools);
}

const here = document.querySelector(".pages [aria-current]");
if (here) here.scrollIntoView({ block: "nearest", inline: "center" });
