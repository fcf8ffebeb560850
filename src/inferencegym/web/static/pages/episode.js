// The Episode page: one policy of a run, decision by decision. What stands where at any moment, what was done, what it earned, and why it ended so.
import { ApiError, get, post } from "../api.js";
import { fill, h } from "../dom.js";
import { integer } from "../format.js";
import { Lost } from "../lost.js";
import { ActionStream } from "./actionstream.js";
import { follow } from "./arena-data.js";
import { paramsOf, specFrom } from "./arena-form.js";
import { Course } from "./episode-course.js";
import { Log, Rows } from "./episode-log.js";
import { classes, counts, decision as decisionPanel, put, queues } from "./episode-panels.js";
import { Head } from "./episode-head.js";
import { Transport } from "./episode-transport.js";
import { why as whyPanel } from "./episode-why.js";
import { KvMap } from "./kvmap.js";

const COURSE_MS = 1200;
const ADDRESS_MS = 300;
const LOG_MS = 250;
const RETRY_MS = 4000;
const REPLAYED = "The server was restarted; the run is played again, with the same numbers.";
const GPU_COLOURS = ["kv-active-vip", "kv-active-free", "kv-loading-vip", "kv-loading-free", "kv-idle-vip", "kv-idle-free", "kv-leaving"];
const CPU_COLOURS = ["kv-idle-vip", "kv-idle-free", "warn", "kv-leaving"];

export async function mount(root, ctx) {
  const spec = specFrom(ctx.params);
  if (!spec) {
    fill(root, h("div", { class: "empty" }, h("h1", null, "Which episode?"),
      h("p", null, "An episode is one policy of a run. Start a run in the Arena and choose “look into it”, or begin with this one."),
      h("p", { class: "row", style: { "justify-content": "center" } },
        h("a", { class: "button primary", "data-page": "episode", href: "episode?task=hard&policies=sieve,lru&split=validation&seed=0&policy=0" }, "Sieve on hard"),
        h("a", { class: "button", "data-page": "episode", href: "episode?task=hard&policies=fixed:8,lru&split=validation&seed=0&policy=0" }, "A crash"),
        h("a", { class: "button", "data-page": "arena", href: "arena" }, "Go to the Arena"))));
    return () => {};
  }
  const control = new AbortController();
  const run = await post("runs", spec, control.signal);
  const page = new Episode(root, ctx, run, control.signal);
  page.begin();
  return () => {
    control.abort();
    page.destroy();
  };
}

class Episode {
  constructor(root, ctx, run, signal) {
    Object.assign(this, { root, ctx, run, signal, codes: [], knobs: {}, total: 0, decision: 0, hoped: null, live: true, lost: new Lost(ctx) });
    const asked = Number(ctx.params.get("policy") ?? 0);
    this.policy = Number.isInteger(asked) && run.policies[asked] ? asked : 0;
    if (asked !== this.policy) ctx.banner("warn", `This run has no policy number ${ctx.params.get("policy")}; here is the first.`);
    const from = ctx.params.get("decision");
    if (from !== null && /^\d+$/.test(from)) {
      this.hoped = Number(from);
      this.live = false;
    }
    this.illegal = new Set();
    this.paging = run.decisions_per_sample > 1 || run.sample_name === "tick";
    this.build();
  }

  get mine() {
    return this.run.policies[this.policy];
  }

  get base() {
    return `runs/${this.run.id}/policies/${this.policy}`;
  }

  build() {
    const { run, mine } = this;
    this.ctx.title(`${mine.name} on ${run.spec.task}`);
    this.head = new Head(run, this.policy, (policy) => this.ctx.navigate("episode", this.params({ policy })));
    this.transport = new Transport({
      unit: run.sample_name, per: run.decisions_per_sample, seconds: run.sample_s,
      onMove: (decision, playing) => this.go(decision, playing), onTouch: () => this.take(),
    });
    this.moment = h("div", { class: "moment" });
    this.next = h("section", { class: "card", id: "next", "aria-labelledby": "next-title" }, h("h2", { id: "next-title" }, "Decision"), h("p", { class: "soft" }, "Nothing has been played yet."));
    this.whyBox = h("section", { class: "card", id: "why", "aria-labelledby": "why-title", tabindex: "-1" }, h("h2", { id: "why-title" }, "Why did it end so?"), h("p", { class: "soft" }, "The episode is still being played."));
    this.actionsBox = h("section", { id: "actions" });
    this.courseBox = h("section", { "aria-labelledby": "course-title" });
    this.logBox = h("section", { "aria-labelledby": "log-title" }, h("h2", { id: "log-title" }, "Every decision"));
    this.stateBox();
    fill(this.root, this.head.element, this.transport.element, this.classBox,
      h("div", { class: "episode-top" }, this.moment, h("div", { class: "episode-side" }, this.paging ? this.next : null, this.whyBox)),
      this.actionsBox, this.courseBox, this.logBox);
    this.course = new Course(this.courseBox, { run, policy: this.policy, ctx: this.ctx, with: this.ctx.params.get("with"), signal: this.signal,
      onPick: (sample) => this.pick(Math.min(this.total, (Math.round(sample) + 1) * run.decisions_per_sample)), onWith: () => this.addressed(), onError: (error) => this.fail(error) });
    this.rows = new Rows(this.base);
    this.tellState();
  }

