// One queue for all that is drawn on canvases: only what is on screen, at most ten times a second each, a few milliseconds a frame.
// And the house's colours for canvases, which CSS does not reach.

const AGAIN_MS = 100;
const FRAME_MS = 12;

const members = new Map();
const waiting = new Set();
let asked = false;
let colours = null;

addEventListener("themechange", repaint);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);

const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const one = members.get(target);
    if (!one) continue;
    one.visible = isIntersecting;
    if (isIntersecting) one.later();
  }
}, { rootMargin: "200px 0px" });
const sized = new ResizeObserver((entries) => {
  for (const { target } of entries) members.get(target)?.later();
});

/** Take part in the queue: `drawable` has draw(now) and gets later(), visible; `box` is the element that has to be on screen. */
export function queue(drawable, box) {
  drawable.visible = false;
  drawable.drawn = -Infinity;
  drawable.later = () => {
    waiting.add(drawable);
    ask();
  };
  members.set(box, drawable);
  seen.observe(box);
  sized.observe(box);
}

/** Take part no more. */
export function unqueue(drawable, box) {
  seen.unobserve(box);
  sized.unobserve(box);
  members.delete(box);
  waiting.delete(drawable);
}

/** A colour of the house by the name of its CSS custom property, as the page's theme has it now. */
export function colour(name) {
  if (!colours) colours = { style: getComputedStyle(document.documentElement), found: {} };
  return (colours.found[name] ??= colours.style.getPropertyValue(`--${name}`).trim() || "#888");
}

/** A colour, see-through. */
export function faint(name, share) {
  return `color-mix(in srgb, ${colour(name)} ${share * 100}%, transparent)`;
}

function repaint() {
  colours = null;
  for (const one of members.values()) one.later();
}

function ask() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(turn);
}

/** Draw those that have waited longest, as long as the frame has time. What is off screen waits until it is seen. */
function turn(now) {
  asked = false;
  const begun = performance.now();
  let left = false;
  for (const one of [...waiting].sort((a, b) => a.drawn - b.drawn)) {
    if (!one.visible) continue;
    if (now - one.drawn < AGAIN_MS || performance.now() - begun > FRAME_MS) {
      left = true;
      continue;
    }
    waiting.delete(one);
    one.drawn = now;
    one.draw(now);
  }
  if (left) ask();
}
