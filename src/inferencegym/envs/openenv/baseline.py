"""The baseline: a rule or a language model plays tasks, in this process or over HTTP, with log lines that validators read.

python -m inferencegym.envs.openenv.baseline --mode deterministic|openai --runtime in-process|http --base-url URL --model NAME --output FILE

Lines on stdout: one [START] and one [END] a task, whatever happens between, and a [STEP] for each decision.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from inferencegym.decision.knobs import Knobs
from inferencegym.envs.openenv import tasks
from inferencegym.envs.openenv.client import EpisodeClient
from inferencegym.envs.openenv.environment import ENVIRONMENTS
from inferencegym.envs.openenv.llm import LanguageModel
from inferencegym.envs.openenv.models import as_action
from inferencegym.ground.errors import ConfigError, InferenceGymError
from inferencegym.policies.catalogue import policy

#: The rule that plays where no model does.
RULES = {"llmserve": "slo-feedback", "pagedkv": "sieve"}
SURFACES = {"llmserve": "knobs", "pagedkv": "paging"}
SPLIT = "validation"

Step = Callable[[int, dict[str, Any], float, bool], None]


class InProcess:
    """The environment in this process, with the four words of `EpisodeClient`."""

    def __init__(self, family: str) -> None:
        self._environment = ENVIRONMENTS[family]()
        self._family = family

    def reset(self, *, task_id: str, seed: int, split: str) -> dict[str, Any]:
        """Begin an episode; the observation."""
        return self._told(self._environment.reset(seed=seed, task_id=task_id, split=split))

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, dict[str, Any]]:
        """One decision: observation, reward, done, info."""
        observation = self._environment.step(as_action(self._family, action))
        return self._told(observation), float(observation.reward), bool(observation.done), dict(observation.metadata)

    def grade(self) -> dict[str, Any]:
        """The whole episode's grade."""
        return self._environment.grade()

    def close(self) -> None:
        """End it."""
        self._environment.close()

    @staticmethod
    def _told(observation: Any) -> dict[str, Any]:
        return {"encoded": observation.encoded, "action_mask": observation.action_mask}


def spoken(action: Any) -> dict[str, Any]:
    """A policy's action as the wire has it."""
    return action.given() if isinstance(action, Knobs) else {"action_id": int(action)}


def play(runtime: Any, actor: Any, task_id: str, seed: int, tell: Step | None = None) -> dict[str, Any]:
    """A whole episode: its grade, return and length. `tell(step, action, reward, done)` hears of every step."""
    seen = runtime.reset(task_id=task_id, seed=seed, split=SPLIT)
    actor.start(seed)
    total, steps, done = 0.0, 0, False
    while not done:
        action = spoken(actor.act(np.array(seen["encoded"], np.float32), np.array(seen["action_mask"], np.int8)))
        seen, reward, done, _ = runtime.step(action)
        total += reward
        steps += 1
        if tell is not None:
            tell(steps, action, reward, done)
    asked = {
        name: value for name in ("questions", "parse_failures") if (value := getattr(actor, name, None)) is not None
    }
    return {
        "policy": actor.name,
        "seed": seed,
        "split": SPLIT,
        "steps": steps,
        "total_reward": total,
        "grader": runtime.grade(),
    } | asked


@lru_cache(maxsize=256)
def _ruled(family: str, task_id: str, seed: int) -> str:
    runtime = InProcess(family)
    return json.dumps(play(runtime, policy(RULES[family], SURFACES[family]), task_id, seed))


def suite(family: str, names: Sequence[str], seed: int) -> dict[str, Any]:
    """The rule on each task: what GET /baseline answers. The same every time."""
    return {
        "mode": "deterministic",
        "family": family,
        "baseline": {name: json.loads(_ruled(family, name, seed)) for name in names},
    }


