// Small parts that several sections are made of.

import { count } from "./amounts.js";
import { shareBar, swatch } from "./charts.js";
import { el } from "./elements.js";

export function tile(title, value, note, id) {
  return el(
    "div",
    { class: "tile" },
    el("span", { class: "fine" }, title),
    el("strong", { id }, value),
    el("span", { class: "fine" }, note),
  );
}

// Rows: [words, devices]; each bar is a share of the whole.
export function bars(rows, whole) {
  const lines = rows.map(([words, devices]) => {
    const amount = el("span", { class: "number" }, count(devices, "device"));
    return el("li", {}, el("span", {}, words), shareBar(devices, whole), amount);
  });
  return el("ul", { class: "bars" }, ...lines);
}

// Entries: [kind of mark, words].
export function legend(...entries) {
  const items = entries.map(([kind, words]) => el("li", {}, swatch(kind), words));
  return el("ul", { class: "legend" }, ...items);
}

export function numbers(title, text) {
  return { title, text, kind: "number" };
}

export function words(title, text) {
  return { title, text, kind: "short" };
}

// Words of any length, which may wrap.
export function prose(title, text) {
  return { title, text, kind: "long" };
}

export function name(title, text) {
  return { title, text, kind: "name" };
}

export function note(text) {
  return el("p", { class: "fine" }, text);
}

export function empty(text) {
  return el("p", { class: "empty" }, text);
}

export function newestFirst(rows) {
  return [...rows].reverse();
}
