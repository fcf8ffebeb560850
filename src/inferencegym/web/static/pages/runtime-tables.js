// The Runtime page's tiles and tables: what stands now, in figures and words.
import { fill, h } from "../dom.js";
import { DASH, duration, integer, number, percent } from "../format.js";

const KNOBS = {
  batch_cap: ["Batch cap", "requests in flight to the backends"],
  kv_budget_fraction: ["KV budget", "share of the KV memory this service may use"],
  speculation_depth: ["Speculation depth", "draft tokens a step"],
  quantization_tier: ["Weight format", "which variant of the model"],
  prefill_decode_split: ["Prefill and decode apart", "two pools of backends"],
  priority_routing: ["Priority routing", "urgent classes go first"],
};
const OUTCOMES = { rejected: "Rejected", refused: "Limit that refused", failed: "Failed", aborted: "Client left", refused_length: "Too long", never_fits: "Never fits" };

const TTFT = "ttft_slo_s";

/** The row of figures at the top. */
export function tiles(history, window_s) {
  const { now } = history;
  const objective = now.classes.length === 1 && now.classes[0].ttft_slo_s !== null ? `objective ${number(now.classes[0].ttft_slo_s * 1000)} ms` : `p99, last ${window_s} s`;
  const found = [
    ["running", "Running", history.last("running_mean"), "requests", `${integer(sum(now.backends, "seats"))} seats`],
    ["waiting", "Waiting", history.last("waiting_mean"), "requests", history.last("oldest_wait_s") ? `oldest ${duration(history.last("oldest_wait_s"))}` : "nobody waits"],
    ["offered", "Offered", history.last("arrival_rps"), "requests/s", `${integer(now.totals.arrivals)} since the start`],
    ["tokens", "Output", history.last("output_tps"), "tokens/s", `${number(now.totals.emitted_tokens)} since the start`],
    ["goodput", "Goodput", history.last("goodput_rps"), "requests/s", history.promised() ? "within all objectives" : "no objective: all that complete"],
    history.promised(TTFT) ? ["slo", "In time", history.last("slo_attainment"), "%", `first tokens, last ${window_s} s`] : ["slo", "In time", DASH, "", "no class has an objective"],
    ["ttft", "TTFT p99", history.last("ttft_s.p99"), "ms", objective],
    ["rejected", "Rejected", history.last("rejected"), "requests/s", `${integer(now.totals.rejected)} since the start`],
  ];
  return found.map(([name, label, value, unit, more]) => h("div", { class: "card tile", "data-tile": name },
    h("span", { class: "label" }, label),
    h("span", { class: "big" }, h("strong", { class: "figure" }, typeof value === "string" ? value : Number.isNaN(value) ? DASH : number(value, 3)), unit ? h("span", { class: "soft" }, ` ${unit}`) : null),
    h("span", { class: "soft small" }, more)));
}

function sum(rows, name) {
  return rows.reduce((total, row) => total + row[name], 0);
}

function table(caption, heads, rows, none) {
  if (!rows.length) return h("p", { class: "soft" }, none);
  return h("div", { class: "table-box", tabindex: "0", role: "region", "aria-label": caption },
    h("table", null, h("caption", null, caption),
      h("thead", null, h("tr", null, heads.map(([head, numeric]) => h("th", { scope: "col", class: numeric ? "n" : null }, head)))),
      h("tbody", null, rows.map((row) => h("tr", null, row.map((cell, i) => (i === 0 ? h("th", { scope: "row", class: heads[0][1] ? "n" : null }, cell) : h("td", { class: heads[i][1] ? "n" : null }, cell))))))));
}

/** By service class. */
export function classes(history) {
  const { now, hello } = history;
  const q = (name, of) => number(history.last(`${name}@${of}`), 3);
  const objective = (s) => (s === null ? "none" : number(s * 1000, 3));
  return table(`Percentiles and share of the last ${hello.window_s} s; counts since the start`, [
    ["Class", false], ["In flight", true], ["Waiting", true], ["Completed", true], ["TTFT p50 (ms)", true], ["TTFT p99 (ms)", true], ["goal (ms)", true],
    ["ITL p50 (ms)", true], ["ITL p99 (ms)", true], ["goal (ms)", true], ["In time, now", true], ["In time, all", true],
  ], now.classes.map((one) => [
    one.name, integer(one.in_flight), integer(one.waiting), integer(one.finished), q("ttft_s.p50", one.name), q("ttft_s.p99", one.name), objective(one.ttft_slo_s),
    q("itl_s.p50", one.name), q("itl_s.p99", one.name), objective(one.itl_slo_s), ...(one[TTFT] === null ? ["no objective", "no objective"] : [percent(history.last(`slo_attainment@${one.name}`) / 100), percent(one.decided ? one.met / one.decided : NaN)]),
  ]), "There is no class.");
}

