// What a chart paints around its lines: shaded stretches of x, levels, and each line's own sign at its end. For chart.js; `u` is a uPlot.
import { colour, faint } from "./drawing.js";

/** Shade stretches [{from, to, label}] of x. */
export function paintStretches(u, stretches) {
  for (const { from, to, label } of stretches) {
    const left = Math.max(u.bbox.left, u.valToPos(from, "x", true));
    const right = Math.min(u.bbox.left + u.bbox.width, u.valToPos(to, "x", true));
    if (right <= left) continue;
    u.ctx.save();
    u.ctx.fillStyle = faint("soft", 0.15);
    u.ctx.fillRect(left, u.bbox.top, right - left, u.bbox.height);
    if (label) write(u, label, left + 4 * devicePixelRatio, u.bbox.top + 12 * devicePixelRatio, colour("soft"), "left");
    u.ctx.restore();
  }
}

/** Draw horizontal lines [{label, value}]. */
export function paintLevels(u, levels) {
  for (const { label, value } of levels) {
    const y = u.valToPos(value, "y", true);
    if (y < u.bbox.top || y > u.bbox.top + u.bbox.height) continue;
    const { ctx } = u;
    ctx.save();
    ctx.strokeStyle = colour("bad");
    ctx.lineWidth = devicePixelRatio;
    ctx.setLineDash([6 * devicePixelRatio, 4 * devicePixelRatio]);
    ctx.beginPath();
    ctx.moveTo(u.bbox.left, y);
    ctx.lineTo(u.bbox.left + u.bbox.width, y);
    ctx.stroke();
    ctx.restore();
    write(u, label, u.bbox.left + u.bbox.width - 4 * devicePixelRatio, y - 4 * devicePixelRatio < u.bbox.top + 10 * devicePixelRatio ? y + 13 * devicePixelRatio : y - 4 * devicePixelRatio, colour("bad"), "right");
  }
}

/** Each line's own sign at its end, so that nobody has to tell lines apart by colour alone. `columns` as uPlot has them; `signs`: {text, ink} or null for each. */
export function paintMarks(u, columns, signs) {
  const ends = [];
  signs.forEach((sign, i) => {
    if (!sign) return;
    const column = columns[i + 1];
    let k = column.length - 1;
    while (k >= 0 && column[k] === null) k--;
    if (k >= 0) ends.push({ ...sign, x: u.valToPos(columns[0][k], "x", true), y: u.valToPos(column[k], "y", true) });
  });
  const size = 13 * devicePixelRatio;
  const bottom = u.bbox.top + u.bbox.height;
  const shown = ends.filter((end) => end.x >= u.bbox.left);
  apart(shown, size, bottom);
  for (const end of shown) {
    const x = Math.min(end.x + 3 * devicePixelRatio, u.bbox.left + u.bbox.width + 2 * devicePixelRatio);
    write(u, end.text, x, end.y + 4 * devicePixelRatio, colour(end.ink), "left", "bold ");
  }
}

/** Say that there is nothing, in the middle. */
export function paintNothing(u, text) {
  write(u, text, u.bbox.left + u.bbox.width / 2, u.bbox.top + u.bbox.height / 2, colour("soft"), "center");
}

function write(u, text, x, y, ink, align, weight = "") {
  const { ctx } = u;
  ctx.save();
  ctx.font = `${weight}${11 * devicePixelRatio}px system-ui, sans-serif`;
  ctx.textAlign = align;
  ctx.lineWidth = 3 * devicePixelRatio;
  ctx.lineJoin = "round";
  ctx.strokeStyle = colour("paper");
  ctx.strokeText(text, x, y);
  ctx.fillStyle = ink;
  ctx.fillText(text, x, y);
  ctx.restore();
}

/** Move signs that stand in the same place down until each can be read, and up again from the bottom. */
function apart(ends, size, bottom) {
  ends.sort((a, b) => a.y - b.y);
  const near = (a, b) => Math.abs(a.x - b.x) < size;
  for (let k = 1; k < ends.length; k++) {
    for (let j = 0; j < k; j++) if (near(ends[j], ends[k])) ends[k].y = Math.max(ends[k].y, ends[j].y + size);
  }
  for (let k = ends.length - 1; k >= 0; k--) {
    ends[k].y = Math.min(ends[k].y, bottom);
    for (let j = k + 1; j < ends.length; j++) if (near(ends[j], ends[k])) ends[k].y = Math.min(ends[k].y, ends[j].y - size);
  }
}
