// One queue for all that is drawn on canvases: first what is on screen, at most ten times a second each, a few milliseconds a frame.
// And the house's colours for canvases, which CSS does not reach.

const AGAIN_MS = 100;
const FRAME_MS = 16;
const QUIET_MS = 300;

const members = new Map();
const waiting = new Set();
let asked = false;
let colours = null;
//: Milliseconds that one drawing costs, as measured of late; and of the last turn that drew.
let cost = 4;
let [begunLast, mineLast, drawnLast, restUntil] = [0, 0, 0, 0];

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
  for (const { target, contentRect } of entries) {
    const one = members.get(target);
    if (!one) continue;
    one.width = Math.floor(contentRect.width);
    soon(one);
  }
});

/** Take part in the queue: `drawable` has draw(now) and gets later(), visible and width (CSS pixels of the box); `box` is the element that has to be on screen. */
export function queue(drawable, box) {
  drawable.visible = false;
  drawable.drawn = -Infinity;
  drawable.width = 0;
  drawable.asked = -Infinity;
  drawable.later = () => {
    drawable.asked = performance.now();
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

/** Call `again` when an element has another size or the page other colours. Gives a function that ends it. */
export function whenever(element, again) {
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const sizes = new ResizeObserver(again);
  addEventListener("themechange", again);
  scheme.addEventListener("change", again);
  sizes.observe(element);
  return () => {
    removeEventListener("themechange", again);
    scheme.removeEventListener("change", again);
    sizes.disconnect();
  };
}

function repaint() {
  colours = null;
  for (const one of members.values()) soon(one);
}

/** Draw as soon as there is time, seen or not. */
function soon(drawable) {
  drawable.later();
  drawable.asked = -Infinity;
}

function ask() {
  if (asked) return;
  asked = true;
  document.documentElement.toggleAttribute("data-drawing", true);
  requestAnimationFrame(turn);
}

/**
 * Draw those that have waited longest, as long as the frame has time. A browser without a GPU paints after our turn,
 * on the same thread: what a drawing costs is measured from one frame to the next, and as much time as was used is
 * left to others.
 */
function turn(now) {
  asked = false;
  const begun = performance.now();
  if (drawnLast) {
    const gap = begun - begunLast;
    const late = gap > 1.5 * (1000 / 60);
    cost += 0.2 * ((late ? gap : mineLast) / drawnLast - cost);
    restUntil = late ? begun + Math.min(200, gap) : 0;
    drawnLast = 0;
  }
  let left = false;
  let drawn = 0;
  for (const one of [...waiting].sort((a, b) => b.visible - a.visible || a.drawn - b.drawn)) {
    // What nobody sees is drawn as well, for print and pictures, but only when all is quiet.
    if (!one.visible && (left || begun - one.asked < QUIET_MS)) break;
    if (now - one.drawn < AGAIN_MS || begun < restUntil || (drawn > 0 && (drawn + 1) * cost > FRAME_MS)) {
      left = true;
      continue;
    }
    waiting.delete(one);
    one.drawn = now;
    one.draw(now);
    drawn += 1;
  }
  if (drawn) [begunLast, mineLast, drawnLast] = [begun, performance.now() - begun, drawn];
  // For who takes pictures: <html data-drawing> is there while something is still to be drawn.
  document.documentElement.toggleAttribute("data-drawing", waiting.size > 0);
  if (left || drawn) ask();
  else if (waiting.size) setTimeout(ask, QUIET_MS);
}

/** `action`, done at once and then at most every `pause` milliseconds; the last call is never lost. `cancel()` ends it. */
export function seldom(action, pause) {
  let done = -Infinity;
  let timer = 0;
  const act = () => {
    timer = 0;
    done = performance.now();
    action();
  };
  const call = () => {
    const wait = done + pause - performance.now();
    if (wait <= 0 && !timer) act();
    else if (!timer) timer = setTimeout(act, wait);
  };
  call.cancel = () => clearTimeout(timer);
  return call;
}
