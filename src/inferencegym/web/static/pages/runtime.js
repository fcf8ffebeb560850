// Runtime: the gateway's live traffic. One stream brings all there is and then a line a second; pausing stops this page, not the gateway.
import { ApiError, lines } from "../api.js";
import { copyText } from "../copy.js";
import { fill, h } from "../dom.js";
import { duration, integer } from "../format.js";
import { Charts } from "./runtime-charts.js";
import { History } from "./runtime-data.js";
import { backends, changes, classes, gpus, knobs, rejections, renew, settings, steering, tiles } from "./runtime-tables.js";

const SPANS = [60, 300, 900];
const WAITS_S = [1, 2, 4, 8, 15];
const STATES = { ready: ["●", "ok"], draining: ["◐", "warn"], starting: ["◐", "warn"] };
//: A line comes every second; without one for so long the connection is taken for lost.
const SILENCE_MS = 6000;

export async function mount(root, ctx) {
  const page = new Page(root, ctx);
  page.connect();
  return () => page.leave();
}

class Page {
  constructor(root, ctx) {
    this.root = root;
    this.ctx = ctx;
    this.history = new History();
    this.charts = null;
    this.boxes = null;
    this.paused = false;
    this.left = false;
    this.tries = 0;
    this.away = [];
    this.shown = {};
    const span = Number(ctx.params.get("span"));
    this.span_s = SPANS.includes(span) ? span : 300;
    fill(root, h("div", { "aria-busy": "true" }, h("h1", null, "Runtime"), h("p", { class: "loading", role: "status" }, "Waiting for the gateway's figures…")));
  }

  // --- the connection -----------------------------------------------------------------------------------------------------

  async connect() {
    if (this.left) return;
    clearTimeout(this.retry);
    // Whoever connects anew gives up the connection before.
    this.abort?.abort();
    const mine = (this.abort = new AbortController());
    this.heard();
    let why = "The server ended the connection.";
    try {
      await lines("runtime/stream", (line) => {
        this.heard();
        if (line.type === "end") why = line.why;
        else this.take(line);
      }, mine.signal);
    } catch (error) {
      if (this.left || this.abort !== mine || error.status === 401) return;
      if (error.status === 403) return this.forbid(error.message);
      if (!(error instanceof ApiError) && error.name !== "AbortError") {
        this.lost(error.message);
        throw error;
      }
      why = error.name === "AbortError" ? "Nothing was heard of the server for some seconds." : error.message;
    } finally {
      if (this.abort === mine) clearTimeout(this.silence);
    }
    if (!this.left && this.abort === mine) this.lost(why);
  }

  heard() {
    clearTimeout(this.silence);
    this.silence = setTimeout(() => this.abort.abort(), SILENCE_MS);
  }

  /** The server is away: what is on the page stays, and says how old it is. */
  lost(why) {
    this.forget();
    this.root.dataset.connection = "lost";
    const wait_s = WAITS_S[Math.min(this.tries++, WAITS_S.length - 1)];
    const now = () => this.connect();
    this.away.push(this.ctx.banner("warn", `${why} What you see is old; the page tries again in ${wait_s} s.`, { label: "Try now", action: now }));
    this.retry = setTimeout(now, wait_s * 1000);
  }

  forget() {
    clearTimeout(this.retry);
    for (const close of this.away.splice(0)) close();
  }

  forbid(message) {
    fill(this.root, h("div", { class: "empty" }, h("h1", null, "Runtime"), h("p", null, `${message}. The runtime's figures are for administrators: use a key with admin = true.`),
      h("button", { type: "button", class: "primary", onclick: () => dispatchEvent(new Event("needs-key")) }, "Use another key")));
  }

  leave() {
    this.left = true;
    this.forget();
    clearTimeout(this.silence);
    this.abort?.abort();
    this.charts?.destroy();
  }

  // --- what comes ---------------------------------------------------------------------------------------------------------

  take(line) {
    if (line.type === "hello") this.begin(line);
    else if (!this.history.add(line)) return this.connect(); // too slow for the stream: everything anew
    if (!this.paused) this.show();
  }

  begin(hello) {
    const what = this.history.begin(hello);
    this.tries = 0;
    this.forget();
    this.root.dataset.connection = "live";
    if (what === "restarted" || what === "other") this.note?.();
    if (what === "restarted") this.note = this.ctx.banner("info", "The server was restarted: its counters and this page's history began again.");
    if (what === "other") this.note = this.ctx.banner("info", `Another worker of the server answers now (number ${hello.worker.number}): these are its figures.`);
    if (what === "first" || what === "restarted") this.build();
  }

