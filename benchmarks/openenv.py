"""What the OpenEnv servers cost: raw WebSocket steps beside a trivial environment served the same way, CPU a step, resets, time until ready.

Each server is a process of its own on loopback; the floor is OpenEnv's own app around an environment that only counts. Blocks of steps
alternate between floor and server, so that both see the same load of the machine. Times are of one client, wall clock, from sending a
frame to having its parsed answer. Trace tasks are left out where their trace is not (INFERENCEGYM_TRACE_DIR), and named.

`python benchmarks/openenv.py` prints a table, `--json` one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.client import connect

import inferencegym
from inferencegym.envs import catalogue
from inferencegym.envs.splits import scenario
from inferencegym.ground.errors import InferenceGymError
from inferencegym.testing.servers import NotReadyError, free_port, until_healthy

TARGETS = {
    "paging_step_over_floor": 1.5,
    "llmserve_step_without_simulation_over_floor": 1.5,
    "paging_server_cpu_us_per_step_16_sessions": 250,
    "reset_p50_ms_slowest_task": 20,
    "ready_s_slowest": 20,
}
SESSIONS = 16
BLOCK = 100
LONGEST_START_S = 120.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def serve_floor(port: int) -> None:
    """OpenEnv's app around an environment that only counts, run as ours are."""
    from openenv.core.env_server.http_server import create_app
    from openenv.core.env_server.interfaces import Environment
    from openenv.core.env_server.types import Action, ConcurrencyConfig, Observation, State

    from inferencegym.envs.openenv.serve import run

    class Add(Action):
        number: int = 0

    class Sum(Observation):
        total: int = 0

    class Trivial(Environment):
        SUPPORTS_CONCURRENT_SESSIONS = True

        def __init__(self) -> None:
            super().__init__()
            self._state = State(episode_id="", step_count=0)

        def reset(self, **_: Any) -> Sum:
            self._state = State(episode_id="", step_count=0)
            return Sum(done=False, reward=None)

        def step(self, action: Add, **_: Any) -> Sum:
            self._state.step_count += 1
            return Sum(done=False, reward=0.0, total=self._state.step_count + action.number)

        async def reset_async(self, **_: Any) -> Sum:
            return self.reset()

        async def step_async(self, action: Add, **_: Any) -> Sum:
            return self.step(action)

        @property
        def state(self) -> State:
            return self._state

    limits = ConcurrencyConfig(max_concurrent_envs=128, session_timeout=900.0)
    run(create_app(Trivial, Add, Sum, env_name="trivial_env", concurrency_config=limits), "127.0.0.1", port)