  stateBox() {
    if (this.paging) {
      this.gpu = new KvMap(this.moment, { id: "kv-map", title: "KV blocks on the GPU", height: 260 });
      this.queueBox = h("div", { id: "queues" });
      this.moment.append(this.queueBox);
      this.cpu = new KvMap(this.moment, { id: "cpu-map", title: "KV blocks on the CPU", height: 70, hint: false });
    } else {
      this.classBox = h("div");
      this.classBox.classList.add("episode-classes");
    }
    this.countBox = h("div", { id: "counts" });
    this.moment.append(h("h2", null, this.paging ? "So far" : "At the end of the last window"), this.countBox);
    // Without a map there is room for the decision below.
    if (!this.paging) this.moment.append(this.next);
  }

  begin() {
    this.following = true;
    follow(this.run, {
      onRun: (run, samples) => {
        this.run = run;
        this.course.feed(run, samples);
      },
      onSamples: () => {
        this.course.drawn();
        this.look();
      },
      onEnded: (policy) => {
        this.course.drawn();
        this.course.chosen();
        if (policy !== this.policy) return;
        this.look(true);
      },
      onState: (state, place) => {
        this.place = place ?? 0;
        this.tellState();
      },
      onLost: (seconds, now) => this.lost.tell(seconds, now),
      onBack: () => this.back(),
      onReplayed: () => {
        this.lost.close();
        this.ctx.banner("info", REPLAYED);
      },
    }, this.signal).catch((error) => this.fail(error)).finally(() => {
      this.following = false;
      if (!this.signal.aborted) this.look(true);
    });
    this.look(true);
  }

  /** Ask how far the episode is, at most so often. */
  look(now = false) {
    this.tellState();
    if (this.looking) {
      this.lookAgain ||= now;
      return;
    }
    this.looking = setTimeout(async () => {
      try {
        await this.grow();
      } catch (error) {
        this.fail(error);
      }
      this.looking = null;
      if (this.lookAgain && !this.signal.aborted) {
        this.lookAgain = false;
        this.look(true);
      }
    }, now ? 0 : COURSE_MS);
  }

  async grow() {
    const first = this.codes.length || this.knobs.batch_cap?.length || 0;
    const told = await get(`${this.base}/course`, { first }, this.signal);
    if (told.total < this.total) return;
    if (told.codes) for (const code of told.codes) this.codes.push(code);
    for (const [name, values] of Object.entries(told.knobs ?? {})) (this.knobs[name] ??= []).push(...values);
    for (const d of told.illegal) this.illegal.add(d);
    this.total = told.total;
    if (told.actions && !this.strip) {
      this.actionsBox.append(h("h2", null, "What was done"));
      this.strip = new ActionStream(this.actionsBox, told.actions, (d) => this.pick(d));
    }
    this.log ??= new Log(this.logBox, { base: this.base, sampleName: this.run.sample_name, actions: told.actions, signal: this.signal, onPick: (d) => this.pick(d), onError: (error) => this.fail(error) });
    this.strip?.set(this.codes, this.illegal, told.over ? this.total : this.run.samples * this.run.decisions_per_sample);
    this.course.setTerms(told.terms);
    this.course.setIllegal(told.codes ? null : this.illegal, this.total);
    this.transport.setTotal(this.total);
    this.log.grown(this.total);
    this.tellState();
    if (this.live) this.go(this.total);
    else this.go(this.hoped ?? this.decision);
    if (this.total >= this.hoped || told.over) this.hoped = null;
    if (told.over) this.explain();
  }

  /** The reader has the playhead in hand. */
  take() {
    this.live = false;
    this.hoped = null;
  }

  pick(decision) {
    this.take();
    this.transport.stop();
    this.go(decision);
  }

  /** Move the playhead. */
  go(decision, playing = false) {
    const at = Math.max(0, Math.min(this.total || decision, decision));
    this.decision = at;
    this.transport.set(at);
    this.strip?.setCursor(at);
    this.course.setCursor(Math.max(0, Math.ceil(at / this.run.decisions_per_sample) - 1));
    if (!playing) this.log?.setCursor(at);
    else this.logLater ??= setTimeout(() => {
      this.logLater = null;
      this.log?.setCursor(this.decision);
    }, LOG_MS);
    if (!this.live) this.addressed();
    this.wanted = at;
    this.fetch();
  }

