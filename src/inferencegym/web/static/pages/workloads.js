// Workloads: what one looks like, or two side by side on the same axes. The address holds the whole choice.
import { ApiError, get } from "../api.js";
import { copyText } from "../copy.js";
import { fill, h } from "../dom.js";
import { DASH, duration, integer, number, percent } from "../format.js";
import { createPlot } from "../plot.js";
import { compared, shares } from "./workloads_table.js";

const KINDS = { fit: "Drawn from shipped fits", task: "Traffic of tasks", trace: "Real traces here" };
const KIND = { fit: "fit", task: "task", trace: "trace" };
const FIRST = "azure-conversation";
const SETTINGS = [
  { name: "seed", label: "Seed", hint: "of what is drawn; a task's scenario", min: 0, step: 1, shown: "0" },
  { name: "duration_s", label: "Duration (s)", hint: "to draw, or from a trace's start", min: 0, step: "any", shown: "own" },
  { name: "rate_rps", label: "Mean rate (requests/s)", hint: "the pattern stays", min: 0, step: "any", shown: "own" },
];

export async function mount(root, ctx) {
  const page = new Page(root, ctx);
  await page.begin();
  return () => page.end();
}

class Page {
  constructor(root, ctx) {
    this.root = root;
    this.ctx = ctx;
    this.params = new URLSearchParams(ctx.params);
    this.plots = [];
    this.asking = null;
  }

  async begin() {
    this.known = (await get("workloads")).workloads;
    if (!this.params.get("a") && !this.params.get("b")) this.params.set("a", FIRST);
    for (const which of ["a", "b"]) {
      const meant = this.known.find((one) => `${one.kind}:${one.name}` === this.params.get(which));
      if (meant) this.params.set(which, meant.id);
    }
    this.chosen = { a: this.select("a"), b: this.select("b") };
    this.fields = Object.fromEntries(SETTINGS.map((one) => [one.name, this.field(one)]));
    this.split = h("select", { id: "workload-split", onchange: () => this.change() },
      ["validation", "train", "test"].map((name) => h("option", { value: name, selected: name === (this.params.get("split") ?? "validation") }, name)));
    this.figures = h("section", { id: "figures", "aria-label": "Figures", "aria-live": "off" });
    fill(this.root,
      h("h1", null, "Workloads"),
      h("p", { class: "soft" }, "When requests come, how long they are, and what they share. Choose one, or two to lay over one another."),
      h("form", { class: "choice", onsubmit: (event) => { event.preventDefault(); this.change(); } },
        this.slot(0, "a", "Workload"), this.slot(1, "b", "Beside it"),
        SETTINGS.map((one) => this.fields[one.name].box),
        h("div", { class: "field" }, h("label", { for: "workload-split" }, "Split"), this.split, h("span", { class: "hint" }, "which scenarios of a task")),
        h("div", { class: "buttons" }, h("button", { type: "submit", class: "primary" }, "Show"), h("button", { type: "button", id: "workload-swap", onclick: () => this.swap() }, "Swap"))),
      this.figures,
      this.index());
    await this.show();
  }

  end() {
    this.asking?.abort();
    for (const plot of this.plots) plot.destroy();
  }

  // --- choosing -------------------------------------------------------------------------------------------------------

  select(which) {
    const present = this.params.get(which) ?? "";
    const options = Object.entries(KINDS).map(([kind, label]) => {
      const members = this.known.filter((one) => one.kind === kind && (one.available || kind === "task"));
      return members.length ? h("optgroup", { label }, members.map((one) => h("option", { value: one.id, selected: one.id === present, disabled: !one.available }, one.available ? one.name : `${one.name} (not here)`))) : null;
    });
    const strange = present && !this.known.some((one) => one.id === present && one.available);
    return h("select", { id: `workload-${which}`, onchange: () => this.change() },
      h("option", { value: "", selected: !present }, which === "a" ? "choose one" : "none"), strange ? h("option", { value: present, selected: true }, `${present} (not here)`) : null, options);
  }

  slot(slot, which, label) {
    return h("div", { class: "field wide" }, h("label", { for: `workload-${which}` }, h("span", { class: `swatch slot-${slot}` }), ` ${label}`), this.chosen[which]);
  }

  field({ name, label, hint, min, step, shown }) {
    const input = h("input", { id: `workload-${name}`, name, type: "number", min, step, placeholder: shown, value: this.params.get(name) ?? "", "aria-describedby": `workload-${name}-hint`, onchange: () => this.change() });
    const error = h("span", { class: "error", role: "alert" });
    const box = h("div", { class: "field" }, h("label", { for: `workload-${name}` }, label), input, h("span", { class: "hint", id: `workload-${name}-hint` }, hint), error);
    return { input, error, box };
  }

  swap() {
    const held = this.chosen.a.value;
    this.chosen.a.value = this.chosen.b.value;
    this.chosen.b.value = held;
    this.change();
  }

