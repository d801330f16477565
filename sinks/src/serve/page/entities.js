// The table of entities: a tree, or a flat list sorted by a number, with a detail under a row.

import { attribute, byId, h, show, spark, sparkline, sync, text } from "./dom.js";
import { above, clock, count, has, micros, money, name, percent, ratio, setting, words } from "./format.js";
import { detail } from "./charts.js";
import { forecast, sentence, tone } from "./panels.js";

const LEVELS = ["tenant", "account", "campaign", "ad_group", "creative"];
const PAGE = 50;
const OPEN_MAX = 12;

const view = { limit: PAGE, open: new Set(), selected: null, rows: [], more: false, matching: 0, tree: true };
let wake = () => {};
const ask = () => wake();

const field = (id) => byId(id).value;

function remember(names) {
  const select = byId("f-window");
  if (select.options.length || !names.length) return;
  for (const window of names) select.append(h("option", { value: window }, label(window)));
  select.value = names.includes("24h/15m") ? "24h/15m" : names[0];
}

const label = (window) => (window === "day" ? "today" : `last ${window.split("/")[0]}`);

/** The rows to show and how many match in all. */
async function load(api) {
  const text = field("f-text").trim();
  const level = field("f-level");
  const sort = field("f-sort");
  const window = field("f-window");
  const tree = level === "tree" && sort === "key" && !text && !field("f-state");
  const common = { window, spark: true };
  if (tree) {
    const page = await api.get("/v1/features", { ...common, down_to: "campaign", limit: view.limit });
    const below = await Promise.all([...view.open].map((entity) =>
      api.get("/v1/features", { ...common, under: entity, limit: 200 }).then((found) => [entity, found.rows.slice(1)], () => [entity, []])));
    const children = new Map(below);
    view.rows = page.rows.flatMap((row) => [row, ...(children.get(row.entity) ?? [])]);
    view.more = page.next !== null;
    draw(page.matching, true);
  } else {
    const page = await api.get("/v1/features", {
      ...common, sort, contains: text, state: field("f-state"), limit: view.limit,
      level: level === "tree" ? (sort === "key" ? "" : "creative") : level,
    });
    view.rows = page.rows;
    view.more = page.next !== null;
    draw(page.matching, false);
  }
}

function draw(matching, tree) {
  Object.assign(view, { matching, tree });
  const window = field("f-window");
  const items = view.rows.flatMap((row) => (row.entity === view.selected ? [{ row }, { row, detail: true }] : [{ row }]));
  sync(byId("entity-rows"), items, (item) => (item.detail ? `${item.row.entity}!` : item.row.entity),
    (item) => (item.detail ? detailRow() : plainRow(item.row)),
    (element, item) => (item.detail ? updateDetail(element, item.row, window) : updateRow(element, item.row, window, tree)));
  show("entity-empty", view.rows.length === 0);
  const filtered = field("f-text") || field("f-state");
  text("entity-empty", filtered ? "Nothing matches." : "Waiting for first events.");
  show("entity-more", view.more);
  const shown = Math.min(matching, view.limit);
  const what = tree ? "down to campaigns" : "match";
  text("entity-count", matching ? `${shown < matching ? `${shown} of ` : ""}${count(matching)} ${what}` : "");
}

/** An account is known by its platform too. */
const title = (row) => (row.level === "account" ? `${row.platform} ${row.account}` : name(row.entity));

function plainRow(row) {
  const key = row.entity;
  const cell = (name, ...children) => h("td", { class: name, role: "cell" }, ...children);
  return h("tr", { role: "row" },
    h("th", { scope: "row", role: "rowheader" }, h("div", { class: "entity" },
      h("button", { type: "button", class: "twist", onclick: () => toggle(key) }),
      h("button", { type: "button", class: "pick", title: key, onclick: () => select(key) }, h("span", { class: "name" }, title(row)), h("span", { class: "dim level" })))),
    cell("n spark-h", sparkline(`CTR trend of ${name(key)}`)),
    cell("n ctr", h("b"), h("span", { class: "dim" })),
    cell("n spend"), cell("n more impressions"), cell("n more cpc"),
    cell("n more cpa"), cell("n more roas"), cell("n more freq"),
    cell("state", h("span", { class: "pill" })));
}

/** A number that later conversions may still change. */
const open = (value, share) => (value === "–" || share === 1 ? value : `≈ ${value}`);

function updateRow(element, row, window, tree) {
  const sums = row.windows[window] ?? Object.values(row.windows)[0] ?? {};
  const depth = tree ? LEVELS.indexOf(row.level) : 0;
  attribute(element, "class", `depth${depth} ${row.level} ${row.entity === view.selected ? "selected" : ""}`);
  const twist = element.querySelector(".twist");
  const can = tree && row.level === "campaign";
  twist.style.visibility = can ? "visible" : "hidden";
  if (!tree) twist.style.display = "none"; else twist.style.display = "";
  const opened = view.open.has(row.entity);
  text(twist, opened ? "▾" : "▸");
  attribute(twist, "aria-expanded", can ? opened : null);
  attribute(twist, "aria-label", can ? `${opened ? "Hide" : "Show"} ad groups and creatives of ${name(row.entity)}` : null);
  attribute(element.querySelector(".pick"), "aria-expanded", row.entity === view.selected);
  text(element.querySelector(".level"), tree ? words(row.level) : above(row.entity));
  spark(element.querySelector(".spark"), row.spark?.ctr ?? []);
  const cell = (name, value) => text(element.querySelector(`.${name}`), value);
  text(element.querySelector(".ctr b"), percent(row.ctr?.mean));
  text(element.querySelector(".ctr span"), row.ctr ? `${percent(row.ctr.low)} – ${percent(row.ctr.high)}`.replaceAll(" %", "") : "");
  cell("spend", micros(sums.cost_micros, row.currency));
  cell("impressions", count(sums.impressions));
  cell("cpc", money(sums.cpc, row.currency));
  cell("cpa", open(money(sums.cpa, row.currency), sums.settled_share));
  cell("roas", open(ratio(sums.roas), sums.settled_share));
  cell("freq", row.reach?.frequency ? row.reach.frequency.toFixed(1) : "–");
  const pill = element.querySelector(".pill");
  const trouble = row.anomaly.alarm ? "unusual delivery" : row.completeness?.broken ? "conversions off their curve" : "";
  text(pill, trouble || forecast(row.fatigue));
  attribute(pill, "class", `pill ${trouble ? "warn" : tone(row.fatigue)}`);
}

