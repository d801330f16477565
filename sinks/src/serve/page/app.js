// The page: gets what changed from the stream (or by asking, when there is no stream), asks for
// rows every two seconds, and hands all of it to the panels.

import * as api from "./api.js";
import { attribute, byId, h, show, sync, text } from "./dom.js";
import { clock, count, date, exact, has, ms, rate, span, words } from "./format.js";
import { pulse } from "./charts.js";
import { actions, decisions, fatigue, pacing, setCodes } from "./panels.js";
import { entities } from "./entities.js";

const ROWS_EVERY_MS = 2_000;
const POLL_EVERY_MS = 2_000;
const SILENCE_MS = 10_000;
const PULSE_POINTS = 180;

const state = { tick: null, status: null, last: null, live: false };
const history = { time: [], events: [], decisions: [], latency: [] };
const charts = {
  events: pulse(byId("event-chart"), "--accent"),
  decisions: pulse(byId("decision-chart"), "--accent"),
  latency: pulse(byId("latency-chart"), "--accent"),
};

// ---- what the engine is, asked once and then every minute --------------------------------------

async function loadStatus() {
  const status = await api.get("/v1/status");
  state.status = status;
  show("dryrun", status.setup.dry_run);
  const version = status.build.commit ? `${status.build.version} (${status.build.commit})` : status.build.version;
  text("build", `OmniFy ${version} · actions go to ${words(status.setup.executor)}`);
  byId("maturity").title = status.maturity;
  entities.windows(status.setup.windows);
  if (status.scope === "tenant") text(document.querySelector("h1"), `OmniFy · ${status.tenant}`);
  for (const tile of document.querySelectorAll(".tile")) show(tile, status.scope === "operator");
  state.speed = status.setup.speed;
  text("speed", state.speed > 1 ? `simulated time, ${span(state.speed)} a second` : "");
  if (status.pulse && !history.time.length) seed(status.pulse);
  engine({ ...status, dry_run: status.setup.dry_run });
}

function maturity(status) {
  const marks = status.watermarks ?? {};
  if (!has(status.as_of_tick)) return "";
  const until = (us) => (us / 1000 > status.as_of_tick - 86_400_000 ? clock(us / 1000) : `${date(us / 1000)}, ${clock(us / 1000)}`);
  const fresh = has(marks.fresh_until_us)
    ? `Clicks and spend are complete up to ${until(marks.fresh_until_us)}`
    : "It is not known up to when clicks and spend are complete";
  const settled = has(marks.settled_until_us)
    ? `conversions are final up to ${until(marks.settled_until_us)} and may still rise after it`
    : "conversions are not final";
  return `${fresh}; ${settled}. ≈ marks numbers that are not final. Times are UTC.`;
}

function seed(points) {
  for (let at = 1; at < points.length; at += 1) {
    const [before, now] = [points[at - 1], points[at]];
    const seconds = real(now.tick - before.tick);
    if (seconds > 0) beat((now.events_in - before.events_in) / seconds, (now.decisions - before.decisions) / seconds, now.p99_ms);
  }
}

function beat(events, decided, latency) {
  const add = (list, value) => {
    list.push(value);
    if (list.length > PULSE_POINTS) list.shift();
  };
  add(history.time, (history.time.at(-1) ?? 0) + 1);
  add(history.events, events);
  add(history.decisions, decided);
  add(history.latency, latency ?? null);
}

// ---- the top of the page ------------------------------------------------------------------------

const total = (codes) => Object.values(codes ?? {}).reduce((sum, value) => sum + value, 0);

function engine(news) {
  state.tick = news.as_of_tick;
  text("day", has(news.as_of_tick) ? `${date(news.as_of_tick)} ` : "");
  text("time", has(news.as_of_tick) ? `${clock(news.as_of_tick)} UTC` : "no tick yet");
  health(news.readiness);
  text("maturity", maturity(news));
  if (!news.counters) return;
  const counters = news.counters;
  rates(counters, news.as_of_tick);
  const sums = news.conservation;
  text("c-in", exact(sums.events_in));
  text("c-featured", exact(sums.featured));
  text("c-held", exact(sums.held));
  text("c-dead", exact(sums.dead_letters));
  const none = sums.events_in === 0 && sums.holds;
  text("balance", none ? "nothing yet" : sums.holds ? "adds up" : `off by ${exact(sums.difference)}`);
  attribute(byId("balance"), "class", `pill ${none ? "" : sums.holds ? "good" : "bad"}`);
  const dead = Object.entries(counters.dead_letters).sort((a, b) => b[1] - a[1]);
  sync(byId("dead"), dead, (entry) => entry[0],
    (entry) => h("li", {}, `${words(entry[0])} `, h("b")),
    (element, entry) => text(element.querySelector("b"), count(entry[1])));
  const broken = Object.entries(counters.violations);
  const trouble = [
    ...broken.map(([code, times]) => `Invariant broken: ${words(code)} (${times}×).`),
    ...counters.problems.map((problem) => problem.text),
  ];
  show("trouble", trouble.length > 0);
  text("trouble", trouble.join(" "));
  if (counters.latency_ms) {
    text("p50", ms(counters.latency_ms.p50));
    text("p99", ms(counters.latency_ms.p99));
  }
}

