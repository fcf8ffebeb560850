"""The deployable folders: OpenEnv's validator on the folder, on a running server, and its runtime checks through a provider on loopback."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("openenv.core", reason="the extra 'openenv' is not installed")

from openenv.cli._validation import validate_multi_mode_deployment, validate_running_environment
from openenv.validation import CheckStatus, Level, Verdict, run_validation

SPACES = Path(__file__).resolve().parents[2] / "spaces"
FAMILIES = {"llmserve_env": "llmserve", "pagedkv_env": "pagedkv"}


def loaded(name, path, package=None):
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=package)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


assemble = loaded("assemble_spaces", SPACES / "assemble.py").assemble
loopback = loaded("loopback_provider", SPACES / "loopback.py")


@pytest.mark.parametrize("space", FAMILIES)
def test_the_folder_passes_the_static_level(space):
    report = run_validation(SPACES / space, max_level=Level.STATIC, skip_build=True)
    assert report.verdict == Verdict.PASS, report


@pytest.mark.parametrize("space", FAMILIES)
def test_the_default_level_finds_nothing_wrong_and_nothing_left_undone_that_could_be(space):
    """PASS is not to be had in 0.10.0, since most of its checks are not built; what is skipped says that, or that an image is needed."""
    report = run_validation(SPACES / space, max_level=Level.SEMANTIC)
    assert report.verdict == Verdict.WARN
    assert {check.status for check in report.results} == {CheckStatus.PASS, CheckStatus.SKIP}
    reasons = {line for check in report.results if check.status == CheckStatus.SKIP for line in check.evidence}
    assert reasons == {
        "grader not implemented in this build",
        "missing validation.execution declaration and runtime plan",
        "unmet dependency: runtime.startup",
    }


# OpenEnv's own validator uses what is deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("space", FAMILIES)
def test_the_assembled_folder_passes_every_check_that_is_built(space, tmp_path):
    """Its own server runs, as the image starts it, on loopback."""
    folder = assemble(space, tmp_path / "out", wheel=False)
    report = run_validation(folder, max_level=Level.SEMANTIC, provider=loopback.Loopback())
    found = {check.check_id: check for check in report.results}
    for wanted in (
        "static.manifest",
        "runtime.startup",
        "runtime.observation_schema",
        "runtime.reward_well_formed",
        "runtime.state_contract",
    ):
        assert found[wanted].status == CheckStatus.PASS, found[wanted]
    for check in report.results:
        assert check.status != CheckStatus.FAIL, check
        assert check.status != CheckStatus.ERROR, check
        if check.status == CheckStatus.SKIP and check.check_id != "runtime.network_policy":
            assert list(check.evidence) == ["grader not implemented in this build"]
    assert report.verdict == Verdict.WARN


@pytest.mark.parametrize("space", FAMILIES)
def test_the_old_structure_check_misses_only_a_lock_file(space, tmp_path):
    """Versions are pinned in constraints.txt, which pip reads; no command of 0.10.0 asks for uv.lock."""
    folder = assemble(space, tmp_path / "out", wheel=False)
    assert (folder / "constraints.txt").read_text().count("==") > 100
    _, issues = validate_multi_mode_deployment(folder)
    assert issues == ["Missing uv.lock - run 'uv lock' to generate it"]


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
