"""Other weights or another split under way: nobody is lost, nothing is free, and afterwards it is the machine that was asked for."""

from __future__ import annotations

import numpy as np
import pytest

from inferencegym import Workload
from inferencegym.decision.snapshot import NAMES
from inferencegym.engine.codes import Ending
from inferencegym.engine.engine import Engine
from inferencegym.engine.fleet import Fleet, Plan, Steering
from inferencegym.engine.invariants import check_arena
from inferencegym.engine.window import TALLY
from inferencegym.ground.rng import stream
from inferencegym.metrics.itl import bin_edges_ps
from tests.engine import fleets
from tests.engine.fleets import (
    SECOND_PS,
    any_levers,
    core_of,
    crowd,
    drain,
    gap_counts,
    levers,
    live,
    ps,
    started,
    windows_of,
)


@pytest.mark.parametrize("seed", range(10))
def test_laws_hold_and_nobody_is_lost_under_all_six_knobs(seed: int) -> None:
    rng = stream(seed, "six knobs")
    swap = seed % 3 == 2
    of = fleets.plan(
        replicas=2 + seed % 2,
        kv_blocks=180,
        prefix_caching=seed % 2 == 0,
        preemption="swap" if swap else "recompute",
        cpu_kv_gib=0.25 if swap else 0.0,
    )
    workload = crowd(100 + seed, 300)
    fleet = started(of, workload)
    ended: list[np.ndarray] = []
    reloads = 0.0
    for window_ps in windows_of(rng, 24):
        fleet.want[:] = any_levers(rng, 1, share=0.25)
        fleet.step(window_ps)
        ended.append(fleet.records(0).copy())
        reloads += fleet.tally[0, TALLY.index("reloads")]
        assert check_arena(fleet.arena(0)) == []
        header, core = fleet.header(0)[0], core_of(fleet)
        here = int(core["waiting"].sum() + core["running"].sum() + header["wire_len"])
        assert header["arrived"] == (workload.arrival_s * 1e12 <= fleet.stands["until_ps"][0]).sum()
        assert header["arrived"] == here + sum(map(len, ended))
        assert np.isfinite(np.delete(fleet.seen[0], [i for i, name in enumerate(NAMES) if name in MAY_BE_NAN])).all()
    assert reloads >= 4
    ended += drain(fleet)
    records = np.concatenate(ended)
    assert sorted(records["row"].tolist()) == list(range(len(workload)))
    done = records["outcome"] == Ending.OK
    assert done.sum() > 100
    assert np.array_equal(records["output"][done], workload.output_tokens[records["row"][done]])
    assert (records["arrival_ps"] <= records["scheduled_ps"])[done].all()
    assert (records["scheduled_ps"] < records["first_ps"])[done].all()
    assert (records["first_ps"] <= records["finish_ps"])[done].all()
    # Gaps are counted once each, pauses and preemptions included: they fill first token to last exactly.
    got_some = records["first_ps"] >= 0
    if done[got_some].all():
        assert core_of(fleet)["gap_sum_ps"].sum() == (records["finish_ps"] - records["first_ps"])[done].sum()
        assert core_of(fleet)["gap_count"].sum() <= (records["output"] - 1)[done].sum()  # drafts come together
    core, last = core_of(fleet), live(fleet)
    assert len(last) == 0
    assert (core["blank"] + core["cached_free"] == core["pool_blocks"]).all()
    assert (core["cpu_free"] == of.machines[0].cpu_blocks).all()


MAY_BE_NAN = {
    "mean_prompt_length", "p50_ttft_ms", "p99_ttft_ms", "p50_itl_ms", "p99_itl_ms", "estimated_cost_per_1k",
    "spec_acceptance_rate", "mean_output_length",
}  # fmt: skip


