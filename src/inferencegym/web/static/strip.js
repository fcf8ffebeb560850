// What a policy did over time: a row for each action, a mark the darker the more often it was taken in that stretch. One hue, so colour vision does not matter.
import { h } from "./dom.js";
import { colour, queue, seldom, unqueue } from "./drawing.js";
import { DASH, integer, percent, words } from "./format.js";

const ROW = 13;
const LEFT = 118;
const BOTTOM = 18;
const DESCRIBE_MS = 2000;

/**
 * @param {HTMLElement} parent
 * @param {object} options title, codes: {number: name}, slot, xLabel. x is the number of the sample. Its data are columns: the first,
 *   second, ... decision of each sample.
 */
export function createStrip(parent, options) {
  return new Strip(parent, options);
}

class Strip {
  constructor(parent, options) {
    this.options = options;
    this.codes = Object.keys(options.codes).map(Number).sort((a, b) => a - b);
    this.rows = new Map(this.codes.map((code, row) => [code, row]));
    this.data = [];
    this.range = [0, 1];
    this.resting = null;
    this.pickers = new Set();
    this.height = this.codes.length * ROW + BOTTOM;
    this.canvas = h("canvas");
    this.now = h("span", { class: "value" });
    this.line = h("div", { class: "playhead", hidden: true });
    this.box = h("div", { class: "plot", role: "img", "aria-label": `Actions of ${options.title}: none yet` }, this.canvas, this.line);
    this.box.style.setProperty("height", `${this.height}px`);
    this.table = h("div", { class: "table-box", tabindex: "0", role: "region", "aria-label": `Actions of ${options.title}, as a table`, hidden: true });
    this.button = h("button", { type: "button", class: "plain small end", "aria-expanded": "false", "aria-label": `Table of the actions of ${options.title}`, onclick: () => this.toggleTable() }, "table");
    this.element = h("figure", { class: "chart strip", "data-chart": options.title },
      h("figcaption", null, h("span", { class: `order slot-${options.slot % 8}`, "aria-hidden": "true" }, String(options.slot + 1)), h("strong", null, options.title), this.button),
      h("ul", { class: "keys" }, h("li", null, "at the playhead: ", this.now)), this.box, this.table);
    this.box.addEventListener("click", (event) => {
      const { left, width } = this.box.getBoundingClientRect();
      const share = (event.clientX - left - LEFT) / (width - LEFT - 14);
      if (share >= 0 && share <= 1) for (const fn of this.pickers) fn(this.range[0] + share * (this.range[1] - this.range[0]));
    });
    this.describe = seldom(() => this.box.setAttribute("aria-label", this.summary()), DESCRIBE_MS);
    parent.append(this.element);
    queue(this, this.box);
  }

  setData(values) {
    this.data = values;
    this.later();
  }

  setRange(from, to) {
    this.range = [from, to];
    this.later();
  }

  setCursor(x) {
    this.resting = x;
    this.later();
  }

  onPick(fn) {
    this.pickers.add(fn);
  }

  destroy() {
    unqueue(this, this.box);
    this.describe.cancel();
    this.element.remove();
  }

