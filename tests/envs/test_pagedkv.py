"""PagedKV's tasks and batches: laws under random play, rows alone and together, forks, loads as stated, honest scores, no way to cheat."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

import inferencegym.envs
from inferencegym.decision.paging import COLUMNS, NUMBER, PagingSurface, action_table
from inferencegym.engine.paging.rules import FLOOR, Rules
from inferencegym.engine.paging.traffic import PHASES, offered_load
from inferencegym.envs.pagedkv import PagedBatch, PagedTask, load
from inferencegym.envs.paging_planner import Clairvoyant
from inferencegym.ground.errors import ConfigError, InputError
from inferencegym.policies.memory import RULES, Limits, Swapper

TASKS = Path(inferencegym.envs.__file__).parent / "tasks"
NAMES = ("easy", "medium", "hard")
NOTHING = NUMBER["nothing"]
#: Offered load by phase, as the documentation says.
LOADS = {"easy": {"steady": 0.69}, "medium": {"night": 0.79, "day": 1.22}, "hard": {"calm": 0.66, "spike": 1.29}}


@pytest.fixture(scope="module", params=NAMES)
def task(request) -> PagedTask:
    return load(TASKS / f"{request.param}.toml")


@pytest.fixture(scope="module")
def hard() -> PagedTask:
    return load(TASKS / "hard.toml")


@pytest.fixture(scope="module")
def easy() -> PagedTask:
    return load(TASKS / "easy.toml")


class Always:
    """The first of these actions that is legal, else nothing."""

    def __init__(self, *actions: str) -> None:
        self.actions = [NUMBER[a] for a in actions]

    def start(self, seed: int) -> None:
        self.turn = seed

    def act(self, observation, mask) -> int:
        return next((a for a in self.actions if mask[a]), NOTHING)


class Cycle(Always):
    """These actions in turn, where legal."""

    def act(self, observation, mask) -> int:
        self.turn += 1
        action = self.actions[self.turn % len(self.actions)]
        return action if mask[action] else NOTHING


class Mixed:
    """A policy that with some chance does something legal with the chances given."""

    def __init__(self, base, epsilon: float, chances: np.ndarray) -> None:
        self.base, self.epsilon, self.chances = base, epsilon, chances

    def start(self, seed: int) -> None:
        self.base.start(seed)
        self.chance = np.random.default_rng(seed)

    def act(self, observation, mask) -> int:
        if self.chance.random() >= self.epsilon:
            return self.base.act(observation, mask)
        total = np.cumsum(self.chances * mask)
        return int(np.searchsorted(total, self.chance.random() * total[-1], side="right"))


def play(task: PagedTask, policy, scenario: int, steps: int | None = None) -> tuple[PagedBatch, np.ndarray]:
    """One episode, or its first steps; the rewards."""
    batch = task.batch(1)
    batch.start(0, scenario)
    policy.start(scenario)
    rewards = []
    for _ in range(steps or task.steps):
        batch.actions[0] = policy.act(batch.observations[0], batch.masks[0])
        batch.step()
        rewards.append(float(batch.rewards[0]))
        if batch.terminated[0] or batch.truncated[0]:
            break
    return batch, np.array(rewards)


def legal(masks: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    return np.argmax(masks * chance.random(masks.shape), axis=1)


# --- laws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_laws_hold_at_every_decision_of_random_play(task, seed):
    small = replace(task.rules, horizon_ticks=400, gpu_blocks=1500, cpu_blocks=1200, transfers=8)
    batch = PagedTask("small", "", small, task.demand).batch(4)
    chance = np.random.default_rng(seed)
    for row in range(4):
        batch.start(row, 10 * seed + row)
    for step in range(700):
        batch.actions[:] = legal(batch.masks, chance) if chance.random() < 0.9 else chance.integers(0, 18, 4)
        batch.step()
        for row in range(4):
            assert batch.laws(row) == [], f"step {step}"
        assert np.abs(batch.terms.sum(axis=1) - batch.rewards).max() < 1e-12
        assert ((batch.observations >= COLUMNS.low) & (batch.observations <= COLUMNS.high)).all()
        for row in np.flatnonzero(batch.terminated | batch.truncated):
            batch.start(int(row), 1000 + step)


def test_legal_actions_change_something_and_illegal_ones_nothing(hard):
    chance = np.random.default_rng(1)
    batch = hard.batch(1)
    batch.start(0, 3)
    for step in range(1500):
        if step % 2 == 0 and step > 1000:
            # Between two decisions of one tick: compare each action with doing nothing.
            idle = batch.branch(0, 1)
            idle.actions[0] = NOTHING
            idle.step()
            for action in range(17):
                twin = batch.branch(0, 1)
                twin.actions[0] = action
                twin.step()
                counted = twin.facts(0)["illegal"] - batch.facts(0)["illegal"]
                changed = {k: v for k, v in twin.facts(0).items() if k != "illegal"} != {
                    k: v for k, v in idle.facts(0).items() if k != "illegal"
                }
                assert (bool(batch.masks[0, action]), counted) in ((True, 0), (False, 1))
                assert changed == bool(batch.masks[0, action])
        batch.actions[0] = (
            Swapper().act(batch.observations[0], batch.masks[0])
            if chance.random() < 0.9
            else int(legal(batch.masks, chance)[0])
        )
        batch.step()


# --- rows, forks, determinism -----------------------------------------------------------------------------------------


def test_a_row_among_many_is_a_row_alone(task):
    chance, n = np.random.default_rng(4), 5
    together = task.batch(n)
    alone = [task.batch(1) for _ in range(n)]
    for row in range(n):
        together.start(row, 50 + row)
        alone[row].start(0, 50 + row)
    for _ in range(1200):
        actions = legal(together.masks, chance)
        together.actions[:] = actions
        together.step()
        for row, single in enumerate(alone):
            single.actions[0] = actions[row]
            single.step()
            assert single.observations[0].tobytes() == together.observations[row].tobytes()
            assert single.masks[0].tobytes() == together.masks[row].tobytes()
            assert single.rewards[0] == together.rewards[row]
    assert [s.facts(0) for s in alone] == [together.facts(row) for row in range(n)]


def test_a_row_that_begins_again_remembers_nothing(hard):
    batch, _ = play(hard, Swapper(), 1, 3000)
    batch.start(0, 2)
    fresh = hard.batch(1)
    fresh.start(0, 2)
    for _ in range(2000):
        action = Swapper().act(fresh.observations[0], fresh.masks[0])
        for b in (batch, fresh):
            b.actions[0] = action
            b.step()
        assert batch.observations.tobytes() == fresh.observations.tobytes()
    assert batch.facts(0) == fresh.facts(0)


def test_a_branch_goes_on_as_the_row_would_and_leaves_it_alone(hard):
    batch, _ = play(hard, Swapper(), 7, 2500)
    facts = batch.facts(0)
    twins = batch.branch(0, 3)
    twins.actions[:] = NOTHING
    twins.actions[1] = NUMBER["admit_free"]
    for _ in range(50):
        twins.step()
    assert batch.facts(0) == facts
    batch.actions[0] = NOTHING
    for _ in range(50):
        batch.step()
    assert batch.facts(0) == twins.facts(0) == twins.facts(2)


def test_a_batch_and_a_task_survive_pickling(hard):
    batch, _ = play(hard, Swapper(), 7, 2000)
    twin = pickle.loads(pickle.dumps(batch))
    for _ in range(300):
        action = Swapper().act(batch.observations[0], batch.masks[0])
        for b in (batch, twin):
            b.actions[0] = action
            b.step()
    assert batch.facts(0) == twin.facts(0)
    assert pickle.loads(pickle.dumps(hard)).digest == hard.digest


def test_traffic_of_a_scenario_is_the_same_in_another_task_object(task):
    again = load(TASKS / f"{task.name}.toml")
    assert again.digest == task.digest
    assert task.traffic(12).table.tobytes() == again.traffic(12).table.tobytes()
    assert task.traffic(12).table.tobytes() != task.traffic(13).table.tobytes()


def test_two_opposite_policies_diverge(task):
    generous, _ = play(task, Always("admit_vip", "admit_free"), 3, 200)
    idle, _ = play(task, Always("nothing"), 3, 200)
    assert generous.facts(0)["gpu_used"] > 100
    assert idle.facts(0)["gpu_used"] == 0
    assert np.abs(generous.observations - idle.observations).max() > 0.01


# --- traffic and load ---------------------------------------------------------------------------------------------------


def test_offered_load_is_what_the_page_says(task):
    phases = PHASES[task.demand.pattern]
    loads = [offered_load(task.traffic(i), task.rules) for i in range(40)]
    for phase, name in enumerate(phases):
        mean = float(np.mean([found.get(phase, np.nan) for found in loads]))
        assert 0.6 <= mean <= 1.3
        assert mean == pytest.approx(LOADS[task.name][name], abs=0.05)


def test_users_come_back_with_their_conversation(task):
    table = np.concatenate([task.traffic(i).table for i in range(5)])
    one = task.traffic(0).table
    back = one[one["parent"] >= 0]
    parents = one[back["parent"]]
    assert 0.2 < (table["parent"] >= 0).mean() < 0.31
    assert (back["cached"] == parents["prompt"] + parents["output"]).all()
    assert (back["prompt"] > back["cached"]).all()
    assert (back["tier"] == parents["tier"]).all()
    assert (back["tick"] >= parents["tick"] + parents["output"]).all()
    assert (one[parents["child"]] == back).all()
    assert (np.diff(one["tick"]) >= 0).all()
    assert (table["kind"] == 1).mean() == pytest.approx(task.demand.power_share, abs=0.03)
    assert (table["tier"] == 1).mean() == pytest.approx(task.demand.vip_share, abs=0.03)


def test_everyone_could_be_served_by_an_idle_server(task):
    table = task.traffic(5).table
    assert (
        table["tick"] + table["output"] + table["prompt"] // task.rules.prefill_tokens_per_tick + 1
        <= task.rules.horizon_ticks
    ).all()
    assert (table["prompt"] + table["output"] <= task.rules.max_context_tokens).all()


# --- physics ------------------------------------------------------------------------------------------------------------


def one_user(easy: PagedTask, **rules: int) -> PagedBatch:
    """A conversation of two turns and nobody else."""
    task = PagedTask("one", "", replace(easy.rules, horizon_ticks=400, **rules), easy.demand)
    traffic = task.traffic(0)
    table = np.zeros(2, traffic.table.dtype)
    table["tick"], table["parent"], table["child"] = (0, 150), (-1, 0), (1, -1)
    table["prompt"], table["output"], table["cached"] = (1600, 1800), (100, 20), (0, 1700)
    batch = task.batch(1)
    batch.start_with(0, replace(traffic, table=table))
    return batch


def until(batch: PagedBatch, tick: int, action: str = "nothing") -> None:
    batch.actions[0] = NUMBER[action]
    batch.step()
    batch.actions[0] = NOTHING
    while batch.tick(0) < tick and not batch.truncated[0]:
        batch.step()


@pytest.mark.parametrize(
    ("before", "ready"),
    [("nothing", 151), ("swap_oldest_free", 152), ("evict_oldest_free", 154)],
    ids=["cache on the GPU: 100 tokens to compute", "on the CPU: 107 blocks to move", "gone: 1800 tokens to compute"],
)
def test_a_cache_hit_buys_time(easy, before, ready):
    batch = one_user(easy, link_blocks_per_tick=60)
    until(batch, 148, "admit_free")
    # 1,600 tokens at 512 a tick: the first token at tick 4, the hundredth at 103; 107 blocks stay.
    assert batch.facts(0)["completed"] == 1
    assert batch.facts(0)["gpu_used"] == 107
    until(batch, 150, before)
    batch.actions[0] = NUMBER["admit_free"]
    batch.step()
    tokens = batch.facts(0)["tokens"]
    while batch.facts(0)["tokens"] == tokens:
        batch.actions[0] = NOTHING
        batch.step()
    assert batch.tick(0) == ready
    assert batch.facts(0)["hits"] == (before != "evict_oldest_free")
    assert batch.outcome(0).facts["cache_residency"] == (before != "evict_oldest_free")


def test_blocks_of_a_swap_are_free_when_it_has_ended(easy):
    batch = one_user(easy, link_blocks_per_tick=30)
    until(batch, 110, "admit_free")
    until(batch, 111, "swap_largest_free")
    # 107 blocks at 30 a tick: four ticks.
    used = []
    for _ in range(10):
        used.append((batch.tick(0), batch.facts(0)["gpu_used"]))
        batch.step()
    assert [u for t, u in used if t < 114] == [107] * sum(t < 114 for t, _ in used)
    assert {u for t, u in used if t >= 114} == {0}
    assert batch.facts(0)["cpu_used"] == 107


@pytest.mark.parametrize(("how", "lost_ticks"), [("shred_largest_free", 4), ("preempt_swap_free", 2)])
def test_a_preempted_request_goes_on_where_it_was(easy, how, lost_ticks):
    undisturbed = one_user(easy)
    until(undisturbed, 120, "admit_free")
    batch = one_user(easy)
    until(batch, 50, "admit_free")
    tokens = batch.facts(0)["tokens"]
    until(batch, 51, how)
    assert batch.facts(0)["free_waiting"] == 1
    assert batch.facts(0)["tokens"] == tokens
    until(batch, 52, "admit_free")
    while batch.facts(0)["completed"] == 0:
        batch.step()
    assert batch.facts(0)["tokens"] == 100
    # The undisturbed one ends at tick 103; this one lost a tick in the queue and its return trip.
    assert 103 < batch.tick(0) <= 103 + 1 + lost_ticks + 1
    assert batch.outcome(0).value < undisturbed.outcome(0).value


def test_growth_without_a_free_block_is_a_crash(easy):
    batch = one_user(easy, gpu_blocks=101)
    until(batch, 4, "admit_free")
    while not batch.terminated[0]:
        batch.step()
    # 1,600 tokens fill 100 blocks; the first token takes the last one, the seventeenth finds none.
    assert batch.tick(0) == 20
    assert batch.rewards[0] == -1
    assert batch.outcome(0).value == FLOOR


# --- the score ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def honest(task) -> float:
    batch, _ = play(task, Swapper(), 21)
    assert batch.truncated[0]
    return batch.outcome(0).value


CHEATS = {
    "nothing": Always("nothing"),
    "reject all": Always("reject_vip", "reject_free"),
    "admit and crash": Always("admit_vip", "admit_free"),
    "bounce": Cycle("admit_free", "preempt_swap_free", "admit_vip", "preempt_swap_vip"),
    "shred and admit": Cycle("admit_free", "shred_largest_free", "admit_vip", "shred_largest_vip"),
    "VIPs only": Always("admit_vip", "evict_oldest_vip", "reject_free"),
    "evict": Always("evict_oldest_free", "evict_oldest_vip"),
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheating_does_not_pay(task, honest, name):
    batch, rewards = play(task, CHEATS[name], 21)
    _, honest_rewards = play(task, Swapper(), 21)
    assert batch.outcome(0).value < honest - 0.1
    assert rewards.sum() < honest_rewards.sum()
    if name in ("nothing", "reject all", "evict"):
        assert batch.outcome(0).value == pytest.approx(FLOOR)
        assert rewards.sum() < 0


def test_a_short_episode_is_worth_less_than_a_long_one(task):
    values = [
        play(task, Swapper(), 9, steps)[0].outcome(0).value
        for steps in (1, task.steps // 4, task.steps // 2, task.steps)
    ]
    assert values == sorted(values)
    assert values[0] == pytest.approx(FLOOR)
    assert values[1] < 0.4 * values[3]


def test_no_crash_beats_a_survivor(task):
    crashed, _ = play(task, Always("admit_vip", "admit_free"), 30)
    idle, _ = play(task, Always("nothing"), 30)
    assert crashed.outcome(0).value <= idle.outcome(0).value


def test_bouncing_does_not_farm_residency(task):
    batch, _ = play(task, CHEATS["bounce"], 2)
    assert batch.outcome(0).facts["cache_residency"] < 0.05


def test_parts_add_up_and_the_value_is_a_grade(task):
    batch, _ = play(task, Swapper(), 4)
    outcome = batch.outcome(0)
    assert sum(outcome.parts.values()) == pytest.approx(outcome.value)
    assert 0.001 < outcome.value < 0.999


def test_return_and_value_agree(task):
    """Spearman over rules with random limits and noise, and players with random chances."""
    chance = np.random.default_rng(5)
    values, returns = [], []
    for k in range(60):
        limits = Limits(
            danger=chance.uniform(0.01, 0.03), hold_back=chance.uniform(0.045, 0.4), vip_hold_back=chance.uniform(0.042, 0.4),
            target=chance.uniform(0.0, 0.4), drop_overdue=chance.choice([0.0, 0.03, 0.3, 2.0]),
        )  # fmt: skip
        base = RULES[k % len(RULES)](limits)
        chances = chance.exponential(1, 18) ** 2
        policy = Mixed(base, float(chance.random() ** 3) if k < 45 else 1.0, chances)
        batch, rewards = play(task, policy, 300 + k % 3)
        assert np.abs(rewards).max() <= 1
        values.append(batch.outcome(0).value)
        returns.append(rewards.sum())
    assert spearmanr(values, returns).statistic >= 0.9


# --- policies ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=[rule.name for rule in RULES])
def test_rules_survive_act_legally_and_beat_every_constant(task, rule):
    for scenario in (61, 62):
        batch, _ = play(task, rule(), scenario)
        assert batch.truncated[0]
        assert batch.facts(0)["illegal"] == 0
        assert batch.outcome(0).value > 0.6


def test_the_clairvoyant_is_clearly_above_the_rules():
    task = load(TASKS / "medium.toml")
    best = max(play(task, rule(), 70)[0].outcome(0).value for rule in RULES)
    batch = task.batch(1)
    batch.start(0, 70)
    planner = Clairvoyant(every_ticks=50)
    planner.start(70)
    while not (batch.terminated[0] or batch.truncated[0]):
        batch.actions[0] = planner.decide(batch)
        batch.step()
    assert batch.facts(0)["illegal"] == 0
    assert batch.outcome(0).value > best + 0.05


# --- files and surface --------------------------------------------------------------------------------------------------------


def test_a_wrong_file_says_what_is_wrong(tmp_path):
    text = (TASKS / "easy.toml").read_text()
    for old, new, problem in (
        ("horizon_ticks", "horizon_tick", "horizon_tick"),
        ('"steady"', '"weekly"', "weekly"),
        ("low_rate = 0.82", "low_rate = -1", "low_rate"),
        ('family = "pagedkv"', 'family = "llmserve"', "family"),
        ("horizon_ticks = 2000", "horizon_ticks = 0", "horizon_ticks"),
    ):
        assert old in text
        file = tmp_path / "wrong.toml"
        file.write_text(text.replace(old, new))
        with pytest.raises(InputError, match=problem):
            load(file)
    with pytest.raises(ConfigError, match="n: 0"):
        load(TASKS / "easy.toml").batch(0)
    with pytest.raises(ConfigError, match="weights"):
        Rules(100, goodput_weight=0.9)


def test_surface_takes_what_spaces_and_people_give():
    surface = PagingSurface()
    for given in (8, np.int64(8), np.array(8), np.array([8]), 8.0, "admit_free"):
        assert surface.action(surface.dense(given)) == 8
    for wrong in (18, -1, 8.5, float("nan"), "admit", [1, 2], None):
        with pytest.raises(ConfigError, match="action"):
            surface.dense(wrong)
    mask = np.zeros(18, np.int8)
    mask[[8, 17]] = 1
    assert surface.legal(8, mask)
    assert not surface.legal(9, mask)


def test_surface_reads_answers_in_words(hard):
    surface = PagingSurface()
    batch, _ = play(hard, Swapper(), 1, 4000)
    text = surface.describe(batch.observations[0], batch.masks[0])
    assert all(name in text for name in COLUMNS.names)
    for action, allowed in enumerate(batch.masks[0]):
        assert (f"- {action}: " in text) == bool(allowed)
    answers = {
        '{"action": 9}': 9,
        "I choose action 16 now.": 16,
        "17": 17,
        "Best: `admit_vip`": 9,
        '{"action": "evict_oldest_free"}': 2,
    }
    for answer, action in answers.items():
        assert surface.parse(answer) == action
    for answer in ("", "no idea", "3 or 4", '{"action": 99}'):
        with pytest.raises(ConfigError):
            surface.parse(answer)


def test_the_page_shows_the_tables_of_the_code(task):
    page = (Path(__file__).parents[2] / "docs" / "environments" / "pagedkv.md").read_text()
    assert COLUMNS.table() in page
    assert action_table() in page
    for phase, load_ in LOADS[task.name].items():
        assert f"| {task.name} | {phase} | {load_:.2f} |" in page
