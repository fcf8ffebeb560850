// A card for each policy, and at the end the breakdown of their scores.
import { fill, h } from "../dom.js";
import { DASH, integer, number, percent, withUnit } from "../format.js";

const STATES = {
  waiting: ["…", "WAITING", "soft"], running: ["▶", "RUNNING", "accent"], completed: ["✓", "COMPLETED", "ok"], crashed: ["✕", "CRASHED", "bad"], failed: ["!", "FAILED", "bad"],
};
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
  /** @param {object} run; @param {number} i which policy; @param {(i: number, on: boolean) => void} onToggle; @param {(i: number) => void} onLook */
  constructor(run, i, onToggle, onLook) {
    this.run = run;
    this.i = i;
    const { name, slot } = run.policies[i];
    this.badge = h("span", { class: "badge" });
    this.score = h("dd");
    this.grade = h("p", { class: "grade small" });
    this.values = toldColumns(run).map((column) => ({ column, node: h("dd") }));
    this.more = h("dl", { class: "facts" }, this.values.map(({ column, node }) => [h("dt", null, column.label), node]));
    this.message = h("p", { class: "small bad", hidden: true });
    this.eye = h("button", { type: "button", class: "plain small", "aria-pressed": "true", "aria-label": `${name} in the charts`, onclick: () => this.toggle(onToggle) }, "in the charts");
    this.look = h("button", { type: "button", class: "small", "data-look": String(slot), "aria-label": `Look into ${name}`, onclick: () => onLook(i) }, "Look into it");
    this.element = h("article", { class: "card policy", "data-card": String(slot), "aria-label": name },
      h("header", null, h("span", { class: `order slot-${slot % 8}`, "aria-hidden": "true" }, String(slot + 1)), h("h3", null, name), this.badge),
      h("dl", { class: "facts score" }, h("dt", null, "Score so far"), this.score),
      this.grade, this.more, this.message, h("div", { class: "row" }, this.look, this.eye));
    this.renew(run);
  }

  renew(run) {
    this.run = run;
    this.state();
  }

  toggle(onToggle) {
    const on = this.eye.getAttribute("aria-pressed") !== "true";
    this.eye.setAttribute("aria-pressed", String(on));
    this.eye.textContent = on ? "in the charts" : "not in the charts";
    onToggle(this.i, on);
  }

  /** What has become of the policy. */
  state() {
    const one = this.run.policies[this.i];
    const [icon, word, ink] = STATES[one.state] ?? STATES.waiting;
    this.element.dataset.state = one.state;
    this.badge.className = `badge ${ink}`;
    const where = one.state === "crashed" && one.result ? ` at ${this.run.sample_name} ${integer(one.result.last_sample)}` : "";
    fill(this.badge, h("span", { "aria-hidden": "true" }, icon), word + where);
    const { result } = one;
    this.grade.hidden = !result;
    if (result) {
      this.element.dataset.value = String(result.value);
      fill(this.grade, h("span", { title: String(result.value) }, "Final score ", h("strong", { class: "figure" }, number(result.value))), result.grade === null || result.grade === undefined
        ? ", not graded" : [", grade ", h("strong", { class: "figure" }, percent(result.grade))]);
    }
    this.message.hidden = !one.message;
    this.message.textContent = one.message ?? "";
    this.look.disabled = one.state === "waiting" || one.state === "failed";
  }

  /** The score and the rest at the playhead; `at(column)` gives a value. */
  tell(score, at) {
    const put = (node, text) => node.textContent !== text && (node.textContent = text);
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
    return h("td", { class: "n" }, h("span", { class: "bar-box" }, bar), number(value));
  };
  return h("section", { id: "breakdown" }, h("h2", null, "What the scores are made of"),
    h("div", { class: "table-box", tabindex: "0", role: "region", "aria-label": "Score breakdown" }, h("table", null,
      h("caption", null, "Bars compare the policies within a column. Grade: 0 % is what the random policy reaches on this task, 100 % what a planner does that knows the future."),
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "Policy"), h("th", { scope: "col", class: "n" }, "Score"), h("th", { scope: "col", class: "n" }, "Grade"),
        names.map((name) => h("th", { scope: "col", class: "n" }, plain(name))), h("th", { scope: "col", class: "n" }, "Total reward"), h("th", { scope: "col", class: "n" }, "Decisions"))),
      h("tbody", null, [...done].sort((a, b) => b.result.value - a.result.value).map((one) => h("tr", null,
        h("th", { scope: "row" }, h("span", { class: `order slot-${one.slot % 8}`, "aria-hidden": "true" }, String(one.slot + 1)), " ", one.name, one.result.crashed ? h("span", { class: "bad" }, " (crashed)") : null),
        h("td", { class: "n", title: String(one.result.value), "data-value": String(one.result.value) }, h("strong", null, number(one.result.value, 5))), h("td", { class: "n" }, one.result.grade !== null && one.result.grade !== undefined ? percent(one.result.grade) : DASH),
        names.map((name) => cell(one, name)), h("td", { class: "n" }, number(one.result.total_reward)), h("td", { class: "n" }, integer(one.result.steps))))))));
}

/** A name of the code in words. */
export function plain(name) {
  return name.replaceAll("_", " ").replace(/^./, (letter) => letter.toUpperCase());
}
