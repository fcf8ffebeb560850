"""Descriptions that workloads are generated from: when requests come, how long they are, what they share, and for
whom they are.

A description is a TOML or JSON file, or these classes in Python; the shipped fits are such files. Times are seconds,
lengths tokens, rates requests per second.
"""

from __future__ import annotations

import json
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from inferencegym.ground.errors import ConfigError, InputError

FORMAT = "inferencegym.workload-description"
FORMAT_VERSION = 1

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Correlation = Annotated[float, Meta(gt=-1, lt=1)]
Tokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Grid = tuple[float, ...]


class _Part(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What all parts of a description have in common: they cannot be changed, and an unknown field is an error."""


# --- when: the law of the gaps ----------------------------------------------------------------------------------------


class Poisson(_Part, frozen=True, tag_field="law", tag="poisson"):
    """Gaps without memory: many independent users."""


class Gamma(_Part, frozen=True, tag_field="law", tag="gamma"):
    """Gaps of a gamma law: burstier than Poisson above a CV of 1, steadier below."""

    cv: Positive
    """Coefficient of variation of the gaps (1 is Poisson)."""


class Weibull(_Part, frozen=True, tag_field="law", tag="weibull"):
    """Gaps of a Weibull law; below a shape of 1 its long gaps are longer than the exponential's."""

    shape: Positive


class Even(_Part, frozen=True, tag_field="law", tag="even"):
    """Equal gaps."""


class Copula(_Part, frozen=True, tag_field="law", tag="copula"):
    """Gaps of a measured law that remember: short gaps follow short ones.

    The law is given by quantiles (straight lines between their logarithms). A normal score drives it: a sum of AR(1)
    series and white noise with the given weights (variances; what is missing to 1 is white).
    """

    probs: Grid
    gap_q_s: Grid
    weights: Grid = ()
    phis: Grid = ()


class Ticks(_Part, frozen=True, tag_field="law", tag="ticks"):
    """Arrivals stamped with a coarse clock: one Poisson batch a tick."""

    tick_s: Positive
    spread: bool = False
    """Spread each batch evenly over the tick that follows, instead of leaving it on the stamp."""


GapLaw = Poisson | Gamma | Weibull | Even | Copula | Ticks


# --- when: how the rate moves (each multiplies the mean rate, and has a mean of 1)
# --------------------------------------


class Hours(_Part, frozen=True, tag_field="shape", tag="hours"):
    """A daily (24 levels) or weekly (168) profile; levels count relative to their mean."""

    levels: Grid
    first_hour: Annotated[int, Meta(ge=0)] = 0
    """Hour of the profile at which the workload starts."""


class Replay(_Part, frozen=True, tag_field="shape", tag="replay"):
    """The rate of a recorded series of counts, one level each `every_s`, from the start again at its end."""

    every_s: Positive
    levels: Grid


class Wander(_Part, frozen=True, tag_field="shape", tag="wander"):
    """A random level each `every_s`, gamma with mean 1, that remembers the one before."""

    every_s: Positive
    gamma_shape: Positive
    """The level's CV is 1 / sqrt(gamma_shape)."""
    memory: Correlation = 0.0


class OnOff(_Part, frozen=True, tag_field="shape", tag="on_off"):
    """Bursts with quiet between: phases of random (exponential) or fixed length."""

    on_s: Positive
    off_s: Positive
    quiet: Share = 0.0
    """The rate of a quiet phase relative to that of a burst."""
    random: bool = True


class Spikes(_Part, frozen=True, tag_field="shape", tag="spikes"):
    """Sudden peaks at random times, `every_s` apart on average."""

    every_s: Positive
    lasting_s: Positive
    factor: Annotated[float, Meta(ge=1)]
    """The rate inside a spike relative to that outside; spikes that meet do not add up."""


class Sine(_Part, frozen=True, tag_field="shape", tag="sine"):
    """A smooth wave around the mean, upwards first."""

    period_s: Positive
    amplitude: Share


class Campaigns(_Part, frozen=True, tag_field="shape", tag="campaigns"):
    """Batch jobs: hours in which nobody calls, and hours whose counts span four orders of magnitude, both with a
    memory.
    """

    active_share_by_hour: Grid
    """24 shares: how often an hour of the day sees any request."""
    active_memory: Correlation
    log_count_by_hour: Grid
    """24 means of the log count of an active hour."""
    log_residual_probs: Grid
    log_residual_q: Grid
    residual_memory: Correlation
    most_per_hour: Positive
    mean_per_hour: Positive
    """The mean count, quiet hours included; levels are relative to it."""


RateShape = Hours | Replay | Wander | OnOff | Spikes | Sine | Campaigns


# --- how long ---------------------------------------------------------------------------------------------------------


class FixedLengths(_Part, frozen=True, tag_field="law", tag="fixed"):
    """Every request alike."""

    prompt_tokens: Tokens
    output_tokens: Tokens


class UniformLengths(_Part, frozen=True, tag_field="law", tag="uniform"):
    """Whole numbers from the first to the second, both included; prompt and output independent."""

    prompt_tokens: tuple[Tokens, Tokens]
    output_tokens: tuple[Tokens, Tokens]


class LognormalLengths(_Part, frozen=True, tag_field="law", tag="lognormal"):
    """Medians and the spread of the logarithms; normal scores of prompt and output may correlate."""

    prompt_median: Positive
    prompt_sigma: NotNegative
    output_median: Positive
    output_sigma: NotNegative
    correlation: Correlation = 0.0
    most_prompt_tokens: Tokens = 131_072
    """Longer draws are drawn again (not cut, which would pile them up)."""
    most_output_tokens: Tokens = 32_768


class GridLengths(_Part, frozen=True, tag_field="law", tag="grid"):
    """Measured laws: quantiles of the prompt, and of the output for each of several equal shares of prompts, short to
    long.
    """

    prompt_probs: Grid
    prompt_q: Grid
    output_probs: Grid
    output_q: tuple[Grid, ...]
    """One row of quantiles for each bin of prompts; a single row makes the two independent (or see `correlation`)."""
    correlation: Correlation = 0.0
    """Correlation of the normal scores of prompt and output, on top of the bins."""


LengthLaw = FixedLengths | UniformLengths | LognormalLengths | GridLengths


# --- what requests share ----------------------------------------------------------------------------------------------


class Sessions(_Part, frozen=True):
    """Conversations: each turn resends all that was said and adds a new message.

    The arrivals are those of conversations, the prompt lengths those of new messages.
    """

    mean_turns: Annotated[float, Meta(ge=1)]
    """Turns of a conversation: geometric, at least 1."""
    think_median_s: NotNegative = 10.0
    think_sigma: NotNegative = 1.0
    """Pauses between an answer and the next message are lognormal."""
    closed_loop: bool = True
    """Whether a turn waits for the end of the one before, as people do; else it comes when a guess says so."""
    guess_tpot_s: NotNegative = 0.02
    """The guess at how long an answer takes, a token: for `arrival_s` of later turns."""
    system_prompts: Annotated[int, Meta(ge=0)] = 0
    """How many different system prompts there are; each conversation starts with one (Zipf: the k-th is 1/k as
    popular).
    """
    system_tokens: Annotated[int, Meta(ge=0)] = 0
    most_context_tokens: Tokens = 32_768
    """A conversation ends before a turn that would pass this, prompt and answer together."""
    block_tokens: Tokens = 16
    """Size of the blocks whose prefixes are named."""


class PrefixTree(_Part, frozen=True):
    """Shared prefixes without sessions: a request repeats the first blocks of an earlier one, about as long ago as
    measured.
    """

    block_tokens: Tokens
    matched_probs: Grid
    matched_q: tuple[Grid, ...]
    """For each bin of prompts, short to long: quantiles of the share of leading blocks that were seen before."""
    lag_probs: Grid
    lag_q_s: Grid
    first_block_shares: Grid = ()
    """How the traffic splits over a few first blocks that everybody starts with."""


# --- for whom ---------------------------------------------------------------------------------------------------------


class Class(_Part, frozen=True):
    """A class of service and its share of the sessions (or requests, where there are none)."""

    name: str
    share: Positive = 1.0
    priority: Annotated[int, Meta(ge=0, le=127)] = 0


class Tenant(_Part, frozen=True):
    """A client and its share."""

    name: str
    share: Positive = 1.0


class Traffic(_Part, frozen=True):
    """One stream of requests; a workload is one or several of them at once."""

    lengths: LengthLaw
    kind: str = "default"
    gaps: GapLaw = Poisson()
    rate_rps: Positive | None = None
    """Mean requests per second. May be left out where the gap law has a rate of its own (copula)."""
    rate: tuple[RateShape, ...] = ()
    """How the rate moves; shapes multiply."""
    whole_seconds: bool = False
    """Stamps are cut to whole seconds, as the source's are."""
    failed_share: Share = 0.0
    """Requests that failed at the source: output 0, prompt 0."""
    sessions: Sessions | None = None
    prefixes: PrefixTree | None = None
    classes: tuple[Class, ...] = ()
    tenants: tuple[Tenant, ...] = ()
    output_budget_tokens: Annotated[int, Meta(ge=0)] = 0
    """`max_tokens` of every request; 0 for not given. Longer answers are cut to it, as a server would."""
    mix: tuple[Mix, ...] = ()
    """Kinds that share these arrivals: if given, each request draws one, with its own lengths."""


class Mix(_Part, frozen=True):
    """A kind of request and its share of a stream's arrivals."""

    kind: str
    share: Positive
    lengths: LengthLaw
    failed_share: Share = 0.0


class Spec(_Part, frozen=True):
    """A whole description."""

    name: str
    traffic: Annotated[tuple[Traffic, ...], Meta(min_length=1)]
    format: str = FORMAT
    version: int = FORMAT_VERSION
    source: str = ""
    """What it was fitted on, or why it was written."""
    licence: str = ""
    attribution: str = ""
    notes: tuple[str, ...] = ()
    fitted_on: dict[str, Any] = {}
    measured: dict[str, Any] = {}
    """Figures of the data it was fitted on, to compare a generated workload with."""


def load(path: Path) -> Spec:
    """A description from a TOML or JSON file, checked."""
    try:
        text = path.read_text(encoding="utf-8")
        raw = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"cannot be read as a workload description: {error}", file=path) from error
    return check(raw, path)


