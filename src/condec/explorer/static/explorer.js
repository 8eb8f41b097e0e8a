// The live page: asks for answers, draws maps, and sends sliders on, one question at a time.
// Served, it asks by HTTP (served.js); in a notebook, by messages to the kernel (widget.js). Elements are those of
// the report's nodes.js, which stands before it.

const UP = [213, 94, 0], DOWN = [91, 63, 140];

function number(value) {
  if (value === 0) return "0";
  const text = value.toPrecision(3);
  return (text.includes("e") ? String(Number(text)) : text).replace("-", "\u2212");
}

// A piece of a line as panels draw it, and what it stands for.
function sample(style, words) {
  const line = shape("svg", { viewBox: "0 0 26 8", class: "sample", "aria-hidden": "true" });
  line.append(shape("path", { d: "M0 4.5H26", class: style }));
  return make("li", {}, line, words);
}

const WIDE = 320, HIGH = 180, LEFT = 34, BOTTOM = 30;

function panel(curves) {
  const own = curves.find((curve) => curve.ranking === "mode") || curves[0];
  const most = Math.max(1, ...curves.flatMap((curve) => curve.target_accuracy.concat(curve.off_accuracy)));
  const x = (fraction) => LEFT + fraction * (WIDE - LEFT - 22);
  const y = (value) => 8 + (1 - value / most) * (HIGH - BOTTOM - 8);
  const path = (curve, name) => curve.fraction.map((f, n) => [x(f), curve[name][n]])
    .filter(([, value]) => value !== null).map(([at, value], n) => `${n ? "L" : "M"}${at} ${y(value)}`).join("");
  const svg = shape("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img" });
  svg.append(shape("title", {}, `Accuracy on ${own.label} over the share of units edited, and on all others`));
  for (const value of [0, 0.5, 1]) {
    svg.append(shape("line", { x1: LEFT, x2: WIDE - 22, y1: y(value), y2: y(value), class: "grid" }));
    svg.append(shape("text", { x: LEFT - 5, y: y(value) + 4, class: "end" }, String(value)));
  }
  for (const value of [0, 0.5, 1]) svg.append(shape("text", { x: x(value), y: HIGH - 14, class: "mid" }, `${100 * value} %`));
  const others = curves.filter((curve) => curve !== own && !curve.ranking.startsWith("random"));
  const styleOf = (curve) => curve === own ? "own" : others.includes(curve) ? `rival rival${others.indexOf(curve) % 4}` : "random";
  const nameOf = (curve) => curve === own ? "this mode" : curve.named;
  for (const curve of curves) {
    const mine = styleOf(curve);
    for (const [name, kind] of [["target_accuracy", "target"], ["off_accuracy", "off"]]) {
      const line = shape("path", { d: path(curve, name), class: `${mine} ${kind}` });
      line.append(shape("title", {}, `${nameOf(curve)}: ${kind === "target" ? own.label : "all other labels"}`));
      svg.append(line);
    }
  }
  const key = make("ul", { className: "key-of-lines" }, ...curves.map((curve) => sample(styleOf(curve), nameOf(curve))));
  const caption = make("figcaption", { className: "note" },
    make("b", { textContent: `${own.site} mode ${own.mode}, ${own.edit} (${own.replacement})` }),
    ` Accuracy on ${own.label} (solid) and on all other labels (dashed), relative to the network as it is, over the share`,
    " of units edited, in the order of:", key);
  return make("figure", {}, svg, caption);
}

