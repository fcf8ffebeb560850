// The form of the Arena: what to play. A Spec is {task, policies, split, seed, overrides}; the same travels in the page's address.
import { fill, h } from "../dom.js";
import { integer, withUnit, words } from "../format.js";

const KINDS = [
  ["rule", "Rules", "written by hand, act at once"],
  ["learned", "Learned", "trained; their weights ship with the package"],
  ["static", "Static", "one configuration all the time"],
  ["planner", "Planners", "search ahead on copies of the engine: strong, but minutes rather than seconds"],
];

/** The Spec that an address asks for, or null where it asks for none. */
export function specFrom(params) {
  if (!params.get("task") || !params.get("policies")) return null;
  const overrides = {};
  for (const [name, value] of params) {
    if (!name.startsWith("set.")) continue;
    overrides[name.slice(4)] = value.trim() !== "" && Number.isFinite(Number(value)) ? Number(value) : value;
  }
  const seed = params.get("seed") ?? "0";
  return {
    task: params.get("task"), policies: policiesOf(params.get("policies")), split: params.get("split") ?? "validation",
    seed: /^\d+$/.test(seed) ? Number(seed) : seed, overrides,
  };
}

/** Names with commas between them; what follows fixed: keeps its commas as long as they part NAME=VALUE. As web/spec.py has it. */
function policiesOf(text) {
  const found = [];
  for (const part of text.split(",").map((one) => one.trim()).filter(Boolean)) {
    if (found.at(-1)?.startsWith("fixed:") && part.includes("=") && !part.includes(":")) found[found.length - 1] += `,${part}`;
    else found.push(part);
  }
  return found;
}

/** A Spec as an address has it. */
export function paramsOf(spec) {
  const params = new URLSearchParams({ task: spec.task, policies: spec.policies.join(","), split: spec.split, seed: String(spec.seed) });
  for (const [name, value] of Object.entries(spec.overrides)) params.set(`set.${name}`, String(value));
  return params;
}

/** Runs to begin with, of what this server offers. */
export function examples(catalogue) {
  const wanted = [
    ["Four policies on hard", "hard", ["sieve", "lru", "largest-first", "random"]],
    ["Learned against static when traffic bursts", "bursty_workload", ["learned", "best-static", "slo-feedback", "aimd"]],
    ["Doing nothing on easy, and what helps", "easy", ["do-nothing", "lru", "learned"]],
  ];
  const found = [];
  for (const [label, name, names] of wanted) {
    const task = catalogue.tasks.find((one) => one.name === name && one.available);
    if (!task) continue;
    const known = names.filter((one) => task.policies.some((policy) => policy.name === one));
    if (known.length === names.length) found.push({ label, spec: { task: name, policies: known, split: "validation", seed: 0, overrides: {} } });
  }
  if (!found.length) {
    const task = catalogue.tasks.find((one) => one.available);
    const policies = task?.policies.filter((one) => one.quick).slice(0, 4).map((one) => one.name) ?? [];
    if (policies.length) found.push({ label: `${policies.length} policies on ${task.name}`, spec: { task: task.name, policies, split: "validation", seed: 0, overrides: {} } });
  }
  return found;
}

/** The form. `onStart(spec)`: the reader wants this run. */
export class Form {
  constructor(catalogue, onStart) {
    this.catalogue = catalogue;
    this.onStart = onStart;
    this.chosen = [];
    this.most = catalogue.most_policies;
    this.build();
    this.changeTask((catalogue.tasks.find((one) => one.available) ?? catalogue.tasks[0]).name);
  }

