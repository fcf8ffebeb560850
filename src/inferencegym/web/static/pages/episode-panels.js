// The panels of the Episode page that show one moment: queues, counts, a deployment's knobs and classes, and the decision that comes next.
import { fill, h, svg } from "../dom.js";
import { DASH, integer, ms, number, percent, words } from "../format.js";

//: Facts of a paging episode that people ask about, in order.
const FACTS = [
  ["arrived", "arrived"], ["completed", "completed"], ["in_sla", "in time"], ["sla_missed", "missed the SLA"], ["rejected", "rejected"],
  ["turned_away", "found no seat"], ["evicted", "caches evicted"], ["swapped_out", "caches swapped out"], ["swapped_in", "swapped in"],
  ["shredded", "preempted, KV lost"], ["preempt_swapped", "preempted, KV kept"], ["hits", "returns that found their cache"], ["illegal", "actions not possible"],
];
const SEEN = [
  ["queue_depth", "waiting", integer], ["active_requests", "running", integer], ["kv_cache_occupancy", "KV blocks in use", percent], ["p50_ttft_ms", "TTFT, median", ms],
  ["p99_ttft_ms", "TTFT, 99th percentile", ms], ["p99_itl_ms", "ITL, 99th percentile", ms], ["throughput_tps", "output tokens/s", number],
  ["request_arrival_rate", "arrivals/s", number], ["slo_compliance_rate", "first tokens in time", percent], ["preemptions", "preemptions", integer],
  ["pause_left_s", "reload still takes, s", number],
];
const SEATS = 100;

/** Who waits, as bars: a bar's height is its wait against the limit. */
export function queues(list) {
  return list.map((queue) => {
    const { name, waits_ticks: waits, seats, sla_ticks: sla } = queue;
    const late = sla ? waits.filter((one) => one > sla).length : 0;
    const longest = waits.length ? `, the longest for ${integer(Math.max(...waits))} ticks` : "";
    const limit = sla ? `limit ${sla} ticks` : "no limit";
    const most = Math.max(1, sla || Math.max(1, ...waits));
    const shown = waits.slice(0, SEATS);
    const bars = shown.map((one, i) => {
      const share = Math.min(1, one / most);
      const ink = sla && one > sla ? "bad" : share > 0.5 ? "warn" : "accent";
      return svg("rect", { x: i * 4 + 0.5, y: 24 - Math.max(3, share * 24), width: 3, height: Math.max(3, share * 24), fill: `var(--${ink})` });
    });
    return h("div", { class: "queue" },
      h("div", { class: "small" }, h("strong", null, `${name} queue`), ` ${integer(waits.length)} of ${integer(seats)} seats${longest} `, h("span", { class: late ? "bad" : "soft" }, late ? `${integer(late)} over the ${limit}` : limit)),
      svg("svg", { viewBox: `0 0 ${Math.min(SEATS, Math.max(seats, 1)) * 4} 24`, preserveAspectRatio: "none", class: "queue-bars", role: "img", "aria-label": `${name} queue: ${waits.length} wait` }, bars));
  });
}

/** What the episode has come to so far. */
export function counts(facts, paging) {
  const rows = paging ? FACTS.map(([key, label]) => [label, integer(facts[key])]) : SEEN.map(([key, label, show]) => [label, show(facts[key])]);
  return h("dl", { class: "facts" }, h("dt", null, "score so far"), h("dd", null, number(facts.score_so_far, 5)), rows.map(([label, said]) => [h("dt", null, label), h("dd", null, said)]));
}

const SWITCHES = ["prefill_decode_split", "priority_routing"];
const TIERS = ["FP16", "INT8", "INT4"];

/** A knob's value in words. */
export function knob(name, value) {
  if (value === null || value === undefined) return DASH;
  if (name === "quantization_tier") return TIERS[value];
  if (SWITCHES.includes(name)) return value ? "on" : "off";
  return number(value);
}

