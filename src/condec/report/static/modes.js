// Pages of modes and labels: drawn from the records under data/, which are loaded as they are needed.
"use strict";

const ROOT = new URL("..", document.currentScript.src).href;
const FORM = 2; // of the records, as records.py writes them
const NEARLY_EQUAL = 0.95, ROWS_AT_ONCE = 25, LEAST_USERS = 5;

// --- loading -------------------------------------------------------------------------------

const asked = new Map(), came = new Map();

// Called by the files of data/ themselves, which pages opened from disk load as scripts.
function condec(name, value) { came.set(name, value); }

function load(name) {
  if (!asked.has(name)) asked.set(name, fetched(name));
  return asked.get(name);
}

async function fetched(name) {
  const address = `${ROOT}data/${name.split("/").map(encodeURIComponent).join("/")}.js`;
  if (location.protocol !== "file:") {
    const answer = await fetch(address);
    if (!answer.ok) throw new Error(`${name}: ${answer.status} ${answer.statusText}`);
    return JSON.parse((await answer.text()).split("\n")[1]);
  }
  const script = make("script", { src: address });
  await new Promise((done, failed) => {
    script.onload = done;
    script.onerror = () => failed(new Error(`data/${name}.js cannot be read`));
    document.head.append(script);
  });
  script.remove();
  return came.get(name);
}

let RUN = null; // data/run.js
const place = (site, learner) => `${RUN.sites.find(([key]) => key === site)[1]}/${learner}`;
const siteOf = (key) => RUN.sites.find(([, folder]) => folder === key.split("/")[0]);

async function inputsOf(rows) {
  const files = [...new Set(rows.map((row) => Math.floor(row / RUN.per_inputs)))];
  const tables = await Promise.all(files.map((number) => load(`inputs/${number}`)));
  return Object.assign({}, ...tables);
}

async function recordOf(key, table, number) {
  const at = table.columns.id.indexOf(number);
  if (at < 0) return null;
  const several = await load(`${key}/${Math.floor(at / table.per_file)}`);
  return { at, record: several[at % table.per_file] };
}

// --- writing -------------------------------------------------------------------------------

function fixed(value, digits = 2) {
  if (value === null || value === undefined || Number.isNaN(value)) return "\u2013";
  const text = value.toFixed(Math.max(0, Math.min(digits, 4 - String(Math.trunc(Math.abs(value))).length)));
  return (/[1-9]/.test(text) ? text : text.replace("-", "")).replace("-", "\u2212");
}

const percent = (value, digits = 1) => (value === null ? "\u2013" : `${fixed(100 * value, digits)} %`);
const count = (value) => String(value).replace(/\B(?=(\d{3})+$)/g, "\u202f");
const labelName = (number) => (number < 0 ? "\u2013" : seen(RUN.labels?.[number] ?? number));
const modeLink = (key, number) => `${ROOT}mode.html#${key.split("/").map(encodeURIComponent).join("/")}/${number}`;

function pairs(flat) {
  return Array.from({ length: flat.length / 2 }, (_, n) => [flat[2 * n], flat[2 * n + 1]]);
}

const shares = (value) => (value === null ? null : value / 1000);
const inThousandths = (flat) => pairs(flat).map(([number, value]) => [number, shares(value)]);
const inFives = (flat) => Array.from({ length: flat.length / 5 }, (_, n) => [flat[5 * n], ...flat.slice(5 * n + 1, 5 * n + 5).map(shares)]);

function tile(record, words) {
  const [file, sheetWidth, sheetHeight, x, y, width, height] = record;
  const options = { class: Math.max(width, height) <= 64 ? "tile pixels" : "tile", viewBox: `${x} ${y} ${width} ${height}` };
  Object.assign(options, words ? { role: "img", "aria-label": seen(words) } : { "aria-hidden": "true" });
  const href = ROOT + file.split("/").map(encodeURIComponent).join("/");
  return shape("svg", options, shape("image", { href, width: sheetWidth, height: sheetHeight }));
}

// --- names, notes and groups that people give ----------------------------------------------

const names = { sites: {}, served: false };
const KEPT = () => `condec ${RUN.hash}`;

async function readNames() {
  const now = location.protocol === "file:" || !location.pathname.startsWith("/report/") ? null : await namesOfRun();
  Object.assign(names, { served: now !== null, sites: now || withChanges(RUN.names, readKept()) });
}

// The server has the file; the report knows which modes of today its entries are of.
async function namesOfRun() {
  const answer = await fetch("/api/annotations").catch(() => null);
  if (!answer?.ok) return null;
  const now = await answer.json(), known = Object.values(RUN.names).flat();
  const hint = (entry) => known.find((one) => JSON.stringify(one.atom) === JSON.stringify(entry.atom));
  for (const site of Object.keys(now)) now[site] = now[site].map((entry) => ({ ...hint(entry), ...entry, ...(hint(entry) && { mode: hint(entry).mode, dictionary: hint(entry).dictionary }) }));
  return now;
}

// Entries that were written in this browser, by site; empty ones take away what was said.
function readKept() {
  try { return JSON.parse(localStorage.getItem(KEPT())) || {}; } catch { return {}; }
}

const ofMode = (entry) => (typeof entry.dictionary === "string" ? `${entry.dictionary} ${entry.mode}` : JSON.stringify(entry.atom));
const isSaid = (entry) => Boolean(entry.name || entry.note || entry.group);

// Entries by site, changed ones in the place of those of the same modes.
function withChanges(sites, changes, kept = isSaid) {
  const all = structuredClone(sites);
  for (const [site, entries] of Object.entries(changes)) {
    const changed = new Set(entries.map(ofMode));
    all[site] = [...(all[site] || []).filter((entry) => !changed.has(ofMode(entry))), ...entries].filter(kept);
  }
  return all;
}

const entryOf = (table, number) =>
  (names.sites[table.site] || []).find((entry) => entry.dictionary === table.dictionary && entry.mode === number);

const nameMode = (table, number, said, atom) =>
  keepNames({ [table.site]: [{ ...said, atom, mode: number, dictionary: table.dictionary }] });

let writing = Promise.resolve(); // one change after the other

function keepNames(changes) {
  const done = writing.then(() => writeNames(changes));
  writing = done.catch(() => null);
  return done;
}

