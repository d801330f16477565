// Pacing, decisions, actions and the fatigue watch.

import { attribute, byId, h, show, spark, sparkline, sync, text } from "./dom.js";
import { above, ago, change, count, has, micros, money, name, percent, setting, signedPercent, verb, words } from "./format.js";

const KEPT = 200;
let codes = { reasons: {}, guardrails: {}, policies: {}, alerts: {} };

export const setCodes = (table) => { codes = table; };

/** What a code means; an unknown one is shown as it is. */
export const sentence = (code, table = "reasons") => codes[table]?.[code] ?? code;

/** An entity with the path above it: names repeat from tenant to tenant. */
const named = (entity) =>
  h("span", { class: "name", title: entity }, h("b", {}, name(entity)), h("span", { class: "dim path" }, ` ${above(entity)}`));

// ---- pacing -------------------------------------------------------------------------------------

const OBJECTIVES = {
  target_cpa: (goal, currency) => `CPA up to ${micros(goal.cpa_micros, currency)}`,
  target_roas: (goal) => `ROAS from ${goal.roas}`,
  target_cpc: (goal, currency) => `CPC up to ${micros(goal.cpc_micros, currency)}`,
  maximise: () => "as much as the budget buys",
};

export function pacing(page) {
  const rows = page.rows.filter((row) => row.pacing);
  show("pacing-empty", rows.length === 0);
  sync(byId("pacing-list"), rows, (row) => row.entity,
    (row) => h("li", {},
      h("div", { class: "line" }, named(row.entity), h("span", { class: "pill" })),
      h("div", { class: "bar", role: "img" }, h("i", { class: "spent" }), h("i", { class: "plan" })),
      h("div", { class: "line dim" }, h("span", { class: "sums" }), h("span", { class: "goal" }))),
    (element, row) => {
      const { pacing: now, currency } = row;
      const share = (value) => `${Math.min(100, Math.max(0, (value / now.budget_micros) * 100)).toFixed(1)}%`;
      const pill = element.querySelector(".pill");
      const off = Math.abs(now.error);
      text(pill, off < 0.03 ? "on plan" : `${percent(off, 0)} ${now.error < 0 ? "behind" : "ahead"}`);
      attribute(pill, "title", "Spent minus planned by now, as a share of the day's budget");
      attribute(pill, "class", `pill ${off < 0.05 ? "good" : off < 0.12 ? "warn" : "bad"}`);
      const bar = element.querySelector(".bar");
      const [spent, plan] = [now.spent_micros ?? 0, now.planned_micros ?? 0];
      bar.firstChild.style.width = share(spent);
      bar.lastChild.style.left = share(plan);
      attribute(bar.firstChild, "class", `spent ${spent > now.budget_micros ? "bad" : ""}`);
      attribute(bar, "aria-label", `${micros(spent, currency)} spent, ${micros(plan, currency)} planned by now, budget ${micros(now.budget_micros, currency)}`);
      text(element.querySelector(".sums"), `${micros(now.spent_micros, currency)} of ${micros(now.budget_micros, currency)} · plan ${micros(now.planned_micros, currency)}`);
      const { objective } = now;
      text(element.querySelector(".goal"), (OBJECTIVES[objective.kind] ?? (() => words(objective.kind)))(objective, currency));
    });
}

// ---- decisions ----------------------------------------------------------------------------------

const VERDICTS = {
  act: ["acted", "good"],
  hold: ["held", ""],
  blocked: ["blocked", "warn"],
  propose: ["proposed", "info"],
};

class Feed {
  constructor(id) {
    this.id = id;
    this.list = [];
  }

  shown() { return this.list; }
}

function difference(before, after, currency) {
  const [from, to] = [setting(before, currency), setting(after, currency)];
  if (!to) return [];
  const by = change(before, after);
  const parts = from ? [h("span", { class: "dim" }, from), " → ", h("b", {}, to)] : [h("b", {}, to)];
  if (by !== null) parts.push(h("span", { class: by < 0 ? "down" : "up" }, ` ${signedPercent(by, 1)}`));
  return parts;
}