  build() {
    const families = Map.groupBy ? Map.groupBy(this.catalogue.tasks, (one) => one.family) : grouped(this.catalogue.tasks, (one) => one.family);
    this.task = h("select", { id: "task", onchange: () => this.changeTask(this.task.value), "aria-describedby": "task-about" },
      [...families].map(([family, tasks]) => h("optgroup", { label: FAMILIES[family] ?? family },
        tasks.map((one) => h("option", { value: one.name, disabled: !one.available }, one.available ? one.name : `${one.name} (not here)`)))));
    this.about = h("p", { class: "hint", id: "task-about" });
    this.split = h("select", { id: "split" }, this.catalogue.splits.map((name) => h("option", { value: name, selected: name === "validation" }, name)));
    this.split.addEventListener("change", () => this.seedHint());
    this.seed = h("input", { id: "seed", type: "number", min: "0", step: "1", value: "0", inputmode: "numeric" });
    this.seedAbout = h("span", { class: "hint", id: "seed-about" });
    this.policies = h("div", { class: "kinds" });
    this.count = h("span", { class: "hint", role: "status", id: "policies-about" });
    this.overrides = h("div", { class: "grid" });
    this.more = h("details", { class: "overrides" }, h("summary", null, "Overrides"),
      h("p", { class: "hint" }, "Left empty, the task's own values hold. Runs with overrides have no place on the leaderboard."), this.overrides);
    this.problem = h("p", { class: "error", id: "form-error", role: "alert", hidden: true });
    this.start = h("button", { id: "start", type: "submit", class: "primary" }, "Start");
    this.element = h("form", { id: "arena-form", class: "arena-form", novalidate: true, onsubmit: (event) => this.submitted(event) },
      h("div", { class: "first" },
        field("Task", this.task, "task", this.about),
        field("Split", this.split, "split"),
        field("Seed", this.seed, "seed", this.seedAbout)),
      h("fieldset", { "data-field": "policies", "aria-describedby": "policies-about policies-error" }, h("legend", null, `Policies, up to ${this.most}`),
        this.policies, this.count, h("span", { class: "error", id: "policies-error", hidden: true })),
      this.more, this.problem,
      h("div", { class: "row" }, this.start, this.hint = h("span", { class: "hint" })));
  }

  get chosenTask() {
    return this.catalogue.tasks.find((one) => one.name === this.task.value);
  }

  changeTask(name) {
    this.task.value = name;
    const task = this.chosenTask;
    this.about.textContent = task.available
      ? `${task.description} ${integer(task.steps)} decisions${task.decisions_per_sample > 1 ? `, ${task.decisions_per_sample} a ${task.sample_name}` : ""}.`
      : task.why_not;
    this.start.disabled = !task.available;
    const names = task.policies.map((one) => one.name);
    const another = this.family !== task.family;
    this.family = task.family;
    this.chosen = this.chosen.filter((one) => names.includes(one) || (!another && one.startsWith("fixed:")));
    if (!this.chosen.length) this.chosen = first(task);
    this.boxes = new Map();
    fill(this.policies, KINDS.map(([kind, title, what]) => {
      const mine = task.policies.filter((one) => one.kind === kind);
      if (!mine.length) return null;
      return h("div", { class: "kind", role: "group", "aria-label": title }, h("span", { class: "label" }, title, h("span", { class: "hint" }, ` ${what}`)),
        h("div", { class: "chips", "data-kind": kind }, mine.map((one) => this.chip(one))));
    }), this.own(task));
    for (const name of this.chosen) if (name.startsWith("fixed:")) this.addFixed(name);
    this.inputs = new Map();
    fill(this.overrides, task.overrides.map((one) => this.override(one)));
    this.more.hidden = !task.overrides.length;
    this.seedHint();
    this.count_();
    this.complain(null);
  }

  /** Where the reader writes a configuration of their own. */
  own(task) {
    const example = task.family === "pagedkv" ? "fixed:admit_free" : "fixed:batch_cap=64,speculation_depth=2";
    const input = h("input", { id: "own-policy", type: "text", placeholder: example, spellcheck: "false", autocapitalize: "off", onkeydown: (event) => event.key === "Enter" && (event.preventDefault(), add()) });
    const add = () => {
      const name = input.value.trim();
      if (!name) return;
      if (!name.startsWith("fixed:")) return this.complain({ field: "policies", message: `Write it as ${example}.` });
      if (!this.boxes.has(name)) this.addFixed(name);
      if (this.chosen.length < this.most) this.choose(name, true);
      input.value = "";
    };
    return h("div", { class: "kind" }, h("label", { for: "own-policy" }, "Your own", h("span", { class: "hint" }, " the same action all the time")),
      h("div", { class: "chips", "data-kind": "own" }), h("div", { class: "row own" }, input, h("button", { type: "button", id: "add-policy", onclick: add }, "Add")));
  }

