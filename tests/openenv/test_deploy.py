"""What deploys the product holds together: Dockerfiles, docker-compose.yml, Prometheus and Grafana name what there is, and nothing else."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openenv.core", reason="the extra 'openenv' is not installed")

import yaml
from prometheus_client.parser import text_string_to_metric_families

from inferencegym.envs.openenv.environment import ENVIRONMENTS
from inferencegym.envs.openenv.metrics import Meter

ROOT = Path(__file__).resolve().parents[2]
SPACES = ("llmserve_env", "pagedkv_env")


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def steps(path):
    """[(instruction, rest)] of a Dockerfile, lines joined."""
    text = re.sub(r"\\\n\s*(#.*\n\s*)*", "", path.read_text())
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip() and not line.startswith("#")]


def ignored(path):
    """Whether .dockerignore keeps a path of the checkout out of the build; the last rule that fits decides."""
    out = False
    for rule in (ROOT / ".dockerignore").read_text().split("\n"):
        if not rule or rule.startswith("#"):
            continue
        keep, pattern = rule.startswith("!"), rule.lstrip("!")
        parents = [path, *[str(parent) for parent in Path(path).parents if str(parent) != "."]]
        if any(fnmatch.fnmatch(one, pattern) or fnmatch.fnmatch(f"x/{one}", pattern) for one in parents):
            out = not keep
    return out


def test_compose_has_the_whole_product(compose):
    assert set(compose["services"]) == {"llmserve", "pagedkv", "gateway", "prometheus", "grafana", "redis"}
    for name in ENVIRONMENTS:
        service = compose["services"][name]
        assert service["command"] == [name]
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert any(mount.startswith("/tmp:") for mount in service["tmpfs"])
        assert set(service["environment"]) == {"MAX_CONCURRENT_ENVS", "SESSION_TIMEOUT_S"}


def test_nothing_listens_to_the_world_and_no_two_share_a_port(compose):
    taken = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert all(port.startswith("127.0.0.1:") for port in taken)
    defaults = [re.search(r":-(\d+)\}", port)[1] for port in taken]
    assert len(set(defaults)) == len(defaults) == 5


def test_every_mounted_file_is_there(compose):
    declared = set(compose["volumes"])
    for service in compose["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in declared, volume


def test_prometheus_asks_the_services_where_they_listen(compose):
    asked = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    jobs = {job["job_name"]: job["static_configs"] for job in asked["scrape_configs"]}
    targets = [target for one in jobs["environments"] for target in one["targets"]]
    exposed = dict(steps(ROOT / "Dockerfile"))["EXPOSE"]
    assert targets == [f"{name}:{exposed}" for name in ENVIRONMENTS]
    for name in ENVIRONMENTS:
        assert compose["services"][name]["ports"][0].endswith(f":{exposed}")


def test_grafana_shows_only_what_the_servers_tell():
    source = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())
    board = json.loads((ROOT / "deploy/grafana/dashboards/environments.json").read_text())
    meter = Meter("llmserve")
    meter.refused(429)
    meter.begun(object.__new__(ENVIRONMENTS["llmserve"]), "static_workload")
    meter.finished("static_workload", crashed=False)
    told, labels = set(), set()
    for family in text_string_to_metric_families(meter.text()):
        for sample in family.samples:
            told.add(sample.name)
            labels |= set(sample.labels)
    used = set()
    for panel in board["panels"]:
        assert panel["datasource"]["uid"] == source["datasources"][0]["uid"]
        for target in panel["targets"]:
            used |= set(re.findall(r"inferencegym_\w+", target["expr"]))
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels | {"instance"}
    assert len(used) >= 6
    assert used <= told


def test_the_root_image_is_small_in_rights_and_has_what_it_copies():
    found = steps(ROOT / "Dockerfile")
    stages = [rest for word, rest in found if word == "FROM"]
    assert len(stages) == 2
    last = found[max(i for i, (word, _) in enumerate(found) if word == "FROM") :]
    assert ("USER", "65532:65532") in last
    assert "HEALTHCHECK" in dict(last)
    assert "NUMBA_CACHE_DIR=/tmp/" in dict(last)["ENV"]
    copied = [
        part
        for word, rest in found
        if word == "COPY" and "--from" not in rest
        for part in rest.split()[:-1]
        if part[0] != "-"
    ]
    assert copied
    for path in copied:
        assert (ROOT / path).exists(), path
        assert not ignored(path), path
    for path in ("src/inferencegym/__init__.py", "src/inferencegym/envs/tasks/easy.toml"):
        assert not ignored(path)
    for path in (".git/config", "out/x", "tests/conftest.py", ".venv/bin/python", "src/inferencegym/__pycache__/x.pyc"):
        assert ignored(path), path


@pytest.mark.parametrize("path", ["Dockerfile", *(f"spaces/{space}/Dockerfile" for space in SPACES)])
def test_kernels_are_compiled_against_times_that_an_image_keeps(path):
    """An image keeps whole seconds of a file's time. Numba compares all of it, so files must get whole seconds before kernels are compiled."""
    run = next(rest for word, rest in steps(ROOT / path) if word == "RUN" and "suite(" in rest)
    assert re.search(r"find \S+/site-packages/inferencegym -name \"\*\.py\" -exec touch -d @\d+ ", run)
    assert run.index("touch") < run.index("compileall") < run.index("suite(")


def test_the_entry_point_gives_numba_a_copy_and_hands_its_arguments_on(tmp_path):
    """The script itself, with a command of that name which tells what it was given."""
    command = tmp_path / "inferencegym"
    command.write_text('#!/bin/sh\necho "$NUMBA_CACHE_DIR: $*"\n')
    command.chmod(0o755)
    told = subprocess.run(
        ["sh", str(ROOT / "deploy/entrypoint.sh"), "pagedkv", "--no-web"], capture_output=True, text=True, check=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "NUMBA_CACHE_DIR": str(tmp_path / "numba")},
    )  # fmt: skip
    assert told.stdout == f"{tmp_path}/numba: env --host 0.0.0.0 --port 7860 pagedkv --no-web\n"
    gateway = subprocess.run(
        ["sh", str(ROOT / "deploy/entrypoint.sh"), "serve", "--port", "1"], capture_output=True, text=True, check=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "NUMBA_CACHE_DIR": str(tmp_path / "numba")},
    )  # fmt: skip
    assert gateway.stdout == f"{tmp_path}/numba: serve --port 1\n"


@pytest.mark.parametrize("family", ENVIRONMENTS)
def test_the_command_takes_what_the_entry_point_says(family):
    told = subprocess.run(
        [sys.executable, "-m", "inferencegym", "env", "--host", "0.0.0.0", "--port", "7860", family, "--help"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
