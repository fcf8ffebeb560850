"""Limits that are configured but could never be in force: each is an error, with what to change, instead of a silence."""

from __future__ import annotations

from collections.abc import Iterator

from inferencegym.ground.errors import ConfigError
from inferencegym.runtime.section import defaults
from inferencegym.runtime.settings import (
    BackendSettings,
    DispatchSettings,
    QueueSettings,
    RecorderSettings,
    ServiceClass,
    Settings,
)

_FAIR = ("wfq", "vtc")


def check_settings(settings: Settings) -> list[ConfigError]:
    """All such limits of these settings; empty if there is none."""
    found: list[ConfigError] = []
    for check in (_rates, _adaptive, _caps, _times, _orders, _classes, _seats, _workers, _recorder):
        found += check(settings)
    return found


def _rates(settings: Settings) -> Iterator[ConfigError]:
    limits = settings.admission
    if limits.burst is not None and limits.rate_rps is None:
        yield ConfigError("admission.burst", "has no rate to be a burst of", allowed="admission.rate_rps with it")
    for key in settings.keys:
        if key.burst is not None and key.rate_rps is None:
            yield ConfigError(f"keys.{key.name}.burst", "has no rate to be a burst of", allowed=f"keys.{key.name}.rate_rps with it")  # fmt: skip
        for field in ("rate_rps", "tokens_per_min"):
            mine, of_all = getattr(key, field), getattr(limits, field)
            if mine is not None and of_all is not None and mine > of_all:
                yield ConfigError(f"keys.{key.name}.{field}", f"{mine:g} is above admission.{field}, which holds first", allowed=f"at most {of_all:g}")  # fmt: skip


def _adaptive(settings: Settings) -> Iterator[ConfigError]:
    limits = settings.admission
    if limits.min_limit > limits.max_limit:
        yield ConfigError("admission.min_limit", f"{limits.min_limit} is above max_limit", allowed=f"at most {limits.max_limit}")  # fmt: skip
    usual = defaults(type(limits))
    for field in ("min_limit", "max_limit", "latency_slo_s"):
        if limits.adaptive == "off" and getattr(limits, field) != usual[field]:
            yield ConfigError(f"admission.{field}", "is not in force: admission.adaptive is off", allowed="adaptive = aimd or gradient")  # fmt: skip
    if limits.adaptive == "gradient" and limits.latency_slo_s is not None:
        yield ConfigError("admission.latency_slo_s", "is not in force: gradient sets its own", allowed="adaptive = aimd")  # fmt: skip


def _caps(settings: Settings) -> Iterator[ConfigError]:
    queue = settings.queue
    if queue.max_bytes < settings.server.max_body_bytes:
        yield ConfigError("server.max_body_bytes", "is above queue.max_bytes: the largest bodies could never wait", allowed=f"at most {queue.max_bytes}")  # fmt: skip
    for one in settings.classes:
        for field in ("max_requests", "max_prompt_tokens", "max_bytes"):
            mine, of_all = getattr(one, field), getattr(queue, field)
            if mine is not None and of_all is not None and mine > of_all:
                yield ConfigError(f"classes.{one.name}.{field}", f"{mine} is above queue.{field}, which holds first", allowed=f"at most {of_all}")  # fmt: skip


def _times(settings: Settings) -> Iterator[ConfigError]:
    queue, longest_s = settings.queue, settings.server.request_timeout_s
    if queue.ttl_s > longest_s and queue.ttl_s != defaults(QueueSettings)["ttl_s"]:
        yield ConfigError("queue.ttl_s", f"{queue.ttl_s:g} is above server.request_timeout_s, which holds first", allowed=f"at most {longest_s:g}")  # fmt: skip
    for one in settings.classes:
        if one.ttl_s is not None and one.ttl_s > queue.ttl_s:
            yield ConfigError(f"classes.{one.name}.ttl_s", f"{one.ttl_s:g} is above queue.ttl_s, which holds first", allowed=f"at most {queue.ttl_s:g}")  # fmt: skip


