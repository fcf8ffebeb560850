"""The engine's Python face: windows, settings that change while it runs, forks, errors that help."""

from __future__ import annotations

import numpy as np
import pytest

from inferencegym import Deployment, EngineSettings, Workload, simulate
from inferencegym.engine.engine import Engine
from inferencegym.ground.errors import ConfigError, InputError
from inferencegym.metrics.record import Outcome, concat


def workload(n: int = 200, rate_rps: float = 20.0, prompt: int = 500, output: int = 60) -> Workload:
    rng = np.random.default_rng(5)
    return Workload.of(
        arrival_s=np.cumsum(rng.exponential(1 / rate_rps, n)),
        prompt_tokens=rng.integers(1, 2 * prompt, n),
        output_tokens=rng.integers(1, 2 * output, n),
        priority=rng.integers(0, 3, n),
    )


def engine(settings: EngineSettings | None = None, **deployment: object) -> Engine:
    settings = settings or EngineSettings()
    return Engine(workload(), Deployment(**deployment).machine(settings), settings)  # type: ignore[arg-type]


def test_windows_hold_the_requests_that_ended_in_them() -> None:
    whole = engine().run()
    running, parts = engine(), []
    for second in range(1, 8):
        part = running.run(until_s=float(second))
        assert ((part.finish_s > second - 1) & (part.finish_s <= second)).all()
        parts.append(part)
    parts.append(running.run())
    together = concat(parts).sorted_by_row()
    assert np.array_equal(together.finish_s, whole.sorted_by_row().finish_s)


def test_a_smaller_batch_cap_takes_effect_and_loses_nobody() -> None:
    running = engine()
    running.run(until_s=2.0)
    running.change(max_num_seqs=2)
    running.run(until_s=6.0)
    assert running.gauges().running <= 2
    records = running.run()
    assert running.done
    assert (records.outcome == Outcome.OK).all()


def test_shrinking_the_pool_below_use_preempts_and_growing_it_again_serves_all() -> None:
    running = engine(kv_blocks=1200)
    running.run(until_s=3.0)
    used = running.gauges().kv_used_blocks
    running.change(kv_budget_fraction=max(0.01, used / 1200 / 3))
    running.run(steps=3)
    assert running.totals()["preemptions"] > 0
    assert running.gauges().kv_used_blocks <= running.gauges().kv_pool_blocks
    running.change(kv_budget_fraction=1.0)
    running.run()
    assert running.done


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scheduler": "orca"}, "cannot change while the engine runs"),
        ({"max_num_seq": 3}, "no such setting"),
        ({"max_num_seqs": 0}, "too small"),
        ({"order": "random"}, "fcfs, priority"),
        ({"kv_budget_fraction": 2.0}, "0.01..1"),
        ({"order": "priority", "max_num_batched_tokens": 10}, "cannot take a prompt"),
    ],
)
def test_a_change_that_cannot_be_is_refused_and_changes_nothing(change: dict[str, object], says: str) -> None:
    running = engine(EngineSettings(chunked_prefill=False, max_model_len=4096, max_num_seqs=2))
    running.run(until_s=1.0)
    assert running.gauges().waiting > 0
    before = running.arena.copy()
    with pytest.raises(ConfigError, match=says):
        running.change(**change)
    assert np.array_equal(before, running.arena)


def test_priorities_go_first_once_they_count() -> None:
    settings = EngineSettings(max_num_seqs=2)
    plain, ordered = engine(settings), engine(settings)
    ordered.change(order="priority")
    a, b = plain.run().sorted_by_row(), ordered.run().sorted_by_row()
    urgent = a.priority == 0
    assert b.ttft_s[urgent].mean() < 0.5 * a.ttft_s[urgent].mean()


def test_requests_that_failed_at_the_source_are_refused_with_advice() -> None:
    failed = Workload.of(arrival_s=[0.0, 1.0], prompt_tokens=[5, 5], output_tokens=[3, 0])
    with pytest.raises(InputError, match=r"row 2.*servable"):
        Engine(failed, Deployment().machine(EngineSettings()))
    good, left_out = failed.servable()
    assert left_out == 1
    assert len(simulate(good, timeline_points=0).records) == 1


def test_a_prompt_longer_than_the_context_is_refused_and_said() -> None:
    long = Workload.of(arrival_s=[0.0, 0.1], prompt_tokens=[5000, 50], output_tokens=[5, 5])
    result = simulate(long, settings=EngineSettings(max_model_len=4096))
    assert result.records.outcome.tolist() == [Outcome.REFUSED_LENGTH, Outcome.OK]
    assert result.summary().outcomes["refused_length"] == 1


def test_an_empty_workload_is_one_clear_error() -> None:
    empty = Workload.of(arrival_s=[], prompt_tokens=[], output_tokens=[])
    with pytest.raises(InputError, match="no requests"):
        simulate(empty)


def test_a_model_that_does_not_fit_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="tensor_parallel"):
        Deployment(model="llama-3.1-70b", gpu="rtx-4090").machine(EngineSettings())


def test_the_timeline_and_the_records_tell_one_story() -> None:
    result = simulate(workload(), timeline_points=50)
    bare = simulate(workload(), timeline_points=0)
    assert np.array_equal(result.records.finish_s, bare.records.finish_s)
    window_s = result.timeline["t_s"][1] - result.timeline["t_s"][0]
    seen = result.timeline["output_tps"].sum() * window_s
    assert seen == pytest.approx(result.records.output_tokens.sum(), rel=0.05)
    assert result.timeline["kv_used_fraction"].max() <= 1.0


def test_first_token_keeps_its_time_and_gaps_count_the_preemption() -> None:
    crowded = simulate(
        workload(rate_rps=100.0), Deployment(kv_blocks=400), EngineSettings(max_model_len=4000), timeline_points=0
    )
    hit = crowded.records.preemptions > 0
    assert hit.sum() >= 10
    assert crowded.itl.count == int(crowded.records.output_tokens.sum()) - len(crowded.records)
    spans = crowded.records.finish_s - crowded.records.first_token_s
    assert crowded.itl.sum_ps / 1e12 == pytest.approx(spans.sum(), rel=1e-9)
