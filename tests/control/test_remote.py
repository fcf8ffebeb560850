"""A gateway far away is the same plant as one here: real HTTP, real keys, and every way it can fail to answer."""

from __future__ import annotations

import hashlib
import math
import time

import pytest

from inferencegym.control.remote import RemotePlant
from inferencegym.decision.knobs import Knobs
from inferencegym.ground.errors import ConfigError, InputError, OfflineError
from inferencegym.runtime.exporter import Exporter
from inferencegym.runtime.gpu import GpuReader
from inferencegym.runtime.pages import Pages
from inferencegym.runtime.plant import GatewayPlant
from inferencegym.runtime.settings import Key
from inferencegym.runtime.steering import Steering
from tests.runtime.fakes import Served
from tests.runtime.virtual import mock
from tests.starting import free_port

ADMIN, PLAIN = "admin-key-0123456789abcdef", "plain-key-0123456789abcdef"
KEYS = tuple(
    Key(name, hashlib.sha256(key.encode()).hexdigest(), admin=name == "admin")
    for name, key in (("admin", ADMIN), ("plain", PLAIN))
)


@pytest.fixture
def served():
    with Served(mock(clock=time.monotonic), keys=KEYS) as one:
        one.plant, one.steering = GatewayPlant(one.gateway), Steering()
        pages = Pages(one.gateway, None, Exporter(one.gateway, GpuReader("no-such-program")), one.plant, one.steering)
        one.app._pages = pages.table()
        yield one


def test_what_is_seen_and_turned_over_http(served):
    with RemotePlant(served.url, key=ADMIN) as plant, RemotePlant(f"{served.url}/v1/", key=ADMIN) as other:
        seen = plant.snapshot()
        assert (seen.queue_depth, seen.active_requests, seen.slo_compliance_rate) == (0, 0, 1)
        assert math.isnan(seen.p99_ttft_ms)
        assert 0 < seen.snapshot_age_s < 10
        applied = plant.apply(Knobs(batch_cap=5, priority_routing=True, quantization_tier="INT4"))
        assert applied.accepted == {"batch_cap": 5, "priority_routing": True}
        assert "variant" in applied.refused["quantization_tier"]
        assert served.gateway.dispatcher.total_cap == 5
        assert plant.apply(Knobs()).accepted == {}
        here, far = served.plant.snapshot(), other.snapshot()
        names = ("batch_cap", "kv_budget_fraction", "speculation_depth", "quantization_tier", "priority_routing")
        assert [getattr(here, name) for name in names] == [getattr(far, name) for name in names]
        plant.close()
        assert plant.snapshot().batch_cap == 5, "a closed connection is opened again"


def test_the_gateway_is_told_who_is_at_the_wheel(served):
    with RemotePlant(served.url, key=ADMIN, policy="aimd", guard="slo") as plant:
        plant.apply(Knobs(batch_cap=5, quantization_tier="INT4"))
        plant.apply(Knobs())
    (command,) = served.steering.commands
    assert (command.by, command.policy, command.guard, command.accepted) == ("admin", "aimd", "slo", {"batch_cap": 5})
    assert set(command.refused) == {"quantization_tier"}
    assert 0 <= time.time() - command.at_s < 60


@pytest.mark.parametrize("key", ["", PLAIN, "wrong"])
def test_only_administrators(served, key):
    with RemotePlant(served.url, key=key) as plant, pytest.raises(ConfigError, match="administrator"):
        plant.snapshot()


def test_nobody_there():
    with pytest.raises(OfflineError, match="is it running"):
        RemotePlant(f"http://127.0.0.1:{free_port()}").snapshot()
    for url in ("localhost:8000", "ftp://x", "http://"):
        with pytest.raises(ConfigError, match="no address"):
            RemotePlant(url)


def test_something_else_there():
    with Served(mock(clock=time.monotonic)) as one, RemotePlant(f"{one.url}/elsewhere") as plant:
        with pytest.raises(InputError, match="answered 404"):
            plant.snapshot()
        # The server ends while the connection is kept: said, not raised as a stray socket error.
        one.running.stop()
        with pytest.raises(OfflineError, match="cannot be reached"):
            plant.snapshot()