@pytest.mark.parametrize("knob", [{"quantization_tier": "INT8"}, {"prefill_decode_split": True}])
def test_a_restart_computes_nothing_for_its_pause_and_forgets_only_kv(knob: dict[str, object]) -> None:
    of, workload = fleets.plan(kv_blocks=2000), crowd(5)
    fleet = started(of, workload)
    fleet.step(2 * SECOND_PS)
    before = {int(slot["row"]): slot.copy() for slot in live(fleet)}
    running = int(core_of(fleet)["running"].sum())
    totals = {
        name: int(core_of(fleet)[name].sum()) for name in ("emitted_tokens", "gap_count", "preemptions", "busy_ps")
    }
    assert running > 5
    target = levers(**knob)
    pause_ps = int(of.pause_ps[0, 2 * int(target[3]) + int(target[4])])
    assert pause_ps > 200_000_000_000
    fleet.want[:] = target
    fleet.step(pause_ps - 1)
    assert fleet.tally[0, TALLY.index("emitted_tokens")] == 0
    assert fleet.tally[0, TALLY.index("reloads")] == 1
    assert fleet.tally[0, TALLY.index("preemptions")] == running
    assert len(fleet.records(0)) == (fleet.records(0)["outcome"] == Ending.REFUSED_LENGTH).sum()
    assert fleet.seen[0, NAMES.index("kv_cache_occupancy")] == 0
    assert fleet.seen[0, NAMES.index("active_requests")] == 0
    assert fleet.seen[0, NAMES.index("pause_left_s")] == pytest.approx(1e-12)
    assert int(core_of(fleet)["busy_ps"].sum()) == totals["busy_ps"]
    after = {int(slot["row"]): slot.copy() for slot in live(fleet)}
    assert set(before) <= set(after)
    emitted_in_flight = totals["emitted_tokens"] - sum(int(slot["generated"]) for slot in after.values())
    assert emitted_in_flight == sum(workload.output_tokens[r] for r in finished_rows(workload, after, fleet))
    for row, slot in before.items():
        # Tokens that were emitted stay emitted, and times stay what they were.
        assert after[row]["generated"] >= slot["generated"]
        for name in ("arrival_ps", "scheduled_ps", "first_ps", "cached"):
            assert after[row][name] == slot[name]
        assert after[row]["computed"] == 0
        assert after[row]["blocks"] == 0
    fleet.want[:] = np.nan
    fleet.step(SECOND_PS)
    assert fleet.tally[0, TALLY.index("emitted_tokens")] > 0
    records = np.concatenate([fleet.records(0).copy(), *drain(fleet)])
    of_before = {int(record["row"]): record for record in records}
    for row, slot in before.items():
        if slot["first_ps"] >= 0:
            assert of_before[row]["first_ps"] == slot["first_ps"]
        assert of_before[row]["output"] == workload.output_tokens[row]
        if slot["state"] == 2:
            assert of_before[row]["preemptions"] >= 1
    # Whoever had a token before the pause has a gap as long as the pause.
    spans = np.array(
        [of_before[row]["finish_ps"] - slot["first_ps"] for row, slot in before.items() if slot["first_ps"] >= 0]
    )
    assert (spans > pause_ps).all()
    _, upper = bin_edges_ps()
    assert gap_counts(fleet)[upper > pause_ps].sum() >= (np.array([s["generated"] for s in before.values()]) > 0).sum()


def finished_rows(workload: Workload, alive: dict[int, np.ndarray], fleet: Fleet) -> list[int]:
    """Rows that arrived, were short enough and have ended."""
    arrived = np.flatnonzero(workload.arrival_s * 1e12 <= fleet.stands["until_ps"][0]).tolist()
    longest = fleet.plan.settings.max_model_len or 0
    return [row for row in arrived if row not in alive and workload.prompt_tokens[row] < longest]


def all_at(moment_ps: int, workload: Workload, generated: np.ndarray | int = 0) -> Workload:
    """The same requests, all arriving at one moment, with some of their answer in the prompt already."""
    return Workload.of(
        arrival_s=np.full(len(workload), moment_ps / 1e12),
        prompt_tokens=workload.prompt_tokens + generated,
        output_tokens=workload.output_tokens - generated,
    )


def plain_burst(n: int = 60) -> Workload:
    """Requests within a tenth of a second, none too long, no prefixes."""
    rng = stream(n, "burst")
    return Workload.of(
        arrival_s=np.sort(rng.random(n) / 10),
        prompt_tokens=rng.integers(20, 600, n),
        output_tokens=rng.integers(5, 120, n),
    )