// Others may have written since these were read: what is kept is theirs, and these entries.
async function writeNames(changes) {
  if (names.served) {
    const now = await namesOfRun();
    if (!now) throw new Error("the explorer does not answer; is it still running?");
    const all = withChanges(now, changes);
    const body = JSON.stringify(Object.fromEntries(Object.keys(changes).map((site) => [site, all[site]])));
    const headers = { "X-Condec": "1", "Content-Type": "application/json" };
    const answer = await fetch("/api/annotations", { method: "POST", headers, body });
    if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error || answer.statusText);
    names.sites = all;
    return "Kept in the run.";
  }
  const mine = withChanges(readKept(), changes, () => true);
  localStorage.setItem(KEPT(), JSON.stringify(mine));
  names.sites = withChanges(RUN.names, mine);
  return "Kept in this browser; export names.json on the first page to pass it on.";
}

function exportNames() {
  const content = new Blob([JSON.stringify(names.sites, null, 1) + "\n"], { type: "application/json" });
  const link = make("a", { href: URL.createObjectURL(content), download: "names.json" });
  link.click();
  URL.revokeObjectURL(link.href);
}

async function importNames(file) {
  const given = JSON.parse(await file.text());
  const words = ["name", "note", "group"];
  for (const [site, entries] of Object.entries(given)) {
    const good = Array.isArray(entries) && entries.every((entry) => entry && typeof entry.atom === "object" &&
      entry.atom !== null && Object.values(entry.atom).every(Number.isFinite) &&
      words.every((word) => typeof (entry[word] ?? "") === "string"));
    if (!good) throw new Error(`${site}: expected entries as names.json of a run has them`);
  }
  const known = Object.keys(given).filter((site) => RUN.sites.some(([key]) => key === site));
  const digests = new Set((await Promise.all(RUN.dictionaries.map((key) => load(`${key}/modes`)))).map((one) => one.dictionary));
  const said = await keepNames(given);
  const all = Object.values(given).flat(), others = all.filter((entry) => !digests.has(entry.dictionary)).length;
  const notes = [`${all.length} entries of ${known.length} sites taken over. ${said}`];
  if (others) notes.push(`${others} are of modes of another fit: put the file beside the run as names.json, and condec report finds them by their atoms.`);
  return notes.join(" ");
}

async function namesPanel(host) {
  const list = make("ul", { className: "named" }), status = make("p", { className: "note", attributes: { role: "status" } });
  const show = async () => {
    const items = [];
    for (const key of RUN.dictionaries) {
      const [site] = siteOf(key);
      if (!(names.sites[site] || []).length) continue;
      const table = await load(`${key}/modes`);
      for (const entry of names.sites[site]) {
        if (entry.dictionary !== table.dictionary || !table.columns.id.includes(entry.mode)) continue;
        items.push(make("li", {}, make("a", { href: modeLink(key, entry.mode), text: entry.name || entry.note || entry.group }),
          make("span", { className: "faint", text: ` mode ${entry.mode}, ${site}${entry.group ? `, ${entry.group}` : ""}` })));
      }
    }
    list.replaceChildren(...(items.length ? items : [make("li", { className: "faint", text: "Nobody has named a mode yet: open one, and write what you see in it." })]));
  };
  const file = make("input", { type: "file", accept: "application/json,.json", className: "unseen", id: "names-file" });
  file.addEventListener("change", async () => {
    try { status.textContent = seen(await importNames(file.files[0])); } catch (error) { status.textContent = `Not taken over: ${seen(error.message)}`; }
    file.value = "";
    show();
  });
  const save = make("button", { type: "button", text: "Export names.json" });
  save.addEventListener("click", exportNames);
  const open = make("button", { type: "button", text: "Import" });
  open.addEventListener("click", () => file.click());
  file.setAttribute("aria-label", "Import names.json");
  file.tabIndex = -1;
  const tools = make("div", { className: "tools" }, save, open, file);
  if (!names.served && Object.keys(readKept()).length) {
    const forget = make("button", { type: "button", text: "Forget what is only in this browser" });
    forget.addEventListener("click", () => { localStorage.removeItem(KEPT()); location.reload(); });
    tools.append(forget);
  }
  const words = names.served ? "kept in the run as they are written" : "kept in this browser, until they are exported and put beside the run as names.json";
  host.replaceChildren(make("h2", { id: "names-title", text: "Names and notes" }),
    make("p", { className: "note", text: `What people called modes: ${words}.` }), list, tools, status);
  host.hidden = false;
  await show();
}

// --- tables and charts ---------------------------------------------------------------------

// Columns have name, title, value(row), text(value, row) and, where they are words, `word`.
function dataTable(columns, n, key, { link, order = -1, kept = () => true } = {}) {
  const [, at, down] = /^(\d+)(d?)$/.exec(view.get(`s${key}`) || "") || [];
  const state = { column: at < columns.length ? Number(at) : order, down: down === "d", most: ROWS_AT_ONCE };
  const field = make("input", { type: "search", className: "search", placeholder: `Search ${count(n)} rows`, value: view.get(`q${key}`) || "" });
  field.setAttribute("aria-label", field.placeholder);
  const body = make("tbody"), status = make("span", { className: "faint", attributes: { role: "status" } });
  const more = make("button", { type: "button", className: "plain", text: "Show more rows" });
  const texts = Array.from({ length: n }, (_, row) => columns.filter((c) => c.word).map((c) => c.value(row)).join(" ").toLowerCase());
  const heads = columns.map((column, number) => {
    const button = make("button", { type: "button", text: column.name });
    button.addEventListener("click", () => {
      Object.assign(state, { down: state.column === number ? !state.down : !column.word, column: number });
      keep(`s${key}`, `${number}${state.down ? "d" : ""}`);
      show();
    });
    return make("th", { className: column.word ? "" : "n", title: column.title || "" }, button);
  });
  const show = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = Array.from({ length: n }, (_, row) => row).filter((row) => kept(row) && words.every((word) => texts[row].includes(word)));
    const column = columns[state.column];
    heads.forEach((head, number) => {
      if (number === state.column) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    if (column) rows.sort((a, b) => {
      const [x, y] = [column.value(a), column.value(b)];
      const none = (x === null || x === "") - (y === null || y === "");
      if (none) return none;
      const one = column.word ? String(x).localeCompare(String(y), undefined, { numeric: true }) : x - y;
      return state.down ? -one : one;
    });
    body.replaceChildren(...rows.slice(0, state.most).map((row) => make("tr", {}, ...columns.map((c, number) => {
      const text = c.text ? c.text(c.value(row), row) : c.word ? c.value(row) : fixed(c.value(row));
      const shown = typeof text === "string" ? seen(text) : text;
      const inside = number === 0 && link ? make("a", { href: link(row) }, shown) : shown;
      return make(number === 0 ? "th" : "td", { className: c.word ? "word" : "n" }, inside);
    }))));
    more.hidden = rows.length <= state.most;
    status.textContent = rows.length > state.most ? `${count(state.most)} of ${count(rows.length)} rows` : `${count(rows.length)} rows`;
  };
  field.addEventListener("input", () => { keep(`q${key}`, field.value); show(); });
  more.addEventListener("click", () => { state.most += 8 * ROWS_AT_ONCE; show(); });
  show();
  const table = make("table", { className: "data" }, make("thead", {}, make("tr", {}, ...heads)), body);
  return { show, field, node: make("div", {}, make("div", { className: "tools" }, field, status), wide(table), more) };
}

const wide = (table) => make("div", { className: "wide", tabIndex: 0, attributes: { role: "region", "aria-label": "Table" } }, table);

function ticks(low, high) {
  const step = 10 ** Math.floor(Math.log10((high - low) / 2 || 1));
  const each = (high - low) / step > 6 ? 2 * step : step;
  const found = [];
  for (let at = Math.ceil(low / each - 1e-9) * each; at <= high + 1e-9; at += each) found.push(Number(at.toPrecision(6)));
  return found;
}

function axes(width, height, xs, ys, names) {
  const [left, bottom] = [44, 34], right = width - 8, top = 8;
  const ends = (values) => {
    const known = values.filter((value) => value !== null && Number.isFinite(value));
    const [low, high] = [Math.min(...known), Math.max(...known)];
    return known.length ? (low === high ? [low - 0.5, high + 0.5] : [low, high]) : [0, 1];
  };
  const [[x0, x1], [y0, y1]] = [ends(xs), ends(ys)];
  const x = (value) => left + (value - x0) / (x1 - x0) * (right - left);
  const y = (value) => height - bottom - (value - y0) / (y1 - y0) * (height - bottom - top);
  const svg = shape("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, role: "img" });
  for (const at of ticks(x0, x1)) svg.append(shape("line", { class: "grid", x1: x(at), x2: x(at), y1: top, y2: height - bottom }), word(x(at), height - bottom + 14, fixed(at, 3).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, ""), "middle"));
  for (const at of ticks(y0, y1)) svg.append(shape("line", { class: "grid", x1: left, x2: right, y1: y(at), y2: y(at) }), word(left - 5, y(at) + 4, fixed(at, 3).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, ""), "end"));
  svg.append(word((left + right) / 2, height - 4, names[0], "middle"));
  const side = word(12, (height - bottom + top) / 2, names[1], "middle");
  side.setAttribute("transform", `rotate(-90 12 ${(height - bottom + top) / 2})`);
  svg.append(side);
  return { svg, x, y };
}

