"""From the settings of backends to the pool of them: which class serves which kind, and which settings go where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from inferencegym.ground.errors import ConfigError
from inferencegym.runtime.backends.llamacpp import SLOT_TOKENS, SLOTS, LlamaCpp
from inferencegym.runtime.backends.openai import OpenAI
from inferencegym.runtime.backends.pool import Pool, Traits
from inferencegym.runtime.backends.vllm import Vllm
from inferencegym.runtime.ports import Backend
from inferencegym.runtime.settings import BackendSettings, Settings


def make_pool(settings: Settings, environ: Mapping[str, str], mock: Callable[[BackendSettings], Backend]) -> Pool:
    """All backends of the settings. `environ`: where keys are read from, and what started servers inherit; `mock` makes those of that kind."""
    backends = [make_backend(one, environ, mock) for one in settings.backends]
    traits = {one.name: Traits(one.weight, one.variant, one.pool, one.health_interval_s) for one in settings.backends}
    pool = Pool(backends, settings.routing, traits)
    for backend in backends:
        if isinstance(backend, LlamaCpp | Vllm):
            backend.on_change = _teller(pool, backend)
    return pool


def make_backend(
    one: BackendSettings, environ: Mapping[str, str], mock: Callable[[BackendSettings], Backend]
) -> Backend:
    """One backend. ConfigError if a setting that its kind needs is missing."""
    if one.kind == "mock":
        return mock(one)
    models = one.served_models or ((one.model,) if one.model else ())
    common: dict[str, Any] = {
        "url": one.url, "models": models, "model": one.model, "connect_timeout_s": one.connect_timeout_s,
        "read_timeout_s": one.silence_timeout_s, "api_key": _key(one, environ),
    }  # fmt: skip
    if one.kind == "openai":
        return OpenAI(one.name, **common)
    common |= {
        "adopt": one.adopt,
        "environ": dict(environ),
        "start_timeout_s": one.start_timeout_s,
        "command": one.command,
    }
    if one.kind == "llama.cpp":
        return LlamaCpp(
            one.name, model_path=one.model_path, slots=one.slots or SLOTS, ctx_tokens=one.ctx or SLOT_TOKENS, batch_tokens=one.batch,
            threads=one.threads, n_gpu_layers=one.n_gpu_layers, **common,
        )  # fmt: skip
    if not one.model and not one.adopt:
        if not one.model_path:
            raise ConfigError(
                f"backends.{one.name}.model", "vLLM is not told which model", allowed="a folder or a hub name"
            )
        common |= {"model": one.model_path, "models": models or (one.model_path,)}
    return Vllm(
        one.name, model_path=one.model_path, max_num_seqs=one.max_num_seqs, gpu_memory_utilization=one.gpu_memory_utilization,
        max_model_len=one.max_model_len, control_file=one.control_file, **common,
    )  # fmt: skip


def _key(one: BackendSettings, environ: Mapping[str, str]) -> str:
    if not one.api_key_env:
        return ""
    if not environ.get(one.api_key_env):
        raise ConfigError(
            f"backends.{one.name}.api_key_env",
            f"the environment has no {one.api_key_env}",
            allowed="a variable that is set",
        )
    return environ[one.api_key_env]


def _teller(pool: Pool, backend: Backend) -> Callable[[bool, str], None]:
    return lambda well, problem: pool.tell(backend, well, problem)