function health(readiness) {
  const ready = readiness.ready;
  const waiting = readiness.reasons.some((reason) => reason.code === "no_tick");
  const label = ready ? "healthy" : waiting ? "waiting for first events" : readiness.reasons.map((reason) => words(reason.code)).join(", ");
  text("health", label);
  attribute(byId("health"), "class", `pill ${ready ? "good" : waiting ? "" : "bad"}`);
  attribute(byId("health"), "title", readiness.reasons.map((reason) => reason.text).join(" ") || "Ready: ticks close in time and events add up");
}

/** Seconds of real time in a distance of ticks. */
const real = (ticks) => ticks / 1000 / (state.speed ?? 1);

/** Rates come from two counts and the time between them, a second apart at least. */
function rates(counters, tick) {
  const now = { tick, events: counters.events_in, decisions: total(counters.decisions) };
  const before = state.last;
  if (!before || now.events < before.events || now.tick < before.tick) {
    state.last = now;
    return;
  }
  const seconds = real(now.tick - before.tick);
  if (seconds < 1) return;
  state.last = now;
  const events = (now.events - before.events) / seconds;
  const decided = (now.decisions - before.decisions) / seconds;
  beat(events, decided, counters.latency_ms?.p99);
  text("event-rate", rate(mean(history.events)));
  text("decision-rate", rate(mean(history.decisions)));
  charts.events.set([history.time, history.events]);
  charts.decisions.set([history.time, history.decisions]);
  charts.latency.set([history.time, history.latency]);
}

/** Of the last few beats, so that the figure can be read. */
function mean(list) {
  const last = list.slice(-5);
  return last.reduce((sum, value) => sum + value, 0) / last.length;
}

// ---- keeping up ---------------------------------------------------------------------------------

function link(words, live) {
  text("link", words);
  attribute(byId("link"), "class", `link ${live ? "live" : ""}`);
}

const pause = (time) => new Promise((resolve) => setTimeout(resolve, time));

async function follow() {
  for (let failures = 0; ; ) {
    // The engine sends something every two seconds; silence means that the connection is gone.
    const silence = new AbortController();
    let watch = setTimeout(() => silence.abort(), SILENCE_MS);
    try {
      await api.stream((news) => {
        clearTimeout(watch);
        watch = setTimeout(() => silence.abort(), SILENCE_MS);
        failures = 0;
        state.live = true;
        link("live", true);
        engine(news);
        decisions.add(news.decisions, state.tick);
        actions.add(news.actions, state.tick);
      }, silence.signal);
    } catch {
      failures += 1;
    }
    clearTimeout(watch);
    state.live = false;
    await pause(Math.min(15_000, 500 * 2 ** failures));
  }
}

/** Asks while the stream does not run. */
async function poll() {
  for (;;) {
    await pause(POLL_EVERY_MS);
    if (state.live || document.hidden) continue;
    try {
      await loadStatus();
      await loadFeeds();
      link("polling", true);
    } catch {
      link("not connected", false);
      text("health", "not connected");
      attribute(byId("health"), "class", "pill bad");
    }
  }
}

async function loadFeeds() {
  const [decided, acted] = await Promise.all([decisions.load(api), actions.load(api)]);
  decisions.add(decided.decisions, decided.as_of_tick);
  actions.add(acted.actions, acted.as_of_tick);
}

async function loadRows() {
  await Promise.all([
    api.get("/v1/features", { level: "campaign", sort: "pacing", limit: 12 }).then((page) => pacing(page)),
    api.get("/v1/features", { level: "creative", sort: "fatigue", limit: 30, spark: true }).then((page) => fatigue(page)),
    entities.load(api),
    // The stream leaves no-ops out.
    decisions.verdict === "hold" ? decisions.load(api).then((page) => decisions.add(page.decisions, page.as_of_tick)) : null,
  ]);
}

async function rows() {
  for (;;) {
    if (!document.hidden) {
      try {
        await loadRows();
      } catch (error) {
        console.warn(error);
      }
    }
    await Promise.race([pause(ROWS_EVERY_MS), entities.asked()]);
  }
}

api.whenDenied(() => {
  show("login", true);
  link("token needed", false);
  text("health", "token needed");
});
byId("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  api.setToken(byId("token").value.trim());
  try {
    await loadStatus();
    location.reload();
  } catch (error) {
    text("login-error", error.message);
  }
});

async function start() {
  try {
    setCodes(await api.get("/v1/codes"));
    await loadStatus();
    await loadFeeds();
  } catch (error) {
    console.warn(error);
  }
  setInterval(() => loadStatus().catch(() => {}), 60_000);
  follow();
  poll();
  rows();
}
start();