function decisionItem(item) {
  const [label, tone] = VERDICTS[item.verdict] ?? [item.verdict, ""];
  const wanted = item.granted ?? item.proposed;
  const cut = item.granted && item.proposed && JSON.stringify(item.granted) !== JSON.stringify(item.proposed);
  const { predicted } = item;
  const effect = predicted.spend_micros || predicted.value
    ? `Expected per day: spend ${predicted.spend_micros < 0 ? "−" : "+"}${money(Math.abs(predicted.spend_micros) / 1e6, item.currency)}, value ${predicted.value < 0 ? "−" : "+"}${Math.abs(predicted.value).toFixed(1)} (${predicted.value_low.toFixed(1)} to ${predicted.value_high.toFixed(1)})`
    : null;
  return h("li", {},
    h("div", { class: "line" },
      h("span", {}, h("span", { class: `pill ${tone}` }, label), " ", named(item.entity)),
      h("time", { class: "dim" })),
    h("div", { class: "what" }, wanted ? `${verb(item.kind)} ` : "", difference(item.before, wanted, item.currency),
      cut ? h("span", { class: "dim" }, ` (wanted ${setting(item.proposed, item.currency)})`) : null),
    h("p", { class: "why" }, item.reasons.map((code) => h("span", { title: code }, `${sentence(code)} `))),
    item.guardrails.length ? h("p", { class: "why guard" }, "Guardrail: ", item.guardrails.map((code) => h("span", { title: code }, `${sentence(code, "guardrails")} `))) : null,
    h("details", {},
      h("summary", {}, "why exactly"),
      h("p", {}, `${above(item.entity)} · goal ${item.goal || "none"} · ${sentence(item.policy, "policies")} (${item.policy}) · model ${item.model_version || "none"} · pacing ${signedPercent(item.pacing_error, 1)}`),
      effect ? h("p", {}, effect) : null,
      h("p", { class: "mono" }, `${item.id} at tick ${item.tick}`)));
}

export const decisions = new (class extends Feed {
  verdict = "";

  async load(api) {
    return api.get("/v1/decisions", { limit: 100, verdict: this.verdict });
  }

  add(items, tick) {
    const known = new Set(this.list.map((item) => item.id));
    const wanted = (item) => (this.verdict ? item.verdict === this.verdict : item.verdict !== "hold");
    const fresh = items.filter((item) => !known.has(item.id) && wanted(item));
    this.list = [...fresh, ...this.list].sort((a, b) => b.sequence - a.sequence).slice(0, KEPT);
    this.draw(tick);
  }

  draw(tick) {
    const list = byId("decision-list");
    show("decision-empty", this.list.length === 0);
    // A reader who scrolled down keeps the place.
    const stay = list.scrollTop > 0 ? list.scrollHeight - list.scrollTop : null;
    sync(list, this.list, (item) => item.id, decisionItem,
      (element, item) => text(element.querySelector("time"), ago(item.tick, tick ?? item.tick)));
    if (stay !== null) list.scrollTop = list.scrollHeight - stay;
  }

  choose(verdict) {
    this.verdict = verdict;
    this.list = [];
  }
})("decision");

for (const button of document.querySelectorAll("[data-verdict]")) {
  button.addEventListener("click", async () => {
    for (const other of document.querySelectorAll("[data-verdict]")) {
      attribute(other, "aria-pressed", other === button);
    }
    decisions.choose(button.dataset.verdict);
    const api = await import("./api.js");
    const page = await decisions.load(api);
    decisions.add(page.decisions, page.as_of_tick);
  });
}

// ---- actions ------------------------------------------------------------------------------------

const STATES = {
  proposed: ["proposed", "info"],
  in_flight: ["in flight", "info"],
  applied: ["applied", "good"],
  rejected: ["refused", "bad"],
  expired: ["expired", "warn"],
};

