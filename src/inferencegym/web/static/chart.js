// Charts over time: uPlot on a canvas, with what a reader needs around it (units, a legend with values, a table, a summary in words).
//
// Charts with the same `sync` share their cursor and their zoom.
import { paintLevels, paintMarks, paintStretches } from "./chart-ink.js";
import { summaryOf, tableOf } from "./chart-words.js";
import { h } from "./dom.js";
import { DASH, number } from "./format.js";
import { colour, faint, queue, seldom, unqueue } from "./drawing.js";
import { firstAt, thin } from "./thin.js";
import UPlot from "./vendor/uplot/uPlot.esm.js";

const FONT = "12px system-ui, sans-serif";
//: As in report/palette.py.
const DASHES = [[], [7, 3], [2, 3], [9, 3, 2, 3], [4, 4], [12, 4], [1, 4], [6, 2, 1, 2]];
const TABLE_ROWS = 60;
const DESCRIBE_MS = 2000;

export { colour } from "./drawing.js";

const groups = new Map();

/**
 * @param {HTMLElement} parent
 * @param {object} options
 *   title, unit ("" or "1" for none), xLabel, xUnit
 *   series: [{label, slot, dash?: true for the slot's own pattern, mark?: a short text at the line's end, colour?: a custom property's name,
 *     fill?: true to shade down to the axis, stepped?}]
 *   yMin, yMax: fixed ends; log: logarithmic y; stepped: all series as steps; height: px (160); xMin, xMax: fixed ends of x
 *   sync: name of a group; levels: [{label, value}] horizontal lines; bands: [{upper: series, lower: series}] shaded between two series, or
 *     [{from, to, label}] stretches of x; dodge: true draws series a little above one another where they have the same value;
 *   axisLabels: {number: text} instead of numbers on y; legend: "toggle" (default) | "values" | "none"; onZoom(ends or null)
 */
export function createChart(parent, options) {
  return new Chart(parent, options);
}

class Chart {
  constructor(parent, options) {
    this.options = { height: 160, legend: "toggle", xLabel: "", series: [], levels: [], bands: [], ...options };
    this.data = [new Float64Array(0), this.options.series.map(() => new Float32Array(0))];
    this.on = this.options.series.map(() => true);
    this.listeners = new Set();
    this.pickers = new Set();
    this.describe = seldom(() => this.box.setAttribute("aria-label", summaryOf(this.options, this.caption(), this.data, this.thinned, (v) => this.text(v))), DESCRIBE_MS);
    this.resting = null;
    this.pointed = null;
    this.zoom = null;
    this.plot = null;
    this.group = this.options.sync ?? Symbol("alone");
    if (!groups.has(this.group)) groups.set(this.group, new Set());
    const peer = [...groups.get(this.group)][0];
    this.zoom = peer?.zoom ?? null;
    groups.get(this.group).add(this);
    this.build();
    parent.append(this.element);
    queue(this, this.box);
  }

  build() {
    const { title, unit, height, legend } = this.options;
    this.values = [];
    this.swatches = [];
    this.keys = h("ul", { class: "keys", hidden: legend === "none" }, this.options.series.map((one, i) => {
      const swatch = h("span", { class: one.mark ? "order" : "swatch", "aria-hidden": "true" }, one.mark);
      swatch.style.setProperty("background", `var(--${one.colour ?? `series-${one.slot % 8}`})`);
      this.values[i] = h("span", { class: "value" });
      const inside = [swatch, h("span", { class: "name", title: one.label }, one.label), this.values[i]];
      if (legend !== "toggle" || this.options.series.length < 2) return h("li", null, inside);
      return h("li", null, h("button", { type: "button", "aria-pressed": "true", title: "Show or hide", onclick: () => this.setSeriesVisible(i, !this.on[i]) }, inside));
    }));
    this.tableButton = h("button", { type: "button", class: "plain small end", "aria-expanded": "false", "aria-label": `Table of ${title}`, onclick: () => this.toggleTable() }, "table");
    this.box = h("div", { class: "plot", role: "img", "aria-label": `${this.caption()}: no data yet` });
    this.box.style.setProperty("height", `${height}px`);
    this.line = h("div", { class: "playhead", hidden: true });
    this.table = h("div", { class: "table-box", tabindex: "0", role: "region", "aria-label": `${title}, as a table`, hidden: true });
    this.element = h("figure", { class: "chart", "data-chart": title },
      h("figcaption", null, h("span", null, h("strong", null, title), unit && unit !== "1" ? h("span", { class: "soft" }, ` (${unit})`) : null), this.tableButton),
      this.keys, this.box, this.table);
  }