  addFixed(name) {
    this.policies.querySelector('[data-kind="own"]').append(this.chip({ name, quick: true }));
  }

  chip(policy) {
    const box = h("input", { type: "checkbox", "data-policy": policy.name, onchange: () => this.choose(policy.name, box.checked) });
    const order = h("span", { class: "order", "aria-hidden": "true" });
    this.boxes.set(policy.name, { box, order });
    return h("label", { class: "chip" }, box, h("span", null, policy.name), policy.quick ? null : h("span", { class: "hint" }, "slow"), order);
  }

  choose(name, on) {
    this.chosen = on ? [...this.chosen.filter((one) => one !== name), name] : this.chosen.filter((one) => one !== name);
    this.complain(null);
    this.count_();
  }

  count_() {
    const full = this.chosen.length >= this.most;
    for (const [name, { box, order }] of this.boxes) {
      const place = this.chosen.indexOf(name);
      box.checked = place >= 0;
      box.disabled = full && place < 0;
      order.textContent = place >= 0 ? String(place + 1) : "";
      order.className = place >= 0 ? `order slot-${place % 8}` : "order";
    }
    this.count.textContent = full ? `${this.chosen.length} chosen, no room for more` : `${this.chosen.length} chosen`;
    const slow = this.chosenTask.policies.filter((one) => this.chosen.includes(one.name) && !one.quick).map((one) => one.name);
    this.hint.textContent = slow.length ? `${slow.join(", ")} will take a while; the others do not wait.` : "";
  }

  override(one) {
    const id = `set-${one.name}`;
    const own = withUnit(one.default, one.unit);
    const control = one.kind === "choice"
      ? h("select", { id, name: one.name }, h("option", { value: "" }, `the task's own (${one.default})`), one.choices.map((value) => h("option", { value }, value)))
      : h("input", { id, name: one.name, type: "number", min: one.min, max: one.max, step: one.kind === "int" ? "1" : "any", placeholder: String(one.default), inputmode: "decimal" });
    this.inputs.set(one.name, control);
    const range = one.kind === "choice" || one.min === null || one.min === undefined ? "" : `, ${withUnit(one.min, "")} to ${withUnit(one.max, one.unit)}`;
    return field(one.label, control, one.name, one.kind === "choice" ? null : h("span", { class: "hint" }, `${own}${range}`));
  }

  /** Overrides in words, one a string. */
  told(overrides) {
    return Object.entries(overrides).map(([name, value]) => {
      const one = this.chosenTask.overrides.find((known) => known.name === name);
      return one ? `${one.label} ${typeof value === "number" ? withUnit(value, one.unit) : value}` : `${words(name)} ${value}`;
    });
  }

  seedHint() {
    const scenarios = this.chosenTask.scenarios?.[this.split.value];
    const many = Array.isArray(scenarios) ? scenarios.length : scenarios;
    this.seedAbout.textContent = many <= 1e6 ? `0 to ${integer(many - 1)}` : "0, 1, 2, …: the same seed is the same traffic";
    if (Number.isFinite(many)) this.seed.max = String(many - 1);
    else this.seed.removeAttribute("max");
  }

