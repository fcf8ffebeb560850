"""Where settings come from: defaults, then a TOML file, then the environment, then flags; and what is told of them, secrets left out.

An unknown name is an error wherever it stands, with the nearest known one. Environment: `LLM_RUNTIME_<SECTION>_<FIELD>`, `LLM_RUNTIME_BACKEND_<FIELD>`
for the only backend, and the shorter names that people already use (`VARIABLES`).
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from inferencegym.ground.errors import ConfigError
from inferencegym.runtime.section import Section, defaults, fit, hidden, hints, meanings, optional, unknown
from inferencegym.runtime.settings import (
    AdmissionSettings,
    BackendSettings,
    DispatchSettings,
    Key,
    QueueSettings,
    RecorderSettings,
    ServerSettings,
    ServiceClass,
    Settings,
    SharedSettings,
)

PREFIX = "LLM_RUNTIME_"
#: Sections that stand alone, and those that are lists of named members.
SECTIONS: Mapping[str, type[Section]] = {
    "server": ServerSettings, "queue": QueueSettings, "admission": AdmissionSettings, "dispatch": DispatchSettings, "shared": SharedSettings,
    "recorder": RecorderSettings,
}  # fmt: skip
LISTS: Mapping[str, type[Section]] = {"keys": Key, "backends": BackendSettings, "classes": ServiceClass}
#: A flag that names a new member makes one if it says this of it; a class comes from the file only.
MAKES = {"backends": "kind", "keys": "sha256"}
#: Environment names besides the regular ones; `backends.*` is the only backend.
VARIABLES: Mapping[str, str] = {
    "BACKEND": "backends.*.kind",
    "MODEL_PATH": "backends.*.model_path",
    "N_GPU_LAYERS": "backends.*.n_gpu_layers",
    "VLLM_GPU_MEMORY_UTILIZATION": "backends.*.gpu_memory_utilization",
    "VLLM_MAX_MODEL_LEN": "backends.*.max_model_len",
    "MAX_QUEUE_SIZE": "queue.max_requests",
    "REQUEST_RATE_LIMIT_PER_S": "admission.rate_rps",
    "REQUEST_RATE_LIMIT_BURST": "admission.burst",
    "ENABLE_BATCHING": "dispatch.batching",
    "MAX_BATCH_SIZE": "dispatch.max_batch_size",
    "BATCH_TIMEOUT_MS": "dispatch.batch_timeout_ms",
    "NATIVE_BACKEND_CONCURRENCY": "dispatch.max_concurrency",
    "REQUEST_TIMEOUT_S": "server.request_timeout_s",
}
#: Keys in clear, of which only the hash is kept: the name they get, and whether they are an administrator's.
CLEAR_KEYS: Mapping[str, tuple[str, bool]] = {"API_KEY": ("default", False), "ADMIN_KEY": ("admin", True)}
#: The file to read, unless one is named.
FILE_VARIABLE = "CONFIG"
_LEAST_KEY = 16


@dataclass(frozen=True)
class Loaded:
    """Settings, and for each dotted name that is not a default, where its value came from."""

    settings: Settings
    origins: Mapping[str, str]


@dataclass(frozen=True)
class Shown:
    """One line of `config show`."""

    name: str
    value: str
    origin: str
    meaning: str


@dataclass
class _Tree:
    """Values found so far, by dotted name, and the members of lists in their order."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    members: dict[str, list[str]] = field(default_factory=lambda: {what: [] for what in LISTS})

    def put(self, name: str, value: object, origin: str, *, strict: bool) -> None:
        """Set a leaf; ConfigError when there is none of this name or the value does not fit."""
        *at, leaf = name.split(".")
        kind = self._kind(name, at)
        if not at and (leaf in SECTIONS or leaf in LISTS):
            raise ConfigError(
                name,
                "is a section, not a setting",
                allowed=f"{name}.FIELD" if leaf in SECTIONS else f"{name}.NAME.FIELD",
            )
        if leaf not in hints(kind) or (not at and leaf != "routing"):
            raise unknown(".".join(at), leaf, hints(kind))
        hint = hints(kind)[leaf]
        try:
            self.values[name] = fit(name, hint, value if strict else _read(hint, value), strict=strict)
        except ConfigError as error:
            raise _with_origin(error, origin) from None
        self.origins[name] = origin

    def _kind(self, name: str, at: list[str]) -> type[Section]:
        if not at:
            return Settings
        if len(at) == 1 and at[0] in SECTIONS:
            return SECTIONS[at[0]]
        if len(at) == 2 and at[0] in LISTS:
            if at[1] not in self.members[at[0]]:
                raise unknown(at[0], at[1], self.members[at[0]])
            return LISTS[at[0]]
        if at[0] in LISTS:
            raise ConfigError(name, "names no member", allowed=f"{at[0]}.NAME.FIELD")
        raise unknown("", at[0], [*SECTIONS, *LISTS, "routing"])

    def only_backend(self, origin: str) -> str:
        """The backend that `LLM_RUNTIME_BACKEND...` means; there is one if there was none."""
        names = self.members["backends"]
        if not names:
            names.append("main")
        if len(names) > 1:
            raise ConfigError(origin, f"there are {len(names)} backends: {', '.join(names)}", allowed="one backend, or a flag that names it")  # fmt: skip
        return names[0]

    def settings(self) -> Settings:
        """Everything put together; ranges between fields are checked here."""
        parts: dict[str, Any] = {}
        for what, kind in SECTIONS.items():
            parts[what] = kind(**self._fields(what, kind))
        for what, kind in LISTS.items():
            if self.members[what]:
                parts[what] = tuple(self._member(what, kind, name) for name in self.members[what])
        if "routing" in self.values:
            parts["routing"] = self.values["routing"]
        return Settings(**parts)

    def _member(self, what: str, kind: type[Section], name: str) -> Section:
        given = self._fields(f"{what}.{name}", kind)
        missing = hints(kind).keys() - defaults(kind).keys() - given.keys() - {"name"}
        if missing:
            raise ConfigError(f"{what}.{name}.{sorted(missing)[0]}", "is missing")
        return kind(**{**given, "name": name})

    def _fields(self, path: str, kind: type[Section]) -> dict[str, Any]:
        return {name: self.values[f"{path}.{name}"] for name in hints(kind) if f"{path}.{name}" in self.values}