  caption() {
    const { title, unit } = this.options;
    return unit && unit !== "1" ? `${title} (${unit})` : title;
  }

  /** `x` ascends; `ys` one array a series, which may end sooner; NaN is no value. The arrays are read when drawing, not copied. */
  setData(x, ys) {
    this.data = [x, ys];
    this.later();
  }

  /** The ends of x while nobody has zoomed. */
  setRange(xMin, xMax) {
    Object.assign(this.options, { xMin, xMax });
    this.later();
  }

  /** Horizontal lines, anew. */
  setLevels(levels) {
    this.options.levels = levels;
    this.later();
  }

  /** Where the playhead is (null: nowhere); the legend tells the values there while no pointer is on the chart. */
  setCursor(x) {
    this.resting = x;
    this.placePlayhead();
    this.later();
  }

  /** fn(x) while the reader's pointer moves over any chart of the group, fn(null) when it leaves. */
  onCursor(fn) {
    this.listeners.add(fn);
  }

  /** fn(x) where the reader clicks. */
  onPick(fn) {
    this.pickers.add(fn);
  }

  setSeriesVisible(i, on) {
    this.on[i] = on;
    const button = this.keys.children[i]?.querySelector("button");
    button?.setAttribute("aria-pressed", String(on));
    if (this.keys.children[i]) this.keys.children[i].dataset.off = String(!on);
    this.plot?.setSeries(i + 1, { show: on });
    this.later();
  }

  destroy() {
    unqueue(this, this.box);
    this.describe.cancel();
    const members = groups.get(this.group);
    members?.delete(this);
    if (members?.size === 0) groups.delete(this.group);
    this.plot?.destroy();
    this.plot = null;
    this.element.remove();
  }

  range() {
    if (this.zoom) return this.zoom;
    const [x] = this.data;
    const from = this.options.xMin ?? (x.length ? x[0] : 0);
    const to = this.options.xMax ?? (x.length ? x[x.length - 1] : 1);
    return to > from ? [from, to] : [from - 0.5, from + 0.5];
  }

  draw() {
    const { width } = this;
    if (!width) return;
    const [from, to] = this.range();
    const [x, ys] = this.data;
    this.thinned = thin(x, ys, from, to, Math.max(100, Math.round(width / 2)));
    if (this.options.log) this.thinned = [this.thinned[0], ...this.thinned.slice(1).map((column) => column.map((v) => (v > 0 ? v : null)))];
    // Many points: hairlines, which cost a browser that draws without a GPU a third.
    const dense = this.thinned[0].length > width / 2;
    if (this.plot) for (const one of this.plot.series.slice(1)) one.width = dense ? 1 : 1.5;
    if (this.options.dodge) this.dodge();
    const height = this.options.height;
    if (!this.plot) this.plot = new UPlot(this.uplot(width, height, dense), this.thinned, this.box), this.plot.over.append(this.line), this.bind();
    else {
      if (this.plot.width !== width || this.plot.height !== height) this.plot.setSize({ width, height });
      this.plot.batch(() => {
        this.plot.setData(this.thinned, false);
        this.plot.setScale("x", { min: from, max: to });
        const [min, max] = this.yRange();
        this.plot.setScale("y", { min, max });
      });
      this.plot.redraw(true, true);
    }
    if (this.pointAgain) {
      // The pointer has not moved, but what lies under it has.
      this.pointAgain = false;
      this.point(this.plot.posToVal(this.plot.cursor.left, "x"));
    }
    this.tell(true);
    this.describe();
  }

