"""What the GPUs do, as nvidia-smi says; and said plainly where there is none. Asked in a process of its own, so the event loop never waits.

Whoever looks gets the last known figures, and with the look a new question is asked if they are old. Bytes, watts, degrees Celsius, shares.
"""

from __future__ import annotations

import asyncio
import math
import shutil
from dataclasses import dataclass

from inferencegym.ground.units import MIB

QUERY = "index,name,utilization.gpu,memory.used,memory.total,power.draw,temperature.gpu"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU; NaN for what the driver does not tell."""

    index: str
    name: str
    busy_fraction: float
    memory_used_bytes: float
    memory_bytes: float
    power_w: float
    temperature_c: float


class GpuReader:
    """Looks at the GPUs now and then."""

    def __init__(self, program: str = "nvidia-smi", *, max_age_s: float = 2.0, timeout_s: float = 10.0) -> None:
        """`max_age_s`: figures older than this are asked for again; `timeout_s`: a driver that hangs is left alone."""
        self.program, self.max_age_s, self.timeout_s = program, max_age_s, timeout_s
        self.gpus: tuple[Gpu, ...] = ()
        self.problem = "not asked yet"
        """Why there are no figures; empty if there are."""
        self._asked_s = -math.inf
        self._task: asyncio.Task[None] | None = None
        self._path = shutil.which(program)
        if self._path is None:
            self.problem = f"unavailable: there is no {program} on this machine"

    def look(self) -> tuple[Gpu, ...]:
        """The last known figures; changes nothing but that it may ask for new ones."""
        if self._path is not None and self._task is None:
            loop = asyncio.get_running_loop()
            if loop.time() - self._asked_s >= self.max_age_s:
                self._asked_s = loop.time()
                self._task = loop.create_task(self.ask())
                self._task.add_done_callback(self._asked)
        return self.gpus

    def _asked(self, _task: asyncio.Task[None]) -> None:
        self._task = None

    async def ask(self) -> None:
        """Ask now, and return when there is an answer, or a problem."""
        if self._path is None:
            return
        command = (self._path, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits")
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, stdin=asyncio.subprocess.DEVNULL
            )  # fmt: skip
        except OSError as error:
            self._lost(f"unavailable: {self.program} cannot be run ({error.strerror})")
            return
        try:
            async with asyncio.timeout(self.timeout_s):
                told, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            self._lost(f"unavailable: {self.program} did not answer within {self.timeout_s:g} s")
            return
        if process.returncode:
            self._lost(f"unavailable: {self.program} failed with exit code {process.returncode}")
            return
        self.gpus, self.problem = parse(told.decode(errors="replace")), ""

    def _lost(self, problem: str) -> None:
        self.gpus, self.problem = (), problem

    async def close(self) -> None:
        """Wait for a question that is still open."""
        if self._task is not None:
            await self._task


def parse(text: str) -> tuple[Gpu, ...]:
    """The GPUs of nvidia-smi's CSV; `[N/A]` and the like become NaN."""
    gpus = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) < 7:
            continue
        busy, used, total, power, temperature = (_number(cell) for cell in cells[-5:])
        name = ", ".join(cells[1:-5])
        gpus.append(Gpu(cells[0], name, busy / 100, used * MIB, total * MIB, power, temperature))
    return tuple(gpus)


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan
