// The playhead: which sample of a run the page shows. It is the viewer's own; the run itself goes on or is long done.
import { h } from "../dom.js";
import { duration, integer } from "../format.js";
import { buttons, FAR, keys, labelled, speeds, tellPlay } from "../playing.js";

const SPEEDS = [1, 5, 20, 100, 500, 1000];
const SPANS = [50, 200, 1000, 5000];

export class Transport {
  /** @param {object} run; @param {() => number} front how many samples are there; @param {() => void} onMove the playhead, speed or span has changed */
  constructor(run, front, onMove) {
    this.run = run;
    this.front = front;
    this.onMove = onMove;
    this.at = -1;
    this.exact = 0;
    this.playing = true;
    this.live = true;
    this.last = null;
    this.build();
    this.keyed = (event) => this.key(event);
    document.addEventListener("keydown", this.keyed);
    this.frame = requestAnimationFrame((now) => this.tick(now));
  }

  build() {
    const { sample_name: unit, samples } = this.run;
    this.buttons = buttons(unit, {
      id: "pause", first: () => this.seek(0), back: () => this.step(-1), play: () => this.toggle(), forth: () => this.step(1), last: () => this.seek(this.front() - 1),
    });
    this.speed = h("select", { id: "speed", onchange: () => this.setSpeed(this.speed.value) }, h("option", { value: "live", selected: true }, "live, as computed"), speeds(unit, SPEEDS));
    this.span = h("select", { id: "span", onchange: () => this.onMove() }, h("option", { value: "0" }, "the whole run"),
      SPANS.filter((one) => one < samples).map((one) => h("option", { value: String(one) }, `${integer(one)} ${unit}s`)));
    this.playhead = h("input", { id: "playhead", type: "range", min: "0", max: String(Math.max(0, samples - 1)), step: "1", value: "0", "aria-label": `Playhead, ${unit}`, oninput: () => this.seek(Number(this.playhead.value)) });
    this.computed = h("div", { class: "computed", "aria-hidden": "true" });
    this.where = h("output", { class: "where figure", for: "playhead" });
    this.element = h("section", { class: "deck", "aria-label": "Playing" },
      h("div", { class: "row" }, Object.values(this.buttons), labelled("Speed", this.speed), labelled("Charts show", this.span), this.where),
      h("div", { class: "track" }, this.computed, this.playhead),
      keys(unit, integer(FAR), "; click a chart to go there, drag to look closer, double-click to see all again."));
    this.show();
  }

  /** Ends of the x axis that the reader wants to see. */
  range() {
    const span = Number(this.span.value);
    if (!span) return [0, Math.max(1, this.run.samples - 1)];
    const to = Math.max(span - 1, this.at);
    return [to - span + 1, to];
  }

  /** The run begins anew (the server was restarted): the playhead keeps its place as soon as that is computed. */
  renew(run) {
    this.run = run;
    this.show();
  }

  get atEnd() {
    return this.ended?.() && this.at >= this.front() - 1;
  }

  toggle() {
    if (this.playing && !this.atEnd) this.playing = false;
    else {
      if (this.atEnd) {
        this.move(0);
        if (this.live) this.pace(20);
        this.live = false;
      }
      this.playing = true;
      this.live = this.speed.value === "live";
    }
    this.last = null;
    this.show();
  }

  setSpeed(value) {
    this.live = value === "live";
    this.playing = true;
    this.last = null;
    this.show();
  }

  /** A speed that takes about 20 seconds over the whole run. */
  pace(whole) {
    const wanted = this.run.samples / whole;
    this.speed.value = String(SPEEDS.reduce((best, one) => (Math.abs(Math.log(one / wanted)) < Math.abs(Math.log(best / wanted)) ? one : best)));
  }

  step(by) {
    this.playing = false;
    this.move(this.at + by);
  }

  seek(to) {
    this.playing = false;
    this.move(to);
  }

  move(to) {
    this.at = Math.max(0, Math.min(Math.round(to), this.front() - 1));
    this.exact = this.at;
    this.show();
    this.onMove();
  }

  key(event) {
    const { target } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || target.closest("dialog")) return;
    if (target !== this.playhead && target.closest("input, select, textarea, [tabindex='0'], summary, a")) return;
    const leap = event.shiftKey ? FAR : 1;
    if (event.key === " ") {
      if (target.closest("button")) return;
      this.toggle();
    } else if (event.key === "ArrowRight") this.step(leap);
    else if (event.key === "ArrowLeft") this.step(-leap);
    else if (event.key === "Home") this.seek(0);
    else if (event.key === "End") this.seek(this.front() - 1);
    else return;
    event.preventDefault();
  }

  tick(now) {
    this.frame = requestAnimationFrame((later) => this.tick(later));
    const front = this.front();
    if (!this.playing || front === 0) return;
    const before = this.at;
    if (this.live) this.at = front - 1;
    else {
      if (this.last === null) this.exact = Math.max(0, this.at);
      else this.exact = Math.min(front - 1, this.exact + ((now - this.last) / 1000) * Number(this.speed.value));
      this.at = Math.floor(this.exact);
    }
    this.last = now;
    if (this.atEnd) this.playing = false;
    if (this.at !== before || !this.playing) {
      this.show();
      this.onMove();
    }
  }

  show() {
    const { samples, sample_s: each, sample_name: unit } = this.run;
    const front = this.front();
    const { first, back, play, forth, last } = this.buttons;
    tellPlay(play, this.playing && !this.atEnd ? "Pause" : this.atEnd && front ? "Play again" : "Play");
    play.disabled = front === 0 && Boolean(this.ended?.());
    first.disabled = back.disabled = this.at <= 0;
    forth.disabled = last.disabled = this.at >= front - 1;
    this.playhead.value = String(Math.max(0, this.at));
    const where = this.at < 0 ? (this.ended?.() ? "nothing was played" : `waiting for the first ${unit}`) : `${unit} ${integer(this.at)} of ${integer(samples - 1)}${each ? `, ${duration(this.at * each)}` : ""}`;
    this.where.textContent = where;
    this.playhead.setAttribute("aria-valuetext", where);
    this.computed.style.setProperty("width", `${samples > 1 ? (100 * Math.max(0, front - 1)) / (samples - 1) : 100}%`);
  }

  destroy() {
    cancelAnimationFrame(this.frame);
    document.removeEventListener("keydown", this.keyed);
  }
}
