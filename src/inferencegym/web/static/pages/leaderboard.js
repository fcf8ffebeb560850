// Leaderboard: every entry of every task with its interval, how it was made, how to see it again, and how it is checked.
import { ApiError, download, get } from "../api.js";
import { fill, h, svg } from "../dom.js";
import { integer } from "../format.js";

const FAMILIES = { "": "all families", pagedkv: "pagedkv: KV memory, tick by tick", llmserve: "llmserve: a deployment, window by window" };
const COLUMNS = [
  { key: "place", label: "Place", value: (one) => one.place ?? Infinity, n: true },
  { key: "name", label: "Policy", value: (one) => one.name },
  { key: "mean", label: "Grade × 100", value: (one) => -one.mean, n: true, highFirst: true },
  { key: "interval", label: "95 % interval" },
  { key: "scenarios", label: "Scenarios", value: (one) => -one.scenarios, n: true, highFirst: true },
  { key: "authors", label: "By", value: (one) => one.authors },
  { key: "ways", label: "See it" },
];
const PLOT = { width: 260, height: 26, pad: 18 };

export async function mount(root, ctx) {
  const board = await get("leaderboard");
  const page = new Page(board, ctx);
  fill(root, page.content());
  page.draw();
  return () => {};
}

class Page {
  constructor(board, ctx) {
    this.board = board;
    this.ctx = ctx;
    const wanted = ctx.params;
    this.family = wanted.get("family") in FAMILIES ? wanted.get("family") : "";
    const sort = wanted.get("sort") ?? "place";
    this.sort = COLUMNS.some((column) => column.value && column.key === sort) ? sort : "place";
    this.backwards = wanted.get("order") === "backwards";
  }

  content() {
    const chooser = h("select", { id: "board-family", onchange: (event) => this.change({ family: event.target.value }) },
      Object.entries(FAMILIES).map(([name, label]) => h("option", { value: name, selected: name === this.family }, label)));
    this.box = h("div", { id: "board" });
    this.jump = h("nav", { "aria-label": "Tasks", class: "jump small" });
    return [
      h("h1", null, "Leaderboard"),
      h("p", { class: "soft" }, `Mean grade × 100 over ${this.board.split} scenarios that nothing was trained or chosen on. 0 is the random policy's, 100 that of a planner that knows the future, on the same scenario; more is possible. Whiskers are 95 % bootstrap intervals. An entry with fewer than ${this.board.ranked_from_scenarios} scenarios is listed and not ranked.`),
      h("div", { class: "row" }, h("div", { class: "field" }, h("label", { for: "board-family" }, "Tasks of"), chooser), this.jump),
      this.box,
      this.more()];
  }

  change(given) {
    Object.assign(this, given);
    const params = new URLSearchParams();
    if (this.family) params.set("family", this.family);
    if (this.sort !== "place") params.set("sort", this.sort);
    if (this.backwards) params.set("order", "backwards");
    this.ctx.setParams(params);
    this.draw();
  }

  sortBy(key) {
    const task = document.activeElement?.closest("[data-task]")?.dataset.task;
    this.change({ backwards: this.sort === key && !this.backwards, sort: key });
    this.box.querySelector(`[data-task="${task}"] [data-sort="${key}"]`)?.focus();
    this.ctx.announce(`Sorted by ${COLUMNS.find((column) => column.key === key).label}${this.backwards ? ", backwards" : ""}`);
  }

  draw() {
    const tasks = this.board.tasks.filter((task) => !this.family || task.family === this.family);
    fill(this.jump, tasks.map((task) => h("button", { type: "button", class: "plain", onclick: () => this.go(task.name) }, task.name)));
    fill(this.box, tasks.length ? tasks.map((task) => this.table(task)) : h("div", { class: "empty" }, h("h2", null, "No entries"), h("p", null, "Nobody has entered a policy for these tasks. Choose another family above.")));
  }

  go(name) {
    const heading = this.box.querySelector(`[data-task="${name}"] h2`);
    heading.focus({ preventScroll: true });
    heading.scrollIntoView();
  }

  table(task) {
    const { value } = COLUMNS.find((column) => column.key === this.sort);
    const compare = (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0);
    const rows = [...task.entries].sort((a, b) => (this.backwards ? compare(b, a) : compare(a, b)));
    const ends = [Math.min(0, ...rows.map((one) => one.low)), Math.max(1, ...rows.map((one) => one.high))];
    const x = (grade) => PLOT.pad + ((grade - ends[0]) / (ends[1] - ends[0])) * (PLOT.width - 2 * PLOT.pad);
    return h("section", { "data-task": task.name },
      h("h2", { tabindex: "-1" }, task.name, " ", h("span", { class: "badge soft" }, task.family)),
      h("p", { class: "small soft" }, task.description, " ", "All policies: ", h("code", null, task.page)),
      h("div", { class: "table-box", tabindex: "0", role: "region", "aria-label": `Entries of ${task.name}` }, h("table", null,
        h("thead", null, h("tr", null, COLUMNS.map((column) => this.heading(column, x)))),
        h("tbody", null, rows.map((one) => this.row(task, one, x))))));
  }

