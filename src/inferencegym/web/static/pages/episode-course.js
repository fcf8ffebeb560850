// The course of an episode in charts, alone or beside another policy on the same scenario: one of the run, or one that is played for the comparison.
import { ApiError, get, post } from "../api.js";
import { createChart } from "../chart.js";
import { fill, h } from "../dom.js";
import { number, words } from "../format.js";
import { follow } from "./arena-data.js";

const SYNC = "episode";
const GROUPS = [["score", "Score"], ["queues", "Queues"], ["memory", "Memory"], ["latency", "Latency"], ["knobs", "Knobs"], ["load", "Load and counts"]];
const OPEN = new Set(["score", "queues", "memory", "latency", "knobs"]);
//: Colour of a policy that is not of the run.
const GUEST = 6;
const OFFERED = ["best-static", "clairvoyant"];

export class Course {
  /** @param {object} options run, policy, ctx, with, signal, onPick(sample), onWith(), onError(error) */
  constructor(parent, options) {
    Object.assign(this, options);
    this.choice = "";
    this.guest = null;
    this.charts = [];
    this.select = h("select", { id: "compare", onchange: () => this.choose(this.select.value) });
    this.said = h("p", { class: "soft small", id: "compared", role: "status" });
    this.groups = h("div");
    parent.append(h("h2", { id: "course-title" }, "Its course"), h("div", { class: "row" }, h("label", { for: "compare" }, "Compare with"), this.select), this.said, this.groups);
    this.options([]);
    this.build();
    this.offers();
  }

  /** What it may be compared with, once the server has told who can play the task. */
  async offers() {
    try {
      const catalogue = await get("catalogue", null, this.signal);
      const task = catalogue.tasks.find((one) => one.name === this.run.spec.task);
      this.options((task?.policies ?? []).filter((one) => OFFERED.includes(one.name) && !this.run.spec.policies.includes(one.name)));
      if (this.with) await this.choose(this.with);
    } catch (error) {
      if (error.name !== "AbortError") this.onError(error);
    }
  }

  options(guests) {
    const of = this.run.policies.map((one, i) => [one.name, i]).filter(([, i]) => i !== this.policy);
    fill(this.select, h("option", { value: "" }, "nobody"),
      of.length ? h("optgroup", { label: "of this run" }, of.map(([name]) => h("option", { value: name }, name))) : null,
      guests.length ? h("optgroup", { label: "played for this" }, guests.map(({ name, quick }) => h("option", { value: name }, quick ? name : `${name} (slow)`))) : null);
    this.select.value = this.choice;
  }

  /** Compare with a policy by name; "" is with nobody. */
  async choose(name) {
    if (![...this.select.options].some((one) => one.value === name)) {
      this.ctx.banner("warn", `'${name}' is none of those that this episode can be compared with.`);
      return;
    }
    this.guest?.control.abort();
    this.guest = null;
    this.choice = name;
    this.select.value = name;
    const index = this.run.policies.findIndex((one) => one.name === name);
    if (name && index < 0) await this.invite(name);
    this.build();
    this.drawn();
    this.chosen();
    this.onWith();
  }

  async invite(name) {
    const control = new AbortController();
    this.signal.addEventListener("abort", () => control.abort(), { once: true });
    const guest = (this.guest = { control, run: null, samples: null });
    try {
      const run = await post("runs", { ...this.run.spec, policies: [name] }, control.signal);
      follow(run, {
        onRun: (fresh, samples) => Object.assign(guest, { run: fresh, samples }), onSamples: () => this.drawn(), onEnded: () => this.chosen(), onState: () => this.chosen(),
        onLost: () => {}, onBack: () => {}, onReplayed: () => {},
      }, control.signal).catch((error) => error.name === "AbortError" || this.onError(error));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.onError(error);
      this.choice = "";
      this.select.value = "";
    }
  }

  /** The other policy: where its samples are, and how it is drawn. */
  get other() {
    if (!this.choice) return null;
    const index = this.run.policies.findIndex((one) => one.name === this.choice);
    if (index >= 0) return { samples: this.samples, index, slot: this.run.policies[index].slot, part: this.run.policies[index], mine: true };
    return this.guest?.samples ? { samples: this.guest.samples, index: 0, slot: GUEST, part: this.guest.run.policies[0], state: this.guest.run.state } : null;
  }

  feed(run, samples) {
    this.run = run;
    this.samples = samples;
    this.drawn();
  }

