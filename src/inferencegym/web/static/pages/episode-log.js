// The log of an episode: a table of every decision, of which only the rows in view are there. Rows come from the server in pages and are kept.
import { get } from "../api.js";
import { fill, h } from "../dom.js";
import { integer, number } from "../format.js";

const PAGE = 100;
const ROW = 32;
const KEPT = 60;

/** Rows of one policy's episode, page by page. `base`: runs/ID/policies/I */
export class Rows {
  constructor(base, only = "") {
    Object.assign(this, { base, only, total: null, told: null });
    this.pages = new Map();
    this.asked = new Map();
  }

  /** The row at a place, if it is here. */
  at(place) {
    return this.pages.get(Math.floor(place / PAGE))?.[place % PAGE] ?? null;
  }

  /** See that the rows around a place are here; a page that was not full is asked for again. */
  async want(place, signal) {
    const page = Math.floor(Math.max(0, place) / PAGE);
    if (this.at(place)) return;
    if (!this.asked.has(page)) this.asked.set(page, this.fetch(page, signal).finally(() => this.asked.delete(page)));
    await this.asked.get(page);
  }

  async fetch(page, signal) {
    const told = await get(`${this.base}/rows`, { first: page * PAGE, count: PAGE, only: this.only }, signal);
    this.told = told;
    this.total = told.total;
    this.pages.delete(page);
    this.pages.set(page, told.rows);
    while (this.pages.size > KEPT) this.pages.delete(this.pages.keys().next().value);
  }
}

export class Log {
  /** @param {object} options base, sampleName, actions (null: knobs), signal, onPick(decision), onError(error) */
  constructor(parent, options) {
    this.options = options;
    this.playhead = 0;
    this.rows = new Rows(options.base);
    const choices = options.actions
      ? [["", "every decision"], ...options.actions.map(({ name }, i) => [String(i), name]), ["illegal", "not possible"]]
      : [["", "every decision"], ["turned", "knobs turned"], ["illegal", "not possible"]];
    this.select = h("select", { id: "log-only", onchange: () => this.filter() }, choices.map(([value, label]) => h("option", { value }, label)));
    this.following = h("input", { type: "checkbox", id: "log-follow", checked: true, onchange: () => this.render(true) });
    this.said = h("span", { class: "soft small", role: "status" });
    this.head = h("tr");
    this.body = h("tbody");
    this.table = h("table", null, h("caption", { class: "sr" }, "Decisions"), h("thead", null, this.head), this.body);
    this.box = h("div", { id: "log", class: "table-box log", tabindex: "0", role: "region", "aria-label": "Log of decisions", onscroll: () => this.render(false) }, (this.sheet = h("div", { class: "sheet" }, this.table)));
    this.element = h("div", null,
      h("div", { class: "row" }, h("label", { for: "log-only" }, "Show"), this.select, h("span", null, this.following, " ", h("label", { for: "log-follow" }, "follow the playhead")), this.said),
      this.box);
    parent.append(this.element);
  }

  /** How many decisions there are now. */
  grown(total) {
    if (this.total === total) return;
    this.total = total;
    if (!this.rows.only) this.rows.total = total;
    else this.rows = new Rows(this.options.base, this.select.value);
    this.render(false);
  }

  setCursor(decision) {
    if (decision === this.playhead && this.shown) return;
    this.playhead = decision;
    this.render(true);
  }

  filter() {
    this.rows = new Rows(this.options.base, this.select.value);
    if (!this.select.value) this.rows.total = this.total;
    this.box.scrollTop = 0;
    this.render(false);
  }

  async render(moved) {
    if (!this.element.isConnected) return;
    this.shown = true;
    const rows = this.rows;
    const high = this.box.clientHeight || 400;
    const room = Math.ceil(high / ROW) + 1;
    const follow = moved && this.following.checked && !rows.only;
    const whole = (rows.total ?? 0) * ROW + 2 * ROW;
    const top = follow ? Math.max(0, Math.min(this.playhead * ROW - high / 2 + ROW, whole - high)) : this.box.scrollTop;
    const first = Math.max(0, Math.floor(top / ROW) - 1);
    try {
      await Promise.all([rows.want(first, this.options.signal), rows.total === null || first + room < rows.total ? rows.want(first + room, this.options.signal) : rows.want(Math.max(0, rows.total - 1), this.options.signal)]);
    } catch (error) {
      if (error.name !== "AbortError") this.options.onError(error);
      return;
    }
    if (rows !== this.rows) return;
    this.lay(first, room);
    // The rows must be there before there is something to scroll to.
    if (follow && Math.abs(this.box.scrollTop - top) >= 1) this.box.scrollTop = top;
  }

  lay(first, room) {
    const { rows } = this;
    const { told, total } = rows;
    if (!told) return;
    const last = Math.min(total, first + room + 1);
    const columns = ["decision", this.options.sampleName, "action", "possible", "reward", ...told.terms];
    if (this.head.childElementCount !== columns.length) fill(this.head, columns.map((name, i) => h("th", { scope: "col", class: i === 2 ? null : "n" }, name)));
    const lines = [];
    for (let place = first; place < last; place++) {
      const row = rows.at(place);
      if (row) lines.push(this.line(row, place));
    }
    const focused = this.body.contains(document.activeElement) ? document.activeElement.dataset.decision : null;
    // The sheet is as high as all rows, and the few that are there hang at their place.
    this.sheet.style.setProperty("height", `${(total + 2) * ROW}px`);
    this.sheet.style.setProperty("padding-top", `${first * ROW}px`);
    fill(this.body, lines);
    if (focused) this.body.querySelector(`[data-decision="${focused}"]`)?.focus({ preventScroll: true });
    this.table.setAttribute("aria-rowcount", String(total + 1));
    this.said.textContent = total ? `${integer(total)} decisions` : "none";
  }

  line(row, place) {
    const here = row.decision === this.playhead;
    return h("tr", { class: here ? "here" : null, "aria-current": here ? "true" : null, "aria-rowindex": place + 2 },
      h("td", { class: "n" }, h("button", { type: "button", class: "plain", "data-decision": row.decision, "aria-label": `Go to decision ${row.decision}`, onclick: () => this.options.onPick(row.decision) }, integer(row.decision))),
      h("td", { class: "n" }, integer(row.sample)), h("td", null, row.words), h("td", { class: `n${row.legal ? "" : " bad"}` }, row.legal ? "yes" : "✕ no"),
      h("td", { class: "n" }, number(row.reward)), row.terms.map((value) => h("td", { class: "n" }, value ? number(value) : "0")));
  }
}
