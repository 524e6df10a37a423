// The sections about one task, and what was refused. Numbers come with every chart.

import { bytes, count, loss, moment, percent, seconds, time } from "./amounts.js";
import { bytesChart, heatMap, lossChart, ranksOf } from "./charts.js";
import { el, folded, table } from "./elements.js";
import { bars, empty, legend, name, newestFirst, note, numbers, prose, words } from "./parts.js";

const NUMBERS = "Show the numbers";
const MOST_LEFT_OUT = 20;

export function losses(rounds, width) {
  const counted = rounds.filter((round) => round.loss !== null);
  if (!counted.length) return [empty("No update has been counted yet.")];
  const columns = [
    numbers("round", (x) => x.round_number),
    numbers("mean loss", (x) => loss(x.loss)),
    numbers("lowest", (x) => loss(x.lowest_loss)),
    numbers("highest", (x) => loss(x.highest_loss)),
    numbers("updates", (x) => x.accepted),
  ];
  const all = table("Loss by round", columns, newestFirst(counted));
  return [lossChart(width, counted), folded(NUMBERS, all)];
}

export function traffic(rounds, width) {
  const moved = (x) => x.download_bytes + x.upload_bytes;
  const full = (x) => x.full_download_bytes + x.full_upload_bytes;
  if (!rounds.some(moved)) return [empty("Nothing has travelled yet.")];
  const columns = [
    numbers("round", (x) => x.round_number),
    numbers("received", (x) => bytes(x.download_bytes)),
    numbers("sent", (x) => bytes(x.upload_bytes)),
    numbers("at all ranks", (x) => bytes(full(x))),
    numbers("saved", (x) => percent(full(x) - moved(x), full(x))),
  ];
  return [
    bytesChart(width, rounds),
    legend(["down", "received by devices"], ["up", "sent by devices"], ["ghost", "at all ranks"]),
    folded(NUMBERS, table("Bytes by round", columns, newestFirst(rounds))),
  ];
}

export function fleet(task) {
  const round = task.rounds.findLast((x) => x.state === "closed") ?? task.rounds.at(-1);
  if (!round?.assigned) return [empty("No device has asked for work yet.")];
  const reported = round.by_memory.reduce((total, x) => total + x.devices, 0);
  const known = (value, text) => (value === null ? "–" : text(value));
  const columns = [
    numbers("k", (x) => x.k),
    numbers("devices", (x) => x.devices),
    numbers("sent in time", (x) => x.updates),
    numbers("training takes", (x) => known(x.seconds, seconds)),
    numbers("peak memory up to", (x) => known(x.peak_rss_bytes, bytes)),
    numbers("update", (x) => known(x.upload_bytes, bytes)),
  ];
  const when = `in round ${round.round_number}${round.state === "closed" ? "" : ", so far"}`;
  return [
    el("p", {}, `${count(round.assigned, "device")} ${when}.`),
    el("h4", {}, "By ranks trained (k)"),
    bars(round.by_k.map((x) => [`k = ${x.k} of ${task.r}`, x.devices]), round.assigned),
    el("h4", {}, "By peak memory of the training"),
    reported
      ? bars(round.by_memory.map((x) => [memoryRange(x), x.devices]), reported)
      : empty("None reported yet."),
    folded(NUMBERS, table("Devices by k", columns, round.by_k)),
  ];
}

export function coverage(task, width) {
  const found = task.coverage;
  if (!found) return [empty(whyNoCoverage(task))];
  const columns = [
    numbers("round", (x) => x.title),
    ...found.ages.map((_, j) => numbers(ranksOf(found, j), (x) => x.values?.[j] ?? "")),
  ];
  const rows = found.rounds.map((number, i) => ({ title: number, values: found.updates[i] }));
  const ages = { title: "untrained for", values: found.ages };
  const isPartial = found.updates.includes(null);
  return [
    el("p", {}, coldest(found)),
    heatMap(width, found),
    legend(["cold", "nobody"], ["few", "few updates"], ["many", "most updates"]),
    isPartial ? note("Blank rounds are still being worked out, or too large for that.") : "",
    folded(NUMBERS, table("Updates by round and rank", columns, [...newestFirst(rows), ages])),
  ];
}