  build() {
    for (const { chart } of this.charts) chart.destroy();
    this.charts = [];
    this.termChart?.destroy();
    const { run } = this;
    const me = run.policies[this.policy];
    const other = this.choice ? { label: this.choice, slot: run.policies.find((one) => one.name === this.choice)?.slot ?? GUEST } : null;
    const series = () => [{ label: me.name, slot: me.slot }, ...(other ? [{ label: other.label, slot: other.slot, dash: true }] : [])];
    const sections = [];
    for (const [group, title] of GROUPS) {
      const columns = run.columns.map((column, i) => ({ column, i })).filter(({ column }) => column.group === group);
      if (!columns.length) continue;
      const box = h("div", { class: "charts" });
      sections.push(h("details", { open: OPEN.has(group), "data-group": group }, h("summary", null, title), box));
      for (const { column, i } of columns) this.charts.push({ i, chart: this.chart(box, column, series()) });
      if (group === "score") this.termBox = box;
    }
    fill(this.groups, sections);
    this.termChart = null;
    if (this.terms) this.setTerms(this.terms);
    this.setCursor(this.cursor ?? 0);
  }

  chart(box, column, series) {
    const chart = createChart(box, {
      title: column.label, unit: column.unit, xLabel: this.run.sample_name, series, sync: SYNC, stepped: column.steps, log: column.scale === "log",
      axisLabels: column.codes ?? undefined, levels: column.objective ? [{ label: "objective", value: column.objective }] : [], height: 150,
    });
    chart.onPick((x) => this.onPick(x));
    return chart;
  }

  drawn() {
    if (!this.samples) return;
    const { other, samples, policy } = this;
    const count = samples.counts[policy];
    const theirs = other ? other.samples.counts[other.index] : 0;
    const longest = count >= theirs ? samples : other.samples;
    const x = longest.x.subarray(0, Math.max(count, theirs));
    for (const { i, chart } of this.charts) {
      const ys = [samples.data[policy][i].subarray(0, count)];
      if (this.choice) ys.push(other ? other.samples.data[other.index][i].subarray(0, theirs) : new Float32Array(0));
      chart.setData(x, ys);
    }
  }

  /** Say how the two compare. */
  chosen() {
    const mine = this.run.policies[this.policy];
    const { other } = this;
    if (!other) {
      this.said.textContent = this.choice ? `${this.choice} is about to be played…` : "";
      return;
    }
    const theirs = other.part;
    if (mine.result && theirs.result) {
      const gap = mine.result.value - theirs.result.value;
      const parts = Object.keys(mine.result.parts).map((name) => [name, mine.result.parts[name] - (theirs.result.parts[name] ?? 0)]).filter(([, v]) => Math.abs(v) >= 5e-5);
      const signed = (v) => `${v > 0 ? "+" : ""}${number(v, 3)}`;
      this.said.textContent = `${mine.name} ${number(mine.result.value, 5)}, ${theirs.name} ${number(theirs.result.value, 5)}: ${gap === 0 ? "the same" : `${number(Math.abs(gap), 3)} ${gap > 0 ? "better" : "worse"}`}${parts.length ? ` (${parts.map(([name, v]) => `${words(name)} ${signed(v)}`).join(", ")})` : ""}.${theirs.result.crashed ? ` ${theirs.name} crashed.` : ""}`;
    } else {
      this.said.textContent = theirs.message || `${theirs.result ? mine.name : theirs.name} is still being played…`;
    }
  }

  /** The sums of the reward's terms: names, samples (how many have passed), sums. */
  setTerms(terms) {
    this.terms = terms;
    if (!this.termBox) return;
    if (!this.termChart) {
      this.termChart = createChart(this.termBox, { title: "Reward by term, summed", unit: "reward", xLabel: this.run.sample_name, sync: SYNC, height: 150,
        series: terms.names.map((name, slot) => ({ label: words(name), slot, dash: true })) });
      this.termChart.onPick((x) => this.onPick(x));
    }
    this.termChart.setData(Float64Array.from(terms.samples, (one) => one - 1), terms.sums.map((one) => Float32Array.from(one)));
    this.termChart.setCursor(this.cursor ?? 0);
  }

  /** On knobs: how often a command asked for what cannot be. */
  setIllegal(illegal, total) {
    if (!illegal?.size) return;
    this.barred ??= this.groups.parentElement.insertBefore(h("p", { class: "small bad" }), this.groups);
    this.barred.textContent = `${illegal.size} of ${total} commands asked for what this deployment cannot do; those knobs stayed as they were.`;
  }

  setCursor(sample) {
    this.cursor = sample;
    for (const { chart } of this.charts) chart.setCursor(sample);
    this.termChart?.setCursor(sample);
  }

  destroy() {
    this.guest?.control.abort();
    for (const { chart } of this.charts) chart.destroy();
    this.termChart?.destroy();
  }
}
