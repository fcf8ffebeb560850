"""The memory rule `sieve` with its numbers laid open: a few dozen named parameters that a search can tune and a person can read.

One kernel decides for n rows, each with parameters of its own, so that a search plays a whole generation side by side; a single `act` is the
same kernel on one row. With the default parameters it is `policies.memory.Sieve`, action for action. Shares are of the GPU's blocks.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from inferencegym.decision.columns import Float32s, Floats, Masks
from inferencegym.decision.paging import COLUMNS, NOTHING, NUMBER, SIZE_BLOCKS, TREND_SHARE
from inferencegym.ground.jit import kernel
from inferencegym.policies.parameters import Parameter, by_name, checked, named

Ints = npt.NDArray[np.int64]


PARAMETERS: tuple[Parameter, ...] = (
    Parameter("danger", 0.018, 0.004, 0.0, 0.2, "free share below which nothing is done but making room"),
    Parameter("critical", 0.006, 0.002, 0.0, 0.2, "free share below which the largest goes at once"),
    Parameter("hold_free", 0.045, 0.012, 0.0, 0.5, "free share that it takes to admit a free request at a tick's last decision"),
    Parameter("hold_vip", 0.042, 0.012, 0.0, 0.5, "the same for a VIP"),
    Parameter("brim_free", 0.021, 0.006, 0.0, 0.5, "free share that it takes to admit a free request while the tick has another decision"),
    Parameter("brim_vip", 0.021, 0.006, 0.0, 0.5, "the same for a VIP"),
    Parameter("target", 0.09, 0.02, 0.0, 0.6, "free share that is kept ready while there are idle caches to give"),
    Parameter("hold_free_by_queue", 0.0, 0.03, -0.5, 0.5, "added to hold_free at a full free queue"),
    Parameter("hold_vip_by_queue", 0.0, 0.03, -0.5, 0.5, "added to hold_vip at a full VIP queue"),
    Parameter("brim_by_queue", 0.0, 0.02, -0.5, 0.5, "added to brim_free and brim_vip at a full queue"),
    Parameter("target_by_queue", 0.0, 0.05, -0.5, 0.5, "added to target at a full free queue"),
    Parameter("trend", 0.0, 1.0, 0.0, 20.0, "ticks of the present growth that are counted as used already"),
    Parameter("late", 1.0, 0.2, 0.0, 1.0, "share of its SLA after which the first of a queue counts as late"),
    Parameter("drop_late", 0.02, 0.03, 0.0, 1.0, "queue from which a late one is rejected"),
    Parameter("unfit_free", 0.0, 0.3, -1.0, 1.0, "share of its SLA that a free request may wait that does not fit, with no idle cache to make way"),
    Parameter("unfit_vip", 0.0, 0.3, -1.0, 1.0, "the same for a VIP"),
    Parameter("unfit_by_queue", 0.0, 0.3, -5.0, 5.0, "taken off that patience at a full queue"),
    Parameter("unfit_idle", 1.0, 0.3, 0.0, 1.0, "the same share for one that idle caches could make way for; 1: it is never given up"),
    Parameter("scarce", 0.03, 0.03, 0.0, 1.0, "queue from which the largest idle cache goes, not the oldest"),
    Parameter("spare_vip_age", 1.0, 0.3, 0.1, 10.0, "a VIP cache goes as the oldest if so many times older"),
    Parameter("spare_vip_size", 1.0, 0.3, 0.1, 10.0, "a VIP cache goes as the largest if so many times larger (encoded)"),
    Parameter("patience", 1.0, 0.5, 0.0, 20.0, "decisions between two preemptions"),
    Parameter("crowded_cpu", 0.85, 0.1, 0.0, 1.0, "CPU share above which its garbage is collected"),
    Parameter("decisions_per_tick", 2.0, 0.0, 1.0, 16.0, "of the task; not searched"),
)  # fmt: skip
NAMES = tuple(one.name for one in PARAMETERS)
#: float64[p]: what makes it `sieve`.
DEFAULTS: Floats = np.array([one.default for one in PARAMETERS])
SCALES: Floats = np.array([one.scale for one in PARAMETERS])
LOWS: Floats = np.array([one.low for one in PARAMETERS])
HIGHS: Floats = np.array([one.high for one in PARAMETERS])
#: Columns of a row's memory: decisions since the last preemption, decisions taken.
MEMORY = 2

_USED, _CPU, _TREND = (COLUMNS.index(f"{n}") for n in ("gpu_utilization_pct", "cpu_utilization_pct", "memory_pressure_trend"))  # fmt: skip
_QUEUE_FREE, _QUEUE_VIP = COLUMNS.index("free_queue_pressure"), COLUMNS.index("vip_queue_pressure")
_WAIT_FREE, _WAIT_VIP = COLUMNS.index("free_max_wait_time_pct"), COLUMNS.index("vip_max_wait_time_pct")
_SIZE_FREE, _SIZE_VIP = COLUMNS.index("free_size_max"), COLUMNS.index("vip_size_max")
_AGE_FREE, _AGE_VIP = COLUMNS.index("free_age_max"), COLUMNS.index("vip_age_max")
_LARGEST, _OLDEST, _ADMIT, _REJECT = (
    NUMBER["evict_largest_free"],
    NUMBER["evict_oldest_free"],
    NUMBER["admit_free"],
    NUMBER["reject_free"],
)
_TO_SWAP = NUMBER["swap_largest_free"] - NUMBER["evict_largest_free"]
_SHRED, _PREEMPT_SWAP, _COLLECT = NUMBER["shred_largest_free"], NUMBER["preempt_swap_free"], NUMBER["collect_garbage"]
_NOTHING, _TREND_SHARE = NOTHING, TREND_SHARE
#: Encoded size of an idle cache of 40 blocks: more than any tick takes.
_RELIEF = float(np.log1p(40.0) / np.log1p(SIZE_BLOCKS))


@kernel
def decide(parameters: Floats, memory: Ints, observations: Float32s, masks: Masks, actions: Ints) -> None:
    """Fill actions[n] for observations[n, 20] and masks[n, 18], by each row's parameters[n, p]; memory[n, 2] goes on."""
    for i in range(len(actions)):
        memory[i, 0] += 1
        memory[i, 1] += 1
        actions[i] = _one(parameters[i], memory[i], observations[i], masks[i])


