// The stream of actions as a strip: a lane for each kind of action, a mark for each decision. Many decisions to a pixel make a bar as high as their share.
import { h } from "../dom.js";
import { colour, whenever } from "../drawing.js";
import { integer } from "../format.js";

const LANE = 20;
const LEFT = 92;
const BOTTOM = 20;
//: Lane of each action's number: admit, evict, swap, preempt, reject, collect garbage, nothing.
const LANES = [
  { name: "admit", has: (name) => name.startsWith("admit") },
  { name: "evict", has: (name) => name.startsWith("evict") },
  { name: "swap out", has: (name) => name.startsWith("swap") },
  { name: "preempt", has: (name) => name.startsWith("shred") || name.startsWith("preempt") },
  { name: "reject", has: (name) => name.startsWith("reject") },
  { name: "collect", has: (name) => name.startsWith("collect") },
  { name: "nothing", has: (name) => name === "nothing" },
];
const IMPOSSIBLE = LANES.length;

export class ActionStream {
  /** @param {(decision: number) => void} onPick where the reader clicks */
  constructor(parent, actions, onPick) {
    this.codes = [];
    this.bad = new Set();
    this.playhead = 0;
    this.view = null;
    this.lane = actions.map(({ name }) => LANES.findIndex((lane) => lane.has(name)));
    this.vip = actions.map(({ name }) => name.endsWith("vip"));
    this.canvas = h("canvas", { class: "strip", role: "img", "aria-label": "Actions: no data yet" });
    this.said = h("span", { class: "soft small" });
    const button = (label, words, fn) => h("button", { type: "button", "aria-label": words, title: words, onclick: fn }, label);
    const swatch = (name) => {
      const node = h("span", { class: "swatch" });
      node.style.setProperty("background", `var(--${name})`);
      return node;
    };
    this.element = h("figure", { class: "action-stream" },
      h("figcaption", null, h("strong", null, "Action stream"), " ", this.said),
      h("div", { class: "row small" },
        h("span", null, swatch("tier-vip"), " VIP, from above"), h("span", null, swatch("tier-free"), " free, from below"), h("span", null, swatch("soft"), " neither"),
        h("span", { class: "zoom" }, button("−", "Zoom out of the action stream", () => this.zoom(2)), button("+", "Zoom into the action stream at the playhead", () => this.zoom(0.5)), button("all", "Show the whole action stream", () => this.whole()))),
      this.canvas);
    this.canvas.addEventListener("click", (event) => {
      const box = this.canvas.getBoundingClientRect();
      const [from, to] = this.range();
      const at = from + ((event.clientX - box.left - LEFT) / Math.max(1, box.width - LEFT)) * (to - from);
      if (event.clientX - box.left >= LEFT) onPick(Math.max(0, Math.min(this.codes.length, Math.floor(at))));
    });
    this.unwatch = whenever(this.element, () => this.draw());
    parent.append(this.element);
  }

  /** All actions so far, and the decisions whose action was not possible. */
  set(codes, illegal, most) {
    this.codes = codes;
    this.bad = illegal instanceof Set ? illegal : new Set(illegal);
    this.most = most;
    const counts = LANES.map(() => 0);
    for (const code of codes) counts[this.lane[code]] += 1;
    const told = LANES.map((lane, i) => [lane.name, counts[i]]).filter(([, count]) => count);
    const words = told.map(([name, count]) => `${name} ${integer(count)}`).join(", ");
    const wrong = this.bad.size ? `; ${integer(this.bad.size)} were not possible and did nothing` : "; all were possible";
    this.canvas.setAttribute("aria-label", `Actions of ${integer(codes.length)} decisions: ${words}${wrong}`);
    this.words = `${integer(codes.length)} decisions${wrong}`;
    this.draw();
  }

  setCursor(decision) {
    this.playhead = decision;
    if (this.view && (decision < this.view[0] || decision > this.view[1])) this.centre(this.view[1] - this.view[0]);
    this.draw();
  }

  range() {
    return this.view ?? [0, Math.max(this.most ?? 0, this.codes.length, 1)];
  }

  zoom(factor) {
    const [from, to] = this.range();
    this.centre((to - from) * factor);
    this.draw();
  }

  centre(span) {
    const all = Math.max(this.most ?? 0, this.codes.length, 1);
    if (span >= all) {
      this.view = null;
      return;
    }
    const width = Math.max(20, Math.round(span));
    const from = Math.max(0, Math.min(all - width, Math.round(this.playhead - width / 2)));
    this.view = [from, from + width];
  }

  whole() {
    this.view = null;
    this.draw();
  }

  draw() {
    if (this.asked) return;
    this.asked = requestAnimationFrame(() => {
      this.asked = 0;
      this.paint();
    });
  }

