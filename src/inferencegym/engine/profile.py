"""Step-time profiles: how close to its datasheet a GPU comes, fitted to measurements, and how far to trust the result.

A profile is a TOML file: efficiencies (shares of a peak), overheads (seconds), what it was fitted on and its error. A
live engine's own profile has the same form. Shipped ones lie in `engine/profiles/`; `runs/fit_profiles.py` makes them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from inferencegym.ground.errors import ConfigError, InputError, UnknownNameError


@dataclass(frozen=True, slots=True)
class Factors:
    """The numbers of the step-time formula (docs/profiles.md); seconds and shares."""

    p: float = 4.0
    """Exponent that blends memory time and compute time: large is max(), 1 is their sum."""
    hbm_share: float = 0.8
    """Share of memory bandwidth that linear layers reach."""
    flop_share: float = 0.7
    """Share of peak FLOP/s that linear layers reach."""
    kv_share: float = 0.75
    """Share of memory bandwidth that decode attention reaches."""
    past_attention_share: float = 0.65
    """Share of peak FLOP/s that prefill attention reaches between new tokens and cached ones."""
    attention_share: float = 0.65
    """The same among the new tokens of a long chunk."""
    attention_half_tokens: float = 1000.0
    """Chunk length at which attention among new tokens reaches half of that."""
    expert_hbm_share: float = 0.7
    """Share of memory bandwidth that experts' layers reach."""
    expert_flop_share: float = 0.5
    """Share of peak FLOP/s that experts' layers reach."""
    expert_skew: float = 0.7
    """How unevenly tokens choose experts: the i-th most popular is chosen like i to the -skew; 0 is evenly."""
    expert_pad_tokens: float = 30.0
    """Rows of tiles that every chosen expert computes for nothing, tokens."""
    hidden_passes: float = 12.0
    """Elementwise passes over the hidden state a layer (2 bytes each)."""
    ffn_passes: float = 4.0
    """Elementwise passes over the feed-forward state a layer."""
    attention_passes: float = 4.0
    """Elementwise passes over queries, keys and values a layer."""
    step_s: float = 100e-6
    """Overhead a step."""
    layer_s: float = 10e-6
    """Overhead a layer."""
    prefill_layer_s: float = 4e-6
    """More, if the step has a prefill chunk."""
    decode_layer_s: float = 4e-6
    """More, if the step has a decode."""
    sequence_layer_s: float = 0.0
    """More, for each decoding sequence."""
    expert_layer_s: float = 20e-6
    """More, for a layer with experts."""
    link_latency_s: float = 6e-6
    """One all-reduce, small."""
    link_share: float = 0.6
    """Share of the link's bandwidth that large all-reduces reach."""
    host_s: float = 0.0
    """Host time a step that the GPU waits for (kernels' tables have none; live engines do)."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A GPU's factors and where they come from."""

    name: str
    factors: Factors
    fitted_on: str
    trust: str
    """fitted (to measurements of this GPU) or borrowed (from another one)."""
    error: Mapping[str, float]
    """Relative errors of the fit: mape, decode, prefill, mixed, p90, leave_one_model_out; whatever is known."""
    models: tuple[str, ...] = ()
    """Models it was fitted on: for others `leave_one_model_out` is the error to expect."""
    all_reduce: Mapping[int, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    """By GPUs of a replica: (bytes, seconds) of one all-reduce, sizes rising: measured, not from a datasheet."""
    speedup: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """By weight format: speed of linear layers relative to bf16 at up to 64 and from 1,024 tokens a step."""
    affine: Mapping[str, Any] = field(default_factory=dict)
    """Measured step time of one model on one engine instead of a formula: step_s, token_s (any token), decode_s (beyond
    its token: a number, or a list by decodes), kv_token_s, prefill_pair_s."""

    def band(self, model: str) -> float:
        """Relative uncertainty of step times for a model: the fit's own error, more for what it has not seen."""
        known = self.error.get("mape", 0.15)
        if self.trust != "fitted":
            return self.error.get("leave_one_model_out", max(0.2, 2 * known))
        if model in self.models:
            return known
        return self.error.get("leave_one_model_out", 1.5 * known)

    def describe(self) -> str:
        """One line for a report."""
        mape = self.error.get("mape")
        said = "" if mape is None else f", error {mape:.1%}"
        return f"{self.name} ({self.trust}{said}; {self.fitted_on})"

    @property
    def digest(self) -> str:
        """Of everything that it says, so that two results can be known to stand on the same profile."""
        said = json.dumps(asdict(self), sort_keys=True, default=dict)
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def with_factors(self, **changes: float) -> Profile:
        """A copy with some factors changed."""
        return replace(self, factors=replace(self.factors, **changes))


def profile_names() -> list[str]:
    """Names of the shipped profiles."""
    folder = files("inferencegym.engine") / "profiles"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_profile(name: str | Path) -> Profile:
    """A shipped profile by the name of its GPU, or a TOML file. InputError names the file and the wrong field."""
    text = str(name)
    if text.endswith(".toml"):
        path = Path(text)
        try:
            return parse_profile(path.read_text(encoding="utf-8"), text)
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", file=path) from None
        except UnicodeDecodeError as error:
            raise InputError(f"is not text in UTF-8: {error.reason}", file=path) from None
    if text not in profile_names():
        raise UnknownNameError("profile", text, profile_names())
    file = files("inferencegym.engine") / "profiles" / f"{text}.toml"
    return parse_profile(file.read_text(encoding="utf-8"), f"{text}.toml")


_TABLES = {"name", "fitted_on", "trust", "models", "factors", "error", "all_reduce", "speedup", "affine"}


def parse_profile(text: str, file: str) -> Profile:
    """A profile from TOML text; `file` is what errors call it."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"is not TOML: {error}", file=file) from None
    unknown = set(table) - _TABLES
    if unknown:
        raise InputError(f"has no place for {sorted(unknown)}; known: {sorted(_TABLES)}", file=file)
    for name in ("name", "fitted_on", "trust"):
        if not isinstance(table.get(name), str):
            raise InputError("lacks this text field", file=file, column=name)
    if table["trust"] not in ("fitted", "borrowed"):
        raise InputError(f"'{table['trust']}' is neither 'fitted' nor 'borrowed'", file=file, column="trust")
    models = table.get("models", [])
    if not isinstance(models, list) or not all(isinstance(model, str) for model in models):
        raise InputError("is not a list of model names", file=file, column="models")
    parts = {name: _table(table, name, file) for name in ("factors", "error", "all_reduce", "speedup", "affine")}
    return Profile(
        name=table["name"],
        factors=_factors(parts["factors"], file),
        fitted_on=table["fitted_on"],
        trust=table["trust"],
        error={name: _number(value, f"error.{name}", file) for name, value in parts["error"].items()},
        models=tuple(models),
        all_reduce=dict(_all_reduce(gpus, points, file) for gpus, points in parts["all_reduce"].items()),
        speedup={name: _pair(pair, f"speedup.{name}", file) for name, pair in parts["speedup"].items()},
        affine=_affine(parts["affine"], file),
    )


def _table(table: Mapping[str, Any], name: str, file: str) -> Mapping[str, Any]:
    part = table.get(name, {})
    if not isinstance(part, dict):
        raise InputError("is not a table", file=file, column=name)
    return part


def _all_reduce(gpus: str, points: Any, file: str) -> tuple[int, tuple[tuple[float, float], ...]]:
    """GPUs of a replica and its (bytes, seconds) points, sizes rising."""
    column = f"all_reduce.{gpus}"
    if not gpus.isdigit() or int(gpus) < 2:
        raise InputError("is not a number of GPUs, 2 or more", file=file, column=column)
    if not isinstance(points, list) or not points:
        raise InputError("is not a list of [bytes, seconds]", file=file, column=column)
    pairs = tuple(_pair(pair, column, file) for pair in points)
    if any(size <= 0 or seconds <= 0 for size, seconds in pairs):
        raise InputError("has a size or a time that is not positive", file=file, column=column)
    if any(after[0] <= before[0] for before, after in itertools.pairwise(pairs)):
        raise InputError("has sizes that do not rise", file=file, column=column)
    return int(gpus), pairs


_AFFINE = ("step_s", "decode_s", "token_s", "kv_token_s", "prefill_pair_s")


def _affine(table: Mapping[str, Any], file: str) -> dict[str, float | list[float]]:
    """A measured step time. A decode is a token too: `decode_s` is what it costs beyond one, and may be negative."""
    found: dict[str, float | list[float]] = {}
    for name, value in table.items():
        column = f"affine.{name}"
        if name not in _AFFINE:
            raise InputError(f"no such field; known: {', '.join(_AFFINE)}", file=file, column=column)
        if name != "decode_s":
            found[name] = _not_negative(value, column, file)
        elif isinstance(value, list):
            found[name] = [_number(entry, column, file) for entry in value]
        else:
            found[name] = _number(value, column, file)
    token, decode = found.get("token_s", 0.0), found.get("decode_s", 0.0)
    assert isinstance(token, float)
    costs = [d + i * token for i, d in enumerate(decode)] if isinstance(decode, list) else [0.0, decode + token]
    if len(costs) < 2:
        raise InputError("needs two entries to be extended beyond its end", file=file, column="affine.decode_s")
    if min(costs) < 0 or costs[-1] < costs[-2]:
        raise InputError(
            "makes a decode cost less than nothing, its token counted", file=file, column="affine.decode_s"
        )
    return found


def _not_negative(value: Any, column: str, file: str) -> float:
    number = _number(value, column, file)
    if number < 0:
        raise InputError(f"{value} is negative", file=file, column=column)
    return number


def _factors(table: Mapping[str, Any], file: str) -> Factors:
    known = {f.name for f in fields(Factors)}
    for name, value in table.items():
        if name not in known:
            raise InputError(f"no such factor; known: {', '.join(sorted(known))}", file=file, column=f"factors.{name}")
        number = _number(value, f"factors.{name}", file)
        if number < 0 or (number == 0 and (name == "p" or name.endswith("_share"))):
            raise InputError(f"{value} is not positive", file=file, column=f"factors.{name}")
    return Factors(**{name: float(value) for name, value in table.items()})


def _number(value: Any, column: str, file: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{value!r} is not a number", file=file, column=column)
    return float(value)


def _pair(value: Any, column: str, file: str) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise InputError(f"{value!r} is not a pair of numbers", file=file, column=column)
    return _number(value[0], column, file), _number(value[1], column, file)


def write_profile(profile: Profile) -> str:
    """The TOML text of a profile."""
    lines = [
        f'name = "{profile.name}"',
        f'trust = "{profile.trust}"',
        f'fitted_on = "{profile.fitted_on}"',
        f"models = [{', '.join(f'{chr(34)}{m}{chr(34)}' for m in profile.models)}]",
        "",
        "[factors]",
        *[f"{f.name} = {getattr(profile.factors, f.name):.6g}" for f in fields(Factors)],
        "",
        "[error]",
        *[f"{name} = {value:.4f}" for name, value in profile.error.items()],
    ]
    if profile.all_reduce:
        lines += ["", "# GPUs of a replica: [bytes, seconds] of one all-reduce.", "[all_reduce]"]
        for gpus, points in profile.all_reduce.items():
            lines.append(f"{gpus} = [{', '.join(f'[{size:.0f}, {seconds:.4g}]' for size, seconds in points)}]")
    if profile.speedup:
        lines += [
            "",
            "# Speed of linear layers relative to bf16, at up to 64 and from 1,024 tokens a step.",
            "[speedup]",
        ]
        lines += [f"{name} = [{few:.6g}, {many:.6g}]" for name, (few, many) in profile.speedup.items()]
    if profile.affine:
        lines += ["", "[affine]"]
        for name, value in profile.affine.items():
            shown = f"[{', '.join(f'{x:.6g}' for x in value)}]" if isinstance(value, list | tuple) else f"{value:.6g}"
            lines.append(f"{name} = {shown}")
    return "\n".join(lines) + "\n"


def check_speedup(profile: Profile, weight_format: str) -> tuple[float, float]:
    """Measured speed of a weight format, or a clear error."""
    if weight_format == "bf16":
        return 1.0, 1.0
    if weight_format not in profile.speedup:
        raise ConfigError(
            "deployment.weight_format",
            f"profile '{profile.name}' has no measured speed for {weight_format}",
            allowed=", ".join(["bf16", *profile.speedup]) + "; or add it to the profile's [speedup]",
        )
    return profile.speedup[weight_format]
