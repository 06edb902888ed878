// Small helpers for the document; text only ever enters as text.

export function find(id) {
  return document.getElementById(id);
}

/** An element with properties, `aria-` and `data-` attributes, and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

export function button(text, onclick, properties = {}) {
  return make("button", { type: "button", textContent: text, onclick, ...properties });
}

let timer = 0;

/** Says something at the foot of the page, which screen readers read out. */
export function say(words, fault = false) {
  const place = find("status");
  place.textContent = words;
  place.classList.toggle("fault", fault);
  place.hidden = words === "";
  clearTimeout(timer);
  if (!fault) timer = setTimeout(() => (place.hidden = true), 6000);
}

/** Runs something, and says its fault where it fails. */
export async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
    return undefined;
  }
}
