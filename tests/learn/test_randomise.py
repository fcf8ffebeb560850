"""Domain randomisation: a scenario draws the same in every training, rows show what was drawn, and whoever cannot vary a factor says so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sb3_contrib")

from inferencegym.decision.knobs import COLUMNS
from inferencegym.decision.paging import NOTHING
from inferencegym.envs import catalogue
from inferencegym.envs.episode import record
from inferencegym.envs.splits import scenario
from inferencegym.ground.errors import ConfigError, InferenceGymError, UnknownNameError
from inferencegym.ground.rng import stream
from inferencegym.learn.algorithms import make_learner
from inferencegym.learn.config import TrainConfig, defaults, load
from inferencegym.learn.delay import Delayed
from inferencegym.learn.forks import Teacher
from inferencegym.learn.lessons import School
from inferencegym.learn.mlp import Mlp
from inferencegym.learn.randomise import Randomise, from_text
from inferencegym.learn.train import train
from inferencegym.learn.validate import late_news, values_of, worth
from inferencegym.learn.varied import delayed, machine_of, vary
from inferencegym.learn.workers import at_most
from inferencegym.policies.trained import load as load_policy
from tests.envs.toy import ToyTask

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
LATE = Randomise(delay=(0, 3))
AGE = COLUMNS.index("snapshot_age_s")


def rows(batch, scenarios, steps):
    """Observations of every step, all rows doing nothing."""
    for row, number in enumerate(scenarios):
        batch.start(row, number)
    seen = [batch.observations.copy()]
    for _ in range(steps):
        if batch.actions.ndim == 1:
            batch.actions[:] = NOTHING
        batch.step()
        seen.append(batch.observations.copy())
    return np.array(seen)


# --- draws ---------------------------------------------------------------------------------------------------------------


def test_a_scenario_draws_the_same_whatever_else_varies():
    wide = from_text("delay=0..3,rate=0.5..2,lengths=0.8..1.25,gpus=h100+h200")
    drawn = [wide.draw(number) for number in range(400)]
    assert drawn == [wide.draw(number) for number in range(400)]
    assert [one.delay for one in drawn] == [LATE.draw(number).delay for number in range(400)]
    assert {one.delay for one in drawn} == {0, 1, 2, 3}
    assert {one.gpu for one in drawn} == {"h100", "h200"}
    rate = np.array([one.rate for one in drawn])
    assert 0.5 <= rate.min() < 0.6
    assert 1.7 < rate.max() <= 2.0
    assert abs(np.log(rate).mean()) < 0.1, "as often half as double"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("delay=0..99", "0..16"), ("delay=0.5", "whole"), ("delay=3..1", "low..high"), ("rate=0..1", "0.1..10"), ("rate=x", "numbers"),
        ("gpus=abacus", "abacus"), ("weather=1..2", "weather"), ("delay", "e.g."), ("rate=nan", "low, high"),
    ],
)  # fmt: skip
def test_wrong_ranges_are_named(text, why):
    with pytest.raises(InferenceGymError, match=why):
        from_text(text)


def test_settings_with_and_without_it_are_read_back_and_old_digests_stay(calm, tmp_path):
    plain = defaults(calm, "ppo")
    varied = plain.with_(randomise=from_text("delay=1..2,rate=0.5..2,gpus=h100"))
    for config in (plain, varied):
        assert load(config.save(tmp_path / "c.toml")) == config
    assert plain.digest != varied.digest
    # What it was before there was anything to randomise, or to begin with.
    assert TrainConfig("medium", "ppo").digest == "c6316cf5c35e23cb6b4fa1286530dedea5b6d0ca1798edd5db7e7f8542a3b440"
    assert replace(plain, randomise=Randomise(rate=(1.0, 1.0))).digest == plain.digest


def test_who_cannot_vary_says_so(calm, short_task):
    with pytest.raises(ConfigError, match="no GPU"):
        vary(catalogue.task(short_task), Randomise(gpus=("h100",)))
    with pytest.raises(ConfigError, match="does not run on l40s"):
        vary(catalogue.task("bursty_workload"), Randomise(gpus=("h100", "l40s")))
    with pytest.raises(ConfigError, match="cannot vary rate"):
        vary(ToyTask(), Randomise(rate=(0.5, 2.0)))
    with pytest.raises(ConfigError, match="share prefixes"):
        vary(catalogue.task("mooncake_longcontext_fit"), Randomise(lengths=(0.5, 2.0)))
    with pytest.raises(UnknownNameError):
        Randomise(gpus=("abacus",))


# --- episodes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("surface", ["paging", "knobs"])
def test_each_row_sees_the_past_it_drew_as_the_wrapper_of_policies_shows_it(surface, calm, short_task):
    task = catalogue.task(short_task if surface == "paging" else calm)
    seen = rows(vary(task, LATE).batch(6), range(6), 8)
    fresh = rows(task.batch(6), range(6), 8)
    assert len({LATE.draw(number).delay for number in range(6)}) > 2
    for row in range(6):
        late = LATE.draw(row).delay
        shown: list[np.ndarray] = []

        class Watcher:
            name = "watcher"

            def start(self, seed):
                pass

            def act(self, observation, mask, shown=shown):
                shown.append(observation.copy())
                return {} if surface == "knobs" else "nothing"

        Watcher.surface = surface
        wrapped = Delayed(Watcher(), late)
        wrapped.start(0)
        for one in fresh[:, row]:
            wrapped.act(one, None)
        np.testing.assert_array_equal(seen[:, row], shown)


def test_a_branch_keeps_its_old_news(calm):
    batch = delayed(catalogue.task(calm), 2).batch(1)
    rows(batch, [1], 3)
    twin = batch.branch(0, 2)
    np.testing.assert_array_equal(twin.observations, np.repeat(batch.observations, 2, axis=0))
    batch.step()
    twin.actions[:] = batch.actions[0]
    twin.step()
    np.testing.assert_array_equal(twin.observations[1], batch.observations[0])


def test_tasks_whose_news_are_late_otherwise_have_other_digests(calm):
    task = catalogue.task(calm)
    ways = [task, vary(task, Randomise(delay=(0, 2))), vary(task, Randomise(delay=(2, 2))), delayed(task, 2)]
    assert len({one.digest for one in ways}) == len(ways)


def test_traffic_is_scaled_and_everything_else_stays(calm):
    for task, count in ((catalogue.task(calm), lambda t, n: len(t.workload(n))), (catalogue.task("medium"), lambda t, n: len(t.traffic(n).table))):  # fmt: skip
        twice = vary(task, Randomise(rate=(2.0, 2.0)))
        plain, more = (sum(count(one, number) for number in range(4)) for one in (task, twice))
        assert 1.7 < more / plain < 2.3
        assert twice.digest != task.digest
        same = vary(task, Randomise(rate=(0.999999999, 1.0)))
        assert count(same, 3) == count(task, 3)
    task = catalogue.task(calm)
    longer = vary(task, Randomise(lengths=(1.5, 1.5))).workload(2)
    plain = task.workload(2)
    assert len(longer) == len(plain), "none was too long"
    assert longer.prompt_tokens.sum() == pytest.approx(1.5 * plain.prompt_tokens.sum(), rel=0.01)
    assert longer.output_tokens.sum() == pytest.approx(1.5 * plain.output_tokens.sum(), rel=0.01)
    np.testing.assert_array_equal(longer.arrival_s, plain.arrival_s)


def test_rows_on_drawn_machines_are_what_that_machine_alone_would_be(calm):
    task = catalogue.task(calm)
    both = Randomise(gpus=("h100", "h200"), delay=(0, 2))
    varied = vary(task, both)
    names = [both.draw(number).gpu for number in range(6)]
    assert set(names) == {"h100", "h200"}
    seen = rows(varied.batch(6), range(6), 5)
    state = [
        i for i, name in enumerate(COLUMNS.names) if name not in ("window_s", "snapshot_age_s", "episode_fraction")
    ]
    fresh_of = {}
    for number in range(6):
        alone = machine_of(task, both, number)
        assert alone.plan.deployment.gpu == names[number]
        late = both.draw(number).delay
        fresh = rows(alone.batch(1), [number], 5)[:, 0]
        np.testing.assert_array_equal(seen[late:, number][:, state], fresh[: 6 - late, state])
        fresh_of[number] = fresh[:, state]
    other = next(number for number in range(6) if names[number] != names[0])
    elsewhere = rows(vary(task, Randomise(gpus=(names[other],))).batch(1), [0], 5)[:, 0, state]
    assert not np.array_equal(elsewhere, fresh_of[0]), "another machine, another episode"


# --- learners ------------------------------------------------------------------------------------------------------------


def test_forks_measure_with_the_old_news_that_the_policy_would_have(calm):
    task = catalogue.task(calm)
    config = defaults(calm, "forks").with_(measured_windows=10, horizon=2)
    net = Mlp((len(COLUMNS), 8, 36))
    given = Randomise(delay=(2, 2))
    found = Teacher(task, config.settings, given).measure(net.arrays(), 3, stream(0, "test"))
    plain = Teacher(task, config.settings).measure(net.arrays(), 3, stream(0, "test"))
    age_s = COLUMNS.decode(found.observations)[:, AGE]
    np.testing.assert_allclose(age_s, 5.0 * np.minimum(np.arange(10), 2), atol=1e-4)
    assert COLUMNS.decode(plain.observations)[:, AGE].max() == 0.0


def test_a_teacher_sees_now_and_the_learner_what_it_will_be_shown(calm):
    task = catalogue.task(calm)
    seen = []

    class Teacher:
        name, surface = "teacher", "knobs"

        def start(self, seed):
            pass

        def act(self, observation, mask):
            seen.append(observation.copy())
            return {}

    found = School(task, Teacher(), 10, Randomise(delay=(1, 1))).lesson(None, 3, stream(0, "test"))
    now = COLUMNS.decode(np.array(seen))[:, AGE]
    shown = COLUMNS.decode(found.observations)[:, AGE]
    assert now.max() == 0.0
    np.testing.assert_allclose(shown, 5.0 * np.minimum(np.arange(10), 1), atol=1e-4)


@pytest.mark.parametrize("algorithm", ["cma", "maskable-ppo", "dqn", "q-table", "imitate"])
def test_a_training_with_delays_goes_on_as_if_it_had_not_been_interrupted(short_task, tmp_path, algorithm):
    own = {
        "cma": {"rows": 14, "population": 7}, "maskable-ppo": {"rows": 4, "rollout_steps": 200, "batch_size": 200, "epochs": 1, "hidden": (8,)},
        "dqn": {"rows": 4, "warmup": 100, "buffer": 3000, "hidden": (8,), "batch_size": 32}, "q-table": {"rows": 4},
        "imitate": {"teacher": "sieve", "episodes": 2, "labels": 100, "hidden": (8,)},
    }[algorithm]  # fmt: skip
    varied = Randomise(delay=(0, 3), rate=(0.8, 1.25), lengths=(0.8, 1.25))
    config = defaults(short_task, algorithm).with_(**own, steps=3, validate_every=1, validation_scenarios=2, randomise=varied)  # fmt: skip
    config = replace(config, steps=10**9)
    whole = train(config, tmp_path / "whole", stop=lambda progress: progress.update >= 3)
    train(config, tmp_path / "halves", stop=lambda progress: progress.update >= 2)
    train(None, tmp_path / "halves", resume=True, stop=lambda progress: progress.update >= 3)
    for name in ("curve.csv", "policy.npz"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "halves" / name).read_bytes()
    policy = load_policy(whole.policy)
    assert "validation_delayed" in (tmp_path / "whole" / "curve.csv").read_text().splitlines()[0]
    late = float(np.mean(values_of(policy, delayed(catalogue.task(short_task), 3), range(2))))
    assert whole.best_delayed == pytest.approx(late, abs=0)


@pytest.mark.parametrize("algorithm", ["cma", "forks", "maskable-ppo"])
def test_learners_on_knobs_play_on_drawn_machines(calm, algorithm, monkeypatch):
    own = {
        "cma": {"rows": 24, "population": 4}, "maskable-ppo": {"rows": 6, "rollout_steps": 10, "batch_size": 20, "hidden": (8,)},
        "forks": {"episodes": 6, "measured_windows": 4, "horizon": 2, "hidden": (8,), "start": "fixed:batch_cap=64"},
    }[algorithm]  # fmt: skip
    varied = Randomise(gpus=("h100", "h200"), delay=(0, 1), rate=(0.8, 1.25))
    config = defaults(calm, algorithm).with_(**own, scenarios=8, randomise=varied)
    met = set()
    draw = Randomise.draw

    def watched(self, number):
        met.add(draw(self, number).gpu)
        return draw(self, number)

    monkeypatch.setattr(Randomise, "draw", watched)
    with at_most(1):
        made = make_learner(config, catalogue.task(calm))
    made.update()
    assert made.steps > 0
    assert {"h100", "h200"} <= met


def test_delayed_validation_is_the_policy_behind_the_wrapper(short_task):
    task = catalogue.task(short_task)
    made = make_learner(defaults(short_task, "cma").with_(rows=14), task)
    from inferencegym.policies.tuned import TunedSieve

    policy = TunedSieve(made.arrays()["parameters"])
    found = values_of(policy, delayed(task, 3), range(4))
    for index in range(4):
        late = 1 + scenario("validation", index) % 3
        assert found[index] == record(task, Delayed(policy, late), split="validation", scenario=index).value


def test_a_delay_is_whole_decisions_and_a_file_without_the_table_keeps_the_default(tmp_path):
    with pytest.raises(ConfigError, match=r"randomise.delay: 0..3.0; allowed: whole numbers"):
        from_text("delay=0..3.0")
    path = tmp_path / "feedback.toml"
    path.write_text('task = "azure_conversation_fit"\nalgorithm = "feedback"\n')
    assert load(path).randomise == defaults("azure_conversation_fit", "feedback").randomise
    path.write_text('task = "azure_conversation_fit"\nalgorithm = "feedback"\n\n[randomise]\ndelay = [0, 1]\n')
    assert load(path).randomise == Randomise(delay=(0, 1))


def test_the_best_of_a_training_with_delays_is_who_does_well_with_both(short_task):
    task = catalogue.task(short_task)
    assert late_news(task, Randomise(rate=(0.5, 2.0))) is None
    assert late_news(task, LATE).digest == delayed(task, 3).digest
    assert worth(0.9, None) > worth(0.8, None)
    assert worth(0.9, 0.0) < worth(0.8, 0.7)