@kernel
def _one(p: Floats, memory: Ints, seen: Float32s, can: Masks) -> int:
    free = 1.0 - np.float64(seen[_USED])
    if p[11] > 0.0 and seen[_TREND] > 0.0:
        free -= p[11] * np.float64(seen[_TREND]) * _TREND_SHARE
    if free < p[1]:
        return _relieve(memory, seen, can)
    room = _make_room(p, seen, can)
    if free < p[0]:
        return room if room >= 0 else _preempt(p[21], memory, can)
    idle = can[_OLDEST] == 1 or can[_OLDEST + 1] == 1
    early = memory[1] % int(p[23]) != 0
    for tier in (1, 0):
        waited = np.float64(seen[_WAIT_VIP] if tier == 1 else seen[_WAIT_FREE])
        queue = np.float64(seen[_QUEUE_VIP] if tier == 1 else seen[_QUEUE_FREE])
        fits = can[_ADMIT + tier] == 1
        if can[_REJECT + tier] == 1:
            if waited >= p[12] and queue > p[13]:
                return _REJECT + tier
            if not fits and waited > 0.0:
                patience = p[14 + tier] - p[16] * queue
                if waited > (max(patience, p[17]) if idle else patience):
                    return _REJECT + tier
        needed = p[4 + tier] + p[9] * queue if early else p[2 + tier] + p[7 + tier] * queue
        if fits and free > needed:
            return _ADMIT + tier
    waiting = can[_REJECT] == 1 or can[_REJECT + 1] == 1
    if room >= 0 and (waiting or free < p[6] + p[10] * np.float64(seen[_QUEUE_FREE])):
        return room
    if seen[_CPU] > p[22] and can[_COLLECT] == 1:
        return _COLLECT
    return _NOTHING