function word(x, y, text, anchor) {
  const made = shape("text", { x, y, "text-anchor": anchor });
  made.textContent = text;
  return made;
}

function picker(name, options, chosen, change) {
  const select = make("select", { attributes: { "aria-label": name } });
  options.forEach((text, number) => select.add(new Option(seen(text), number)));
  select.value = chosen;
  select.addEventListener("change", () => change(Number(select.value)));
  return make("label", {}, make("span", { className: "faint", text: `${name} ` }), select);
}

function scatter(columns, n, key, { link, title, kept, first }) {
  const axis = (name, given) => Math.min(Number(view.get(`${name}${key}`) ?? given), columns.length - 1) || 0;
  const state = { x: axis("x", first[0]), y: axis("y", first[1]) }, host = make("div", { className: "scatter" });
  const show = () => {
    const [cx, cy] = [columns[state.x], columns[state.y]], rows = [];
    for (let row = 0; row < n; row += 1) if (kept(row) && cx.value(row) !== null && cy.value(row) !== null) rows.push(row);
    const { svg, x, y } = axes(520, 300, rows.map(cx.value), rows.map(cy.value), [cx.name, cy.name]);
    svg.setAttribute("aria-label", `${rows.length} modes: ${cy.name} over ${cx.name}; the table has the numbers`);
    const dots = shape("g", { class: "dots" });
    for (const row of rows) {
      const dot = shape("circle", { cx: x(cx.value(row)).toFixed(1), cy: y(cy.value(row)).toFixed(1), r: rows.length > 400 ? 2.5 : 4 });
      dot.append(Object.assign(shape("title"), { textContent: seen(title(row)) }));
      dot.addEventListener("click", () => { location.href = link(row); });
      dots.append(dot);
    }
    svg.append(dots);
    host.replaceChildren(svg);
  };
  const names = columns.map((column) => column.name);
  const turn = (name) => (value) => { state[name] = value; keep(`${name}${key}`, String(value)); show(); };
  show();
  return { show, node: make("div", {}, make("div", { className: "tools" }, picker("Up", names, state.y, turn("y")), picker("across", names, state.x, turn("x"))), host) };
}

// --- the modes of a site -------------------------------------------------------------------

function modeColumns(table) {
  const c = table.columns, has = (name) => c[name].some((value) => value !== null);
  const own = (row) => entryOf(table, c.id[row]);
  const columns = [
    { name: "Mode", value: (row) => c.id[row], text: (value) => String(value) },
    { name: "Called", word: true, title: "by people", value: (row) => own(row)?.name || own(row)?.note || "", shown: (names.sites[table.site] || []).length > 0 },
    { name: "Stands for", word: true, value: (row) => c.means[row], shown: c.means.some(Boolean),
      title: "label, superclass or attribute, found on training inputs at a false-discovery rate of 5 %, whose correlation on held-out inputs has a 95 % interval above 0.2" },
    { name: "Best label", word: true, value: (row) => (c.label[row] < 0 ? "" : labelName(c.label[row])), shown: c.label.some((one) => one >= 0), title: "that it goes with most on training inputs" },
    { name: "Training", value: (row) => c.train[row], shown: has("train"), title: "correlation with the best label on training inputs" },
    { name: "Held out", value: (row) => c.held_out[row], shown: has("held_out"), title: "correlation with that label on held-out inputs" },
    { name: "Users", value: (row) => c.users[row], text: (value) => count(value), title: table.held_out ? "held-out inputs that use it" : "inputs that use it" },
    { name: "Use", value: (row) => (table.held_out ? c.held_out_use : c.use)[row], text: (value) => percent(value), title: "share of the inputs that use it; the sum over modes is L0" },
    { name: "Seeds", value: (row) => c.seeds[row], shown: has("seeds"), title: "mean cosine with its partners in fits of other seeds" },
    { name: "Halves", value: (row) => c.halves[row], shown: has("halves"), title: "the same in fits of either half of the inputs" },
    { name: "Effect", value: (row) => c.effect[row], shown: has("effect"), title: "selectivity when its own units are ablated, for the label that it is the best mode of: below 0 hits the label more than the others" },
  ];
  return columns.filter((column) => column.shown !== false);
}