def load(path: Path | str | None = None, environ: Mapping[str, str] | None = None, overrides: Mapping[str, object] | None = None) -> Loaded:  # fmt: skip
    """Settings and where each came from.

    path : TOML file; if None, that of LLM_RUNTIME_CONFIG, if there is one
    environ : environment, of which only LLM_RUNTIME_* is looked at
    overrides : dotted name (`queue.order`, `backends.NAME.url`) to value; text is read as in the environment
    """
    tree = _Tree()
    ours = {name: value for name, value in (environ or {}).items() if name.startswith(PREFIX)}
    path = path or ours.get(PREFIX + FILE_VARIABLE) or None
    if path is not None:
        _from_file(tree, Path(path))
    _from_environment(tree, ours)
    _from_flags(tree, overrides or {})
    return Loaded(tree.settings(), tree.origins)


def load_settings(path: Path | str | None = None, environ: Mapping[str, str] | None = None, overrides: Mapping[str, object] | None = None) -> Settings:  # fmt: skip
    """Settings alone; see `load`."""
    return load(path, environ, overrides).settings


def _from_file(tree: _Tree, path: Path) -> None:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(str(path), "no such file", allowed="a TOML file with settings") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"is no TOML: {error}") from None
    for name, value in table.items():
        if name in LISTS:
            if not isinstance(value, list) or not all(isinstance(member, dict) for member in value):
                raise ConfigError(name, "is no list of tables", allowed=f"[[{name}]]")
            for member in value:
                _member_from_file(tree, name, member, str(path))
        elif name in SECTIONS:
            if not isinstance(value, dict):
                raise ConfigError(name, "is no table", allowed=f"[{name}]")
            for leaf, content in value.items():
                tree.put(f"{name}.{leaf}", content, str(path), strict=True)
        else:
            tree.put(name, value, str(path), strict=True)


def _member_from_file(tree: _Tree, what: str, member: dict[str, Any], origin: str) -> None:
    name = member.get("name", defaults(LISTS[what]).get("name"))
    if name is None:
        raise ConfigError(f"{what}.name", "is missing", allowed=f'name = "..." in each [[{what}]]')
    name = fit(f"{what}.name", hints(LISTS[what])["name"], name, strict=True)
    if name in tree.members[what]:
        raise ConfigError(f"{what}.{name}", "there are two of this name", allowed="each name once")
    tree.members[what].append(name)
    for leaf, content in member.items():
        tree.put(f"{what}.{name}.{leaf}", content, origin, strict=True)


