// The charts of a run: every column by its group, all policies in each, one axis of time.
import { createChart } from "../chart.js";
import { h } from "../dom.js";
import { number } from "../format.js";
import { createStrip } from "../strip.js";

const GROUPS = [
  ["score", "Score"], ["queues", "Queues"], ["memory", "KV memory"], ["latency", "Latency"], ["load", "Load"], ["knobs", "Knobs"], ["actions", "Actions"],
];
const SYNC = "arena";

export class Charts {
  /** Groups of charts: the score's in `first`, all others in `element`. @param {object} run; @param {(sample: number) => void} onPick the reader clicked at a sample */
  constructor(run, onPick) {
    this.first = h("div", { class: "groups first" });
    this.element = h("div", { class: "groups" });
    this.charts = [];
    this.strips = [];
    this.zoom = null;
    const named = new Set(GROUPS.map(([name]) => name));
    const others = [...new Set(run.columns.map((one) => one.group))].filter((name) => !named.has(name)).map((name) => [name, name]);
    for (const [group, title] of [...GROUPS, ...others]) {
      const columns = run.columns.map((column, c) => ({ ...column, c })).filter((column) => column.group === group);
      if (!columns.length) continue;
      const grid = h("div", { class: "charts" });
      (group === "score" ? this.first : this.element).append(h("details", { open: true, class: "group", "data-group": group }, h("summary", null, h("h2", null, title)), grid));
      const coded = columns.filter((column) => column.codes && Object.keys(column.codes).length > 4);
      for (const column of columns) if (!coded.includes(column)) this.lines(run, column, grid, onPick);
      if (coded.length) this.codes(run, coded, grid, onPick);
    }
  }

  lines(run, column, grid, onPick) {
    const unit = column.unit ?? "";
    const chart = createChart(grid, {
      title: column.label, unit, xLabel: run.sample_name, sync: SYNC, legend: "values", stepped: column.steps, log: column.scale === "log",
      levels: column.objective === null || column.objective === undefined ? [] : [{ label: `objective ${number(column.objective)} ${unit}`.trim(), value: column.objective }],
      axisLabels: column.codes ?? undefined, dodge: Boolean(column.codes), onZoom: (zoom) => this.zoomed(zoom),
      series: run.policies.map((one) => ({ label: one.name, slot: one.slot, mark: String(one.slot + 1) })),
    });
    chart.onPick((x) => onPick(Math.round(x)));
    this.charts.push({ chart, c: column.c });
  }

  /** A strip for each policy, of all its decisions in a sample together. */
  codes(run, columns, grid, onPick) {
    run.policies.forEach((one, i) => {
      const strip = createStrip(grid, { title: one.name, codes: columns[0].codes, slot: one.slot, xLabel: run.sample_name });
      strip.onPick((x) => onPick(Math.round(x)));
      this.strips.push({ strip, i, cs: columns.map((column) => column.c) });
    });
  }

  /** Draw what is there up to the playhead. `range`: ends of x. */
  show(samples, at, range) {
    const stop = at + 1;
    const x = samples.x.subarray(0, stop);
    this.range = range;
    for (const { chart, c } of this.charts) {
      chart.setRange(...range);
      chart.setData(x, samples.data.map((mine, i) => mine[c].subarray(0, Math.min(stop, samples.counts[i]))));
      chart.setCursor(at < 0 ? null : at);
    }
    for (const { strip, i, cs } of this.strips) {
      strip.setRange(...(this.zoom ?? range));
      strip.setData(cs.map((c) => samples.data[i][c].subarray(0, Math.min(stop, samples.counts[i]))));
      strip.setCursor(at < 0 ? null : at);
    }
  }

  /** The reader looks closer, or at everything again (null): the strips follow the charts. */
  zoomed(zoom) {
    if (zoom === this.zoom) return;
    this.zoom = zoom;
    for (const { strip } of this.strips) strip.setRange(...(zoom ?? this.range ?? [0, 1]));
  }

  setPolicyVisible(i, on) {
    for (const { chart } of this.charts) chart.setSeriesVisible(i, on);
    for (const one of this.strips) if (one.i === i) one.strip.element.hidden = !on;
  }

  destroy() {
    for (const { chart } of this.charts) chart.destroy();
    for (const { strip } of this.strips) strip.destroy();
  }
}
