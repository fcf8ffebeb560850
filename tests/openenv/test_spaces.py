"""The deployable folders: OpenEnv's validator on the folder, on a running server, and its runtime checks through a provider on loopback."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("openenv.core", reason="the extra 'openenv' is not installed")

from openenv.cli._validation import validate_running_environment
from openenv.validation import CheckStatus, Level, Verdict, run_validation

SPACES = Path(__file__).resolve().parents[2] / "spaces"
FAMILIES = {"llmserve_env": "llmserve", "pagedkv_env": "pagedkv"}


def loaded(name, path, package=None):
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=package)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def assemble():
    return loaded("assemble_spaces", SPACES / "assemble.py").assemble


class Loopback:
    """A provider that has the server running already, on this machine."""

    name = "loopback"
    supported_network_modes = frozenset({"public"})

    def __init__(self, url):
        from openenv.validation.types import ProviderCapability

        self.capabilities = frozenset({ProviderCapability.IMAGE_BUILD})
        self.base_url = url

    def build(self, root, execution):
        assert (root / execution.dockerfile).is_file()
        return "sha256:" + hashlib.sha256(str(root).encode()).hexdigest()

    def start(self, spec):
        assert spec.resources.memory_mb >= 1024
        return self

    def inspect(self):
        return {"provider": self.name}

    def logs(self, max_bytes=65536):
        return ""

    def exec(self, argv, timeout_s):
        raise NotImplementedError

    def stop(self):
        pass


@pytest.mark.parametrize("space", FAMILIES)
def test_the_folder_passes_the_static_level(space):
    report = run_validation(SPACES / space, max_level=Level.STATIC, skip_build=True)
    assert report.verdict == Verdict.PASS, report


# OpenEnv's own validator uses what is deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("space", FAMILIES)
def test_the_assembled_folder_passes_the_runtime_checks(space, assemble, tmp_path, serve_server, paging_server):
    folder = assemble(space, tmp_path / "out", wheel=False)
    server = serve_server if FAMILIES[space] == "llmserve" else paging_server
    report = run_validation(folder, max_level=Level.RUNTIME, provider=Loopback(server.url))
    found = {check.check_id: check.status for check in report.results}
    for wanted in (
        "static.manifest",
        "runtime.startup",
        "runtime.observation_schema",
        "runtime.reward_well_formed",
        "runtime.state_contract",
    ):
        assert found[wanted] == CheckStatus.PASS, [check for check in report.results if check.check_id == wanted]
    assert report.verdict != Verdict.FAIL


@pytest.mark.parametrize("space", FAMILIES)
def test_a_running_server_passes_all_six_url_checks(space, serve_server, paging_server):
    server = serve_server if FAMILIES[space] == "llmserve" else paging_server
    report = validate_running_environment(server.url)
    assert report["passed"]
    assert len(report["criteria"]) == 6
    assert all(criterion["passed"] for criterion in report["criteria"])


@pytest.mark.parametrize("space", FAMILIES)
def test_the_package_imports_as_its_users_type_it(space):
    package = loaded(space, SPACES / space / "__init__.py", [str(SPACES / space)])
    client = getattr(package, {"llmserve_env": "LLMServeEnv", "pagedkv_env": "PagedKVEnv"}[space])
    assert callable(client.from_url)
    for name in package.__all__:
        assert hasattr(package, name)


@pytest.mark.parametrize("space", FAMILIES)
def test_canaries_stay_at_the_floor(space):
    """Trajectories that try nothing must not be worth anything: their grade stays below a fifth of the scale."""
    from inferencegym.envs.openenv.environment import ENVIRONMENTS
    from inferencegym.envs.openenv.models import as_action

    family = FAMILIES[space]
    canaries = sorted((SPACES / space / "canaries").glob("*.json"))
    assert len(canaries) == 3
    for file in canaries:
        canary = json.loads(file.read_text())
        environment = ENVIRONMENTS[family]()
        seen = environment.reset(task_id=canary["task_id"], split=canary["split"], seed=canary["seed"])
        step = 0
        while not seen.done:
            seen = environment.step(as_action(family, canary["actions"][step % len(canary["actions"])]))
            step += 1
        assert environment.grade()["score"] < 0.2, file.name


def test_the_dockerfile_is_not_root_and_numba_may_write():
    for space in FAMILIES:
        text = (SPACES / space / "Dockerfile").read_text()
        assert "USER 65532" in text
        assert "NUMBA_CACHE_DIR=/tmp/" in text