def check(raw: object, path: Path | None = None) -> Spec:
    """A description from plain data (what a TOML or JSON file holds), checked."""
    if isinstance(raw, dict) and (
        raw.get("format", FORMAT) != FORMAT or raw.get("version", FORMAT_VERSION) != FORMAT_VERSION
    ):
        given = f"{raw.get('format')} version {raw.get('version')}"
        raise InputError(f"is {given}; this package reads {FORMAT} version {FORMAT_VERSION}", file=path)
    try:
        spec = msgspec.convert(raw, Spec, strict=True)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at ")
        raise InputError(problem, file=path, column=place.strip("`").removeprefix("$.") or None) from error
    for i, traffic in enumerate(spec.traffic):
        _check_traffic(traffic, f"traffic[{i}]")
    return spec


def dump(spec: Spec) -> str:
    """A description as JSON, a few lines."""
    return json.dumps(msgspec.to_builtins(spec), separators=(",", ":"), ensure_ascii=False) + "\n"


def _check_traffic(t: Traffic, at: str) -> None:
    if t.rate_rps is None and not isinstance(t.gaps, Copula):
        raise ConfigError(f"{at}.rate_rps", "is missing", allowed="requests per second, more than 0")
    if t.sessions is not None and (t.prefixes is not None or t.mix or t.failed_share):
        raise ConfigError(f"{at}.sessions", "does not go together with prefixes, mix or failed_share")
    if isinstance(t.gaps, Copula):
        check_grid(f"{at}.gaps.gap_q_s", t.gaps.probs, t.gaps.gap_q_s, low=1e-12)
        if len(t.gaps.weights) != len(t.gaps.phis) or sum(t.gaps.weights) > 1:
            raise ConfigError(f"{at}.gaps.weights", "must be as many as phis and sum to at most 1")
        if any(not -1 < phi < 1 for phi in t.gaps.phis) or any(weight < 0 for weight in t.gaps.weights):
            raise ConfigError(f"{at}.gaps.phis", f"{t.gaps.phis}", allowed="between -1 and 1; weights 0 or more")
    for lengths in (t.lengths, *(part.lengths for part in t.mix)):
        _check_lengths(lengths, f"{at}.lengths")
    for shape in t.rate:
        _check_shape(shape, f"{at}.rate")
    if t.prefixes is not None:
        check_grid(f"{at}.prefixes.lag_q_s", t.prefixes.lag_probs, t.prefixes.lag_q_s)
        for row in t.prefixes.matched_q:
            check_grid(f"{at}.prefixes.matched_q", t.prefixes.matched_probs, row)
        if any(share <= 0 for share in t.prefixes.first_block_shares):
            raise ConfigError(f"{at}.prefixes.first_block_shares", "a share is not above 0")


