// How a chart is laid out: the ends of its axes, and what uPlot is told. For chart.js.
import { paintLevels, paintMarks, paintNothing, paintStretches } from "./chart-ink.js";
import { colour, faint } from "./drawing.js";
import { number } from "./format.js";
import UPlot from "./vendor/uplot/uPlot.esm.js";

const FONT = "12px system-ui, sans-serif";
//: As in report/palette.py.
const DASHES = [[], [7, 3], [2, 3], [9, 3, 2, 3], [4, 4], [12, 4], [1, 4], [6, 2, 1, 2]];

/** The ends of y: round what is shown (`columns` as uPlot has them, without x; `on`: which of them), levels that are near, and what was asked for. */
export function yRange({ yMin, yMax, log, levels, axisLabels }, columns, on) {
  if (axisLabels) {
    const codes = Object.keys(axisLabels).map(Number);
    return [Math.min(...codes) - 0.5, Math.max(...codes) + 0.5];
  }
  let [low, high] = ends(columns, on);
  if (low > high || (low === 0 && high === 0)) [low, high] = log ? [1, 10] : [0, 1];
  for (const { value } of levels) {
    if (value > high && (log ? value < high * 100 : value < high * 4)) high = value;
    if (log && value < low) low = value;
  }
  if (log) {
    low = yMin ?? 10 ** Math.floor(Math.log10(low));
    high = yMax ?? 10 ** Math.ceil(Math.log10(high * 1.0001));
    return [low, high > low ? high : low * 10];
  }
  if (low > 0 && low === high) [low, high] = [0, 1.5 * high];
  if (low >= 0 && yMin === undefined && low < high * 0.5) low = 0;
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [yMin ?? (low === 0 ? 0 : low - room), yMax ?? high + room];
}

/** Lowest and highest of all values; the other way round where there is none. */
function ends(columns, on) {
  let low = Infinity;
  let high = -Infinity;
  columns.forEach((column, i) => {
    if (!on[i]) return;
    for (const v of column) {
      if (v === null) continue;
      if (v < low) low = v;
      if (v > high) high = v;
    }
  });
  return [low, high];
}

/** Lines that would lie on one another, apart. `thinned` as uPlot has it. */
export function dodged([x, ...columns]) {
  const n = columns.length;
  return [x, ...columns.map((column, i) => {
    const shift = n > 1 ? (0.5 - i / (n - 1)) * 0.5 : 0;
    return column.map((v) => (v === null ? null : v + shift));
  })];
}

/** What uPlot is told of a chart of chart.js. `dense`: hairlines. */
export function plotOptions(chart, width, height, dense) {
  const { unit, xLabel, xUnit, log, stepped, series, axisLabels, bands } = chart.options;
  const [from, to] = chart.range();
  const axis = { font: FONT, stroke: () => colour("soft"), grid: { stroke: () => colour("rule"), width: 1 }, ticks: { stroke: () => colour("rule"), width: 1, size: 4 }, labelFont: FONT };
  const steps = UPlot.paths.stepped({ align: 1 });
  const values = (_, splits) => splits.map((v) => (v === null ? "" : axisLabels ? (axisLabels[v] ?? "") : short(v)));
  return {
    width, height, padding: [8, 18, 0, 0], legend: { show: false }, pxAlign: false,
    cursor: { y: false, points: { size: 6 }, drag: { x: true, y: false, setScale: false }, focus: { prox: -1 } },
    scales: {
      x: { time: false, auto: false, range: (_, min, max) => (min === null ? [from, to] : [min, max]) },
      y: { auto: false, distr: log ? 3 : 1, range: () => chart.yRange() },
    },
    axes: [
      { ...axis, label: xUnit ? `${xLabel} (${xUnit})` : xLabel, labelSize: xLabel ? 16 : 0, labelGap: 0, size: 24, space: 60, values: (_, splits) => splits.map((v) => (v === null ? "" : short(v))) },
      axisLabels
        ? { ...axis, size: 20 + 6.5 * Math.max(...Object.values(axisLabels).map((text) => text.length)), space: 12, labelSize: 15, labelGap: 0, splits: () => Object.keys(axisLabels).map(Number), values }
        : { ...axis, size: 54, space: 28, label: unit && unit !== "1" ? unit : undefined, labelSize: 15, labelGap: 0, values },
    ],
    series: [{}, ...series.map((one, i) => ({
      label: one.label, width: dense ? 1 : 1.5, show: chart.on[i], spanGaps: false, dash: one.dash ? DASHES[one.slot % 8] : undefined,
      stroke: () => colour(inkOf(one)), paths: stepped || one.stepped ? steps : undefined,
      fill: one.fill ? () => faint(inkOf(one), 0.18) : undefined,
    }))],
    bands: bands.filter((band) => band.upper !== undefined).map((band) => ({ series: [band.upper + 1, band.lower + 1], fill: () => faint(inkOf(series[band.upper]), 0.18) })),
    hooks: {
      drawClear: [(u) => paintStretches(u, chart.options.bands.filter((band) => band.from !== undefined))],
      draw: [(u) => paintLevels(u, chart.options.levels), (u) => paintMarks(u, chart.thinned, signs(chart)), (u) => chart.empty && paintNothing(u, chart.options.nothing), () => chart.placePlayhead()],
      setSelect: [(u) => chart.zoomed(u)],
    },
  };
}

/** The custom property of a series' colour. */
export function inkOf(one) {
  return one.colour ?? `series-${one.slot % 8}`;
}

function signs({ options, on }) {
  return options.series.map((one, i) => (one.mark && on[i] ? { text: one.mark, ink: inkOf(one) } : null));
}

/** A number at an axis: short. */
function short(v) {
  return Math.abs(v) >= 1e4 && Math.abs(v) < 1e6 ? `${number(v / 1e3)}k` : number(v);
}