export const actions = new (class extends Feed {
  revision = 0;

  async load(api) {
    return api.get("/v1/actions", { limit: 100, after: this.revision });
  }

  add(items, tick) {
    const byKey = new Map(this.list.map((item) => [item.id, item]));
    for (const item of items) {
      byKey.set(item.id, item);
      this.revision = Math.max(this.revision, item.revision);
    }
    this.list = [...byKey.values()].sort((a, b) => b.sequence - a.sequence).slice(0, KEPT);
    this.draw(tick);
  }

  draw(tick) {
    show("action-empty", this.list.length === 0);
    const states = Object.keys(STATES).map((state) => [state, this.list.filter((item) => item.state === state).length]);
    text("action-summary", this.list.length ? `last ${this.list.length}: ${states.filter(([, n]) => n).map(([state, n]) => `${n} ${STATES[state][0]}`).join(", ")}` : "");
    sync(byId("action-list"), this.list, (item) => item.id,
      (item) => h("li", {},
        h("div", { class: "line" },
          h("span", {}, h("span", { class: "pill" }), " ", named(item.entity)),
          h("time", { class: "dim" })),
        h("div", { class: "what" }, `${verb(item.kind)} `, difference(item.before, item.desired, item.currency)),
        h("p", { class: "detail" })),
      (element, item) => {
        const [label, tone] = STATES[item.state] ?? [item.state, ""];
        const pill = element.querySelector(".pill");
        text(pill, label);
        attribute(pill, "class", `pill ${tone}`);
        text(element.querySelector("time"), ago(item.tick, tick ?? item.tick));
        const [asked, got] = [setting(item.desired, item.currency), setting(item.effective, item.currency)];
        const took = got && got !== asked ? `the platform made it ${got}` : null;
        const detail = [item.detail, took].filter(has).join("; ");
        text(element.querySelector(".detail"), detail);
        show(element.querySelector(".detail"), detail !== "");
      });
  }
})("action");

// ---- fatigue watch ------------------------------------------------------------------------------

export function forecast(fatigue) {
  if (fatigue.state === "wearing_out") return "worn out";
  if (fatigue.state === "insufficient") return "too early";
  const days = fatigue.days_to_onset;
  if (!has(days)) return "fresh";
  return days < 1 ? "worn within a day" : `worn in ${Math.round(days)} d`;
}

export const tone = (fatigue) =>
  fatigue.state === "wearing_out" ? "bad" : fatigue.state === "fresh" && has(fatigue.days_to_onset) && fatigue.days_to_onset < 14 ? "warn" : fatigue.state === "fresh" ? "good" : "";

export function fatigue(page) {
  const rows = page.rows.filter((row) => row.fatigue.state === "wearing_out" || (has(row.fatigue.days_to_onset) && row.fatigue.days_to_onset < 14 && row.fatigue.state === "fresh"));
  show("fatigue-empty", rows.length === 0);
  sync(byId("fatigue-list"), rows, (row) => row.entity,
    (row) => h("li", {},
      h("div", { class: "line" }, h("b", { class: "name", title: row.entity }, name(row.entity)), h("span", { class: "pill" })),
      h("div", { class: "line" }, h("span", { class: "dim path" }, above(row.entity)), sparkline(`CTR trend of ${name(row.entity)}`)),
      h("div", { class: "dim facts" })),
    (element, row) => {
      const { fatigue: state } = row;
      const pill = element.querySelector(".pill");
      text(pill, forecast(state));
      attribute(pill, "class", `pill ${tone(state)}`);
      const frequency = row.reach?.frequency;
      const seen = has(frequency) ? ` · seen ${frequency.toFixed(1)}× per person` : "";
      text(element.querySelector(".facts"),
        `CTR ${signedPercent(has(state.ratio) ? state.ratio - 1 : null)} against its own baseline ${percent(state.baseline_ctr)} · ${percent(state.probability, 0)} likely worn out${seen} · ${count(row.ctr?.trials)} impressions`);
      spark(element.querySelector(".spark"), row.spark?.ctr ?? []);
    });
}