@pytest.mark.parametrize("tier", ["FP16", "INT8", "INT4"])
@pytest.mark.parametrize("split", [False, True])
def test_after_the_pause_it_is_the_machine_that_was_asked_for(tier: str, split: bool) -> None:
    of, workload = fleets.plan(kv_blocks=900, prefix_caching=False), plain_burst()
    target = levers(quantization_tier=tier, prefill_decode_split=split)
    variant = 2 * int(target[3]) + int(target[4])
    fleet = started(of, workload, quantization_tier="INT8" if tier == "FP16" else "FP16")
    fleet.want[:] = target
    fleet.step(20 * SECOND_PS)
    records = fleet.records(0)
    ready_ps = int(of.pause_ps[2 if tier == "FP16" else 0, variant])
    fresh = Engine(all_at(ready_ps, workload), of.machines[variant], of.settings.with_(max_num_seqs=256)).run_ps(
        20 * SECOND_PS
    )
    assert len(records) == len(workload)
    assert records["row"].tolist() == fresh.row.tolist()
    assert records["finish_ps"].tolist() == ps(fresh.finish_s).tolist()
    assert records["first_ps"].tolist() == ps(fresh.first_token_s).tolist()


@pytest.mark.parametrize("tier", ["INT8", "INT4"])
def test_what_was_under_way_goes_on_as_longer_prompts_on_the_new_weights(tier: str) -> None:
    of, workload = fleets.plan(kv_blocks=900, prefix_caching=False), plain_burst()
    fleet = started(of, workload, batch_cap=16)
    now_ps = 550_000_000_000
    fleet.step(now_ps)
    before, alive = fleet.records(0).copy(), live(fleet)
    rows = np.sort(alive["row"])
    target = levers(quantization_tier=tier, batch_cap=16)
    ready_ps = now_ps + int(of.pause_ps[0, 2 * int(target[3])])
    fleet.want[:] = target
    fleet.step(ready_ps - now_ps - 1)
    slots = live(fleet)
    generated = slots["generated"][np.argsort(slots["row"])]
    assert 10 < (generated > 0).sum() < len(workload)
    assert len(rows) < len(workload)
    left = all_at(ready_ps, workload.take(np.isin(np.arange(len(workload)), rows)), generated)
    fresh = Engine(left, of.machines[2 * int(target[3])], of.settings.with_(max_num_seqs=16)).run_ps(30 * SECOND_PS)
    fleet.want[:] = np.nan
    fleet.step(30 * SECOND_PS)
    records = fleet.records(0)
    assert len(before) + len(records) == len(workload)
    assert records["row"].tolist() == rows[fresh.row].tolist()
    assert records["finish_ps"].tolist() == ps(fresh.finish_s).tolist()
    no_token = generated[np.searchsorted(rows, records["row"])] == 0
    assert no_token.any()
    assert records["first_ps"][no_token].tolist() == ps(fresh.first_token_s)[no_token].tolist()


def test_pauses_are_what_loading_takes() -> None:
    steering = Steering(restart_s=1.0, split_s=0.25, resident=("INT8", "INT4"))
    of = fleets.plan(kv_blocks=None, steering=steering, max_model_len=16384)
    pause_s = of.pause_ps / 1e12
    facts, card = of.deployment.model_facts, of.deployment.gpu_facts
    fp16, int8, int4 = 0, 2, 4
    assert (np.diag(pause_s) == 0).all()
    assert pause_s[int8, fp16] == pytest.approx(1.0 + facts.weight_bytes("bf16") / (0.8 * card.pcie_bytes_per_s))
    assert pause_s[fp16, int4] == pytest.approx(1.0 + facts.weight_bytes("int4") / (0.8 * card.pcie_bytes_per_s))
    assert pause_s[int8, int4] == pause_s[int4, int8] == 0
    assert pause_s[int8, int8 + 1] == pause_s[fp16 + 1, fp16] == pause_s[int8, int4 + 1] == 0.25
    assert pause_s[fp16, int4] < pause_s[int8, fp16]
    # Two formats in memory at once leave less of it for KV than the larger one alone.
    alone = fleets.plan(kv_blocks=None, max_model_len=16384)
    blocks, whole = of.variants["kv_blocks"], alone.variants["kv_blocks"]
    spent = facts.weight_bytes("int4") / of.deployment.kv_block_bytes()
    assert blocks[fp16] == whole[fp16]
    assert whole[int8] - blocks[int8] == pytest.approx(spent, abs=1)
    assert blocks[int8] == pytest.approx(blocks[int4], abs=1)
    assert of.variants["weights_gb"][int8] == pytest.approx(
        2 * (facts.weight_bytes("int8") + facts.weight_bytes("int4")) / 1e9
    )


