// The Arena: up to six policies on one task, side by side on one axis of time. The address in the bar always says what is shown.
import { ApiError, download, get, post } from "../api.js";
import { copyText } from "../copy.js";
import { fill, h } from "../dom.js";
import { integer } from "../format.js";
import { Lost } from "../lost.js";
import { breakdown, Card } from "./arena-cards.js";
import { Charts } from "./arena-charts.js";
import { follow } from "./arena-data.js";
import { examples, Form, paramsOf, specFrom } from "./arena-form.js";
import { Transport } from "./arena-transport.js";

/** Show the page in `root`. Gives a function that ends it. */
export async function mount(root, ctx) {
  const catalogue = await get("catalogue");
  const page = new Arena(root, ctx, catalogue);
  page.begin();
  return () => page.close();
}

class Arena {
  constructor(root, ctx, catalogue) {
    this.ctx = ctx;
    this.catalogue = catalogue;
    this.lost = new Lost(ctx);
    this.form = new Form(catalogue, (spec) => this.start(spec, true));
    this.summary = h("span");
    this.setup = h("details", { class: "card setup", open: true, id: "setup" }, h("summary", null, h("h2", null, "Set up"), this.summary), this.form.element);
    this.news_ = h("div", { class: "row news" });
    this.intro = h("div", { class: "intro" }, h("p", { class: "soft" }, "Choose a task and up to six policies. They meet the same requests at the same moments, and you watch them side by side."),
      h("div", { class: "row", role: "group", "aria-labelledby": "examples" }, h("span", { class: "label", id: "examples" }, "Begin with"),
        examples(catalogue).map(({ label, spec }, i) => h("button", {
          type: "button", "data-example": String(i), onclick: () => {
            this.form.show(spec);
            this.start(spec, true);
          },
        }, label))));
    this.stage = h("div", { class: "stage" });
    fill(root, h("div", { class: "row head" }, h("h1", null, "Arena"), this.news_), this.intro, this.setup, this.stage);
  }

  begin() {
    const spec = specFrom(this.ctx.params);
    if (!spec) return this.empty();
    const unknown = this.form.show(spec);
    if (unknown) {
      this.empty();
      this.ctx.banner("error", `This link cannot be played here: ${unknown}`);
      return;
    }
    if (!Number.isInteger(spec.seed)) {
      this.empty();
      this.form.complain({ field: "seed", message: `The link's seed, ${spec.seed}, is no whole number.` });
      return;
    }
    this.start(spec);
  }

  /** Nothing is playing: what one may do comes first. */
  empty() {
    this.intro.hidden = false;
    this.stage.replaceChildren();
  }

  /** Ask the server for a run and show it. `byHand`: the reader has pressed something that will be gone. */
  async start(spec, byHand = false) {
    this.leave();
    this.byHand = byHand;
    const aborter = new AbortController();
    this.aborter = aborter;
    this.form.complain(null);
    this.form.start.disabled = true;
    this.intro.hidden = true;
    fill(this.stage, h("p", { class: "loading", role: "status" }, "Asking the server for this run…"));
    try {
      const run = await post("runs", spec, aborter.signal);
      if (aborter.signal.aborted) return;
      this.ctx.setParams(paramsOf(run.spec ?? spec));
      await follow(run, this.told(aborter.signal), aborter.signal);
    } catch (error) {
      if (aborter.signal.aborted) return;
      this.leave();
      this.refused(error, spec);
    } finally {
      if (this.aborter === aborter || this.aborter === null) this.form.start.disabled = !this.form.chosenTask.available;
    }
  }

  refused(error, spec) {
    if (!(error instanceof ApiError)) throw error;
    this.setup.open = true;
    if (error.status === 400 || error.status === 422) {
      this.empty();
      this.form.complain(error);
      return;
    }
    fill(this.stage, h("div", { class: "empty" }, h("h2", null, "The run could not be started"), h("p", null, error.message),
      h("button", { type: "button", class: "primary", onclick: () => this.start(spec) }, "Try again")));
  }

