// Elements made of text: nothing that came from the server is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

export function el(name, attributes, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function svg(name, attributes, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== undefined && value !== null) element.setAttribute(name, String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Columns: {title, text, kind}, the kind being a class of the style. A wide table scrolls in a frame.
export function table(name, columns, rows) {
  const cell = (tag, column, text, more) => el(tag, { class: column.kind, ...more }, String(text));
  const head = columns.map((column) => cell("th", column, column.title, { scope: "col" }));
  const body = rows.map((row) =>
    el("tr", {}, ...columns.map((column) => cell("td", column, column.text(row)))),
  );
  const frame = { class: "scroll", role: "region", "aria-label": name, tabindex: 0 };
  return el(
    "div",
    { ...frame, "data-key": `table ${name}` },
    el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...body)),
  );
}

export function folded(title, ...children) {
  return el(
    "details",
    { "data-key": title },
    el("summary", { "data-key": `summary ${title}` }, title),
    ...children,
  );
}

// Fill a place again without closing what the reader opened, or losing focus and scrolling.
export function refill(place, children) {
  const keyed = (selector) => [...place.querySelectorAll(selector)];
  const open = new Set(keyed("details[open]").map((found) => found.dataset.key));
  const position = (found) => [found.dataset.key, [found.scrollLeft, found.scrollTop]];
  const scrolled = new Map(keyed(".scroll").map(position));
  const focused = place.contains(document.activeElement) && document.activeElement.dataset.key;
  place.replaceChildren(...children);
  for (const found of keyed("details")) found.open = open.has(found.dataset.key);
  for (const found of keyed(".scroll")) {
    [found.scrollLeft, found.scrollTop] = scrolled.get(found.dataset.key) ?? [0, 0];
  }
  if (focused) keyed("[data-key]").find((x) => x.dataset.key === focused)?.focus();
}
