"""Train a task's policy with RLlib's PPO, on this machine's processors or on a Ray cluster; what comes out is a policy file like any other.

    python runs/rllib_ppo.py --task medium --runners 2 --out out/medium-rllib
    python runs/rllib_ppo.py --task medium --runners 16 --rows 256 --ray auto --out /shared/medium-rllib

Not a verb of the command: `inferencegym train` promises that a training can be interrupted and resumed to the bit, and RLlib cannot say where
its environments stand. Settings are those of `--algo maskable-ppo`. Needs the extra 'ray': see docs/distributed.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from inferencegym.ground.errors import InferenceGymError
from inferencegym.learn.config import defaults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, help="name of a task, or its TOML file")
    parser.add_argument("--out", type=Path, required=True, help="folder for policy.npz and config.toml")
    parser.add_argument("--algo", default="maskable-ppo", choices=["maskable-ppo", "ppo"], help="with masks or without")
    parser.add_argument("--steps", type=int, help="decisions to learn from, of all environments together")
    parser.add_argument("--rows", type=int, help="environments, of all runners together")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--every", type=int, help="decisions between two looks at the validation scenarios")
    parser.add_argument("--runners", type=int, default=2, help="processes that environments play in; 0: in this one")
    parser.add_argument("--ray", default="local", help="local, auto or HOST:PORT")
    given = parser.parse_args()
    wanted = {"steps": given.steps, "rows": given.rows, "seed": given.seed, "validate_every": given.every}
    try:
        from inferencegym.learn.rllib import Look, train

        config = defaults(given.task, given.algo).with_(**{name: value for name, value in wanted.items() if value is not None})  # fmt: skip
        began = time.monotonic()

        def tell(look: Look) -> None:
            static = (
                "" if look.best_static is None else f" ({look.validation - look.best_static:+.4f} against best static)"
            )
            print(f"{look.steps:>12,} steps  {time.monotonic() - began:6.0f} s  validation {look.validation:.4f}{static}", flush=True)  # fmt: skip

        path, look = train(config, given.out, runners=given.runners, ray=given.ray, tell=tell)
    except InferenceGymError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    took = time.monotonic() - began
    print(
        f"best on validation {look.best:.4f}; {look.steps:,} steps in {took:.0f} s, {look.steps / took:,.0f} a second, all told"
    )
    print(f"evaluate: inferencegym evaluate --policy {path},best-static --task {given.task}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
