"""The live configuration: what can change while the gateway runs, changed whole or not at all, versioned, bounded, audited and revertible.

A change names dotted settings (`queue.order`, `classes.gold.max_requests`) or the same as nested tables; a table that is a setting itself (`queue.weights`)
is replaced whole. In JSON, null stands for none and for a limit that is infinite.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec.structs

from inferencegym.ground.errors import ConfigError
from inferencegym.runtime.checks import check_settings
from inferencegym.runtime.errors import ApiError, bad_request
from inferencegym.runtime.loading import leaves
from inferencegym.runtime.section import Section, allowed, bounds, choices, defaults, fit, hints, meanings, unknown
from inferencegym.runtime.settings import LIVE, Settings

#: Versions that can be reverted to, and changes that the audit log keeps.
REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the audit log, or what a dry run would do."""

    version: int
    """The version it made; of a dry run, the one it would make."""
    at: str
    """When, ISO 8601, UTC."""
    by: str
    """Name of the key that did it, or of the policy."""
    reason: str
    changes: Mapping[str, tuple[Any, Any]]
    """Setting to (from, to); those that stay as they are, are left out."""
    reverted_to: int | None = None
    dry_run: bool = False

    def json(self) -> dict[str, Any]:
        """For an answer or a log line."""
        told = {name: {"from": _plain(old), "to": _plain(new)} for name, (old, new) in self.changes.items()}
        return {
            "version": self.version, "at": self.at, "by": self.by, "reason": self.reason, "changes": told,
            "reverted_to": self.reverted_to, "dry_run": self.dry_run,
        }  # fmt: skip


def _utc() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class LiveConfig:
    """Settings in force, and their history. Errors are ApiError: 400 names the setting, 404 an unknown version, 412 a version that is not the present one."""

    def __init__(
        self,
        settings: Settings,
        on_change: Callable[[Settings], None],
        *,
        on_audit: Callable[[Change], None] = lambda change: None,
        wall_time: Callable[[], str] = _utc,
    ) -> None:
        """`on_change` puts new settings in force; what it refuses (ConfigError) is undone by calling it with the old ones. `on_audit` is told of each change."""
        self.settings, self.version = settings, 1
        self._on_change, self._on_audit, self._wall_time = on_change, on_audit, wall_time
        self._versions: deque[tuple[int, Settings]] = deque([(1, settings)], maxlen=REMEMBERED)
        self._audit: deque[Change] = deque(maxlen=REMEMBERED)

    def get(self) -> dict[str, Any]:
        """Version, settings as nested tables, and for each dotted name its type, bounds, default and meaning."""
        tables: dict[str, Any] = {}
        told: dict[str, Any] = {}
        for name, leaf, kind, value in live_leaves(self.settings):
            at = tables
            *path, last = name.split(".")
            for part in path:
                at = at.setdefault(part, {})
            at[last] = _plain(value)
            low, high = bounds(hints(kind)[leaf])
            told[name] = {
                "allowed": allowed(hints(kind)[leaf]), "min": low, "max": high, "choices": list(choices(hints(kind)[leaf])) or None,
                "default": _plain(defaults(kind).get(leaf)), "meaning": meanings(kind)[leaf],
            }  # fmt: skip
        return {"version": self.version, "settings": tables, "bounds": told}

    def patch(self, changes: Mapping[str, Any], *, by: str, reason: str = "", expected_version: int | None = None, dry_run: bool = False) -> Change:  # fmt: skip
        """Change settings, all of them or none; returns what changed from what to what."""
        self._expect(expected_version)
        try:
            new = self._with(dict(_flat(self.settings, changes)))
        except ConfigError as error:
            raise bad_request(str(error), error.field, "invalid_config") from error
        return self._apply(new, by, reason, None, dry_run)

    def revert(self, version: int, *, by: str, reason: str = "", expected_version: int | None = None, dry_run: bool = False) -> Change:  # fmt: skip
        """Put the settings of an earlier version in force again; that makes a new version."""
        self._expect(expected_version)
        for number, settings in self._versions:
            if number == version:
                return self._apply(settings, by, reason, version, dry_run)
        oldest = self._versions[0][0]
        raise ApiError(404, "no_such_version", f"There is no version {version}; there are {oldest}..{self.version}", "version")  # fmt: skip

    def audit(self, since_version: int = 0) -> list[Change]:
        """Changes after a version, oldest first."""
        return [change for change in self._audit if change.version > since_version]

    def _expect(self, version: int | None) -> None:
        if version is not None and version != self.version:
            raise ApiError(412, "version_conflict", f"The configuration is at version {self.version}, not {version}; read it again", "version")  # fmt: skip

    def _apply(self, new: Settings, by: str, reason: str, reverted_to: int | None, dry_run: bool) -> Change:
        old = self.settings
        changed = difference(old, new)
        _refuse_idle_limits(old, new, changed)
        version = self.version + 1 if changed else self.version
        change = Change(version, self._wall_time(), by, reason, changed, reverted_to, dry_run)
        if dry_run or not changed:
            return change
        try:
            self._on_change(new)
        except ConfigError as error:
            self._on_change(old)
            raise bad_request(str(error), error.field, "invalid_config") from error
        self.settings, self.version = new, version
        self._versions.append((version, new))
        self._audit.append(change)
        self._on_audit(change)
        return change

    def _with(self, values: Mapping[str, Any]) -> Settings:
        """The settings with these dotted names changed; ConfigError when they do not go together."""
        parts: dict[str, Any] = {}
        for what in LIVE:
            prefix = f"{what}."
            mine = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
            if what in values:
                parts[what] = values[what]
            elif mine and what == "classes":
                parts[what] = tuple(
                    _replaced(one, {leaf.removeprefix(f"{one.name}."): value for leaf, value in mine.items() if leaf.startswith(f"{one.name}.")})
                    for one in self.settings.classes
                )  # fmt: skip
            elif mine:
                parts[what] = _replaced(getattr(self.settings, what), mine)
        return msgspec.structs.replace(self.settings, **parts)