  change() {
    const next = new URLSearchParams();
    for (const which of ["a", "b"]) if (this.chosen[which].value) next.set(which, this.chosen[which].value);
    for (const { name } of SETTINGS) {
      const { input } = this.fields[name];
      if (input.validity.badInput) return this.wrong(name, "is no number");
      if (input.value) next.set(name, input.value);
    }
    if (this.split.value !== "validation") next.set("split", this.split.value);
    this.params = next;
    this.ctx.setParams(next);
    this.show();
  }

  wrong(name, text) {
    const { input, error } = this.fields[name];
    input.setAttribute("aria-invalid", "true");
    error.textContent = text;
  }

  // --- showing --------------------------------------------------------------------------------------------------------

  async show() {
    this.asking?.abort();
    const asking = (this.asking = new AbortController());
    for (const { input, error } of Object.values(this.fields)) {
      input.removeAttribute("aria-invalid");
      error.textContent = "";
    }
    const ids = ["a", "b"].map((which) => this.params.get(which));
    this.ctx.title(ids.filter(Boolean).join(" and "));
    if (!ids.some(Boolean)) {
      this.clear();
      fill(this.figures, h("div", { class: "empty" }, h("h2", null, "No workload chosen"), h("p", null, "Choose one above: a shipped fit needs nothing else on this machine.")));
      return;
    }
    this.figures.setAttribute("aria-busy", "true");
    if (!this.plots.length) fill(this.figures, h("p", { class: "loading", role: "status" }, "Reading and counting…"));
    const settings = Object.fromEntries([...this.params].filter(([name]) => name !== "a" && name !== "b"));
    const found = await Promise.all(ids.map((id) => (id ? get(`workloads/${encodeURIComponent(id)}`, settings, asking.signal).catch((error) => error) : null)));
    if (asking.signal.aborted) return;
    this.figures.removeAttribute("aria-busy");
    this.draw(found, ids);
  }

  clear() {
    for (const plot of this.plots) plot.destroy();
    this.plots = [];
  }

  draw(found, ids) {
    this.clear();
    const errors = found.filter((one) => one instanceof Error);
    for (const error of errors) {
      if (!(error instanceof ApiError)) throw error;
      if (this.fields[error.field]) this.wrong(error.field, error.allowed ? `Allowed: ${error.allowed}` : error.message);
    }
    const there = found.map((one, slot) => (one && !(one instanceof Error) ? { ...one, slot, label: `${one.name} (${KIND[one.kind]})` } : null)).filter(Boolean);
    const cards = found.map((one, slot) => one && this.card(one, slot, ids[slot]));
    const charts = h("div", { class: "charts" });
    fill(this.figures, h("div", { class: "pair" }, cards));
    if (there.length) {
      this.figures.append(h("h2", null, "Figures"), compared(there), ...shares(there), h("h2", null, "Curves"), charts);
      this.curves(charts, there);
    }
    this.ctx.announce(there.length ? `Shown: ${there.map((one) => `${one.name}, ${integer(one.described.requests)} requests`).join("; ")}` : "Nothing could be shown");
  }

  card(one, slot, id) {
    const head = (name, more) => h("h2", null, h("span", { class: `swatch slot-${slot}` }), ` ${name} `, more);
    if (one instanceof Error) {
      return h("article", { class: "card", "data-workload": id }, head(id), h("p", { class: "bad" }, h("strong", null, "Error: "), one.message),
        h("button", { type: "button", onclick: () => this.show() }, "Try again"));
    }
    const { described } = one;
    const label = { seed: "the seed", duration_s: "the duration", rate_rps: "the rate", split: "the split" };
    return h("article", { class: "card", "data-workload": one.id },
      head(one.name, h("span", { class: "badge soft" }, KIND[one.kind])),
      h("p", null, `${integer(described.requests)} requests in ${duration(described.duration_s)}; `, one.read.whole ? one.read.words : h("strong", null, one.read.words), "."),
      one.unused.length ? h("p", { class: "small" }, h("strong", null, "Note: "), `${one.unused.map((name) => label[name]).join(" and ")} does not apply to it.`) : null,
      h("p", { class: "small soft" }, described.source, described.attribution ? ` · ${described.attribution}` : null),
      h("p", { class: "small soft" }, "The same figures, typed:"),
      copied(one.command ?? one.python, one.command ? "command" : "Python"));
  }

