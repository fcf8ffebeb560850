// Why an episode ended as it did: the server's sentences, the moments that they speak of, and the last ticks before a crash.
import { h } from "../dom.js";
import { integer } from "../format.js";

/** @param {object} told as .../why gives it; onGo(decision): the reader wants to see a moment */
export function why(told, run, onGo) {
  const moments = new Map(told.moments.map(([decision, text]) => [text, decision]));
  return [
    h("h2", { id: "why-title" }, told.crashed ? "Why did it crash?" : "What cost it most?"),
    h("ul", { class: "reasons" }, told.words.map((text) => {
      const decision = moments.get(text);
      return h("li", null, text, decision === undefined ? null : [" ", h("button", { type: "button", class: "plain", "data-go": decision, onclick: () => onGo(decision) }, `Go there`, h("span", { class: "sr" }, ` (decision ${decision})`))]);
    })),
    told.samples.length ? last(told, run, onGo) : null,
  ];
}

function last(told, run, onGo) {
  const head = [run.sample_name, "used", "free", "wanted next", "active", "loading", "idle blocks", "waiting", "done"];
  return h("details", { open: false }, h("summary", null, `The last ${integer(told.samples.length - 1)} ${run.sample_name}s before it`),
    h("div", { class: "table-box last-ticks", tabindex: "0", role: "region", "aria-label": `The last ${run.sample_name}s` }, h("table", null,
      h("caption", null, "Each line is how things stood before the decisions in its last cell. Wanted next: blocks that active requests need when the tick passes."),
      h("thead", null, h("tr", null, head.map((name, i) => h("th", { scope: "col", class: i < head.length - 1 ? "n" : null }, name)))),
      h("tbody", null, [...told.samples].reverse().map((one, i) => line(one, i === 0, onGo))))));
}

function line(one, crash, onGo) {
  const short = one.wanted > one.free;
  const done = crash ? h("strong", { class: "bad" }, "crash") : one.actions.map((name, i) => (one.legal[i] ? name : `${name} (not possible)`)).join(", ");
  const cell = (value, ink) => h("td", { class: `n${ink ? " bad" : ""}` }, integer(value));
  return h("tr", null, h("td", { class: "n" }, h("button", { type: "button", class: "plain", "aria-label": `Go to decision ${one.decision}`, onclick: () => onGo(one.decision) }, integer(one.sample))),
    cell(one.gpu_used), cell(one.free, short), cell(one.wanted, short), cell(one.active), cell(one.loading), cell(one.idle_blocks), cell(one.waiting), h("td", null, done));
}