@kernel
def _make_room(p: Floats, seen: Float32s, can: Masks) -> int:
    """The action that moves or drops an idle cache; -1 if there is none."""
    scarce = max(np.float64(seen[_QUEUE_FREE]), np.float64(seen[_QUEUE_VIP])) > p[18]
    if scarce:
        first, of_free, of_vip, times = _LARGEST, seen[_SIZE_FREE], seen[_SIZE_VIP], p[20]
    else:
        first, of_free, of_vip, times = _OLDEST, seen[_AGE_FREE], seen[_AGE_VIP], p[19]
    if can[first] == 0 and can[first + 1] == 0:
        return -1
    vip = can[first + 1] == 1 and (can[first] == 0 or np.float64(of_vip) > times * np.float64(of_free))
    victim = first + 1 if vip else first
    return victim + _TO_SWAP if can[victim + _TO_SWAP] == 1 else victim


@kernel
def _preempt(patience: float, memory: Ints, can: Masks) -> int:
    """A free request before a VIP; swapped if possible, with patience in between."""
    if memory[0] <= patience:
        return _NOTHING
    for action in (_PREEMPT_SWAP, _SHRED, _PREEMPT_SWAP + 1, _SHRED + 1):
        if can[action] == 1:
            memory[0] = 0
            return action
    return _NOTHING


@kernel
def _relieve(memory: Ints, seen: Float32s, can: Masks) -> int:
    """Much room at once: the largest idle cache if it is large enough, else the largest active request."""
    largest = 1 if seen[_SIZE_VIP] > seen[_SIZE_FREE] else 0
    enough = np.float64(max(seen[_SIZE_VIP], seen[_SIZE_FREE])) >= _RELIEF
    if enough and can[_LARGEST + largest] == 1:
        memory[0] = 0
        return _LARGEST + largest
    for action in (_SHRED, _SHRED + 1, _LARGEST, _LARGEST + 1):
        if can[action] == 1:
            memory[0] = 0
            return action
    return _NOTHING


def fresh_memory(parameters: Floats) -> Ints:
    """int64[n, 2] for n episodes that begin, of parameters float64[n, p]."""
    memory = np.zeros((len(parameters), MEMORY), np.int64)
    # The first preemption is never waited for.
    memory[:, 0] = np.ceil(parameters[:, NAMES.index("patience")])
    return memory


def parameters_of(given: Mapping[str, float]) -> Floats:
    """float64[p]: the defaults, with some changed by name; ConfigError or UnknownNameError for what cannot be."""
    return named(PARAMETERS, given)


class TunedSieve:
    """Plays the rule with its parameters."""

    surface = "paging"

    def __init__(self, parameters: Floats | None = None, *, name: str = "tuned-sieve") -> None:
        """`parameters`: float64[p] in the order of PARAMETERS; default, those of `sieve`."""
        self.name = name
        self.parameters = checked(PARAMETERS, parameters)
        self._row = self.parameters[None]
        self._memory = fresh_memory(self._row)
        self._action = np.zeros(1, np.int64)

    def start(self, seed: int) -> None:
        """Nothing is left to chance; forgets the last episode."""
        del seed
        self._memory = fresh_memory(self._row)

    def act(self, observation: Float32s, mask: Masks) -> int:
        """The number of an action."""
        decide(self._row, self._memory, observation[None], mask[None], self._action)
        return int(self._action[0])

    def as_mapping(self) -> dict[str, float]:
        """The parameters by name."""
        return by_name(PARAMETERS, self.parameters)
