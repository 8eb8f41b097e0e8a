// Elements of pages, made of text and never of markup: for reports, the explorer and notebooks.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const UNSEEN = /[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]/g;

const seen = (text) => String(text).replace(UNSEEN, "\ufffd");

function make(tag, options = {}, ...children) {
  const { data, style, attributes, text, ...rest } = options;
  const made = Object.assign(document.createElement(tag), rest);
  Object.assign(made.dataset, data || {});
  for (const [name, value] of Object.entries(style || {})) made.style.setProperty(name, value);
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = seen(text);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function shape(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