  /** Show a Spec. Gives what of it this server does not know, in words, or null. */
  show(spec) {
    const task = this.catalogue.tasks.find((one) => one.name === spec.task);
    if (!task) return `There is no task ${spec.task} here. There are: ${this.catalogue.tasks.map((one) => one.name).join(", ")}.`;
    this.chosen = [];
    this.changeTask(spec.task);
    for (const name of spec.policies) if (name.startsWith("fixed:") && !this.boxes.has(name)) this.addFixed(name);
    const unknown = spec.policies.filter((name) => !this.boxes.has(name));
    this.chosen = spec.policies.filter((name) => this.boxes.has(name)).slice(0, this.most);
    if (this.catalogue.splits.includes(spec.split)) this.split.value = spec.split;
    this.seedHint();
    this.seed.value = String(spec.seed);
    for (const [name, value] of Object.entries(spec.overrides)) if (this.inputs.has(name)) this.inputs.get(name).value = String(value);
    this.more.open = Object.keys(spec.overrides).length > 0;
    this.count_();
    return unknown.length ? `${spec.task} has no policy ${unknown.join(", ")}.` : null;
  }

  /** What the form says, numbers as numbers. */
  spec() {
    const overrides = {};
    for (const one of this.chosenTask.overrides) {
      const text = this.inputs.get(one.name).value.trim();
      if (text === "") continue;
      const value = one.kind === "choice" && typeof one.choices[0] !== "number" ? text : Number(text);
      if (value !== one.default) overrides[one.name] = value;
    }
    return { task: this.task.value, policies: [...this.chosen], split: this.split.value, seed: this.seed.value.trim() === "" ? 0 : Number(this.seed.value), overrides };
  }

  submitted(event) {
    event.preventDefault();
    this.complain(null);
    const unread = [...this.element.querySelectorAll("input[type=number]")].find((one) => one.validity.badInput || (one.value !== "" && one.step === "1" && !Number.isInteger(Number(one.value))));
    if (unread) return this.complain({ field: unread.name || unread.id, message: unread.step === "1" ? "A whole number, please." : "A number, please." });
    if (!this.chosen.length) return this.complain({ field: "policies", message: "Choose at least one policy." });
    this.onStart(this.spec());
  }

  /** Say what the server refused, at the field that it names; null takes it back. */
  complain(error) {
    for (const node of this.element.querySelectorAll(".error")) fill(node).hidden = true;
    for (const node of this.element.querySelectorAll("[aria-invalid]")) node.removeAttribute("aria-invalid");
    if (!error) return;
    const name = (error.field ?? "").split(".").pop().replace(/^policy$/, "policies").replace(/^set-/, "");
    const holder = this.element.querySelector(`[data-field="${CSS.escape(name)}"]`);
    const text = error.allowed && !error.message.includes(error.allowed) ? `${error.message} Allowed: ${error.allowed}.` : error.message;
    const place = holder?.querySelector(".error") ?? this.problem;
    fill(place, text).hidden = false;
    if (holder?.closest("details")) holder.closest("details").open = true;
    const control = holder?.querySelector("input, select");
    if (control && holder.tagName !== "FIELDSET") control.setAttribute("aria-invalid", "true");
    control?.focus();
  }
}

const FAMILIES = { pagedkv: "KV memory, tick by tick (pagedkv)", llmserve: "A deployment, window by window (llmserve)" };

function field(label, control, name, hint = null) {
  const id = `${control.id}-error`;
  control.setAttribute("aria-describedby", [hint?.id, id].filter(Boolean).join(" "));
  return h("div", { class: "field", "data-field": name }, h("label", { for: control.id }, label), control, hint, h("span", { class: "error", id, hidden: true }));
}

function grouped(items, by) {
  const found = new Map();
  for (const item of items) found.set(by(item), [...(found.get(by(item)) ?? []), item]);
  return found;
}

/** What is ticked at first: the learned policy and the best that never changes, or else the last two of those that are quick. */
function first(task) {
  const quick = task.policies.filter((one) => one.quick);
  const best = [...quick.filter((one) => one.kind === "learned"), ...quick.filter((one) => one.kind === "static")];
  return (best.length > 1 ? best : quick.slice(-2)).slice(0, 2).map((one) => one.name);
}
