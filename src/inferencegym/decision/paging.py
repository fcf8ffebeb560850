"""Surface `paging`: managing a pool of paged KV memory tick by tick. Twenty columns, eighteen actions, each doing what its name says.

A tick is one engine step: every active request gains one token. Sizes are KV blocks of 16 tokens, ages and waits are ticks.
An idle cache is what a finished request leaves behind; it helps if the user returns.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from inferencegym.decision.columns import Column, Columns, Float32s, Masks
from inferencegym.ground.errors import ConfigError

TIERS = ("free", "vip")

#: The actions in the order of their numbers: name, what it does.
ACTIONS: tuple[tuple[str, str], ...] = (
    ("evict_largest_free", "drop the largest idle free cache on the GPU"),
    ("evict_largest_vip", "drop the largest idle VIP cache on the GPU"),
    ("evict_oldest_free", "drop the idle free cache on the GPU that was not used for longest"),
    ("evict_oldest_vip", "drop the idle VIP cache on the GPU that was not used for longest"),
    ("swap_largest_free", "move the largest idle free cache to the CPU over PCIe"),
    ("swap_largest_vip", "move the largest idle VIP cache to the CPU over PCIe"),
    ("swap_oldest_free", "move the oldest idle free cache to the CPU over PCIe"),
    ("swap_oldest_vip", "move the oldest idle VIP cache to the CPU over PCIe"),
    ("admit_free", "admit the first of the free queue"),
    ("admit_vip", "admit the first of the VIP queue"),
    ("reject_free", "reject the first of the free queue (costs double if it could have been admitted)"),
    ("reject_vip", "reject the first of the VIP queue (costs double if it could have been admitted)"),
    ("shred_largest_free", "preempt the largest active free request; its KV is lost and must be computed again"),
    ("shred_largest_vip", "preempt the largest active VIP request; its KV is lost and must be computed again"),
    ("preempt_swap_free", "preempt the largest active free request and move its KV to the CPU"),
    ("preempt_swap_vip", "preempt the largest active VIP request and move its KV to the CPU"),
    ("collect_garbage", "drop the idle free caches that have been on the CPU for more than 200 ticks"),
    ("nothing", "wait"),
)
NAMES = tuple(name for name, _ in ACTIONS)
NUMBER = {name: i for i, name in enumerate(NAMES)}
NOTHING = NUMBER["nothing"]

#: Ends of the columns' ranges that kernels share: ticks, blocks, share of the pool, share of the pool a tick.
AGE_TICKS = 500.0
SIZE_BLOCKS = 512.0
ACTIVE_SHARE = 0.06
TREND_SHARE = 0.02
TREND_TICKS = 5


def _idle(tier: str) -> list[Column]:
    name = "VIP" if tier == "vip" else tier
    what = f"idle {name} caches on the GPU"
    return [
        Column(f"{tier}_size_max", "blocks", 0, SIZE_BLOCKS, f"largest of the {what}", log=True),
        Column(f"{tier}_size_mean", "blocks", 0, SIZE_BLOCKS, f"mean size of the {what}", log=True),
        Column(
            f"{tier}_size_std_dev", "blocks", 0, SIZE_BLOCKS, f"standard deviation of their sizes ({name})", log=True
        ),
    ]


def _age(tier: str) -> list[Column]:
    name = "VIP" if tier == "vip" else tier
    what = f"idle {name} caches on the GPU"
    return [
        Column(f"{tier}_age_max", "ticks", 0, AGE_TICKS, f"longest time since its request ended, of the {what}"),
        Column(f"{tier}_age_mean", "ticks", 0, AGE_TICKS, f"mean time since the request ended, of the {what}"),
        Column(f"{tier}_age_std_dev", "ticks", 0, AGE_TICKS, f"standard deviation of that time ({name})"),
    ]


COLUMNS = Columns(
    [
        Column("gpu_utilization_pct", "share", 0, 1, "GPU blocks that are not free: active, loading, idle, or leaving for the CPU"),
        Column("cpu_utilization_pct", "share", 0, 1, "CPU blocks that are not free"),
        Column("memory_pressure_trend", "share/tick", -TREND_SHARE, TREND_SHARE, "slope of the GPU use over the last 5 ticks"),
        Column("free_queue_pressure", "requests", 0, 100, "free requests that wait"),
        Column("vip_queue_pressure", "requests", 0, 50, "VIP requests that wait"),
        Column("free_max_wait_time_pct", "share", 0, 1, "wait of the first of the free queue, of its SLA limit (100 ticks where there is none)"),
        Column("vip_max_wait_time_pct", "share", 0, 1, "wait of the first of the VIP queue, of its SLA limit (50 ticks where there is none)"),
        Column("yield_preempt_active", "share", 0, ACTIVE_SHARE, "largest active request, of the GPU's blocks: what a preemption would yield"),
        *_idle("free"), *_idle("vip"), *_age("free"), *_age("vip"),
    ]
)  # fmt: skip
assert len(COLUMNS) == 20


class PagingSurface:
    """What a policy of a KV pool sees and may do."""

    name = "paging"
    cadence = "tick"
    columns = COLUMNS
    mask_size = len(ACTIONS)

    def dense(self, action: Any) -> npt.NDArray[np.int64]:
        """int64 scalar array of an action's number or name."""
        if isinstance(action, str):
            if action not in NUMBER:
                raise ConfigError("action", f"there is no '{action}'", allowed=", ".join(NAMES))
            return np.array(NUMBER[action], np.int64)
        array = np.asarray(action)
        if array.size != 1 or array.dtype.kind not in "iuf" or not np.isfinite(array.item()):
            raise ConfigError(
                "action", f"{action!r} is not one whole number", allowed=f"0..{len(ACTIONS) - 1} or a name"
            )
        number = array.item()
        if number != int(number) or not 0 <= number < len(ACTIONS):
            raise ConfigError("action", f"{number:g} is out of range", allowed=f"whole numbers 0..{len(ACTIONS) - 1}")
        return np.array(int(number), np.int64)

    def action(self, dense: npt.NDArray[Any]) -> int:
        """The number of an action: the inverse of `dense`."""
        return int(self.dense(dense))

    def legal(self, action: Any, mask: Masks) -> bool:
        """Whether the mask allows it."""
        return bool(mask[int(self.dense(action))])

    def describe(self, observation: Float32s, mask: Masks) -> str:
        """The situation and the choices in words."""
        seen = self.columns.read(observation)
        lines = ["State of the paged KV memory of an LLM server:"]
        lines += [f"- {c.name}: {seen[c.name]:.4g} {c.unit} ({c.what})" for c in self.columns]
        lines.append(
            "A request that needs a block when none is free crashes the server. Choose one action by its number:"
        )
        lines += [f"- {i}: {name} ({what})" for i, (name, what) in enumerate(ACTIONS) if mask[i]]
        lines.append('Answer with JSON such as {"action": 17}.')
        return "\n".join(lines)

    def parse(self, text: str) -> int:
        """The action in an answer: a number or name after "action", else a lone number or action name."""
        named = re.findall(r"action[\"'\s]*[:=]?[\"'\s]*(\d+|[a-z_]+)", text, flags=re.IGNORECASE)
        for found in reversed(named):
            if found.isdigit():
                return self.action(np.array(int(found)))
            if found.lower() in NUMBER:
                return NUMBER[found.lower()]
        names = [word for word in re.findall(r"[a-z_]+", text.lower()) if word in NUMBER and "_" in word]
        if names:
            return NUMBER[names[-1]]
        numbers = re.findall(r"(?<![\w.])\d+(?![\w.]*\d)", text)
        if len(numbers) == 1:
            return self.action(np.array(int(numbers[0])))
        raise ConfigError("answer", "names no action", allowed='{"action": 0..17}')


def action_table() -> str:
    """The actions as a Markdown table."""
    lines = ["| number | action | what it does |", "|---|---|---|"]
    lines += [f"| {i} | `{name}` | {what} |" for i, (name, what) in enumerate(ACTIONS)]
    return "\n".join(lines)
