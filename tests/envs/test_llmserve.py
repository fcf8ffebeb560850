"""LLMServe's batches and tasks: conserved, deterministic, and not to be gamed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from inferencegym.decision.knobs import GRID, LEVERS, Knobs
from inferencegym.engine.window import TALLY
from inferencegym.envs.catalogue import FOLDER, task
from inferencegym.envs.episode import record
from inferencegym.envs.forecast import dream
from inferencegym.envs.llmserve import ServeBatch
from inferencegym.envs.serve_planner import Clairvoyant, FarSighted, ModelPredictive, library, neighbours, values_of
from inferencegym.envs.serve_task import ServeTask
from inferencegym.envs.splits import scenario
from inferencegym.ground.errors import InputError
from inferencegym.ground.rng import stream


def brief(name: str, windows: int = 16, **changes: object) -> ServeTask:
    """A shipped task with fewer windows, so that a test is quick."""
    shipped = task(name)
    assert isinstance(shipped, ServeTask)
    return ServeTask(msgspec.structs.replace(shipped.file, windows=windows, **changes))


def draw(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.stack([rng.choice(np.array(values), n) for values in GRID.values()], axis=1)


def setting(**knobs: object) -> np.ndarray:
    found = Knobs(batch_cap=256, kv_budget_fraction=1.0, speculation_depth=2, quantization_tier="FP16", prefill_decode_split=False, priority_routing=True)  # fmt: skip
    levers = found.levers()
    for name, value in knobs.items():
        levers[LEVERS.index(name)] = float(value)  # type: ignore[arg-type]
    return levers


def whole(of: ServeTask, actions: np.ndarray, number: int) -> ServeBatch:
    """One episode under a setting (float64[6]) or a setting a window (float64[t, 6])."""
    batch = of.batch(1)
    batch.start(0, number)
    for t in range(of.steps):
        batch.actions[0] = actions if actions.ndim == 1 else actions[t]
        batch.step()
    return batch


SHIPPED = ("static_workload", "bursty_workload", "adversarial_multitenant", "azure_conversation_fit", "azure_code_fit")


@pytest.mark.parametrize("name", SHIPPED)
def test_requests_and_tokens_are_conserved_in_every_window_whatever_the_knobs(name: str) -> None:
    of, rng = brief(name), stream(1, name)
    batch = of.batch(3)
    for row in range(3):
        batch.start(row, scenario("train", row))
    made = np.zeros(3)
    for _ in range(of.steps):
        batch.actions[:] = draw(rng, 3)
        batch.step()
        made += batch.fleet.tally[:, TALLY.index("emitted_tokens")]
        for row in range(3):
            header, seen = batch.fleet.header(row)[0], batch.facts(row)
            alive = seen["queue_depth"] + seen["active_requests"] + int(header["wire_len"])
            assert header["arrived"] == header["ended"] + alive
            workload = batch.fleet.asking(row).workload
            assert header["arrived"] == (workload.arrival_s <= (batch.windows_done[row]) * of.file.window_s).sum()
            # Every token of every finished request was emitted, and none that nobody asked for.
            assert made[row] <= workload.output_tokens[: int(header["arrived"])].sum()
            finished = batch.sums[row, TALLY.index("finished")] + batch.sums[row, TALLY.index("refused")]
            assert finished == header["ended"]


def test_opposite_policies_diverge_in_state() -> None:
    of = brief("bursty_workload")
    number = scenario("train", 3)
    starved, fed = whole(of, setting(batch_cap=4), number), whole(of, setting(quantization_tier=1), number)
    assert starved.facts(0)["queue_depth"] > 20 * (fed.facts(0)["queue_depth"] + 10)
    assert starved.facts(0)["p99_ttft_ms"] > 5 * fed.facts(0)["p99_ttft_ms"]


def test_a_rows_reward_is_what_it_adds_to_the_value_and_stays_within_one() -> None:
    of, rng = brief("adversarial_multitenant"), stream(2, "reward")
    batch = of.batch(4)
    for row in range(4):
        batch.start(row, scenario("train", 10 + row))
    total = np.zeros(4)
    for _ in range(of.steps):
        batch.actions[:] = draw(rng, 4)
        batch.step()
        assert (np.abs(batch.rewards) <= 1).all()
        assert batch.terms.sum(axis=1) == pytest.approx(batch.rewards)
        total += batch.rewards
    values = [batch.outcome(row).value for row in range(4)]
    assert total * of.file.reward_scale / of.steps == pytest.approx(values)
    assert not batch.terminated.any()
    assert batch.truncated.all()


def test_the_same_seed_and_actions_give_the_same_bits_in_another_process() -> None:
    code = (
        "import hashlib, numpy as np\n"
        "from inferencegym.envs.catalogue import task\n"
        "b = task('azure_code_fit').batch(2)\n"
        "for r in range(2): b.start(r, 5 + r)\n"
        "h = hashlib.sha256()\n"
        "for t in range(12):\n"
        "    b.actions[:] = [64, 0.2 + 0.05 * t, t % 9, t // 4, t % 2, 1]\n"
        "    b.step(); h.update(b.observations.tobytes() + b.rewards.tobytes() + b.fleet.records(1).tobytes())\n"
        "print(h.hexdigest())\n"
    )
    digests = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)}  # fmt: skip
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64


# --- what must not pay ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def played() -> dict[str, float]:
    """Values of a whole (short) episode under a good setting and under some cheap tricks."""
    of = brief("bursty_workload", windows=40)
    number = scenario("train", 21)
    flips = np.stack([setting(quantization_tier=t % 2, prefill_decode_split=t % 2) for t in range(of.steps)])
    return {
        "good": whole(of, setting(quantization_tier=1), number).outcome(0).value,
        "lend all": whole(of, setting(kv_budget_fraction=0.1), number).outcome(0).value,
        "INT4 always": whole(of, setting(quantization_tier=2), number).outcome(0).value,
        "FP16 always": whole(of, setting(), number).outcome(0).value,
        "admit nobody": whole(of, setting(batch_cap=1, kv_budget_fraction=0.1), number).outcome(0).value,
        "flip": whole(of, flips, number).outcome(0).value,
    }


def test_shrinking_the_pool_to_dodge_cost_does_not_pay(played: dict[str, float]) -> None:
    assert played["lend all"] < played["good"] - 0.2


def test_admitting_nobody_earns_only_the_lent_memory(played: dict[str, float]) -> None:
    lent = 0.9 * task("bursty_workload").file.prices.lent_kv  # type: ignore[attr-defined]
    assert played["admit nobody"] < lent + 0.1
    assert played["admit nobody"] < played["good"] - 0.2


def test_int4_is_not_free(played: dict[str, float]) -> None:
    of = brief("static_workload", windows=20)
    number = scenario("train", 1)
    assert (
        whole(of, setting(quantization_tier=2), number).outcome(0).value
        < whole(of, setting(), number).outcome(0).value - 0.1
    )
    assert played["INT4 always"] < played["good"]


def test_flipping_knobs_every_window_does_not_pay(played: dict[str, float]) -> None:
    assert played["flip"] < min(played["good"], played["FP16 always"]) - 0.2


def test_what_has_not_been_reached_counts_as_not_achieved() -> None:
    of = brief("static_workload", windows=20)
    batch = of.batch(1)
    batch.start(0, scenario("train", 4))
    assert batch.outcome(0).value == 0.0  # right after reset
    values = []
    for _ in range(of.steps):
        batch.actions[0] = setting()
        batch.step()
        values.append(batch.outcome(0).value)
    assert values[9] < 0.6 * values[-1]  # half an episode is worth about half
    assert batch.outcome(0).parts.keys() == set(of.reward_terms)
    assert sum(batch.outcome(0).parts.values()) == pytest.approx(values[-1])


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_a_tasks_digest_changes_with_prices_and_traffic_but_not_with_prose() -> None:
    of = task("bursty_workload")
    assert isinstance(of, ServeTask)
    assert ServeTask(msgspec.structs.replace(of.file, description="other words")).digest == of.digest
    dearer = msgspec.structs.replace(of.file.prices, lent_kv=0.1)
    assert ServeTask(msgspec.structs.replace(of.file, prices=dearer)).digest != of.digest
    assert task("azure_code_fit").digest != task("azure_conversation_fit").digest


def test_scenarios_of_the_splits_differ_and_a_waves_phase_is_drawn() -> None:
    of = task("adversarial_multitenant")
    assert isinstance(of, ServeTask)
    firsts = [of.workload(scenario(split, 0)).digest() for split in ("train", "validation", "test")]
    assert len(set(firsts)) == 3
    peaks = set()
    for index in range(6):
        arrival_s = of.workload(scenario("train", index)).arrival_s
        count = np.histogram(arrival_s % 150.0, np.arange(0, 151, 15.0))[0]
        peaks.add(int(np.argmax(count)))
    assert len(peaks) >= 3


@pytest.mark.needs_shared
def test_windows_of_a_real_trace_keep_to_their_split(shared_data: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    from inferencegym.envs.serve_task import load

    monkeypatch.setenv("INFERENCEGYM_TRACE_DIR", str(Path(str(shared_data)) / "traces"))
    folder = Path(sys.modules["inferencegym.envs.catalogue"].FOLDER)
    of, fit = load(folder / "azure_code.toml"), task("azure_code_fit")
    assert of.digest != fit.digest
    rows = {
        split: {tuple(pair) for index in range(8) for pair in _lengths(of, split, index)} for split in ("train", "test")
    }
    assert rows["train"] != rows["test"]
    for split in ("train", "test"):
        window = of.workload(scenario(split, 0))
        assert len(window) > 300
        assert window.arrival_s.max() <= of.duration_s


def _lengths(of: ServeTask, split: str, index: int) -> list[tuple[int, int]]:
    window = of.workload(scenario(split, index))
    return list(zip(window.prompt_tokens.tolist(), window.output_tokens.tolist(), strict=True))


def test_a_wrong_task_file_is_refused_by_name_and_field(tmp_path: object) -> None:
    from pathlib import Path

    from inferencegym.envs.serve_task import load

    path = Path(str(tmp_path)) / "mine.toml"
    text = (Path(sys.modules["inferencegym.envs.catalogue"].FOLDER) / "static_workload.toml").read_text()
    path.write_text(text.replace("windows = 60", "windows = 0"))
    with pytest.raises(InputError, match=r"windows"):
        load(path)
    path.write_text(text.replace("lent_kv", "lent_vk"))
    with pytest.raises(InputError, match=r"lent_vk"):
        load(path)


# --- planners ---------------------------------------------------------------------------------------------------------


def test_neighbours_differ_in_one_knob() -> None:
    base = setting()
    for other in neighbours(base, True):
        assert (other != base).sum() == 1


def test_the_clairvoyant_beats_what_never_changes_and_leaves_the_original_alone() -> None:
    of = brief("bursty_workload", windows=30)
    number = scenario("train", 30)
    settings = np.array([setting(), setting(kv_budget_fraction=0.4), setting(quantization_tier=1), setting(quantization_tier=1, kv_budget_fraction=0.4)])  # fmt: skip
    held = values_of(of, settings, [number])[:, 0]
    batch, planner = of.batch(1), Clairvoyant(settings)
    batch.start(0, number)
    for _ in range(of.steps):
        before = batch.fleet.arena(0).tobytes()
        knobs = planner.decide(batch)
        assert batch.fleet.arena(0).tobytes() == before
        batch.actions[0] = knobs.levers()
        batch.step()
    assert batch.outcome(0).value > held.max() + 0.02


def test_a_reload_that_pays_late_is_seen_by_who_looks_to_the_end(tmp_path: Path) -> None:
    text = (FOLDER / "azure_conversation_fit.toml").read_text()
    path = tmp_path / "crowded.toml"
    for old, new in (("rate_rps = 10.5", "rate_rps = 16.0"), ("windows = 60", "windows = 14"), ('"azure_conversation_fit"', '"crowded"')):  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    crowded = task(str(path))
    settings = np.array([[256.0, share, 3.0, tier, 0.0, 1.0] for share in (0.3, 0.7) for tier in (0.0, 1.0)])
    near, far = (
        record(crowded, kind(settings, horizon=2), split="train", scenario=0) for kind in (Clairvoyant, FarSighted)
    )
    assert far.value > near.value + 0.2


def test_a_forecast_holds_nothing_of_the_true_future_or_of_true_lengths() -> None:
    of = brief("bursty_workload", windows=12)
    one, other = of.batch(1), of.batch(1)
    one.start(0, scenario("train", 40))
    for _ in range(6):
        one.actions[0] = setting()
        one.step()
    # The same past in front of another future, and with other lengths for those who are still being served.
    asking = one.fleet.asking(0)
    arrived = int(one.fleet.header(0)["next_open"][0])
    changed = asking.workload.output_tokens.copy()
    changed[arrived:] = 7
    from dataclasses import replace

    future = of._asking_of(replace(asking.workload, output_tokens=changed))
    other.copy_from(one, 0, 1, future)
    a, b = dream(one, 8, seed=3), dream(other, 8, seed=3)
    assert a is not None
    assert b is not None
    for _ in range(6):
        for batch in (a, b):
            batch.actions[0] = setting()
            batch.step()
        assert (a.fleet.seen == b.fleet.seen)[~np.isnan(a.fleet.seen)].all()
    true = one.branch(0, 1)
    for _ in range(6):
        true.actions[0] = setting()
        true.step()
    assert not np.array_equal(true.fleet.seen, a.fleet.seen)


def test_model_predictive_keeps_its_hands_still_until_something_is_seen_and_repeats_itself() -> None:
    of = brief("azure_code_fit", windows=10)
    settings = library(of, [scenario("train", 0)], size=3)
    chosen = []
    for _ in range(2):
        planner, batch = ModelPredictive(settings), of.batch(1)
        planner.start(5)
        batch.start(0, scenario("train", 41))
        taken = []
        for _ in range(6):
            taken.append(planner.decide(batch))
            batch.actions[0] = taken[-1].levers()
            batch.step()
        chosen.append(taken)
    assert chosen[0] == chosen[1]
    assert chosen[0][0] == of.start
