// Bars: histograms and parts of a whole, as SVG with words for who does not see them.
import { h, svg } from "./dom.js";
import { number } from "./format.js";

/**
 * A histogram.
 * @param {HTMLElement} parent
 * @param {object} options title, unit (of x), countUnit, edges: n+1 ascending numbers, series: [{label, slot, counts: n numbers}], height (140 px)
 * @returns {{element: HTMLElement}}
 */
export function createBars(parent, { title, unit, countUnit = "", edges, series, height = 140 }) {
  const width = 520;
  const left = 52;
  const bottom = 34;
  const most = Math.max(1e-12, ...series.flatMap((one) => one.counts));
  const n = edges.length - 1;
  const x = (k) => left + (k / n) * (width - left - 8);
  const y = (v) => 8 + (1 - v / most) * (height - bottom - 8);
  const words = (text, at, props) => svg("text", { x: at[0], y: at[1], fill: "var(--soft)", "font-size": 12, ...props }, text);
  const bars = series.flatMap((one, i) => one.counts.map((count, k) => {
    const each = (x(k + 1) - x(k)) / series.length;
    return svg("rect", { x: x(k) + i * each, y: y(count), width: Math.max(0.5, each - (each > 4 ? 1 : 0)), height: Math.max(0, height - bottom - y(count)), fill: `var(--series-${one.slot % 8})` },
      svg("title", null, `${one.label}, ${number(edges[k])} to ${number(edges[k + 1])} ${unit ?? ""}: ${number(count)}`));
  }));
  const ticks = [...new Set([0, 0.25, 0.5, 0.75, 1].map((share) => Math.round(share * n)))];
  const summary = series.map((one) => {
    const k = one.counts.indexOf(Math.max(...one.counts));
    return `${one.label}: most between ${number(edges[k])} and ${number(edges[k + 1])}`;
  }).join("; ");
  const caption = unit ? `${title} (${unit})` : title;
  const element = h("figure", { class: "chart", "data-chart": title },
    h("figcaption", null, h("strong", null, title), unit ? h("span", { class: "soft" }, `(${unit})`) : null),
    series.length > 1 ? h("ul", { class: "keys" }, series.map((one) => h("li", null, h("span", { class: `swatch slot-${one.slot % 8}` }), one.label))) : null,
    svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "bars", role: "img", "aria-label": `${caption}. ${summary}` },
      svg("line", { x1: left, x2: width - 8, y1: height - bottom, y2: height - bottom, stroke: "var(--soft)" }),
      bars,
      ticks.map((k) => words(number(edges[k], 3), [x(k), height - bottom + 14], { "text-anchor": k === n ? "end" : "middle" })),
      words(number(most, 3), [left - 6, y(most) + 8], { "text-anchor": "end" }),
      words("0", [left - 6, height - bottom], { "text-anchor": "end" }),
      words(unit ?? "", [(width + left) / 2, height - 4], { "text-anchor": "middle" }),
      countUnit ? words(countUnit, [12, (height - bottom) / 2], { "text-anchor": "middle", transform: `rotate(-90 12 ${(height - bottom) / 2})` }) : null));
  parent.append(element);
  return { element };
}
