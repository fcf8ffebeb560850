"""Where parts meet: what a person typed becomes a workload, deployments, settings and a profile. The only place that picks them."""

from __future__ import annotations

import itertools
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from inferencegym.engine.deployment import Deployment
from inferencegym.engine.settings import EngineSettings
from inferencegym.ground.errors import ConfigError

#: What `--set` can reach: a prefix and the dataclass behind it.
TARGETS: dict[str, type] = {"engine": EngineSettings, "deployment": Deployment}


@dataclass(frozen=True, slots=True)
class Variant:
    """One column of the comparison: what sets it apart, and its deployment and settings."""

    label: str
    deployment: Deployment
    settings: EngineSettings


def variants(deployment: Deployment, settings: EngineSettings, choices: Sequence[str]) -> list[Variant]:
    """Every combination of `--set NAME=VALUE[,VALUE...]`; the label names what differs."""
    axes = [_axis(choice) for choice in choices]
    found = []
    for combination in itertools.product(*[values for _, values in axes]):
        chosen = {name: value for (name, _), value in zip(axes, combination, strict=True)}
        found.append(
            Variant(
                label=_label(axes, combination),
                deployment=deployment.with_(**dict(_of("deployment", chosen))),
                settings=settings.with_(**dict(_of("engine", chosen))),
            )
        )
    return found


def _axis(choice: str) -> tuple[str, list[Any]]:
    name, equals, text = choice.partition("=")
    target, dot, field = name.strip().partition(".")
    if not equals or not dot or target not in TARGETS:
        raise ConfigError(
            "--set",
            f"'{choice}' is not NAME=VALUE[,VALUE]",
            allowed="e.g. engine.max_num_seqs=64,256 or deployment.replicas=2",
        )
    hints = get_type_hints(TARGETS[target])
    if field not in hints:
        raise ConfigError(f"--set {target}.{field}", "no such setting", allowed=", ".join(hints))
    return f"{target}.{field}", [parse_value(f"{target}.{field}", hints[field], part) for part in text.split(",")]


def _label(axes: list[tuple[str, list[Any]]], combination: tuple[Any, ...]) -> str:
    parts = [
        f"{name.split('.', 1)[1]}={show(value)}"
        for (name, values), value in zip(axes, combination, strict=True)
        if len(values) > 1
    ]
    return ", ".join(parts) or "run"


def _of(target: str, chosen: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in chosen.items():
        if name.startswith(f"{target}."):
            yield name.split(".", 1)[1], value


def show(value: Any) -> str:
    """A setting as a person would type it."""
    if isinstance(value, tuple):
        return "/".join(f"{part:g}" for part in value)
    return "unset" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def parse_value(name: str, hint: Any, text: str) -> Any:
    """A typed value from the command line; tuples are written with slashes (0.8/0.6), 'unset' is None where allowed."""
    options = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )
    text = text.strip()
    if type(None) in options and text.lower() in ("unset", "none"):
        return None
    kinds = [option for option in options if option is not type(None)]
    for kind in kinds:
        try:
            return _parse_one(kind, text)
        except ValueError:
            continue
    wanted = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise ConfigError(name, f"'{text}' is not {wanted}", allowed=wanted)


def _parse_one(kind: Any, text: str) -> Any:
    if kind is bool:
        known = {
            "true": True,
            "yes": True,
            "on": True,
            "1": True,
            "false": False,
            "no": False,
            "off": False,
            "0": False,
        }
        if text.lower() not in known:
            raise ValueError(text)
        return known[text.lower()]
    if kind is int:
        return int(text.replace("_", ""))
    if kind is float:
        return float(text)
    if typing.get_origin(kind) is tuple:
        return tuple(float(part) for part in text.split("/") if part)
    if kind is str:
        return text
    raise ValueError(text)


def settings_table(variant: Variant) -> dict[str, str]:
    """Every setting of a variant by name, as text, for a report."""
    table = {}
    for prefix, value in (("deployment", variant.deployment), ("engine", variant.settings)):
        for field in fields(value):
            held = getattr(value, field.name)
            table[f"{prefix}.{field.name}"] = show(getattr(held, "name", held))
    return table


def looks_like_a_file(name: str) -> bool:
    """Whether a trace is given as a path rather than by name."""
    return "/" in name or Path(name).suffix != "" or Path(name).exists()
