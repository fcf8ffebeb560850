"""The view of an episode: well-formed and escaped, what it draws is what the plant holds, and a browser shows it on OpenEnv's page."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("openenv.core", reason="the extra 'openenv' is not installed")

from inferencegym.engine.paging.memory import scalars
from inferencegym.envs.catalogue import task
from inferencegym.envs.openenv import poolview, view
from inferencegym.envs.openenv.baseline import RULES, SURFACES, spoken
from inferencegym.envs.openenv.environment import ENVIRONMENTS
from inferencegym.envs.openenv.models import PagingAction, ServeAction, as_action
from inferencegym.envs.pool import Pool, Waiting
from inferencegym.envs.pool import look as pool_of
from inferencegym.policies.catalogue import policy


def played(family, name, steps, watched=True, rule=None, seed=3):
    environment = ENVIRONMENTS[family]()
    seen = environment.reset(task_id=name, seed=seed)
    if watched:
        environment.render_web({})
    actor = policy(rule or RULES[family], SURFACES[family])
    actor.start(seed)
    for _ in range(steps):
        if seen.done:
            break
        action = actor.act(np.array(seen.encoded, np.float32), np.array(seen.action_mask, np.int8))
        seen = environment.step(as_action(family, spoken(action)))
    return environment, seen


def tree(html):
    """The parts of a view; ParseError unless every tag is closed and every letter escaped."""
    return ElementTree.fromstring(html.replace("&nbsp;", " "))


def text(html):
    return " ".join("".join(tree(html).itertext()).split())


def drawn_cells(html, colour):
    """Cells of the KV map in one colour."""
    cells = 0.0
    for path in re.findall(rf"<path d='([^']*)' fill='{colour}'", html):
        for wide in re.findall(r"h([0-9.]+)v", path):
            cells += float(wide) / poolview.WIDE
    return cells


@pytest.mark.parametrize("name", ["easy", "hard"])
def test_the_map_has_every_block_once(name):
    environment, _ = played("pagedkv", name, 700)
    batch = environment._batch
    for _ in range(30):
        batch.actions[0] = 17
        batch.step()
        pool = pool_of(batch, 0)
        facts = batch.facts(0)
        assert not batch.laws(0)
        assert sum(blocks for _, blocks in pool.owners) == facts["gpu_used"] == scalars(batch.arena, 0)["gpu_used"]
        assert sum(pool.cpu.values()) == facts["cpu_used"]
        of = [sum(1 for kind, _ in pool.owners if kind == wanted) for wanted in range(6)]
        assert of[0] == facts["vip_active"]
        assert of[1] == facts["free_active"]
        assert of[2] + of[3] == facts["vip_loading"] + facts["free_loading"]
        assert of[4] == facts["vip_idle"]
        assert of[5] == facts["free_idle"]
        assert {queue.name: len(queue.waits_ticks) for queue in pool.queues} == {
            "VIP": facts["vip_waiting"],
            "free": facts["free_waiting"],
        }
    html = environment.render_web({})
    for kind, (_, colour, _) in enumerate(poolview.KINDS):
        wanted = sum(blocks for of_kind, blocks in pool.owners if of_kind == kind)
        assert drawn_cells(html, colour) == pytest.approx(wanted), kind


def test_a_pool_of_any_size_fits_the_map():
    for blocks in (1, 7, 500, 10_000, 10_001, 100_000):
        pool = Pool(blocks, [(0, blocks // 2), (5, blocks - blocks // 2)], 0, {}, [], 0)
        html, height = poolview._map(pool, 0.0)
        assert height < 400
        per_cell = max(1, -(-blocks // 10_000))
        assert drawn_cells(html, poolview.KINDS[0][1]) + drawn_cells(html, poolview.KINDS[5][1]) == pytest.approx(
            blocks / per_cell
        )


def test_the_queue_shows_who_waits_for_how_long():
    environment, _ = played("pagedkv", "hard", 0)
    for _ in range(200):
        environment.step(PagingAction(action_id=17))
    facts = environment._batch.facts(0)
    pool = pool_of(environment._batch, 0)
    vip = next(queue for queue in pool.queues if queue.name == "VIP")
    assert facts["vip_waiting"] + facts["free_waiting"] > 5
    assert vip.sla_ticks == 25
    assert list(vip.waits_ticks) == sorted(vip.waits_ticks, reverse=True)
    first = environment._task.surface.columns.names.index("vip_max_wait_time_pct")
    assert environment._batch.observations[0, first] == pytest.approx(min(vip.waits_ticks[0] / 25, 1), abs=1e-6)
    html = environment.render_web({})
    assert f"VIP queue: {len(vip.waits_ticks)} of 50 seats, the first for {vip.waits_ticks[0]} ticks" in text(html)
    assert html.count("too long</title>") == sum(
        wait > limit for q in pool.queues for wait in q.waits_ticks[:100] if (limit := q.sla_ticks)
    )


def test_a_crash_is_told_and_drawn():
    environment = ENVIRONMENTS["pagedkv"]()
    seen = environment.reset(task_id="hard", seed=0)
    environment.render_web({})
    while not seen.done:
        mask = seen.action_mask
        seen = environment.step(PagingAction(action_id=9 if mask[9] else 8 if mask[8] else 17))
    assert seen.terminated
    html = environment.render_web({})
    assert "crashed" in text(html)
    wanted = sum(blocks for _, blocks in pool_of(environment._batch, 0).owners)
    assert wanted > 10_000
    assert f"{wanted:,} KV blocks wanted, there are 10,000" in text(html)
    assert sum(drawn_cells(html, colour) for _, colour, _ in poolview.KINDS) == pytest.approx(10_000)
    assert tree(html) is not None


@pytest.mark.parametrize("name", ["static_workload", "adversarial_multitenant"])
def test_the_strips_have_a_point_for_each_window(name):
    environment, seen = played("llmserve", name, 25)
    html = environment.render_web({})
    assert f"decision 25 of {environment._task.steps}" in text(html)
    assert f"return {environment.state.total_reward:+.3f}" in text(html)
    points = [line.split() for line in re.findall(r"<polyline points='([^']*)'", html)]
    assert max(len(line) for line in points) == 26
    classes = environment._task.file.classes
    levels = len({one.ttft_s for one in classes}) + len({one.tpot_s for one in classes})
    assert html.count("stroke-dasharray") == levels
    # The right end of the KV strip is what the observation says.
    assert f"{seen.kv_cache_occupancy:.3g}" in text(html)


def test_a_turned_knob_stands_out():
    environment, _ = played("llmserve", "static_workload", 0)
    environment.step(ServeAction())
    still = environment.render_web({})
    environment.step(ServeAction(batch_cap=7, quantization_tier="INT4", priority_routing=True))
    turned = environment.render_web({})
    mark = f"2px solid {view.ORANGE}"
    assert still.count(mark) == 0
    assert turned.count(mark) == 3
    assert "batch cap 7, quantization tier INT4, priority routing on" in text(turned)
    assert "all knobs stay as they are" in text(still)


def test_what_was_not_possible_is_told():
    environment, _ = played("pagedkv", "easy", 0)
    environment.step(PagingAction(action_id=4))
    assert "swap largest free (was not possible)" in text(environment.render_web({}))
    refused = view.said(ServeAction(prefill_decode_split=True), {"refused": {"prefill_decode_split": "no"}})
    assert refused == "prefill decode split on (prefill decode split was refused)"


def test_nothing_is_remembered_until_somebody_looks_and_a_reset_begins_anew():
    environment, _ = played("llmserve", "static_workload", 5, watched=False)
    assert environment._course is None
    environment.render_web({})
    assert [point.step for point in environment._course.points] == [5]
    environment.step(ServeAction())
    environment.reset(task_id="bursty_workload", seed=1)
    assert [point.step for point in environment._course.points] == [0]
    html = text(environment.render_web({}))
    assert "bursty_workload" in html
    assert "last: none yet" in html


def test_looking_changes_nothing():
    one, _ = played("pagedkv", "hard", 300)
    other, _ = played("pagedkv", "hard", 300, watched=False)
    for _ in range(20):
        one.render_web({})
        assert one.step(PagingAction(action_id=8)).model_dump() == other.step(PagingAction(action_id=8)).model_dump()
    assert other._course is None


def test_a_course_stays_small():
    course = view.Course()
    for step in range(5000):
        course.add(view.Point(step, "", 0.0, {}, {}))
    assert len(course.points) == view.KEPT
    assert course.points[-1].step == 4999


def test_text_is_escaped_and_nothing_comes_from_elsewhere():
    wild = "<script>alert('x')</script>&\"'"
    facts = dict.fromkeys(view.SERVE_COLUMNS, 0.0) | {"batch_cap": 8.0}
    course = view.Course()
    for step in range(3):
        course.add(view.Point(step, wild, 0.0, {wild: 0.5}, facts))
    html = view.serve(
        view.About(wild, wild, 0, 10, 0.0, wild), course, ttft_ms={wild: 1.0, "b": 2.0}, tpot_ms={wild: 1.0}
    )
    pool = Pool(10, [(0, 3)], 10, {wild: 2}, [Waiting(wild, [3], 5, 2)], 1)
    paged = dict.fromkeys(task("easy").batch(1).facts(0), 0.0)
    course = view.Course()
    course.add(view.Point(0, wild, 0.0, {}, paged))
    for drawn in (html, poolview.paging(view.About(wild, "test", 0, 10, 0.0), course, pool)):
        assert tree(drawn) is not None
        assert "<script" not in drawn
        for outside in ("http:", "https:", "src=", "href", "url(", "@import"):
            assert outside not in drawn


def test_values_that_do_not_exist_leave_gaps():
    nan = float("nan")
    drawn = view.strip(
        0, "t", "ms", [0, 1, 2, 3, 4], [view.Series("a", "#000", [1.0, 2.0, nan, 4.0, nan])], span=(0, 4)
    )
    assert drawn.count("<polyline") == 1
    assert drawn.count("<circle") == 1
    assert ">–</text>" in drawn
    assert "nan" not in drawn
    nothing = view.strip(0, "t", "ms", [0], [view.Series("a", "#000", [nan])], span=(0, 4), log=True)
    assert "nan" not in nothing


def test_higher_is_higher_on_both_scales():
    for log in (False, True):
        drawn = view.strip(0, "t", "", [0, 1, 2], [view.Series("a", "#000", [1.0, 50.0, 5.0])], span=(0, 2), log=log)
        heights = [float(pair.split(",")[1]) for pair in re.search(r"points='([^']*)'", drawn)[1].split()]
        assert heights[1] < heights[2] < heights[0]


@pytest.mark.parametrize(
    ("value", "said"), [(0, "0"), (1234, "1.23k"), (12.345, "12.3"), (-2e6, "-2M"), (float("nan"), "–")]
)
def test_numbers_are_short(value, said):
    assert view.number(value) == said