def openai_suite(family: str, names: Sequence[str], seed: int, model: str | None) -> dict[str, Any]:
    """A language model on each task; parse failures are counted."""
    actor = LanguageModel(SURFACES[family], model=model)
    return {
        "mode": "openai",
        "model": actor.model,
        "family": family,
        "baseline": {name: play(InProcess(family), actor, name, seed) for name in names},
    }


def logged(
    family: str, name: str, seed: int, open_: Callable[[], Any], actor: Callable[[], Any], label: str
) -> dict[str, Any]:
    """Play one task and write its log lines; an error ends the task, not the run, and is told in the result."""
    out = sys.stdout
    rewards: list[float] = []
    out.write(f"[START] task={name} env={family} model={label}\n")

    def tell(step: int, action: dict[str, Any], reward: float, done: bool) -> None:
        rewards.append(reward)
        short = json.dumps(action, separators=(",", ":"))
        out.write(f"[STEP] step={step} action={short} reward={reward:.4f} done={str(done).lower()} error=null\n")

    result: dict[str, Any] = {}
    score, problem = 0.0, "interrupted"
    runtime = None
    try:
        runtime = open_()
        result = play(runtime, actor(), name, seed, tell)
        score, problem = float(result["grader"]["score"]), ""
    except (InferenceGymError, OSError) as error:
        problem = " ".join(str(error).split())
        result = {"error": problem, "steps": len(rewards)}
        sys.stderr.write(f"{name}: {problem}\n")
    finally:
        if runtime is not None:
            runtime.close()
        listed = ",".join(f"{reward:.4f}" for reward in rewards)
        out.write(f"[END] success={str(not problem).lower()} steps={len(rewards)} score={score:.4f} rewards={listed}\n")
        out.flush()
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; exit code 0 once every task has its [END] (with --strict: 1 if one failed)."""
    parser = argparse.ArgumentParser(
        prog="python -m inferencegym.envs.openenv.baseline", description="Play the baseline and log every step."
    )
    parser.add_argument("--family", choices=list(ENVIRONMENTS), default="llmserve")
    parser.add_argument("--mode", choices=["deterministic", "openai"], default="deterministic")
    parser.add_argument("--runtime", choices=["in-process", "http"], default="in-process")
    parser.add_argument(
        "--env-url", default="http://127.0.0.1:7860", help="where the environment's server is, for --runtime http"
    )
    parser.add_argument("--base-url", help="the model's endpoint, for --mode openai (else OPENAI_BASE_URL)")
    parser.add_argument("--model", help="for --mode openai (else OPENAI_MODEL)")
    parser.add_argument(
        "--json-schema", action="store_true", help="ask the model for JSON that fits the actions (response_format)"
    )
    parser.add_argument("--ask-every", type=int, help="decisions between two questions to the model")
    parser.add_argument("--task-id", action="append", help="may be given again; else every task from easy to hard")
    parser.add_argument("--seed", type=int, default=0, help="scenario of the validation split")
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a task failed")
    given = parser.parse_args(arguments)
    family, surface = given.family, SURFACES[given.family]

    def open_() -> Any:
        return InProcess(family) if given.runtime == "in-process" else EpisodeClient(given.env_url, family)

    def actor() -> Any:
        if given.mode == "deterministic":
            return policy(RULES[family], surface)
        return LanguageModel(
            surface, model=given.model, base_url=given.base_url, ask_every=given.ask_every, schema=given.json_schema
        )

    label = RULES[family] if given.mode == "deterministic" else (given.model or "default")
    names = given.task_id or tasks.ladder(family)
    results = {name: logged(family, name, given.seed, open_, actor, label) for name in names}
    if given.output is not None:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(
            json.dumps({"mode": given.mode, "family": family, "baseline": results}, indent=1) + "\n", encoding="utf-8"
        )
    failed = any("error" in result for result in results.values())
    return 1 if failed and given.strict else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ConfigError as wrong:
        sys.exit(f"error: {wrong}")
