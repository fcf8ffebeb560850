"""What the parts of the runtime know of each other: the request, the order of the queue, and the backend that answers.

Time is the event loop's (`loop.time()`, seconds), so that the same code runs under a virtual clock. The gateway is one thread: nothing here
needs a lock. A request's way: `wire` reads it into an `Ask`; `admission` lets it in; a `Queue` orders those that wait; the dispatcher hands it to a
`Backend`, whose `Answer` is read piece by piece into the client's stream; the recorder writes what happened.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

CHAT, COMPLETIONS, EMBEDDINGS = "chat", "completions", "embeddings"


@dataclass(slots=True, eq=False)
class Ask:
    """One request, as the gateway needs it; compared by identity."""

    id: str
    """`x-request-id`: the client's, or ours."""
    endpoint: str
    """chat, completions or embeddings."""
    model: str
    body: bytes
    """The JSON object as it came, for backends that speak the same language."""
    fields: Any
    """The same, read: a struct of `wire`."""
    prompt_tokens: int
    """Counted where there is a tokenizer, else estimated (`wire.estimate_tokens`)."""
    max_tokens: int | None
    """The caller's limit of the answer, None if there is none."""
    stream: bool
    arrival_s: float
    """When its head had been read, `loop.time()`."""
    priority: int = 0
    """Lower is sooner, as in vLLM."""
    slo_class: int = 0
    """Number of its service class (`Settings.classes`)."""
    tenant: str = ""
    """Whom fairness and limits count it for: the API key's name, else the header's, else empty."""
    deadline_s: float = float("inf")
    """`loop.time()` after which waiting on makes no sense: queue TTL, least of server, class and header."""
    slo_ttft_s: float = float("inf")
    """Objective of its class, for deadline orders."""
    session: str = ""
    """What prefix affinity may go by (`x-session-affinity`, `user`, or the prompt's beginning)."""
    predicted_tokens: float = 0.0
    """Expected length of the answer, for orders that go by it; 0: not known."""
    traceparent: str = ""
    """W3C trace context, handed on to the backend."""
    no_queue: bool = False
    """Refuse it rather than let it wait (`x-no-queue`)."""
    row: int = -1
    """Number of its record; the recorder gives it at admission."""
    trace: Any = None
    """Its spans (`traces.Trace`), where requests are traced."""


class Queue(Protocol):
    """The order in which waiting requests go. Work conserving, FIFO among equals, deterministic; `push`, `pop` and `remove` in O(log n)."""

    name: str

    def push(self, ask: Ask, now_s: float) -> None:
        """A request starts to wait."""

    def pop(self, now_s: float) -> Ask:
        """The next one; IndexError if none waits."""

    def remove(self, ask: Ask) -> bool:
        """It waits no more (its client left, its time is over); whether it was there."""

    def charge(self, ask: Ask, output_tokens: int) -> None:
        """It was given so many more answer tokens: orders that share out service count them."""

    def waiting(self) -> list[Ask]:
        """All that wait, by the time they were pushed; orders can be changed while requests wait."""

    def __len__(self) -> int: ...


@dataclass(slots=True)
class Piece:
    """What came from a backend at once."""

    text: str = ""
    """New text of choice `index`; where the backend speaks SSE, `raw` has the whole event instead."""
    tokens: int = 0
    """Output tokens in it (a backend that does not say: one each event with content)."""
    index: int = 0
    finish_reason: str | None = None
    raw: bytes | None = None
    """Of an OpenAI-compatible server: the JSON of the event (no `data: `), or the whole body of an answer that is not streamed."""
    usage: Usage | None = None
    """With the last piece, where the backend counts."""


@dataclass(slots=True)
class Usage:
    """Tokens of one answer, as the backend counted them."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    preemptions: int = 0
    """Times it had to make room for another."""


class Answer(Protocol):
    """A request under way at a backend. `async for piece in answer`; reading slowly slows the backend down or fills a bounded buffer, never memory."""

    scheduled_s: float
    """`loop.time()` when the backend began to compute, where it says; else when it was handed over."""

    def __aiter__(self) -> AsyncIterator[Piece]: ...

    async def __anext__(self) -> Piece:
        """The next piece. BackendError when it broke off: whatever came before stands."""

    def ready(self) -> bool:
        """Whether `__anext__` would return at once: pieces that are already here go out in one write."""

    def abort(self) -> None:
        """The client is gone: stop computing, now. Idempotent; the next `__anext__` ends the iteration."""


class BackendError(Exception):
    """A backend failed a request."""

    def __init__(self, message: str, *, status: int = 502, code: str = "backend_error", body: bytes | None = None, retry_after_s: float | None = None, fault: bool = True, sent: bool = True) -> None:  # fmt: skip
        """`body`: the backend's own error body, to pass on; `fault`: it counts against the backend's health (never 4xx, 429 or 503 with Retry-After);
        `sent`: the backend may have begun to compute (False: it is safe to try another).
        """
        super().__init__(message)
        self.message, self.status, self.code, self.body = message, status, code, body
        self.retry_after_s, self.fault, self.sent = retry_after_s, fault, sent


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do; what it cannot is refused with a 400 that says so."""

    endpoints: frozenset[str] = frozenset({CHAT, COMPLETIONS})
    fields: frozenset[str] | None = None
    """Request fields it honours beyond the gateway's own; None: it is handed all and judges itself."""
    native_concurrency: int | None = None
    """Requests it computes side by side (slots, seats); None: not known."""
    knobs: frozenset[str] = frozenset()
    """Which of `decision.knobs.LEVERS` it can turn itself."""
    max_model_len: int | None = None
    kv_tokens: int | None = None
    """Tokens whose keys and values it holds at once; None: not known."""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a backend is, as it says itself; NaN where it does not."""

    running: float = float("nan")
    waiting: float = float("nan")
    kv_used_fraction: float = float("nan")
    preemptions: float = float("nan")
    """Since its start."""
    more: Mapping[str, float] = field(default_factory=dict)


class Backend(Protocol):
    """An engine that answers requests one by one and does its own batching."""

    name: str
    models: tuple[str, ...]
    """Names under which it is asked."""

    def capabilities(self) -> Capabilities:
        """What it can do; may be asked at any time, also before `start`."""

    async def start(self) -> None:
        """Return when requests can be taken. ConfigError, BackendError: what is missing, what to type."""

    async def stop(self) -> None:
        """End it, and everything it started; requests under way break off."""

    def submit(self, ask: Ask) -> Answer:
        """Hand a request over; returns at once. What goes wrong comes out of the answer."""

    async def healthy(self) -> bool:
        """Whether it would take a request now; asks, does not guess."""

    def load(self) -> Load:
        """The last known load; does not wait."""

    def apply(self, knobs: Mapping[str, object]) -> Mapping[str, str]:
        """Turn those of its `capabilities().knobs`; returns what was refused, and why."""


Clock = Callable[[], float]
