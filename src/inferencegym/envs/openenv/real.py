"""Real mode's client: settings from the environment, one streamed chat completion measured on a monotonic clock, and what tokens cost.

Times are seconds of the event loop's clock. Any OpenAI-compatible endpoint will do; a key is only needed for one that is not on this network.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai

from inferencegym.decision.knobs import QUANTIZATION_TIERS
from inferencegym.ground.errors import ConfigError
from inferencegym.ground.rng import stream

#: Providers with an address of their own, and the field that bounds an answer there.
PROVIDERS = {"openai": ("https://api.openai.com/v1", "max_completion_tokens"), "compatible": ("", "max_tokens")}
#: US$ per million tokens, (prompt, completion), where LLMSERVE_REAL_PRICES names no others.
PRICES: Mapping[str, tuple[float, float]] = {
    "gpt-4o-mini": (0.15, 0.60), "gpt-4o": (2.50, 10.00), "gpt-4.1-nano": (0.10, 0.40), "gpt-4.1-mini": (0.40, 1.60), "gpt-4.1": (2.00, 8.00),
}  # fmt: skip
#: Tokens that a chat template, a system prompt and the episode's mark may add to a prompt; left free under the cap.
TEMPLATE_TOKENS = 48
#: Short words that common vocabularies hold whole, so that a word is about a token.
_WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "for",
    "it",
    "as",
    "was",
    "with",
    "be",
    "by",
    "on",
    "not",
    "he",
    "his",
    "but",
    "at",
    "are",
    "this",
    "have",
    "from",
    "or",
    "had",
    "an",
    "they",
    "which",
    "one",
    "you",
    "were",
    "all",
    "her",
    "she",
    "there",
    "would",
    "their",
    "we",
    "him",
    "been",
    "has",
    "when",
    "who",
    "will",
    "no",
    "more",
    "if",
    "out",
    "so",
    "up",
    "said",
    "what",
    "its",
    "about",
    "than",
    "into",
    "them",
    "can",
    "only",
    "other",
    "time",
    "new",
    "some",
    "could",
    "these",
    "two",
    "may",
    "first",
    "then",
    "do",
    "any",
    "like",
    "my",
    "now",
    "over",
    "such",
    "our",
    "man",
    "me",
    "even",
    "most",
    "made",
    "after",
    "also",
    "did",
    "many",
    "off",
    "before",
    "must",
    "well",
    "back",
    "through",
    "years",
    "where",
    "much",
]


@dataclass(frozen=True, slots=True)
class RealSettings:
    """Where real requests go, and how many and how large they may be. The key never leaves this object."""

    model: str
    base_url: str
    provider: str = "compatible"
    api_key: str = field(default="", repr=False)
    max_requests_per_step: int = 4
    """Requests that begin in one window."""
    max_prompt_tokens: int = 256
    max_completion_tokens: int = 64
    window_s: float = 0.0
    """Seconds of a window; 0: as long as the task's."""
    timeout_s: float = 60.0
    """A request that is not answered whole after so long has failed."""
    kv_tokens: int = 16_384
    """Prompt and answer tokens in flight that kv_budget_fraction 1.0 allows."""
    variants: Mapping[str, str] = field(default_factory=dict)
    """Model for each weight format that the endpoint has beside `model` (which is FP16's)."""
    draft_field: str = ""
    """Field of a request that sets the draft length, where the backend takes one (llama.cpp: speculative.n_max)."""
    prices: Mapping[str, tuple[float, float]] = field(default_factory=lambda: PRICES)

    def __post_init__(self) -> None:
        if self.provider not in PROVIDERS:
            raise ConfigError("LLMSERVE_REAL_PROVIDER", f"'{self.provider}' is not known", allowed=", ".join(PROVIDERS))
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("OPENAI_BASE_URL", f"'{self.base_url}' is no address", allowed="http://host:port/v1")
        if not self.model:
            raise ConfigError(
                "LLMSERVE_REAL_MODEL", "is not set", allowed="a model of the endpoint (or set OPENAI_MODEL)"
            )
        if not self.api_key and not _near(parts.hostname):
            raise ConfigError(
                "OPENAI_API_KEY",
                f"is not set, and {parts.hostname} is a hosted endpoint",
                allowed="a key, or OPENAI_BASE_URL of a server of your own",
            )
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(_variable(name), f"{value} is out of range", allowed=f"{low:g}..{high:g}")
        for tier in self.variants:
            if tier not in QUANTIZATION_TIERS:
                raise ConfigError(
                    "LLMSERVE_REAL_VARIANTS", f"there is no tier '{tier}'", allowed=", ".join(QUANTIZATION_TIERS)
                )

    @classmethod
    def from_environment(cls, given: Mapping[str, str] | None = None) -> RealSettings:
        """From LLMSERVE_REAL_*, OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_MODEL; ConfigError says what is missing."""
        env = os.environ if given is None else given
        provider = env.get("LLMSERVE_REAL_PROVIDER") or ("compatible" if env.get("OPENAI_BASE_URL") else "openai")
        if provider not in PROVIDERS:
            raise ConfigError("LLMSERVE_REAL_PROVIDER", f"'{provider}' is not known", allowed=", ".join(PROVIDERS))
        numbers: dict[str, Any] = {}
        for name, low, _ in _RANGES:
            text = env.get(_variable(name))
            if text is not None:
                kind = int if isinstance(low, int) else float
                try:
                    numbers[name] = kind(text)
                except ValueError:
                    raise ConfigError(_variable(name), f"'{text}' is no number", allowed="a number") from None
        return cls(
            model=env.get("LLMSERVE_REAL_MODEL") or env.get("OPENAI_MODEL") or ("gpt-4o-mini" if provider == "openai" else ""),
            base_url=env.get("OPENAI_BASE_URL") or PROVIDERS[provider][0], provider=provider, api_key=env.get("OPENAI_API_KEY", ""),
            variants=_variants(env.get("LLMSERVE_REAL_VARIANTS", "")), draft_field=env.get("LLMSERVE_REAL_DRAFT_FIELD", ""),
            prices={**PRICES, **_prices(env.get("LLMSERVE_REAL_PRICES", ""))}, **numbers,
        )  # fmt: skip

    def model_of(self, tier: str) -> str | None:
        """The model that serves a weight format; None if the endpoint has none."""
        return self.variants.get(tier) or (self.model if tier == "FP16" else None)

    def cost_usd(self, model: str, prompt_tokens: int, completion_tokens: int) -> float | None:
        """What a request costs; None if the model has no price."""
        price = self.prices.get(model)
        return None if price is None else (prompt_tokens * price[0] + completion_tokens * price[1]) / 1e6

    def told(self) -> dict[str, Any]:
        """What GET /runtime may say: all but the key."""
        return {
            "provider": self.provider, "base_url": _without_user(self.base_url), "model": self.model, "variants": dict(self.variants),
            "caps": {name: getattr(self, name) for name in ("max_requests_per_step", "max_prompt_tokens", "max_completion_tokens")},
            "window_s": self.window_s or None, "timeout_s": self.timeout_s, "kv_tokens": self.kv_tokens,
            "draft_field": self.draft_field or None, "priced": self.model in self.prices,
        }  # fmt: skip


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("max_requests_per_step", 1, 512), ("max_prompt_tokens", 1, 131_072), ("max_completion_tokens", 1, 32_768),
    ("window_s", 0.0, 60.0), ("timeout_s", 0.01, 3600.0), ("kv_tokens", 1, 100_000_000),
)  # fmt: skip