async function sitePart(host, number) {
  const key = host.dataset.modes, table = await load(`${key}/modes`), columns = modeColumns(table);
  const n = table.columns.id.length, link = (row) => modeLink(key, table.columns.id[row]);
  const groups = [...new Set((names.sites[table.site] || []).map((entry) => entry.group).filter(Boolean))].sort();
  let group = groups.indexOf(view.get(`g${number}`));
  const kept = (row) => group < 0 || entryOf(table, table.columns.id[row])?.group === groups[group];
  const numbers = columns.filter((column) => !column.word);
  const title = (row) => `mode ${table.columns.id[row]}: ${table.columns.means[row] || labelName(table.columns.label[row])}`;
  const at = (name, other) => { const found = numbers.findIndex((column) => column.name === name); return found < 0 ? other : found; };
  const list = dataTable(columns, n, number, { link, kept });
  const plot = scatter(numbers, n, number, { link, title, kept, first: [at("Use", 0), at("Held out", 1)] });
  const tools = groups.length ? make("div", { className: "tools" }, picker("Group", ["all", ...groups], group + 1, (value) => {
    group = value - 1;
    keep(`g${number}`, groups[group] || "");
    list.show();
    plot.show();
  })) : null;
  host.replaceChildren(...[tools, plot.node, list.node].filter(Boolean));
}

// --- one mode ------------------------------------------------------------------------------

function atomOf([scale, content], width) {
  const bytes = Uint8Array.from(atob(content), (sign) => sign.charCodeAt(0)), size = width > 65536 ? 4 : width > 256 ? 2 : 1;
  const n = bytes.length / (size + 1), numbers = new DataView(bytes.buffer);
  const unit = (at) => (size === 1 ? bytes[at] : size === 2 ? numbers.getUint16(2 * at, true) : numbers.getUint32(4 * at, true));
  return Array.from({ length: n }, (_, at) => [unit(at), numbers.getInt8(n * size + at) / 127 * scale]);
}

// Entries of both signs of contributions: all positive parts, then all negative ones.
function unitOf(entry, table) {
  return table.units > table.n_units ? `${entry % table.n_units} (${entry < table.n_units ? "positive" : "negative"} part)` : String(entry);
}

function atomPlot(atom, table, drawn) {
  const width = 420, height = 110, values = atom.map(([, value]) => value);
  const high = Math.max(0, ...values), low = Math.min(0, ...values), span = high - low || 1;
  const y = (value) => 6 + (high - value) / span * (height - 12);
  const svg = shape("svg", { class: "atom", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Atom: ${atom.length} largest of ${table.units} entries` });
  svg.append(shape("line", { x1: 0, x2: width, y1: y(0), y2: y(0) }));
  for (const [unit, value] of atom) {
    const x = (unit + 0.5) / table.units * width;
    const kind = drawn.has(unit % table.n_units) ? "chosen" : value > 0 ? "above" : "below";
    const stem = shape("path", { class: kind, d: `M${x.toFixed(1)} ${y(0).toFixed(1)}V${y(value).toFixed(1)}`, "stroke-width": Math.max(1.2, Math.min(5, 0.5 * width / table.units)) });
    stem.append(Object.assign(shape("title"), { textContent: `unit ${unitOf(unit, table)}: ${fixed(value, 4)}` }));
    svg.append(stem);
  }
  return svg;
}

function labelBars(labels, heldOut) {
  const rows = labels.map(([label, train, held, low, high]) => {
    const rail = make("span", { className: "rail" });
    const at = (value) => `${(100 * Math.max(0, Math.min(1, value))).toFixed(1)}%`;
    rail.append(make("span", { className: train < 0 ? "fill minus" : "fill", style: { width: at(Math.abs(train)) } }));
    if (low !== null) rail.append(make("span", { className: "reach", style: { left: at(low), right: `${100 - parseFloat(at(high))}%` } }));
    if (held !== null && held > 0) rail.append(make("span", { className: "tick", style: { left: at(held) } }));
    const reach = low === null ? "" : ` (${fixed(low)} to ${fixed(high)})`;
    return make("tr", {}, make("th", { title: labelName(label) }, make("a", { href: `${ROOT}label.html#${label}`, text: labelName(label) })),
      make("td", { className: "draw" }, rail), make("td", { className: "n", text: fixed(train) }), make("td", { className: "n reaches", text: heldOut ? fixed(held) + reach : "" }));
  });
  const heads = ["Label", "Correlation", "training", heldOut ? "held out, 95 %" : ""];
  return make("table", { className: "bars" }, make("thead", {}, make("tr", {}, ...heads.map((text, n) => make("th", { className: n > 1 ? "n" : n ? "unseen" : "", text })))), make("tbody", {}, ...rows));
}

function enlarged(node, words) {
  node.setAttribute("tabindex", "0");
  node.removeAttribute("aria-hidden");
  node.setAttribute("role", "button");
  node.setAttribute("aria-label", seen(words));
  const open = () => showLarge(node.cloneNode(true), words);
  node.addEventListener("click", open);
  node.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(); } });
  return node;
}

function inputFigure(input, note) {
  const [id, label, prediction, picture, page] = input;
  const wrong = label >= 0 && prediction >= 0 && label !== prediction;
  const words = `input ${id}${label < 0 ? "" : `, ${labelName(label)}`}`;
  const shown = picture && (page ? make("a", { href: ROOT + page.split("/").map(encodeURIComponent).join("/"), title: "why this output" }, tile(picture, words)) : enlarged(tile(picture), words));
  const caption = make("figcaption", { title: seen(words) },
    make("b", { className: "cut", text: picture && label >= 0 ? labelName(label) : id }),
    picture || label < 0 ? null : make("span", { className: "cut", text: labelName(label) }),
    wrong ? make("span", { className: "wrong cut", text: `taken for ${labelName(prediction)}` }) : null,
    make("span", { className: "faint", text: note }));
  return make("figure", { className: picture ? "" : "byname" }, shown || null, caption);
}

// Inputs of one kind: a picture with the first of the maps below it, or the end of a text.
function inputRow(title, note, listed, inputs, maps) {
  if (!listed.length) return null;
  const mapped = pairs(listed).some(([row]) => maps?.of?.[row] !== undefined), below = !mapped ? "" : maps.texts ? (maps.places ? "; coloured as above, on the same scale" : "") : `; below, ${maps.places ? "what the mode contributes where, on the scale of the maps above" : "their total maps"}`;
  const shown = pairs(listed).map(([row, value]) => {
    if (mapped && maps.texts) return textOf(maps.of[row] || [], inputs[row], value);
    const figure = inputFigure(inputs[row], fixed(value)), at = maps?.of?.[row];
    if (at !== undefined) figure.lastChild.before(mapTile(maps, at, `${maps.parts[0]} map of input ${inputs[row][0]}`));
    return figure;
  });
  return make("section", { className: "kind" }, make("h3", { text: title }), make("p", { className: "note", text: note + below }),
    make("div", { className: mapped && maps.texts ? "texts" : "row inputs" }, ...shown));
}

