"""Sessions: sockets of mixed tasks at once, a cap and an end to idleness, reaped sessions that touch nothing, and official clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import pytest

pytest.importorskip("openenv.core", reason="the extra 'openenv' is not installed")

from openenv.core.env_server.http_server import HTTPEnvServer
from openenv.core.env_server.types import ConcurrencyConfig
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from inferencegym.envs.openenv.client import LLMServeEnv, PagedKVEnv
from inferencegym.envs.openenv.environment import LLMServeEnvironment, PagedKVEnvironment
from inferencegym.envs.openenv.models import PagingAction, PagingObservation, PagingState, ServeAction
from inferencegym.envs.openenv.sessions import FullError, SessionTable, UnknownSessionError
from inferencegym.ground.rng import stream
from tests.openenv.conftest import Limits, Running


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


async def say(socket, kind, data=None):
    await socket.send(json.dumps({"type": kind} | ({} if data is None else {"data": data})))
    return json.loads(await socket.recv())


def sockets_of(running):
    return running.url.replace("http", "ws") + "/ws"


FAMILIES = {
    "pagedkv": (PagedKVEnvironment, PagingAction, ("easy", "medium", "hard"), 12),
    "llmserve": (
        LLMServeEnvironment,
        ServeAction,
        ("static_workload", "bursty_workload", "adversarial_multitenant"),
        3,
    ),
}


def drawn_action(family, mask, rng):
    """An action that is possible now, as it goes over the wire."""
    if family == "pagedkv":
        choices = [action for action, possible in enumerate(mask) if possible]
        return {"action_id": choices[int(rng.random() * len(choices))]}
    return {"batch_cap": int(1 + rng.random() * 512), "priority_routing": bool(rng.random() < 0.5)}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_64_sockets_interleaved_at_random_are_64_episodes_of_their_own(family, paging_server, serve_server):
    server = paging_server if family == "pagedkv" else serve_server
    environment_of, action_of, names, steps = FAMILIES[family]
    count = 64

    async def go():
        rng = stream(3, "test")
        sockets = await asyncio.gather(*(connect(sockets_of(server)) for _ in range(count)))
        alone = [environment_of() for _ in range(count)]
        masks = []
        for i, (socket, environment) in enumerate(zip(sockets, alone, strict=True)):
            begin = {"seed": i // 8, "task_id": names[i % 3], "episode_id": f"episode-{i}"}
            told = await say(socket, "reset", begin)
            expected = environment.reset(**begin)
            assert told["data"]["observation"]["encoded"] == expected.encoded
            masks.append(expected.action_mask)
        order = rng.permutation([i for i in range(count) for _ in range(steps)])
        for i in order.tolist():
            sent = drawn_action(family, masks[i], rng)
            told = (await say(sockets[i], "step", sent))["data"]
            expected = alone[i].step(action_of(**sent))
            assert told["observation"] == expected.model_dump(exclude={"reward", "done"})
            assert (told["reward"], told["done"]) == (expected.reward, expected.done)
            masks[i] = expected.action_mask
        for i, socket in enumerate(sockets):
            state = (await say(socket, "state"))["data"]
            assert (state["episode_id"], state["step_count"], state["seed"]) == (f"episode-{i}", steps, i // 8)
        await asyncio.gather(*(socket.close() for socket in sockets))

    asyncio.run(go())


def test_wrong_frames_are_answered_and_the_socket_lives_on(paging_server):
    async def go():
        async with connect(sockets_of(paging_server)) as socket:
            assert (await say(socket, "step", {"action_id": 17}))["data"]["code"] == "EXECUTION_ERROR"
            await say(socket, "reset", {"seed": 0})
            for wrong in ({"action_id": 18}, {"action_id": True}, {"action_id": 1.5}, {"knob": 1}):
                assert (await say(socket, "step", wrong))["data"]["code"] == "VALIDATION_ERROR"
            await socket.send('{"type": "step", "data": {"action_id": NaN}}')
            assert json.loads(await socket.recv())["data"]["code"] == "VALIDATION_ERROR"
            await socket.send("{not json")
            assert json.loads(await socket.recv())["data"]["code"] == "INVALID_JSON"
            told = await say(socket, "reset", {"task_id": "nope"})
            assert "easy" in told["data"]["message"]
            assert (await say(socket, "state"))["data"]["step_count"] == 0
            assert (await say(socket, "step", {"action_id": 17}))["data"]["observation"]["step_index"] == 1

    asyncio.run(go())


def test_connections_that_come_and_go_leave_no_slot_taken(small_server):
    async def go():
        for _ in range(200):
            socket = await connect(sockets_of(small_server))
            await say(socket, "reset", {"seed": 0})
            # No close frame: the way a client dies.
            socket.transport.abort()
        await asyncio.sleep(0.3)
        sockets = [await connect(sockets_of(small_server)) for _ in range(3)]
        for socket in sockets:
            assert (await say(socket, "reset", {"seed": 1}))["type"] == "observation"
        async with connect(sockets_of(small_server)) as fourth:
            refusal = json.loads(await fourth.recv())
        assert (refusal["data"]["code"], refusal["data"]["max_sessions"]) == ("CAPACITY_REACHED", 3)
        for socket in sockets:
            await socket.close()

    asyncio.run(go())


def test_a_reaped_session_touches_nothing_any_more():
    """OpenEnv's reaper closes the environment of an idle socket and leaves the socket: what it sends then must be refused."""

    async def go():
        server = HTTPEnvServer(
            PagedKVEnvironment, PagingAction, PagingObservation, state_cls=PagingState, env_name="pagedkv_env",
            concurrency_config=ConcurrencyConfig(max_concurrent_envs=2, session_timeout=30.0),
        )  # fmt: skip
        session_id, environment = await server._create_session()
        await environment.reset_async(seed=0)
        await environment.step_async(PagingAction(action_id=17))
        await server._destroy_session(session_id)
        with pytest.raises(RuntimeError, match="closed"):
            await environment.step_async(PagingAction(action_id=17))
        assert environment._batch is None
        assert server.active_sessions == 0

    asyncio.run(go())


