"""How fast policies learn and act: environment steps per CPU second of a whole training (learning included), and microseconds an act.

Trainings are those of `inferencegym train` with default settings, 64 rows of PagedKV and 16 of LLMServe, one thread of torch, without
validation; the first update is not counted. Acts are of the NumPy policies, one observation at a time, hidden layers of 64 and 64.

`python benchmarks/learn.py` prints a table, `--json` one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from envs import processor

import inferencegym
from inferencegym.decision.paging import NOTHING
from inferencegym.envs import catalogue
from inferencegym.learn.algorithms import make_learner
from inferencegym.learn.config import defaults
from inferencegym.learn.train import train
from inferencegym.policies.heads import HEADS, find_head
from inferencegym.policies.simple import surface_of
from inferencegym.policies.trained import Notes, build

TARGETS = {
    "maskable_ppo_medium_steps_per_cpu_s": 20_000,
    "maskable_ppo_hard_steps_per_cpu_s": 20_000,
    "maskable_ppo_medium_whole_training_steps_per_cpu_s": 20_000,
    "act_us_most": 20,
}


@dataclass(frozen=True)
class Job:
    """One training to time."""

    name: str
    task: str
    algorithm: str
    updates: int


JOBS = (
    Job("maskable_ppo_medium_steps_per_cpu_s", "medium", "maskable-ppo", 20),
    Job("maskable_ppo_hard_steps_per_cpu_s", "hard", "maskable-ppo", 20),
    Job("dqn_medium_steps_per_cpu_s", "medium", "dqn", 6),
    Job("qr_dqn_medium_steps_per_cpu_s", "medium", "qr-dqn", 6),
    Job("q_table_medium_steps_per_cpu_s", "medium", "q-table", 20),
    Job("maskable_ppo_static_workload_steps_per_cpu_s", "static_workload", "maskable-ppo", 2),
)


def learning(job: Job) -> float:
    """Steps per CPU second of an algorithm's updates, the first one left out."""
    config = defaults(job.task, job.algorithm)
    learner = make_learner(config, catalogue.task(job.task))
    learner.update()
    steps, cpu = learner.steps, time.process_time()
    for _ in range(job.updates):
        learner.update()
    return (learner.steps - steps) / (time.process_time() - cpu)


def whole_training(steps: int) -> float:
    """Steps per CPU second of a training from the first line to the exported file: compilation's loading, validation, checkpoints and all."""
    config = defaults("medium").with_(steps=steps, validate_every=steps // 5)
    with tempfile.TemporaryDirectory() as folder:
        return train(config, Path(folder) / "out").steps_per_cpu_s


def act_us(surface: str, head: str, acts: int = 2000) -> float:
    """Microseconds of an act."""
    rng = np.random.default_rng(0)
    itself, choices = surface_of(surface), sum(find_head(surface, head).sizes)
    widths = (len(itself.columns), 64, 64, choices)
    arrays = {"mean": np.zeros(widths[0], np.float32), "scale": np.ones(widths[0], np.float32)}
    for i in range(3):
        arrays[f"w{i}"] = rng.normal(size=widths[i : i + 2]).astype(np.float32)
        arrays[f"b{i}"] = np.zeros(widths[i + 1], np.float32)
    policy = build(Notes("network", surface, head, "", "", "", 0, "", 0, activation="tanh"), arrays)
    observations = rng.random((acts, widths[0])).astype(np.float32)
    masks = (rng.random((acts, itself.mask_size)) < 0.6).astype(np.int8)
    # Knobs in force, and what is allowed of them, change seldom; a pool's mask changes all the time.
    if surface == "knobs":
        masks[:] = 1
        natural = rng.random((8, widths[0])) * itself.columns.natural_high
        observations[:] = itself.columns.encode(natural)[np.arange(acts) % 8]
    else:
        masks[:, NOTHING] = 1
    for observation, mask in zip(observations, masks, strict=True):
        policy.act(observation, mask)
    cpu = time.process_time()
    for observation, mask in zip(observations, masks, strict=True):
        policy.act(observation, mask)
    return (time.process_time() - cpu) / acts * 1e6


def measure(repeats: int, scale: float) -> dict[str, float]:
    """All figures: the best of several runs."""
    found: dict[str, float] = {}
    for job in JOBS:
        some = Job(job.name, job.task, job.algorithm, max(1, round(job.updates * scale)))
        found[job.name] = round(max(learning(some) for _ in range(repeats)))
    name = "maskable_ppo_medium_whole_training_steps_per_cpu_s"
    found[name] = round(max(whole_training(max(8192, int(500_000 * scale))) for _ in range(repeats)))
    acts = {f"act_us_{surface}_{head}": min(act_us(surface, head) for _ in range(repeats)) for surface in HEADS for head in HEADS[surface]}  # fmt: skip
    found |= {name: round(us, 2) for name, us in acts.items()}
    found["act_us_most"] = round(max(acts.values()), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of updates")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(options.repeats, options.scale)
    context = {"cpu": processor(), "threads": 1, "repeats": options.repeats, "torch": torch.__version__, "version": inferencegym.__version__}  # fmt: skip
    if options.json:
        print(json.dumps({**found, "targets": TARGETS, "context": context}))
        return
    print(", ".join(f"{name}: {value}" for name, value in context.items()))
    for name, value in found.items():
        target, said = (
            TARGETS.get(name),
            f"{name:54} {value:>12,.2f}" if "_us_" in name else f"{name:54} {value:>12,.0f}",
        )
        if target is not None:
            met = value <= target if "_us_" in name else value >= target
            said += f"   target {target:,}: {'met' if met else 'MISSED'}"
        print(said)


if __name__ == "__main__":
    main()
