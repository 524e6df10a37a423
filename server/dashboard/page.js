// Asks the server for the overview every few seconds while the page is seen, and draws it.

import { time } from "./amounts.js";
import { refill } from "./elements.js";
import * as sections from "./sections.js";
import * as summary from "./summary.js";

const RUNNING_MS = 3000;
const RESTING_MS = 10000;
const LONGEST_PAUSE_MS = 30000;
const PATIENCE_MS = 10000;
const STORED = "edge admin token";

const state = { overview: null, arrivedAt: 0, failures: 0, timer: 0, asking: null };
const shown = new Map();
const find = (id) => document.getElementById(id);

readAddress();
find("sign-in").querySelector("form").addEventListener("submit", signIn);
find("sign-out").addEventListener("click", () => signOut(""));
window.addEventListener("hashchange", () => {
  readAddress();
  ask();
});
window.addEventListener("resize", () => state.overview && draw(state.overview));
document.addEventListener("visibilitychange", () => (document.hidden ? stop() : ask()));
setInterval(tick, 1000);
if (document.hidden) stop();
else ask();

// Take the token out of the address, which people share, and keep it for this tab.
function readAddress() {
  const words = new URLSearchParams(location.hash.slice(1));
  const token = words.get("token");
  if (token === null) return;
  sessionStorage.setItem(STORED, token);
  words.delete("token");
  const rest = words.toString();
  history.replaceState(null, "", rest ? `#${rest}` : location.pathname + location.search);
}

function chosenTask() {
  return new URLSearchParams(location.hash.slice(1)).get("task");
}

function signIn(event) {
  event.preventDefault();
  sessionStorage.setItem(STORED, find("token").value.trim());
  find("token").value = "";
  ask();
}

function signOut(why) {
  stop();
  sessionStorage.removeItem(STORED);
  state.overview = null;
  state.failures = 0;
  shown.clear();
  document.body.classList.remove("stale");
  connect("");
  find("sign-in-problem").textContent = why;
  find("sign-in").hidden = false;
  find("board").hidden = true;
  find("sign-out").hidden = true;
  find("token").focus();
}

function stop() {
  clearTimeout(state.timer);
  state.asking?.abort();
  state.asking = null;
}

async function ask() {
  stop();
  const token = sessionStorage.getItem(STORED);
  if (!/^[!-~]+$/.test(token ?? "")) {
    signOut(token ? "That is not a token: it has characters no token has." : "");
    return;
  }
  const asking = new AbortController();
  state.asking = asking;
  const answer = await answerOf(token, asking);
  if (state.asking !== asking) return;
  if (answer) take(answer);
  else fail("No answer from the server");
}

async function answerOf(token, asking) {
  const patience = setTimeout(() => asking.abort(), PATIENCE_MS);
  try {
    const answer = await fetch(address(), {
      headers: { Authorization: `Bearer ${token}` },
      cache: "no-store",
      credentials: "omit",
      signal: asking.signal,
    });
    return { status: answer.status, body: await answer.json() };
  } catch {
    return null;
  } finally {
    clearTimeout(patience);
  }
}

function address() {
  const task = chosenTask();
  return task ? `v1/admin/overview?task=${encodeURIComponent(task)}` : "v1/admin/overview";
}

function take({ status, body }) {
  if (status === 401 || status === 403) {
    signOut(`The server refused the token: ${body.detail}`);
  } else if (status === 404 && chosenTask()) {
    history.replaceState(null, "", location.pathname + location.search);
    ask();
  } else if (status !== 200) {
    fail(`The server answers with an error (${body.detail ?? status})`);
  } else {
    state.overview = body;
    state.arrivedAt = performance.now();
    state.failures = 0;
    draw(body);
    document.body.classList.remove("stale");
    connect("live", "Live");
    const isRunning = body.tasks.some((line) => ["open", "closing"].includes(line.state));
    again(isRunning ? RUNNING_MS : RESTING_MS);
  }
}

function fail(what) {
  state.failures += 1;
  const pause = Math.min(LONGEST_PAUSE_MS, RUNNING_MS * 2 ** (state.failures - 1));
  const since = state.overview ? `; the numbers are those of ${time(state.overview.now)}` : "";
  connect("lost", `${what}${since}. Trying again in ${pause / 1000} s.`);
  document.body.classList.toggle("stale", state.overview !== null);
  again(pause);
}

function again(pauseMs) {
  clearTimeout(state.timer);
  state.timer = setTimeout(ask, pauseMs);
}

function connect(kind, words = "") {
  const place = find("connection");
  if (place.textContent === words && place.className === kind) return;
  place.className = kind;
  place.textContent = words;
}

function draw(overview) {
  const { task } = overview;
  find("sign-in").hidden = true;
  find("sign-in-problem").textContent = "";
  find("board").hidden = false;
  find("sign-out").hidden = false;
  find("details").hidden = !task;
  const { tasks, tasks_total: total } = overview;
  const chosen = task?.line.name;
  put("tasks", [tasks, total, chosen], () => summary.tasks(overview, chosen));
  put("refusals", overview.refusals, () => sections.refusals(overview));
  if (task) drawTask(task);
  tick();
}

function drawTask(task) {
  const { rounds } = task;
  document.title = `${task.line.name} – Fleet dashboard`;
  put("task-name", task.line.name, () => [task.line.name]);
  put("task-facts", task, () => summary.taskFacts(task));
  put("highlights", task, () => summary.highlights(task));
  put("now", [task.running, task.line], () => summary.runningRound(task.running, task.line));
  put("loss", rounds, (width) => sections.losses(rounds, width));
  put("bytes", rounds, (width) => sections.traffic(rounds, width));
  put("fleet", [rounds, task.r], () => sections.fleet(task));
  put("coverage", [task.coverage, rounds.length], (width) => sections.coverage(task, width));
  put("rounds", rounds, () => sections.rounds(rounds, task.stragglers));
  put("left-out", rounds, () => sections.leftOut(rounds));
  const { versions, stable_version: stable, canary_version: canary } = task;
  put("versions", [versions, stable, canary], () => sections.versions(task));
}

// Draw a place again only if what it shows has changed, or its width.
function put(id, facts, draw) {
  const place = find(id);
  const width = Math.max(240, Math.floor(place.getBoundingClientRect().width));
  const key = `${width} ${JSON.stringify(facts)}`;
  if (shown.get(id) === key) return;
  shown.set(id, key);
  refill(place, draw(width));
}

function tick() {
  const place = find("countdown");
  const running = state.overview?.task?.running;
  if (!place || !running) return;
  const passedS = (performance.now() - state.arrivedAt) / 1000;
  place.textContent = summary.countdown(running.deadline_s - passedS);
}
