// A card for each policy, and at the end the breakdown of their scores.
import { h } from "../dom.js";
import { DASH, heading, integer, number, percent, withUnit } from "../format.js";
import { tellState } from "../states.js";

//: What a card tells besides the score: those of these columns that the task has, or else the first of its load.
const TOLD = ["completed", "in_sla", "sla_missed", "rejected", "gpu_used", "goodput_rps", "slo_compliance_rate", "p99_ttft_ms", "queue_depth", "kv_cache_occupancy"];
const MOST_TOLD = 5;

/** Columns of a run that the cards tell: [{c, label, unit}]. */
export function toldColumns(run) {
  const all = run.columns.map((column, c) => ({ ...column, c }));
  const found = TOLD.flatMap((name) => all.filter((one) => one.name === name));
  return (found.length ? found : all.filter((one) => one.group === "load")).slice(0, MOST_TOLD);
}

/** One policy's card. */
export class Card {
  /** @param {object} run; @param {number} i which policy; @param {(i: number, on: boolean) => void} onToggle; @param {(i: number, why: boolean) => void} onLook */
  constructor(run, i, onToggle, onLook) {
    this.run = run;
    this.i = i;
    const { name, slot } = run.policies[i];
    this.badge = h("span", { class: "badge" });
    this.score = h("dd");
    this.scoreLabel = h("dt", null, "Score so far");
    this.values = toldColumns(run).map((column) => ({ column, node: h("dd") }));
    this.more = h("dl", { class: "facts" }, this.values.map(({ column, node }) => [h("dt", null, column.label), node]));
    this.message = h("p", { class: "small bad", hidden: true });
    const eye = h("input", { type: "checkbox", checked: true, "aria-label": `Draw ${name} in the charts`, onchange: () => onToggle(i, eye.checked) });
    this.why = h("button", { type: "button", class: "small", "data-why": String(slot), hidden: true, "aria-label": `Why it crashed: ${name}`, onclick: () => onLook(i, true) }, "Why it crashed");
    this.look = h("button", { type: "button", class: "small", "data-look": String(slot), "aria-label": `Look into ${name}`, onclick: () => onLook(i, false) }, "Look into it");
    this.element = h("article", { class: "card policy", "data-card": String(slot), "aria-label": name },
      h("header", null, h("span", { class: `order slot-${slot % 8}`, "aria-hidden": "true" }, String(slot + 1)), h("h3", null, name), this.badge),
      h("dl", { class: "facts score" }, this.scoreLabel, this.score),
      this.more, this.message, h("div", { class: "row" }, this.look, this.why, h("label", { class: "eye" }, eye, " in the charts")));
    this.renew(run);
  }

  renew(run) {
    this.run = run;
    this.state();
  }

  /** What has become of the policy. */
  state() {
    const one = this.run.policies[this.i];
    this.element.dataset.state = one.state;
    const where = one.state === "crashed" && one.result ? ` at ${this.run.sample_name} ${integer(one.result.last_sample + 1)}` : "";
    tellState(this.badge, one.state, where);
    const { result } = one;
    if (result) {
      this.element.dataset.value = String(result.value);
      this.score.title = `At the end: ${result.value}`;
    }
    this.why.hidden = one.state !== "crashed" || !result;
    const own = one.message && one.message !== this.run.message;
    this.message.hidden = !own;
    this.message.textContent = own ? one.message : "";
    this.look.disabled = one.state === "waiting" || one.state === "failed";
  }

  /** The score and the rest at the playhead; `at(column)` gives a value; `last`: nothing comes after it. */
  tell(score, at, last) {
    const put = (node, text) => node.textContent !== text && (node.textContent = text);
    const { result } = this.run.policies[this.i];
    const graded = result && result.grade !== null && result.grade !== undefined;
    put(this.scoreLabel, !result || !last ? "Score so far" : graded ? `Final score, grade ${percent(result.grade)}` : "Final score");
    put(this.score, number(score));
    for (const { column, node } of this.values) put(node, column.unit === "share" ? percent(at(column.c)) : withUnit(at(column.c), WORDLESS.has(column.unit) ? "" : column.unit));
  }
}

//: Units that the labels say already.
const WORDLESS = new Set(["requests", "value", "blocks"]);

/** Parts of every policy's score, as a table with bars. Empty until one has ended. */
export function breakdown(run) {
  const done = run.policies.filter((one) => one.result);
  if (!done.length) return null;
  const names = [...new Set(done.flatMap((one) => Object.keys(one.result.parts ?? {})))];
  const most = Object.fromEntries(names.map((name) => [name, Math.max(1e-12, ...done.map((one) => Math.abs(one.result.parts[name] ?? 0)))]));
  const cell = (one, name) => {
    const value = one.result.parts?.[name];
    if (value === undefined || value === null) return h("td", { class: "n" }, DASH);
    const bar = h("span", { class: `bar slot-${one.slot % 8}`, "aria-hidden": "true" });
    bar.style.setProperty("width", `${(Math.abs(value) / most[name]) * 100}%`);
    return h("td", { class: "n", title: String(value) }, h("span", { class: "bar-box" }, bar), part(value));
  };
  return h("section", { id: "breakdown" }, h("h2", null, "What the scores are made of"),
    h("div", { class: "table-box", tabindex: "0", role: "region", "aria-label": "Score breakdown" }, h("table", null,
      h("caption", null, "Bars compare the policies within a column. Grade: 0 % is what the random policy reaches on this task, 100 % what a planner does that knows the future."),
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "Policy"), h("th", { scope: "col", class: "n" }, "Score"), h("th", { scope: "col", class: "n" }, "Grade"),
        names.map((name) => h("th", { scope: "col", class: "n" }, heading(name))), h("th", { scope: "col", class: "n" }, "Total reward"), h("th", { scope: "col", class: "n" }, "Decisions"))),
      h("tbody", null, [...done].sort((a, b) => b.result.value - a.result.value).map((one) => h("tr", null,
        h("th", { scope: "row" }, h("span", { class: `order slot-${one.slot % 8}`, "aria-hidden": "true" }, String(one.slot + 1)), " ", one.name, one.result.crashed ? h("span", { class: "bad" }, " (crashed)") : null),
        h("td", { class: "n", title: String(one.result.value), "data-value": String(one.result.value) }, h("strong", null, number(one.result.value, 5))), h("td", { class: "n" }, one.result.grade !== null && one.result.grade !== undefined ? percent(one.result.grade) : DASH),
        names.map((name) => cell(one, name)), h("td", { class: "n" }, number(one.result.total_reward)), h("td", { class: "n" }, integer(one.result.steps))))))));
}

/** A part of a score: all with the same four places, so that they can be compared down a column; what is smaller says so. */
function part(value) {
  if (value === 0 || Math.abs(value) >= 5e-5) return value.toFixed(4).replace("-", "−");
  return value > 0 ? "< 0.0001" : "> −0.0001";
}