/** The classes of a deployment: what is promised, who waits and runs, and what came of those who ended in the window. */
export function classes(machine) {
  const head = ["class", "weight", "arrived", "waiting", "overdue", "running", "finished", "in SLO", "TTFT p50", "TTFT p99", "limit", "TPOT p50", "TPOT p99", "limit"];
  const time = (value, limit) => h("td", { class: `n${value !== null && value > limit ? " bad" : ""}` }, ms(value), value !== null && value > limit ? " !" : "");
  const rows = machine.classes.map((one) => h("tr", null,
    h("th", { scope: "row" }, one.name), h("td", { class: "n" }, number(one.weight)), ...[one.arrived, one.waiting].map((v) => h("td", { class: "n" }, integer(v))),
    h("td", { class: `n${one.overdue ? " bad" : ""}` }, integer(one.overdue)), ...[one.running, one.finished, one.in_slo].map((v) => h("td", { class: "n" }, integer(v))),
    time(one.ttft_p50_ms, one.ttft_slo_ms), time(one.ttft_p99_ms, one.ttft_slo_ms), h("td", { class: "n soft" }, ms(one.ttft_slo_ms)),
    time(one.tpot_p50_ms, one.tpot_slo_ms), time(one.tpot_p99_ms, one.tpot_slo_ms), h("td", { class: "n soft" }, ms(one.tpot_slo_ms))));
  return h("div", { class: "table-box", tabindex: "0", role: "region", "aria-label": "Classes in the last window" }, h("table", { id: "classes" },
    h("caption", null, "By class, in the last window. Latencies are of requests that ended in it; ! is over the limit."),
    h("thead", null, h("tr", null, head.map((name, i) => h("th", { scope: "col", class: i ? "n" : null }, name)))), h("tbody", null, rows)));
}

/** The decision that comes next: what was done, what might have been, and what it earned. */
export function decision(row, told, before) {
  if (!row) return h("p", { class: "soft" }, "The end: no decision follows.");
  const verdict = row.legal ? null : h("span", { class: "badge bad" }, "✕ not possible, nothing happened");
  const terms = told.terms.map((name, i) => [name, row.terms[i]]).filter(([, value]) => value !== 0);
  const signed = (value) => `${value > 0 ? "+" : ""}${number(value)}`;
  const earned = `${number(row.reward)}${terms.length ? `: ${terms.map(([name, value]) => `${words(name)} ${signed(value)}`).join(", ")}` : ""}`;
  return [
    h("p", { class: "taken" }, h("strong", null, row.words), " ", verdict),
    h("p", { class: "small" }, h("span", { class: "soft" }, "Reward "), h("span", { class: "figure" }, earned)),
    told.actions ? choices(row, told.actions) : settings(row, before),
    h("details", null, h("summary", null, "What the policy saw"), observed(row, told.columns)),
  ];
}

function choices(row, actions) {
  const may = new Set(row.mask);
  return h("div", null,
    h("p", { class: "small soft" }, `${may.size} of ${actions.length} actions were possible:`),
    h("ul", { class: "choices" }, actions.map(({ name, what }, i) => {
      const state = `${may.has(i) ? "" : " shut"}${i === row.action ? " chosen" : ""}`;
      return h("li", { class: state.trim(), title: what }, h("span", { "aria-hidden": "true" }, i === row.action ? "●" : may.has(i) ? "○" : "✕"), ` ${name}`,
        h("span", { class: "sr" }, i === row.action ? " (taken)" : may.has(i) ? " (possible)" : " (not possible)"));
    })));
}

function settings(row, before) {
  const names = Object.keys(before ?? row.action);
  return h("div", { class: "table-box", tabindex: "0", role: "region", "aria-label": "Knobs of this decision" }, h("table", null,
    h("thead", null, h("tr", null, ["knob", "in force", "asked for", "allowed"].map((name, i) => h("th", { scope: "col", class: i === 1 || i === 2 ? "n" : null }, name)))),
    h("tbody", null, names.map((name) => {
      const turned = before && row.action[name] !== undefined && row.action[name] !== before[name];
      return h("tr", { class: turned ? "turned" : null }, h("th", { scope: "row" }, words(name)), h("td", { class: "n" }, before ? knob(name, before[name]) : DASH),
        h("td", { class: "n" }, turned ? h("strong", null, knob(name, row.action[name])) : knob(name, row.action[name])),
        h("td", null, row.mask[name] ? `only ${row.mask[name].join(", ")}` : "any"));
    }))));
}

function observed(row, columns) {
  return h("div", { class: "table-box observed", tabindex: "0", role: "region", "aria-label": "Observation" }, h("table", null,
    h("tbody", null, columns.map((column, i) => h("tr", { title: column.what },
      h("th", { scope: "row" }, words(column.name)), h("td", { class: "n" }, number(row.observation[i])), h("td", { class: "soft" }, column.unit))))));
}

/** Fill a node only where it differs, so that the reader's selection and open details stay. */
export function put(node, ...children) {
  const open = [...node.querySelectorAll("details")].map((one) => one.open);
  fill(node, ...children);
  node.querySelectorAll("details").forEach((one, i) => (one.open = open[i] ?? false));
}
