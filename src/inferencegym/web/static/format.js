// Figures in words: the same figure reads the same on every page. A dash stands for "no value" (NaN, null, undefined).

export const DASH = "–";
const none = (v) => v === null || v === undefined || Number.isNaN(v);
const makers = new Map();
const RAISED = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
const CAPITALS = new Set(["cpu", "gpu", "itl", "kv", "sla", "slo", "tpot", "ttft", "vip"]);

function maker(options) {
  const key = JSON.stringify(options);
  if (!makers.has(key)) makers.set(key, new Intl.NumberFormat("en", options));
  return makers.get(key);
}

/** A number with so many significant digits (4 unless told); whole numbers below a million stay whole, large ones get k, M, G. */
export function number(v, digits = 4) {
  if (none(v)) return DASH;
  if (!Number.isFinite(v)) return v > 0 ? "∞" : "−∞";
  const size = Math.abs(v);
  if (size >= 1e6) {
    const [step, mark] = size >= 1e12 ? [1e12, "T"] : size >= 1e9 ? [1e9, "G"] : [1e6, "M"];
    return signed(maker({ maximumSignificantDigits: digits }).format(v / step)) + mark;
  }
  if (Number.isInteger(v)) return signed(maker({ maximumFractionDigits: 0 }).format(v));
  if (size < 1e-4) {
    const [figures, power] = v.toExponential(Math.max(0, digits - 2)).split("e");
    return `${signed(figures)} × 10${[...power].map((mark) => RAISED[mark]).join("")}`;
  }
  const fraction = Math.max(0, Math.min(6, digits - 1 - Math.floor(Math.log10(size))));
  return signed(maker({ maximumFractionDigits: fraction }).format(v));
}

/** A whole number with separators: 12,345. */
export function integer(v) {
  return none(v) ? DASH : Number.isFinite(v) ? signed(maker({ maximumFractionDigits: 0 }).format(v)) : number(v);
}

/** A share of one as a percentage: 0.123 is 12.3 %. */
export function percent(v, fraction = 1) {
  return none(v) ? DASH : `${signed(maker({ maximumFractionDigits: fraction }).format(v * 100))} %`;
}

/** Milliseconds. */
export function ms(v) {
  return none(v) ? DASH : `${number(v, 3)} ms`;
}

/** Seconds. */
export function seconds(v) {
  return none(v) ? DASH : `${number(v, 3)} s`;
}

/** Seconds as people say them: 850 ms, 12.5 s, 3 min 20 s, 2 h 5 min, 3 d 4 h. */
export function duration(v) {
  if (none(v)) return DASH;
  const size = Math.abs(v);
  if (size < 1) return ms(v * 1000);
  if (size < 60) return seconds(v);
  const whole = Math.round(size);
  const sign = v < 0 ? "−" : "";
  const pair = (big, unit, small, rest) => sign + (small ? `${big} ${unit} ${small} ${rest}` : `${big} ${unit}`);
  if (whole < 3600) return pair(Math.floor(whole / 60), "min", whole % 60, "s");
  if (whole < 86400) return pair(Math.floor(whole / 3600), "h", Math.round((whole % 3600) / 60) % 60, "min");
  return pair(Math.floor(whole / 86400), "d", Math.floor((whole % 86400) / 3600), "h");
}

/** A value with its unit: withUnit(0.5, "1") is 0.5, withUnit(12, "ms") is 12 ms, withUnit(50, "%") is 50 %. */
export function withUnit(v, unit, digits = 4) {
  if (none(v)) return DASH;
  return unit && unit !== "1" ? `${number(v, digits)} ${unit}` : number(v, digits);
}

/** A name of the code in words: best_static is best static, slo is SLO. */
export function words(name) {
  return name.split("_").map((word) => (CAPITALS.has(word) ? word.toUpperCase() : word)).join(" ");
}

/** The same at the head of a column. */
export function heading(name) {
  const said = words(name);
  return said[0].toUpperCase() + said.slice(1);
}

function signed(text) {
  return text.replace("-", "−");
}