def _variable(name: str) -> str:
    return f"LLMSERVE_REAL_{name.upper()}"


def _near(host: str) -> bool:
    """Whether a host is this machine or on its own network, where servers need no key."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".localhost"))


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def _variants(text: str) -> dict[str, str]:
    found = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        tier, sign, model = part.partition("=")
        if not sign or not model:
            raise ConfigError(
                "LLMSERVE_REAL_VARIANTS", f"'{part}' is no variant", allowed="INT8=model-q8,INT4=model-q4"
            )
        found[tier.strip()] = model.strip()
    return found


def _prices(text: str) -> dict[str, tuple[float, float]]:
    allowed = '{"model": [US$ per million prompt tokens, per million completion tokens]}'
    if not text:
        return {}
    try:
        found = {str(name): (float(pair[0]), float(pair[1])) for name, pair in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        raise ConfigError("LLMSERVE_REAL_PRICES", f"cannot be read: {error}", allowed=allowed) from error
    if not all(0 <= price < 1e6 for pair in found.values() for price in pair):
        raise ConfigError("LLMSERVE_REAL_PRICES", "a price is out of range", allowed=allowed)
    return found


@dataclass(slots=True, eq=False)
class Request:
    """One request: what is asked, and what was measured so far."""

    row: int
    text: str
    prompt_tokens: int
    """As asked for; the endpoint's own count replaces it when it comes."""
    most_tokens: int
    priority: int
    ttft_limit_s: float
    tpot_limit_s: float
    weight: float
    arrived_s: float = float("nan")
    sent_s: float = float("nan")
    model: str = ""
    tier: int = 0
    chunks_s: list[float] = field(default_factory=list)
    """When each piece of the answer came."""
    emitted: int = 0
    """Tokens of the answer: pieces so far, the endpoint's own count at the end."""
    usage: bool = False
    ended_s: float = float("nan")
    problem: str = ""

    @property
    def ttft_s(self) -> float:
        """From arrival (the wait in our queue included) to the first piece; NaN before it."""
        return self.chunks_s[0] - self.arrived_s if self.chunks_s else float("nan")

    @property
    def met(self) -> bool:
        """Whether it finished within its class's objectives."""
        if self.problem or not self.chunks_s or self.ttft_s > self.ttft_limit_s:
            return False
        return self.emitted < 2 or (self.chunks_s[-1] - self.chunks_s[0]) / (self.emitted - 1) <= self.tpot_limit_s