// What colours mean, as on the page of the site.
function legendOf(maps) {
  const key = (kind, text) => make("span", { className: `key ${kind}`, text }), said = [];
  if (!maps) said.push("By name: the run has no pictures of these (condec map draws the leading modes).");
  else said.push("On the inputs that use it most; the number is the loading. ");
  if (maps?.places) said.push("Contributes: where the mode ", key("up", "adds"), ` to ${seen(RUN.target)} and where it `, key("down", "takes"), ". ");
  if (maps?.parts) {
    said.push(maps.places ? "Total, positive and negative: " : "Maps: ");
    if (maps.signs) said.push("which pixels ", key("up", "raise"), " and which ", key("down", "lower"), ` ${seen(maps.target)} through its strongest units.`);
    else said.push(`the part of the picture through which its strongest units move ${seen(maps.target)}.`);
  }
  return make("p", { className: "note legend" }, ...said);
}

function textOf(tokens, [id, label, prediction], value) {
  const words = tokens.map(([text, colour, number]) => make("span", { text, title: number, style: { background: colour } }));
  const wrong = label >= 0 && prediction >= 0 && label !== prediction;
  return make("p", { className: "text" }, ...words, label < 0 ? null : make("b", { title: "the token that came next", text: labelName(label) }),
    make("span", { className: "faint", text: `${wrong ? ` the model says \u201c${labelName(prediction)}\u201d;` : ""} ${id}, ${fixed(value)}` }));
}

// A tile of the maps of a mode: in rows, by kind of map, then those of other inputs.
function mapTile(maps, at, words) {
  const [file, sheetWidth, sheetHeight, width, height] = maps.sheet, n = maps.rows.length;
  return enlarged(tile([file, sheetWidth, sheetHeight, at % n * width, Math.floor(at / n) * height, width, height]), words);
}

function mapsOf(maps, inputs) {
  const n = maps.rows.length;
  const head = make("div", { className: "row head" }, make("span", { className: "rowname", text: "input" }), ...maps.rows.map((row, at) => inputFigure(inputs[row], fixed(maps.loadings[at]))));
  const rows = maps.parts.map((part, y) => make("div", { className: "row map", data: { part } }, make("span", { className: "rowname", text: part }),
    ...maps.rows.map((row, x) => mapTile(maps, y * n + x, `${part} map of input ${inputs[row][0]}`))));
  const tiles = make("div", { className: "tiles", style: { "--inputs": n } }, head, ...rows);
  const all = ["all", "all maps"], each = maps.parts.map((part) => [part, part]);
  const show = (part) => rows.forEach((row) => { row.hidden = part !== "all" && row.dataset.part !== part; });
  const buttons = maps.parts.length > 1 ? choice("Maps", [...each.slice(0, 1), all, ...each.slice(1)], "m", show) : "";
  return make("div", {}, make("div", { className: "tools" }, buttons), make("div", { className: "scrolled", tabIndex: 0, attributes: { role: "region", "aria-label": "Inputs and maps" } }, tiles));
}

async function neighbours(title, note, key, found, heads) {
  if (!found.length) return null;
  const table = await load(`${key}/modes`);
  const cards = found.map(([number, value, other]) => {
    const from = other ? null : table, at = from ? from.columns.id.indexOf(number) : -1;
    return modeCard(other || key, from, number, at, `${heads} ${fixed(value)}`);
  });
  return make("section", { className: "kind" }, make("h3", { text: title }), make("p", { className: "note", text: note }), make("ul", { className: "modes few" }, ...cards));
}

function modeCard(key, table, number, at, note) {
  const picture = at >= 0 ? table.columns.pictures[at] : null;
  const name = at < 0 ? "" : entryOf(table, number)?.name || table.columns.means[at] || (table.columns.label[at] < 0 ? "" : labelName(table.columns.label[at]));
  return make("li", { className: "mode" }, make("a", { href: modeLink(key, number) }, picture ? tile(picture) : null,
    make("span", { className: "modename", text: `Mode ${number}` }), make("b", { className: "cut", text: name })),
    make("p", { className: "use", text: note }));
}

async function controlOf(key, table, labels, number) {
  if (!labels.length) return null;
  const blocks = [];
  for (const label of labels) {
    const every = await load(`${key}/control-${Math.floor(label / table.per_labels)}`);
    const rows = every[label], kinds = [...new Set(rows.map(([edit, by]) => `${edit}~${by}`))];
    for (const kind of kinds) {
      const [edit, by] = kind.split("~"), mine = rows.filter((row) => row[0] === edit && row[1] === by);
      blocks.push(controlBlock(label, edit, by, mine));
    }
  }
  return make("section", { className: "whole" }, make("h2", { id: "control", text: "Control curve of this mode" }),
    make("p", { className: "note", text: "The units of this mode's atom are edited, largest first, on held-out inputs; beside it the other rankings of the same label, which it has to beat. Accuracy is relative to the unedited network." }), ...blocks);
}

function controlBlock(label, edit, by, rows) {
  const hue = (ranking) => RUN.rankings[ranking][1];
  const ordered = [...rows].sort((a, b) => (b[2] === "best_mode") - (a[2] === "best_mode"));
  const charts = ["its own inputs", "all other inputs"].map((title, which) => {
    const all = ordered.flatMap((row) => row[6 + which]);
    const { svg, x, y } = axes(360, 220, ordered.flatMap((row) => row[5]), [0, 1, ...all], ["share of units edited", `accuracy, ${title}`]);
    ordered.forEach(([, , ranking, , , fractions, ...accuracies]) => {
      const points = fractions.map((at, place) => [at, accuracies[which][place]]).filter(([, value]) => value !== null);
      svg.append(shape("polyline", { points: points.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" "), stroke: hue(ranking), class: ranking === "best_mode" ? "own" : ranking.startsWith("random") ? "dashed" : "" }));
    });
    svg.setAttribute("aria-label", `Accuracy of ${title} over the share of units edited; the table has the selectivities`);
    return make("figure", { className: "chart" }, svg);
  });
  const body = ordered.map(([, , ranking, , [auc, low, high]]) => make("tr", {},
    make("th", {}, make("span", { className: "swatch", style: { background: hue(ranking) } }), ranking === "best_mode" ? "this mode" : seen(RUN.rankings[ranking][0])),
    make("td", { className: "n", text: fixed(auc) }), make("td", { className: "n", text: low === null ? "" : `${fixed(low)} to ${fixed(high)}` })));
  const heads = make("thead", {}, make("tr", {}, make("th", { text: "Ranking" }), make("th", { className: "n", text: "Selectivity" }), make("th", { className: "n", text: "95 %" })));
  return make("div", {}, make("h3", {}, `${edit[0].toUpperCase()}${edit.slice(1)}, for `, make("a", { href: `${ROOT}label.html#${label}`, text: labelName(label) }), make("span", { className: "faint", text: ` replaced by ${by.replace("_", " ")}` })),
    make("div", { className: "curves" }, ...charts, wide(make("table", { className: "data few" }, heads, make("tbody", {}, ...body)))));
}

