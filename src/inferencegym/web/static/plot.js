// Plots of what does not move: histograms as outlines and curves with points, on linear or logarithmic axes, as SVG with words and a table
// for who does not see them. Each series has its own x, so two workloads of different length share the axes.
import { fill, h, svg } from "./dom.js";
import { DASH, number } from "./format.js";

//: As in report/palette.py.
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "4 4", "12 4", "1 4", "6 2 1 2"];
const SIDE = { left: 56, right: 22, top: 8, bottom: 38 };

/**
 * @param {HTMLElement} parent
 * @param {object} options title, unit, xLabel, xUnit, logX, logY, yMin, yMax, height (190 px), levels: [{label, value}],
 *   series: [{label, slot, kind: "steps", x: n+1 edges, y: n values} or {label, slot, kind: "points", x: n, y: n}]
 * @returns {{element: HTMLElement, destroy: () => void}}
 */
export function createPlot(parent, options) {
  return new Plot(parent, { height: 190, levels: [], ...options });
}

class Plot {
  constructor(parent, options) {
    this.options = options;
    const { title, unit, series } = options;
    this.values = series.map(() => h("span", { class: "value" }));
    this.at = h("li", { class: "soft" });
    const keys = h("ul", { class: "keys" }, series.map((one, i) => h("li", null, this.sign(one), h("span", null, one.label), this.values[i])), this.at);
    this.table = h("div", { class: "table-box", tabindex: "0", role: "region", "aria-label": `${title}, as a table`, hidden: true });
    this.button = h("button", { type: "button", class: "plain small end", "aria-expanded": "false", "aria-label": `Table of ${title}`, onclick: () => this.toggleTable() }, "table");
    this.box = h("div", { class: "plot", role: "img", "aria-label": this.summary(), onpointermove: (event) => this.point(event), onpointerleave: () => this.tell(null) });
    this.box.style.setProperty("height", `${options.height}px`);
    this.element = h("figure", { class: "chart", "data-chart": title },
      h("figcaption", null, h("span", null, h("strong", null, title), unit ? h("span", { class: "soft" }, ` (${unit})`) : null), this.button),
      keys, this.box, this.table);
    parent.append(this.element);
    this.sized = new ResizeObserver(() => this.draw());
    this.sized.observe(this.box);
  }

  destroy() {
    this.sized.disconnect();
    this.element.remove();
  }

  /** A series' colour and pattern, as it is drawn. */
  sign(one) {
    return svg("svg", { width: 22, height: 10, "aria-hidden": "true" }, svg("line", { x1: 0, x2: 22, y1: 5, y2: 5, ...stroke(one) }), one.kind === "points" ? mark(one, 11, 5) : null);
  }

