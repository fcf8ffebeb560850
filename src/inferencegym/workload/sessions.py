"""Conversations: turns that wait for the answer before, resend all that was said, and share its prefix. Times
seconds, lengths tokens.

A conversation's blocks are numbered once; every turn names the leading ones that its prompt and answer fill:

    blocks     s0 s1 | c0 c1 c2 c3 c4 c5 c6      s: the shared system prompt's, c: this conversation's own
    turn 1     s0 s1   c0                        prompt + answer
    turn 2     s0 s1   c0 c1 c2 c3               resends turn 1
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from inferencegym.ground.rng import stream
from inferencegym.workload.chance import choose
from inferencegym.workload.lengths import draw_lengths
from inferencegym.workload.prefixes import offsets_of
from inferencegym.workload.spec import LengthLaw, Sessions
from inferencegym.workload.workload import Floats, Ints


class Turns(NamedTuple):
    """All turns, conversation by conversation."""

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    session: Ints
    """Number of the conversation."""
    after: Ints
    think_s: Floats
    prefix_offsets: Ints
    prefix_ids: Ints


def draw_turns(
    sessions: Sessions, lengths: LengthLaw, start_s: Floats, seed: int, name: str, most_output_tokens: int = 0
) -> Turns:
    """The turns of conversations that start at these times; a conversation ends before it outgrows its context.

    most_output_tokens : longer answers are cut to it, as a server would; 0 for no limit
    """
    rng = stream(seed, f"{name}.sessions")
    count = len(start_s)
    turns = rng.geometric(1.0 / sessions.mean_turns, count)
    system = (
        choose(rng, [1.0 / (k + 1) for k in range(sessions.system_prompts)], count) if sessions.system_prompts else None
    )
    think_s = sessions.think_median_s * np.exp(sessions.think_sigma * rng.standard_normal(int(turns.sum())))
    drawn = draw_lengths(lengths, stream(seed, f"{name}.lengths"), int(turns.sum()))
    answer = np.minimum(drawn.output_tokens, most_output_tokens) if most_output_tokens else drawn.output_tokens

    session = np.repeat(np.arange(count), turns)
    first = np.repeat(offsets_of(turns)[:-1], turns)
    system_tokens = sessions.system_tokens if system is not None else 0
    said = _running(drawn.prompt_tokens + answer, first) + system_tokens
    prompt = said - answer
    # What is said only grows, so this cuts whole ends of conversations.
    fits = said <= sessions.most_context_tokens
    session, prompt, output = session[fits], prompt[fits], answer[fits]
    first_turn = np.ones(len(session), np.bool_)
    first_turn[1:] = session[1:] != session[:-1]
    pause_s = np.where(first_turn, 0.0, think_s[fits])
    starts = np.flatnonzero(first_turn)
    first = np.repeat(starts, np.diff(np.append(starts, len(session))))
    answer_s = np.zeros(len(session))
    answer_s[1:] = np.where(first_turn[1:], 0.0, output[:-1] * sessions.guess_tpot_s)
    arrival_s = start_s[session] + _running(pause_s + answer_s, first)
    after = np.where(first_turn | (not sessions.closed_loop), -1, np.arange(len(session)) - 1)
    offsets, ids = _name_blocks(sessions, session, prompt + output, system, system_tokens)
    return Turns(arrival_s, prompt, output, session, after, np.where(after >= 0, pause_s, 0.0), offsets, ids)


def _running(values: np.ndarray, first: Ints) -> np.ndarray:
    """Running sums that begin anew at each row's `first`."""
    sums = np.cumsum(values)
    return sums - (sums[first] - values[first]) if len(values) else sums


def _name_blocks(
    sessions: Sessions, session: Ints, said: Ints, system: Ints | None, system_tokens: int
) -> tuple[Ints, Ints]:
    size = sessions.block_tokens
    blocks = said // size
    shared = system_tokens // size
    most = np.zeros(int(session.max(initial=-1)) + 1, np.int64)
    np.maximum.at(most, session, blocks)
    base = offsets_of(most)[:-1] + shared * sessions.system_prompts
    offsets = offsets_of(blocks)
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], blocks)
    ids = place + np.repeat(base[session], blocks)
    if system is not None and shared:
        common = np.repeat(system[session] * shared, blocks)
        ids = np.where(place < shared, common + place, ids)
    return offsets, ids
