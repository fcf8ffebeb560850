"""How fast PagedKV is: ticks and decisions per CPU second on the hard task, masks on, uniformly random legal actions, restarts included.

Best of three runs after compilation, one thread, process CPU time. Actions are drawn from the masks by a kernel whose own cost
is part of the figures. `busy` figures are with a full pool instead of random play, which leaves it empty. `python benchmarks/envs_pagedkv.py [--json]`; `measure()` for other scripts.
`--decisions` prints instead what rules and the clairvoyant reach with 1 to 4 decisions a tick, `--loads` the offered load by phase.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

import inferencegym.envs
from inferencegym.engine.paging.traffic import DRAIN_TICKS, PHASES, offered_load
from inferencegym.envs.pagedkv import PagedBatch, PagedTask, load
from inferencegym.envs.splits import scenario
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


@kernel
def draw_busy(masks: np.ndarray, state: np.ndarray, actions: np.ndarray) -> None:
    """Fills the pool: admits while it can, keeps a tenth free by evicting and shredding. state[1:] holds a GPU use per row."""
    for row in range(len(masks)):
        mask = masks[row]
        full = state[1 + row] > 0
        actions[row] = 17
        for action in (0, 1, 12, 13) if full else (9, 8, 0, 1):
            if mask[action]:
                actions[row] = action
                break


def run(batch: PagedBatch, steps: int, first: int, busy: bool = False) -> tuple[float, float]:
    """CPU seconds of so many steps of every row with random or busy actions, and the mean GPU use in them."""
    state = np.full(1 + batch.n, 7, np.uint64)
    begun, uses = 0, []
    start = time.process_time()
    for step in range(steps):
        if busy:
            state[1:] = batch.observations[:, 0] > 0.9
            draw_busy(batch.masks, state, batch.actions)
        else:
            draw_legal(batch.masks, state, batch.actions)
        batch.step()
        if step % 500 == 0:
            uses.append(float(batch.observations[:, 0].mean()))
        ended = batch.terminated | batch.truncated
        if ended.any():
            for row in np.flatnonzero(ended):
                batch.start(int(row), first + begun)
                begun += 1
    return time.process_time() - start, float(np.mean(uses))


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
        if rows > 1:
            best, use = min(run(batch, many, 5000 + 100 * k, busy=True) for k in range(repeats))
            found["pagedkv_ticks_per_cpu_s_vector_busy"] = rows * many / best / slots
            found["pagedkv_busy_gpu_use"] = use
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


def decisions_table(scenarios: int = 20, planned: int = 6) -> str:
    """Mean value by task and decisions a tick, on validation scenarios (the clairvoyant on fewer), as Markdown."""
    from inferencegym.envs.paging_planner import Clairvoyant
    from inferencegym.policies.memory import LargestFirst, Lru, Sieve, Swapper

    lines = [
        "| task | decisions a tick | lru | largest-first | swapper | sieve | clairvoyant |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ("easy", "medium", "hard"):
        base = load(TASKS / f"{name}.toml")
        for slots in (1, 2, 3, 4):
            task = PagedTask(name, "", replace(base.rules, decisions_per_tick=slots), base.demand)
            rules = [Lru(), LargestFirst(), Swapper(), Sieve(decisions_per_tick=slots)]
            means = [np.mean([play(task, rule, scenario("validation", i)) for i in range(scenarios)]) for rule in rules]
            means.append(np.mean([play(task, Clairvoyant(), scenario("validation", i)) for i in range(planned)]))
            lines.append(f"| {name} | {slots} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    return "\n".join(lines)


def loads_table(scenarios: int = 40) -> str:
    """Offered load and arrivals by task and phase, mean over training scenarios, as Markdown."""
    lines = ["| task | phase | offered load | arrivals a tick |", "|---|---|---|---|"]
    for name in ("easy", "medium", "hard"):
        task = load(TASKS / f"{name}.toml")
        traffic = [task.traffic(i) for i in range(scenarios)]
        for phase, label in enumerate(PHASES[task.demand.pattern]):
            found = np.mean([offered_load(t, task.rules)[phase] for t in traffic])
            last = task.rules.horizon_ticks - DRAIN_TICKS
            came = sum(int(((t.table["phase"] == phase) & (t.table["tick"] <= last)).sum()) for t in traffic)
            ticks = sum(int((t.phases[: last + 1] == phase).sum()) for t in traffic)
            lines.append(f"| {name} | {label} | {found:.2f} | {came / ticks:.2f} |")
    return "\n".join(lines)


def play(task: PagedTask, policy, number: int) -> float:
    """Value of one episode of a policy or a planner."""
    batch = task.batch(1)
    batch.start(0, number)
    policy.start(number)
    while not (batch.terminated[0] or batch.truncated[0]):
        planner = hasattr(policy, "decide")
        batch.actions[0] = policy.decide(batch) if planner else policy.act(batch.observations[0], batch.masks[0])
        batch.step()
    return batch.outcome(0).value


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--json", action="store_true")
    options.add_argument("--decisions", action="store_true")
    options.add_argument("--loads", action="store_true")
    chosen = options.parse_args()
    if chosen.decisions or chosen.loads:
        print(decisions_table() if chosen.decisions else loads_table())
        return
    found = measure()
    if chosen.json:
        print(json.dumps(found, indent=1))
    else:
        for name, value in found.items():
            print(f"{name:45s} {value:14,.1f}")


if __name__ == "__main__":
    main()