  /** What to do with the news of the run. */
  told(signal) {
    return {
      onRun: (run, samples) => !signal.aborted && this.shown(run, samples),
      onSamples: (i, first) => {
        this.fresh = true;
        if (!first) return;
        this.cards[i].state();
        this.status();
      },
      onEnded: (i) => {
        this.cards[i].state();
        this.finished();
        const { name, state, result } = this.run.policies[i];
        this.ctx.announce(result ? `${name}: ${state}, score ${result.value.toFixed(3)}` : `${name}: ${state}`);
      },
      onState: (state, place, message) => this.news(state, place, message),
      onLost: (seconds, now) => this.lost.tell(seconds, now),
      onBack: () => {
        this.lost.close();
        this.ctx.announce("Connected again");
      },
      onReplayed: () => {
        this.lost.close();
        this.closeReplayed?.();
        this.closeReplayed = this.ctx.banner("info", "The server was restarted; the run is played again.");
      },
    };
  }

  /** Build everything around a run, or take over a second playing of the same. */
  shown(run, samples) {
    this.samples = samples;
    this.form.start.disabled = false;
    if (this.run && this.run.id === run.id) {
      this.run = run;
      this.transport.renew(run);
      this.cards.forEach((card) => card.renew(run));
      this.status();
      return;
    }
    this.parts_?.forEach((one) => one.destroy());
    this.run = run;
    const { spec } = run;
    this.setup.open = false;
    const overrides = this.form.told(spec.overrides ?? {});
    fill(this.summary, [spec.task, spec.split, `seed ${spec.seed}`, `${run.policies.length} ${run.policies.length === 1 ? "policy" : "policies"}`, ...overrides].join(" · "));
    this.ctx.title(`${spec.task}: ${run.policies.map((one) => one.name).join(", ")}`);
    this.score = run.columns.findIndex((one) => one.name === "score_so_far");
    if (this.score < 0) this.score = run.columns.findIndex((one) => one.group === "score");
    this.charts = new Charts(run, (sample) => this.transport.seek(sample));
    this.cards = run.policies.map((_, i) => new Card(run, i, (which, on) => this.charts.setPolicyVisible(which, on), (which, why) => this.look(which, why)));
    this.transport = new Transport(run, () => this.samples.front, () => this.draw());
    this.transport.ended = () => this.run.state === "done" || this.run.state === "failed";
    this.parts_ = [this.charts, this.transport];
    this.again = h("button", { type: "button", id: "again", hidden: true, onclick: () => this.start(spec) }, "Play it again");
    this.line = h("p", { class: "status", role: "status", id: "run-status" });
    this.scores = h("div");
    this.exports = ["json", "parquet", "html"].map((kind) => h("button", { type: "button", "data-export": kind, disabled: true, title: "When the run has ended", onclick: () => this.keep(kind) }, { json: "JSON", parquet: "Parquet", html: "HTML" }[kind]));
    fill(this.news_, this.line, this.again,
      h("div", { class: "row keep" }, h("button", { type: "button", id: "copy-link", onclick: () => this.copy(location.href, "The link is copied. It restores this run.") }, "Copy link"),
        h("div", { class: "row", role: "group", "aria-labelledby": "export-label" }, h("span", { class: "label", id: "export-label" }, "Export"), this.exports)));
    fill(this.stage, this.transport.element, h("div", { class: run.policies.length > 4 ? "cards many" : "cards" }, this.cards.map((card) => card.element)),
      this.charts.first, this.scores, this.charts.element, this.command());
    this.pump = requestAnimationFrame(() => this.pumped());
    this.status();
    this.finished();
    if (!this.byHand) return;
    scrollTo(0, 0);
    this.transport.buttons.play.focus({ preventScroll: true });
  }

  /** Once a frame at most: new samples move what is drawn, if the playhead follows them. */
  pumped() {
    this.pump = requestAnimationFrame(() => this.pumped());
    if (!this.fresh) return;
    this.fresh = false;
    this.transport.show();
    if (this.transport.at < 0 && this.samples.front > 0 && !this.transport.playing) this.transport.move(0);
    this.draw();
  }

