// A run as this page holds it: the samples of each policy, and the connection that brings them and comes back when it breaks.
import { ApiError, frames, get, post } from "../api.js";

const SILENCE_MS = 12_000;
const PAUSES_S = [1, 2, 4, 8, 15, 30];

/** Samples of all policies of one run: for each policy and column a Float32Array that grows, filled from the front. */
export class Samples {
  /** @param {object} run as the server tells it: columns, policies, samples */
  constructor(run) {
    this.columns = run.columns;
    this.most = run.samples;
    this.data = run.policies.map(() => run.columns.map(() => new Float32Array(0)));
    this.counts = run.policies.map(() => 0);
    this.x = new Float64Array(0);
  }

  /** Put rows [first, first + rows) of a policy in their place; payload is [columns][rows] float32, little-endian. Gives false where rows before them are missing. */
  put(policy, first, rows, payload) {
    if (first > this.counts[policy]) return false;
    const values = new Float32Array(payload);
    this.room(policy, first + rows);
    for (let c = 0; c < this.columns.length; c++) this.data[policy][c].set(values.subarray(c * rows, (c + 1) * rows), first);
    this.counts[policy] = Math.max(this.counts[policy], first + rows);
    return true;
  }

  room(policy, need) {
    if (this.x.length < need) {
      this.x = Float64Array.from({ length: Math.max(need, Math.min(this.most, 2 * this.x.length + 512)) }, (_, k) => k);
    }
    const mine = this.data[policy];
    if (mine.length && mine[0].length >= need) return;
    const size = Math.max(need, Math.min(this.most, 2 * (mine[0]?.length ?? 0) + 512));
    for (let c = 0; c < mine.length; c++) {
      const larger = new Float32Array(size);
      larger.set(mine[c]);
      mine[c] = larger;
    }
  }

  /** The value of a column at a sample, NaN where there is none. */
  at(policy, column, sample) {
    return sample >= 0 && sample < this.counts[policy] ? this.data[policy][column][sample] : NaN;
  }

  /** How many samples the furthest policy has. */
  get front() {
    return Math.max(0, ...this.counts);
  }
}

/**
 * Follow a run to its end, through lost connections and restarts of the server.
 * @param {object} run as POST api/runs gave it
 * @param {object} told onRun(run): it begins (again), with empty samples; onSamples(policy, first); onEnded(policy); onState(state, place, message);
 *   onLost(seconds, now): next attempt is so far away, now() makes it at once; onBack(): connected again; onReplayed(): the server had forgotten it
 * @param {AbortSignal} signal ends everything
 */
export async function follow(run, told, signal) {
  let now = begin(run);
  let failures = 0;
  while (!signal.aborted) {
    try {
      if (await stream(now, told, signal, () => { if (failures) told.onBack(); failures = 0; })) return;
      // The stream ended early: the server went down in good order, or frames are not those that we counted.
    } catch (error) {
      if (signal.aborted || error.name === "AbortError" && signal.aborted) return;
      if (error.status === 404) {
        const again = await posted(now.run.spec, signal);
        if (again) {
          told.onReplayed();
          now = begin(again);
          failures = 0;
          continue;
        }
      } else if (error instanceof ApiError && error.status !== 0 && error.status < 500) throw error;
    }
    if (signal.aborted) return;
    const pause = PAUSES_S[Math.min(failures++, PAUSES_S.length - 1)];
    await waited(pause, told, signal);
  }

  function begin(fresh) {
    const samples = new Samples(fresh);
    told.onRun(fresh, samples);
    return { run: fresh, samples, next: 0 };
  }
}

/** One connection. Gives true when the run has ended and all of it is here. */
async function stream(now, told, signal, onFirst) {
  const inner = new AbortController();
  const stop = () => inner.abort();
  signal.addEventListener("abort", stop);
  let heard = performance.now();
  let first = true;
  let ended = false;
  const watch = setInterval(() => performance.now() - heard > SILENCE_MS && stop(), 1000);
  try {
    await frames(`runs/${now.run.id}/stream?frame=${now.next}`, (header, payload) => {
      heard = performance.now();
      if (first) onFirst();
      first = false;
      if (header.type === "alive") {
        // A run that waits no longer has begun, even if nothing has come of it yet.
        if (now.run.state === "waiting" && header.place === 0) now.run.state = "running";
        told.onState(null, header.place, "");
        return;
      }
      if (header.type === "samples") {
        if (!now.samples.put(header.policy, header.first, header.rows, payload)) throw new Gap();
        const one = now.run.policies[header.policy];
        const begun = one.state === "waiting";
        if (begun) one.state = "running";
        if (now.run.state === "waiting") now.run.state = "running";
        told.onSamples(header.policy, begun);
      } else if (header.type === "ended") {
        Object.assign(now.run.policies[header.policy], { state: header.state, result: header.result ?? null, message: header.message ?? "" });
        told.onEnded(header.policy);
      } else if (header.type === "state") {
        now.run.state = header.state;
        ended = header.state === "done";
        if (header.state === "failed") return;
        told.onState(header.state, header.place ?? null, header.message ?? "");
      }
      now.next = header.frame + 1;
    }, inner.signal);
    if (ended) return true;
    const fresh = await get(`runs/${now.run.id}`, null, signal);
    if (fresh.state !== "done" && fresh.state !== "failed") return false;
    if (fresh.policies.some((one, i) => one.samples > now.samples.counts[i])) throw new Gap();
    fresh.policies.forEach((one, i) => {
      Object.assign(now.run.policies[i], one);
      told.onEnded(i);
    });
    told.onState(fresh.state, null, fresh.message);
    return true;
  } catch (error) {
    if (!(error instanceof Gap)) {
      if (error.name === "AbortError" && !signal.aborted) throw new ApiError(0, "The server has gone silent.");
      throw error;
    }
    // Another playing of the same run: its frames are cut elsewhere. From the first on, then; the numbers are the same.
    now.next = 0;
    return false;
  } finally {
    clearInterval(watch);
    signal.removeEventListener("abort", stop);
    inner.abort();
  }
}

class Gap extends Error {}

/** Ask for the run anew; null where the server is not there either. */
async function posted(spec, signal) {
  try {
    return await post("runs", spec, signal);
  } catch (error) {
    if (error instanceof ApiError && error.status !== 0 && error.status < 500) throw error;
    return null;
  }
}

/** Wait so many seconds, telling each, or until the reader does not want to. */
function waited(pause, told, signal) {
  return new Promise((resolve) => {
    let left = pause;
    const end = () => {
      clearInterval(timer);
      signal.removeEventListener("abort", end);
      removeEventListener("online", end);
      resolve();
    };
    const timer = setInterval(() => {
      left -= 1;
      if (left <= 0) end();
      else told.onLost(left, end);
    }, 1000);
    signal.addEventListener("abort", end);
    addEventListener("online", end);
    told.onLost(left, end);
  });
}
