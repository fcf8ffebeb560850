// The Runtime page's charts: one time axis, objectives as levels, a mark where a knob or a setting changed.
import { createChart } from "../chart.js";

//: title, unit, series as [column, label, slot]; `of`: percentiles of these columns, by class where there are several; `needs`: whether there is anything to draw.
const TOGETHER = [
  { title: "Requests under way", unit: "requests", series: [["running_mean", "Running", 0], ["waiting_mean", "Waiting", 1]], yMin: 0 },
  { title: "Requests a second", unit: "requests/s", series: [["arrival_rps", "Offered", 6], ["throughput_rps", "Completed", 0], ["goodput_rps", "Goodput", 2], ["rejected", "Rejected", 1], ["failed", "Failed", 3]], yMin: 0 },
  { title: "Output tokens", unit: "tokens/s", series: [["output_tps", "Output", 0]], yMin: 0 },
  { title: "Time to first token", unit: "ms", of: "ttft_s", objective: "ttft_slo_s", yMin: 0 },
  { title: "Time between tokens", unit: "ms", of: "itl_s", objective: "itl_slo_s", yMin: 0 },
  { title: "Queue and whole time", unit: "ms", series: [["queue_s.p50", "Queue p50", 0], ["queue_s.p99", "Queue p99", 1], ["e2e_s.p50", "Whole p50", 2], ["e2e_s.p99", "Whole p99", 3]], yMin: 0 },
  { title: "First tokens in time", unit: "%", of: "slo_attainment", yMin: 0, yMax: 100, needs: (history) => history.promised("ttft_slo_s") },
  { title: "KV use", unit: "%", series: [["kv_used_mean", "KV use", 0]], yMin: 0, needs: (history) => history.has("kv_used_mean") },
  { title: "Tokens in flight", unit: "tokens", series: [["kv_tokens_in_flight", "KV tokens in flight", 0]], yMin: 0 },
  { title: "GPU busy", unit: "%", series: [["gpu_busy_fraction", "GPU busy", 0]], yMin: 0, yMax: 100, needs: (history) => history.has("gpu_busy_fraction") },
];
const MOST_MARKS = 12;
const SYNC = "runtime";

export class Charts {
  constructor(parent, history, span_s) {
    this.history = history;
    this.parent = parent;
    this.span_s = span_s;
    this.charts = [];
    for (const one of TOGETHER) {
      if (one.needs?.(history) ?? true) this.add(one, one.of ? this.byClass(one.of) : one.series);
    }
    this.draw();
  }

  /** With one class its percentiles, with several the 99th of each. */
  byClass(of) {
    const { classes } = this.history;
    if (of === "slo_attainment") return classes.length < 2 ? [[of, "All", 0]] : classes.map((name, slot) => [`${of}@${name}`, name, slot]);
    if (classes.length < 2) return ["p50", "p95", "p99"].map((q, slot) => [`${of}.${q}`, q, slot]);
    return classes.map((name, slot) => [`${of}.p99@${name}`, `${name} p99`, slot]);
  }

  add(one, series) {
    const chart = createChart(this.parent, {
      title: one.title, unit: one.unit, xLabel: "time before now", xUnit: "s", yMin: one.yMin, yMax: one.yMax, sync: SYNC, height: 170, nothing: "no requests in this time",
      series: series.map(([, label, slot]) => ({ label, slot, dash: series.length > 1 })),
    });
    this.charts.push({ chart, one, series });
  }

  /** Which charts there should be has changed: a GPU or a backend began to tell, or an objective was set. */
  get stale() {
    return TOGETHER.some((one) => one.needs?.(this.history) && !this.charts.some((held) => held.one === one));
  }

  draw() {
    const { history } = this;
    const begin = history.begins(this.span_s);
    // A gateway that is young fills its charts all the same.
    const span_s = Math.min(this.span_s, Math.max(60, Math.ceil((history.times.length - begin) / 60) * 60));
    const x = history.x(begin);
    const bands = this.marks(span_s);
    for (const { chart, one, series } of this.charts) {
      chart.options.bands = bands;
      if (one.objective) chart.setLevels(this.levels(one.objective));
      chart.setRange(-span_s, 0);
      chart.setData(x, series.map(([name]) => history.y(name, begin)));
    }
  }

  /** Objectives of the classes that have a line, ms. */
  levels(objective) {
    const found = new Map();
    for (const one of this.history.now.classes.slice(0, this.history.classes.length)) {
      if (one[objective] !== null) found.set(one[objective], [...(found.get(one[objective]) ?? []), one.name]);
    }
    return [...found].map(([seconds, names]) => ({ value: seconds * 1000, label: names.length > 1 || this.history.classes.length < 2 ? "objective" : `objective ${names[0]}` }));
  }

  /** Thin stretches where something was changed, numbered as in the history of changes where there is room. */
  marks(span_s) {
    const end = this.history.times[this.history.times.length - 1];
    const width = span_s / 400;
    let free = -Infinity;
    return this.history.turns().filter(({ at }) => at - end > -span_s).slice(-MOST_MARKS).map(({ at, number }) => {
      const x = at - end;
      const room = x > free;
      if (room) free = x + span_s / 15;
      return { from: x - width, to: x + width, label: room ? String(number) : "" };
    });
  }

  destroy() {
    for (const { chart } of this.charts) chart.destroy();
    this.charts = [];
  }
}