class Server:
    """A server process: its port, and the CPU it has used."""

    def __init__(self, *command: str) -> None:
        self.port = free_port()
        started = time.perf_counter()
        # -P: this file is called like the package it measures.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", *command, "--port", str(self.port)], stdout=subprocess.DEVNULL
        )
        try:
            until_healthy(self.process, f"http://127.0.0.1:{self.port}", LONGEST_START_S, poll_s=0.02)
        except NotReadyError as error:
            raise SystemExit(f"{command}: {error}") from error
        self.ready_s = time.perf_counter() - started

    @property
    def socket(self) -> str:
        """Where its sockets are."""
        return f"ws://127.0.0.1:{self.port}/ws"

    def cpu_s(self) -> float:
        """User and system time of the process, all its threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S

    def stop(self) -> None:
        """End it as an operator does."""
        self.process.terminate()
        self.process.wait(30)


@contextmanager
def served(*command: str) -> Iterator[Server]:
    server = Server(*command)
    try:
        yield server
    finally:
        server.stop()


def env(family: str, web: bool = False) -> tuple[str, ...]:
    return ("-m", "inferencegym.cli.main", "env", family, "--web" if web else "--no-web")


def frame(kind: str, data: dict[str, Any]) -> str:
    return json.dumps({"type": kind, "data": data})


async def say(wire: Any, text: str) -> dict[str, Any]:
    await wire.send(text)
    answer = json.loads(await wire.recv())
    if answer["type"] != "observation":
        raise SystemExit(f"the server refused: {answer}")
    found: dict[str, Any] = answer["data"]
    return found


async def timed(wire: Any, text: str, times: list[float]) -> dict[str, Any]:
    begun = time.perf_counter()
    told = await say(wire, text)
    times.append(time.perf_counter() - begun)
    return told


def legal(told: dict[str, Any], turn: int) -> str:
    """A step with an action that is possible now: the pool fills, and does not overflow at once."""
    mask = told["observation"]["action_mask"]
    choices = [action for action, possible in enumerate(mask) if possible]
    return frame("step", {"action_id": choices[turn * 7 % len(choices)]})


def spread(name: str, times: list[float]) -> dict[str, float]:
    """p50 and p99 in microseconds."""
    return {f"{name}_p50_us": round(1e6 * statistics.median(times), 1), f"{name}_p99_us": round(1e6 * float(np.quantile(times, 0.99)), 1)}  # fmt: skip


async def steps_beside_floor(floor: Server, paging: Server, blocks: int) -> dict[str, float]:
    """One client each, alternating."""
    floor_s: list[float] = []
    paging_s: list[float] = []
    async with connect(floor.socket) as at_floor, connect(paging.socket) as at_paging:
        await say(at_floor, frame("reset", {}))
        told, turn, seed = await say(at_paging, frame("reset", {"seed": 0, "task_id": "medium"})), 0, 0
        count = frame("step", {"number": 1})
        for block in range(blocks + 1):
            for _ in range(BLOCK):
                await timed(at_floor, count, floor_s)
            for _ in range(BLOCK):
                if told["done"]:
                    seed += 1
                    told = await say(at_paging, frame("reset", {"seed": seed, "task_id": "medium"}))
                told = await timed(at_paging, legal(told, turn), paging_s)
                turn += 1
            if block == 0:
                floor_s.clear()
                paging_s.clear()
    found = spread("floor_step", floor_s) | spread("paging_step", paging_s)
    return found | {"paging_step_over_floor": round(found["paging_step_p50_us"] / found["floor_step_p50_us"], 3)}


async def windows_beside_floor(floor: Server, serve: Server, episodes: int) -> dict[str, float]:
    """LLMServe's windows, less what the same windows take to simulate in this process, beside the floor."""
    task = catalogue.task("bursty_workload")
    batch = task.batch(1)
    floor_s: list[float] = []
    whole_s: list[float] = []
    inside_s: list[float] = []
    async with connect(floor.socket) as at_floor, connect(serve.socket) as at_serve:
        await say(at_floor, frame("reset", {}))
        count, window = frame("step", {"number": 1}), frame("step", {"batch_cap": 128})
        for seed in range(episodes + 1):
            told = await say(at_serve, frame("reset", {"seed": seed, "task_id": task.name}))
            batch.start(0, scenario("validation", seed))
            while not told["done"]:
                await timed(at_floor, count, floor_s)
                told = await timed(at_serve, window, whole_s)
                batch.actions[0] = task.surface.dense({"batch_cap": 128})
                begun = time.perf_counter()
                batch.step()
                inside_s.append(time.perf_counter() - begun)
            if seed == 0:
                for times in (floor_s, whole_s, inside_s):
                    times.clear()
    rest_s = [whole - inside for whole, inside in zip(whole_s, inside_s, strict=True)]
    found = spread("llmserve_step", whole_s) | spread("llmserve_simulation", inside_s) | spread("llmserve_step_without_simulation", rest_s)  # fmt: skip
    over = found["llmserve_step_without_simulation_p50_us"] / (1e6 * statistics.median(floor_s))
    return found | {"llmserve_step_without_simulation_over_floor": round(over, 3)}


async def server_cpu(server: Server, reset: dict[str, Any], steps: int) -> float:
    """CPU microseconds of the server a step, with 16 sessions at once; the actions need no look at the answers."""
    paging = "task_id" in reset
    wires = [await connect(server.socket) for _ in range(SESSIONS)]

    async def play(i: int, count: int) -> None:
        told = await say(wires[i], frame("reset", reset | {"seed": i} if paging else {}))
        for turn in range(count):
            if told["done"]:
                told = await say(wires[i], frame("reset", reset | {"seed": i}))
            told = await say(wires[i], legal(told, turn + i) if paging else frame("step", {"number": 1}))

    await asyncio.gather(*(play(i, 100) for i in range(SESSIONS)))
    before = server.cpu_s()
    await asyncio.gather(*(play(i, steps) for i in range(SESSIONS)))
    used = server.cpu_s() - before
    for wire in wires:
        await wire.close()
    return 1e6 * used / (SESSIONS * steps)


