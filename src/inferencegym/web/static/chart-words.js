// A chart in words: a summary for who does not see it, and its values as a table. For chart.js; `text` writes a value.
import { h } from "./dom.js";
import { number } from "./format.js";

/** One sentence for each series: its range and its last value. `thinned` as uPlot has it. */
export function summaryOf({ series, xLabel, axisLabels }, caption, [x, ys], thinned, text) {
  if (!x.length) return `${caption}: no data yet`;
  const parts = series.map((one, i) => {
    const column = thinned[i + 1].filter((v) => v !== null);
    if (!column.length) return `${one.label}: no values`;
    if (axisLabels) return `${one.label}: last ${text(ys[i][ys[i].length - 1])}`;
    const [low, high] = column.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
    return `${one.label}: ${text(low)} to ${text(high)}, last ${text(column[column.length - 1])}`;
  });
  return `${caption} over ${xLabel || "x"} ${number(x[0])} to ${number(x[x.length - 1])}. ${parts.join("; ")}`;
}

/** The table of a chart; `rows` as `thin` gives them, of so many values in all. */
export function tableOf({ series, xLabel, xUnit }, caption, rows, all, text) {
  const head = (words) => h("th", { scope: "col", class: "n" }, words);
  return h("table", null,
    h("caption", null, `${caption}${rows[0].length < all ? ": lowest and highest of each stretch" : ""}`),
    h("thead", null, h("tr", null, head(xUnit ? `${xLabel} (${xUnit})` : xLabel), series.map((one) => head(one.label)))),
    h("tbody", null, rows[0].map((at, k) => h("tr", null, h("td", { class: "n" }, number(at)), series.map((_, i) => h("td", { class: "n" }, text(rows[i + 1][k])))))));
}