  draw() {
    const width = this.box.clientWidth;
    if (!width || width === this.width) return;
    this.width = width;
    const { height, logX, logY, yMin, yMax, levels, series, xLabel, xUnit } = this.options;
    const xs = series.flatMap((one) => one.x);
    const ys = [...series.flatMap((one) => one.y), ...levels.map(({ value }) => value)];
    this.x = scale(extent(xs, logX), logX, SIDE.left, width - SIDE.right);
    const [low, high] = extent(ys, logY);
    const y = scale([yMin ?? (logY ? low : Math.min(0, low)), yMax ?? (logY ? high : high + 0.05 * (high - Math.min(0, low)))], logY, height - SIDE.bottom, SIDE.top);
    const word = (text, at, props) => svg("text", { x: at[0], y: at[1], fill: "var(--soft)", "font-size": 12, ...props }, text);
    const bottom = height - SIDE.bottom;
    fill(this.box, svg("svg", { width, height, "aria-hidden": "true" },
      y.ticks(Math.max(2, Math.floor(height / 40))).map((v) => [
        svg("line", { x1: SIDE.left, x2: width - SIDE.right, y1: y.at(v), y2: y.at(v), stroke: "var(--rule)" }),
        word(number(v, 3), [SIDE.left - 6, y.at(v) + 4], { "text-anchor": "end" })]),
      this.x.ticks(Math.max(2, Math.floor(width / 75))).map((v) => [
        svg("line", { x1: this.x.at(v), x2: this.x.at(v), y1: bottom, y2: bottom + 4, stroke: "var(--soft)" }),
        word(number(v, 3), [Math.min(this.x.at(v), width - SIDE.right - 10), bottom + 16], { "text-anchor": "middle" })]),
      svg("line", { x1: SIDE.left, x2: width - SIDE.right, y1: bottom, y2: bottom, stroke: "var(--soft)" }),
      word(xUnit ? `${xLabel} (${xUnit})` : xLabel, [(width + SIDE.left) / 2, height - 5], { "text-anchor": "middle" }),
      this.options.unit ? word(this.options.unit, [12, bottom / 2], { "text-anchor": "middle", transform: `rotate(-90 12 ${bottom / 2})` }) : null,
      levels.map(({ label, value }) => [
        svg("line", { x1: SIDE.left, x2: width - SIDE.right, y1: y.at(value), y2: y.at(value), stroke: "var(--soft)", "stroke-dasharray": "5 4" }),
        word(label, [width - SIDE.right, y.at(value) - 4], { "text-anchor": "end" })]),
      series.map((one) => (one.kind === "steps" ? this.steps(one, y, bottom) : this.points(one, y))),
      this.cursor = svg("line", { y1: SIDE.top, y2: bottom, stroke: "var(--soft)", visibility: "hidden" })));
  }

  steps(one, y, bottom) {
    if (!one.y.length) return null;
    const body = one.y.map((v, k) => `V${y.at(v).toFixed(1)}H${this.x.at(one.x[k + 1]).toFixed(1)}`).join("");
    const first = this.x.at(one.x[0]).toFixed(1);
    return [
      svg("path", { d: `M${first} ${bottom}${body}V${bottom}Z`, fill: `var(--series-${one.slot % 8})`, "fill-opacity": 0.16 }),
      svg("path", { d: `M${first} ${y.at(one.y[0]).toFixed(1)}${body}`, fill: "none", ...stroke(one) })];
  }

  points(one, y) {
    const at = one.x.map((v, k) => [this.x.at(v), y.at(one.y[k])]);
    return [
      svg("polyline", { points: at.map((p) => p.map((v) => v.toFixed(1)).join(",")).join(" "), fill: "none", ...stroke(one) }),
      at.length <= 24 ? at.map((p) => mark(one, ...p)) : null];
  }

  point(event) {
    if (!this.x) return;
    const px = event.clientX - this.box.getBoundingClientRect().left;
    this.tell(px < SIDE.left || px > this.width - SIDE.right ? null : this.x.of(px));
  }

  /** Values in the legend, where the pointer is. */
  tell(x) {
    const { series, xUnit } = this.options;
    this.at.textContent = x === null ? "" : `at ${number(x, 3)}${xUnit ? ` ${xUnit}` : ""}`;
    series.forEach((one, i) => (this.values[i].textContent = x === null ? "" : number(valueAt(one, x, this.options.logX))));
    this.cursor?.setAttribute("visibility", x === null ? "hidden" : "visible");
    if (x !== null && this.cursor) for (const end of ["x1", "x2"]) this.cursor.setAttribute(end, this.x.at(x));
  }

  summary() {
    const { title, unit, xLabel, xUnit, series } = this.options;
    const parts = series.map((one) => {
      if (!one.y.length) return `${one.label}: no values`;
      const most = Math.max(...one.y);
      const k = one.y.indexOf(most);
      const where = one.kind === "steps" ? `from ${number(one.x[k])} to ${number(one.x[k + 1])}` : `at ${number(one.x[k])}`;
      return `${one.label}: ${number(Math.min(...one.y))} to ${number(most)}, highest ${where}`;
    });
    return `${title}${unit ? ` (${unit})` : ""} by ${xLabel}${xUnit ? ` (${xUnit})` : ""}. ${parts.join("; ")}`;
  }

