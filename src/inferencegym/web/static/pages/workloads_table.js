// The figures of one or two workloads as a table, with the ratio of the second to the first.
import { h } from "../dom.js";
import { DASH, integer, number, percent } from "../format.js";

const QUANTILES = [["p50", "median"], ["p90", "90 %"], ["p99", "99 %"], ["max", "largest"], ["mean", "mean"]];
const tokens = (name, label) => QUANTILES.map(([key, word]) => [`${label}, ${word} (tokens)`, (d) => d[name]?.[key], number]);

//: Label with unit, how to find it in the figures of `traces describe`, how to write it.
const ROWS = [
  ["Requests", (d) => d.requests, integer],
  ["Duration (s)", (d) => d.duration_s, number],
  ["Failed at the source (requests)", (d) => d.failed_at_source || null, integer],
  ["Mean rate (requests/s)", (d) => d.arrivals.rate_rps, number],
  ["Busiest minute (requests)", (d) => d.arrivals.peak_minute, integer],
  ["Quietest minute (requests)", (d) => d.arrivals.quietest_minute, integer],
  ["Coefficient of variation of gaps (Poisson: 1)", (d) => d.arrivals.gap_cv, number],
  ["Variance / mean of counts in 1 s (Poisson: 1)", (d) => d.arrivals.idc_1s, number],
  ["Variance / mean of counts in 60 s (Poisson: 1)", (d) => d.arrivals.idc_60s, number],
  ...tokens("prompt_tokens", "Prompt"),
  ...tokens("output_tokens", "Output"),
  ["Rank correlation of prompt and output", (d) => d.correlation?.spearman, number],
  ["Sessions", (d) => d.sessions?.count, integer],
  ["Turns of a session, mean", (d) => d.sessions?.turns?.mean, number],
  ["Pause before a turn, median (s)", (d) => d.sessions?.think_s?.p50, number],
  ["Requests that wait for an answer", (d) => d.arrivals.closed_loop || null, integer],
  ["Prompt tokens an endless prefix cache would have", (d) => d.prefixes?.hit_rate_tokens, percent],
  ["Prompt blocks an endless prefix cache would have", (d) => d.prefixes?.hit_rate_blocks, percent],
  ["Prefix block (tokens)", (d) => d.prefixes?.block_tokens, integer],
];

/** @param {Array} there one or two answers of the server, with label and slot */
export function compared(there) {
  const two = there.length === 2;
  const rows = ROWS.map(([label, find, write]) => ({ label, write, values: there.map((one) => find(one.described) ?? null) })).filter(({ values }) => values.some((v) => v !== null));
  const cell = (v, write) => h("td", { class: "n" }, v === null ? DASH : write(v));
  const ratio = ([a, b]) => h("td", { class: "n" }, a && b !== null && a > 0 && b >= 0 ? `${number(b / a, 3)} ×` : DASH);
  return h("div", { class: "table-box", tabindex: "0", role: "region", "aria-label": "Figures, as a table" }, h("table", { id: "figures-table", class: two ? "two" : null },
    h("thead", null, h("tr", null, h("th", { scope: "col" }, "Figure"),
      there.map((one) => h("th", { scope: "col", class: "n" }, h("span", { class: `swatch slot-${one.slot}` }), ` ${one.label}`)),
      two ? h("th", { scope: "col", class: "n" }, "second / first") : null)),
    h("tbody", null, rows.map(({ label, write, values }) => h("tr", { "data-figure": label },
      h("th", { scope: "row" }, label), values.map((v) => cell(v, write)), two ? ratio(values) : null)))));
}

/** Kinds, tenants and classes, where a workload has more than one of them: a list, or nothing. */
export function shares(there) {
  const named = { kinds: "kinds", tenants: "tenants", slo_classes: "classes" };
  const lines = there.flatMap((one) => Object.entries(named).filter(([key]) => Object.keys(one.described[key]).length > 1).map(([key, word]) => {
    const counts = Object.entries(one.described[key]).sort((a, b) => b[1] - a[1]);
    const all = counts.reduce((sum, [, count]) => sum + count, 0);
    const more = counts.length > 8 ? `, and ${counts.length - 8} more` : "";
    return h("li", null, h("span", { class: `swatch slot-${one.slot}` }), ` ${one.label}, ${word}: `, counts.slice(0, 8).map(([name, count]) => `${name} ${percent(count / all)}`).join(", "), more);
  }));
  return lines.length ? [h("ul", { class: "shares small" }, lines)] : [];
}