  curves(parent, there) {
    const add = (options, series) => {
      if (series.length) this.plots.push(createPlot(parent, { ...options, series }));
    };
    const of = (name, make) => there.filter((one) => one.curves[name]?.edges?.length || (one.curves[name] && !("edges" in one.curves[name]))).map((one) => ({ label: one.label, slot: one.slot, ...make(one.curves[name]) }));
    const histogram = (curve) => ({ kind: "steps", x: curve.edges, y: curve.shares.map((share) => 100 * share) });
    // Of an hour beside a week nothing could be seen: then each has its own time.
    const spans = there.map((one) => one.described.duration_s).filter((span) => span > 0);
    const own = spans.length === 2 && Math.max(...spans) > 8 * Math.min(...spans);
    const edges = (curve) => [...curve.from_s, curve.from_s.at(-1) + curve.bin_s];
    const drawn = (curve, all = edges(curve)) => ({ kind: "steps", x: own ? all.map((at) => (100 * at) / all.at(-1)) : all, y: curve.rps });
    add({ title: "Rate over time", unit: "requests/s", xLabel: own ? "share of each one's own duration" : "time", xUnit: own ? "%" : "s" }, of("rate", (curve) => drawn(curve)));
    add({ title: "Burstiness", unit: "variance / mean", xLabel: "window", xUnit: "s", logX: true, logY: true, levels: [{ label: "Poisson", value: 1 }] },
      of("burstiness", (scales) => ({ kind: "points", x: scales.map((one) => one.window_s), y: scales.map((one) => one.idc) })).filter((one) => one.x.length));
    add({ title: "Peak over mean", unit: "×", xLabel: "window", xUnit: "s", logX: true, logY: true },
      of("burstiness", (scales) => ({ kind: "points", x: scales.map((one) => one.window_s), y: scales.map((one) => one.peak_over_mean) })).filter((one) => one.x.length));
    add({ title: "Gaps between arrivals", unit: "% of gaps", xLabel: "gap", xUnit: "s", logX: true }, of("gaps_s", histogram));
    add({ title: "Prompt lengths", unit: "% of requests", xLabel: "prompt", xUnit: "tokens", logX: true }, of("prompt_tokens", histogram));
    add({ title: "Output lengths", unit: "% of requests", xLabel: "output", xUnit: "tokens", logX: true }, of("output_tokens", histogram));
    add({ title: "Turns of a session", unit: "% of sessions", xLabel: "turns", xUnit: "", logX: true }, of("turns", histogram));
    add({ title: "Pause before a turn", unit: "% of turns", xLabel: "pause", xUnit: "s", logX: true }, of("think_s", histogram));
    add({ title: "Prefix reuse by depth", unit: "% of prompts so long", xLabel: "depth in the prompt", xUnit: "tokens", logX: true, yMin: 0, yMax: 100 },
      of("reuse", (curve) => ({ kind: "points", x: curve.depth_tokens, y: curve.share.map((share) => 100 * share) })));
    const none = ["turns", "reuse"].filter((name) => !there.some((one) => one.curves[name])).map((name) => ({ turns: "sessions", reuse: "shared prefixes" })[name]);
    const instant = there.filter((one) => one.curves.gaps_s?.below > 0);
    parent.after(h("div", { class: "small soft notes" },
      none.length ? h("p", null, `No data on ${none.join(" or ")} in what is shown, so there is no chart of them.`) : null,
      instant.map((one) => h("p", null, `${one.name}: ${percent(one.curves.gaps_s.below)} of gaps are shorter than 0.1 ms, most of them exactly 0, and lie left of the chart.`))));
  }

  // --- what there is --------------------------------------------------------------------------------------------------

  index() {
    const size = (one) => (one.requests !== null ? `${integer(one.requests)} rows` : one.bytes !== null ? `${number(one.bytes / 1024 ** 2, 3)} MiB` : one.rate_rps !== null ? `${number(one.rate_rps, 3)} requests/s` : DASH);
    const show = (one) => one.available
      ? h("button", { type: "button", class: "plain", onclick: () => this.pick(one.id) }, "Show")
      : h("span", { class: "soft" }, one.why_not);
    return h("details", { id: "workload-index" }, h("summary", null, `All ${this.known.length} workloads, with sources`),
      h("div", { class: "table-box", tabindex: "0", role: "region", "aria-label": "All workloads" }, h("table", null,
        h("thead", null, h("tr", null, ["Name", "Kind", "Size", "What", "Source", ""].map((name) => h("th", { scope: "col" }, name || h("span", { class: "sr" }, "Show"))))),
        h("tbody", null, this.known.map((one) => h("tr", { "data-workload-row": one.id },
          h("th", { scope: "row" }, one.name), h("td", null, KIND[one.kind]), h("td", null, size(one)), h("td", null, one.about),
          h("td", null, [one.source, one.licence].filter(Boolean).join(", ")), h("td", null, show(one))))))));
  }

  pick(id) {
    this.chosen.a.value = id;
    this.change();
    this.chosen.a.focus();
    this.root.scrollIntoView();
  }
}

/** A command to copy. */
function copied(text, what) {
  const button = h("button", { type: "button", class: "plain small", "aria-label": `Copy the ${what}`, onclick: async () => {
    button.textContent = (await copyText(text)) ? "copied" : "select and copy it";
  } }, "copy");
  return h("div", { class: "typed" }, h("pre", { tabindex: "0", "aria-label": what }, h("code", null, text)), button);
}