function toggle(key) {
  if (view.open.delete(key)) return ask();
  if (view.open.size >= OPEN_MAX) view.open.delete(view.open.values().next().value);
  view.open.add(key);
  ask();
}

function select(key) {
  view.selected = view.selected === key ? null : key;
  draw(view.matching, view.tree);
  ask();
}

function detailRow() {
  const element = h("tr", { class: "detail-row", role: "row" }, h("td", { colspan: 10, role: "cell" },
    h("div", { class: "facts-grid" }),
    h("div", { class: "charts" },
      h("figure", {}, h("figcaption"), h("div", { class: "chart" })),
      h("figure", {}, h("figcaption"), h("div", { class: "chart" }))),
    h("p", { class: "dim last" })));
  return element;
}

function fact(term, value) {
  return value && value !== "–" ? h("div", {}, h("dt", {}, term), h("dd", {}, value)) : null;
}

function expectedFacts({ window, share, conversions, revenue_micros: revenue }, money1) {
  const range = (form, of) => `${form(of.mean)} (${form(of.low)} to ${form(of.high)})`;
  const whole = (value) => count(Math.round(value));
  return [
    fact(`Conversions reported, ${label(window)}`, `${percent(share, 0)} of what is expected`),
    fact("Conversions in the end, 90 % interval", range(whole, conversions)),
    fact("Revenue in the end, 90 % interval", revenue.mean > 0 ? range(money1, revenue) : "–"),
  ];
}

function updateDetail(element, row, window) {
  const sums = row.windows[window] ?? {};
  const money1 = (value) => micros(value, row.currency);
  const shortest = label(Object.keys(row.windows)[0] ?? "");
  const facts = h("dl", { class: "facts-grid" },
    fact("Impressions", count(sums.impressions)),
    fact("Clicks", count(sums.clicks)),
    fact("Conversions", open(count(sums.conversions), sums.settled_share)),
    fact("Spend", money1(sums.cost_micros)),
    fact("Revenue", open(money1(sums.revenue_micros), sums.settled_share)),
    fact("CPM", money(sums.cpm, row.currency)),
    fact("CPC", money(sums.cpc, row.currency)),
    fact("CPA", open(money(sums.cpa, row.currency), sums.settled_share)),
    fact("ROAS", open(ratio(sums.roas), sums.settled_share)),
    fact("CTR, 90 % interval", row.ctr ? `${percent(row.ctr.low)} to ${percent(row.ctr.high)}` : "–"),
    fact("CVR, 90 % interval", row.cvr ? `${percent(row.cvr.low, 1)} to ${percent(row.cvr.high, 1)}` : "–"),
    fact("People reached", row.reach ? count(row.reach.users) : "–"),
    fact("Bid", money1(row.settings.bid_micros)),
    fact("Budget", money1(row.settings.budget_micros)),
    fact("Status", row.settings.status ?? "–"),
    ...(row.completeness ? expectedFacts(row.completeness, money1) : []),
    fact("Conversions final", has(sums.settled_share) ? `${percent(sums.settled_share, 0)} of the window` : "not known"));
  element.querySelector(".facts-grid").replaceWith(facts);
  const [ctr, cost] = element.querySelectorAll("figure");
  const charts = element.querySelector(".charts");
  show(charts, (row.spark?.tick.length ?? 0) > 1);
  if (row.spark && !charts.hidden) {
    text(ctr.firstChild, `CTR, ${shortest}`);
    text(cost.firstChild, `Spend, ${shortest}`);
    const x = row.spark.tick.map((tick) => tick / 1000);
    const [a, b] = [ctr.lastChild, cost.lastChild];
    a.chart ?? detail(a, "CTR", "--accent", (value) => percent(value));
    b.chart ?? detail(b, "Spend", "--accent", (value) => money(value, row.currency));
    a.chart.set([x, row.spark.ctr]);
    b.chart.set([x, row.spark.cost_micros.map((value) => value / 1e6)]);
  }
  const last = row.decision
    ? `Last decision ${clock(row.decision.tick)}: ${words(row.decision.verdict)}. ${row.decision.reasons.map((code) => sentence(code)).join(" ")}`
    : "No decision about this entity yet.";
  text(element.querySelector(".last"), `${row.entity} · ${last}`);
}

for (const id of ["f-level", "f-sort", "f-state", "f-window"]) {
  byId(id).addEventListener("change", () => {
    view.limit = PAGE;
    ask();
  });
}
let typing;
byId("f-text").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(ask, 200);
});
byId("entity-form").addEventListener("submit", (event) => event.preventDefault());
byId("entity-more").addEventListener("click", () => {
  view.limit = Math.min(1_000, view.limit + PAGE);
  ask();
});

export const entities = {
  load,
  windows: remember,
  /** Resolves when the reader asked for other rows. */
  asked: () => new Promise((resolve) => { wake = resolve; }),
};
