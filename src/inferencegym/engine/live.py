"""The engine fed as requests come: submit, abort, and be told what each was given, step by step. The kernels are those of `simulate`.

Requests that have ended make room for new ones, so memory follows the requests that are alive, however many pass through. Times are
picoseconds of the engine's own clock; who lets them pass is the caller's affair (`runtime.backends.mock`: a wall clock, or a virtual one).

    next_ps ──► commit(next_ps): tokens are out ──► submit, abort at that same instant ──► plan(next_ps): the next step begins ──► next_ps
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from inferencegym.engine import memory
from inferencegym.engine.asked import NO_DEADLINE_S, Question
from inferencegym.engine.codes import Ending
from inferencegym.engine.feeding import ABORT, ADVANCE, COMMIT, DONE, GIVEN, LIVE, NEWS, NOT_HERE, PLAN, feed
from inferencegym.engine.loop import FAR_PS
from inferencegym.engine.machine import Machine
from inferencegym.engine.running import Running
from inferencegym.engine.settings import EngineSettings
from inferencegym.engine.state import new_state
from inferencegym.engine.times import times_of
from inferencegym.ground.errors import ConfigError
from inferencegym.ground.units import to_ps

_BOARD = slice(LIVE.names.index("next_ps"), None)  # type: ignore[union-attr]
_NO_DEADLINE_PS = to_ps(NO_DEADLINE_S)


class Ticket:
    """A request under way, as its owner knows it."""

    __slots__ = ("owner", "row", "tokens")

    def __init__(self, owner: Any, row: int) -> None:
        self.owner = owner
        self.row = row
        """Where the engine keeps it; -1 when it has ended."""
        self.tokens = 0
        """Output tokens that the owner was told of."""


class End(NamedTuple):
    """How a request ended; times in picoseconds, -1 for what never happened."""

    arrival_ps: int
    scheduled_ps: int
    first_ps: int
    finish_ps: int
    output_tokens: int
    cached_tokens: int
    preemptions: int
    swaps: int
    replica: int
    outcome: int
    """A code of `Ending`."""


class News(NamedTuple):
    """What happened: in each list, earlier admitted requests do not necessarily come first."""

    given: list[tuple[Ticket, int, int]]
    """(request, new tokens, when it was first scheduled), for those that watch and go on."""
    ended: list[tuple[Ticket, End]]
    """Requests that ended, in that order. `End.output_tokens` less `Ticket.tokens` came with the end."""


@dataclass(frozen=True, slots=True)
class LiveGauges:
    """How things stand after the last call."""

    running: int
    waiting: int
    """Also those that were submitted and have not arrived yet."""
    kv_used_blocks: int
    kv_pool_blocks: int
    preemptions: int
    """Since the start."""


class LiveEngine(Running):
    """A cluster of replicas that serves whoever comes. Deterministic: the same calls give the same answers."""

    def __init__(
        self,
        machine: Machine,
        settings: EngineSettings | None = None,
        *,
        seed: int = 0,
        tenants: int = 1,
        prefix_block_tokens: int | None = None,
        capacity: int = 256,
    ) -> None:
        """`tenants`: how many are told apart (order=vtc); `prefix_block_tokens`: tokens that a prefix key stands for (unset: a KV block);
        `capacity`: requests there is room for at first.
        """
        self.machine = machine
        self.settings = settings = settings or EngineSettings()
        self.now_s = 0.0
        self.now_ps = 0
        self.next_ps = FAR_PS
        """When the next step ends or the next transfer lands; FAR_PS: nothing happens until somebody comes."""
        self._size = size = prefix_block_tokens or machine.block_size
        if size % machine.block_size and machine.block_size % size:
            raise ConfigError("prefix_block_tokens", f"{size} does not fit", allowed=f"a divisor or multiple of {machine.block_size}")  # fmt: skip
        self._times = times_of(machine.times)
        self._next_row = self._next_key = self._open_len = 0
        self._make_rows(2 * capacity, 4 * capacity)
        self._question.rows["tenant"][0] = tenants - 1  # `new_state` counts tenants in the rows
        self._arena = new_state(machine, settings, self._question, seed, capacity=capacity)
        self._question.rows["tenant"][0] = 0
        self._tenants = tenants
        header = self._header
        header["open_rows"] = 0
        self._tickets: list[Ticket | None] = [None] * len(self._question.rows)
        self._alive = 0
        self._latest_ps = 0
        self._unread = 0
        self._live = np.zeros(1, LIVE)
        self._board = self._live.view(np.int64)[_BOARD]
        self._live["times_at"] = self._times.handle.ctypes.data
        self._out = np.zeros(0, memory.RECORD)
        self._news = np.zeros(0, NEWS)
        self._put()
        self._stand: list[int] = [FAR_PS, 0, 0, 0, 0, 0, 0, 0]
        self.max_model_len = int(self._core["max_model_len"][0])

    # --- requests --------------------------------------------------------------------------------------------------------

    def submit(
        self,
        at_ps: int,
        prompt_tokens: int,
        output_tokens: int,
        *,
        owner: Any = None,
        watch: bool = True,
        budget_tokens: int = 0,
        priority: int = 0,
        tenant: int = 0,
        slo_ttft_ps: int = _NO_DEADLINE_PS,
        keys: Sequence[int] = (),
    ) -> Ticket:
        """A request arrives at `at_ps`, not before any other that was submitted; the engine sees it at the next call.

        watch : whether to hear of each step's tokens (`News.given`), or of its end only
        keys : ids of the prompt's leading whole blocks, each naming all tokens up to and including it
        """
        assert at_ps >= self._latest_ps, f"requests arrive in order: {at_ps} ps is before {self._latest_ps} ps"
        assert prompt_tokens >= 1, "a prompt has a token"
        assert output_tokens >= 1, "an answer has a token"
        assert 0 <= tenant < self._tenants, f"tenants are 0..{self._tenants - 1}"
        self._latest_ps = at_ps
        row = self._next_row
        if row == len(self._tickets) or self._next_key + len(keys) > len(self._question.key_ids):
            self._renumber(len(keys))
            row = self._next_row
        q = self._question
        q.rows[row] = (
            at_ps, 0, slo_ttft_ps, self._next_key, prompt_tokens, output_tokens, budget_tokens, tenant, len(keys) * self._size,
            memory.NONE, memory.NONE, priority, 0,
        )  # fmt: skip
        if keys:
            q.key_ids[self._next_key : self._next_key + len(keys)] = keys
            self._next_key += len(keys)
        self._given[row] = 0 if watch else -1
        ticket = Ticket(owner, row)
        self._tickets[row] = ticket
        self._open[self._open_len] = row
        self._open_len += 1
        self._next_row = row + 1
        self._alive += 1
        self._unread += 1
        return ticket

    def abort(self, ticket: Ticket, at_ps: int) -> News:
        """The request's caller has gone: it ends at `at_ps` (not after `next_ps`), unless it has ended by then. Told like any end."""
        if ticket.row < 0:
            return News([], [])
        assert at_ps <= self.next_ps, "what happens before comes first"
        code, news = self._feed(at_ps, ABORT, ticket)
        # Who comes between the last call and this one may also go in between: then the end is among the news.
        if code == NOT_HERE and ticket.row >= 0:
            self._forget(ticket, at_ps, news)
        return news

    def _forget(self, ticket: Ticket, at_ps: int, news: News) -> None:
        """Abort a request before it has arrived: it stands among the last of the open rows."""
        header = self._header
        first = int(header["next_open"][0])
        waiting = self._open[first : self._open_len]
        kept = waiting[waiting != ticket.row]
        assert len(kept) == len(waiting) - 1, "a live request has arrived, or will"
        self._open[first : first + len(kept)] = kept
        self._open_len -= 1
        header["open_rows"] = self._open_len
        arrival_ps = int(self._question.rows["arrival_ps"][ticket.row])
        news.ended.append(
            (self._close(ticket.row), End(arrival_ps, -1, -1, at_ps, 0, 0, 0, 0, -1, int(Ending.ABORTED)))
        )

    # --- time ------------------------------------------------------------------------------------------------------------

    def commit(self, at_ps: int) -> News:
        """Everything before `at_ps` happens, and the steps that end at it give their tokens."""
        return self._feed(at_ps, COMMIT)[1]

    def plan(self, at_ps: int) -> News:
        """The other half of the instant: arrivals up to `at_ps`, and the next steps."""
        return self._feed(at_ps, PLAN)[1]

    def advance(self, until_ps: int) -> News:
        """Everything up to and including `until_ps` happens."""
        return self._feed(until_ps + 1, ADVANCE)[1]

    def _feed(self, at_ps: int, what: int, ticket: Ticket | None = None) -> tuple[int, News]:
        if self._alive >= self._room:
            self._grow()
        header = self._header
        header["open_rows"] = self._open_len
        self._unread = 0
        code = feed(self._live, at_ps, what, -1 if ticket is None else ticket.row)
        assert code in (DONE, NOT_HERE), "there was room for everybody"
        self._stand = stand = self._board.tolist()
        self.next_ps, given, ended = stand[:3]
        if what == ADVANCE:
            at_ps -= 1
        self.now_ps = max(self.now_ps, at_ps)
        self.now_s = self.now_ps / 1e12
        self._latest_ps = max(self._latest_ps, self.now_ps)
        if not given and not ended:
            return code, News([], [])
        tickets = self._tickets
        told: list[tuple[Ticket, int, int]] = []
        for row, tokens, scheduled_ps in self._news[:given].tolist():
            it = tickets[row]
            assert it is not None, "news are of live requests"
            it.tokens += tokens
            told.append((it, tokens, scheduled_ps))
        return code, News(told, [self._end(record) for record in self._out[:ended].tolist()])

    def _end(self, record: tuple[int, ...]) -> tuple[Ticket, End]:
        arrival, scheduled, first, finish, row, output, cached, preemptions, swaps, replica, outcome, _ = record
        end = End(arrival, scheduled, first, finish, output, cached, preemptions, swaps, replica, outcome)
        return self._close(row), end

    def _close(self, row: int) -> Ticket:
        ticket = self._tickets[row]
        assert ticket is not None, "a request ends once"
        self._tickets[row] = None
        self._alive -= 1
        ticket.row = -1
        return ticket

    # --- looking ---------------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> int:
        """Requests that have not ended."""
        return self._alive

    def live_gauges(self) -> LiveGauges:
        """Queue, seats and KV use after the last call."""
        _, _, _, running, waiting, used, pool, preemptions = self._stand
        return LiveGauges(running, waiting + self._unread, used, pool, preemptions)

    # --- room ------------------------------------------------------------------------------------------------------------

    def _make_rows(self, rows: int, keys: int) -> None:
        """Empty tables for so many requests and prefix keys."""
        settings = self.settings
        accept = np.array([settings.cumulative_acceptance()])
        asked = np.zeros(1, memory.ASKED)
        question = Question(
            asked, np.zeros(rows, memory.ROW), np.zeros(rows, np.int32), np.zeros(max(keys, 1), np.int64), accept
        )
        for name in ("rows", "open_rows", "key_ids", "accept"):
            asked[f"{name}_at"] = getattr(question, name).ctypes.data
        asked["key_block"] = self._size
        parts, rest = divmod(self._size, self.machine.block_size)
        asked["key_shift"] = parts.bit_length() - 1 if rest == 0 and parts & (parts - 1) == 0 else -1
        asked["drafts"] = accept.shape[1]
        self._question, self._open = question, question.open_rows
        self._given = np.zeros(rows, GIVEN)["tokens"]
        self._next_row = self._open_len = self._next_key = 0

    def _put(self) -> None:
        """Tell the kernel where everything lies, and make the buffers as long as they need to be."""
        self._room = int(self._header["capacity"][0]) - 1
        if len(self._out) < self._room + 2:
            self._out = np.zeros(self._room + 2, memory.RECORD)
            self._news = np.zeros(self._room + 2, NEWS)
        self._header["out_at"], self._header["out_capacity"] = self._out.ctypes.data, len(self._out)
        self._live["arena_at"] = self._arena.ctypes.data
        self._live["asked_at"] = self._question.asked.ctypes.data
        self._live["given_at"] = self._given.ctypes.data
        self._live["news_at"] = self._news.ctypes.data

    def _grow(self) -> None:
        while int(self._header["capacity"][0]) - 1 <= self._alive:
            self._arena = memory.grow(self._arena)
        self._put()

    def _renumber(self, keys: int) -> None:
        """Let go of the rows of requests that have ended. Those that stay keep their order, which breaks ties."""
        old, given, tickets = self._question, self._given, self._tickets
        unread = self._open[int(self._header["next_open"][0]) : self._open_len].copy()
        kept = self._rows_in_use(unread)
        counts = -(-old.rows["key_tokens"][kept] // self._size)
        held = int(counts.sum())
        rows = len(old.rows) * (2 if 2 * len(kept) > len(old.rows) else 1)
        self._make_rows(rows, _room_for(held + keys, len(old.key_ids)))
        where = np.full(len(old.rows), memory.NONE, np.int32)
        where[kept] = np.arange(len(kept))
        new = self._question
        new.rows[: len(kept)] = old.rows[kept]
        new.rows["key_offset"][: len(kept)] = np.cumsum(counts) - counts
        for row, count in zip(kept.tolist(), counts.tolist(), strict=True):
            start = int(old.rows["key_offset"][row])
            new.key_ids[self._next_key : self._next_key + count] = old.key_ids[start : start + count]
            self._next_key += count
        self._given[: len(kept)] = given[kept]
        self._tickets = [tickets[row] for row in kept.tolist()] + [None] * (rows - len(kept))
        for row, ticket in enumerate(self._tickets[: len(kept)]):
            if ticket is not None:
                ticket.row = row
        self._open[: len(unread)] = where[unread]
        self._open_len, self._next_row = len(unread), len(kept)
        self._header["next_open"], self._header["open_rows"] = 0, len(unread)
        self._move_rows(where)
        self._put()

    def _rows_in_use(self, unread: memory.Ints32) -> memory.Ints:
        """Rows that the engine may still read, in order: live requests, padding, what llama.cpp's slots remember, and who has not arrived."""
        used = [unread]
        slots, places = memory.part_of(self._arena, "slots"), memory.part_of(self._arena, "places")
        for r, count in enumerate(self._core["slots_used"].tolist()):
            mine = slots[r][:count]
            used.append(mine["row"][mine["state"] != 0])
        used.append(places["row"][places["row"] >= 0])
        rows: memory.Ints = np.unique(np.concatenate(used)).astype(np.int64)
        return rows

    def _move_rows(self, where: memory.Ints32) -> None:
        """Write the new row numbers wherever the state has one."""
        slots, places = memory.part_of(self._arena, "slots"), memory.part_of(self._arena, "places")
        for r, count in enumerate(self._core["slots_used"].tolist()):
            mine = slots[r][:count]
            alive = mine["state"] != 0
            mine["row"][alive] = where[mine["row"][alive]]
        remembered = places["row"] >= 0
        places["row"][remembered] = where[places["row"][remembered]]
        wire = memory.part_of(self._arena, "wire")[: int(self._header["wire_len"][0])]
        wire["row"] = where[wire["row"]]


def _room_for(keys: int, now: int) -> int:
    """Prefix keys to make room for: twice what is there, by doubling, so that making room stays rare."""
    room = now
    while room < 2 * keys:
        room *= 2
    return room