function editor(table, number, atom) {
  const kept = entryOf(table, number) || {}, status = make("p", { className: "note", attributes: { role: "status" } });
  const groups = [...new Set(Object.values(names.sites).flat().map((entry) => entry.group).filter(Boolean))];
  const field = (name, tag, options) => {
    const box = make(tag, { value: kept[name] || "", name, maxLength: 10000, ...options });
    return [box, make("label", {}, make("span", { text: `${name[0].toUpperCase()}${name.slice(1)}` }), box)];
  };
  const [name, nameLabel] = field("name", "input", { autocomplete: "off" });
  const [group, groupLabel] = field("group", "input", { autocomplete: "off", attributes: { list: "groups" } });
  const [note, noteLabel] = field("note", "textarea", { rows: 2 });
  const save = async () => {
    const said = { name: name.value.trim(), note: note.value.trim(), group: group.value.trim() };
    const units = Object.fromEntries(atom.map(([unit, value]) => [unit, Number(value.toPrecision(4))]));
    try { status.textContent = await nameMode(table, number, said, units); } catch (error) { status.textContent = `Not kept: ${seen(error.message)}`; }
  };
  for (const box of [name, group, note]) box.addEventListener("change", save);
  const form = make("form", { className: "say" }, nameLabel, groupLabel, noteLabel, make("datalist", { id: "groups" }, ...groups.map((text) => new Option(seen(text)))), status);
  form.addEventListener("submit", (event) => { event.preventDefault(); save(); });
  return make("details", { className: "naming", open: Boolean(kept.name || kept.note || kept.group) }, make("summary", { text: "Name it, or leave a note" }), form);
}

let onMode = null; // keys go from mode to mode

async function modePage(host, left) {
  const [folder, learner, numberText] = address().split("/").map(decodeURIComponent);
  const key = `${folder}/${learner}`, number = Number(numberText);
  if (!RUN.dictionaries.includes(key)) return host.replaceChildren(make("h1", { text: "No such mode" }), chooseSite());
  const table = await load(`${key}/modes`), found = await recordOf(key, table, number);
  if (left()) return null;
  if (!found) return host.replaceChildren(make("h1", { text: `${table.site} has no mode ${numberText} in use` }), chooseSite());
  const { at, record } = found, c = table.columns;
  const [atomBytes, flatLabels, top, typical, random, counter, nearFlat, afterFlat, users, ofLabels, flow, maps, why] = record;
  const labels = inFives(flatLabels), near = inThousandths(nearFlat), after = inThousandths(afterFlat);
  const atom = atomOf(atomBytes, table.units), strongest = [...atom].sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  const drawn = new Set((maps?.units || strongest.slice(0, 3).map(([unit]) => unit % table.n_units)));
  const rows = [top, typical, random, counter].flatMap((flat) => pairs(flat).map(([row]) => row));
  const inputs = await inputsOf([...rows, ...(maps?.rows || [])]);
  const name = entryOf(table, number)?.name || c.means[at] || (c.label[at] < 0 ? "" : labelName(c.label[at]));
  const step = (by, rel, text) => {
    const other = c.id[at + by];
    return other === undefined ? null : make("a", { href: modeLink(key, other), rel, text });
  };
  const used = [`${count(users[0])} of ${count(table.rows[0])} ${table.held_out ? "training " : ""}inputs`];
  if (table.held_out) used.push(`${count(users[1])} of ${count(table.rows[1])} held-out inputs`);
  const facts = [`Used by ${used.join(" and ")}.`];
  if (why) facts.push(seen(`Unnamed: ${why.replace(/\.?$/, ".")}`));
  if (table.held_out && users[1] < LEAST_USERS) facts.push(`Fewer than ${LEAST_USERS} held-out inputs use it: nothing shows that it holds for other inputs.`);
  const copies = near.filter(([, value]) => value > NEARLY_EQUAL).map(([other]) => other);
  if (copies.length) facts.push(`Nearly the same atom as mode${copies.length > 1 ? "s" : ""} ${copies.join(", ")}.`);
  facts.push(c.seeds[at] === null ? "Whether other fits find it again was not measured." : `Found again with a cosine of ${fixed(c.seeds[at])} by other seeds, ${fixed(c.halves[at])} on half the inputs.`);
  const units = make("p", { className: "units" }, "Strongest units ", ...strongest.slice(0, 6).flatMap(([unit, value], n) => [n ? ", " : "", make("b", { text: unitOf(unit, table) }), make("span", { className: "faint", text: ` ${fixed(value, 3)}` })]),
    make("span", { className: "faint", text: `. Drawn: the ${atom.length} largest of ${count(table.units)} entries${maps?.parts ? "; dark, those of the maps" : ""}.` }));
  const [site] = siteOf(key);
  const head = make("header", { className: "top" }, make("p", { className: "eyebrow" }, make("span", {}, "Mode of ", make("a", { href: `${ROOT}sites/${encodeURIComponent(folder)}.html`, text: site })),
    step(-1, "prev", "\u2190 before"), step(1, "next", "next \u2192"), make("span", { text: `${count(at + 1)} of ${count(c.id.length)}` })),
    make("h1", { tabIndex: -1 }, `Mode ${number}`, name ? make("span", { className: "called", text: ` ${name}` }) : ""));
  const about = make("div", { className: "about" }, make("p", { className: "use", text: facts.join(" ") }), labels.length ? labelBars(labels, table.held_out) : null,
    make("h2", { text: "Atom" }), atomPlot(atom, table, drawn), units, editor(table, number, atom));
  const shown = maps?.texts ? make("div", { className: "texts" }, ...maps.texts.map((tokens, n) => textOf(tokens, inputs[maps.rows[n]], maps.loadings[n]))) : maps ? mapsOf(maps, inputs)
    : make("div", { className: "row inputs" }, ...pairs(top).map(([row, value]) => inputFigure(inputs[row], fixed(value))));
  const seenPart = make("div", { className: "seen" }, make("h2", { text: "Inputs" }), legendOf(maps), shown,
    inputRow("Typical", "from the middle of all that use it, by loading", typical, inputs, maps),
    inputRow("Drawn at random", "from all that use it", random, inputs, maps),
    inputRow("Counter-examples", "its units are active, and yet contribute little; the number is their activation", counter, inputs, maps));
  const [control, here, next] = await Promise.all([
    controlOf(key, table, ofLabels, number),
    neighbours("At this site", "Modes with the most similar atoms.", key, near, "cosine"),
    after.length ? neighbours("At the next site", "Modes that the same inputs use; r of the loadings over all inputs.", table.next, after, "r") : null,
  ]);
  const flows = flow.length ? await neighbours("By flow", `What of this mode's contribution goes through modes of the next site, mean over the ${flow[0]} explained input${flow[0] === 1 ? "" : "s"} among whose strongest modes it is.`, key, flow.slice(1).map(([other, n, value]) => [n, value, other]), "flow") : null;
  if (left()) return null;
  host.replaceChildren(head, make("div", { className: "card" }, about, seenPart), ...[control].filter(Boolean),
    make("section", {}, make("h2", { id: "neighbours", text: "Neighbours" }), ...[here, next, flows].filter(Boolean)));
  document.title = seen(`Mode ${number}, ${site}`);
  onMode = (by) => { const other = c.id[at + by]; if (other !== undefined) location.href = modeLink(key, other); };
  mark(folder);
}

