"""Small deployments, workloads and knob settings for the tests of the fleet: pools so tight that every window evicts and preempts."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from inferencegym import Deployment, EngineSettings, Workload
from inferencegym.decision.knobs import GRID, LEVERS, Knobs
from inferencegym.engine import memory
from inferencegym.engine.fleet import Asking, Fleet, Plan, Steering
from inferencegym.ground.rng import stream

SECOND_PS = 10**12
#: Objectives and worth of the classes of `crowd`.
OBJECTIVES: dict[str, list[float]] = {"ttft_s": [0.4, 1.5], "tpot_s": [0.03, 0.08], "weight": [3.0, 1.0]}


@lru_cache(maxsize=32)
def plan(
    *, replicas: int = 2, kv_blocks: int | None = 220, steering: Steering | None = None, price_per_gpu_hour: float | None = None,
    cpu_kv_gib: float = 0.0, **settings: Any,
) -> Plan:  # fmt: skip
    """A deployment of Llama-3.1-8B on H100s that refuses prompts beyond 2,048 tokens."""
    given: dict[str, Any] = {"max_model_len": 2048, "acceptance": (0.8, 0.6, 0.4), "draft_cost": 0.03}
    given.update(settings)
    deployment = Deployment(
        replicas=replicas, kv_blocks=kv_blocks, price_per_gpu_hour=price_per_gpu_hour, cpu_kv_gib=cpu_kv_gib
    )
    return Plan(deployment, EngineSettings(**given), steering or Steering(restart_s=0.4, split_s=0.3))


def crowd(seed: int, n: int = 400, rate_rps: float = 60.0, prompt: int = 400, output: int = 60) -> Workload:
    """Random traffic of two classes, a third of it urgent, half of it with shared prefixes; some prompts are too long for any pool."""
    rng = stream(seed, "tests.fleet")
    prompts = np.where(rng.random(n) < 0.02, rng.integers(2000, 3000, n), rng.integers(1, 2 * prompt, n))
    urgent = rng.random(n) < 1 / 3
    families = rng.integers(0, 8, n)
    prefixes = [
        [1000 * int(family) + j for j in range(int(size) // 16)] if rng.random() < 0.5 else []
        for family, size in zip(families, prompts, strict=True)
    ]
    return Workload.of(
        arrival_s=np.cumsum(rng.exponential(1 / rate_rps, n)),
        prompt_tokens=prompts,
        output_tokens=rng.integers(1, 2 * output, n),
        priority=np.where(urgent, 0, 2),
        slo_class=np.where(urgent, 0, 1),
        slo_class_names=["vip", "free"],
        prefix_offsets=np.cumsum([0, *map(len, prefixes)]),
        prefix_ids=np.array([block for prefix in prefixes for block in prefix], dtype=np.int64),
        prefix_block_tokens=16,
    )


def asking(of: Plan, workload: Workload) -> Asking:
    """The workload with `OBJECTIVES`."""
    return Asking.of(workload, of.settings, **OBJECTIVES)


def levers(**knobs: object) -> np.ndarray:
    """All six knobs, float64[6]: a plain setting but for those given."""
    plain: dict[str, Any] = {
        "batch_cap": 256, "kv_budget_fraction": 1.0, "speculation_depth": 0, "quantization_tier": "FP16",
        "prefill_decode_split": False, "priority_routing": False,
    }  # fmt: skip
    return Knobs(**{**plain, **knobs}).levers()


def any_levers(
    rng: np.random.Generator, n: int, fixed: dict[str, float] | None = None, share: float = 1.0
) -> np.ndarray:
    """Random settings from the grid, float64[n, 6]; each knob is set with probability `share` and else left alone (NaN)."""
    drawn = np.stack([rng.choice(np.array(values), n) for values in GRID.values()], axis=1)
    drawn[rng.random(drawn.shape) > share] = np.nan
    for name, value in (fixed or {}).items():
        drawn[:, LEVERS.index(name)] = value
    return drawn


def started(of: Plan, workload: Workload, n: int = 1, *, capacity: int = 16, seed: int = 7, **knobs: object) -> Fleet:
    """A fleet whose rows all stand before the workload's first request. Little room, so that it must grow on the way."""
    fleet, question = Fleet(of, n, capacity=capacity), asking(of, workload)
    for row in range(n):
        fleet.start(row, question, levers(**knobs), seed)
    return fleet


def core_of(fleet: Fleet, row: int = 0) -> memory.Structured:
    """CORE[replicas] of a row."""
    return memory.part_of(fleet.arena(row), "core")


def live(fleet: Fleet, row: int = 0) -> memory.Structured:
    """SLOT[m]: the requests of a row that have come and not gone."""
    slots = memory.part_of(fleet.arena(row), "slots")
    used = np.arange(slots.shape[1]) < core_of(fleet, row)["slots_used"][:, None]
    return slots[used & (slots["state"] != 0)]


def gap_counts(fleet: Fleet, row: int = 0) -> np.ndarray:
    """int64[bins]: gaps counted so far over all replicas."""
    return memory.part_of(fleet.arena(row), "gaps")["count"].sum(axis=0)


def windows_of(rng: np.random.Generator, count: int) -> list[int]:
    """Lengths of windows, ps: none a multiple of another."""
    return [int(x) for x in rng.integers(20_000_000_000, 900_000_000_000, count)]


def play(fleet: Fleet, rng: np.random.Generator, count: int, **how: Any) -> list[np.ndarray]:
    """Step random windows with random knobs; the records of row 0, window by window."""
    ended = []
    for window_ps in windows_of(rng, count):
        fleet.want[:] = any_levers(rng, fleet.n, **how)
        fleet.step(window_ps)
        ended.append(fleet.records(0).copy())
    return ended


def drain(fleet: Fleet) -> list[np.ndarray]:
    """Step on with plain knobs until all have ended; the records of row 0."""
    ended = []
    for _ in range(200):
        if int(fleet.header(0)["ended"][0]) == len(fleet.asking(0).workload):
            return ended
        fleet.want[:] = levers()
        fleet.step(SECOND_PS)
        ended.append(fleet.records(0).copy())
    raise AssertionError(f"{fleet.header(0)['ended']} of {len(fleet.asking(0).workload)} have ended")


def ps(seconds: np.ndarray) -> np.ndarray:
    """Seconds of `Records` back to whole picoseconds; -1 where there is no time."""
    return np.where(np.isnan(seconds), -1, np.rint(np.nan_to_num(seconds) * 1e12)).astype(np.int64)
