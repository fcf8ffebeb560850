"""Requests for tests of the queue, of admission and of real engines: plain asks without a body's meaning, and hypothesis strategies for crowds of them."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from inferencegym.runtime.ports import CHAT, Answer, Ask, Piece


def ask(number: int = 0, *, arrival_s: float = 0.0, prompt_tokens: int = 10, max_tokens: int | None = None, body: bytes = b"{}", **more: object) -> Ask:  # fmt: skip
    """A request; `more` are fields of Ask."""
    return Ask(
        id=f"r{number}", endpoint=CHAT, model="m", body=body, fields=None, prompt_tokens=prompt_tokens, max_tokens=max_tokens,
        stream=False, arrival_s=arrival_s, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def chat(model: str, tokens: int, *, stream: bool = True, number: int = 0, **more: object) -> Ask:
    """A chat request for a real engine, of exactly so many tokens; `more` are fields of its body."""
    body = {
        "model": model, "stream": stream, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
        "messages": [{"role": "user", "content": f"Say number {number}."}], **more,
    }  # fmt: skip
    return Ask(
        id=f"r{number}", endpoint=CHAT, model=model, body=json.dumps(body).encode(), fields=None, prompt_tokens=8,
        max_tokens=tokens, stream=stream, arrival_s=0.0,
    )  # fmt: skip


async def read(answer: Answer) -> list[Piece]:
    """All pieces of an answer."""
    return [piece async for piece in answer]


@st.composite
def crowds(draw: st.DrawFn, max_size: int = 40) -> list[Ask]:
    """Requests in the order they arrive, with equal arrivals, priorities and lengths among them."""
    gaps = draw(st.lists(st.sampled_from([0.0, 0.0, 0.25, 1.0, 5.0]), min_size=1, max_size=max_size))
    asks, now_s = [], 0.0
    for number, gap in enumerate(gaps):
        now_s += gap
        asks.append(
            ask(
                number,
                arrival_s=now_s,
                prompt_tokens=draw(st.sampled_from([1, 10, 100, 1000])),
                priority=draw(st.integers(0, 3)),
                tenant=draw(st.sampled_from(["a", "b", "c", "d"])),
                slo_ttft_s=draw(st.sampled_from([0.1, 1.0, 10.0, float("inf")])),
                predicted_tokens=float(draw(st.sampled_from([1, 20, 400]))),
            )
        )
    return asks
