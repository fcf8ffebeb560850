// The KV map: every block of a pool as a cell, runs of one owner side by side. Cells are grouped by kind; the machine counts blocks and does not place them.
import { fill, h } from "../dom.js";
import { colour, whenever } from "../drawing.js";
import { integer, percent } from "../format.js";

const LEAST_CELL = 3;
const MOST_CELL = 14;

/** A map of one pool, with its legend and a readout of the owner under the pointer or the arrow keys. */
export class KvMap {
  /**
   * @param {HTMLElement} parent
   * @param {{id: string, title: string, height: number, hint?: boolean}} options `height`: most pixels of the map; `hint`: say how to read it
   */
  constructor(parent, options) {
    this.options = options;
    this.kinds = [];
    this.owners = [];
    this.blocks = 0;
    this.picked = -1;
    this.title = h("figcaption");
    this.canvas = h("canvas", { id: options.id, class: "kv-canvas", role: "img", tabindex: "0", "aria-label": `${options.title}: no data yet` });
    this.readout = h("p", { class: "kv-readout small", "aria-live": "polite" });
    this.legend = h("ul", { class: "kv-legend" });
    const placing = options.hint === false ? null : h("p", { class: "kv-readout small soft" }, "Blocks stand grouped by the request that owns them, neighbours in two shades. The machine counts blocks and places none, so where a block stands says nothing.");
    this.element = h("figure", { class: "kv-map" }, this.title, this.canvas, this.readout, this.legend, placing);
    this.canvas.addEventListener("pointermove", (event) => this.pick(this.ownerAt(event)));
    this.canvas.addEventListener("pointerleave", () => this.pick(-1));
    this.canvas.addEventListener("click", (event) => this.pick(this.ownerAt(event)));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("blur", () => this.pick(-1));
    this.unwatch = whenever(this.element, () => this.draw());
    parent.append(this.element);
    this.rest();
  }

  /** kinds: [{name, what, colour}] ; owners: [[kind, blocks, request]]; blocks: size of the pool. Owners may want more than there is. */
  set(kinds, owners, blocks) {
    const kept = this.picked >= 0 && document.activeElement === this.canvas ? this.owners[this.picked]?.[2] : undefined;
    Object.assign(this, { kinds, owners, blocks });
    this.picked = kept === undefined ? -1 : owners.findIndex((owner) => owner[2] === kept);
    this.sums = kinds.map(() => 0);
    this.counts = kinds.map(() => 0);
    for (const [kind, size] of owners) {
      this.sums[kind] += size;
      this.counts[kind] += 1;
    }
    this.used = this.sums.reduce((a, b) => a + b, 0);
    this.tell();
    this.draw();
  }

  tell() {
    const { title } = this.options;
    const over = this.used - this.blocks;
    const said = over > 0
      ? `${integer(this.used)} blocks wanted, there are ${integer(this.blocks)}: ${integer(over)} too many`
      : `${integer(this.used)} of ${integer(this.blocks)} blocks in use (${percent(this.used / this.blocks, 1)})`;
    fill(this.title, h("strong", null, title), " ", h("span", { class: over > 0 ? "bad" : "soft" }, said));
    const free = Math.max(0, -over);
    const rows = this.kinds.map((kind, i) => ({ ...kind, said: this.counts[i] ? `${integer(this.sums[i])} in ${integer(this.counts[i])}` : "0" }));
    rows.push({ name: "free", colour: "kv-unused", what: "no one's", said: integer(free) });
    fill(this.legend, rows.map((row) => {
      const swatch = h("span", { class: "swatch" });
      swatch.style.setProperty("background", `var(--${row.colour})`);
      return h("li", { title: row.what }, swatch, h("span", null, row.name), h("span", { class: "figure" }, row.said));
    }));
    this.canvas.setAttribute("aria-label", `${title}: ${said}; ${rows.map((row) => `${row.name} ${row.said}`).join(", ")}. Arrow keys go from owner to owner.`);
    this.pick(this.picked);
  }

  rest() {
    this.readout.textContent = this.options.hint === false ? "" : "Point at the map, or go through it with the arrow keys, to see whose blocks these are.";
  }

