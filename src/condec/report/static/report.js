// Comforts only: the pages are whole without this file.
"use strict";

// What is sorted, searched and chosen stands in the address, after "~": a link leads to the same view.
const [anchor, state] = location.hash.slice(1).split("~");
const view = new URLSearchParams(state || "");

function keep(key, value) {
  if (value) view.set(key, value); else view.delete(key);
  const here = location.hash.split("~")[0] || "#", now = view.toString();
  history.replaceState(null, "", now ? `${here}~${now}` : here);
}

addEventListener("hashchange", () => { if (location.hash.includes("~")) location.reload(); });

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

const SEARCHED_FROM = 12; // rows of a table

Array.from(document.querySelectorAll("table.sortable")).forEach((table, number) => {
  const heads = Array.from(table.tHead.rows[0].cells), key = `t${number}`;
  const order = (column, descending) => {
    for (const other of heads) other.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
    sortBy(table, column, descending);
    keep(key, `${column}${descending ? "d" : ""}`);
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => order(column, head.getAttribute("aria-sort") === "ascending"));
  });
  const [, column, descending] = /^(\d+)(d?)$/.exec(view.get(key) || "") || [];
  if (column < heads.length) order(Number(column), descending === "d");
  if ((view.has(key) || view.has(`q${number}`)) && table.closest("details")) table.closest("details").open = true;
  if (table.tBodies[0].rows.length >= SEARCHED_FROM) table.parentNode.before(search(table, `q${number}`));
});

function search(table, key) {
  const field = document.createElement("input");
  field.type = "search";
  field.className = "search";
  field.placeholder = `Search ${table.tBodies[0].rows.length} rows`;
  field.setAttribute("aria-label", field.placeholder);
  const show = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    keep(key, field.value);
  };
  field.addEventListener("input", show);
  field.value = view.get(key) || "";
  if (field.value) show();
  return field;
}

function choice(name, options, key, onChange) {
  const box = document.createElement("div");
  box.className = "choice";
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", name);
  const given = options.findIndex(([value]) => value === view.get(key)), chosen = Math.max(given, 0);
  options.forEach(([value, text], number) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.setAttribute("aria-pressed", number === chosen);
    button.addEventListener("click", () => {
      for (const other of box.children) other.setAttribute("aria-pressed", other === button);
      onChange(value);
      keep(key, number ? value : "");
    });
    box.append(button);
  });
  onChange(options[chosen][0]);
  return box;
}

const here = document.querySelector(".pages [aria-current]");
if (here) here.scrollIntoView({ block: "nearest", inline: "center" });
// Of an address with a view, the browser does not find the anchor.
if (state) for (const one of document.querySelectorAll("main [id]")) {
  if (encodeURIComponent(one.id) === anchor || one.id === anchor) one.scrollIntoView();
}

// Pictures that lead nowhere are shown large.
const large = document.createElement("dialog");
large.className = "large";
large.setAttribute("aria-label", "Picture, large");
large.addEventListener("click", () => large.close());
document.body.append(large);

function showLarge(picture, words) {
  for (const name of ["tabindex", "role"]) picture.removeAttribute(name);
  large.replaceChildren(picture, Object.assign(document.createElement("p"), { textContent: words }));
  large.showModal();
}

for (const image of document.querySelectorAll("main img")) {
  if (image.closest("a")) continue;
  const open = () => showLarge(image.cloneNode(), image.alt);
  image.tabIndex = 0;
  image.setAttribute("role", "button");
  image.addEventListener("click", open);
  image.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    open();
  });
}
