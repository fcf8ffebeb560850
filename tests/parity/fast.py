"""A parity case run by the package's engine, its answer put into the naive engine's words (whole picoseconds)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from inferencegym.engine.codes import Router
from inferencegym.engine.engine import Engine
from inferencegym.engine.latency import StepTimes
from inferencegym.engine.machine import Machine
from inferencegym.engine.settings import EngineSettings
from inferencegym.metrics.record import Records
from inferencegym.workload import Workload
from tests.parity.cases import Case, Chunk
from tests.reference.plain import Config, NaiveResult, Record, Times

TOTALS = (
    "arrived", "steps", "busy_ps", "emitted_tokens", "prefill_tokens", "hit_tokens", "preemptions", "swaps",
    "swapped_blocks", "evicted_blocks", "drafted", "accepted", "finished", "refused",
)  # fmt: skip


def run_fast(case: Case, *, leaps: bool = True) -> NaiveResult:
    """Run a case, with its changes of settings, from start to end."""
    engine = build(case)
    config, parts = case.config, []
    for t_ps, name, value in case.changes:
        if t_ps > 0:
            parts.append(engine.run_ps(t_ps - 1, leaps=leaps))
        config = replace(config, **{name: value})
        engine.change(**setting_of(name, config, case.config))
    parts.append(engine.run(leaps=leaps))
    return answer(engine, parts)


def answer(engine: Engine, parts: list[Records]) -> NaiveResult:
    """What the engine said, in plain data."""
    itl, totals = engine.itl(), engine.totals()
    result = NaiveResult(itl_counts=itl.counts.tolist(), itl_sum_ps=itl.sum_ps, steps=totals["steps"])
    result.totals.update({name: totals[name] for name in TOTALS})
    for part in parts:
        result.records += _plain(part)
    return result


def build(case: Case) -> Engine:
    """An engine that stands before the case's first event."""
    config = case.config
    workload, settings = workload_of(case), settings_of(config)
    machine = Machine(
        times=step_times(case.times),
        kv_blocks=config.blocks,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        block_size=config.block_size,
        cpu_blocks=config.cpu_blocks,
        replicas=config.replicas,
        prefill_replicas=config.prefill_replicas,
        router=Router[config.router.upper()],
        affinity_slack=config.affinity_slack,
    )
    objectives_s = [ps / 1e12 for ps in sorted({q.slo_ttft_ps for q in case.requests})]
    return Engine(workload, machine, settings, seed=config.seed, slo_ttft_s=objectives_s)


def workload_of(case: Case) -> Workload:
    """The requests as a workload; every distinct TTFT objective is an SLO class."""
    requests = case.requests
    classes = sorted({q.slo_ttft_ps for q in requests})
    return Workload.of(
        arrival_s=np.array([q.arrival_ps for q in requests]) / 1e12,
        prompt_tokens=np.array([q.prompt for q in requests], np.int32),
        output_tokens=np.array([q.target for q in requests], np.int32),
        output_budget_tokens=np.array([q.budget for q in requests], np.int32),
        priority=np.array([q.priority for q in requests], np.int16),
        tenant=np.array([q.tenant for q in requests], np.int32),
        tenant_names=tuple(f"tenant {i}" for i in range(max(q.tenant for q in requests) + 1)),
        slo_class=np.array([classes.index(q.slo_ttft_ps) for q in requests], np.int16),
        slo_class_names=tuple(f"class {i}" for i in range(len(classes))),
        after=np.array([q.after for q in requests], np.int32),
        think_s=np.array([q.think_ps for q in requests]) / 1e12,
        prefix_offsets=np.cumsum([0, *(len(q.keys) for q in requests)], dtype=np.int64),
        prefix_ids=np.array([key for q in requests for key in q.keys], np.int64),
        prefix_block_tokens=case.config.block_size if any(q.keys for q in requests) else 0,
    )


def settings_of(config: Config) -> EngineSettings:
    """The settings that say the same."""
    return EngineSettings(
        scheduler=config.scheduler,
        order=config.order,
        victims=config.victims,
        preemption=config.preemption,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=config.max_model_len,
        chunked_prefill=config.chunked_prefill,
        long_prefill_token_threshold=config.long_prefill_token_threshold,
        reserve_full_isl=config.reserve_full_isl,
        watermark=config.watermark,
        prefix_caching=config.prefix_caching,
        speculation_depth=config.speculation_depth,
        acceptance=config.acceptance[0],
        aging_s=config.aging_ps / 1e12,
        vtc_weights=tuple(1024 / cost for cost in config.vtc_in),
    )


def step_times(times: Times) -> StepTimes:
    """The same tables as arrays."""
    assert isinstance(times.chunk, Chunk)
    scalars = (
        times.kv_ps, times.pre_ps, times.swap_ps_per_block, times.swap_fixed_ps, times.link_ps_per_token,
        times.link_fixed_ps, times.layers, 0,
    )  # fmt: skip
    return StepTimes(
        *(np.array(t, np.int64) for t in (times.lin_ps, times.head_ps, times.dec_ps, times.draft_ps)),
        scalars=np.array(scalars, np.int64),
        chunk=np.array(times.chunk.coefficients, np.float64),
    )


def setting_of(name: str, config: Config, start: Config) -> dict[str, object]:
    """A change in the package's words: the pool is a share of what the machine has."""
    if name == "blocks":
        return {"kv_budget_fraction": min(1.0, (config.blocks + 0.5) / start.blocks)}
    return {name: getattr(config, name)}


def _plain(records: Records) -> list[Record]:
    columns = (
        records.row.tolist(), records.replica.tolist(), _ps(records.arrival_s), _ps(records.scheduled_s),
        _ps(records.first_token_s), _ps(records.finish_s), records.output_tokens.tolist(),
        records.cached_tokens.tolist(), records.preemptions.tolist(), records.swaps.tolist(), records.outcome.tolist(),
    )  # fmt: skip
    return [Record(*values) for values in zip(*columns, strict=True)]


def _ps(seconds: np.ndarray) -> list[int]:
    """Exact up to 2**50 ps (19 minutes), beyond which a float of seconds cannot tell picoseconds apart."""
    assert not len(seconds) or np.nanmax(seconds, initial=0.0) < 1000
    return [-1 if np.isnan(s) else round(s * 1e12) for s in seconds.tolist()]
