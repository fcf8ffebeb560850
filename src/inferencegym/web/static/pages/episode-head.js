// The head of the Episode page: whose episode it is, how it stands, and the ways to its neighbours.
import { h } from "../dom.js";
import { duration, integer, number, percent, words } from "../format.js";
import { tellState } from "../states.js";
import { paramsOf } from "./arena-form.js";

export class Head {
  /** @param {object} run; @param {number} policy which; @param {(policy: string) => void} onPolicy the reader wants another */
  constructor(run, policy, onPolicy) {
    const { spec } = run;
    const { name, slot } = run.policies[policy];
    this.badge = h("span", { class: "badge", id: "state" });
    this.standing = h("p", { id: "standing" });
    const choose = h("select", { id: "policy", onchange: (event) => onPolicy(event.target.value) }, run.policies.map((one, i) => h("option", { value: i, selected: i === policy }, one.name)));
    const changed = Object.entries(spec.overrides).map(([key, value]) => `${words(key)} ${typeof value === "number" ? number(value) : value}`).join(", ");
    this.element = h("header", null,
      h("div", { class: "row" }, h("h1", null, h("span", { class: `swatch slot-${slot % 8}` }), ` ${name} on ${spec.task}`), this.badge,
        h("div", { class: "row ways" }, run.policies.length > 1 && [h("label", { for: "policy" }, "Policy"), choose], h("a", { id: "to-arena", class: "button", "data-page": "arena", href: `arena?${paramsOf(spec)}` }, "Back to the Arena"))),
      h("div", { class: "row" }, this.standing, h("p", { class: "soft" }, `${spec.split} split, seed ${spec.seed}`, changed ? `, with ${changed}` : "", ".")));
  }

  /** How it stands: `mine` is the policy's part of the run, `total` the decisions that are here, `place` in the server's line. Gives the state in a word. */
  tell(run, mine, total, place) {
    const { result } = mine;
    const all = run.samples * run.decisions_per_sample;
    const length = run.sample_s ? ` (${duration(run.samples * run.sample_s)})` : "";
    const text = result
      ? `Score ${number(result.value, 5)}${result.graded ? `, grade ${percent(result.grade)}` : ""}; ${integer(result.steps)} decisions${result.crashed ? ` of ${integer(all)}: it crashed` : ""}.`
      : mine.message || (!total && place && `Waiting in line, place ${place}: the server plays others first.`) || `${integer(total)} of ${integer(all)} decisions${length} so far.`;
    if (this.standing.textContent !== text) this.standing.textContent = text;
    return tellState(this.badge, result || mine.state === "failed" ? mine.state : total ? "running" : "waiting");
  }
}