/** Why requests did not end well. */
export function rejections({ now }) {
  return table("By what the client was told, and by the limit that refused", [["Reason", false], ["What", false], ["Last minute", true], ["Since the start", true]],
    now.reasons.map((row) => [row.reason || "no reason given", OUTCOMES[row.outcome] ?? row.outcome, integer(row.minute), integer(row.total)]),
    "Nobody has been turned away, and nothing has failed.");
}

/** The six knobs: how they stand, and what became of the latest attempt to turn each. */
export function knobs({ now, events }) {
  return table("The six knobs that a policy can turn", [["Knob", false], ["Now", true], ["Last turned", false], ["Last refused", false]],
    Object.entries(now.knobs).map(([name, value]) => {
      const [label, what] = KNOBS[name] ?? [name, ""];
      const turned = latest(events, (event) => name in (event.accepted ?? {}) || (name === "priority_routing" && "queue.order" in (event.changes ?? {})));
      const refused = latest(events, (event) => name in (event.refused ?? {}));
      return [
        h("span", { title: what }, label, " ", h("code", { class: "soft" }, name)), shown(value),
        turned ? `${ago(turned.at, now.at)} by ${sender(turned)}` : "not since the start",
        refused ? h("span", null, `${ago(refused.at, now.at)} by ${sender(refused)}: `, refused.refused[name]) : DASH,
      ];
    }), "There is no knob.");
}

/** Live settings that are not as they were at the start, then all of them. */
export function settings(history, open) {
  const rows = Object.entries(history.settings).map(([name, one]) => ({ name, ...one, other: JSON.stringify(one.value) !== JSON.stringify(one.first) }));
  const changed = rows.filter((row) => row.other);
  const line = (row) => [h("code", null, row.name), h("span", { class: row.other ? "warn" : null }, shown(row.value)), row.other ? shown(row.first) : "same", row.meaning];
  const heads = [["Setting", false], ["Now", false], ["At the start", false], ["Meaning", false]];
  return [
    changed.length ? table("Changed since the start", heads, changed.map(line), "") : h("p", { class: "soft" }, "All live settings are as they were at the start."),
    h("details", { id: "all-settings", open }, h("summary", null, `All ${rows.length} live settings (version ${history.now.version})`), table("Every setting that can change while the gateway runs", heads, rows.map(line), "")),
  ];
}

/** What was changed, the latest first. */
export function changes({ now, events }) {
  return table("The latest first; plant is a command to the knobs, settings a change of the live configuration", [["Nr", true], ["When", false], ["Who", false], ["What", false], ["Change", false]],
    events.slice(-50).reverse().map((event) => [String(event.number), ago(event.at, now.at), sender(event), event.kind === "plant" ? "plant" : `settings, version ${event.version}`, h("span", null, words(event), event.reason ? h("span", { class: "soft" }, ` (${event.reason})`) : null)]),
    "Nothing has been changed since the start.");
}

function words(event) {
  if (event.kind === "settings") {
    const back = event.reverted_to ? `back to version ${event.reverted_to}: ` : "";
    return back + Object.entries(event.changes).map(([name, { from, to }]) => `${name} ${shown(from)} → ${shown(to)}`).join(", ");
  }
  const done = Object.entries(event.accepted).map(([name, value]) => `${name} = ${shown(value)}`);
  const refused = Object.entries(event.refused).map(([name, why]) => `${name} refused: ${why}`);
  return [...done, ...refused].join("; ");
}

/** Who is at the wheel, as far as anybody said. */
export function steering({ now }) {
  const one = now.steering;
  if (!one) return [h("strong", null, "Nobody. "), "No command has come to the knobs since the start: settings are by hand."];
  return [
    h("strong", null, one.policy ? `Policy ${one.policy}` : `${one.by}, who does not say with which policy`), one.policy ? ` (sent by ${one.by})` : "",
    one.guard ? `, under the guard ${one.guard}` : ", no guard named", `. Its last command came ${ago(one.at, now.at)}: `, words({ kind: "plant", ...one }) || "nothing to turn", ".",
  ];
}

