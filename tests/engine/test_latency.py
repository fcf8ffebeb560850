"""Attention of a prefill chunk: never negative, never less for more, and a prompt costs about the same however it is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencegym.engine.latency import chunk_ps

tokens = st.integers(1, 16_384)
pasts = st.integers(0, 131_072)
coefficients = st.builds(
    lambda *parts: np.array(parts, dtype=np.float64),
    st.floats(0, 1e3), st.floats(0, 1e3), st.floats(0, 4e3), st.floats(0, 1e5), st.floats(0, 1e5),
)  # fmt: skip


@given(coefficients, tokens, pasts)
def test_more_tokens_or_more_past_never_cost_less(chunk: np.ndarray, n: int, past: int) -> None:
    now = chunk_ps(chunk, n, past)
    assert now >= 0
    assert chunk_ps(chunk, n + 1, past) >= now
    assert chunk_ps(chunk, n, past + 1) >= now


@given(tokens.filter(lambda n: n > 1), st.data())
def test_pairs_are_counted_once_however_a_prompt_is_cut(n: int, data: st.DataObject) -> None:
    """With one pace everywhere, cutting a prompt in two leaves the number of pairs, so the time, as it was (but for rounding)."""
    cut = data.draw(st.integers(1, n - 1))
    chunk = np.array([100.0, 100.0, 0.0, 0.0, 0.0])
    assert abs(chunk_ps(chunk, cut, 0) + chunk_ps(chunk, n - cut, cut) - chunk_ps(chunk, n, 0)) <= 2


@given(coefficients, tokens, pasts)
def test_compiled_and_plain_agree(chunk: np.ndarray, n: int, past: int) -> None:
    plain = getattr(chunk_ps, "py_func", chunk_ps)
    assert chunk_ps(chunk, n, past) == plain(chunk, n, past)


def test_a_few_tokens_after_many_wait_for_the_past_to_be_read() -> None:
    chunk = np.array([1.0, 1.0, 0.0, 64.0, 0.0])
    assert chunk_ps(chunk, 8, 1_000) == chunk_ps(chunk, 64, 1_000) - 64 * 32 + 8 * 4
    assert chunk_ps(chunk, 128, 1_000) == pytest.approx(128 * 1_000 + 128 * 64)
