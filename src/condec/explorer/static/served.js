// The explorer's page: questions go to the server that it came from.
import { mount } from "./explorer.js";

const LOOKS = ["inputs", "jobs"];

function send(name, body, type = "application/json", signal = null) {
  if (LOOKS.includes(name)) return fetch(`/api/${name}`);
  const sent = type === "application/json" ? JSON.stringify(body) : body;
  return fetch(`/api/${name}`, { method: "POST", headers: { "X-Condec": "1", "Content-Type": type }, body: sent, signal });
}

mount(document, send, (id) => `/api/picture?id=${encodeURIComponent(id)}`);
