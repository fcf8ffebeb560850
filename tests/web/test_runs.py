"""The table of runs: shared, in line, given up, forgotten, and what becomes of a run whose process dies. With real processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from inferencegym.ground.errors import ConfigError
from inferencegym.web import frames
from inferencegym.web.runs import Limits
from inferencegym.web.spec import Spec
from tests.starting import free_port, until_healthy

#: A run that lasts: a planner that searches.
LONG = ("hard", ["clairvoyant"])
LIMIT_S = 60


def until(condition, limit_s=LIMIT_S):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@contextlib.contextmanager
def watching(arena, run_id):
    """A viewer in a thread, with the headers it has seen."""
    seen, left = [], threading.Event()

    def watch():
        reader = frames.Reader()
        with arena.client.stream("GET", f"/runs/{run_id}/stream") as stream:
            for piece in stream.iter_bytes():
                seen.extend(header for header, _ in reader.feed(piece))
                if left.is_set():
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield seen
    left.set()
    thread.join(20)
    assert not thread.is_alive()


def test_runs_wait_in_line_and_know_their_place(own_arena):
    arena = own_arena(at_once=1, line=2)
    first = arena.start(*LONG, seed=0)
    others = [arena.start(*LONG, seed=seed) for seed in (1, 2)]
    assert [(one["state"], one["place"]) for one in others] == [("waiting", 1), ("waiting", 2)]
    answer = arena.client.post("/runs", json={"task": "hard", "policies": ["lru"]})
    assert answer.status_code == 503
    assert "2 runs are waiting" in answer.json()["error"]["message"]
    with watching(arena, others[1]["id"]) as seen:
        until(lambda: any(one["type"] == "alive" and one["place"] == 2 for one in seen))
        os.kill(arena.process(first["id"]), signal.SIGKILL)
        until(lambda: arena.get(others[0]["id"])["state"] == "running")
        assert arena.get(others[1]["id"])["place"] == 1
        os.kill(arena.process(others[0]["id"]), signal.SIGKILL)
        until(lambda: any(one["type"] == "state" and one["state"] == "running" for one in seen))


def test_a_process_that_is_killed_is_told_and_the_run_can_be_played_again(own_arena):
    arena = own_arena()
    run = arena.start(*LONG)
    with watching(arena, run["id"]) as seen:
        until(lambda: any(one["type"] == "samples" for one in seen))
        os.kill(arena.process(run["id"]), signal.SIGKILL)
        until(lambda: seen[-1].get("state") == "failed")
    assert "died (exit code" in seen[-1]["message"]
    assert seen[-1]["frame"] == len([one for one in seen if one["type"] != "alive"]) - 1
    told = arena.get(run["id"])
    assert (told["state"], told["policies"][0]["state"]) == ("failed", "failed")
    again = arena.start(*LONG)
    assert (again["id"], again["message"]) == (run["id"], "")
    until(lambda: arena.get(run["id"])["policies"][0]["samples"] > 0)


def test_a_viewer_who_leaves_changes_nothing_for_the_others(own_arena):
    arena = own_arena(unwatched_s=0.5)
    run = arena.start("hard", ["lru", "sieve"], seed=8)
    with watching(arena, run["id"]) as stays:
        with watching(arena, run["id"]) as leaves:
            until(lambda: len(leaves) > 2)
        until(lambda: stays[-1].get("state") == "done")
    assert [one["frame"] for one in stays] == list(range(len(stays)))
    assert [one["state"] for one in arena.get(run["id"])["policies"]] == ["completed", "completed"]


def test_a_run_that_nobody_watches_is_given_up(own_arena):
    arena = own_arena(unwatched_s=0.5)
    run = arena.start(*LONG)
    until(lambda: arena.process(run["id"]) is not None)
    process = arena.process(run["id"])
    until(lambda: not _alive(process))
    answer = arena.client.get(f"/runs/{run['id']}")
    assert answer.status_code == 404
    assert "start it again" in answer.json()["error"]["message"]


def test_finished_runs_are_forgotten_oldest_first_but_never_one_that_is_watched(own_arena):
    short = {"horizon_ticks": 300}
    arena = own_arena(kept_bytes=1)
    first = arena.played("hard", ["lru"], seed=1, overrides=short)
    with arena.table.watched(arena.table.find(first["id"])):
        second = arena.played("hard", ["lru"], seed=2, overrides=short)
        third = arena.played("hard", ["lru"], seed=3, overrides=short)
        assert arena.get(first["id"])["state"] == "done"
        assert arena.client.get(f"/runs/{second['id']}").status_code == 404
        assert arena.get(third["id"])["state"] == "done"


def test_who_still_looks_at_a_run_that_failed_does_not_keep_its_successor_alive(own_arena):
    arena = own_arena(unwatched_s=0.5)
    run = arena.start(*LONG)
    until(lambda: arena.process(run["id"]) is not None)
    with arena.table.watched(arena.table._runs[run["id"]]):
        os.kill(arena.process(run["id"]), signal.SIGKILL)
        until(lambda: arena.get(run["id"])["state"] == "failed")
        arena.start(*LONG)
        until(lambda: arena.process(run["id"]) is not None)
        process = arena.process(run["id"])
    until(lambda: not _alive(process), 20)


def test_a_process_that_cannot_be_begun_is_told_and_leaves_its_place(own_arena, monkeypatch):
    arena = own_arena(at_once=1)
    arena.played("hard", ["lru"], overrides={"horizon_ticks": 50})
    with monkeypatch.context() as broken:
        broken.setattr(multiprocessing.context.ForkServerProcess, "start", _no_more)
        run = arena.start("hard", ["lru"])
        until(lambda: arena.get(run["id"])["state"] == "failed")
    assert "could not be started" in arena.get(run["id"])["message"]
    assert arena.played("hard", ["lru"], overrides={"horizon_ticks": 60})["state"] == "done"


def test_many_small_runs_are_not_kept_for_ever(own_arena):
    arena = own_arena(kept_bytes=100_000)
    for seed in range(5):
        arena.played("hard", ["lru"], seed=seed, overrides={"horizon_ticks": 1})
    assert len(arena.table) < 5


def test_a_server_that_ends_fails_what_was_under_way_and_nothing_that_was_done(own_arena):
    arena = own_arena()
    done = arena.played("hard", ["lru"], overrides={"horizon_ticks": 50})
    long = arena.start(*LONG)
    runs = {one["id"]: arena.table._runs[one["id"]] for one in (done, long)}
    arena.stop()
    assert runs[done["id"]].state == "done"
    assert (runs[long["id"]].state, runs[long["id"]].message) == ("failed", "The server is shutting down")


def _no_more(process):
    raise BlockingIOError("Resource temporarily unavailable")


class Raises:
    """Plays on for a while, and then does not."""

    name, surface = "sieve", "paging"

    def start(self, seed):
        self.left = 100

    def act(self, observation, mask):
        self.left -= 1
        return 17 // self.left


def test_a_policy_that_raises_fails_alone_and_says_why(monkeypatch):
    from inferencegym.envs.actors import actor
    from inferencegym.web import play, worker

    monkeypatch.setattr(play, "actor", lambda name, task: Raises() if name == "sieve" else actor(name, task))
    here, there = multiprocessing.Pipe()
    here.send(1.0)
    spec = Spec("hard", ("lru", "sieve"), overrides={"horizon_ticks": 300})
    player = threading.Thread(target=lambda: worker._Work(there, spec).play())
    player.start()
    heard = []
    while not heard or heard[-1][0] not in ("done", "failed"):
        assert here.poll(LIMIT_S)
        heard.append(here.recv())
    player.join()
    ends = {said[1]: said for said in heard if said[0] == "ended"}
    assert ends[0][2] == "completed"
    assert ends[1][2:5] == ("failed", None, "ZeroDivisionError: integer division or modulo by zero")
    played = {i: samples for said in heard if said[0] == "played" for i, samples, _, _ in said[1]}
    assert played == {0: 300, 1: 49}
    assert heard[-1][0] == "done"


def test_a_larger_share_ends_a_wait_that_a_smaller_one_began():
    from inferencegym.web import worker

    here, there = multiprocessing.Pipe()
    here.send(0.001)
    at_work = worker._Work(there, Spec("hard", ("lru",)))
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    later = threading.Timer(0.3, here.send, [1.0])
    later.start()
    begun_s = time.monotonic()
    at_work._rest()
    assert 0.2 < time.monotonic() - begun_s < 20.0, "at a thousandth of a core it would be 50 s"
    later.join()


@pytest.mark.parametrize("wrong", [{"share": 0}, {"share": 2.0}, {"at_once": 0}])
def test_limits_are_checked(wrong):
    with pytest.raises(ConfigError):
        Limits(**wrong)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_server(how):
    port = free_port()
    command = [str(Path(sys.executable).with_name("inferencegym")), "env", "pagedkv", "--port", str(port), "--no-web"]
    url = f"http://127.0.0.1:{port}"
    # In a shell script's background SIGINT is ignored, and so it would be here.
    server = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        until_healthy(server, url, 90)
        assert _family(server.pid), "the fork server loads before anybody asks"
        run = httpx.post(
            f"{url}/dashboard/api/runs", json={"task": "hard", "policies": ["clairvoyant"]}, timeout=60
        ).json()
        with httpx.stream("GET", f"{url}/dashboard/api/runs/{run['id']}/stream", timeout=60) as stream:
            pieces = stream.iter_bytes()
            next(pieces)
            begun = _family(server.pid)
            assert len(begun) >= 3, "the fork server, the desk and the run's process"
            asked_s = time.monotonic()
            server.send_signal(how)
            with contextlib.suppress(httpx.HTTPError):
                list(pieces)
            # To take down so large an interpreter takes seconds after that, with a dashboard or without.
            assert time.monotonic() - asked_s < 3.0, "who watched held up the end"
        server.wait(30)
        until(lambda: not any(map(_alive, begun)), 10)
    finally:
        server.kill()
        said = server.communicate()[0]
    assert f"dashboard on {url}/dashboard" in said


def test_without_its_extra_one_line_says_how_to_get_the_dashboard(monkeypatch):
    from inferencegym.cli import env

    monkeypatch.setitem(sys.modules, "inferencegym.web.app", None)
    said, ending = env._with_dashboard(object())
    assert "pip install 'inferencegym[web]'" in said
    assert ending is None


def _alive(pid):
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _family(pid):
    """All processes below one."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]
