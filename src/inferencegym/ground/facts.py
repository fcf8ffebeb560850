"""Facts about GPUs and models, each with its source; add your own with `load_facts(path)`. Bytes, bytes/s, FLOP/s.

Parameter counts and KV bytes follow from the architecture's constants; tests hold them to what the publishers say.
"""

from __future__ import annotations

import tomllib
from dataclasses import MISSING, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from inferencegym.ground.errors import ConfigError, InputError
from inferencegym.ground.registry import Registry

#: Bytes a parameter takes in each weight format; 4-bit ones with their scales (engine reference: 0.53 to 0.56).
WEIGHT_BYTES = {"bf16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.55, "nvfp4": 0.5625}
KV_BYTES = {"bf16": 2.0, "fp8": 1.0}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator: dense peaks, one-way link speeds."""

    name: str
    memory_bytes: float
    hbm_bytes_per_s: float
    bf16_flops: float
    pcie_bytes_per_s: float
    source: str
    fp8_flops: float | None = None
    int8_ops: float | None = None
    fp4_flops: float | None = None
    link_bytes_per_s: float | None = None
    """Between GPUs of one host; None: PCIe only, so communication must be measured."""
    price_per_hour_usd: float | None = None
    title: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """One model's constants. MoE: `experts` > 0; MLA: `mla_latent` > 0."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    max_context: int
    source: str
    tied: bool = False
    """Whether the output layer shares the embedding's weights."""
    experts: int = 0
    experts_active: int = 0
    shared_experts: int = 0
    expert_ffn: int = 0
    dense_layers: int = 0
    """MoE: leading layers with a dense feed-forward."""
    mla_latent: int = 0
    """MLA: numbers cached a token and layer (latent and rope)."""
    mla_query_rank: int = 0
    mla_rope: int = 0
    window: int = 0
    """Sliding window, tokens, of `window_layers` of the layers."""
    window_layers: int = 0
    published_params: float = 0.0

    @property
    def attention_params(self) -> float:
        """Parameters of one layer's projections."""
        h, a, g, d = self.hidden, self.heads, self.kv_heads, self.head_dim
        if self.mla_latent:
            latent = self.mla_latent - self.mla_rope
            query = h * self.mla_query_rank + self.mla_query_rank * a * (d + self.mla_rope)
            return float(query + h * self.mla_latent + latent * a * 2 * d + a * d * h)
        return float(h * d * (a + 2 * g) + a * d * h)

    @property
    def moe_layers(self) -> int:
        """Layers with experts."""
        return self.layers - self.dense_layers if self.experts else 0

    @property
    def dense_ffn_params(self) -> float:
        """Parameters of all dense feed-forwards, and of shared experts and routers, which every token uses."""
        dense = (self.layers - self.moe_layers) * 3 * self.hidden * self.ffn
        shared = 3 * self.hidden * self.expert_ffn * self.shared_experts + self.hidden * self.experts
        return float(dense + self.moe_layers * shared)

    @property
    def expert_params(self) -> float:
        """Parameters of one routed expert."""
        return 3.0 * self.hidden * self.expert_ffn

    @property
    def head_params(self) -> float:
        """Parameters of the output layer."""
        return float(self.hidden * self.vocab)

    def params(self) -> float:
        """All parameters (norms and biases left out)."""
        embedding = self.head_params * (1 if self.tied else 2)
        routed = self.moe_layers * self.experts * self.expert_params
        return self.layers * self.attention_params + self.dense_ffn_params + routed + embedding

    def weight_bytes(self, weight_format: str) -> float:
        """Bytes of all weights; embedding and output layer stay in bf16, as the usual quantised checkpoints have it."""
        per_param = _known("weight_format", WEIGHT_BYTES, weight_format)
        edges = self.head_params * (1 if self.tied else 2)
        return (self.params() - edges) * per_param + edges * WEIGHT_BYTES["bf16"]

    def kv_numbers_per_token(self, tensor_parallel: int = 1) -> float:
        """Cached numbers a token on one GPU, all layers: heads are shared out (one a GPU at least), a latent is not."""
        if self.mla_latent:
            return float(self.layers * self.mla_latent)
        return self.layers * 2.0 * max(self.kv_heads / tensor_parallel, 1.0) * self.head_dim

    def kv_bytes_per_token(self, kv_format: str = "bf16", tensor_parallel: int = 1) -> float:
        """KV bytes a token on one GPU. Windowed layers count in full, as without vLLM's hybrid manager."""
        return self.kv_numbers_per_token(tensor_parallel) * _known("kv_format", KV_BYTES, kv_format)


def _known(field: str, table: dict[str, float], name: str) -> float:
    if name not in table:
        raise ConfigError(field, f"'{name}' is not known", allowed=", ".join(table))
    return table[name]


_GPUS: Registry[Gpu] = Registry("gpu")
_MODELS: Registry[Model] = Registry("model")
Fact = TypeVar("Fact", Gpu, Model)


def gpu(name: str) -> Gpu:
    """A GPU by name; UnknownNameError lists the known ones."""
    return _GPUS.get(name.lower())


def model(name: str) -> Model:
    """A model by name; UnknownNameError lists the known ones."""
    return _MODELS.get(name.lower())


def gpus() -> list[str]:
    """Names of all known GPUs."""
    return list(_GPUS.names())


def models() -> list[str]:
    """Names of all known models."""
    return list(_MODELS.names())


def load_facts(path: str | Path) -> list[str]:
    """Add the GPUs (`[gpu.NAME]`) and models (`[model.NAME]`) of a TOML file; returns their names.

    A table has the fields of `Gpu` or `Model`, `source` among them. InputError names the file, the table and the field.
    All or nothing: no fact is added if one is wrong. A file may be loaded again; a name that is taken is an error.
    """
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"is not TOML: {error}", file=path) from None
    unknown = set(tables) - {"gpu", "model"}
    if unknown or not tables:
        raise InputError(f"has tables {sorted(unknown)}; only [gpu.NAME] and [model.NAME] are read", file=path)
    cards = _named(Gpu, tables.get("gpu", {}), str(path))
    nets = _named(Model, tables.get("model", {}), str(path))
    _check_free(_GPUS, cards, str(path))
    _check_free(_MODELS, nets, str(path))
    _register(_GPUS, cards)
    _register(_MODELS, nets)
    return [card.name for card, _ in cards] + [net.name for net, _ in nets]