function chooseSite() {
  return make("p", {}, "Choose one at its site: ", ...RUN.sites.flatMap(([key, folder], n) => [n ? ", " : "", make("a", { href: `${ROOT}sites/${encodeURIComponent(folder)}.html`, text: key })]));
}

function mark(folder) {
  for (const link of document.querySelectorAll(".pages a")) {
    const here = link.href === `${ROOT}sites/${encodeURIComponent(folder)}.html`;
    if (here) { link.setAttribute("aria-current", "true"); link.scrollIntoView({ block: "nearest", inline: "center" }); } else link.removeAttribute("aria-current");
  }
}

// --- labels --------------------------------------------------------------------------------

async function labelPage(host, left) {
  const text = address(), list = await load("labels");
  if (left()) return null;
  const chosen = list.rows.findIndex(([label]) => String(label) === text);
  if (chosen < 0) return labelTable(host, list);
  const [label, n, right] = list.rows[chosen];
  const found = (await load(`labels/${Math.floor(label / list.per_file)}`))[label];
  const step = (by, rel, words) => { const other = list.rows[chosen + by]; return other ? make("a", { href: `#${other[0]}`, rel, text: words }) : null; };
  const head = make("header", { className: "top" }, make("p", { className: "eyebrow" }, make("a", { href: "#", text: "All labels" }), step(-1, "prev", "\u2190 before"), step(1, "next", "next \u2192")),
    make("h1", { tabIndex: -1, text: labelName(label) }), make("p", { className: "lede", text: `${count(n)} inputs, ${count(right)} of them classified rightly.` }));
  const parts = [head, await depthOf(found)];
  if (found.control) parts.push(controlTable(found.control));
  parts.push(await kindsOf(found.kinds, n));
  if (left()) return null;
  host.replaceChildren(...parts.filter(Boolean));
  document.title = labelName(label);
  onMode = (by) => { const other = list.rows[chosen + by]; if (other) location.hash = other[0]; };
}

function labelTable(host, list) {
  const r = list.rows;
  const columns = [
    { name: "Label", word: true, value: (row) => labelName(r[row][0]) },
    { name: "Inputs", value: (row) => r[row][1], text: (value) => count(value) },
    { name: "Right", title: "share that the model classifies rightly", value: (row) => r[row][2] / r[row][1], text: (value) => percent(value, 0) },
    { name: "Best mode", word: true, title: "of all sites, by training inputs", value: (row) => (r[row][3] < 0 ? "" : `mode ${r[row][4]}, ${siteOf(RUN.dictionaries[r[row][3]])[0]}`),
      text: (value, row) => (value ? make("a", { href: modeLink(RUN.dictionaries[r[row][3]], r[row][4]), text: value }) : "") },
    { name: "Training", value: (row) => r[row][5] }, { name: "Held out", value: (row) => r[row][6] },
  ];
  const table = dataTable(columns, r.length, "l", { link: (row) => `#${r[row][0]}` });
  host.replaceChildren(make("header", { className: "top" }, make("h1", { tabIndex: -1, text: "Labels" }),
    make("p", { className: "lede", text: r.length ? "Each has a page: its modes over the depth of the network, what editing its units does, and the kinds of its inputs." : "The inputs of this run have no labels." })), r.length ? table.node : "");
  document.title = "Labels";
  onMode = null;
}

async function depthOf(found) {
  if (!found.modes.length) return null;
  const keys = [...new Set(found.modes.map(([at]) => at))], tables = await Promise.all(keys.map((at) => load(`${RUN.dictionaries[at]}/modes`)));
  const best = keys.map((at) => found.modes.find(([own]) => own === at));
  const { svg, x, y } = axes(520, 220, keys.map((_, n) => n + 1), [0, 1], ["site, in order", "correlation of its best mode"]);
  for (const [which, kind] of [[2, "dashed"], [3, "own"]]) {
    const points = best.map((one, n) => [n + 1, one[which]]).filter(([, value]) => value !== null);
    svg.append(shape("polyline", { class: kind, stroke: "#0072b2", points: points.map(([a, b]) => `${x(a)},${y(Math.max(0, b))}`).join(" ") }));
    for (const [a, b] of points) svg.append(shape("circle", { cx: x(a), cy: y(Math.max(0, b)), r: 3.5, fill: "#0072b2" }));
  }
  svg.setAttribute("aria-label", "Correlation of the best mode at each site; the rows below have the numbers");
  const rows = keys.map((at, n) => make("div", { className: "depth" }, make("h3", {}, make("a", { href: `${ROOT}sites/${encodeURIComponent(RUN.dictionaries[at].split("/")[0])}.html`, text: tables[n].site })),
    make("ul", { className: "modes few" }, ...found.modes.filter(([own]) => own === at).map(([, number, train, held]) =>
      modeCard(RUN.dictionaries[at], tables[n], number, tables[n].columns.id.indexOf(number), `r ${fixed(train)}, held out ${fixed(held)}`)))));
  return make("section", {}, make("h2", { text: "Its modes over depth" }), make("p", { className: "note", text: "At every site the modes that go with the label most on training inputs (dashed); the solid line is the same mode on held-out inputs." }),
    make("div", { className: "scatter" }, svg), ...rows);
}

