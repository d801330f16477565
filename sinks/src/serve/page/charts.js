// Charts by uPlot: the pulse in the tiles and the detail of an entity.

import { has } from "./format.js";

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const utc = (seconds) => new Date(seconds * 1000).toISOString().slice(11, 19);

const live = new Set();
// Colours are read when a chart is made, so a change of scheme makes the charts anew.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const chart of live) chart.remake();
});
const sizes = new ResizeObserver((entries) => {
  for (const entry of entries) entry.target.chart?.resize();
});

/** A chart in `parent` that is fed with `set([x, y, ...])`. */
class Chart {
  constructor(parent, options) {
    this.parent = parent;
    this.options = options;
    this.data = null;
    parent.chart = this;
    live.add(this);
    sizes.observe(parent);
  }

  set(data) {
    this.data = data;
    if (data[0].length < 2 || !globalThis.uPlot) return;
    if (this.plot) this.plot.setData(data);
    else this.remake();
    this.rest();
  }

  /** Without a cursor the legend shows the newest value. */
  rest() {
    const last = this.data[0].length - 1;
    if (this.plot?.legend.show && !has(this.plot.cursor.idx)) this.plot.setLegend({ idx: last });
  }

  size() {
    return { width: Math.max(80, this.parent.clientWidth), height: this.options().height };
  }

  resize() {
    this.plot?.setSize(this.size());
  }

  remake() {
    this.plot?.destroy();
    if (this.data) this.plot = new uPlot({ ...this.options(), ...this.size() }, this.data, this.parent);
  }

  end() {
    this.plot?.destroy();
    live.delete(this);
    sizes.unobserve(this.parent);
  }
}

/** A small filled line without axes. */
export function pulse(parent, colorName) {
  return new Chart(parent, () => ({
    height: 44,
    legend: { show: false },
    cursor: { show: false },
    padding: [4, 0, 0, 0],
    scales: { x: { time: false }, y: { range: (_, low, high) => [0, Math.max(high, 1e-9) * 1.1] } },
    axes: [{ show: false }, { show: false }],
    series: [{}, { stroke: color(colorName), fill: `${color(colorName)}22`, width: 1.5, points: { show: false } }],
  }));
}

/** One series over time with axes and the value under the cursor. */
export function detail(parent, label, colorName, format) {
  const axis = () => ({
    stroke: color("--dim"),
    grid: { stroke: color("--line"), width: 1 },
    ticks: { show: false },
    font: "12px system-ui, sans-serif",
  });
  return new Chart(parent, () => ({
    height: 150,
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
    legend: { live: true },
    cursor: { y: false, points: { size: 6 } },
    axes: [
      { ...axis(), space: 70, values: (_, splits) => splits.map((at) => utc(at).slice(0, 5)) },
      { ...axis(), size: 62, space: 24, values: (_, splits) => splits.map((value) => format(value)) },
    ],
    series: [
      { label: "UTC", value: (_, x) => (has(x) ? utc(x) : "–") },
      {
        label,
        stroke: color(colorName),
        width: 2,
        points: { show: false },
        value: (_, y) => (has(y) ? format(y) : "–"),
      },
    ],
  }));
}
