"""How fast PagedKV is: ticks and decisions per CPU second on the hard task, masks on, uniformly random legal actions, restarts included.

Best of three runs after compilation, one thread, process CPU time. Actions are drawn from the masks by a kernel whose own cost
(measured without the machine) is part of the figures. `python benchmarks/envs_pagedkv.py [--json]`; `measure()` for other scripts.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

import inferencegym.envs
from inferencegym.envs.pagedkv import PagedBatch, load
from inferencegym.ground.jit import kernel

TASKS = Path(inferencegym.envs.__file__).parent / "tasks"
ROWS = 64


@kernel
def draw_legal(masks: np.ndarray, state: np.ndarray, actions: np.ndarray) -> None:
    """A uniformly random legal action for every row. state : uint64[1], a counter, changed in place."""
    for row in range(len(masks)):
        legal = 0
        for i in range(masks.shape[1]):
            legal += masks[row, i]
        state[0] += np.uint64(0x9E3779B97F4A7C15)
        z = state[0]
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        left = np.int64((z >> np.uint64(33)) % np.uint64(legal))
        for i in range(masks.shape[1]):
            if masks[row, i]:
                if left == 0:
                    actions[row] = i
                    break
                left -= 1


def run(batch: PagedBatch, steps: int, scenario: int) -> tuple[float, int]:
    """CPU seconds of so many random steps of every row, and the episodes begun in them."""
    state = np.array([7], np.uint64)
    begun = 0
    start = time.process_time()
    for _ in range(steps):
        draw_legal(batch.masks, state, batch.actions)
        batch.step()
        ended = batch.terminated | batch.truncated
        if ended.any():
            for row in np.flatnonzero(ended):
                batch.start(int(row), scenario + begun)
                begun += 1
    return time.process_time() - start, begun


def measure(steps: int = 20_000, repeats: int = 3) -> dict[str, float]:
    """The figures; a row's episodes begin in the middle of each other, so restarts come as they do in training."""
    task = load(TASKS / "hard.toml")
    slots = task.rules.decisions_per_tick
    found: dict[str, float] = {}
    for name, rows, many in (("vector", ROWS, steps), ("batch_of_one", 1, steps * 10)):
        batch = task.batch(rows)
        for row in range(rows):
            batch.start(row, row)
        run(batch, 200, 1000)
        best = min(run(batch, many, 2000 + 100 * k)[0] for k in range(repeats))
        found[f"pagedkv_decisions_per_cpu_s_{name}"] = rows * many / best
        found[f"pagedkv_ticks_per_cpu_s_{name}"] = rows * many / best / slots
    scenarios = iter(range(10**6, 10**7))
    found["pagedkv_start_us_new_scenario"] = _mean_us(lambda: batch.start(0, next(scenarios)), 200)
    found["pagedkv_start_us_known_scenario"] = _mean_us(lambda: batch.start(0, 5), 500)
    found["pagedkv_branch_us"] = _mean_us(lambda: batch.branch(0, 1), 200)
    found["pagedkv_step_us_batch_of_one"] = _mean_us(batch.step, 200)
    return found


def _mean_us(work, times: int) -> float:
    work()
    start = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - start) / times * 1e6


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--json", action="store_true")
    found = measure()
    if options.parse_args().json:
        print(json.dumps(found, indent=1))
    else:
        for name, value in found.items():
            print(f"{name:45s} {value:14,.1f}")


if __name__ == "__main__":
    main()