def _refuse_idle_limits(old: Settings, new: Settings, changed: Mapping[str, object]) -> None:
    """A setting that is changed must come to be in force; others may come to rest (weights, say, when the order becomes fcfs)."""
    known = {str(problem) for problem in check_settings(old)}
    for problem in check_settings(new):
        if str(problem) not in known and any(problem.field.startswith(name) for name in changed):
            raise bad_request(str(problem), problem.field, "not_in_force")


def live_leaves(settings: Settings) -> Iterator[tuple[str, str, type[Section], Any]]:
    """(dotted name, field, struct, value) of every setting that can change while it runs."""
    for name, leaf, kind, value in leaves(settings):
        if name.split(".")[0] in LIVE and not (name.startswith("classes.") and leaf == "name"):
            yield name, leaf, kind, value


def difference(old: Settings, new: Settings) -> dict[str, tuple[Any, Any]]:
    """Live settings that differ: name to (old, new)."""
    before = {name: value for name, _, _, value in live_leaves(old)}
    return {name: (before[name], value) for name, _, _, value in live_leaves(new) if before[name] != value}


def version_of(if_match: str) -> int | None:
    """Version in an If-Match header (`"7"`, `7`, `W/"7"`); None for `*`. ApiError 400 if it is none."""
    text = if_match.strip().removeprefix("W/").strip('"')
    if text == "*":
        return None
    if not text.isdecimal():
        raise bad_request(f"If-Match is no version: {if_match!r}", "if-match")
    return int(text)


def _flat(settings: Settings, changes: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value, as its field wants it, of each change."""
    known = {name: (leaf, kind) for name, leaf, kind, _ in live_leaves(settings)}
    for part, value in changes.items():
        name = f"{at}.{part}" if at else part
        if name in known:
            leaf, kind = known[name]
            if value is None and defaults(kind).get(leaf) == math.inf:
                value = math.inf
            yield name, fit(name, hints(kind)[leaf], value, strict=True)
        elif isinstance(value, Mapping) and any(one.startswith(f"{name}.") for one in known):
            yield from _flat(settings, value, name)
        elif any(one[0] == name for one in leaves(settings)):
            raise ConfigError(name, "cannot change while the gateway runs", allowed=f"settings of {', '.join(LIVE)}")
        else:
            raise unknown("", name, known)


def _replaced(part: Section, values: Mapping[str, Any]) -> Section:
    return msgspec.structs.replace(part, **values) if values else part


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