  heading({ key, label, value, n, highFirst = false }, x) {
    if (key === "interval") {
      const mark = (grade, text) => svg("text", { x: x(grade), y: 12, fill: "var(--soft)", "font-size": 12, "text-anchor": "middle" }, text);
      return h("th", { scope: "col" }, h("span", { class: "sr" }, label), svg("svg", { width: PLOT.width, height: 16, "aria-hidden": "true" }, mark(0, "0"), mark(0.5, "50"), mark(1, "100")));
    }
    if (!value) return h("th", { scope: "col" }, label);
    const now = this.sort !== key ? "none" : this.backwards === highFirst ? "ascending" : "descending";
    return h("th", { scope: "col", class: n ? "n" : null, "aria-sort": now },
      h("button", { type: "button", class: "plain", "data-sort": key, title: `Sort by ${label}`, onclick: () => this.sortBy(key) }, label, h("span", { "aria-hidden": "true" }, { none: "", ascending: " ▲", descending: " ▼" }[now])));
  }

  row(task, one, x) {
    const [mean, low, high] = one.x100.map(figure);
    const first = one.place === 1;
    return h("tr", { "data-policy": one.name, class: first ? "first" : null },
      h("td", { class: "n" }, one.place ?? h("span", { title: "not ranked: too few scenarios" }, "–", h("span", { class: "sr" }, "not ranked"))),
      h("th", { scope: "row" }, link(one), how(one)),
      h("td", { class: "n" }, h("strong", null, mean), h("div", { class: "soft range" }, `${low} to ${high}`)),
      h("td", null, whisker(one, x, `${mean}, 95 % interval ${low} to ${high}`)),
      h("td", { class: "n" }, integer(one.scenarios)),
      h("td", null, one.authors),
      h("td", null, this.ways(task, one)));
  }

  ways(task, one) {
    const arena = one.arena && this.ctx.about.sections.includes("arena");
    const query = arena ? `arena?${new URLSearchParams(one.arena)}`.replaceAll("%2C", ",") : null;
    return h("div", { class: "ways" },
      arena ? h("a", { href: query, "data-page": "arena" }, "Arena", h("span", { class: "sr" }, ` run of ${one.name} on ${task.name}`)) : null,
      one.weights ? h("button", { type: "button", class: "plain", onclick: () => this.keep(one.weights, `${task.name}.npz`) }, "Weights", h("span", { class: "sr" }, ` of ${one.name} on ${task.name}`)) : null,
      !one.arena && !one.weights ? h("span", { class: "soft" }, "a file of the repository") : null);
  }

  async keep(path, name) {
    try {
      await download(path, name);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.ctx.banner("error", error.message, { label: "Try again", action: (close) => { close(); this.keep(path, name); } });
    }
  }

  more() {
    return h("section", { id: "board-about" },
      h("h2", null, "How an entry is checked"),
      h("p", null, "A machine plays or replays every entry before it stands here: the claimed mean and interval must follow from its values, the policy's file must have the entered sha256, each value must come out again to 1e-6, the task's digest must be today's, and fresh scenarios that are in no table must not be worse than claimed. Nothing in an entry is executed: policies are arrays, records are tables."),
      h("pre", { tabindex: "0", "aria-label": "command" }, h("code", null, "python runs/leaderboard.py check TASK/NAME")),
      h("h2", null, "Enter your own"),
      h("p", null, "An entry is a folder leaderboard/TASK/NAME with an entry.toml and a policy's file or the records of its episodes, in a pull request. Train, search and tune on train and validation scenarios only. All rules: ", h("code", null, this.board.about), ". What trained policies are worth over several seeds: ", h("code", null, this.board.results), "."));
  }
}

/** A grade × 100, which the server has rounded as the tables of the docs have it. */
function figure(grade) {
  return grade.toFixed(1).replace("-", "−");
}

function link(one) {
  return one.link.startsWith("https://") ? h("a", { href: one.link, rel: "noopener noreferrer" }, one.name) : one.name;
}

function how(one) {
  const fact = (name, value) => (value ? [h("dt", null, name), h("dd", null, value)] : null);
  return h("details", { class: "how" }, h("summary", null, "how", h("span", { class: "sr" }, ` ${one.name} was made`)),
    h("p", null, one.training),
    h("dl", null,
      fact("plays", one.kind), fact("entry", h("code", null, one.file)), fact("task's digest", h("code", null, one.digest)), fact("sha256", one.sha256 && h("code", null, one.sha256)),
      fact("the same figures", one.evaluate && h("code", null, one.evaluate)), fact("check it", h("code", null, one.check))));
}

/** Dot and whisker on the task's own scale, with lines at 0 and 100. */
function whisker(one, x, words) {
  const middle = PLOT.height / 2;
  const ranked = one.place !== null;
  const ink = ranked ? "var(--series-0)" : "var(--soft)";
  return svg("svg", { class: "whisker", width: PLOT.width, height: PLOT.height, role: "img", "aria-label": words },
    [0, 1].map((grade) => svg("line", { x1: x(grade), x2: x(grade), y1: 0, y2: PLOT.height, stroke: "var(--rule)" })),
    svg("line", { x1: x(one.low), x2: x(one.high), y1: middle, y2: middle, stroke: ink, "stroke-width": 2 }),
    [one.low, one.high].map((end) => svg("line", { x1: x(end), x2: x(end), y1: middle - 5, y2: middle + 5, stroke: ink, "stroke-width": 2 })),
    svg("circle", { cx: x(one.mean), cy: middle, r: 4.5, fill: ranked ? ink : "var(--paper)", stroke: ink, "stroke-width": 2 }));
}
