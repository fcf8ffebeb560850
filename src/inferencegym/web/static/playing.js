// What a transport looks like: on every page the same controls in the same order, with the same words and keys.
import { fill, h } from "./dom.js";
import { integer } from "./format.js";

//: How far an arrow key goes with shift, samples.
export const FAR = 50;
const SIGNS = { Play: "▶", Pause: "❚❚", "Play again": "▶" };

/**
 * The five buttons.
 * @param {string} unit what a step is: a decision, a tick, a window
 * @param {{id: string, first: Function, back: Function, play: Function, forth: Function, last: Function}} on what they do; `id` is of the play button
 * @returns {{first, back, play, forth, last}} in the order to show them in
 */
export function buttons(unit, on) {
  const one = (id, name, title, act, ...inside) => h("button", { type: "button", id, "aria-label": name, title, onclick: act }, inside);
  const word = h("span", { class: "word" }, "step");
  const play = h("button", { type: "button", id: on.id, class: "primary play", title: "Space", onclick: on.play });
  tellPlay(play, "Play");
  return {
    first: one("first", "To the beginning", "Home", on.first, "|◂"), back: one("back", `One ${unit} back`, "Arrow left", on.back, "◂ ", word), play,
    forth: one("step", `One ${unit} forward`, "Arrow right", on.forth, word.cloneNode(true), " ▸"), last: one("last", "To the end", "End", on.last, "▸|"),
  };
}

/** What the play button would do now: Play, Pause or Play again. */
export function tellPlay(button, word) {
  if (button.dataset.says === word) return;
  button.dataset.says = word;
  fill(button, h("span", { "aria-hidden": "true" }, `${SIGNS[word]} `), word);
}

/** Choices of speed: so many units a second. */
export function speeds(unit, list, chosen) {
  return list.map((one) => h("option", { value: String(one), selected: one === chosen }, `×${integer(one)} (${integer(one)} ${unit}${one > 1 ? "s" : ""}/s)`));
}

/** A choice with its label before it; on a phone only who cannot see the choice needs the label. */
export function labelled(label, select) {
  return h("label", { class: "inline" }, h("span", { class: "word" }, `${label} `), select);
}

/** Which keys there are; `far`: how far the arrows go with shift, in words. */
export function keys(unit, far, more = "") {
  const key = (name) => h("kbd", null, name);
  return h("p", { class: "soft keys-hint" }, key("space"), " play or pause, ", key("←"), " ", key("→"), ` one ${unit}, with `, key("shift"), ` ${far}, `, key("home"), " ", key("end"), more);
}
