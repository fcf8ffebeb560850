"""Requests for tests of the queue and of admission: plain asks without a body's meaning, and hypothesis strategies for crowds of them."""

from __future__ import annotations

from hypothesis import strategies as st

from inferencegym.runtime.ports import CHAT, Ask


def ask(number: int = 0, *, arrival_s: float = 0.0, prompt_tokens: int = 10, max_tokens: int | None = None, body: bytes = b"{}", **more: object) -> Ask:  # fmt: skip
    """A request; `more` are fields of Ask."""
    return Ask(
        id=f"r{number}", endpoint=CHAT, model="m", body=body, fields=None, prompt_tokens=prompt_tokens, max_tokens=max_tokens,
        stream=False, arrival_s=arrival_s, **more,  # type: ignore[arg-type]
    )  # fmt: skip


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