@pytest.mark.parametrize("resident", [(), ("FP16", "INT8")])
def test_there_and_back_is_never_free(resident: tuple[str, ...]) -> None:
    of = fleets.plan(kv_blocks=1500, steering=Steering(restart_s=0.4, split_s=0.3, resident=resident))
    workload = crowd(9, 2000, rate_rps=200.0)
    still, flips = started(of, workload), started(of, workload)
    emitted, wasted = np.zeros(2), 0.0
    for k in range(8):
        flips.want[:] = levers(quantization_tier="INT8" if k == 2 else "FP16")
        for i, fleet in enumerate((still, flips)):
            fleet.step(SECOND_PS)
            emitted[i] += fleet.tally[0, TALLY.index("emitted_tokens")]
        wasted += flips.tally[0, TALLY.index("preemptions")]
        # Not even while the faster weights are in: what is lost is never made up by them within the excursion.
        assert k < 3 or emitted[1] < emitted[0]
    assert wasted > 20
    assert still.stands["finished"][0] > flips.stands["finished"][0]


def test_a_reload_interrupted_by_another_begins_again_and_one_that_never_ends_computes_nothing() -> None:
    of, workload = fleets.plan(), crowd(2)
    fleet = started(of, workload)
    fleet.step(SECOND_PS)
    pause_left = NAMES.index("pause_left_s")
    tenth_ps = SECOND_PS // 10
    for k in range(12):
        tier = "INT8" if k % 2 == 0 else "FP16"
        fleet.want[:] = levers(quantization_tier=tier)
        fleet.step(tenth_ps)
        full_s = of.pause_ps[0, 2] if tier == "INT8" else of.pause_ps[2, 0]
        assert fleet.seen[0, pause_left] >= full_s / 1e12 - 0.1 - 1e-9
        assert fleet.tally[0, TALLY.index("emitted_tokens")] == 0
        assert check_arena(fleet.arena(0)) == []
    # Changing the split, which is quick, does not shorten a reload of weights.
    before_s = fleet.seen[0, pause_left]
    fleet.want[:] = levers(prefill_decode_split=True)
    fleet.step(tenth_ps)
    assert fleet.seen[0, pause_left] >= before_s - 0.1 - 1e-9
    drain(fleet)


def test_prompts_that_only_the_smaller_weights_leave_room_for_are_served_whole_after_the_reload() -> None:
    deployment = fleets.plan().deployment.with_(gpu="rtx-4090", replicas=1, kv_blocks=None)
    settings = fleets.plan().settings.with_(chunked_prefill=False, max_model_len=60_000)
    of = Plan(deployment, settings, Steering())
    assert of.variants["kv_blocks"][0] * 16 < 50_000 < of.variants["kv_blocks"][4] * 16
    workload = Workload.of(arrival_s=[0.5, 0.6], prompt_tokens=[50_000, 100], output_tokens=[5, 5])
    fleet = started(of, workload)
    fleet.want[:] = levers(quantization_tier="INT4")
    fleet.step(60 * SECOND_PS)
    assert fleet.records(0)["outcome"].tolist() == [Ending.OK, Ending.OK]
    fp16 = started(of, workload)
    fp16.step(60 * SECOND_PS)
    assert sorted(fp16.records(0)["outcome"].tolist()) == [Ending.OK, Ending.NEVER_FITS]
