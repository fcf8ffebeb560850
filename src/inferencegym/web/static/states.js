// What has become of a policy, as a badge: a sign and a word, so that nobody needs the colour.
import { fill, h } from "./dom.js";

const STATES = {
  waiting: ["…", "WAITING", "soft"], running: ["▶", "RUNNING", "accent"], completed: ["✓", "COMPLETED", "ok"], crashed: ["✕", "CRASHED", "bad"], failed: ["!", "FAILED", "bad"],
};

/** Make a badge say a state, and where it came to that if told. Gives the word. */
export function tellState(badge, state, where = "") {
  const [sign, word, ink] = STATES[state] ?? STATES.waiting;
  badge.className = `badge ${ink}`;
  badge.dataset.state = state;
  fill(badge, h("span", { "aria-hidden": "true" }, sign), word + where);
  return word;
}
