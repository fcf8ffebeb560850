"""Limits that gateways share through a real Redis: held together, settled, forgotten when full, and local when Redis dies, until it is back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from inferencegym.ground.errors import ConfigError
from inferencegym.metrics.record import Outcome
from inferencegym.runtime.errors import ApiError
from inferencegym.runtime.settings import AdmissionSettings, Key, QueueSettings, Settings, SharedSettings
from inferencegym.runtime.shared import SharedLimits
from tests.runtime.asks import ask
from tests.runtime.test_admission import House
from tests.starting import free_port

HASH = "0" * 64


class Server:
    """A redis-server on loopback that keeps nothing on disk."""

    def __init__(self, folder) -> None:
        self.port, self._folder = free_port(), folder
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen(command, cwd=self._folder, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if "Ready to accept connections" in line:
                return
        raise AssertionError("redis-server did not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    pytest.importorskip("redis", reason="the extra 'serve' is not installed")
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server on this machine; Debian: apt-get install redis-server")
    server = Server(tmp_path)
    yield server
    if server.process.poll() is None:
        server.kill()


pytestmark = pytest.mark.redis


def settings(server: Server, **more: object) -> Settings:
    shared = SharedSettings(redis_url=server.url, timeout_s=0.5, retry_s=0.05)
    return Settings(
        **{"shared": shared, "keys": (Key("k", HASH, rate_rps=0.01, burst=5, tokens_per_min=1000),), **more}
    )


@contextlib.asynccontextmanager
async def gateways(config: Settings, count: int) -> AsyncIterator[list[tuple[House, SharedLimits]]]:
    pairs = []
    for n in range(count):
        house = House(config, seats=100)
        pairs.append((house, SharedLimits(config.shared, house.admission, house.clock, f"g{n}")))
        await pairs[-1][1].start()
    yield pairs
    for _, limits in pairs:
        await limits.stop()


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))  # type: ignore[arg-type]


async def until(true: Callable[[], bool]) -> None:
    """Return when it holds; `run` ends a test in which it never does."""
    while not true():
        await asyncio.sleep(0.01)


async def offer(house: House, limits: SharedLimits, **fields: object) -> bool:
    """One request from its head to its seat; whether Redis counted it."""
    one = ask(**{"tenant": "k", "prompt_tokens": 1, "max_tokens": 1, **fields})
    shared = await limits.take(one)
    house.admission.admit(one, house, shared=shared)
    house.line.append(one)
    house.pump()
    return shared


def test_a_key_has_one_rate_at_all_gateways_together(server):
    async def test() -> None:
        async with gateways(settings(server), 3) as pairs:
            tries = await asyncio.gather(*(offer(*pairs[n % 3]) for n in range(30)), return_exceptions=True)
            assert tries.count(True) == 5
            refused = [one for one in tries if isinstance(one, ApiError)]
            assert {(one.status, one.code) for one in refused} == {(429, "rate_limit_exceeded")}
            assert all(90 < one.retry_after_s <= 100 for one in refused)
            headers = dict(pairs[0][0].admission.limit_headers(ask(tenant="k")))
            assert headers[b"x-ratelimit-remaining-requests"] == b"0"

    run(test)


def test_tokens_are_settled_at_the_end_and_given_back_when_refused_after_all(server):
    config = settings(server, keys=(Key("k", HASH, tokens_per_min=1000),), queue=QueueSettings(max_requests=0))

    async def test() -> None:
        async with gateways(config, 2) as ((house, limits), (other, others)):
            await offer(house, limits, prompt_tokens=100, max_tokens=200)
            house.end(house.running[0], 50)
            await until(lambda: not limits._tasks - {None})
            await offer(other, others, prompt_tokens=1, max_tokens=1)
            level = other.admission.rates.of(ask(tenant="k"))[0].tokens.level
            assert level == pytest.approx(1000 - 150 - 2, abs=5)
            house.seats = 0
            with pytest.raises(ApiError, match="queue is full"):
                await offer(house, limits, prompt_tokens=500, max_tokens=1)
            await until(lambda: not limits._tasks - {None})
            await offer(other, others, prompt_tokens=1, max_tokens=1)
            assert other.admission.rates.of(ask(tenant="k"))[0].tokens.level == pytest.approx(level - 2, abs=10)
            with pytest.raises(ApiError, match="needs about 2000 tokens"):
                await limits.take(ask(tenant="k", prompt_tokens=1999, max_tokens=1))

    run(test)


def test_every_key_expires(server):
    async def test() -> None:
        import redis.asyncio

        async with gateways(settings(server, admission=AdmissionSettings(rate_rps=100, burst=10)), 1) as ((house, limits),):  # fmt: skip
            await offer(house, limits)
            async with redis.asyncio.Redis.from_url(server.url) as client:
                keys = [key async for key in client.scan_iter()]
                assert sorted(keys) == [
                    b"{inferencegym}:all:requests", b"{inferencegym}:key:k:requests", b"{inferencegym}:key:k:tokens", b"{inferencegym}:waiting",
                ]  # fmt: skip
                assert all([0 < await client.pttl(key) < 600_000 for key in keys])
                # A clock that went back by an hour: nothing is minted, and nobody waits an hour.
                await client.hset("{inferencegym}:key:k:requests", mapping={"level": "0", "at": "99999999999"})
            with pytest.raises(ApiError) as caught:
                await offer(house, limits)
            assert caught.value.retry_after_s == pytest.approx(100, abs=1)

    run(test)


def test_caps_on_the_queue_count_what_waits_elsewhere(server):
    config = settings(server, queue=QueueSettings(max_requests=3), keys=())

    async def test() -> None:
        async with gateways(config, 2) as ((house, limits), (other, others)):
            house.seats = other.seats = 0
            for _ in range(3):
                await offer(house, limits, tenant="")
            await limits._beat()
            await others._beat()
            assert other.admission.elsewhere.requests == 3
            with pytest.raises(ApiError, match="3 requests may wait"):
                await offer(other, others, tenant="")
            await limits.stop()
            await others._beat()
            assert other.admission.elsewhere.requests == 0
            await offer(other, others, tenant="")

    run(test)


@pytest.mark.parametrize("how", ["killed", "hung"])
def test_when_redis_dies_local_limits_decide_until_it_is_back(server, how, caplog):
    caplog.set_level(logging.WARNING, logger="inferencegym.runtime.shared")

    async def test() -> None:
        async with gateways(settings(server), 1) as ((house, limits),):
            assert await offer(house, limits)
            if how == "killed":
                server.kill()
            else:
                server.process.send_signal(signal.SIGSTOP)
            tries = await asyncio.gather(*(offer(house, limits) for _ in range(10)), return_exceptions=True)
            # From the last known level: one of five was taken while Redis was there.
            assert tries.count(False) == 4
            assert {one.code for one in tries if isinstance(one, ApiError)} == {"rate_limit_exceeded"}
            assert (limits.up, limits.failures, limits.local) == (False, 1, 10)
            assert len([line for line in caplog.records if "local limits decide" in line.message]) == 1
            if how == "killed":
                server.start()
            else:
                server.process.send_signal(signal.SIGCONT)
            await until(lambda: limits.up)
            assert "limits are shared again" in caplog.records[-1].message
            if how == "killed":
                assert await offer(house, limits)

    run(test)


def test_a_gateway_starts_without_redis_and_takes_it_when_it_comes(server):
    server.kill()

    async def test() -> None:
        async with gateways(settings(server), 1) as ((house, limits),):
            assert not limits.up
            assert not await offer(house, limits)
            server.start()
            await until(lambda: limits.up)
            assert await offer(house, limits)

    run(test)


def test_a_wrong_address_says_what_is_allowed(server):
    house = House(Settings())
    limits = SharedLimits(SharedSettings(redis_url="http://x"), house.admission, house.clock)
    with pytest.raises(ConfigError, match="redis://host:port"):
        asyncio.run(limits.start())


def test_a_gateway_with_redis_counts_for_all_and_writes_refusals_down(server):
    from inferencegym.runtime.backends.pool import Pool, Traits
    from inferencegym.runtime.gateway import Gateway
    from inferencegym.runtime.recorder import Recorder
    from tests.runtime.fakes import FakeBackend

    config = settings(server, keys=(Key("k", HASH, rate_rps=0.01, burst=2),))

    async def test() -> None:
        clock = asyncio.get_running_loop().time
        backends = [FakeBackend("main")]
        gateway = Gateway(config, Pool(backends, traits={"main": Traits(health_interval_s=1e9)}), Recorder(config.classes, clock), clock)  # fmt: skip
        await gateway.start()
        assert [await gateway.counted_for_all(ask(tenant="k")) for _ in range(2)] == [True, True]
        with pytest.raises(ApiError, match="Rate limit"):
            await gateway.counted_for_all(ask(tenant="k"))
        assert gateway.recorder.records().outcome.tolist().count(int(Outcome.REJECTED)) == 1
        await gateway.stop()

    run(test)