export function rounds(all, stragglers) {
  if (!all.length) return [empty("No round has begun yet.")];
  const lasted = (x) => seconds(Math.max(0, x.closed_at - x.opened_at));
  const took = (x) => (x.closed_at === null ? "–" : lasted(x));
  const columns = [
    numbers("round", (x) => x.round_number),
    words("state", (x) => x.state),
    numbers("got work", (x) => x.assigned),
    numbers("counted", (x) => x.accepted),
    ...(stragglers === "fold" ? [numbers("of these late", (x) => x.late)] : []),
    numbers("set aside", (x) => x.quarantined),
    numbers("nothing in time", (x) => (x.state === "open" ? "–" : x.missing)),
    numbers("took", took),
    words("opened", (x) => moment(x.opened_at)),
  ];
  return [table("Rounds", columns, newestFirst(all))];
}

export function leftOut(all) {
  const total = all.reduce((sum, round) => sum + round.quarantined + round.late, 0);
  if (!total) return [empty("None in these rounds.")];
  const rows = all
    .flatMap((round) => round.left_out)
    .sort((a, b) => b.accepted_at - a.accepted_at)
    .slice(0, MOST_LEFT_OUT);
  const columns = [
    numbers("round", (x) => x.round_number),
    name("device", (x) => x.device_name),
    prose("what became of it", whatBecame),
    words("when", (x) => moment(x.accepted_at)),
    words("device id", (x) => x.device_id),
  ];
  const cut = total > rows.length ? ` The newest ${rows.length} are:` : "";
  return [
    el("p", {}, `${count(total, "update")} in these rounds.${cut}`),
    table("Late and set aside", columns, rows),
  ];
}

export function versions(task) {
  const columns = [
    numbers("version", (x) => x.version),
    numbers("made by round", (x) => x.round_number || "–"),
    words("used by", (x) => usedBy(x.version, task)),
    words("accepted by", (x) => acceptedBy(x.evaluation)),
    words("loss where tried", (x) => lossWhereTried(x.evaluation)),
    words("made", (x) => moment(x.created_at)),
    numbers("size", (x) => bytes(x.size_bytes)),
    words("SHA-256", (x) => `${x.digest.slice(0, 12)}…`),
  ];
  const hidden = task.versions_total - task.versions.length;
  return [
    table("Adapter versions", columns, task.versions),
    hidden > 0 ? note(`and ${count(hidden, "older one")}`) : "",
  ];
}

export function refusals(overview) {
  const since = `since it started, ${moment(overview.started_at)}`;
  if (!overview.refusals.length) return [empty(`None ${since}.`)];
  const columns = [
    numbers("times", (x) => x.count),
    words("why", (x) => x.code.replaceAll("_", " ")),
    words("task", (x) => x.task),
    prose("the latest said", (x) => x.detail),
    words("latest", (x) => time(x.at)),
  ];
  return [
    el("p", {}, `Counted ${since}.`),
    table("Refused requests", columns, overview.refusals),
  ];
}

function whyNoCoverage(task) {
  const isTooLarge = task.rounds.some((round) => round.state === "closed");
  return isTooLarge
    ? "The last closed round had too many devices to work this out here."
    : "No round is closed yet.";
}

function coldest(found) {
  if (!found.oldest_age) return "Every rank was trained in the last closed round, in every layer.";
  const age = count(found.oldest_age, "round");
  const where = "without training in at least one layer";
  return `Rank ${found.oldest_rank} has waited longest: ${age} ${where}.`;
}

function whatBecame(row) {
  if (row.kind === "quarantined") return `set aside: ${row.reason}`;
  const behind = count(row.staleness, "version");
  return `came late, counted in round ${row.counted_in}, ${behind} behind`;
}

function usedBy(version, task) {
  if (version === task.canary_version) {
    return `${percent(task.canary_share, 1)} of the devices, on trial`;
  }
  if (version !== task.stable_version) return "–";
  return task.canary_version === null ? "all devices" : "the other devices";
}

function acceptedBy(found) {
  if (!found) return "–";
  const share = percent(found.accepted, found.devices);
  return `${share} of ${count(found.devices, "device")}`;
}

function lossWhereTried(found) {
  return found ? `${loss(found.loss_before)} → ${loss(found.loss_after)}` : "–";
}

function memoryRange(x) {
  const edge = (amount) => bytes(amount).replace(".00", "");
  if (x.below_bytes === null) return `${edge(x.from_bytes)} and more`;
  if (!x.from_bytes) return `below ${edge(x.below_bytes)}`;
  return `${edge(x.from_bytes)} to ${edge(x.below_bytes)}`;
}
