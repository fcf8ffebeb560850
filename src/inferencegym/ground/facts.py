"""Facts about GPUs and models, each with its source; add your own with `load_facts(path)`. Bytes, bytes per second, FLOP per second.

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
        shared = self.moe_layers * (3 * self.hidden * self.expert_ffn * self.shared_experts + self.hidden * self.experts)
        return float(dense + shared)

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
        """Cached numbers a token on one GPU, all layers; heads are shared out among GPUs (never less than one), a latent is not."""
        if self.mla_latent:
            return float(self.layers * self.mla_latent)
        return self.layers * 2.0 * max(self.kv_heads / tensor_parallel, 1.0) * self.head_dim

    def kv_bytes_per_token(self, kv_format: str = "bf16", tensor_parallel: int = 1) -> float:
        """KV bytes a token on one GPU. Windowed layers are counted in full, as vLLM allocates them without its hybrid manager."""
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

    A table has the fields of `Gpu` or `Model`, `source` among them. InputError names the file, the table and the field that is wrong.
    """
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("no such file", file=path) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"is not TOML: {error}", file=path) from None
    unknown = set(tables) - {"gpu", "model"}
    if unknown:
        raise InputError(f"has tables {sorted(unknown)}; only [gpu.NAME] and [model.NAME] are read", file=path)
    new_gpus = [_build(Gpu, name, table, str(path)) for name, table in tables.get("gpu", {}).items()]
    new_models = [_build(Model, name, table, str(path)) for name, table in tables.get("model", {}).items()]
    for card, aliases in new_gpus:
        _GPUS.register(card.name, card, *aliases)
    for net, aliases in new_models:
        _MODELS.register(net.name, net, *aliases)
    return [card.name for card, _ in new_gpus] + [net.name for net, _ in new_models]


def _build(kind: type[Fact], key: str, table: Any, file: str) -> tuple[Fact, list[str]]:
    if not isinstance(table, dict):
        raise InputError(f"[{key}] is not a table", file=file)
    values = {"name": key} | table
    aliases = list(values.pop("aliases", []))
    known = {field.name: field for field in fields(kind)}
    for name, value in values.items():
        if name not in known:
            raise InputError(f"[{key}] has no field '{name}'; known: {', '.join(known)}", file=file, column=name)
        _check(known[name].type, name, value, key, file)
    missing = [n for n, f in known.items() if f.default is MISSING and n not in values]
    if missing:
        raise InputError(f"[{key}] lacks {', '.join(missing)}", file=file)
    return kind(**values), aliases


def _check(type_: Any, name: str, value: Any, key: str, file: str) -> None:
    wanted = str(type_)
    if wanted.startswith("str"):
        good = isinstance(value, str) and (name not in ("name", "source") or value.strip() != "")
    elif wanted == "bool":
        good = isinstance(value, bool)
    else:
        good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
        if wanted == "int":
            good = good and float(value).is_integer()
    if not good:
        raise InputError(f"[{key}] {name} = {value!r} is not a valid {wanted.split(' ')[0]}", file=file, column=name)


def _load_shipped() -> None:
    folder = files("inferencegym.ground") / "data"
    for kind, file, register in ((Gpu, "gpus.toml", _GPUS), (Model, "models.toml", _MODELS)):
        for key, table in tomllib.loads((folder / file).read_text(encoding="utf-8")).items():
            fact, aliases = _build(kind, key, table, file)  # type: ignore[type-var]
            register.register(fact.name, fact, *aliases)  # type: ignore[attr-defined]


_load_shipped()
