"""How fast the environments are, through Gymnasium's interfaces: steps per CPU second, one thread, after compilation, best of several runs.

PagedKV plays `hard` with uniformly random legal actions, drawn from the masks by a kernel; `_busy` keeps the pool nine tenths full.
LLMServe plays `bursty_workload` with the knobs it starts with, and `_varied` with random ones each window. Ended episodes begin anew on
the way, on 64 scenarios (training on more pays for their traffic: `llmserve_start_ms_new_scenario`, `pagedkv_start_ms_new_scenario`).

`python benchmarks/envs.py` prints a table with the predecessors' figures beside ours, `--json` one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
from envs_pagedkv import draw_busy, draw_legal

import inferencegym.envs
from inferencegym.envs.registration import LLMSERVE, PAGEDKV

ROWS = 64
SCENARIOS = 64
TARGETS = {
    "pagedkv_ticks_per_cpu_s_vector": 1_000_000,
    "pagedkv_steps_per_cpu_s_single": 200_000,
    "llmserve_windows_per_cpu_s_vector": 4_000,
    "llmserve_requests_per_cpu_s": 700_000,
    "llmserve_windows_per_cpu_s_single": 2_500,
}
#: Steps per CPU second of what came before, on the same kind of machine: three tasks each (measured; the faster of two variants is not chosen, both stand here).
PREDECESSORS = {
    "LLMServeEnv, as published (no requests inside)": "141 / 138 / 144 windows",
    "LLMServeEnv, with its data rebuilt": "93 / 48 / 123 windows",
    "Neural PagedAttention, 1,000 blocks": "34,800 / 12,700 / 8,700 ticks",
}


def best(work: Callable[[], float], repeats: int) -> tuple[float, float]:
    """(units per CPU second, units per wall second) of the best of several runs; `work` says how many units it did."""
    found = []
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        done = work()
        found.append((done / (time.process_time() - cpu), done / (time.perf_counter() - wall)))
    return max(found)


def paged_vector(steps: int, busy: bool) -> Callable[[], float]:
    env = gym.make_vec(
        PAGEDKV, num_envs=ROWS, vectorization_mode="vector_entry_point", task="hard", scenarios=SCENARIOS
    )
    ticks = ROWS * steps / env.unwrapped.task.rules.decisions_per_tick
    observations, info = env.reset(seed=0)
    actions, state = np.zeros(ROWS, np.int64), np.full(1 + ROWS, 7, np.uint64)

    def work() -> float:
        nonlocal observations, info
        for _ in range(steps):
            if busy:
                state[1:] = observations[:, 0] > 0.9
                draw_busy(info["action_mask"], state, actions)
            else:
                draw_legal(info["action_mask"], state, actions)
            observations, _, _, _, info = env.step(actions)
        return ticks

    return work


def paged_single(steps: int) -> Callable[[], float]:
    env = gym.make(PAGEDKV, task="hard", scenarios=SCENARIOS)
    env.reset(seed=0)
    drawn = np.random.default_rng(0).integers(0, 18, steps).tolist()

    def work() -> float:
        for action in drawn:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        return steps

    return work


def serve_vector(steps: int, varied: bool, counted: str) -> Callable[[], float]:
    env = gym.make_vec(LLMSERVE, num_envs=ROWS, vectorization_mode="vector_entry_point", scenarios=SCENARIOS)
    env.reset(seed=0)
    start = np.tile(env.unwrapped.task.start.levers(), (ROWS, 1))
    env.action_space.seed(0)
    sample = env.action_space.sample()
    sample[:, 4] = 0
    arrivals = env.unwrapped.single_observation_space.shape and env.unwrapped.task.surface.columns.index(
        "request_arrival_rate"
    )
    window_s = env.unwrapped.task.file.window_s

    def work() -> float:
        requests = 0.0
        for i in range(steps):
            if varied:
                sample[:, 0] = (sample[:, 0] + 3) % 10
                sample[:, 1] = 9 - (i + np.arange(ROWS)) % 7
                sample[:, 2] = (i + np.arange(ROWS)) % 5
            observations, *_ = env.step(sample if varied else start)
            if counted == "requests":
                natural = env.unwrapped.task.surface.columns.decode(observations)
                requests += float(natural[:, arrivals].sum()) * window_s
        return requests if counted == "requests" else ROWS * steps

    return work


def serve_single(steps: int) -> Callable[[], float]:
    env = gym.make(LLMSERVE, scenarios=SCENARIOS)
    env.reset(seed=0)
    levers = env.unwrapped.task.start.levers()

    def work() -> float:
        for _ in range(steps):
            _, _, terminated, truncated, _ = env.step(levers)
            if terminated or truncated:
                env.reset()
        return steps

    return work


def start_ms(name: str, **more: object) -> float:
    """CPU milliseconds to begin an episode whose traffic was never drawn before."""
    env = gym.make(name, **more)
    for _ in range(3):
        env.reset()
    begun = time.process_time()
    for i in range(30):
        env.reset(options={"scenario": 10**6 + i})
    return (time.process_time() - begun) / 30 * 1000


def measure(repeats: int, scale: float) -> dict[str, float]:
    """All figures."""

    def n(steps: int) -> int:
        return max(10, int(steps * scale))

    works = {
        "pagedkv_ticks_per_cpu_s_vector": paged_vector(n(20_000), False),
        "pagedkv_ticks_per_cpu_s_vector_busy": paged_vector(n(20_000), True),
        "pagedkv_steps_per_cpu_s_single": paged_single(n(300_000)),
        "llmserve_windows_per_cpu_s_vector": serve_vector(n(240), False, "windows"),
        "llmserve_windows_per_cpu_s_vector_varied": serve_vector(n(240), True, "windows"),
        "llmserve_requests_per_cpu_s": serve_vector(n(240), False, "requests"),
        "llmserve_windows_per_cpu_s_single": serve_single(n(2400)),
    }
    found: dict[str, float] = {}
    for name, work in works.items():
        work()
        cpu, wall = best(work, repeats)
        found[name] = round(cpu, 1)
        found[name.replace("per_cpu_s", "per_wall_s")] = round(wall, 1)
    found["pagedkv_start_ms_new_scenario"] = round(start_ms(PAGEDKV, task="hard"), 3)
    found["llmserve_start_ms_new_scenario"] = round(start_ms(LLMSERVE), 3)
    return found


def processor() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of steps")
    options = parser.parse_args()
    found = measure(options.repeats, options.scale)
    context = {
        "cpu": processor(), "rows": ROWS, "threads": 1, "repeats": options.repeats, "copies": "observations, masks, rewards and terms are copied",
        "version": inferencegym.__version__,
    }  # fmt: skip
    if options.json:
        print(json.dumps({**found, "targets": TARGETS, "context": context, "predecessors": PREDECESSORS}))
        return
    print(", ".join(f"{name}: {value}" for name, value in context.items()))
    for name, value in found.items():
        target = TARGETS.get(name)
        print(
            f"{name:44} {value:>14,.0f}"
            + (f"   target {target:,}: {'met' if value >= target else 'MISSED'}" if target else "")
        )
    print("before, per CPU second:")
    for name, said in PREDECESSORS.items():
        print(f"  {name:48} {said}")


if __name__ == "__main__":
    main()
