"""Limits that several gateway processes share through Redis: token buckets and counts of what waits, one script a call, by Redis's own clock.

When Redis is gone or slow the gateway goes on with its local limits (fail open: each process then holds them for itself, from the last known levels), says
so in the log and in `up` and `failures`, and tries to come back every `shared.retry_s`. Every key has an expiry: a bucket that would be full is no key at all.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, cast

from inferencegym.ground.errors import ConfigError, MissingExtraError
from inferencegym.runtime.admission import Admission, Tally
from inferencegym.runtime.buckets import Bucket
from inferencegym.runtime.ports import Ask, Clock
from inferencegym.runtime.rates import rate_error, too_large
from inferencegym.runtime.settings import SharedSettings

if TYPE_CHECKING:
    from redis.asyncio import Redis

_LOG = logging.getLogger(__name__)
#: A gateway that has said nothing for so long is taken to be gone, and what it said waits, with it.
HEARTBEAT_S, FORGOTTEN_S = 1.0, 5.0

# KEYS: buckets. ARGV: force (take without asking), then for each bucket rate a second, burst, amount.
# Returns the bucket that refused (0: none; nothing is taken if one refuses), then what is in each. A clock that goes back mints nothing.
_TAKE = """
local now = redis.call('TIME')
now = now[1] + now[2] / 1000000
local levels, refused = {}, 0
for i, key in ipairs(KEYS) do
  local rate, burst, amount = tonumber(ARGV[3*i-1]), tonumber(ARGV[3*i]), tonumber(ARGV[3*i+1])
  local held = redis.call('HMGET', key, 'level', 'at')
  local level = burst
  if held[1] then level = math.min(burst, tonumber(held[1]) + rate * math.max(0, now - tonumber(held[2]))) end
  levels[i] = level
  if refused == 0 and ARGV[1] == '0' and level < amount * (1 - 1e-9) then refused = i end
end
for i, key in ipairs(KEYS) do
  local rate, burst, amount = tonumber(ARGV[3*i-1]), tonumber(ARGV[3*i]), tonumber(ARGV[3*i+1])
  if refused == 0 then levels[i] = math.min(burst, levels[i] - amount) end
  redis.call('HSET', key, 'level', string.format('%.6f', levels[i]), 'at', string.format('%.6f', now))
  redis.call('PEXPIRE', key, math.ceil((burst - levels[i]) / rate * 1000) + 1000)
end
local told = {refused}
for i, level in ipairs(levels) do told[i+1] = string.format('%.6f', level) end
return told
"""

# KEYS: the table of gateways. ARGV: this gateway, seconds after which one is forgotten, its requests, prompt tokens and bytes that wait.
# Returns what waits at all others.
_COUNT = """
local now = redis.call('TIME')
now = now[1] + now[2] / 1000000
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.6f %d %d %d', now, ARGV[3], ARGV[4], ARGV[5]))
redis.call('PEXPIRE', KEYS[1], math.ceil(ARGV[2] * 1000))
local sums = {0, 0, 0}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local at, requests, tokens, bytes = string.match(all[i+1], '(%S+) (%S+) (%S+) (%S+)')
  if now - tonumber(at) > tonumber(ARGV[2]) then
    redis.call('HDEL', KEYS[1], all[i])
  elseif all[i] ~= ARGV[1] then
    sums[1], sums[2], sums[3] = sums[1] + requests, sums[2] + tokens, sums[3] + bytes
  end