  draw() {
    if (!this.samples || !this.transport) return;
    const { at } = this.transport;
    this.charts.show(this.samples, at, this.transport.range());
    this.cards.forEach((card, i) => {
      const last = this.samples.counts[i] - 1;
      const sample = Math.min(at, last);
      card.tell(this.samples.at(i, this.score, sample), (column) => this.samples.at(i, column, sample), sample === last);
    });
  }

  news(state, place, message) {
    if (state) this.run.state = state;
    if (place !== null && place !== undefined) this.run.place = place;
    else if (state) this.run.place = null;
    if (message) this.run.message = message;
    this.status();
    if (state === "done" || state === "failed") this.finished();
  }

  status() {
    const { state, place, message } = this.run;
    const words = {
      waiting: place > 0 ? `Waiting in line: place ${integer(place)}. The server plays a few runs at a time.` : "Waiting for a place on the server.",
      running: this.samples.front ? "The server is playing this run." : "The run begins; the server loads what it needs.",
      done: "The run has ended; everything is here.",
      failed: `The run failed: ${message || "the server did not say why"}`,
    }[state] ?? state;
    if (this.line.textContent !== words) this.line.textContent = words;
    this.line.dataset.state = state;
    this.line.classList.toggle("bad", state === "failed");
    this.again.hidden = state !== "failed";
  }

  finished() {
    const done = this.run.state === "done";
    for (const button of this.exports) button.disabled = !done;
    this.cards.forEach((card) => card.state());
    const found = breakdown(this.run);
    if (found) fill(this.scores, found);
    this.fresh = true;
  }

  command() {
    const { command } = this.run;
    const inner = command
      ? [h("p", null, "The same numbers, to the last digit, on the command line:"), h("div", { class: "row" }, h("pre", { id: "command", tabindex: "0" }, command),
        h("button", { type: "button", "aria-label": "Copy the command", onclick: () => this.copy(command, "The command is copied.") }, "Copy"))]
      : [h("p", null, "A run with overrides has no line for inferencegym evaluate; its JSON export holds all that it takes to play it again.")];
    return h("section", { class: "again" }, h("h2", null, "Play it elsewhere"), inner);
  }

  /** Into the episode of a policy, at the same moment; `why`: at its end, where it says why it crashed. */
  look(i, why = false) {
    const decisions = this.run.decisions_per_sample ?? 1;
    const params = paramsOf(this.run.spec);
    const at = Math.max(0, Math.min(this.transport.at, this.samples.counts[i] - 1)) * decisions;
    params.set("policy", String(i));
    params.set("decision", String(why ? this.run.policies[i].result.steps : at));
    if (why) params.set("part", "why");
    this.ctx.navigate("episode", params);
  }

  async keep(kind) {
    const { id, spec } = this.run;
    try {
      await download(`runs/${id}/export.${kind}`, `arena-${spec.task}-${spec.split}-${spec.seed}.${kind}`);
    } catch (error) {
      const gone = error.status === 404;
      this.ctx.banner("error", gone ? "The server no longer has this run." : error.message, gone ? { label: "Play it again", action: (close) => (close(), this.start(spec)) } : { label: "Try again", action: (close) => (close(), this.keep(kind)) });
    }
  }

  async copy(text, told) {
    if (!(await copyText(text))) {
      this.ctx.banner("warn", `Your browser does not let a page copy. Copy it by hand: ${text}`);
      return;
    }
    const close = this.ctx.banner("info", told);
    setTimeout(close, 4000);
  }

  /** End the run on this page, nowhere else. */
  leave() {
    this.aborter?.abort();
    this.aborter = null;
    cancelAnimationFrame(this.pump);
    this.parts_?.forEach((one) => one.destroy());
    this.parts_ = null;
    this.lost.close();
    this.closeReplayed?.();
    Object.assign(this, { closeReplayed: null, run: null, samples: null, transport: null, cards: [], again: null, fresh: false });
    this.stage.replaceChildren();
    this.news_.replaceChildren();
  }

  close() {
    this.leave();
  }
}