  layout() {
    const width = Math.max(120, this.canvas.parentElement.clientWidth);
    let cell = Math.floor(Math.sqrt((width * this.options.height) / Math.max(1, this.blocks)));
    cell = Math.max(LEAST_CELL, Math.min(MOST_CELL, cell));
    const columns = Math.floor(width / cell);
    const most = columns * Math.floor(this.options.height / cell);
    const per = Math.max(1, Math.ceil(this.blocks / most));
    const rows = Math.max(1, Math.ceil(this.blocks / per / columns));
    return { width: columns * cell, height: rows * cell, cell, columns, per };
  }

  draw() {
    if (!this.blocks || !this.element.isConnected) return;
    const { width, height, cell, columns, per } = (this.laid = this.layout());
    const ratio = window.devicePixelRatio || 1;
    const { canvas } = this;
    const pixels = [Math.round(width * ratio), Math.round(height * ratio)];
    if (canvas.width !== pixels[0] || canvas.height !== pixels[1]) [canvas.width, canvas.height] = pixels;
    canvas.style.setProperty("width", `${width}px`);
    canvas.style.setProperty("height", `${height}px`);
    const g = canvas.getContext("2d");
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.globalAlpha = 1;
    g.clearRect(0, 0, width, height);
    this.run(g, 0, this.blocks / per, cell, columns, colour("kv-unused"));
    const gap = cell >= 6 ? 1 : 0;
    let at = 0;
    this.owners.forEach(([kind, size], i) => {
      const end = Math.min(at + size, this.blocks);
      if (end > at) {
        g.globalAlpha = i % 2 ? 0.74 : 1;
        this.run(g, at / per, end / per, cell, columns, colour(this.kinds[kind].colour));
        if (i === this.picked) {
          g.globalAlpha = 1;
          this.run(g, at / per, end / per, cell, columns, colour("ink"), true);
        }
      }
      at = Math.min(at + size, this.blocks);
    });
    g.globalAlpha = 1;
    if (gap) {
      g.strokeStyle = colour("paper");
      g.lineWidth = 1;
      g.beginPath();
      for (let x = cell; x < width; x += cell) g.rect(x - 0.5, 0, 0, height);
      for (let y = cell; y < height; y += cell) g.rect(0, y - 0.5, width, 0);
      g.stroke();
    }
  }

  /** Cells from `first` to before `last` (fractions are parts of a cell), row by row. */
  run(g, first, last, cell, columns, ink, hatched = false) {
    g.fillStyle = ink;
    let at = first;
    while (at < last - 1e-9) {
      const row = Math.floor(at / columns + 1e-9);
      const end = Math.min(last, (row + 1) * columns);
      const x = (at - row * columns) * cell;
      if (hatched) g.fillRect(x, row * cell + Math.max(1, cell / 2 - 1), (end - at) * cell, Math.max(1, cell / 3));
      else g.fillRect(x, row * cell, (end - at) * cell, cell);
      at = end;
    }
  }

  ownerAt(event) {
    if (!this.laid) return -1;
    const { cell, columns, per } = this.laid;
    const box = this.canvas.getBoundingClientRect();
    const block = (Math.floor((event.clientY - box.top) / cell) * columns + Math.floor((event.clientX - box.left) / cell)) * per;
    let at = 0;
    for (let i = 0; i < this.owners.length; i++) {
      at += this.owners[i][1];
      if (block < at) return i;
    }
    return -1;
  }

  key(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const end = { Home: 0, End: this.owners.length - 1 }[event.key];
    if (step === undefined && end === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    if (!this.owners.length) return;
    this.pick(end ?? (this.picked < 0 ? 0 : (this.picked + step + this.owners.length) % this.owners.length));
  }

  pick(i) {
    const changed = i !== this.picked;
    this.picked = i;
    if (i < 0 || !this.owners[i]) {
      if (changed || !this.readout.textContent) this.rest();
    } else {
      const [kind, size, request] = this.owners[i];
      const { name, what } = this.kinds[kind];
      const who = request < 0 ? "a copy over the link" : `request ${request}`;
      this.readout.textContent = `${who[0].toUpperCase()}${who.slice(1)}: ${name}, ${integer(size)} ${size === 1 ? "block" : "blocks"} (${what})`;
    }
    if (changed) this.draw();
  }

  destroy() {
    this.unwatch();
    this.element.remove();
  }
}
