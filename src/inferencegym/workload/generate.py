"""Workloads out of descriptions and a seed: the same description, seed and size give the same requests, to the bit.

Each part draws from a named stream of its own, so changing lengths leaves arrivals as they were. Times are seconds,
lengths tokens.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from inferencegym.ground.errors import ConfigError
from inferencegym.ground.rng import stream
from inferencegym.workload.arrivals import draw_arrivals, own_rate_rps
from inferencegym.workload.chance import choose
from inferencegym.workload.lengths import draw_lengths
from inferencegym.workload.sessions import draw_turns
from inferencegym.workload.shipped import load_named
from inferencegym.workload.spec import (
    Copula,
    Even,
    Gamma,
    GapLaw,
    Poisson,
    Spec,
    Ticks,
    Traffic,
    Weibull,
    check,
    load,
)
from inferencegym.workload.workload import Ints, Workload

#: Words that `arrivals=` takes instead of a gap law: the described mean rate without the described pattern.
PLAIN_ARRIVALS: dict[str, GapLaw] = {"poisson": Poisson(), "even": Even()}
_MOST_REQUESTS = 200_000_000


def generate(
    what: Spec | str | Path | dict[str, Any],
    *,
    seed: int = 0,
    duration_s: float | None = None,
    requests: int | None = None,
    rate_rps: float | None = None,
    rate_scale: float | None = None,
    arrivals: str | GapLaw | None = None,
) -> Workload:
    """Draw a workload.

    what : a shipped description's name (`names()`), a TOML or JSON file, a `Spec`, or the plain data of one
    duration_s, requests : how much; one of the two
    rate_rps, rate_scale : mean rate of all traffic together, or a factor on the described one; the pattern is kept
    arrivals : another law of gaps at the described mean rate, without its moves: "poisson", "even" or one of
    `spec.GapLaw`
    """
    spec = resolve(what)
    if arrivals is not None:
        spec = _with_arrivals(spec, arrivals)
    scale = _rate_scale(spec, rate_rps, rate_scale)
    if (duration_s is None) == (requests is None):
        raise ConfigError("duration_s", "give either duration_s or requests", allowed="one of the two")
    if duration_s is not None:
        if not (np.isfinite(duration_s) and duration_s > 0):
            raise ConfigError("duration_s", f"{duration_s}", allowed="more than 0")
        return _draw(spec, scale, seed, duration_s)
    assert requests is not None
    if requests < 1:
        raise ConfigError("requests", f"{requests}", allowed="1 or more")
    return _draw_requests(spec, scale, seed, requests)


def resolve(what: Spec | str | Path | dict[str, Any]) -> Spec:
    """The description a name, a file, or plain data stands for, checked."""
    if isinstance(what, Spec):
        import msgspec

        return check(msgspec.to_builtins(what))
    if isinstance(what, dict):
        return check(what)
    if isinstance(what, Path) or "/" in what or what.endswith((".json", ".toml")):
        return load(Path(what))
    return load_named(what)


def mean_rate_rps(spec: Spec) -> float:
    """Mean requests per second that a description asks for, all traffic together."""
    return sum(own_rate_rps(traffic) for traffic in spec.traffic)


def _with_arrivals(spec: Spec, arrivals: str | GapLaw) -> Spec:
    import msgspec

    if isinstance(arrivals, str):
        if arrivals not in PLAIN_ARRIVALS:
            raise ConfigError(
                "arrivals",
                f"'{arrivals}'",
                allowed=f"{', '.join(PLAIN_ARRIVALS)}, or a law of inferencegym.workload.spec",
            )
        arrivals = PLAIN_ARRIVALS[arrivals]
    assert isinstance(arrivals, Poisson | Gamma | Weibull | Even | Copula | Ticks), f"not a law of gaps: {arrivals}"
    traffic = tuple(
        msgspec.structs.replace(one, gaps=arrivals, rate=(), rate_rps=own_rate_rps(one), whole_seconds=False)
        for one in spec.traffic
    )
    return msgspec.structs.replace(spec, traffic=traffic)


def _rate_scale(spec: Spec, rate_rps: float | None, rate_scale: float | None) -> float:
    if rate_rps is not None and rate_scale is not None:
        raise ConfigError("rate_rps", "was given together with rate_scale", allowed="one of the two")
    for name, value in (("rate_rps", rate_rps), ("rate_scale", rate_scale)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise ConfigError(name, f"{value}", allowed="more than 0")
    if rate_rps is not None:
        return rate_rps / mean_rate_rps(spec)
    return 1.0 if rate_scale is None else rate_scale


def _draw_requests(spec: Spec, scale: float, seed: int, requests: int) -> Workload:
    """As many requests as asked for: draw a longer time until they are there, and keep the first."""
    rate_rps = mean_rate_rps(spec) * scale
    duration_s = (requests * 1.02 + 4.0 * requests**0.5) / rate_rps
    while len(drawn := _draw(spec, scale, seed, duration_s)) < requests:
        duration_s *= 1.5
    return drawn.head(requests)


def _draw(spec: Spec, scale: float, seed: int, duration_s: float) -> Workload:
    expected = mean_rate_rps(spec) * scale * duration_s
    if expected > _MOST_REQUESTS:
        raise ConfigError(
            "duration_s", f"asks for about {expected:.3g} requests", allowed=f"at most {_MOST_REQUESTS:,}"
        )
    parts = [_draw_traffic(one, scale, seed, f"workload.{i}", duration_s) for i, one in enumerate(spec.traffic)]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.splice(part, 0.0)
    source = f"generated from the description '{spec.name}', seed {seed}"
    if spec.source:
        source += f" (fitted on {spec.source})" if spec.fitted_on else f" ({spec.source})"
    if scale != 1.0:
        source += f", rate x {scale:.4g}"
    credit = f"{spec.attribution} ({spec.licence})" if spec.licence else spec.attribution
    return replace(whole, name=spec.name, source=source, attribution=credit)


def _draw_traffic(t: Traffic, scale: float, seed: int, name: str, duration_s: float) -> Workload:
    rate_rps = own_rate_rps(t) * scale
    # With sessions, arrivals are those of conversations.
    start_rps = rate_rps / t.sessions.mean_turns if t.sessions is not None else rate_rps
    # The clock of every gap law runs `scale` times as fast: moves of the rate stay at their hours.
    arrival_s = draw_arrivals(t, start_rps, seed, name, until_s=duration_s)
    columns: dict[str, Any]
    if t.sessions is not None:
        turns = draw_turns(t.sessions, t.lengths, arrival_s, seed, name, t.output_budget_tokens)
        owner = turns.session
        columns = turns._asdict() | {"session_id": owner, "prefix_block_tokens": t.sessions.block_tokens}
        del columns["session"]
    else:
        owner = np.arange(len(arrival_s))
        columns = {"arrival_s": arrival_s} | _lengths_and_kinds(t, arrival_s, seed, name)
    columns |= _labels(t, owner, seed, name)
    if t.output_budget_tokens:
        columns["output_tokens"] = np.minimum(columns["output_tokens"], t.output_budget_tokens)
    columns.setdefault("kind_names", (t.kind,))
    drawn = Workload.of(**columns)
    # Later turns of a conversation may fall beyond the end.
    return drawn.take(drawn.arrival_s < duration_s)


def _lengths_and_kinds(t: Traffic, arrival_s: np.ndarray, seed: int, name: str) -> dict[str, Any]:
    size = len(arrival_s)
    parts = [(t.kind, 1.0, t.lengths, t.failed_share)]
    if t.mix:
        parts = [(part.kind, part.share, part.lengths, part.failed_share) for part in t.mix]
    rng = stream(seed, f"{name}.kinds")
    kind = choose(rng, [share for _, share, _, _ in parts], size)
    failed = rng.random(size) < np.array([failing for _, _, _, failing in parts])[kind]
    prompt, output = np.zeros(size, np.int64), np.zeros(size, np.int64)
    rank = np.zeros(size)
    for i, (_, _, law, _) in enumerate(parts):
        here = np.flatnonzero(kind == i)
        drawn = draw_lengths(law, stream(seed, f"{name}.lengths.{i}"), len(here))
        prompt[here], output[here], rank[here] = drawn
    columns: dict[str, Any] = {}
    if t.prefixes is not None:
        from inferencegym.workload.trees import draw_tree  # brings Numba, which only trees need

        columns["prefix_offsets"], columns["prefix_ids"] = draw_tree(t.prefixes, arrival_s, prompt, rank, seed, name)
        columns["prefix_block_tokens"] = t.prefixes.block_tokens
    prompt[failed], output[failed] = 0, 0
    return columns | {
        "prompt_tokens": prompt,
        "output_tokens": output,
        "kind": kind,
        "kind_names": tuple(kind_name for kind_name, _, _, _ in parts),
    }


def _labels(t: Traffic, owner: Ints, seed: int, name: str) -> dict[str, Any]:
    """Tenants, classes and priorities: one draw for each session, or for each request where there are none."""
    owners = int(owner.max(initial=-1)) + 1
    columns: dict[str, Any] = {"output_budget_tokens": np.full(len(owner), t.output_budget_tokens)}
    if t.tenants:
        columns["tenant_names"] = tuple(one.name for one in t.tenants)
        drawn = choose(stream(seed, f"{name}.tenants"), [one.share for one in t.tenants], owners)
        columns["tenant"] = drawn[owner]
    if t.classes:
        columns["slo_class_names"] = tuple(one.name for one in t.classes)
        drawn = choose(stream(seed, f"{name}.classes"), [one.share for one in t.classes], owners)
        columns["slo_class"] = drawn[owner]
        columns["priority"] = np.array([one.priority for one in t.classes])[drawn][owner]
    return columns


__all__ = ["generate", "mean_rate_rps", "resolve"]
