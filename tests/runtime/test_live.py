"""The live configuration: whole changes or none, compare-and-set, history, and a queue that loses nobody on the way."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencegym.ground.errors import ConfigError
from inferencegym.runtime.errors import ApiError
from inferencegym.runtime.live import REMEMBERED, LiveConfig, live_leaves, version_of
from inferencegym.runtime.queues import change_queue, make_queue
from inferencegym.runtime.settings import LIVE, QueueSettings, ServiceClass, Settings
from tests.runtime.asks import ask

SETTINGS = Settings(classes=(ServiceClass("usual"), ServiceClass("gold", ttft_slo_s=0.5)))


def live(settings: Settings = SETTINGS, refuse: str = "") -> tuple[LiveConfig, list[Settings]]:
    """A live configuration, and what it put in force; a gateway that refuses this order."""
    seen: list[Settings] = []

    def on_change(new: Settings) -> None:
        seen.append(new)
        if new.queue.order == refuse:
            raise ConfigError("queue.order", f"'{refuse}' cannot be had here")

    return LiveConfig(settings, on_change, wall_time=lambda: "2026-11-21T12:00:00.000+00:00"), seen


def test_a_change_is_in_force_and_told_with_its_bounds():
    config, seen = live()
    change = config.patch({"queue": {"order": "vtc", "weights": {"big": 2}}, "classes.gold.max_requests": 5, "routing": "prefix"}, by="root", reason="try")  # fmt: skip
    assert (change.version, config.version, len(seen)) == (2, 2, 1)
    assert change.changes == {
        "routing": ("round_robin", "prefix"),
        "queue.order": ("fcfs", "vtc"),
        "queue.weights": ({}, {"big": 2.0}),
        "classes.gold.max_requests": (None, 5),
    }
    told = config.get()
    assert msgspec.json.decode(msgspec.json.encode(told)) == told
    assert told["version"] == 2
    assert told["settings"]["queue"]["order"] == "vtc"
    assert told["settings"]["classes"]["gold"]["max_requests"] == 5
    assert told["settings"]["classes"]["usual"]["ttft_slo_s"] is None
    limits = told["bounds"]["queue.max_requests"]
    assert (limits["min"], limits["max"], limits["default"]) == (0, 10_000_000, 1000)
    assert "vtc" in told["bounds"]["queue.order"]["choices"]
    assert seen[-1] is config.settings


def test_every_live_setting_says_what_it_means_and_can_be_read_back():
    config, _ = live()
    told = config.get()
    assert {name.split(".")[0] for name in told["bounds"]} == set(LIVE)
    assert all(bound["meaning"] for bound in told["bounds"].values())
    # What was read can be written: nothing changes, and no version is made.
    assert config.patch(told["settings"], by="x").changes == {}
    assert config.version == 1


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"queue": {"order": "lifo"}}, "queue.order"),
        ({"queue": {"max_requests": -1}}, "queue.max_requests"),
        ({"queue": {"max_requests": "many"}}, "queue.max_requests"),
        ({"queue": {"max_requests": 1.5}}, "queue.max_requests"),
        ({"queue": {"max_requests": None}}, "queue.max_requests"),
        ({"queue": {"max_reqests": 1}}, "queue.max_reqests"),
        ({"queue": 3}, "queue"),
        ({"server": {"port": 1}}, "server"),
        ({"server.port": 1}, "server.port"),
        ({"classes": {"gold": {"name": "x"}}}, "classes.gold.name"),
        ({"classes": {"silver": {"priority": 1}}}, "classes.silver"),
        ({"admission": {"burst": 5}}, "admission.burst"),
        ({"dispatch": {"max_batch_size": 4}}, "dispatch.max_batch_size"),
        ({"queue": {"ttl_s": float("nan")}}, "queue.ttl_s"),
    ],
)
def test_a_wrong_change_names_its_setting_and_nothing_of_it_is_done(changes, param):
    config, seen = live()
    with pytest.raises(ApiError) as caught:
        config.patch({"routing": "prefix", **changes}, by="x")
    assert (caught.value.status, caught.value.param) == (400, param)
    assert (config.version, config.settings, seen, config.audit()) == (1, SETTINGS, [], [])


def test_an_unknown_name_tells_the_nearest():
    with pytest.raises(ApiError, match=r"did you mean 'queue.max_requests'"):
        live()[0].patch({"queue": {"max_requets": 1}}, by="x")


def test_infinite_limits_are_null_in_json():
    config, _ = live()
    config.patch({"classes": {"gold": {"ttft_slo_s": None}}}, by="x")
    assert config.settings.classes[1].ttft_slo_s == math.inf


def test_what_the_gateway_refuses_is_undone():
    config, seen = live(refuse="edf")
    with pytest.raises(ApiError, match="cannot be had"):
        config.patch({"queue.order": "edf"}, by="x")
    assert [one.queue.order for one in seen] == ["edf", "fcfs"]
    assert (config.version, config.settings, config.audit()) == (1, SETTINGS, [])


def test_a_dry_run_says_all_and_does_nothing():
    config, seen = live()
    change = config.patch({"queue.order": "sjf"}, by="x", dry_run=True)
    assert change.dry_run
    assert change.changes == {"queue.order": ("fcfs", "sjf")}
    assert (config.version, seen, config.audit()) == (1, [], [])
    with pytest.raises(ApiError):
        config.patch({"queue.order": "lifo"}, by="x", dry_run=True)


def test_compare_and_set_lets_one_of_two_win():
    config, _ = live()
    config.patch({"queue.order": "sjf"}, by="first", expected_version=1)
    with pytest.raises(ApiError) as caught:
        config.patch({"queue.order": "vtc"}, by="second", expected_version=1)
    assert (caught.value.status, caught.value.code) == (412, "version_conflict")
    assert config.settings.queue.order == "sjf"
    assert [version_of(text) for text in ('"7"', "7", 'W/"7"', "*")] == [7, 7, 7, None]
    with pytest.raises(ApiError):
        version_of("seven")


def test_a_revert_is_a_change_of_its_own_and_the_log_tells_who_did_what():
    config, seen = live()
    config.patch({"queue.order": "sjf"}, by="alice", reason="shorter waits")
    config.patch({"queue.order": "vtc", "queue.ttl_s": 5.0}, by="policy:ppo")
    change = config.revert(1, by="bob", reason="worse", expected_version=3)
    assert (change.version, change.reverted_to, config.settings) == (4, 1, SETTINGS)
    assert seen[-1] == SETTINGS
    assert [(entry.version, entry.by, entry.reason) for entry in config.audit()] == [(2, "alice", "shorter waits"), (3, "policy:ppo", ""), (4, "bob", "worse")]  # fmt: skip
    assert config.audit(3)[0].json() == {
        "version": 4, "at": "2026-11-21T12:00:00.000+00:00", "by": "bob", "reason": "worse", "reverted_to": 1, "dry_run": False,
        "changes": {"queue.order": {"from": "vtc", "to": "fcfs"}, "queue.ttl_s": {"from": 5.0, "to": 60.0}},
    }  # fmt: skip
    with pytest.raises(ApiError, match="no version 9"):
        config.revert(9, by="x")


def test_history_is_bounded_and_says_so():
    config, _ = live()
    for n in range(REMEMBERED + 5):
        config.patch({"queue.max_requests": n}, by="x")
    assert len(config.audit()) == REMEMBERED
    with pytest.raises(ApiError, match="there are 7"):
        config.revert(1, by="x")


def test_settings_of_an_order_may_rest_while_another_is_in_force():
    config, _ = live()
    config.patch({"queue.order": "vtc", "queue.weights": {"a": 2.0}}, by="x")
    config.patch({"queue.order": "fcfs"}, by="x")
    assert config.settings.queue.weights == {"a": 2.0}
    with pytest.raises(ApiError, match="not in force"):
        config.patch({"queue.aging_s": 3.0}, by="x")


@given(orders=st.lists(st.sampled_from(["fcfs", "priority", "aging", "wfq", "vtc", "sjf"]), max_size=8), count=st.integers(0, 30))  # fmt: skip
def test_nothing_that_waits_is_lost_by_changes(orders, count):
    holder = [make_queue(QueueSettings())]
    config = LiveConfig(
        Settings(), lambda new: holder.append(change_queue(holder[-1], make_queue(new.queue, new.classes), 1.0))
    )
    crowd = [ask(n, arrival_s=n / 10, tenant=f"t{n % 3}", priority=n % 2) for n in range(count)]
    for one in crowd:
        holder[-1].push(one, one.arrival_s)
    for order in orders:
        config.patch({"queue.order": order}, by="x")
    assert holder[-1].waiting() == crowd
    assert sorted(holder[-1].pop(9.0).id for _ in crowd) == sorted(one.id for one in crowd)


def test_live_leaves_are_all_leaves_of_the_live_sections():
    names = {name for name, *_ in live_leaves(SETTINGS)}
    assert {"routing", "queue.order", "admission.rate_rps", "dispatch.batching", "classes.gold.priority"} <= names
    assert not {name for name in names if name.startswith(("server", "keys", "backends", "shared"))}