def _named(kind: type[Fact], tables: Any, file: str) -> list[tuple[Fact, list[str]]]:
    if not isinstance(tables, dict):
        raise InputError(f"{kind.__name__.lower()} must be tables such as [{kind.__name__.lower()}.NAME]", file=file)
    return [_build(kind, key, table, file) for key, table in tables.items()]


def _check_free(registry: Registry[Fact], found: list[tuple[Fact, list[str]]], file: str) -> None:
    taken: set[str] = set()
    for fact, aliases in found:
        if fact.name in registry and registry.get(fact.name) == fact:
            continue
        names = [fact.name]
        names.extend(aliases)
        for name in names:
            if name in registry or name.lower() in taken:
                raise InputError(f"the {registry.kind} name '{name}' is already taken; choose another", file=file)
            taken.add(name.lower())


def _register(registry: Registry[Fact], found: list[tuple[Fact, list[str]]]) -> None:
    for fact, aliases in found:
        if fact.name not in registry:
            registry.register(fact.name, fact, *aliases)


def _build(kind: type[Fact], key: str, table: Any, file: str) -> tuple[Fact, list[str]]:
    if not isinstance(table, dict):
        raise InputError(f"[{key}] is not a table", file=file)
    values: dict[str, Any] = {"name": key} | table
    aliases: list[str] = values.pop("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise InputError(f"[{key}] aliases is not a list of names", file=file, column="aliases")
    known = {field.name: field for field in fields(kind)}
    for name, value in values.items():
        if name not in known:
            raise InputError(f"[{key}] has no field '{name}'; known: {', '.join(known)}", file=file, column=name)
        _check(known[name].type, name, value, key, file)
    missing = [n for n, f in known.items() if f.default is MISSING and n not in values]
    if missing:
        raise InputError(f"[{key}] lacks {', '.join(missing)}", file=file, column=missing[0])
    fact = kind(**values)
    problem = _contradiction(fact)
    if problem:
        raise InputError(f"[{key}] {problem}", file=file)
    return fact, aliases


#: Fields that may be 0: absent parts of a model.
_MAY_BE_ZERO = (
    "ffn", "experts", "experts_active", "shared_experts", "expert_ffn", "dense_layers", "mla_latent",
    "mla_query_rank", "mla_rope",
    "window", "window_layers", "published_params",
)  # fmt: skip


def _check(type_: Any, name: str, value: Any, key: str, file: str) -> None:
    wanted = str(type_)
    if wanted == "str":
        good = isinstance(value, str) and (name not in ("name", "source") or value.strip() != "")
    elif wanted == "bool":
        good = isinstance(value, bool)
    elif isinstance(value, bool) or not isinstance(value, int | float):
        good = False
    else:
        good = 0 <= value < float("inf") and (value > 0 or name in _MAY_BE_ZERO)
        good = good and (wanted != "int" or isinstance(value, int))
    if not good:
        kind = {"str": "a text", "bool": "true or false", "int": "a whole number"}.get(wanted, "a number")
        above = "" if wanted in ("str", "bool") else ", 0 or more" if name in _MAY_BE_ZERO else " above 0"
        raise InputError(f"[{key}] {name} is {value!r}; wanted: {kind}{above}", file=file, column=name)


def _contradiction(fact: Gpu | Model) -> str | None:
    """What cannot be true of a model as a whole."""
    if isinstance(fact, Gpu):
        return None
    if fact.heads % fact.kv_heads:
        return f"heads = {fact.heads} is no multiple of kv_heads = {fact.kv_heads}"
    if fact.experts and not (0 < fact.experts_active <= fact.experts and fact.expert_ffn):
        return f"experts = {fact.experts} needs experts_active of 1..{fact.experts} and expert_ffn"
    if not fact.ffn and (fact.dense_layers or not fact.experts):
        return "ffn is 0, yet it has dense layers"
    if max(fact.dense_layers, fact.window_layers) > fact.layers:
        return f"dense_layers and window_layers are at most layers = {fact.layers}"
    if bool(fact.window) != bool(fact.window_layers):
        return "window and window_layers go together"
    if fact.mla_latent and not (fact.mla_query_rank and 0 < fact.mla_rope < fact.mla_latent):
        return "mla_latent needs mla_query_rank, and mla_rope smaller than itself"
    return None


def _shipped(kind: type[Fact], file: str) -> list[tuple[Fact, list[str]]]:
    path = files("inferencegym.ground") / "data" / file
    return _named(kind, tomllib.loads(path.read_text(encoding="utf-8")), file)


_register(_GPUS, _shipped(Gpu, "gpus.toml"))
_register(_MODELS, _shipped(Model, "models.toml"))
