// Charts drawn by hand in SVG, as wide as their place; each mark says its numbers when pointed at.

import { bytes, count, loss } from "./amounts.js";
import { svg } from "./elements.js";

const TOP = 12;
const BOTTOM = 26;
const RIGHT = 12;
const HEIGHT = 220;
const LIMIT = 1e100; // a device may report any number; coordinates must stay finite

export function lossChart(width, points) {
  const values = points.map((round) => drawable(round.loss));
  const ticks = niceTicks(Math.min(...values), Math.max(...values));
  const left = marginFor(ticks.map(tickWords));
  const [first, last] = [points[0], points.at(-1)];
  const x = place(first.round_number, last.round_number, left + 12, width - RIGHT - 12);
  const y = place(ticks[0], ticks.at(-1), HEIGHT - BOTTOM, TOP);
  const at = (round, value) => `${x(round.round_number)},${y(drawable(value))}`;
  const band = [
    ...points.map((round) => at(round, round.highest_loss)),
    ...points.map((round) => at(round, round.lowest_loss)).reverse(),
  ];
  const isLeft = points.length > 1 && x(last.round_number) > width - 60;
  return chart(
    width,
    HEIGHT,
    `Training loss by round: ${loss(first.loss)} in round ${first.round_number}, ` +
      `${loss(last.loss)} in round ${last.round_number}.`,
    svg("clipPath", { id: "plot" }, box(left, TOP, width - left - RIGHT, HEIGHT - TOP - BOTTOM)),
    ...grid(width, left, ticks, y, tickWords),
    ...roundLabels(points, x, width),
    svg("polygon", { class: "band", points: band.join(" "), "clip-path": "url(#plot)" }),
    svg("polyline", { class: "line", points: points.map((r) => at(r, r.loss)).join(" ") }),
    ...points.map((round) =>
      svg(
        "circle",
        { class: "dot", cx: x(round.round_number), cy: y(drawable(round.loss)), r: 3.5 },
        svg(
          "title",
          {},
          `Round ${round.round_number}: mean ${loss(round.loss)}, ` +
            `from ${loss(round.lowest_loss)} to ${loss(round.highest_loss)}`,
        ),
      ),
    ),
    svg(
      "text",
      {
        class: "value",
        x: x(last.round_number) + (isLeft ? 8 : 0),
        y: Math.max(TOP + 4, y(drawable(last.loss)) - 10),
        "text-anchor": isLeft ? "end" : "middle",
      },
      loss(last.loss),
    ),
  );
}

export function bytesChart(width, rounds) {
  const full = (round) => round.full_download_bytes + round.full_upload_bytes;
  const moved = (round) => round.download_bytes + round.upload_bytes;
  const most = Math.max(1, ...rounds.map((round) => Math.max(full(round), moved(round))));
  const ticks = byteTicks(most);
  const left = marginFor(ticks.map(bytes));
  const step = (width - left - RIGHT) / rounds.length;
  const bar = Math.min(34, 0.62 * step);
  const x = (round) => left + step * (rounds.indexOf(round) + 0.5);
  const y = place(0, ticks.at(-1), HEIGHT - BOTTOM, TOP);
  const bars = rounds.map((round) => {
    const [down, both] = [round.download_bytes, moved(round)];
    const part = (kind, from, to, more) =>
      svg("rect", {
        class: kind,
        x: x(round) - bar / 2,
        y: y(to),
        width: bar,
        height: Math.max(0, y(from) - y(to)),
        ...more,
      });
    return svg(
      "g",
      {},
      svg(
        "title",
        {},
        `Round ${round.round_number}: received ${bytes(down)}, ` +
          `sent ${bytes(round.upload_bytes)}; at all ranks ${bytes(full(round))}`,
      ),
      part("down", 0, down),
      part("up", down, both),
      part("stripes", down, both, { fill: "url(#stripes)" }),
      part("ghost", 0, full(round)),
    );
  });
  return chart(
    width,
    HEIGHT,
    "Bytes that devices received and sent in each round, beside what all ranks would have taken.",
    stripes(),
    ...grid(width, left, ticks, y, bytes),
    ...roundLabels(rounds, (number) => x(rounds.find((r) => r.round_number === number)), width),
    ...bars,
  );
}

export function heatMap(width, coverage) {
  const shown = coverage.rounds.map((number, i) => ({ number, row: coverage.updates[i] }));
  const columns = coverage.ages.length;
  const left = 34;
  const cell = (width - left - 2) / columns;
  const height = Math.max(12, Math.min(22, 300 / shown.length));
  const most = Math.max(0, ...coverage.updates.flatMap((row) => row ?? []));
  const bottom = TOP + height * shown.length;
  const gap = cell > 8 ? 1.5 : 0.5;
  const labelled = every(shown.length, Math.floor((height * shown.length) / 16));
  const rows = shown.flatMap(({ number, row }, i) => [
    labelled(i)
      ? svg("text", { x: left - 8, y: TOP + height * (i + 0.5) + 4, "text-anchor": "end" }, number)
      : null,
    ...(row ?? []).map((updates, j) =>
      svg(
        "rect",
        {
          class: updates > 0 ? "cell" : "cell cold",
          x: left + cell * j + gap / 2,
          y: TOP + height * i + gap / 2,
          width: Math.max(1, cell - gap),
          height: height - gap,
          rx: Math.min(2, cell / 4),
          "fill-opacity": updates > 0 ? (0.15 + (0.85 * updates) / most).toFixed(3) : undefined,
        },
        svg(
          "title",
          {},
          `Round ${number}, ${ranksOf(coverage, j)}: ` +
            (updates > 0 ? `trained by ${count(updates, "update")}` : "trained by nobody"),
        ),
      ),
    ),
  ]);
  const name = (j, anchor, at) =>
    svg("text", { x: at, y: bottom + 17, "text-anchor": anchor }, ranksOf(coverage, j));
  return chart(
    width,
    bottom + BOTTOM,
    `How many updates trained each rank in each round, up to ${most}.`,
    ...rows,
    name(0, "start", left),
    columns > 1 ? name(columns - 1, "end", width - 2) : null,
  );
}

export function ranksOf(coverage, column) {
  const first = column * coverage.group;
  return coverage.group === 1 ? `rank ${first}` : `ranks ${first}–${first + coverage.group - 1}`;
}

export function shareBar(part, whole) {
  const share = whole > 0 ? Math.min(1, part / whole) : 0;
  return svg(
    "svg",
    { class: "share", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "track", width: 100, height: 10 }),
    svg("rect", { class: "part", width: 100 * share, height: 10 }),
  );
}

export function swatch(kind) {
  const striped = { width: 14, height: 14, fill: "url(#stripes)" };
  const opacity = { few: 0.2, many: 1 }[kind];
  return svg(
    "svg",
    { class: "swatch", viewBox: "0 0 14 14", "aria-hidden": "true" },
    svg("rect", {
      class: opacity ? "cell" : kind,
      x: 1,
      y: 1,
      width: 12,
      height: 12,
      rx: 2,
      "fill-opacity": opacity,
    }),
    kind === "up" ? svg("rect", striped) : null,
  );
}

function chart(width, height, words, ...children) {
  const viewBox = `0 0 ${width} ${height}`;
  const attributes = { class: "chart", role: "img", "aria-label": words, width, height, viewBox };
  return svg("svg", attributes, ...children);
}

function stripes() {
  const line = svg("path", { class: "stripe", d: "M-1,1 l2,-2 M0,6 l6,-6 M5,7 l2,-2" });
  const size = { width: 6, height: 6, patternUnits: "userSpaceOnUse" };
  return svg("pattern", { id: "stripes", ...size }, line);
}

function grid(width, left, ticks, y, words) {
  return ticks.flatMap((tick) => [
    svg("line", { class: "grid", x1: left, x2: width - RIGHT, y1: y(tick), y2: y(tick) }),
    svg("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, words(tick)),
  ]);
}

function roundLabels(rounds, x, width) {
  const shown = every(rounds.length, Math.floor(width / 44));
  return rounds
    .filter((_, i) => shown(i))
    .map(({ round_number: number }) =>
      svg("text", { x: x(number), y: HEIGHT - 7, "text-anchor": "middle" }, number),
    );
}

// Whether to label item i of a list that has room for so many labels; the last always has one.
function every(length, room) {
  const step = Math.max(1, Math.ceil(length / Math.max(1, room)));
  return (i) => (length - 1 - i) % step === 0;
}

function place(from, to, start, end) {
  if (from === to) return () => (start + end) / 2;
  return (value) => start + ((value - from) / (to - from)) * (end - start);
}

function drawable(value) {
  return Math.min(LIMIT, Math.max(-LIMIT, value));
}

function niceTicks(low, high) {
  const size = Math.max(Math.abs(low), Math.abs(high));
  const span = high - low > 1e-9 * size ? high - low : size || 1; // or counting ticks never ends
  const rough = span / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const ticks = [];
  for (let i = Math.floor(low / step); i <= Math.ceil(high / step); i += 1) ticks.push(i * step);
  return ticks.length > 1 ? ticks : [ticks[0] - step, ticks[0], ticks[0] + step];
}

function tickWords(tick) {
  const isPlain = tick === 0 || (Math.abs(tick) < 1e5 && Math.abs(tick) >= 1e-3);
  return isPlain ? String(Number(tick.toFixed(6))) : loss(tick);
}

function byteTicks(most) {
  const unit = 1000 ** Math.max(0, Math.floor(Math.log10(most) / 3));
  return niceTicks(0, most / unit).map((tick) => Math.round(tick * unit));
}

function marginFor(labels) {
  return 14 + 6.6 * Math.max(...labels.map((label) => label.length));
}

function box(x, y, width, height) {
  return svg("rect", { x, y, width: Math.max(0, width), height });
}
