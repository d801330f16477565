// Numbers, times and settings as people read them. A number that is not defined is a dash.

export const DASH = "–";

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const has = (value) => value !== null && value !== undefined;

export function count(value) {
  if (!has(value)) return DASH;
  return Math.abs(value) < 10_000 ? whole.format(value) : compact.format(value);
}

export const exact = (value) => (has(value) ? whole.format(value) : DASH);

export function rate(value) {
  if (!has(value)) return DASH;
  if (value >= 10_000) return compact.format(value);
  if (value > 0 && value < 0.05) return "< 0.1";
  return value >= 10 ? whole.format(value) : value.toFixed(1);
}

export function percent(value, digits = 2) {
  return has(value) ? `${(value * 100).toFixed(digits)} %` : DASH;
}

export function signedPercent(value, digits = 0) {
  if (!has(value)) return DASH;
  const text = (Math.abs(value) * 100).toFixed(digits);
  if (Number(text) === 0) return "0 %";
  return `${value < 0 ? "−" : "+"}${text} %`;
}

const currencies = new Map();

/** An amount in currency units; without a currency just the number. */
export function money(value, currency) {
  if (!has(value)) return DASH;
  const large = Math.abs(value) >= 10_000;
  const digits = Math.abs(value) >= 100 ? 0 : 2;
  const key = `${currency}${large}${digits}`;
  if (!currencies.has(key)) {
    const style = currency
      ? { style: "currency", currency, currencyDisplay: "narrowSymbol" }
      : {};
    const size = large
      ? { notation: "compact", maximumSignificantDigits: 3 }
      : { minimumFractionDigits: digits, maximumFractionDigits: digits };
    currencies.set(key, new Intl.NumberFormat("en", { ...style, ...size }));
  }
  return currencies.get(key).format(value);
}

export const micros = (value, currency) => money(has(value) ? value / 1e6 : value, currency);

export const ratio = (value) => (has(value) ? value.toFixed(2) : DASH);

export function ms(value) {
  if (!has(value)) return DASH;
  return value < 10 ? value.toFixed(1) : whole.format(value);
}

const two = (number) => String(number).padStart(2, "0");

export function clock(tick) {
  const at = new Date(tick);
  return `${two(at.getUTCHours())}:${two(at.getUTCMinutes())}:${two(at.getUTCSeconds())}`;
}

const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

export function date(tick) {
  const at = new Date(tick);
  return `${at.getUTCDate()} ${MONTHS[at.getUTCMonth()]} ${at.getUTCFullYear()}`;
}

/** How long before `now` something was. */
export function ago(tick, now) {
  const seconds = Math.max(0, Math.round((now - tick) / 1000));
  if (seconds < 5) return "just now";
  if (seconds < 90) return `${seconds} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 129_600) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86_400)} d ago`;
}

/** A length of time in whole units. */
export function span(seconds) {
  const [unit, size] = [["day", 86_400], ["hour", 3600], ["minute", 60], ["second", 1]].find(([, size]) => seconds % size === 0);
  const amount = seconds / size;
  return `${whole.format(amount)} ${unit}${amount === 1 ? "" : "s"}`;
}

export const name = (key) => key.slice(key.lastIndexOf("/") + 1);

/** The path above an entity. */
export const above = (key) => key.split("/").slice(0, -1).join(" › ");

export const words = (code) => code.replaceAll("_", " ");

/** A setting in words. */
export function setting(value, currency) {
  if (!value) return null;
  switch (value.setting) {
    case "bid": return micros(value.bid_micros, currency);
    case "budget": return micros(value.budget_micros, currency);
    case "status": return value.status;
    case "rotate": return name(value.to);
    case "alert": return words(value.code);
    default: return JSON.stringify(value);
  }
}

const VERBS = {
  set_bid: "bid",
  set_budget: "daily budget",
  pause: "pause",
  enable: "enable",
  rotate_creative: "rotate to",
  alert: "alert",
};

export const verb = (kind) => VERBS[kind] ?? (kind ? words(kind) : "no change");

/** The relative change between two amounts of the same kind. */
export function change(before, after) {
  const amount = (value) => value?.bid_micros ?? value?.budget_micros;
  const [from, to] = [amount(before), amount(after)];
  return from > 0 && has(to) ? to / from - 1 : null;
}