/** The engines behind the gateway. */
export function backends({ now }) {
  const health = (one) => {
    if (one.up && one.breaker === "closed") return h("span", { class: "ok" }, "● up");
    if (one.up) return h("span", { class: "warn" }, `◐ on trial (breaker ${one.breaker})`);
    const why = one.problem || (one.breaker !== "closed" ? `breaker ${one.breaker}${one.opens_s !== null ? `, tries again in ${duration(one.opens_s)}` : ""}` : "not well");
    return h("span", { class: "bad" }, `✕ down: ${why}`);
  };
  return table("Counts since the start; opened: how often its breaker has kept requests from it", [
    ["Backend", false], ["Health", false], ["In flight / seats", true], ["Sent there", true], ["Failed there", true], ["Opened", true], ["Engine runs / waits", true], ["KV use", true], ["Last checked", false], ["Can", false],
  ], now.backends.map((one) => [
    h("span", null, one.name, h("span", { class: "soft" }, ` ${[one.kind, one.variant, one.pool, one.models.join(", ")].filter(Boolean).join(", ")}`)), health(one),
    `${integer(one.in_flight)} / ${integer(one.seats)}`, integer(one.picked), integer(one.failed), integer(one.opened),
    one.running === null ? DASH : `${integer(one.running)} / ${integer(one.waiting)}`, percent(one.kv_used ?? NaN),
    one.probed_ago_s === null ? (one.probe_every_s === null ? "never: it is here" : "not yet") : `${duration(one.probed_ago_s)} ago, every ${duration(one.probe_every_s)}`,
    able(one),
  ]), "There is no backend.");
}

function able(one) {
  const parts = [one.endpoints.join(", ")];
  if (one.native_concurrency !== null) parts.push(`${integer(one.native_concurrency)} at once`);
  if (one.max_model_len !== null) parts.push(`${integer(one.max_model_len)} tokens long`);
  if (one.kv_tokens !== null) parts.push(`${integer(one.kv_tokens)} KV tokens`);
  if (one.knobs.length) parts.push(`turns ${one.knobs.join(", ")}`);
  return parts.filter(Boolean).join("; ");
}

/** What the GPUs say, or why they say nothing. */
export function gpus({ now }) {
  const { problem, gpus: found } = now.gpus;
  if (!found.length) return h("p", { class: "soft" }, `GPU telemetry: ${problem || "no GPU"}.`);
  const gb = (bytes) => (bytes === null ? DASH : number(bytes / 1e9, 3));
  return table("As nvidia-smi says", [["GPU", false], ["Busy", true], ["Memory (GB)", true], ["of (GB)", true], ["Power (W)", true], ["Temperature (°C)", true]],
    found.map((one) => [`${one.index}: ${one.name}`, percent(one.busy_fraction ?? NaN), gb(one.memory_used_bytes), gb(one.memory_bytes), number(one.power_w ?? NaN), number(one.temperature_c ?? NaN)]), "");
}

/** Put new children in a box; a table inside keeps where its reader has scrolled it, and the focus. */
export function renew(box, ...children) {
  const held = box.querySelector(".table-box");
  const [left, top, focused] = [held?.scrollLeft ?? 0, held?.scrollTop ?? 0, held !== null && document.activeElement === held];
  fill(box, ...children);
  const fresh = box.querySelector(".table-box");
  if (!fresh) return;
  fresh.scrollLeft = left;
  fresh.scrollTop = top;
  if (focused) fresh.focus({ preventScroll: true });
}

function latest(events, wanted) {
  for (let i = events.length - 1; i >= 0; i--) if (wanted(events[i])) return events[i];
  return null;
}

function sender(event) {
  return event.policy ? `${event.policy} (${event.by})` : event.by;
}

function ago(at, now) {
  const s = Math.max(0, now - at);
  return s < 1 ? "just now" : `${duration(Math.round(s))} ago`;
}

function shown(value) {
  if (value === null || value === undefined) return "none";
  if (typeof value === "number") return number(value);
  return typeof value === "boolean" ? (value ? "yes" : "no") : typeof value === "object" ? JSON.stringify(value) : String(value);
}
