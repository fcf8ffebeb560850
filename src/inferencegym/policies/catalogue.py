"""Policies by name, and by what a person can write instead of a name: a fixed action, a trained policy's file, or a class of their own.

lru                                     a name of `policy_names`
fixed:admit_free, fixed:8               one action for ever (paging)
fixed:batch_cap=64,quantization_tier=INT8   one setting for ever (knobs); knobs not named stay as they are
runs/x/policy.npz, file:runs/x/policy.npz   what `inferencegym train` wrote
mypackage.mymodule:MyPolicy             a class of yours, made without arguments
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from inferencegym.decision.policy import Policy
from inferencegym.ground.errors import ConfigError, UnknownNameError
from inferencegym.policies import trained
from inferencegym.policies.simple import DoNothing, Fixed, Random, surface_of

#: Where the rules of a surface live: the classes in a module's `RULES`.
MODULES = {"paging": "inferencegym.policies.memory", "knobs": "inferencegym.policies.serving"}
_SIMPLE: dict[str, Callable[[str], Policy]] = {"random": Random, "do-nothing": DoNothing}


def policy_names(surface: str) -> tuple[str, ...]:
    """The named policies of a surface (knobs, paging), simple ones first."""
    return (*_SIMPLE, *_rules(surface))


def policy(name: str, surface: str) -> Policy:
    """The policy that a name stands for, on a surface."""
    if name in _SIMPLE:
        return _SIMPLE[name](surface)
    if name.startswith("fixed:"):
        return Fixed(surface, fixed_action(name.removeprefix("fixed:"), surface), name)
    if (path := trained_file(name)) is not None:
        return trained.load(path, surface, name=name)
    if ":" in name:
        return _own(name, surface)
    found = _rules(surface)
    if name not in found:
        known = (*policy_names(surface), "fixed:ACTION", "PATH.npz", "module:Class")
        raise UnknownNameError(f"policy of surface '{surface}'", name, known)
    made: Policy = found[name]()
    return made


def trained_file(name: str) -> str | None:
    """The path in `file:PATH`, or a name that is one; None for any other name."""
    if name.startswith("file:"):
        return name.removeprefix("file:")
    return name if name.endswith(trained.SUFFIX) else None


def _rules(surface: str) -> dict[str, type[Any]]:
    surface_of(surface)
    return {rule.name: rule for rule in import_module(MODULES[surface]).RULES}


def fixed_action(text: str, surface: str) -> Any:
    """What stands after `fixed:`, as the surface's own action."""
    itself = surface_of(surface)
    if surface == "paging":
        return itself.action(itself.dense(int(text) if text.isdigit() else text))
    knobs: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(
                "fixed", f"'{part}' is not NAME=VALUE", allowed="e.g. fixed:batch_cap=64,speculation_depth=2"
            )
        knobs[name.strip()] = _value(value.strip())
    return itself.action(itself.dense(knobs))


def _value(text: str) -> bool | float | str:
    if text.lower() in ("true", "on", "yes"):
        return True
    if text.lower() in ("false", "off", "no"):
        return False
    try:
        return float(text)
    except ValueError:
        return text


def _own(name: str, surface: str) -> Policy:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError("policy", f"'{name}': {error}", allowed="module:Class, importable from here") from error
    made = found()
    missing = [part for part in ("name", "surface", "start", "act") if not hasattr(made, part)]
    if missing:
        raise ConfigError(
            "policy", f"'{name}' has no {', '.join(missing)}", allowed="see inferencegym.decision.policy.Policy"
        )
    if made.surface != surface:
        raise ConfigError("policy", f"'{name}' acts on '{made.surface}'", allowed=f"a policy of surface '{surface}'")
    own: Policy = made
    return own