end
return sums
"""


class SharedLimits:
    """The limits of an `Admission`, held for all gateways of the same Redis and prefix together.

    `take` before each `Gateway.submit`; what ends is settled on its own. `up`: whether Redis decides now; `failures`: times it was lost; `local`: requests that
    local limits decided meanwhile.
    """

    def __init__(self, settings: SharedSettings, admission: Admission, clock: Clock, name: str = "") -> None:
        """`name`: this gateway's, unlike all others; empty: made of its process."""
        self._settings, self._admission, self._clock = settings, admission, clock
        self._name = name or f"{os.uname().nodename}:{os.getpid()}:{id(self):x}"
        self._redis: Redis | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._take: Any = None
        self._count: Any = None
        self.up = False
        self.failures = self.local = 0

    async def start(self) -> None:
        """Connect, if Redis is there; go on without it if not. MissingExtraError, ConfigError: what to install or to set."""
        try:
            from redis.asyncio import Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ImportError as error:
            raise MissingExtraError("serve", "Sharing limits through Redis") from error
        timeout_s = self._settings.timeout_s
        try:
            self._redis = Redis.from_url(
                self._settings.redis_url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
            )  # fmt: skip
        except ValueError as error:
            raise ConfigError(
                "shared.redis_url", str(error), allowed="redis://host:port/db, rediss://, unix://"
            ) from None
        self._take, self._count = self._redis.register_script(_TAKE), self._redis.register_script(_COUNT)
        self._admission.settle_elsewhere = self._settle
        self.up = True
        await self._beat()

    async def stop(self) -> None:
        """Say goodbye: what waits here counts no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks)
        if self._redis is not None:
            if self.up:
                await self._ask(cast("Awaitable[Any]", self._redis.hdel(self._key("waiting"), self._name)))
            await self._redis.aclose()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def take(self, ask: Ask) -> bool:
        """Count a request's rates for all gateways; whether that was done (False: local limits decide). ApiError 429 or 400 if it is refused."""
        ask.predicted_tokens = self._admission.lengths.expect(ask)
        buckets = self._buckets(ask)
        if not buckets:
            return self.up
        tokens = self._admission.reserve_tokens(ask)
        amounts = [tokens if name.endswith("tokens") else 1.0 for name, _, _ in buckets]
        for (_, bucket, _), amount in zip(buckets, amounts, strict=True):
            if amount > bucket.burst:
                self._admission.refused["tokens"] += 1
                raise too_large(amount, bucket.burst)
        told = await self._run(buckets, amounts, force=False)
        if told is None:
            self.local += 1
            return False
        if told:
            name, bucket, whose = buckets[told - 1]
            what = "tokens" if name.endswith("tokens") else "requests"
            self._admission.refused["tokens" if what == "tokens" else "rate"] += 1
            raise rate_error(
                f"{bucket.rate_per_s:g} {what} a second {whose}", bucket.wait_s(amounts[told - 1], self._clock())
            )
        return True

    # --- buckets ---------------------------------------------------------------------------------------------------------

    def _buckets(self, ask: Ask) -> list[tuple[str, Bucket, str]]:
        """(key, local bucket, whose) of each limit that a request is under."""
        found = []
        for rates in self._admission.rates.of(ask):
            all_ = self._admission.rates.is_of_all(rates)
            whose, name = ("of all callers", "all") if all_ else ("of this key", f"key:{ask.tenant}")
            for what in ("requests", "tokens"):
                bucket: Bucket | None = getattr(rates, what)
                if bucket is not None:
                    found.append((self._key(f"{name}:{what}"), bucket, whose))
        return found

    def _key(self, name: str) -> str:
        # The braces keep all keys of a script on one node of a Redis cluster.
        return f"{{{self._settings.prefix}}}:{name}"

    async def _run(self, buckets: list[tuple[str, Bucket, str]], amounts: list[float], force: bool) -> int | None:
        """Take from all buckets or none; the number of the one that refused, 0, or None when Redis did not answer. Local buckets follow."""
        args: list[Any] = [int(force)]
        for (_, bucket, _), amount in zip(buckets, amounts, strict=True):
            args += [bucket.rate_per_s, bucket.burst, amount]
        told = await self._ask(self._take(keys=[key for key, _, _ in buckets], args=args)) if self.up else None
        if told is None:
            return None
        now_s = self._clock()
        for (_, bucket, _), level in zip(buckets, told[1:], strict=True):
            bucket.level, bucket.at_s = float(level), now_s
        return int(told[0])

    def _settle(self, ask: Ask, reserved: float, used: float, refused: bool) -> None:
        """A request that was counted there ended, or was refused after all; runs on its own."""
        buckets = self._buckets(ask)
        amounts = [used - reserved if key.endswith("tokens") else -1.0 if refused else 0.0 for key, _, _ in buckets]
        if not self.up or not any(amounts):
            return

        async def settle() -> None:
            await self._run(buckets, amounts, force=True)

        task = asyncio.get_running_loop().create_task(settle())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- what waits ------------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        """Tell how much waits here, learn how much waits elsewhere, and do so again; or look whether Redis is back."""
        mine = self._admission.total
        was_up = self.up
        told = await self._ask(
            self._count(keys=[self._key("waiting")], args=[self._name, FORGOTTEN_S, mine.requests, mine.prompt_tokens, mine.bytes])
        )  # fmt: skip
        if told is not None:
            self._admission.elsewhere = Tally(*(int(number) for number in told))
            self.up = True
            if not was_up:
                _LOG.warning("Redis is back: limits are shared again")
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(HEARTBEAT_S if self.up else self._settings.retry_s, self._beat_soon)

    def _beat_soon(self) -> None:
        task = asyncio.get_running_loop().create_task(self._beat())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, question: Awaitable[Any]) -> Any:
        """What Redis answers; None, and `up` is over, if it does not."""
        from redis.exceptions import RedisError

        try:
            async with asyncio.timeout(self._settings.timeout_s):
                return await question
        except (RedisError, OSError, TimeoutError) as error:
            if self.up:
                self.up = False
                self.failures += 1
                self._admission.elsewhere = Tally()
                _LOG.warning("Redis does not answer, local limits decide until it is back: %s", type(error).__name__)
            return None