  toggleTable() {
    const open = this.table.hidden;
    this.table.hidden = !open;
    this.button.setAttribute("aria-expanded", String(open));
    if (!open) return this.table.replaceChildren();
    const { title, unit, xLabel, xUnit, series } = this.options;
    const rows = new Map();
    series.forEach((one, i) => one.y.forEach((v, k) => {
      const name = one.kind === "steps" ? `${number(one.x[k])} to ${number(one.x[k + 1])}` : number(one.x[k]);
      if (!rows.has(name)) rows.set(name, { order: one.x[k], cells: series.map(() => DASH) });
      rows.get(name).cells[i] = number(v);
    }));
    const ordered = [...rows].sort((a, b) => a[1].order - b[1].order);
    fill(this.table, h("table", null,
      h("caption", null, unit ? `${title} (${unit})` : title),
      h("thead", null, h("tr", null, [xUnit ? `${xLabel} (${xUnit})` : xLabel, ...series.map((one) => one.label)].map((name) => h("th", { scope: "col", class: "n" }, name)))),
      h("tbody", null, ordered.map(([name, { cells }]) => h("tr", null, h("td", { class: "n" }, name), cells.map((v) => h("td", { class: "n" }, v)))))));
  }
}

function stroke(one) {
  return { stroke: `var(--series-${one.slot % 8})`, "stroke-width": 1.75, "stroke-dasharray": DASHES[one.slot % 8] || null };
}

/** A point: round for even slots, square for odd ones. */
function mark(one, x, y) {
  const colour = { fill: `var(--series-${one.slot % 8})` };
  return one.slot % 2 ? svg("rect", { x: x - 3, y: y - 3, width: 6, height: 6, ...colour }) : svg("circle", { cx: x, cy: y, r: 3.25, ...colour });
}

function valueAt(one, x, log) {
  if (one.kind === "steps") {
    const k = one.x.findIndex((edge, i) => i < one.y.length && edge <= x && x < one.x[i + 1]);
    return k < 0 ? NaN : one.y[k];
  }
  const far = (v) => Math.abs(log ? Math.log(v / x) : v - x);
  let best = -1;
  one.x.forEach((v, k) => (best = best < 0 || far(v) < far(one.x[best]) ? k : best));
  return best < 0 ? NaN : one.y[best];
}

/** Lowest and highest, apart from each other, and above 0 on a logarithmic axis. */
function extent(values, log) {
  const kept = log ? values.filter((v) => v > 0) : values;
  if (!kept.length) return log ? [1, 10] : [0, 1];
  const [low, high] = [Math.min(...kept), Math.max(...kept)];
  if (low < high) return [low, high];
  return log ? [low / 2, high * 2] : [Math.min(0, low), high || 1];
}

function scale([low, high], log, from, to) {
  const go = log ? Math.log : (v) => v;
  const back = log ? Math.exp : (v) => v;
  const share = (v) => (go(v) - go(low)) / (go(high) - go(low) || 1);
  return {
    at: (v) => from + (log && v <= 0 ? 0 : share(v)) * (to - from),
    of: (px) => back(go(low) + ((px - from) / (to - from)) * (go(high) - go(low))),
    ticks: (most) => (log ? logTicks(low, high, most) : ticks(low, high, most)),
  };
}

function ticks(low, high, most) {
  const raw = (high - low) / most;
  const size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((k) => k * size).find((one) => one >= raw);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}

/** Powers of ten, or of these so many apart that they fit; with 2 and 5 between where there is room. */
function logTicks(low, high, most) {
  const between = (k) => k >= low * (1 - 1e-9) && k <= high * (1 + 1e-9);
  const first = Math.floor(Math.log10(low));
  const decades = Array.from({ length: Math.ceil(Math.log10(high)) - first + 1 }, (_, k) => first + k);
  for (const parts of [[1, 2, 5], [1, 3], [1]]) {
    const found = decades.flatMap((k) => parts.map((part) => Number((part * 10 ** k).toPrecision(6)))).filter(between);
    if (found.length <= most || parts.length === 1) return found.filter((_, k) => k % Math.ceil(found.length / most) === 0);
  }
  return [];
}