  draw() {
    const { width } = this;
    if (!width) return;
    const ratio = devicePixelRatio;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(this.height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(this.height * ratio);
      this.canvas.style.setProperty("width", `${width}px`);
      this.canvas.style.setProperty("height", `${this.height}px`);
    }
    const ctx = this.canvas.getContext("2d");
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, width, this.height);
    const inner = width - LEFT - 14;
    this.labels(ctx, inner);
    const [from, to] = this.range;
    const cells = Math.max(1, Math.min(Math.floor(inner / 2), Math.round(to - from) + 1));
    const counts = new Uint32Array(cells * this.codes.length);
    const totals = new Uint32Array(cells);
    for (const column of this.data) {
      const stop = Math.min(column.length - 1, Math.floor(to));
      for (let k = Math.max(0, Math.ceil(from)); k <= stop; k++) {
        const row = this.rows.get(column[k]);
        if (row === undefined) continue;
        const cell = Math.min(cells - 1, Math.floor(((k - from) / (to - from + 1)) * cells));
        counts[row * cells + cell]++;
        totals[cell]++;
      }
    }
    ctx.fillStyle = colour(`series-${this.options.slot % 8}`);
    const each = inner / cells;
    for (let row = 0; row < this.codes.length; row++) {
      for (let cell = 0; cell < cells; cell++) {
        const count = counts[row * cells + cell];
        if (!count) continue;
        ctx.globalAlpha = 0.4 + 0.6 * (count / totals[cell]);
        ctx.fillRect(LEFT + cell * each, row * ROW + 2, Math.max(1, each), ROW - 4);
      }
    }
    ctx.globalAlpha = 1;
    this.place(inner);
    this.describe();
  }

  labels(ctx, inner) {
    ctx.font = "11px system-ui, sans-serif";
    ctx.textBaseline = "middle";
    ctx.strokeStyle = colour("rule");
    ctx.fillStyle = colour("soft");
    ctx.textAlign = "right";
    this.codes.forEach((code, row) => {
      ctx.fillText(words(this.options.codes[code]), LEFT - 6, row * ROW + ROW / 2, LEFT - 8);
      ctx.beginPath();
      ctx.moveTo(LEFT, row * ROW + ROW - 0.5);
      ctx.lineTo(LEFT + inner, row * ROW + ROW - 0.5);
      ctx.stroke();
    });
    const [from, to] = this.range;
    const y = this.codes.length * ROW + BOTTOM / 2 + 1;
    ctx.textAlign = "left";
    ctx.fillText(integer(Math.round(from)), LEFT, y);
    ctx.textAlign = "center";
    ctx.fillText(this.options.xLabel, LEFT + inner / 2, y);
    ctx.textAlign = "right";
    ctx.fillText(integer(Math.round(to)), LEFT + inner, y);
  }

  place(inner) {
    const [from, to] = this.range;
    const off = this.resting === null || this.resting < from || this.resting > to;
    this.line.hidden = off;
    if (!off) this.line.style.setProperty("transform", `translateX(${LEFT + ((this.resting - from) / (to - from)) * inner}px)`);
    const taken = this.resting === null ? [] : this.data.map((column) => this.options.codes[column[this.resting]]).filter(Boolean);
    const text = taken.map(words).join(", then ") || DASH;
    if (this.now.textContent !== text) this.now.textContent = text;
  }

  /** [name, how often] of each action that was taken, most often first. */
  counts() {
    const found = new Map();
    for (const column of this.data) for (const code of column) if (this.rows.has(code)) found.set(code, (found.get(code) ?? 0) + 1);
    return [...found].sort((a, b) => b[1] - a[1]).map(([code, count]) => [words(this.options.codes[code]), count]);
  }

  summary() {
    const counts = this.counts();
    const total = counts.reduce((sum, [, count]) => sum + count, 0);
    const most = counts.slice(0, 5).map(([name, count]) => `${name} ${percent(count / total, 0)}`);
    return total ? `Actions of ${this.options.title}, ${integer(total)} so far: ${most.join(", ")}` : `Actions of ${this.options.title}: none yet`;
  }

  toggleTable() {
    const open = this.table.hidden;
    this.table.hidden = !open;
    this.button.setAttribute("aria-expanded", String(open));
    if (!open) return this.table.replaceChildren();
    const counts = this.counts();
    const total = counts.reduce((sum, [, count]) => sum + count, 0);
    this.table.replaceChildren(h("table", null, h("caption", null, `${this.options.title}, up to the playhead`),
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "Action"), h("th", { scope: "col", class: "n" }, "Times"), h("th", { scope: "col", class: "n" }, "Share"))),
      h("tbody", null, counts.map(([name, count]) => h("tr", null, h("td", null, name), h("td", { class: "n" }, integer(count)), h("td", { class: "n" }, percent(count / total)))))));
  }
}
