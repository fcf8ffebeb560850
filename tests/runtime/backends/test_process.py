"""A managed process: ready or a reason, started again when it dies, and nothing left of it or its children after the end."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from inferencegym.runtime.backends.process import ServerProcess, free_port
from inferencegym.runtime.ports import BackendError

#: Writes its and its child's number into a file when it serves; `stubborn` does not mind SIGTERM.
SERVER = """
import os, signal, subprocess, sys, time
marker, how = sys.argv[1], sys.argv[2]
print("hello from the server", flush=True)
if how == "dies": sys.exit(3)
if how == "stubborn": signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', flush=True); time.sleep(600)"], stdout=subprocess.PIPE)
child.stdout.readline()
if how != "hangs":
    open(marker + ".part", "w").write(f"{os.getpid()} {child.pid}")
    os.rename(marker + ".part", marker)
while True: time.sleep(600)
"""


def server(folder: Path, how: str = "well", **options) -> ServerProcess:
    marker = folder / "marker"

    async def ready() -> bool:
        return marker.exists()

    def command() -> list[str]:
        marker.unlink(missing_ok=True)
        return [sys.executable, "-c", SERVER, str(marker), how]

    return ServerProcess("srv", command, ready, log=folder / "log" / "srv.log", **options)


def numbers(folder: Path) -> list[int]:
    return [int(one) for one in (folder / "marker").read_text().split()]


def alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def until(what, limit_s: float = 20.0) -> None:
    async with asyncio.timeout(limit_s):
        while not what():
            await asyncio.sleep(0.01)


def run(main):
    return asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize("how", ["well", "stubborn"])
def test_nothing_is_left_of_it_and_its_children(tmp_path, how):
    async def main():
        process = server(tmp_path, how, stop_timeout_s=5.0 if how == "well" else 0.3)
        await process.start()
        pids = numbers(tmp_path)
        assert process.state == "running"
        assert process.pid == pids[0]
        assert all(os.getsid(pid) == pids[0] for pid in pids)  # a session of its own
        await process.stop()
        await process.stop()
        await until(lambda: not any(alive(pid) for pid in pids))
        assert (process.state, process.pid) == ("stopped", None)

    run(main)


def test_an_end_before_it_is_ready_is_told_with_the_end_of_its_log(tmp_path):
    async def main():
        process = server(tmp_path, "dies")
        with pytest.raises(
            BackendError, match=r"(?s)ended with 3 before it was ready.*srv\.log.*hello from the server"
        ):
            await process.start()
        assert process.state == "failed"

    run(main)


def test_a_start_that_takes_too_long_is_given_up_and_cleared_away(tmp_path):
    async def main():
        process = server(tmp_path, "hangs", start_timeout_s=0.5, stop_timeout_s=1.0)
        with pytest.raises(BackendError, match="not ready after"):
            await process.start()
        assert process.pid is None

    run(main)


def test_a_program_that_is_not_there_is_named(tmp_path):
    async def never() -> bool:
        return False

    async def main():
        process = ServerProcess("srv", lambda: ["/nonexistent/llama-server"], never, log=tmp_path / "x.log")
        with pytest.raises(BackendError, match="no program '/nonexistent/llama-server'"):
            await process.start()

    run(main)


def test_it_is_started_again_when_it_dies_and_its_orphans_are_ended(tmp_path):
    async def main():
        told = []
        process = server(tmp_path, first_pause_s=0.01, on_change=lambda well, problem: told.append((well, problem)))
        await process.start()
        first = numbers(tmp_path)
        os.kill(first[0], signal.SIGKILL)
        await until(lambda: process.restarts == 1 and process.state == "running")
        assert [well for well, _ in told] == [False, True]
        assert "ended with -9" in told[0][1]
        assert numbers(tmp_path)[0] != first[0]
        assert process.pid == numbers(tmp_path)[0]
        await until(lambda: not alive(first[1]))
        await process.stop()

    run(main)


def test_it_is_given_up_after_too_many_restarts_in_a_row(tmp_path):
    async def main():
        process = server(tmp_path, first_pause_s=0.01, most_restarts=2, stop_timeout_s=0.2)
        await process.start()
        kills = 0
        while process.state != "failed":
            await until(lambda: process.state in ("running", "failed"))
            if process.state == "running":
                kills += 1
                os.kill(process.pid, signal.SIGKILL)
                await until(lambda: process.state != "running")
        assert kills == 3
        assert process.restarts == 2
        assert "ended with -9" in process.problem
        await process.stop()

    run(main)


def test_cancelling_the_start_clears_away(tmp_path):
    async def main():
        process = server(tmp_path, "hangs", stop_timeout_s=0.5)
        starting = asyncio.ensure_future(process.start())
        await until(lambda: process.pid is not None)
        pid = process.pid
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await until(lambda: not alive(pid))

    run(main)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv here")
def test_it_ends_when_the_gateway_is_killed(tmp_path):
    code = f"""
import asyncio, os, signal, sys
from pathlib import Path
from tests.runtime.backends.test_process import server
async def main():
    await server(Path({str(tmp_path)!r})).start()
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    asyncio.run(until(lambda: not alive(numbers(tmp_path)[0])))
    os.kill(numbers(tmp_path)[1], signal.SIGKILL)  # the pretended server leaves its child to us


def test_free_ports_differ():
    assert len({free_port() for _ in range(5)}) >= 2
