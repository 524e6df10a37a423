// The first things to see: all tasks, where the chosen one stands, and its running round.

import { bytes, clock, count, loss, percent, seconds } from "./amounts.js";
import { shareBar } from "./charts.js";
import { el, table } from "./elements.js";
import { name, note, numbers, tile } from "./parts.js";

const WEIGHINGS = {
  uniform: "alike",
  examples: "by examples",
  inverse_probability: "by how rarely they take part",
};
const COMBINATIONS = {
  mean: "mean",
  trimmed_mean: "mean without the extremes",
  median: "median",
};
const NO_ROUND = {
  new: "No round has begun. The first one begins when a device asks for work.",
  between: "No round is open. The next one begins when a device asks for work.",
  finished: "All rounds are done. The latest adapter version is ready to use.",
};

export function tasks(overview, chosen) {
  if (!overview.tasks.length) {
    const command = el("code", {}, "edge-server task create");
    return [el("p", {}, "There is no task yet. Make one with ", command, ".")];
  }
  const cards = overview.tasks.map((line) =>
    el(
      "a",
      {
        class: "task",
        href: `#task=${encodeURIComponent(line.name)}`,
        "aria-current": line.name === chosen ? "true" : undefined,
        "data-key": `task ${line.name}`,
      },
      el("strong", {}, line.name),
      el("span", { class: "fine" }, line.model),
      shareBar(line.closed, line.rounds),
      el("span", {}, taskState(line)),
    ),
  );
  const hidden = overview.tasks_total - cards.length;
  return hidden > 0 ? [...cards, note(`and ${count(hidden, "more task")}`)] : cards;
}

export function taskFacts(task) {
  const drawn = task.sketching === "balanced" ? "in turn" : "at random";
  return [
    `${task.line.model}, ${count(task.r, "rank")} on ${count(task.layers, "layer")}. ` +
      `Devices train k = ${orList(task.sketch_sizes)} of the ranks, drawn ${drawn}. ` +
      `Updates are combined by their ${COMBINATIONS[task.combination]}, ` +
      `weighed ${WEIGHINGS[task.weighting]}.`,
  ];
}

export function highlights(task) {
  return [
    tile("Rounds closed", `${task.line.closed} of ${task.line.rounds}`, taskState(task.line)),
    lossTile(task.rounds.filter((round) => round.loss !== null)),
    savedTile(task.rounds),
    ageTile(task.coverage),
  ];
}

export function runningRound(running, line) {
  if (!running) return [el("p", {}, NO_ROUND[line.state] ?? "")];
  const isOpen = running.state === "open";
  const round = `${running.round_number} of ${line.rounds}`;
  const updates = `${running.accepted} of ${running.quorum}`;
  const tiles = [
    tile("Round", round, isOpen ? "open: devices train" : "closing: updates are being combined"),
    tile("Updates accepted", updates, `${count(running.assigned, "device")} got work`),
    isOpen
      ? tile("Time left", "", "until the deadline", "countdown")
      : tile("Time left", "–", "takes no more updates"),
  ];
  const parts = [
    el("div", { class: "tiles" }, ...tiles),
    shareBar(running.accepted, running.quorum),
  ];
  if (running.is_prolonged) parts.push(prolonged());
  if (isOpen) parts.push(el("p", {}, closingRule(running)));
  if (isOpen && running.waiting.length) parts.push(waiting(running));
  return parts;
}

export function countdown(deadlineS) {
  return deadlineS > 0 ? clock(deadlineS) : "any moment";
}

function taskState(line) {
  const next = `round ${line.closed + 1} of ${line.rounds}`;
  return {
    new: "not begun",
    open: `${next} is running`,
    closing: `${next} is closing`,
    between: "waiting for devices",
    finished: "finished",
  }[line.state];
}

function lossTile(rounds) {
  if (!rounds.length) return tile("Loss", "–", "no update yet");
  const [first, last] = [rounds[0], rounds.at(-1)];
  const change = Math.round(100 * (last.loss / first.loss - 1));
  const isComparable = first !== last && first.loss > 0 && Number.isFinite(change);
  const lower = `${Math.abs(change)} % ${change > 0 ? "higher" : "lower"}`;
  const said = isComparable
    ? `${lower} than in round ${first.round_number}`
    : `in round ${last.round_number}`;
  return tile("Loss", loss(last.loss), said);
}

function savedTile(rounds) {
  const sum = (key) => rounds.reduce((total, round) => total + round[key], 0);
  const moved = sum("download_bytes") + sum("upload_bytes");
  const full = sum("full_download_bytes") + sum("full_upload_bytes");
  const said = full ? `${bytes(moved)} moved instead of ${bytes(full)}` : "nothing moved yet";
  return tile("Saved by small k", percent(Math.max(0, full - moved), full), said);
}

function ageTile(coverage) {
  const title = "Longest untrained rank";
  if (!coverage) return tile(title, "–", "not known yet");
  if (!coverage.oldest_age) return tile(title, "none", "all were trained in the last round");
  const said = `rank ${coverage.oldest_rank}, in at least one layer`;
  return tile(title, count(coverage.oldest_age, "round"), said);
}

function prolonged() {
  const said = "The round was prolonged: too few updates had come at its deadline.";
  return el("p", { class: "problem" }, said);
}

function closingRule(running) {
  return (
    `The round closes as soon as ${count(running.quorum, "update")} are in. At the deadline it ` +
    `closes with ${running.min_updates} or more; with fewer it goes on.`
  );
}

function waiting(running) {
  const columns = [
    name("device", (x) => x.device_name),
    numbers("k", (x) => x.k),
    numbers("for", (x) => seconds(x.since_s)),
  ];
  const isCut = running.waiting_total > running.waiting.length;
  const cut = isCut ? `, the longest ${running.waiting.length} of them` : "";
  const title = `Still training: ${count(running.waiting_total, "device")}${cut}`;
  return el("div", {}, el("h4", {}, title), table("Still training", columns, running.waiting));
}

function orList(all) {
  return all.length < 2 ? String(all[0]) : `${all.slice(0, -1).join(", ")} or ${all.at(-1)}`;
}
