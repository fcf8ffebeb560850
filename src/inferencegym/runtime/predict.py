"""What can be said of a request before it runs: how long its answer will be, and how long it will wait. Both learn from what went before.

No clock of their own: seconds are handed in.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from inferencegym.runtime.ports import Ask

#: Answer length that is guessed before anything has been seen.
FIRST_GUESS_TOKENS = 256.0
_REMEMBERED = 4096
_MEMORY = 50
"""Answers that a mean looks back on."""


class Lengths:
    """Mean answer length by tenant and by prompt length (powers of two), from answers that were whole.

    A tenant that is not known is guessed by everybody's answers to prompts of that length, then by all answers. `max_tokens` caps the guess.
    """

    def __init__(self) -> None:
        self._means: OrderedDict[tuple[str | None, int], tuple[float, int]] = OrderedDict()

    def expect(self, ask: Ask) -> float:
        """Expected answer tokens, at least 1."""
        bucket = ask.prompt_tokens.bit_length()
        guess = FIRST_GUESS_TOKENS
        for key in ((ask.tenant, bucket), (None, bucket), (None, -1)):
            known = self._means.get(key)
            if known is not None:
                guess = known[0]
                break
        return max(1.0, guess if ask.max_tokens is None else min(guess, ask.max_tokens))

    def learn(self, ask: Ask, output_tokens: int) -> None:
        """An answer was whole, and so long."""
        bucket = ask.prompt_tokens.bit_length()
        for key in ((ask.tenant, bucket), (None, bucket), (None, -1)):
            mean, seen = self._means.get(key, (0.0, 0))
            seen = min(seen + 1, _MEMORY)
            self._means[key] = mean + (output_tokens - mean) / seen, seen
            self._means.move_to_end(key)
        while len(self._means) > _REMEMBERED:
            self._means.popitem(last=False)


class Drain:
    """How fast seats come free: requests ended per second of seat, over the last minute or so, times the seats in use.

    Both sums fade with the same half-life. Seats that are held and do not come free count too, so a backend that hangs makes the estimate grow.
    A gap in the clock counts as one half-life at most, and a clock that goes back counts as no time at all.
    """

    def __init__(self, half_life_s: float = 20.0) -> None:
        self._half_life_s = half_life_s
        self._ended = 0.0
        self._seat_s = 0.0
        self._at_s = math.nan

    def _pass(self, in_flight: int, now_s: float) -> None:
        passed_s = now_s - self._at_s
        self._at_s = now_s
        if passed_s > 0:
            passed_s = min(passed_s, self._half_life_s)
            keep = 0.5 ** (passed_s / self._half_life_s)
            self._ended *= keep
            self._seat_s = self._seat_s * keep + in_flight * self._half_life_s / math.log(2) * (1 - keep)

    def changed(self, in_flight_before: int, now_s: float) -> None:
        """The number of seats in use is about to change, and has been this since the last call."""
        self._pass(in_flight_before, now_s)

    def ended(self, in_flight_before: int, now_s: float) -> None:
        """A request that had a seat ended."""
        self._pass(in_flight_before, now_s)
        self._ended += 1

    def wait_s(self, ahead: int, in_flight: int, now_s: float) -> float:
        """Time until the request behind `ahead` others has a seat; NaN as long as nothing has ended."""
        self._pass(in_flight, now_s)
        if self._ended <= 0 or in_flight == 0:
            return math.nan
        if self._seat_s <= 0:
            return 0.0
        return (ahead + 1) * self._seat_s / (self._ended * in_flight)


class Trust:
    """How far predicted waits are to be trusted: `factor` follows the 99 % quantile of actual over predicted, a small step for each wait that is over.

    `factor` * predicted is a wait that few exceed. Without it those let in stand right at their limit, and every error of the prediction is a miss. (A mean and
    deviation as TCP keeps them of round trips do not do: neighbours in a queue share their error, so the deviation hides it.)
    """

    QUANTILE, STEP, LEAST, MOST, LEAST_S = 0.99, 0.02, 1.1, 10.0, 0.05

    def __init__(self) -> None:
        self.factor = self.LEAST
        """What to multiply a prediction by."""

    def learn(self, predicted_s: float, actual_s: float, *, at_least: bool = False) -> None:
        """A wait that was predicted is over; `at_least`: it ended without a seat, so it would have been longer. Very short ones say nothing."""
        if not predicted_s >= self.LEAST_S or actual_s < 0:
            return
        if actual_s > self.factor * predicted_s:
            self.factor = min(self.factor + self.STEP * self.QUANTILE, self.MOST)
        elif not at_least:
            self.factor = max(self.factor - self.STEP * (1 - self.QUANTILE), self.LEAST)