// What is under `root` comes to life. `send` takes the name of a question, what is given, its type and a signal
// of abortion, and promises a Response; `pictureOf` gives the address of the picture of an input, or promises it.
export function mount(root, send, pictureOf) {
  const at = (id) => root.querySelector(`#${id}`);
  const state = { found: null, site: 0, factors: {}, image: null, busy: false, again: false, chosen: new Map() };
  const about = at("main").dataset, isText = about.text === "yes";

  function say(text, wrong = false) {
    at("said").textContent = text;
    at("said").classList.toggle("wrong", wrong);
  }

  async function ask(name, body, type, signal) {
    const answer = await send(name, body, type, signal);
    if (!answer.ok) {
      const said = await answer.json().catch(() => ({}));
      throw new Error(said.error || `${answer.status} ${answer.statusText}`);
    }
    return answer;
  }

  // One explanation at a time: another one, or the button, takes back the one that is waited for.
  let waited = null;

  async function explain(path, body, type, name) {
    if (waited) waited.abort();
    const mine = waited = new AbortController();
    say(`Explaining ${name} \u2026 `);
    const stop = make("button", { type: "button", textContent: "Cancel" });
    stop.addEventListener("click", () => mine.abort());
    at("said").append(stop);
    try {
      const found = await (await ask(path, body, type, mine.signal)).json();
      await show(found);
      say([found.prediction ? `${found.name}: the network says ${found.prediction}` : found.name, ...found.warnings].join(". "));
    } catch (error) {
      if (waited === mine) say(error.name === "AbortError" ? "Cancelled." : error.message, error.name !== "AbortError");
    } finally {
      if (waited === mine) waited = null;
    }
  }

  async function keep(path, body, name) {
    try {
      const content = await (await ask(path, body)).blob();
      const link = make("a", { href: URL.createObjectURL(content), download: name });
      link.click();
      URL.revokeObjectURL(link.href);
    } catch (error) {
      say(error.message, true);
    }
  }

  async function show(found) {
    state.image = null;
    if (found.picture) {
      const image = new Image();
      image.src = found.picture;
      await image.decode();
      state.image = image;
    }
    Object.assign(state, { found, factors: {}, site: Math.min(state.site, found.sites.length - 1) });
    at("answer").hidden = false;
    showSites();
    showParts();
    showOutputs(found);
    prepare();
  }

  // While the reader looks: what lies before the site is run once and kept for the sliders.
  function prepare() {
    const { found, site } = state;
    ask("turn", { key: found.key, site: found.sites[site].key, factors: {} }).catch(() => {});
  }

  function showSites() {
    at("sites").replaceChildren(...state.found.sites.map((site, place) => {
      const button = make("button", { type: "button", textContent: site.key });
      button.setAttribute("aria-pressed", place === state.site);
      button.addEventListener("click", () => {
        state.site = place;
        state.factors = {};
        showSites();
        showParts();
        showOutputs(state.found);
        prepare();
      });
      return button;
    }));
  }

  function showParts() {
    const { parts } = state.found.sites[state.site];
    const most = Math.max(...parts.map((part) => Math.max(part.adds, -part.takes))) || 1;
    at("parts").replaceChildren(...parts.map((part) => {
      const name = make("span", {}, chooser(part), make("b", { textContent: part.name }));
      if (part.called) name.append(make("span", { className: "called", textContent: part.called }));
      if (part.label) {
        const text = `label ${part.label} (r ${part.correlation.toFixed(2)})`;
        name.append(make("small", { textContent: text, title: `what it goes with most: ${text}` }));
      }
      const down = make("i", { className: "down" }), up = make("i", { className: "up" });
      down.style.width = `${100 * -part.takes / most}%`;
      up.style.width = `${100 * part.adds / most}%`;
      const both = make("span", { className: "both" }, make("span", {}, down), make("span", {}, up));
      both.setAttribute("role", "img");
      both.setAttribute("aria-label", `adds ${number(part.adds)}, takes ${number(-part.takes)}`);
      const net = make("span", { className: "n", textContent: number(part.adds + part.takes) });
      const slider = make("input", { type: "range", min: 0, max: 3, step: 0.05, value: 1 });
      slider.setAttribute("aria-label", `factor of ${part.name}`);
      const value = make("output", { className: "n", textContent: "1" });
      slider.addEventListener("input", () => {
        value.textContent = String(slider.valueAsNumber);
        if (slider.valueAsNumber === 1) delete state.factors[part.name];
        else state.factors[part.name] = slider.valueAsNumber;
        turn();
      });
      return make("li", { data: { part: part.name } }, name, both, net, slider, value);
    }));
    at("rest").textContent = restOf(state.found.sites[state.site]);
    drawMap();
    showCode();
  }

  // --- modes that are chosen: by site, number and dictionary, whatever the input --------------

  const numberOf = (name) => { const found = /^mode (\d+)$/.exec(name); return found ? Number(found[1]) : null; };

  function chooser(part) {
    const mode = numberOf(part.name), { key: site, dictionary } = state.found.sites[state.site];
    if (mode === null) return "";
    const pair = [site, mode, dictionary], key = JSON.stringify(pair);
    const box = make("input", { type: "checkbox", checked: state.chosen.has(key), title: "choose this mode" });
    box.setAttribute("aria-label", `choose ${part.name} of ${site}`);
    box.addEventListener("change", () => {
      if (box.checked) state.chosen.set(key, pair); else state.chosen.delete(key);
      showChosen();
    });
    return box;
  }

  function showChosen() {
    const chosen = [...state.chosen.values()];
    at("chosen").replaceChildren(...chosen.map((pair) => {
      const [site, mode] = pair;
      const button = make("button", { type: "button", textContent: `${site} mode ${mode} \u00d7`, title: "leave it out" });
      button.addEventListener("click", () => {
        state.chosen.delete(JSON.stringify(pair));
        showChosen();
        if (state.found) showParts();
      });
      return make("li", {}, button);
    }));
    at("chosen").hidden = !chosen.length;
    at("none-chosen").hidden = chosen.length > 0;
    for (const id of ["save-chosen", "control-chosen"]) at(id).disabled = !chosen.length;
    showCurves();
  }

  // --- control curves of chosen modes, as far as they were measured ------------------------------

  async function showCurves() {
    const chosen = [...state.chosen.values()];
    const found = await Promise.all(chosen.map(async ([site, mode, dictionary]) => (
      (await ask("curves", { site, mode, dictionary }).then((a) => a.json()).catch(() => []))
        .map((curve) => ({ ...curve, site, mode }))
    )));
    const panels = new Map();
    for (const curve of found.flat()) {
      const key = [curve.site, curve.mode, curve.label, curve.edit, curve.replacement].join("\u0000");
      panels.set(key, [...(panels.get(key) || []), curve]);
    }
    at("curves").replaceChildren(...[...panels.values()].map(panel));
  }

  // --- jobs: what takes minutes ------------------------------------------------------------------

  let polled = null, stateOf = new Map();

  async function showJobs() {
    clearTimeout(polled);
    let jobs;
    try {
      jobs = await (await ask("jobs")).json();
    } catch { jobs = null; }
    if (jobs) {
      at("jobs").replaceChildren(...jobs.map(job));
      const ended = jobs.filter((one) => one.state === "done" && stateOf.get(one.job) && stateOf.get(one.job) !== "done");
      stateOf = new Map(jobs.map((one) => [one.job, one.state]));
      if (ended.some((one) => one.link === "fit")) forget();
      else if (ended.length) showCurves();
    }
    const busy = !jobs || jobs.some((one) => one.state === "waiting" || one.state === "running");
    if (busy) polled = setTimeout(showJobs, 1000);
  }

  // Modes that were fitted again are others, under the same numbers.
  function forget() {
    state.chosen.clear();
    showChosen();
    if (!state.found) return;
    state.factors = {};
    showParts();
    showOutputs(state.found);
    say("Modes were fitted again; explain the input again to see and choose the new ones.");
  }

  function job(one) {
    const open = one.state === "waiting" || one.state === "running";
    const item = make("li", { data: { state: one.state } }, make("b", { textContent: one.words }),
      make("span", { className: "state", textContent: one.state === "waiting" ? "waits" : `${one.state}, ${one.seconds} s` }));
    if (open) {
      const stop = make("button", { type: "button", textContent: "Cancel" });
      stop.setAttribute("aria-label", `Cancel ${one.words}`);
      stop.addEventListener("click", () => tell("cancel", { job: one.job }));
      item.append(stop);
    }
    for (const bar of one.state === "running" ? one.bars : []) {
      const shown = make("progress", bar.total ? { max: bar.total, value: bar.done } : {});
      shown.setAttribute("aria-label", bar.bar);
      const words = `${bar.bar}: ${bar.done}${bar.total ? ` of ${bar.total}` : ""} ${bar.unit} ${bar.note}`;
      item.append(make("span", { className: "bar" }, shown, make("small", { textContent: words })));
    }
    const last = one.said.slice(one.state === "failed" ? -3 : -1).join("\n");
    if (last) item.append(make("pre", { textContent: last }));
    return item;
  }

  async function tell(path, body) {
    try {
      await ask(path, body);
    } catch (error) {
      at("job-said").textContent = error.message;
      return;
    }
    at("job-said").textContent = "";
    await showJobs();
  }

  // What parts do not add up to, and what the map does not show.
  function restOf(site) {
    const sum = site.parts.reduce((all, part) => all + part.adds + part.takes, 0);
    const beside = site.parts.reduce((all, part) => all + part.beside, 0);
    const said = [`Together the parts are ${number(sum)}.`];
    if (!site.cut) said.push("The site does not cut the network: what goes around it is not seen here.");
    else if (Math.abs(site.misses) > 1e-3 * Math.abs(sum)) said.push(`The quadrature misses ${number(site.misses)} of the change.`);
    if (beside) said.push(`${number(beside)} lies beside the picture (tokens of no place), and is not in the map.`);
    return said.join(" ");
  }

  function showOutputs(answer) {
    const rows = answer.outputs, target = about.target;
    const sizes = rows.flatMap(([, was, now]) => [was, now]);
    const low = Math.min(0, ...sizes), high = Math.max(0, ...sizes), span = high - low || 1;
    at("outputs").hidden = rows.length === 0;
    at("outputs").tBodies[0].replaceChildren(...rows.map(([label, was, now]) => {
      const fill = make("span", { className: now < 0 ? "fill minus" : "fill" });
      fill.style.left = `${100 * (Math.min(now, 0) - low) / span}%`;
      fill.style.right = `${100 * (high - Math.max(now, 0)) / span}%`;
      const tick = make("span", { className: "tick", title: "as it was" });
      tick.style.left = `${100 * (was - low) / span}%`;
      const rail = make("span", { className: "rail" }, fill, tick);
      const moved = Math.abs(now - was) > 5e-4 * span ? "n moved" : "n";
      return make("tr", {}, make("th", { textContent: label }),
        make("td", { className: "n faint", textContent: number(was) }),
        make("td", { className: moved, textContent: number(now) }),
        make("td", { className: "bar-cell" }, rail));
    }));
    const { target: before, baseline } = state.found;
    const from = baseline === null ? "" : ` At the baseline it is ${number(baseline)}.`;
    const now = answer.target === before ? "" : ` Now it is ${number(answer.target)}.`;
    at("sums").textContent = `${target[0].toUpperCase()}${target.slice(1)} is ${number(before)}.${from}${now}`;
  }

  // One question at a time; of all moves meanwhile only the last one is asked.
  async function turn() {
    drawMap();
    showCode();
    if (state.busy) { state.again = true; return; }
    state.busy = true;
    const { found, site, factors } = state;
    try {
      const answer = await (await ask("turn", { key: found.key, site: found.sites[site].key, factors })).json();
      // Another input, another site and "all back" put other factors in their place meanwhile.
      if (state.factors === factors && !state.again) showOutputs(answer);
    } catch (error) {
      say(error.message, true);
    } finally {
      state.busy = false;
      if (state.again) { state.again = false; turn(); }
    }
  }

  function summed() {
    const { parts } = state.found.sites[state.site];
    const values = new Float64Array(parts[0].places.length);
    for (const part of parts) {
      const factor = state.factors[part.name] ?? 1;
      part.places.forEach((value, place) => { values[place] += factor * value; });
    }
    const plain = new Float64Array(values.length);
    for (const part of parts) part.places.forEach((value, place) => { plain[place] += value; });
    const sizes = Array.from(plain, Math.abs).sort((a, b) => a - b);
    return { values, scale: sizes[Math.floor(0.995 * (sizes.length - 1))] || 1, shape: parts[0].shape };
  }

  function drawMap() {
    const { values, scale, shape: [rows, columns] } = summed();
    const strength = (value) => Math.min(1, Math.abs(value) / scale) ** 0.7;
    const { words } = state.found, canvas = at("picture"), bare = at("plain").checked;
    at("words").hidden = words.length === 0;
    canvas.hidden = words.length > 0;
    if (words.length) {
      at("words").replaceChildren(...words.map((word, place) => {
        const [r, g, b] = values[place] > 0 ? UP : DOWN;
        const span = make("span", { textContent: word, title: number(values[place] ?? 0) });
        if (!bare) span.style.background = `rgb(${r} ${g} ${b} / ${0.8 * strength(values[place] ?? 0)})`;
        return span;
      }));
      return;
    }
    const image = state.image, side = 640;
    const width = image ? image.naturalWidth : columns, height = image ? image.naturalHeight : rows;
    const zoom = Math.max(1, Math.floor(side / Math.max(width, height)));
    canvas.width = width * zoom;
    canvas.height = height * zoom;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = zoom === 1;
    if (image) {
      // As on pages of the report: grey, and pale enough for colours to be read.
      context.fillStyle = "#d1d1d1";
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.filter = bare ? "none" : "grayscale(1)";
      context.globalAlpha = bare ? 1 : 0.18;
      context.drawImage(image, 0, 0, canvas.width, canvas.height);
      context.filter = "none";
      context.globalAlpha = 1;
    }
    if (bare || values.length !== rows * columns) return;
    const cell = [canvas.width / columns, canvas.height / rows];
    values.forEach((value, place) => {
      const [r, g, b] = value > 0 ? UP : DOWN;
      context.fillStyle = `rgb(${r} ${g} ${b} / ${0.92 * strength(value)})`;
      const x = place % columns, y = Math.floor(place / columns);
      context.fillRect(Math.round(x * cell[0]), Math.round(y * cell[1]),
        Math.round((x + 1) * cell[0]) - Math.round(x * cell[0]), Math.round((y + 1) * cell[1]) - Math.round(y * cell[1]));
    });
  }

  function showCode() {
    const site = state.found.sites[state.site].key;
    const factors = Object.entries(state.factors).map(([name, value]) => `${JSON.stringify(name)}: ${value}`);
    at("code").textContent = `found = condec.explain(model, x, modes, n_modes=10)\n` +
      `output = found.turned(${JSON.stringify(site)}, {${factors.join(", ")}})`;
  }

  async function offer() {
    const offered = await (await ask("inputs")).json();
    at("offered").replaceChildren(...offered.map(({ id, why }) => {
      const button = make("button", { type: "button", title: why ? `${id}: ${why}` : id });
      button.setAttribute("aria-pressed", "false");
      if (!isText) {
        const image = make("img", { alt: "", loading: "lazy" });
        image.addEventListener("load", () => image.classList.toggle("pixels", image.naturalWidth <= 64));
        image.addEventListener("error", () => image.remove());
        button.append(image);
        Promise.resolve(pictureOf(id)).then((url) => { image.src = url; }, () => image.remove());
      }
      button.append(make("span", { textContent: id }));
      button.addEventListener("click", () => {
        for (const other of root.querySelectorAll("#offered button")) {
          other.setAttribute("aria-pressed", other === button);
        }
        explain("explain", { id }, undefined, id);
      });
      return make("li", {}, button);
    }));
  }

  function take(file) {
    if (!file) return;
    if (file.size > 20 * 2 ** 20) { say(`${file.name}: more than 20 MiB`, true); return; }
    explain("upload", file, file.type || "application/octet-stream", file.name);
  }

  if (isText) {
    at("write").addEventListener("submit", (event) => {
      event.preventDefault();
      explain("upload", at("text").value, "text/plain", "the text");
    });
  } else {
    at("file").addEventListener("change", () => { take(at("file").files[0]); at("file").value = ""; });
    const drop = at("drop");
    for (const kind of ["dragover", "dragleave", "drop"]) {
      drop.addEventListener(kind, (event) => {
        event.preventDefault();
        drop.classList.toggle("over", kind === "dragover");
        if (kind === "drop") take(event.dataTransfer.files[0]);
      });
    }
  }
  at("plain").addEventListener("change", drawMap);
  at("reset").addEventListener("click", () => { state.factors = {}; showParts(); showOutputs(state.found); });
  at("save").addEventListener("click", () => keep("page", { key: state.found.key }, "explained.zip"));
  at("save-weights").addEventListener("click", () => {
    const { found, site, factors } = state;
    keep("weights", { key: found.key, site: found.sites[site].key, factors }, "edited.safetensors");
  });
  at("save-chosen").addEventListener("click", () => keep("selection", { modes: [...state.chosen.values()] }, "selection.toml"));
  at("control-chosen").addEventListener("click", () => tell("start", { link: "control", modes: [...state.chosen.values()] }));
  for (const link of ["control", "report"]) at(`start-${link}`).addEventListener("click", () => tell("start", { link }));
  at("fit").addEventListener("submit", (event) => {
    event.preventDefault();
    tell("start", { link: "fit", learner: at("learner").value, n_modes: at("n-modes").value });
  });
  showChosen();
  showJobs();
  offer().catch((error) => say(error.message, true));
}