  build() {
    this.charts?.destroy();
    this.charts = null;
    const { hello } = this.history;
    const box = (id, title, more = null) => {
      const inside = h("div", { id });
      return [h("section", { "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title` }, title), more, inside), inside];
    };
    const soft = (text) => h("p", { class: "soft small" }, text);
    const parts = {
      classes: box("classes", "Service classes"),
      rejections: box("rejections", "Turned away or failed"),
      steering: box("steering", "Who steers"),
      knobs: box("knobs", "Knobs"),
      settings: box("settings", "Live settings", soft("Changed by PATCH /v1/runtime/config.")),
      changes: box("changes", "History of changes"),
      backends: box("backends", "Backends"),
      gpus: box("gpus", "GPUs"),
    };
    this.boxes = Object.fromEntries(Object.entries(parts).map(([name, [, inside]]) => [name, inside]));
    this.badge = h("span", { class: "badge", id: "state", role: "status" });
    this.since = h("span", { class: "soft small" });
    this.button = h("button", { type: "button", id: "pause", "aria-pressed": String(this.paused), onclick: () => this.pause() }, this.paused ? "Go on" : "Pause");
    this.spans = h("select", { id: "span", "aria-label": "Stretch of time", onchange: (event) => this.choose(Number(event.target.value)) },
      SPANS.map((s) => h("option", { value: s, selected: s === this.span_s }, `last ${s / 60} min`)));
    this.tiles = h("div", { id: "tiles", class: "tiles" });
    this.empty = h("div", { class: "empty", id: "quiet", hidden: true });
    this.graphs = h("div", { class: "charts", id: "charts" });
    fill(this.root,
      h("div", { class: "head" }, h("h1", null, "Runtime"), this.badge, this.since, h("div", { class: "row controls" }, this.spans, this.button)),
      hello.worker && h("p", { class: "note" }, `This server has ${hello.worker.of} workers, and each sees only the requests that came to it. These are the figures of worker ${hello.worker.number} (process ${hello.worker.pid}); /metrics adds up all of them.`),
      this.tiles, this.empty, this.graphs,
      soft(`Rates are of the last second. Percentiles and shares are of the last ${hello.window_s} s, right to ${(hello.bin_error * 100).toFixed(1)} % (the width of the histograms' bins). A dash is no request to measure. Grey stripes mark changes of knobs and settings, numbered as in the history below.`),
      Object.values(parts).map(([section]) => section));
    this.tell();
    this.shown = {};
  }

  tell() {
    const line = `inferencegym load --url ${location.origin} --rate 8 --requests 500 --prompt-tokens 256 --output-tokens 64${this.ctx.about.needs_key ? " --key-env OPENAI_API_KEY" : ""}`;
    const copy = h("button", { type: "button", onclick: async () => {
      copy.textContent = (await copyText(line)) ? "Copied" : "Select and copy it";
      this.ctx.announce(copy.textContent);
    } }, "Copy");
    fill(this.empty, h("h2", null, "No request has come yet"), h("p", null, "Send some, and watch them here. In another terminal:"), h("pre", { tabindex: "0" }, line), copy);
  }

  // --- what is shown ------------------------------------------------------------------------------------------------------

  show() {
    const { history } = this;
    const { now } = history;
    const [icon, ink] = STATES[now.state] ?? ["✕", "bad"];
    const state = `${icon} ${now.state}`;
    if (this.badge.textContent !== state) {
      this.badge.className = `badge ${ink}`;
      this.badge.textContent = state;
    }
    this.since.textContent = `up ${duration(Math.round(now.at - history.hello.started))}, ${integer(now.totals.requests)} requests ended`;
    fill(this.tiles, tiles(history, history.hello.window_s));
    const was = this.empty.hidden;
    this.empty.hidden = !history.quiet;
    this.graphs.hidden = history.quiet;
    if (!history.quiet && (was === false || !this.charts || this.charts.stale)) this.redraw();
    this.charts?.draw();
    this.tables();
  }

  redraw() {
    this.charts?.destroy();
    this.charts = new Charts(this.graphs, this.history, this.span_s);
  }

  tables() {
    const { history, boxes } = this;
    renew(boxes.classes, classes(history));
    renew(boxes.rejections, rejections(history));
    renew(boxes.steering, h("p", null, steering(history)));
    renew(boxes.knobs, knobs(history));
    renew(boxes.changes, changes(history));
    renew(boxes.backends, backends(history));
    renew(boxes.gpus, gpus(history));
    if (this.shown.settings !== history.settings) {
      this.shown.settings = history.settings;
      renew(boxes.settings, settings(history, document.getElementById("all-settings")?.open ?? false));
    }
  }

  pause() {
    this.paused = !this.paused;
    this.button.setAttribute("aria-pressed", String(this.paused));
    this.button.textContent = this.paused ? "Go on" : "Pause";
    this.root.dataset.paused = String(this.paused);
    this.ctx.announce(this.paused ? "This page stands still; the gateway goes on." : "This page follows the gateway again.");
    if (!this.paused) this.show();
  }

  choose(span_s) {
    this.span_s = span_s;
    const params = new URLSearchParams(location.search);
    params.set("span", span_s);
    this.ctx.setParams(params);
    if (this.charts) {
      this.charts.span_s = span_s;
      this.charts.draw();
    }
  }
}