def _from_environment(tree: _Tree, ours: Mapping[str, str]) -> None:
    known = _variables()
    came: dict[str, str] = {}
    for variable, value in sorted(ours.items(), key=lambda pair: (pair[0] != PREFIX + "BACKEND", pair[0])):
        short = variable.removeprefix(PREFIX)
        if short == FILE_VARIABLE:
            continue
        if short in CLEAR_KEYS:
            _clear_key(tree, variable, value)
            continue
        if short not in known:
            raise unknown("", variable, (PREFIX + name for name in (*known, *CLEAR_KEYS, FILE_VARIABLE)))
        name = known[short]
        if name in came:
            raise ConfigError(variable, f"and {came[name]} set the same", allowed="one of them")
        came[name] = variable
        if "*" in name:
            name = name.replace("*", tree.only_backend(variable))
        tree.put(name, value, f"environment {variable}", strict=False)


def _variables() -> dict[str, str]:
    """Name of each variable, without its prefix, to the setting it stands for."""
    known = {"ROUTING": "routing", **VARIABLES}
    for what, kind in SECTIONS.items():
        known |= {f"{what}_{leaf}".upper(): f"{what}.{leaf}" for leaf in hints(kind)}
    return known | {f"BACKEND_{leaf}".upper(): f"backends.*.{leaf}" for leaf in hints(BackendSettings) if leaf != "name"}  # fmt: skip


def _clear_key(tree: _Tree, variable: str, value: str) -> None:
    name, admin = CLEAR_KEYS[variable.removeprefix(PREFIX)]
    if len(value) < _LEAST_KEY:
        raise ConfigError(variable, "is too short to be a key", allowed=f"{_LEAST_KEY} characters or more")
    if name in tree.members["keys"]:
        raise ConfigError(variable, f"there is a key '{name}' already", allowed="one of the two")
    tree.members["keys"].append(name)
    origin = f"environment {variable}"
    tree.put(f"keys.{name}.sha256", hashlib.sha256(value.encode()).hexdigest(), origin, strict=True)
    tree.put(f"keys.{name}.admin", admin, origin, strict=True)


def _from_flags(tree: _Tree, overrides: Mapping[str, object]) -> None:
    for name in overrides:
        what, *rest = name.split(".")
        if what in MAKES and len(rest) == 2 and rest[1] == MAKES[what] and rest[0] not in tree.members[what]:
            tree.members[what].append(fit(f"{name} (name)", hints(LISTS[what])["name"], rest[0], strict=True))
    for name, value in overrides.items():
        tree.put(name, value, "flag", strict=not isinstance(value, str))


def _read(hint: Any, value: object) -> object:
    """Text of the environment or a flag as what its field may take: none, lists with commas, tables as a=1,b=2."""
    if not isinstance(value, str):
        return value
    if optional(hint) and value.strip().lower() in ("", "none", "null"):
        return None
    if "tuple" in str(hint):
        return [part.strip() for part in value.split(",") if part.strip()]
    if "dict" in str(hint):
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        return {name.strip(): _guess(content.strip()) for name, _, content in pairs}
    return value.strip()


def _guess(text: str) -> object:
    """A number, true, false or null where text is one in JSON, else the text."""
    try:
        found: object = msgspec.json.decode(text.encode())
    except msgspec.DecodeError:
        return text
    return found


def _with_origin(error: ConfigError, origin: str) -> ConfigError:
    told = ConfigError(error.field, str(error).removeprefix(f"{error.field}: ") + f" ({origin})")
    told.allowed = error.allowed
    return told


# --- show -------------------------------------------------------------------------------------------------------------


def show(loaded: Loaded) -> list[Shown]:
    """Every setting in force, where it came from, and what it means; secrets are hidden."""
    return [
        Shown(name, _text(hidden(name, value)), loaded.origins.get(name, "default"), meanings(kind)[leaf])
        for name, leaf, kind, value in leaves(loaded.settings)
    ]


def leaves(settings: Settings) -> Iterator[tuple[str, str, type[Section], Any]]:
    """(dotted name, field, struct, value) of every setting that is no struct itself."""
    yield "routing", "routing", Settings, settings.routing
    parts: Iterable[Section] = (
        part for what in (*SECTIONS, *LISTS) for part in (getattr(settings, what) if what in LISTS else [getattr(settings, what)])
    )  # fmt: skip
    for part in parts:
        for leaf in hints(type(part)):
            yield f"{part.path()}.{leaf}", leaf, type(part), getattr(part, leaf)


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "(empty)"
    if isinstance(value, dict):
        return ", ".join(f"{name}={content}" for name, content in value.items()) or "(empty)"
    return str(value).lower() if isinstance(value, bool) else str(value) or "(empty)"