  /** Lines that would lie on one another, apart. */
  dodge() {
    const n = this.options.series.length;
    this.thinned = [this.thinned[0], ...this.thinned.slice(1).map((column, i) => {
      const shift = n > 1 ? (0.5 - i / (n - 1)) * 0.5 : 0;
      return column.map((v) => (v === null ? null : v + shift));
    })];
  }

  yRange() {
    const { yMin, yMax, log, levels, axisLabels } = this.options;
    let low = Infinity;
    let high = -Infinity;
    this.thinned.slice(1).forEach((column, i) => {
      if (!this.on[i]) return;
      for (const v of column) {
        if (v === null) continue;
        if (v < low) low = v;
        if (v > high) high = v;
      }
    });
    if (axisLabels) {
      const codes = Object.keys(axisLabels).map(Number);
      return [Math.min(...codes) - 0.5, Math.max(...codes) + 0.5];
    }
    if (low > high || (low === 0 && high === 0)) [low, high] = log ? [1, 10] : [0, 1];
    for (const { value } of levels) {
      if (value > high && (log ? value < high * 100 : value < high * 4)) high = value;
      if (log && value < low) low = value;
    }
    if (log) {
      low = yMin ?? 10 ** Math.floor(Math.log10(low));
      high = yMax ?? 10 ** Math.ceil(Math.log10(high * 1.0001));
      return [low, high > low ? high : low * 10];
    }
    if (low > 0 && low === high) [low, high] = [0, 1.5 * high];
    if (low >= 0 && yMin === undefined && low < high * 0.5) low = 0;
    const room = (high - low || Math.abs(high) || 1) * 0.06;
    return [yMin ?? (low === 0 ? 0 : low - room), yMax ?? high + room];
  }

  uplot(width, height, dense) {
    const { unit, xLabel, xUnit, log, stepped, series, axisLabels, bands } = this.options;
    const [from, to] = this.range();
    const axis = { font: FONT, stroke: () => colour("soft"), grid: { stroke: () => colour("rule"), width: 1 }, ticks: { stroke: () => colour("rule"), width: 1, size: 4 }, labelFont: FONT };
    const steps = UPlot.paths.stepped({ align: 1 });
    return {
      width, height, padding: [8, 18, 0, 0], legend: { show: false }, pxAlign: false,
      cursor: { y: false, points: { size: 6 }, drag: { x: true, y: false, setScale: false }, focus: { prox: -1 } },
      scales: {
        x: { time: false, auto: false, range: (_, min, max) => (min === null ? [from, to] : [min, max]) },
        y: { auto: false, distr: log ? 3 : 1, range: () => this.yRange() },
      },
      axes: [
        { ...axis, label: xUnit ? `${xLabel} (${xUnit})` : xLabel, labelSize: xLabel ? 16 : 0, labelGap: 0, size: 24, space: 60, values: (_, splits) => splits.map((v) => (v === null ? "" : short(v))) },
        { ...axis, size: axisLabels ? 20 + 6.5 * Math.max(...Object.values(axisLabels).map((text) => text.length)) : 54, space: 28, label: axisLabels ? undefined : unit && unit !== "1" ? unit : undefined, labelSize: 15, labelGap: 0,
          ...(axisLabels ? { splits: () => Object.keys(axisLabels).map(Number), space: 12 } : {}),
          values: (_, splits) => splits.map((v) => (v === null ? "" : axisLabels ? (axisLabels[v] ?? "") : short(v))) },
      ],
      series: [{}, ...series.map((one, i) => ({
        label: one.label, width: dense ? 1 : 1.5, show: this.on[i], spanGaps: false, dash: one.dash ? DASHES[one.slot % 8] : undefined,
        stroke: () => colour(this.ink(i)), paths: stepped || one.stepped ? steps : undefined,
        fill: one.fill ? () => faint(this.ink(i), 0.18) : undefined,
      }))],
      bands: bands.filter((band) => band.upper !== undefined).map((band) => ({ series: [band.upper + 1, band.lower + 1], fill: () => faint(this.ink(band.upper), 0.18) })),
      hooks: {
        drawClear: [(u) => paintStretches(u, bands.filter((band) => band.from !== undefined))],
        draw: [(u) => paintLevels(u, this.options.levels), (u) => paintMarks(u, this.thinned, this.signs()), () => this.placePlayhead()],
        setSelect: [(u) => this.zoomed(u)],
      },
    };
  }

