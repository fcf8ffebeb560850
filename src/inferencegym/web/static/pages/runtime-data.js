// What the Runtime page knows of the gateway: the feed's history, kept as long as the feed keeps it. Values stay as they came; charts and tiles scale them.

export class History {
  constructor() {
    this.hello = null;
    this.times = [];
    this.columns = new Map();
    this.events = [];
    this.now = null;
    this.settings = {};
    this.seq = -1;
  }

  /** Everything anew. Says what it is compared with what was there: "first", "same", "restarted" or "other" (another worker of the same server). */
  begin(hello) {
    const before = this.hello;
    this.hello = hello;
    this.times = hello.times;
    this.columns = new Map(hello.columns.map((column, i) => [column.name, { ...column, values: hello.values[i].map(value) }]));
    this.events = hello.events;
    this.now = hello.now;
    this.settings = hello.settings;
    this.seq = hello.seq;
    if (!before) return "first";
    if (before.born === hello.born) return "same";
    return hello.worker && before.worker && hello.worker.pid !== before.worker.pid ? "other" : "restarted";
  }

  /** One more second; false if some are missing in between. */
  add(sample) {
    if (sample.seq <= this.seq) return true;
    const whole = sample.seq === this.seq + 1;
    this.seq = sample.seq;
    this.times.push(sample.at);
    let i = 0;
    for (const column of this.columns.values()) column.values.push(value(sample.values[i++]));
    if (this.times.length > this.hello.kept) {
      this.times.shift();
      for (const column of this.columns.values()) column.values.shift();
    }
    const known = this.events.length ? this.events[this.events.length - 1].number : 0;
    this.events.push(...sample.events.filter((event) => event.number > known));
    if (this.events.length > 200) this.events.splice(0, this.events.length - 200);
    this.now = sample.now;
    if (sample.settings) this.settings = sample.settings;
    return whole;
  }

  get classes() {
    return [...new Set([...this.columns.values()].map((column) => column.class).filter(Boolean))];
  }

  /** The last value of a column as a person is shown it; NaN if there is none. */
  last(name) {
    const column = this.columns.get(name);
    return column && column.values.length ? column.values[column.values.length - 1] * column.scale : NaN;
  }

  /** Whether any request has come since the gateway's start. */
  get quiet() {
    return !this.now || this.now.totals.arrivals === 0;
  }

  /** Index of the first sample of the last `span_s` seconds. */
  begins(span_s) {
    const from = (this.times[this.times.length - 1] ?? 0) - span_s - 0.5;
    let i = this.times.length;
    while (i > 0 && this.times[i - 1] >= from) i--;
    return i;
  }

  /** Seconds before the last sample, at most 0. */
  x(begin) {
    const end = this.times[this.times.length - 1];
    return Float64Array.from(this.times.slice(begin), (at) => at - end);
  }

  /** A column's last values, scaled. */
  y(name, begin) {
    const column = this.columns.get(name);
    return column ? Float32Array.from(column.values.slice(begin), (v) => v * column.scale) : new Float32Array(0);
  }

  /** Whether any class promises anything: `name` of the objective, or either. */
  promised(name = null) {
    return this.now.classes.some((one) => (name ? [one[name]] : [one.ttft_slo_s, one.itl_slo_s]).some((limit) => limit !== null));
  }

  /** Whether a column has any value at all. */
  has(name) {
    return this.columns.get(name)?.values.some((v) => !Number.isNaN(v)) ?? false;
  }

  /** Changes by which a knob or a setting took another value: [{at, number}], oldest first. */
  turns() {
    const standing = new Map();
    const found = [];
    for (const event of this.events) {
      let turned = event.kind === "settings";
      for (const [name, to] of Object.entries(event.accepted ?? {})) {
        turned ||= standing.get(name) !== to;
        standing.set(name, to);
      }
      if (turned) found.push({ at: event.at, number: event.number });
    }
    return found;
  }
}

function value(v) {
  return v === null ? NaN : v;
}
