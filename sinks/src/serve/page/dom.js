// The smallest DOM helpers that keep a page still: elements are made once and only what differs
// is written, so focus, selection and scroll stay where they are while numbers move.

/** Makes an element; `null` and `false` attributes and children are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === false || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== false && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Sets the text of an element when it differs. */
export function text(element, value) {
  const target = typeof element === "string" ? byId(element) : element;
  if (target.textContent !== value) target.textContent = value;
}

export function attribute(element, name, value) {
  if (value === null || value === undefined) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

export function show(element, visible) {
  const target = typeof element === "string" ? byId(element) : element;
  if (target.hidden === visible) target.hidden = !visible;
}

/**
 * Makes the children of `parent` one for each item, in order, keeping those that stay.
 * `make(item)` makes an element; `update(element, item)` writes what may differ.
 */
export function sync(parent, items, key, make, update) {
  const known = new Map();
  for (const child of parent.children) known.set(child.dataset.key, child);
  let place = parent.firstElementChild;
  for (const item of items) {
    const id = String(key(item));
    let element = known.get(id);
    if (element) known.delete(id);
    else {
      element = make(item);
      element.dataset.key = id;
    }
    update?.(element, item);
    if (element === place) place = place.nextElementSibling;
    else parent.insertBefore(element, place);
  }
  for (const gone of known.values()) gone.remove();
}

/** Draws `values` (with gaps where null) as a line into an <svg class="spark">. */
export function spark(element, values, from) {
  const known = values.filter((value) => value !== null);
  const [width, height] = [120, 26];
  if (known.length < 2) {
    element.replaceChildren();
    return;
  }
  const low = Math.min(...known, from ?? Infinity);
  const high = Math.max(...known);
  const span = high - low || 1;
  const x = (at) => ((at / (values.length - 1)) * (width - 6) + 3).toFixed(1);
  const y = (value) => (height - 3 - ((value - low) / span) * (height - 6)).toFixed(1);
  let path = "";
  let pen = "M";
  values.forEach((value, at) => {
    if (value === null) pen = "M";
    else {
      path += `${pen}${x(at)} ${y(value)}`;
      pen = "L";
    }
  });
  const last = values.findLastIndex((value) => value !== null);
  if (!element.firstChild) element.append(svg("path"), svg("circle", { r: 2 }));
  const [line, dot] = element.children;
  attribute(line, "d", path);
  attribute(dot, "cx", x(last));
  attribute(dot, "cy", y(values[last]));
}

/** An empty sparkline for `spark`. */
export const sparkline = (label) =>
  svg("svg", { class: "spark", viewBox: "0 0 120 26", role: "img", "aria-label": label });
