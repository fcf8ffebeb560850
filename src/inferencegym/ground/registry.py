"""A table from names to things, such as GPUs, models or report formats, that a user may extend.

Names are matched without regard to case; an unknown one is answered with the list of known ones. No units.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from inferencegym.ground.errors import ConfigError, UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """Things of one kind by name, in the order they were registered; aliases find a thing but are not listed."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, T] = {}
        self._aliases: dict[str, str] = {}

    def register(self, name: str, thing: T, *aliases: str) -> T:
        """Add `thing` under `name` and its aliases; a name that is taken is an error, never an overwrite."""
        keys = [key.lower() for key in (name, *aliases)]
        for key in keys:
            if key in self:
                raise ConfigError(self.kind, f"the name '{key}' is already taken")
        self._things[keys[0]] = thing
        self._aliases.update(dict.fromkeys(keys[1:], keys[0]))
        return thing

    def get(self, name: str) -> T:
        """The thing called `name` (or by an alias)."""
        key = name.lower()
        found = self._things.get(self._aliases.get(key, key))
        if found is None:
            raise UnknownNameError(self.kind, name, self.names())
        return found

    def names(self) -> tuple[str, ...]:
        """The names, without aliases, in the order they were registered."""
        return tuple(self._things)

    def __contains__(self, name: str) -> bool:
        key = name.lower()
        return key in self._things or key in self._aliases

    def __len__(self) -> int:
        return len(self._things)