def text_of(words: int, scenario: int, row: int) -> str:
    """A prompt of about so many tokens, the same for a scenario's request every time, and shared by no other."""
    drawn = stream(scenario * 1_000_003 + row, "real.prompt").integers(0, len(_WORDS), max(1, words))
    return " ".join(_WORDS[i] for i in drawn)


class Endpoint:
    """The official client at one address. All its methods run on one event loop."""

    def __init__(self, settings: RealSettings, clock: Callable[[], float]) -> None:
        self.settings, self._clock = settings, clock
        # Some servers close a connection after a streamed answer without saying so; a pooled one would fail the next request.
        http = httpx.AsyncClient(limits=httpx.Limits(max_keepalive_connections=0), timeout=settings.timeout_s)
        self._client = openai.AsyncOpenAI(
            base_url=settings.base_url, api_key=settings.api_key or "none", max_retries=0, http_client=http
        )

    async def ask(self, request: Request, draft_tokens: int, heard: Callable[[Request, float], None]) -> None:
        """Send one request and measure its stream; whatever goes wrong is written into `problem`, never raised."""
        settings, request.sent_s = self.settings, self._clock()
        more: dict[str, Any] = {settings.draft_field: draft_tokens} if settings.draft_field else {}
        more[PROVIDERS[settings.provider][1]] = request.most_tokens
        try:
            async with asyncio.timeout(settings.timeout_s):
                answer: Any = await self._client.chat.completions.create(
                    model=request.model, messages=[{"role": "user", "content": request.text}], stream=True,
                    stream_options={"include_usage": True}, extra_body=more,
                )  # fmt: skip
                async with answer:
                    async for piece in answer:
                        self._piece(request, piece, heard)
            if not request.chunks_s:
                request.problem = "empty answer"
        except TimeoutError:
            request.problem = f"no whole answer within {settings.timeout_s:g} s"
        except (openai.OpenAIError, httpx.HTTPError, ValueError) as error:
            request.problem = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        finally:
            request.ended_s = self._clock()

    def _piece(self, request: Request, piece: Any, heard: Callable[[Request, float], None]) -> None:
        now = self._clock()
        if piece.usage is not None:
            request.usage = True
            request.prompt_tokens, request.emitted = piece.usage.prompt_tokens, piece.usage.completion_tokens
        for choice in piece.choices:
            if choice.delta.content or getattr(choice.delta, "reasoning_content", None):
                request.chunks_s.append(now)
                if not request.usage:
                    request.emitted += 1
                heard(request, now)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()
