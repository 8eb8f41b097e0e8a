// The explorer in a notebook: questions are messages to the kernel. Stands behind explorer.js, in one module.

function sender(model) {
  const open = new Map();
  // Answers reach every view of the widget: each knows its own. crypto.randomUUID is there in secure contexts only.
  const view = crypto.getRandomValues(new Uint32Array(3)).join("-");
  let number = 0;
  model.on("msg:custom", (answer, buffers) => {
    const told = open.get(answer.id);
    if (!told) return;
    open.delete(answer.id);
    const content = answer.file ? new Blob([buffers[0]], { type: answer.file }) : JSON.stringify(answer.found);
    told(new Response(content, { status: answer.status }));
  });
  return async (name, body, type = "application/json", signal = null) => {
    const file = type === "application/json" ? null : body;
    const content = file === null ? [] : [typeof file === "string" ? new TextEncoder().encode(file).buffer : await file.arrayBuffer()];
    const given = file === null ? body || {} : { text: type === "text/plain" };
    number += 1;
    const id = `${view} ${number}`;
    return new Promise((told, fail) => {
      open.set(id, told);
      if (signal) signal.addEventListener("abort", () => { open.delete(id); fail(signal.reason); });
      model.send({ id, name, given }, undefined, content);
    });
  };
}

function render({ model, el }) {
  const root = el.attachShadow({ mode: "open" }), send = sender(model);
  // Of what has the focus Jupyter sees this element only: a letter typed into a field would be a command on cells.
  el.setAttribute("data-lm-suppress-shortcuts", "true");
  const style = document.createElement("style"), body = document.createElement("div");
  style.textContent = model.get("css");
  body.className = "body";
  body.innerHTML = model.get("html");
  root.append(style, body);
  mount(root, send, async (id) => {
    const answer = await send("picture", { id });
    if (!answer.ok) throw new Error(id);
    return URL.createObjectURL(await answer.blob());
  });
}

export default { render };
