"""Puts a deployable folder together: the space, InferenceGym's wheel and the pinned versions. What OpenEnv builds, pushes and hosts.

python spaces/assemble.py llmserve_env OUT    # then: openenv validate OUT, docker build OUT, openenv push from OUT
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SPACES = ("llmserve_env", "pagedkv_env")
#: Added to the manifest of what is assembled: only that can be built, so only there may validators try.
EXECUTION = """  execution:
    kind: openenv_ws
    probe_path: validation/runtime.json
    dockerfile: Dockerfile
    context: .
    agent_boundary: api
"""


def assemble(space: str, out: Path, *, wheel: bool = True) -> Path:
    """Write the folder; `out` must not exist or be empty. `wheel`: build InferenceGym's wheel into it, without which Docker cannot build."""
    if out.exists() and any(out.iterdir()):
        raise SystemExit(f"error: {out} is not empty; name a new folder")
    shutil.copytree(
        HERE / space, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", ".*", "outputs")
    )
    shutil.copy(HERE.parent / "constraints.txt", out / "constraints.txt")
    with (out / "openenv.yaml").open("a", encoding="utf-8") as manifest:
        manifest.write(EXECUTION)
    if not wheel:
        return out
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            str(out / "wheels"),
            str(HERE.parent),
        ],
        check=True,
    )
    return out


def main() -> None:
    """Assemble from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("space", choices=SPACES)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    print(assemble(given.space, given.out))


if __name__ == "__main__":
    main()
