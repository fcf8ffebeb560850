// The transport of an episode: a playhead over its decisions, to be dragged, stepped and played, by hand and by keyboard. It moves this viewer only.
import { h } from "../dom.js";
import { duration, integer } from "../format.js";
import { buttons, FAR, keys, labelled, speeds, tellPlay } from "../playing.js";

const SPEEDS = [1, 5, 20, 100, 500, 2000];

export class Transport {
  /** @param {object} options unit, per (decisions of a unit), seconds (of a unit, or null), onMove(decision, playing), onTouch() */
  constructor(options) {
    this.options = options;
    this.at = 0;
    this.total = 0;
    this.frame = 0;
    this.buttons = buttons("decision", {
      id: "play", first: () => this.touch(0), back: () => this.touch(this.at - 1), play: () => (this.frame ? this.stop() : this.start()), forth: () => this.touch(this.at + 1), last: () => this.touch(this.total),
    });
    this.slider = h("input", { id: "decision", type: "range", min: 0, max: 0, step: 1, value: 0, "aria-label": "Decision", oninput: () => this.touch(Number(this.slider.value)) });
    this.speed = h("select", { id: "speed" }, speeds("decision", SPEEDS, 20));
    this.said = h("output", { class: "where figure", for: "decision", id: "position" });
    this.element = h("section", { class: "deck", "aria-label": "Playing" },
      h("div", { class: "row" }, Object.values(this.buttons), labelled("Speed", this.speed), this.said),
      h("div", { class: "track" }, this.slider),
      keys("decision", `${FAR} ${options.unit}s`));
    this.listen = (event) => this.key(event);
    document.addEventListener("keydown", this.listen);
  }

  setTotal(total) {
    this.total = total;
    this.slider.max = String(total);
  }

  set(decision) {
    this.at = decision;
    if (!this.frame) this.exact = decision;
    this.slider.value = String(decision);
    const { unit, per, seconds } = this.options;
    const samples = Math.floor(decision / per);
    const time = seconds ? ` · ${duration(samples * seconds)}` : "";
    this.said.textContent = `decision ${integer(decision)} of ${integer(this.total)} · ${unit} ${integer(samples)}${time}`;
    this.slider.setAttribute("aria-valuetext", this.said.textContent);
    if (!this.frame) this.told(false);
  }

  touch(decision) {
    if (!this.total) return;
    this.stop();
    this.options.onTouch();
    this.options.onMove(Math.max(0, Math.min(this.total, decision)), false);
  }

  start() {
    if (!this.total) return;
    if (this.at >= this.total) this.options.onMove(0, true);
    this.options.onTouch();
    this.exact = this.at;
    this.told(true);
    let before = performance.now();
    const turn = (now) => {
      this.exact = Math.min(this.total, this.exact + ((now - before) / 1000) * Number(this.speed.value));
      before = now;
      const decision = Math.floor(this.exact);
      if (decision !== this.at) this.options.onMove(decision, true);
      if (decision >= this.total) this.stop();
      else if (this.frame) this.frame = requestAnimationFrame(turn);
    };
    this.frame = requestAnimationFrame(turn);
  }

  stop() {
    if (!this.frame) return;
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.told(false);
    this.options.onMove(this.at, false);
  }

  told(playing) {
    tellPlay(this.buttons.play, playing ? "Pause" : this.total && this.at >= this.total ? "Play again" : "Play");
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const on = event.target;
    if (on.closest?.("input:not(#decision), select, textarea, dialog, summary, canvas, .table-box")) return;
    const far = FAR * this.options.per;
    const moves = { ArrowLeft: this.at - (event.shiftKey ? far : 1), ArrowRight: this.at + (event.shiftKey ? far : 1), Home: 0, End: this.total };
    if (event.key === "Home" && !this.total) {
      // Nothing is there yet, but the reader wants the beginning.
      this.options.onTouch();
      this.options.onMove(0, false);
    } else if (event.key === " " && !on.closest?.("button, a")) this.frame ? this.stop() : this.start();
    else if (event.key in moves) this.touch(moves[event.key]);
    else return;
    event.preventDefault();
  }

  destroy() {
    cancelAnimationFrame(this.frame);
    document.removeEventListener("keydown", this.listen);
  }
}
