// Charts over time: uPlot on a canvas, with what a reader needs around it (units, a legend with values, a table, a summary in words).
//
// Charts with the same `sync` share their cursor and their zoom.
import { dodged, inkOf, plotOptions, yRange } from "./chart-options.js";
import { summaryOf, tableOf } from "./chart-words.js";
import { h } from "./dom.js";
import { DASH, number } from "./format.js";
import { queue, seldom, unqueue } from "./drawing.js";
import { firstAt, thin } from "./thin.js";
import UPlot from "./vendor/uplot/uPlot.esm.js";

const TABLE_ROWS = 60;
const DESCRIBE_MS = 2000;

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
 *   nothing: what to say where there is no value in what is shown; axisLabels: {number: text} instead of numbers on y; legend: "toggle" (default) | "values" | "none"; onZoom(ends or null)
 */
export function createChart(parent, options) {
  return new Chart(parent, options);
}

class Chart {
  constructor(parent, options) {
    this.options = { height: 160, legend: "toggle", nothing: "nothing to show here", xLabel: "", series: [], levels: [], bands: [], ...options };
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
      swatch.style.setProperty("background", `var(--${inkOf(one)})`);
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
    if (this.options.dodge) this.thinned = dodged(this.thinned);
    this.empty = x.length > 0 && !this.thinned.slice(1).some((column) => column.some((v) => v !== null));
    const height = this.options.height;
    if (!this.plot) this.plot = new UPlot(plotOptions(this, width, height, dense), this.thinned, this.box), this.plot.over.append(this.line), this.bind();
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

  yRange() {
    return yRange(this.options, this.thinned.slice(1), this.on);
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

  /** Values in the legend: where the pointer is, else at the playhead, else the last. A series that has not come so far, or ended sooner, tells its last at the playhead. */
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
      const mine = this.pointed === null ? Math.min(k, y.length - 1) : k;
      const text = this.text(mine >= 0 && mine < y.length ? y[mine] : NaN);
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