def test_200_sockets_left_open_free_their_room_and_touch_nothing_any_more():
    """Clients that hang: nothing is closed, and the room comes back once they were idle for too long."""
    running = Running("pagedkv", Limits(sessions=3, idle_s=1))

    async def go():
        left, refused = [], []
        for i in range(200):
            socket = await connect(sockets_of(running))
            if i < 3:
                assert (await say(socket, "reset", {"seed": i}))["type"] == "observation"
                left.append(socket)
            else:
                assert json.loads(await socket.recv())["data"]["code"] == "CAPACITY_REACHED"
                refused.append(socket)
        end = time.monotonic() + 30
        while True:
            fresh = await connect(sockets_of(running))
            with contextlib.suppress(ConnectionClosed):
                await fresh.send(json.dumps({"type": "reset", "data": {"seed": 7}}))
            first = json.loads(await fresh.recv())
            if first["type"] == "observation":
                break
            refused.append(fresh)
            assert time.monotonic() < end, "the room did not come back"
            await asyncio.sleep(0.2)
        alone = PagedKVEnvironment()
        assert first["data"]["observation"]["encoded"] == alone.reset(seed=7).encoded
        for socket in left:
            for kind, data in (("step", {"action_id": 17}), ("reset", {"seed": 0}), ("step", {"action_id": 17})):
                told = await say(socket, kind, data)
                assert told["data"]["code"] == "EXECUTION_ERROR"
                assert "closed" in told["data"]["message"]
        after = await say(fresh, "step", {"action_id": 8})
        assert after["data"]["observation"]["encoded"] == alone.step(PagingAction(action_id=8)).encoded
        await asyncio.gather(*(socket.close() for socket in (*left, *refused, fresh)))

    try:
        asyncio.run(go())
    finally:
        running.stop()


def test_the_table_expires_what_is_idle_and_keeps_what_is_used():
    clock = Clock()
    table = SessionTable(PagedKVEnvironment, cap=2, idle_s=10, clock=clock)
    idle, used = table.open(), table.open()
    with pytest.raises(FullError) as full:
        table.open()
    assert full.value.retry_after_s == 10
    clock.now = 8
    assert table.get(used.id) is used
    clock.now = 12
    assert len(table) == 1
    with pytest.raises(UnknownSessionError):
        table.get(idle.id)
    with pytest.raises(RuntimeError, match="closed"):
        idle.environment.reset()
    assert table.open().id not in (idle.id, used.id)
    table.close()
    assert len(table) == 0
    with pytest.raises(RuntimeError, match="closed"):
        used.environment.reset()


def test_a_session_at_work_does_not_expire():
    clock = Clock()
    table = SessionTable(PagedKVEnvironment, cap=2, idle_s=10, clock=clock)
    session = table.open()

    async def go():
        async with session.lock:
            clock.now = 100
            assert len(table) == 1
        assert len(table) == 0

    asyncio.run(go())


def test_the_official_client_async(serve_server):
    async def go():
        async with LLMServeEnv(base_url=serve_server.url) as client:
            first = await client.reset(seed=3, task_id="bursty_workload")
            assert first.observation.task_id == "bursty_workload"
            after = await client.step(ServeAction(batch_cap=32))
            assert after.observation.batch_cap == pytest.approx(32, rel=1e-3)
            assert (await client.step({"quantization_tier": "INT8"})).observation.step_index == 2
            state = await client.state()
            assert (state.step_count, state.seed) == (2, 3)

    asyncio.run(go())


def test_the_official_client_sync(paging_server):
    with PagedKVEnv(base_url=paging_server.url).sync() as client:
        expected = PagedKVEnvironment()
        assert client.reset(seed=9).observation.encoded == expected.reset(seed=9).encoded
        for action in (8, "admit_free", {"action_id": 17}, {"action": "nothing"}):
            result = client.step(action)
        for action in (8, 8, 17, 17):
            last = expected.step(PagingAction(action_id=action))
        assert result.observation.encoded == last.encoded
        assert client.state().step_count == 4