def _check_lengths(lengths: LengthLaw, at: str) -> None:
    if isinstance(lengths, UniformLengths):
        for name in ("prompt_tokens", "output_tokens"):
            low, high = getattr(lengths, name)
            if low > high:
                raise ConfigError(f"{at}.{name}", f"from {low} to {high}", allowed="the lower one first")
    if isinstance(lengths, GridLengths):
        check_grid(f"{at}.prompt_q", lengths.prompt_probs, lengths.prompt_q, low=1)
        if not lengths.output_q:
            raise ConfigError(f"{at}.output_q", "is empty", allowed="one row of quantiles or more")
        for row in lengths.output_q:
            check_grid(f"{at}.output_q", lengths.output_probs, row, low=1)


def _check_shape(shape: RateShape, at: str) -> None:
    levels = shape.levels if isinstance(shape, Hours | Replay) else (1.0,)
    if not levels or any(level < 0 for level in levels) or sum(levels) <= 0:
        raise ConfigError(f"{at}.levels", "must be 0 or more, and not all 0")
    if isinstance(shape, Hours) and len(levels) not in (24, 168):
        raise ConfigError(f"{at}.levels", f"{len(levels)} levels", allowed="24 (a day) or 168 (a week)")
    if isinstance(shape, Campaigns):
        check_grid(f"{at}.log_residual_q", shape.log_residual_probs, shape.log_residual_q, low=None)
        if len(shape.active_share_by_hour) != 24 or len(shape.log_count_by_hour) != 24:
            raise ConfigError(f"{at}.active_share_by_hour", "and log_count_by_hour must have 24 values each")


def check_grid(at: str, probs: Grid, quantiles: Grid, low: float | None = 0) -> None:
    """A law given by quantiles: probabilities from 0 to 1, both rising, as many of one as of the other."""
    if len(probs) != len(quantiles) or len(probs) < 2:
        raise ConfigError(
            at,
            f"{len(quantiles)} quantiles for {len(probs)} probabilities",
            allowed="as many of one as of the other, 2 or more",
        )
    if probs[0] != 0 or probs[-1] != 1 or any(a >= b for a, b in pairwise(probs)):
        raise ConfigError(at, "its probabilities must rise from 0 to 1")
    if any(a > b for a, b in pairwise(quantiles)) or (low is not None and quantiles[0] < low):
        raise ConfigError(at, "its quantiles must rise" + ("" if low is None else f" from {low:g} or more"))
