"""What a section of the settings is: a frozen struct whose fields check their own types and ranges, and say what is allowed.

A field's annotation is the only place of its range (`msgspec.Meta`), so an error, `config show` and the bounds of the live knobs agree.
"""

from __future__ import annotations

import ast
import inspect
import math
import re
import textwrap
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from itertools import pairwise
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import msgspec
import msgspec.structs

from inferencegym.ground.errors import ConfigError


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of the settings. ConfigError, naming the field and what is allowed, when one is out of range or of a wrong type."""

    PATH: ClassVar[str] = ""

    def path(self) -> str:
        """Where it stands in the tree; a list's member is found by its name."""
        name = getattr(self, "name", None)
        return self.PATH if name is None else f"{self.PATH}.{name}"

    def __post_init__(self) -> None:
        for field, hint in hints(type(self)).items():
            check(f"{self.path()}.{field}".lstrip("."), hint, getattr(self, field))


@lru_cache(maxsize=64)
def hints(kind: type[msgspec.Struct]) -> Mapping[str, Any]:
    """Field name to annotation, ranges included, in the order they are declared."""
    known = get_type_hints(kind, include_extras=True)
    return {field: known[field] for field in kind.__struct_fields__}


@lru_cache(maxsize=64)
def defaults(kind: type[msgspec.Struct]) -> Mapping[str, Any]:
    """Field name to default, for the fields that have one."""
    known = {}
    for field in msgspec.structs.fields(kind):
        if field.default_factory is not msgspec.NODEFAULT:
            known[field.name] = field.default_factory()
        elif field.default is not msgspec.NODEFAULT:
            known[field.name] = field.default
    return known


@lru_cache(maxsize=64)
def meanings(kind: type[msgspec.Struct]) -> Mapping[str, str]:
    """Field name to what stands under it in the source: what `config show` and the live configuration tell."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    told = dict.fromkeys(hints(kind), "")
    for at, after in pairwise(body.body):
        text = after.value if isinstance(after, ast.Expr) else None
        if isinstance(at, ast.AnnAssign) and isinstance(at.target, ast.Name) and isinstance(text, ast.Constant):
            told[at.target.id] = str(text.value)
    return told


def check(path: str, hint: Any, value: object) -> None:
    """ConfigError unless a value already has the type and range of its field."""
    fit(path, hint, value, strict=True, keep=True)


def fit(path: str, hint: Any, value: object, *, strict: bool, keep: bool = False) -> Any:
    """A value as its field wants it: a list becomes a tuple, and, unless `strict`, text becomes a number.

    ConfigError when it does not fit. `keep`: return nothing new, only check (a struct inside is taken as it is).
    """
    numbers = [value] if isinstance(value, float) else list(value.values()) if isinstance(value, dict) else []
    if any(isinstance(number, float) and math.isnan(number) for number in numbers):
        raise ConfigError(path, "is not a number", allowed=allowed(hint))
    if any(isinstance(number, float) and math.isinf(number) for number in numbers) and not _takes_inf(hint):
        raise ConfigError(path, f"{value} is not finite", allowed=allowed(hint))
    try:
        return msgspec.convert(value, hint, strict=strict, from_attributes=keep)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        raise ConfigError(path, f"{hidden(path, value)!r} does not fit", allowed=allowed(hint)) from None


def _takes_inf(hint: Any) -> bool:
    """A float without an upper bound may be infinite: no limit."""
    return bounds(hint)[1] is None and "float" in str(hint)


def bounds(hint: Any) -> tuple[float | None, float | None]:
    """Least and greatest value of a number's annotation; None where there is none."""
    low: float | None = None
    high: float | None = None
    for part in _parts(hint):
        if isinstance(part, msgspec.Meta):
            low = part.ge if part.ge is not None else part.gt if part.gt is not None else low
            high = part.le if part.le is not None else part.lt if part.lt is not None else high
    return low, high


def choices(hint: Any) -> tuple[str, ...]:
    """The words a field may be, in their order; empty where it is not a choice."""
    return tuple(str(word) for part in _parts(hint) if get_origin(part) is Literal for word in get_args(part))


def optional(hint: Any) -> bool:
    """Whether a field may be left without a value."""
    return type(None) in _parts(hint) or None in _parts(hint)


def _parts(hint: Any) -> list[Any]:
    """An annotation and all it is made of, the words of a Literal excepted."""
    found = [hint]
    if get_origin(hint) is Literal:
        return found
    for part in get_args(hint):
        found += _parts(part)
    return found


_MANY = 40
_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "a table",
    tuple: "a list",
}


def allowed(hint: Any) -> str:
    """A field's types and range in words, for errors and tables."""
    words = choices(hint)
    if words:
        text = ", ".join(words)
    else:
        parts = [get_origin(part) or part for part in _parts(hint)]
        text = next((_WORDS[part] for part in parts if part in _WORDS), "an object")
        if text in ("a list", "a table"):
            inner = next((_WORDS[part] for part in reversed(parts) if part in _WORDS), "text")
            text += f" of {inner}" if inner != text else ""
        low, high = bounds(hint)
        if low is not None:
            # A `gt` bound shuts its end out; of the ranges here only 0 does.
            strict = any(isinstance(part, msgspec.Meta) and part.gt is not None for part in _parts(hint))
            text += f" above {_plain(low)}" if strict else f" of at least {_plain(low)}"
        if high is not None:
            text += f", at most {_plain(high)}" if low is not None else f" of at most {_plain(high)}"
        pattern = next((part.pattern for part in _parts(hint) if isinstance(part, msgspec.Meta) and part.pattern), None)
        text += f" that matches {pattern}" if pattern else ""
    return f"{text}, or none" if optional(hint) else text


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"


def hidden(name: str, value: Any) -> Any:
    """A setting's value without what is secret in it: hashes of keys, passwords in URLs, keys on command lines."""
    leaf = name.rpartition(".")[2]
    if leaf == "sha256":
        return "(hidden)"
    if isinstance(value, str):
        return re.sub(r"(?<=://)[^/@\s]*(?=@)", "(hidden)", value)
    if leaf == "command":
        told, secret = [], False
        for word in value:
            key = re.match(r"(--?[\w-]*(?:key|token|password|secret)[\w-]*)(=?)", word, re.IGNORECASE)
            told.append("(hidden)" if secret else f"{key[1]}=(hidden)" if key and key[2] else hidden("", word))
            secret = bool(key) and not (key and key[2])
        return tuple(told)
    return value


def unknown(path: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that does not exist, with the nearest one that does; a long list of names is told only in part."""
    listed = sorted(known)
    near = get_close_matches(name, listed, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    told = listed if len(listed) <= _MANY else [*get_close_matches(name, listed, n=5), f"and others of {len(listed)}"]
    return ConfigError(f"{path}.{name}".lstrip("."), f"no such setting{hint}", allowed=", ".join(told))