  ink(i) {
    const one = this.options.series[i];
    return one.colour ?? `series-${one.slot % 8}`;
  }

  signs() {
    return this.options.series.map((one, i) => (one.mark && this.on[i] ? { text: one.mark, ink: this.ink(i) } : null));
  }

  bind() {
    const { over } = this.plot;
    over.addEventListener("mousemove", () => this.point(this.plot.posToVal(this.plot.cursor.left, "x")));
    over.addEventListener("mouseleave", () => this.point(null));
    let downAt = 0;
    over.addEventListener("mousedown", (event) => (downAt = event.clientX));
    over.addEventListener("click", (event) => {
      if (Math.abs(event.clientX - downAt) > 4) return;
      const x = this.plot.posToVal(event.clientX - over.getBoundingClientRect().left, "x");
      for (const fn of this.pickers) fn(x);
    });
    over.addEventListener("dblclick", () => this.setZoom(null));
  }

  point(x) {
    if (x !== null && (Number.isNaN(x) || this.plot.cursor.left < 0)) return;
    for (const chart of groups.get(this.group)) {
      chart.pointed = x;
      if (chart !== this && chart.plot && chart.visible) {
        chart.plot.setCursor(x === null ? { left: -10, top: -10 } : { left: chart.plot.valToPos(x, "x"), top: 1 }, false);
      }
      chart.tell();
      for (const fn of chart.listeners) fn(x);
    }
  }

  zoomed(u) {
    if (u.select.width < 4) return;
    const zoom = [u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")];
    u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.setZoom(zoom);
    this.pointAgain = true;
  }

  /** Show a stretch [from, to] of x in all charts of the group; null: everything. A double click does that too. */
  setZoom(zoom) {
    for (const chart of groups.get(this.group)) {
      chart.zoom = zoom;
      chart.later();
      chart.options.onZoom?.(zoom);
    }
  }

  placePlayhead() {
    if (!this.plot) return;
    const [from, to] = this.range();
    const off = this.resting === null || this.resting < from || this.resting > to;
    if (this.line.hidden !== off) this.line.hidden = off;
    if (!off) this.line.style.setProperty("transform", `translateX(${((this.resting - from) / (to - from)) * (this.plot.bbox.width / devicePixelRatio)}px)`);
  }

  /** Values in the legend: where the pointer is, else at the playhead, else the last. */
  tell(always = false) {
    if (!this.visible && !always) return;
    const [x, ys] = this.data;
    const at = this.pointed ?? this.resting;
    let k = x.length - 1;
    if (at !== null && x.length) {
      k = Math.min(x.length - 1, firstAt(x, at));
      if (k > 0 && (this.options.stepped ? x[k] > at : Math.abs(x[k - 1] - at) < Math.abs(x[k] - at))) k--;
    }
    ys.forEach((y, i) => {
      const text = this.text(k >= 0 && k < y.length ? y[k] : NaN);
      if (this.values[i] && this.values[i].textContent !== text) this.values[i].textContent = text;
    });
  }

  text(v) {
    if (v === null || v === undefined || Number.isNaN(v)) return DASH;
    return this.options.axisLabels?.[v] ?? number(v);
  }

  toggleTable() {
    const open = this.table.hidden;
    this.table.hidden = !open;
    this.tableButton.setAttribute("aria-expanded", String(open));
    if (!open) return this.table.replaceChildren();
    const [x, ys] = this.data;
    this.table.replaceChildren(tableOf(this.options, this.caption(), thin(x, ys, ...this.range(), TABLE_ROWS / 2), x.length, (v) => this.text(v)));
  }
}

/** A number at an axis: short. */
function short(v) {
  return Math.abs(v) >= 1e4 && Math.abs(v) < 1e6 ? `${number(v / 1e3)}k` : number(v);
}
