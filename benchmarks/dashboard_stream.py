"""What a run costs the server: six quick policies over the 10,000 ticks of `hard`, streamed to one client and to twenty, and ten runs on end.

A real `inferencegym env` on loopback; the clients read and drop, in a process of their own. CPU is user and system time: of the server's process
from /proc, of the playing process as it says itself. Memory is what belongs to the server's process alone (Pss), MiB.
`python benchmarks/dashboard_stream.py [--json] [--runs 10] [--viewers 20]`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx

from inferencegym.testing.servers import free_port, until_healthy

POLICIES = ["sieve", "lru", "swapper", "cautious", "learned", "size-and-age"]
START_S, RUN_S = 120.0, 600.0
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def memory_mib(pid: int) -> float:
    """Memory of a process, what it shares counted by halves."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return float("nan")


async def _watch(base: str, run: str, viewers: int) -> list[int]:
    async with httpx.AsyncClient(timeout=RUN_S, limits=httpx.Limits(max_connections=viewers)) as client:

        async def one() -> int:
            count = 0
            async with client.stream("GET", f"{base}/runs/{run}/stream") as stream:
                async for piece in stream.aiter_raw():
                    count += len(piece)
            return count

        return list(await asyncio.gather(*(one() for _ in range(viewers))))


def watch(base: str, run: str, viewers: int) -> list[int]:
    """Bytes that each of so many viewers read until the run's end."""
    return asyncio.run(_watch(base, run, viewers))


def measured(base: str, server: int, clients: ProcessPoolExecutor, seed: int, viewers: int) -> dict[str, Any]:
    """One run, from its start until every viewer has all of it."""
    asked = {"task": "hard", "policies": POLICIES, "split": "train", "seed": seed}
    before_s, began_s = cpu_s(server), time.monotonic()
    run = httpx.post(f"{base}/runs", json=asked, timeout=60).raise_for_status().json()["id"]
    lag: list[float] = []
    over = threading.Event()

    def ask() -> None:
        # How soon the server answers somebody else meanwhile.
        with httpx.Client(timeout=60) as client:
            while not over.wait(0.1):
                asked_s = time.monotonic()
                client.get(f"{base.removesuffix('/api')}/about.json")
                lag.append(time.monotonic() - asked_s)

    asking = threading.Thread(target=ask)
    asking.start()
    read = clients.submit(watch, base, run, viewers).result(RUN_S)
    wall_s = time.monotonic() - began_s
    over.set()
    asking.join()
    told = httpx.get(f"{base}/runs/{run}", timeout=60).json()
    assert told["state"] == "done", told["message"]
    assert len(set(read)) == 1, "viewers of one run read the same"
    spent_s = cpu_s(server) - before_s
    return {
        "viewers": viewers, "wall_s": wall_s, "server_cpu_s": spent_s, "player_cpu_s": told["cpu_s"], "stream_mb": read[0] / 1e6,
        "server_share": spent_s / wall_s, "share": (spent_s + told["cpu_s"]) / wall_s, "answer_p99_ms": 1e3 * sorted(lag)[int(0.99 * (len(lag) - 1))],
        "memory_mib": memory_mib(server),
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true")
    options.add_argument("--runs", type=int, default=10)
    options.add_argument("--viewers", type=int, default=20)
    asked = options.parse_args()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(Path(sys.executable).with_name("inferencegym")), "env", "pagedkv", "--port", str(port), "--no-web"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        until_healthy(server, url, START_S)
        base = f"{url}/dashboard/api"
        httpx.get(f"{base}/catalogue", timeout=60)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as clients:
            runs = [measured(base, server.pid, clients, seed, 1) for seed in range(asked.runs)]
            crowd = measured(base, server.pid, clients, 1000, asked.viewers)
    finally:
        server.terminate()
        server.wait(20)
    if asked.json:
        print(json.dumps({"load": os.getloadavg(), "runs": runs, "crowd": crowd}, indent=1))
        return
    names = list(crowd)
    print(" ".join(f"{name:>14}" for name in names))
    for row in [*runs, crowd]:
        print(" ".join(f"{row[name]:14.3f}" for name in names))
    print(f"load of the machine: {', '.join(f'{one:.1f}' for one in os.getloadavg())} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
