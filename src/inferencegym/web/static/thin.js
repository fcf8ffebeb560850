// Thinning: of many samples, those that a screen can show. Keeps each pixel's lowest and highest value, so no spike is lost.

/** Index of the first x that is at least `value`. `x` ascends. */
export function firstAt(x, value) {
  let low = 0;
  let high = x.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (x[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * @param {ArrayLike<number>} x ascending
 * @param {ArrayLike<number>[]} ys may be shorter than x; NaN is no value
 * @param {number} from, to the range of x to show
 * @param {number} buckets about the number of pixels
 * @returns {Array} [xs, ...columns] as uPlot takes them: null is a gap
 */
export function thin(x, ys, from, to, buckets) {
  const begin = Math.max(0, firstAt(x, from) - 1);
  let end = firstAt(x, to);
  end = Math.min(x.length, end + (x[end] === to ? 2 : 1));
  const count = end - begin;
  if (count <= 2 * buckets) return whole(x, ys, begin, end);
  const step = Math.ceil(count / buckets);
  const pieces = Math.ceil(count / step);
  const xs = new Array(2 * pieces);
  const columns = ys.map(() => new Array(2 * pieces));
  for (let piece = 0; piece < pieces; piece++) {
    const first = begin + piece * step;
    const last = Math.min(end, first + step) - 1;
    xs[2 * piece] = x[first];
    xs[2 * piece + 1] = last > first ? x[last] : x[first];
    for (let i = 0; i < ys.length; i++) {
      const y = ys[i];
      const stop = Math.min(last, y.length - 1);
      let low = Infinity;
      let high = -Infinity;
      let lowAt = -1;
      let highAt = -1;
      for (let k = first; k <= stop; k++) {
        const value = y[k];
        if (value < low) { low = value; lowAt = k; }
        if (value > high) { high = value; highAt = k; }
      }
      const none = lowAt < 0;
      columns[i][2 * piece] = none ? null : lowAt <= highAt ? low : high;
      columns[i][2 * piece + 1] = none ? null : lowAt <= highAt ? high : low;
    }
  }
  return [xs, ...columns];
}

function whole(x, ys, begin, end) {
  const xs = new Array(end - begin);
  for (let k = begin; k < end; k++) xs[k - begin] = x[k];
  return [xs, ...ys.map((y) => {
    const column = new Array(end - begin);
    for (let k = begin; k < end; k++) {
      const value = k < y.length ? y[k] : null;
      column[k - begin] = value === null || value === undefined || value !== value ? null : value;
    }
    return column;
  })];
}
