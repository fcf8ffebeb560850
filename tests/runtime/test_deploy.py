"""The gateway's board, alert rules and service: they name what the gateway tells and takes, and nothing else."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from inferencegym.ground.units import MIB
from inferencegym.runtime.errors import ApiError
from inferencegym.runtime.exporter import Exporter
from inferencegym.runtime.gpu import Gpu, GpuReader
from inferencegym.runtime.keys import check_exposure
from inferencegym.runtime.loading import load_settings
from inferencegym.runtime.settings import QueueSettings, RecorderSettings, Settings
from tests.runtime.virtual import House, mock, run_house

yaml = pytest.importorskip("yaml", reason="PyYAML, which the extra 'dev' brings, is not installed")

ROOT = Path(__file__).resolve().parents[2]
BOARD = json.loads((ROOT / "deploy/grafana/dashboards/gateway.json").read_text())
RULES = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())["groups"][0]["rules"]
#: Labels that Prometheus itself puts on, and those that name an alert.
OF_PROMETHEUS = {"instance", "job", "le"}


class Card(GpuReader):
    problem = ""

    def look(self):
        return (Gpu("0", "card", 0.5, 1000 * MIB, 2000 * MIB, 300.0, 60.0),)


@pytest.fixture(scope="module")
def told():
    """Series to labels, of a gateway to which everything has happened."""
    pages = []

    async def test(house: House) -> None:
        exporter = Exporter(house.gateway, Card())
        house.gateway.settings = msgspec.structs.replace(house.gateway.settings, recorder=RecorderSettings(folder="x"))
        flows = [house.begin(most=10) for _ in range(9)]
        with pytest.raises(ApiError):
            house.begin()
        flows[0].leave()
        await asyncio.gather(*(house.read(flow) for flow in flows))
        house.pool.backends[0]._failures = mock(failures={"die": 1.0})._failures
        await house.ask(most=21)
        house.gateway.shared = SimpleNamespace(up=False, failures=1, local=2)
        pages.append(exporter.prometheus())
        house.gateway.shared = None

    run_house(test, Settings(queue=QueueSettings(max_requests=1)))
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(pages[0]):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions():
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for rule in RULES:
        yield rule["alert"], rule["expr"]


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_series_is_one_that_we_export_with_the_labels_that_are_asked_for(told, where, expression):
    used = set(re.findall(r"inferencegym_\w+", expression))
    assert used <= told.keys(), where
    assert used or "up{" in expression
    labels = set().union(*(told[name] for name in used)) | OF_PROMETHEUS
    for by in re.findall(r"by \(([^)]*)\)", expression):
        assert {label.strip() for label in by.split(",")} <= labels, where


def test_legends_and_summaries_name_labels_that_are_there(told):
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            used = set(re.findall(r"inferencegym_\w+", target["expr"]))
            labels = set().union(*(told[name] for name in used)) | {"instance"}
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels, panel["title"]
    for rule in RULES:
        used = set(re.findall(r"inferencegym_\w+", rule["expr"]))
        labels = set().union(*(told[name] for name in used)) | {"instance"}
        assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= labels, rule["alert"]


def test_the_board_can_be_drawn():
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids)) >= 20
    taken = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not taken & cells, panel["title"]
        taken |= cells
        assert panel["description"]
        assert panel["datasource"] == BOARD["templating"]["list"][0]["datasource"]


def test_the_service_starts_with_a_key_and_ends_without():
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    service = compose["services"]["gateway"]
    settings = load_settings(None, service["environment"] | {"LLM_RUNTIME_API_KEY": "0123456789abcdefg"})
    check_exposure(settings)
    with pytest.raises(Exception, match="no API key"):
        check_exposure(load_settings(None, service["environment"]))
    assert settings.shared.redis_url == "redis://redis:6379/0"
    asked = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in asked["scrape_configs"]}
    assert jobs["gateway"] == [f"gateway:{settings.server.port}"]
    assert service["ports"][0].endswith(f":{settings.server.port}")
    assert int(service["stop_grace_period"].removesuffix("s")) > settings.server.drain_timeout_s
    mounted = [volume.split(":")[1] for volume in compose["services"]["prometheus"]["volumes"]]
    assert {f"/etc/prometheus/{name}" for name in asked["rule_files"]} <= set(mounted)


SITUATIONS = {
    "evaluation_interval": "1m",
    "tests": [
        {
            "interval": "1m",
            "input_series": [
                {"series": 'up{job="gateway",instance="dead"}', "values": "1 0x20"},
                {"series": 'inferencegym_backend_up{instance="a",backend="x"}', "values": "1 0x20"},
                {"series": 'inferencegym_backend_up{instance="a",backend="y"}', "values": "1x21"},
                {"series": 'inferencegym_backend_up{instance="b",backend="x"}', "values": "0x21"},
                {"series": 'inferencegym_requests_total{instance="a"}', "values": "0+100x21"},
                {"series": 'inferencegym_failed_total{instance="a",reason="backend_error"}', "values": "0+4x21"},
                {"series": 'inferencegym_failed_total{instance="a",reason="backend_garbage"}', "values": "0+4x21"},
                {"series": 'inferencegym_rejected_total{instance="a",reason="queue_full"}', "values": "0+5x21"},
                {"series": 'inferencegym_shared_up{instance="a"}', "values": "1x10 0x10"},
            ],
            "alert_rule_test": [
                {"eval_time": "15m", "alertname": alert, "exp_alerts": [{"exp_labels": labels | {"severity": severity}} for labels in fire]}
                for alert, severity, fire in (
                    ("GatewayDown", "critical", [{"job": "gateway", "instance": "dead"}]),
                    ("GatewayWithoutBackend", "critical", [{"instance": "b"}]),
                    ("GatewayBackendDown", "warning", [{"instance": "a", "backend": "x"}, {"instance": "b", "backend": "x"}]),
                    ("GatewayFails", "critical", [{"instance": "a"}]),
                    ("GatewayTurnsAway", "warning", []),
                    ("GatewayLimitsNotShared", "warning", [{"instance": "a"}]),
                )
            ],
        }
    ],
}  # fmt: skip


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian package prometheus) is not installed")
def test_promtool_reads_the_files_and_the_alerts_fire_when_they_should(tmp_path):
    folder = ROOT / "deploy/prometheus"
    told = subprocess.run(["promtool", "check", "config", folder / "prometheus.yml"], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    situations = json.loads(json.dumps(SITUATIONS))
    for one in situations["tests"][0]["alert_rule_test"]:
        rule = next(rule for rule in RULES if rule["alert"] == one["alertname"])
        for alert in one["exp_alerts"]:
            value = "8%" if one["alertname"] == "GatewayFails" else "0"
            text = rule["annotations"]["summary"].replace("{{ $value | humanizePercentage }}", value)
            alert["exp_annotations"] = {
                "summary": re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda m, alert=alert: alert["exp_labels"][m[1]], text)
            }
    file = tmp_path / "situations.yml"
    file.write_text(yaml.safe_dump(situations | {"rule_files": [str(folder / "rules.yml")]}))
    told = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian package prometheus) is not installed")
def test_prometheus_understands_every_question_of_the_board(tmp_path):
    asked = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
    plain = [expr.replace("$__rate_interval", "1m").replace("$instance", ".*") for expr in asked]
    assert not [expr for expr in plain if "$" in expr]
    rules = [{"record": f"board:{number}", "expr": expr} for number, expr in enumerate(plain)]
    file = tmp_path / "board.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
    told = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
