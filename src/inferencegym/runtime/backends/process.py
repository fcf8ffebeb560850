"""A server process that is ours: started in a session of its own, watched, started again when it dies, stopped with everything it started.

Its output goes to a file whose end is told in every error. Times are seconds of the event loop.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from inferencegym.runtime.ports import BackendError

#: How much of the log an error shows.
TAIL_LINES, TAIL_BYTES = 12, 4096


def free_port() -> int:
    """A TCP port on loopback that nobody has now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Folder:
    """A folder for what a process needs, made when it is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._path: Path | None = None

    @property
    def path(self) -> Path:
        """The folder; nobody else may read it."""
        if self._path is None:
            self._path = Path(tempfile.mkdtemp(prefix=f"inferencegym-{self._name}-"))
        return self._path

    def remove(self) -> None:
        """With all that is in it."""
        path, self._path = self._path, None
        if path is not None:
            shutil.rmtree(path)


class ServerProcess:
    """A program that serves, from `start` to `stop`. States: stopped, starting, running, waiting (to be started again), failed."""

    def __init__(
        self, name: str, command: Callable[[], Sequence[str]], ready: Callable[[], Awaitable[bool]], *, env: Callable[[], Mapping[str, str]] | None = None,
        log: Path | None = None, start_timeout_s: float = 600.0, stop_timeout_s: float = 10.0, most_restarts: int = 5,
        first_pause_s: float = 0.5, longest_pause_s: float = 30.0, stable_s: float = 60.0, on_change: Callable[[bool, str], None] = lambda well, problem: None,
    ) -> None:  # fmt: skip
        """`command` is asked at each start; `ready` tells whether it serves; so is `env`, for its whole environment (None: ours); `on_change` hears (False, why) when it died and (True, "") when it is back.

        `most_restarts` in a row are tried, with pauses that double; a process that ran for `stable_s` begins a new row.
        """
        self.name, self._command, self._ready, self._env = name, command, ready, env
        self._start_timeout_s, self._stop_timeout_s = start_timeout_s, stop_timeout_s
        self._most_restarts, self._first_pause_s, self._longest_pause_s = most_restarts, first_pause_s, longest_pause_s
        self._stable_s, self._on_change = stable_s, on_change
        self._log, self._own_folder = log, None if log is not None else Folder(name)
        self.state = "stopped"
        self.problem = ""
        """Why it is not running, with the end of its log."""
        self.restarts = 0
        """How often it was started again since `start`."""
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def log(self) -> Path:
        """Where its output goes."""
        if self._log is None:
            assert self._own_folder is not None, "there is a log or a folder for it"
            return self._own_folder.path / f"{self.name}.log"
        return self._log

    @property
    def pid(self) -> int | None:
        """The process, None if there is none."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Return when it serves. BackendError, with the end of its log, if it ends before, or takes too long; then nothing is left of it."""
        assert self._watch is None, "it is started once, then stopped"
        try:
            await self._launch()
        except BaseException:
            await self._end()
            self.state = "failed"
            raise
        self.restarts = 0
        self._watch = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """SIGTERM to the whole group, SIGKILL to what is left after the time for it. Idempotent."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        await self._end()
        # A log that an error has named stays.
        if self._own_folder is not None and self.state != "failed":
            self._own_folder.remove()
        self.state = "stopped"

    def tail(self) -> str:
        """The last lines of its log."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
                lines = log.read().decode("utf-8", "replace").splitlines()
        except OSError as error:
            return f"(no log: {error})"
        return "\n".join(lines[-TAIL_LINES:])

    async def _launch(self) -> None:
        self.state = "starting"
        command = [str(part) for part in self._command()]
        if shutil.which(command[0]) is None:
            raise BackendError(f"{self.name}: there is no program '{command[0]}'", code="backend_not_started")
        env = None if self._env is None else self._env()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            try:
                # A session of its own: the kernel shares the processor out by session, and the whole group can be ended at once.
                self._process = process = await asyncio.create_subprocess_exec(
                    *_tied_to_us(),
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=env,
                    start_new_session=True,
                )
            except OSError as error:
                raise BackendError(
                    f"{self.name}: '{command[0]}' cannot be started: {error}", code="backend_not_started"
                ) from None
        ended = asyncio.create_task(process.wait())
        try:
            async with asyncio.timeout(self._start_timeout_s):
                await self._until_ready(ended)
        except TimeoutError:
            raise self._failed(f"was not ready after {self._start_timeout_s:g} s") from None
        finally:
            ended.cancel()
        self.state, self.problem = "running", ""

    async def _until_ready(self, ended: asyncio.Task[int]) -> None:
        """A foreign program gives no sign that it is ready: it is asked, at first often, until it says so or ends."""
        pause_s = 0.05
        while not await self._ready():
            done, _ = await asyncio.wait({ended}, timeout=pause_s)
            if done:
                raise self._failed(f"ended with {ended.result()} before it was ready")
            pause_s = min(pause_s * 1.5, 1.0)
        if ended.done():
            raise self._failed(f"ended with {ended.result()}; somebody else answers at its address")

    def _failed(self, what: str) -> BackendError:
        self.problem = f"{self.name} {what}; the end of {self.log}:\n{self.tail()}"
        return BackendError(self.problem, code="backend_not_started")

    async def _keep(self) -> None:
        """Wait for its end, tell, start it again; give up after too many in a row."""
        loop = asyncio.get_running_loop()
        in_a_row = 0
        while True:
            assert self._process is not None
            since_s = loop.time()
            code = await self._process.wait()
            self._failed(f"ended with {code}")
            self.state = "waiting"
            await self._end()
            self._on_change(False, self.problem)
            if loop.time() - since_s >= self._stable_s:
                in_a_row = 0
            while True:
                if in_a_row >= self._most_restarts:
                    self.state = "failed"
                    return
                await asyncio.sleep(min(self._first_pause_s * 2**in_a_row, self._longest_pause_s))
                in_a_row += 1
                self.restarts += 1
                try:
                    await self._launch()
                    self._on_change(True, "")
                    break
                except BackendError as error:
                    self.state, self.problem = "waiting", error.message
                    await self._end()

    async def _end(self) -> None:
        """End the process, if it still runs, and whatever it started and left behind."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            if process.returncode is None:
                self._signal(process.pid, signal.SIGTERM)
                async with asyncio.timeout(self._stop_timeout_s):
                    await process.wait()
        except TimeoutError:
            pass
        finally:
            self._signal(process.pid, signal.SIGKILL)
        await process.wait()

    @staticmethod
    def _signal(group: int, number: signal.Signals) -> None:
        # The group's number stays taken as long as somebody is in it, so this can hit nobody else while anybody is left.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


def _tied_to_us() -> tuple[str, ...]:
    """What makes the kernel end a server whose gateway was killed and can stop nothing any more (Linux, util-linux)."""
    setpriv = shutil.which("setpriv")
    return () if setpriv is None else (setpriv, "--pdeathsig", "TERM", "--")