  paint() {
    if (!this.element.isConnected) return;
    const lanes = LANES.length + 1;
    const width = Math.max(200, this.element.clientWidth);
    const height = lanes * LANE + BOTTOM;
    const ratio = window.devicePixelRatio || 1;
    const { canvas } = this;
    const pixels = [Math.round(width * ratio), Math.round(height * ratio)];
    if (canvas.width !== pixels[0] || canvas.height !== pixels[1]) [canvas.width, canvas.height] = pixels;
    canvas.style.setProperty("height", `${height}px`);
    const g = canvas.getContext("2d");
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.clearRect(0, 0, width, height);
    g.font = "12px system-ui, sans-serif";
    g.textBaseline = "middle";
    for (let i = 0; i < lanes; i++) {
      g.fillStyle = colour(i % 2 ? "paper" : "mark");
      g.fillRect(LEFT, i * LANE, width - LEFT, LANE);
      g.fillStyle = colour(i === IMPOSSIBLE && this.bad.size ? "bad" : "soft");
      g.textAlign = "right";
      g.fillText(i === IMPOSSIBLE ? "not possible" : LANES[i].name, LEFT - 6, i * LANE + LANE / 2);
    }
    const [from, to] = this.range();
    const wide = width - LEFT;
    const each = wide / (to - from);
    if (each >= 1) this.single(g, from, to, each);
    else this.binned(g, from, to, wide);
    const x = LEFT + (this.playhead - from) * each;
    if (x >= LEFT && x <= width) {
      g.fillStyle = colour("ink");
      g.fillRect(x - 0.75, 0, 1.5, lanes * LANE);
    }
    g.fillStyle = colour("soft");
    const at = lanes * LANE + BOTTOM / 2;
    for (const share of width > 500 ? [0, 0.25, 0.5, 0.75, 1] : [0, 0.5, 1]) {
      g.textAlign = share === 0 ? "left" : share === 1 ? "right" : "center";
      g.fillText(integer(Math.round(from + share * (to - from))), LEFT + share * wide, at);
    }
    g.textAlign = "right";
    g.fillText("decision", LEFT - 6, at);
    this.said.textContent = `${this.words ?? ""}${this.view ? ` · showing ${integer(from)} to ${integer(to)}` : ""}`;
  }

  inkOf(code) {
    const name = this.lane[code] >= 5 ? "soft" : this.vip[code] ? "tier-vip" : "tier-free";
    return colour(name);
  }

  single(g, from, to, each) {
    const last = Math.min(to, this.codes.length);
    for (let d = from; d < last; d++) {
      const code = this.codes[d];
      const x = LEFT + (d - from) * each;
      g.fillStyle = this.inkOf(code);
      const half = this.lane[code] >= 5 ? 1 : 0.5;
      const top = this.lane[code] * LANE + 2 + (half < 1 && !this.vip[code] ? (LANE - 4) / 2 : 0);
      g.fillRect(x, top, Math.max(1, each - (each > 3 ? 1 : 0)), (LANE - 4) * half);
      if (this.bad.has(d)) {
        g.fillStyle = colour("bad");
        g.fillRect(x, IMPOSSIBLE * LANE + 3, Math.max(1, each - (each > 3 ? 1 : 0)), LANE - 6);
      }
    }
  }

  binned(g, from, to, wide) {
    const columns = Math.floor(wide);
    const per = (to - from) / columns;
    for (let c = 0; c < columns; c++) {
      const first = Math.floor(from + c * per);
      const last = Math.min(this.codes.length, Math.floor(from + (c + 1) * per));
      if (last <= first) continue;
      const counts = new Float64Array((LANES.length + 1) * 2);
      for (let d = first; d < last; d++) {
        const code = this.codes[d];
        counts[this.lane[code] * 2 + (this.vip[code] ? 1 : 0)] += 1;
        if (this.bad.has(d)) counts[IMPOSSIBLE * 2] += 1;
      }
      for (let lane = 0; lane <= IMPOSSIBLE; lane++) {
        for (const vip of [0, 1]) {
          const share = counts[lane * 2 + vip] / (last - first);
          if (!share) continue;
          const high = Math.max(1.5, share * (LANE - 4));
          g.fillStyle = lane === IMPOSSIBLE ? colour("bad") : lane >= 5 ? colour("soft") : colour(vip ? "tier-vip" : "tier-free");
          // VIPs hang from above, all others stand: the tier can be told without colour.
          g.fillRect(LEFT + c, vip ? lane * LANE + 2 : lane * LANE + LANE - 2 - high, 1, high);
        }
      }
    }
  }

  destroy() {
    cancelAnimationFrame(this.asked);
    this.unwatch();
    this.element.remove();
  }
}