  /** Get the state at the playhead; while one is on its way, only the latest wish counts. */
  async fetch() {
    if (this.fetching || this.total === 0) return;
    this.fetching = true;
    try {
      while (this.wanted !== null && !this.signal.aborted) {
        const at = this.wanted;
        const [state] = await Promise.all([get(`${this.base}/state`, { decision: at }, this.signal), this.rows.want(Math.min(at, this.total - 1), this.signal)]);
        if (this.wanted === at) this.wanted = null;
        this.show(state);
      }
    } catch (error) {
      this.wanted = null;
      this.fail(error);
    } finally {
      this.fetching = false;
    }
  }

  show(state) {
    this.root.dataset.decision = state.decision;
    if (state.pool) {
      const { pool } = state;
      this.gpu.set(pool.kinds.map((kind, i) => ({ ...kind, colour: GPU_COLOURS[i] })), pool.owners, pool.gpu_blocks);
      this.cpu.set(pool.cpu_kinds.map((name, i) => ({ name, what: "on the CPU", colour: CPU_COLOURS[i] })), pool.cpu_owners, pool.cpu_blocks);
      fill(this.queueBox, queues(pool.queues));
    } else {
      fill(this.classBox, classes(state.machine));
    }
    fill(this.countBox, counts(state.facts, Boolean(state.pool)));
    const row = state.decision < this.total ? this.rows.at(state.decision) : null;
    const title = row ? `Decision ${integer(state.decision)}` : "The end";
    put(this.next, h("h2", { id: "next-title" }, title), decisionPanel(row, this.rows.told, state.machine?.knobs ?? null));
  }

  async explain() {
    if (this.explained) return;
    this.explained = true;
    try {
      const told = await get(`${this.base}/why`, null, this.signal);
      fill(this.whyBox, whyPanel(told, this.run, (d) => this.pick(d)));
      if (this.ctx.params.get("part") === "why") this.whyBox.focus();
    } catch (error) {
      this.explained = false;
      this.fail(error);
    }
  }

  tellState() {
    const { mine } = this;
    const word = this.head.tell(this.run, mine, this.total, this.place);
    if (word !== this.word && this.word) this.ctx.announce(`${mine.name}: ${word.toLowerCase()}`);
    this.word = word;
  }

  params(more = {}) {
    const params = paramsOf(this.run.spec);
    params.set("policy", String(this.policy));
    if (!this.live) params.set("decision", String(this.hoped ?? this.decision));
    if (this.course?.choice) params.set("with", this.course.choice);
    for (const [name, value] of Object.entries(more)) params.set(name, value);
    return params;
  }

  addressed() {
    this.addressLater ??= setTimeout(() => {
      this.addressLater = null;
      this.ctx.setParams(this.params());
    }, ADDRESS_MS);
  }

  back() {
    this.lost.close();
    this.closeFail?.();
    this.look(true);
    this.wanted = this.decision;
    this.fetch();
  }

  /** What goes wrong is told once. While the run's stream goes on, a lost connection and a forgotten run are its to mend; afterwards they are ours. */
  fail(error) {
    if (this.signal.aborted || error.name === "AbortError") return;
    if (!(error instanceof ApiError)) throw error;
    // Played again after a restart: what was asked for will be there soon.
    const early = error.field === "decision" && !this.mine.result;
    if (early || this.following && (error.status === 0 || error.status === 404)) return;
    if (error.status === 404) this.again();
    else if (error.status === 0) {
      clearTimeout(this.retry);
      const now = () => {
        clearTimeout(this.retry);
        this.back();
      };
      this.lost.tell(RETRY_MS / 1000, now);
      this.retry = setTimeout(now, RETRY_MS);
    } else {
      this.closeFail?.();
      this.closeFail = this.ctx.banner("error", error.message);
    }
  }

  /** The server does not know the run any more, though it had ended: ask for it anew. */
  async again() {
    if (this.following) return;
    this.following = true;
    try {
      this.run = await post("runs", this.run.spec, this.signal);
    } catch (error) {
      this.following = false;
      this.fail(error);
      return;
    }
    this.lost.close();
    this.ctx.banner("info", REPLAYED);
    this.begin();
  }

  destroy() {
    for (const timer of [this.looking, this.logLater, this.addressLater, this.retry]) clearTimeout(timer);
    this.transport.destroy();
    this.course.destroy();
    this.gpu?.destroy();
    this.cpu?.destroy();
    this.strip?.destroy();
  }
}