def _orders(settings: Settings) -> Iterator[ConfigError]:
    """What only some orders look at, changed from its default while another order is in force."""
    queue, usual = settings.queue, defaults(QueueSettings)
    needs = {
        "aging_s": ("aging",), "aging_levels": ("aging",), "sjf_tokens_per_s": ("sjf",), "quantum_tokens": ("wfq",), "weights": _FAIR,
        "input_cost": (*_FAIR, "sjf"), "output_cost": (*_FAIR, "sjf"),
    }  # fmt: skip
    for field, orders in needs.items():
        if queue.order not in orders and getattr(queue, field) != usual[field]:
            yield _not_in_order(f"queue.{field}", queue.order, orders)
    if queue.order not in _FAIR:
        weights = {f"{key.path()}.weight": key.weight for key in settings.keys}
        weights |= {f"{one.path()}.weight": one.weight for one in settings.classes}
        for field, weight in weights.items():
            if weight != 1.0:
                yield _not_in_order(field, queue.order, _FAIR)
    known = {key.name for key in settings.keys}
    for tenant in queue.weights:
        if known and tenant not in known:
            yield ConfigError(f"queue.weights.{tenant}", "there is no key of this name", allowed=", ".join(sorted(known)))  # fmt: skip


def _not_in_order(field: str, order: str, orders: tuple[str, ...]) -> ConfigError:
    return ConfigError(field, f"is not in force under queue.order = {order}", allowed=f"order = {' or '.join(orders)}")


def _classes(settings: Settings) -> Iterator[ConfigError]:
    known = [one.name for one in settings.classes]
    for key in settings.keys:
        if key.slo_class and key.slo_class not in known:
            yield ConfigError(f"keys.{key.name}.slo_class", f"there is no class '{key.slo_class}'", allowed=", ".join(known))  # fmt: skip
    if settings.queue.order == "edf" and all(one.ttft_slo_s == defaults(ServiceClass)["ttft_slo_s"] for one in settings.classes):  # fmt: skip
        yield ConfigError("queue.order", "edf has no deadlines to go by: no class has a ttft_slo_s", allowed="classes.NAME.ttft_slo_s, or another order")  # fmt: skip


def _seats(settings: Settings) -> Iterator[ConfigError]:
    for backend in settings.backends:
        own = _native(backend)
        for field, cap in (("dispatch.max_concurrency", settings.dispatch.max_concurrency), (f"{backend.path()}.max_concurrency", backend.max_concurrency)):  # fmt: skip
            holds = field.startswith("backends") or backend.max_concurrency is None
            if own is not None and cap is not None and cap > own and holds:
                yield ConfigError(field, f"{cap} is above what '{backend.name}' computes side by side, so the rest would wait there, in no order", allowed=f"at most {own}")  # fmt: skip
    dispatch, usual = settings.dispatch, defaults(DispatchSettings)
    for field in ("max_batch_size", "batch_timeout_ms"):
        if not dispatch.batching and getattr(dispatch, field) != usual[field]:
            yield ConfigError(f"dispatch.{field}", "is not in force: dispatch.batching is off", allowed="batching = true")  # fmt: skip


def _native(backend: BackendSettings) -> int | None:
    return backend.slots if backend.kind == "llama.cpp" else backend.max_num_seqs


def _workers(settings: Settings) -> Iterator[ConfigError]:
    if settings.server.workers == 1 or settings.shared.redis_url:
        return
    rates = [f"admission.{field}" for field in ("rate_rps", "tokens_per_min") if getattr(settings.admission, field) is not None]  # fmt: skip
    rates += [f"{key.path()}.{field}" for key in settings.keys for field in ("rate_rps", "tokens_per_min") if getattr(key, field) is not None]  # fmt: skip
    for field in rates:
        yield ConfigError(field, f"each of {settings.server.workers} workers would count for itself", allowed="shared.redis_url, or server.workers = 1")  # fmt: skip


def _recorder(settings: Settings) -> Iterator[ConfigError]:
    held, usual = settings.recorder, defaults(RecorderSettings)
    for field in ("rows_per_file", "rotate_s"):
        if not held.folder and getattr(held, field) != usual[field]:
            yield ConfigError(f"recorder.{field}", "is not in force: nothing is recorded", allowed="recorder.folder with it")  # fmt: skip