async def resets(server: Server, family: str, count: int) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Of each task: reset on a scenario never played before, and again on the same one, milliseconds; and the tasks left out."""
    found: dict[str, dict[str, float]] = {}
    missing = []
    async with connect(server.socket, max_size=None) as wire:
        for name in catalogue.task_names(family):
            try:
                _ = catalogue.task(name).digest
            except InferenceGymError:
                missing.append(name)
                continue
            fresh_s: list[float] = []
            again_s: list[float] = []
            for seed in range(count + 1):
                begin = frame("reset", {"seed": seed, "task_id": name})
                await timed(wire, begin, fresh_s)
                await timed(wire, begin, again_s)
            found[name] = {
                "p50": round(1e3 * statistics.median(fresh_s[1:]), 3), "p99": round(1e3 * float(np.quantile(fresh_s[1:], 0.99)), 3),
                "same_scenario_p50": round(1e3 * statistics.median(again_s[1:]), 3), "first": round(1e3 * fresh_s[0], 3),
            }  # fmt: skip
    return found, missing


def measure(scale: float) -> dict[str, Any]:
    """All figures."""

    def n(count: int) -> int:
        return max(2, int(count * scale))

    found: dict[str, Any] = {}
    ready = {}
    for family in ("llmserve", "pagedkv"):
        with served(*env(family, web=True)) as server:
            ready[f"{family}_with_page"] = round(server.ready_s, 2)
    with (
        served(str(Path(__file__).resolve()), "--serve-floor") as floor,
        served(*env("pagedkv")) as paging,
        served(*env("llmserve")) as serve,
    ):
        ready |= {"pagedkv": round(paging.ready_s, 2), "llmserve": round(serve.ready_s, 2), "trivial": round(floor.ready_s, 2)}  # fmt: skip
        found |= asyncio.run(steps_beside_floor(floor, paging, n(30)))
        found |= asyncio.run(windows_beside_floor(floor, serve, n(6)))
        found["floor_server_cpu_us_per_step_16_sessions"] = round(asyncio.run(server_cpu(floor, {}, n(500))), 1)
        found["paging_server_cpu_us_per_step_16_sessions"] = round(
            asyncio.run(server_cpu(paging, {"task_id": "medium"}, n(500))), 1
        )
        begun_serve, missing = asyncio.run(resets(serve, "llmserve", n(20)))
        begun_paging, _ = asyncio.run(resets(paging, "pagedkv", n(20)))
    found["reset_ms"] = begun_serve | begun_paging
    found["reset_p50_ms_slowest_task"] = max(one["p50"] for one in found["reset_ms"].values())
    found["tasks_without_their_trace"] = missing
    found["ready_s"] = ready
    found["ready_s_slowest"] = max(ready.values())
    return found


def processor() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of steps")
    parser.add_argument("--serve-floor", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_floor:
        serve_floor(options.port)
        return
    found = measure(options.scale)
    load = os.getloadavg()
    context = {
        "cpu": processor(), "cores": os.cpu_count(), "load_1_min": round(load[0], 1), "version": inferencegym.__version__,
        "client": "websockets, asyncio, one process beside the server",
    }  # fmt: skip
    if options.json:
        print(json.dumps({**found, "targets": TARGETS, "context": context}))
        return
    print(", ".join(f"{name}: {value}" for name, value in context.items()))
    for name, value in found.items():
        if isinstance(value, dict):
            print(name, *(f"  {key:26} {one}" for key, one in value.items()), sep="\n")
            continue
        met = f"   target {TARGETS[name]}: {'met' if value <= TARGETS[name] else 'MISSED'}" if name in TARGETS else ""
        print(f"{name:48} {value}{met}")


if __name__ == "__main__":
    main()
