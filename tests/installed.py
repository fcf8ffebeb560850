"""Programs that tests need in environments of their own, installed once a machine into INFERENCEGYM_TEST_CACHE (else ~/.cache/inferencegym-tests)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


class NotInstalledError(RuntimeError):
    """No package index answers, or what it gave does not install."""


def cache_folder() -> Path:
    """Where they are; made."""
    folder = Path(os.environ.get("INFERENCEGYM_TEST_CACHE") or Path.home() / ".cache" / "inferencegym-tests")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run_or_not(*command: str, limit_s: float = 300) -> None:
    """A step of an installation; NotInstalledError with its last words."""
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=limit_s)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        last = ((getattr(error, "stderr", None) or str(error)).strip().splitlines() or ["no words"])[-1]
        raise NotInstalledError(f"not here: {' '.join(command[-2:])}: {last}") from error


def venv_of(requirement: str, *more: str) -> Path:
    """The folder bin/ of an environment with this package of a pinned version (name==version), and more."""
    venv = cache_folder() / f"venv-{requirement.replace('==', '-')}"
    if not (venv / ".ready").exists():
        run_or_not(sys.executable, "-m", "venv", "--clear", str(venv))
        run_or_not(
            str(venv / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "-q",
            "--retries",
            "1",
            requirement,
            *more,
            limit_s=900,
        )
        (venv / ".ready").touch()
    return venv / "bin"