function controlTable(rows) {
  const body = rows.map(([site, edit, by, [auc, low, high]]) => make("tr", {}, make("th", { text: site }), make("td", { text: edit }), make("td", { text: by.replace("_", " ") }),
    make("td", { className: "n", text: fixed(auc) }), make("td", { className: "n", text: low === null ? "" : `${fixed(low)} to ${fixed(high)}` })));
  const heads = ["Site", "Edit", "Replaced by", "Selectivity", "95 %"];
  return make("section", {}, make("h2", { text: "Control" }), make("p", { className: "note", text: "What editing the units that modes put first for this label does: selectivity is (AUC of the label \u2212 AUC of others) / AUC of others. Below 0 when ablated, above 0 when preserved: the label is hit, or kept, more than the others." }),
    wide(make("table", { className: "data" }, make("thead", {}, make("tr", {}, ...heads.map((text, n) => make("th", { className: n > 2 ? "n" : "", text })))), make("tbody", {}, ...body))));
}

async function kindsOf(kinds, n) {
  const title = make("h2", { text: "Kinds of its inputs" });
  const few = `Prototypes are looked for where a label has 20 inputs or more; this one has ${count(n)}.`;
  const none = typeof kinds === "string" ? `None: ${kinds}.` : n < 20 ? few : "None: no dictionary of this run has modes that inputs use.";
  if (!Array.isArray(kinds)) return make("section", {}, title, make("p", { className: "note", text: none }));
  const [key, groups, out, many, told] = kinds;
  const table = await load(`${key}/modes`), inputs = await inputsOf([...groups.flatMap(([, , rows]) => rows), ...out]);
  const row = (rows) => make("div", { className: "row inputs" }, ...rows.map((one) => inputFigure(inputs[one], "")));
  const shown = groups.map(([n, modes, rows], at) => make("section", { className: "kind" }, make("h3", { text: `Prototype ${at + 1}: ${count(n)} inputs` }),
    make("p", { className: "note" }, "by ", ...modes.flatMap((number, place) => [place ? ", " : "", make("a", { href: modeLink(key, number), text: `mode ${number}` })])), row(rows)));
  const words = !told ? "Its inputs are too alike for outliers to be told." : many ? `${many} outliers: inputs that are far from every prototype.` : "No outliers: no input is far from every prototype.";
  return make("section", {}, title, make("p", { className: "note", text: `Clusters of the loadings at ${table.site}, the last site with modes; the inputs nearest to the middle of each.` }), ...shown,
    make("section", { className: "kind" }, make("h3", { text: "Outliers" }), make("p", { className: "note", text: words }), row(out)));
}

// --- two runs ------------------------------------------------------------------------------

async function comparePage(host) {
  const c = await load("compare"), n = c.site.length;
  const name = (mode) => (mode ? `mode ${mode[0]}${mode[1] ? `: ${mode[1]}` : ""}` : "");
  const cell = (mode) => {
    if (!mode) return "none";
    const inside = [mode[2] ? tile(mode[2]) : null, seen(name(mode))];
    return make("span", { className: "side" }, mode[3] ? make("a", { href: mode[3] }, ...inside.filter(Boolean)) : make("span", {}, ...inside.filter(Boolean)));
  };
  const columns = [
    { name: "Site", word: true, value: (row) => c.site[row] },
    { name: "First", word: true, value: (row) => name(c.first[row]), text: (_, row) => cell(c.first[row]) },
    { name: "Second", word: true, value: (row) => name(c.second[row]), text: (_, row) => cell(c.second[row]) },
    { name: "Correlation", value: (row) => c.correlation[row], title: "of loadings, over all inputs" },
    { name: "Cosine", value: (row) => c.cosine[row], title: "of atoms" },
    { name: "In both", word: true, value: (row) => (c.matched[row] ? "yes" : "no"), title: "whether the correlation is above chance" },
  ];
  const numbers = columns.filter((column) => !column.word && Array.from({ length: n }, (_, row) => column.value(row)).some((value) => value !== null));
  const link = (row) => (c.first[row] || c.second[row])[3] || "#";
  const title = (row) => `${c.site[row]}: ${name(c.first[row])}; ${name(c.second[row])}`;
  const plot = scatter(numbers, n, "c", { link, title, kept: () => true, first: [numbers.length - 1, 0] });
  host.replaceChildren(plot.node, dataTable(columns, n, "c").node);
}

// --- start ---------------------------------------------------------------------------------

const address = () => location.hash.slice(1).split("~")[0];

// Where the reader went on while records came, what they were asked for is not drawn.
async function draw(host, page, left = () => false) {
  try { await page(host, left); } catch (error) {
    if (left()) return;
    host.replaceChildren(make("h1", { text: "This page cannot be drawn" }), make("p", { className: "note", text: `${error.message}. Was the folder data left behind? Make the report again: condec report RUN.` }));
  }
}

const PAGES = { mode: modePage, label: labelPage };

async function start() {
  const own = Object.keys(PAGES).filter((id) => document.getElementById(id)), parts = document.querySelectorAll("[data-modes]"), panel = document.getElementById("names");
  const compared = document.getElementById("compare");
  if (compared) return draw(compared, comparePage);
  if (!own.length && !parts.length && !panel) return;
  if (!document.querySelector("[data-run]")) return;
  RUN = await load("run");
  if (RUN.form !== FORM) { // served by another version than the one that made them: numbers would be read wrongly
    for (const host of [...own.map((id) => document.getElementById(id)), ...parts, panel].filter(Boolean)) {
      host.replaceChildren(make("p", { className: "note", text: "These pages were made by another version of condec. Make them again: condec report RUN." }));
      host.hidden = false;
    }
    return null;
  }
  await readNames();
  for (const id of own) {
    const host = document.getElementById(id);
    const show = async () => {
      const mine = address(), left = () => address() !== mine;
      await draw(host, PAGES[id], left);
      return !left();
    };
    addEventListener("hashchange", async () => {
      if (location.hash.includes("~") || !await show()) return;
      scrollTo(0, 0);
      host.querySelector("h1")?.focus({ preventScroll: true });
    });
    await show();
  }
  parts.forEach((host, number) => draw(host, () => sitePart(host, number)));
  if (panel && RUN.dictionaries.length) draw(panel, namesPanel);
}

addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, textarea, select, dialog, [tabindex='0']");
  if (!onMode || typing || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
  if (event.key === "ArrowLeft") onMode(-1);
  if (event.key === "ArrowRight") onMode(1);
});

start();
