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

Array.from(document.querySelectorAll(".cards")).forEach((cards, number) => {
  const tools = document.createElement("div");
  tools.className = "tools";
  const labels = [...new Set(Array.from(cards.querySelectorAll(".card"), (card) => card.dataset.label))];
  if (labels.length > 1) {
    const select = document.createElement("select");
    select.setAttribute("aria-label", "Modes of one label");
    select.add(new Option("all labels", ""));
    labels.filter(Boolean).sort().forEach((label) => select.add(new Option(label, label)));
    const show = () => {
      for (const card of cards.querySelectorAll(".card")) {
        card.hidden = Boolean(select.value) && card.dataset.label !== select.value;
      }
    };
    select.addEventListener("change", () => { show(); keep(`l${number}`, select.value); });
    select.value = labels.includes(view.get(`l${number}`)) ? view.get(`l${number}`) : "";
    show();
    tools.append(select);
  }
  if (cards.dataset.maps) {
    const rows = Array.from(cards.querySelectorAll(".row.map"));
    const parts = [...new Set(rows.map((row) => row.dataset.part))];
    const show = (part) => { for (const row of rows) row.hidden = part !== "all" && row.dataset.part !== part; };
    const all = ["all", "all maps"], each = parts.map((part) => [part, part]);
    const options = parts[0] === "contributes" ? [...each, all] : [all, ...each];
    tools.append(choice("Maps", options, `m${number}`, show));
  }
  if (tools.children.length) cards.prepend(tools);
});

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

for (const image of document.querySelectorAll("main img")) {
  if (image.closest("a")) continue;
  const open = () => {
    const copy = image.cloneNode();
    copy.removeAttribute("tabindex");
    copy.removeAttribute("role");
    large.replaceChildren(copy, Object.assign(document.createElement("p"), { textContent: image.alt }));
    large.showModal();
  };
  image.tabIndex = 0;
  image.setAttribute("role", "button");
  image.addEventListener("click", open);
  image.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    open();
  });
}
