"""A provider for OpenEnv's validator that runs a deployable folder's own server on this machine, where no Docker is.

openenv.validation.run_validation(FOLDER, max_level=Level.RUNTIME, provider=Loopback())
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openenv.validation.types import ProviderCapability


class Server:
    """`python -m server.app` of a folder on a free port, as its image starts it; or any other command that listens on PORT."""

    def __init__(
        self, folder: Path, command: Sequence[str] | None = None, *, web: bool = False, wait_s: float = 90.0
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}"
        self._log = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            list(command or (sys.executable, "-m", "server.app")), cwd=folder, stdout=self._log, stderr=self._log,
            env=os.environ | {"PORT": str(port), "ENABLE_WEB_INTERFACE": str(web).lower()},
        )  # fmt: skip
        end = time.monotonic() + wait_s
        while not self._up():
            if self._process.poll() is not None or time.monotonic() > end:
                told = self.logs()
                self.stop()
                raise RuntimeError(f"the server of {folder} did not start:\n{told}")
            time.sleep(0.2)

    def _up(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.base_url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def inspect(self) -> dict[str, Any]:
        """What the validator writes into its report."""
        return {"provider": "loopback"}

    def logs(self, max_bytes: int = 65536) -> str:
        """The end of what the server wrote."""
        self._log.seek(0)
        return self._log.read()[-max_bytes:]

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self._process.terminate()
        try:
            status = self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._log.close()
        return status

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Loopback:
    """OpenEnv's protocol for providers: build, then start."""

    name = "loopback"
    supported_network_modes = frozenset({"public"})

    def __init__(self) -> None:
        self.capabilities = frozenset({ProviderCapability.IMAGE_BUILD})
        self._folder = Path()

    def build(self, root: Path, execution: Any) -> str:
        """Nothing to build; what stands for the image's digest."""
        self._folder = Path(root)
        if not (self._folder / execution.dockerfile).is_file():
            raise RuntimeError(f"there is no {execution.dockerfile} in {root}")
        return "sha256:" + hashlib.sha256(str(root).encode()).hexdigest()

    def start(self, spec: Any) -> Server:
        """The folder's server."""
        del spec
        return Server(self._folder)
