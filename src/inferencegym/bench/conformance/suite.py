"""The whole suite: which checks there are, in which order, and how one is run. Times are seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

import aiohttp
import msgspec

from inferencegym.bench.client import TargetError
from inferencegym.bench.conformance import answers, drain, faults, leaving, refusals
from inferencegym.bench.conformance.check import Check, CheckFailedError, CheckSkippedError, Result, Verdict
from inferencegym.bench.conformance.marked import MarkedUpstream
from inferencegym.bench.conformance.talk import MODELS, Asked, Probe
from inferencegym.ground.errors import ConfigError

GROUPS = (answers.GROUP, refusals.GROUP, refusals.AROUND, leaving.GROUP, leaving.OVERLOAD, faults.GROUP, drain.GROUP)
CHECKS: tuple[Check, ...] = tuple(check for group in GROUPS for check in group.checks)
#: A gateway that was started before its upstream gets so long to find it.
START_S = 30.0


def chosen(names: Sequence[str]) -> tuple[Check, ...]:
    """Checks by their own or their group's name; all where none is named. ConfigError for another name."""
    if not names:
        return CHECKS
    known = {check.id for check in CHECKS} | {check.group for check in CHECKS}
    for name in names:
        if name not in known:
            raise ConfigError(
                "--only", f"there is no check or group '{name}'", allowed=", ".join(g.name for g in GROUPS)
            )
    return tuple(check for check in CHECKS if check.id in names or check.group in names)


async def run(
    asked: Asked, *, names: Sequence[str] = (), upstream_port: int | None = None, on_result: Callable[[Result], None] | None = None
) -> list[Result]:  # fmt: skip
    """Run the checks one after the other. TargetError: nobody answers there."""
    checks = chosen(names)
    headers = {"authorization": f"Bearer {asked.key}"} if asked.key else {}
    results = []
    async with AsyncExitStack() as stack:
        upstream = None
        if upstream_port is not None:
            try:
                upstream = await stack.enter_async_context(MarkedUpstream(upstream_port))
            except OSError as error:
                raise ConfigError(
                    "--upstream", f"port {upstream_port}: {error.strerror}", allowed="a free port"
                ) from error
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True), headers=headers, timeout=aiohttp.ClientTimeout(total=None))
        )  # fmt: skip
        probe = Probe(asked, asked.model, session, upstream)
        probe.model = await _model(probe)
        for check in checks:
            results.append(await _one(check, probe))
            if on_result is not None:
                on_result(results[-1])
    return results


async def _one(check: Check, probe: Probe) -> Result:
    clock = asyncio.get_running_loop().time
    begin = clock()
    verdict: Verdict = "pass"
    try:
        async with asyncio.timeout(probe.asked.limit_s):
            note = await check.run(probe) or ""
    except CheckFailedError as failed:
        verdict, note = "fail", str(failed)
    except CheckSkippedError as skipped:
        verdict, note = "skipped", str(skipped)
    except TimeoutError:
        verdict, note = "fail", f"no end within {probe.asked.limit_s:g} s"
    except (aiohttp.ClientError, OSError) as error:
        verdict, note = "fail", f"{type(error).__name__}: {error}; expected: an answer"
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        # An answer of a shape that no check foresaw.
        verdict, note = "fail", f"an answer of another shape: {error!r}"
    return Result(check, verdict, " ".join(note.split()), clock() - begin)


async def _model(probe: Probe) -> str:
    """The model to ask for, when the server answers; a gateway in front of the suite's own server gets time to find it."""
    clock = asyncio.get_running_loop().time
    by = clock() + (START_S if probe.upstream is not None else 0.0)
    while True:
        try:
            told = await probe.call("GET", MODELS)
            if probe.asked.model:
                return probe.asked.model
            names = [str(one["id"]) for one in msgspec.json.decode(told.body)["data"]]
            if names:
                return names[0]
            problem = "it offers no model"
        except (aiohttp.ClientError, OSError, KeyError, TypeError, msgspec.DecodeError) as error:
            problem = f"{type(error).__name__}: {error}"
        if clock() >= by:
            raise TargetError(f"{probe.asked.url}{MODELS} does not answer as an OpenAI-compatible server does: {problem}; or name a model (--model)")  # fmt: skip
        await asyncio.sleep(0.2)
