"""Managed servers without an engine: the command lines, the figures, the limits, what the settings become, and what is refused."""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys

import pytest

from inferencegym.ground.errors import ConfigError
from inferencegym.runtime.backends import llama_serve
from inferencegym.runtime.backends.llamacpp import LlamaCpp
from inferencegym.runtime.backends.make import make_backend, make_pool
from inferencegym.runtime.backends.managed import full_command, read_figures
from inferencegym.runtime.backends.openai import OpenAI
from inferencegym.runtime.backends.vllm import Vllm
from inferencegym.runtime.backends.vllm_scheduler import CONTROL_VARIABLE
from inferencegym.runtime.ports import BackendError
from inferencegym.runtime.settings import BackendSettings, Settings
from tests.runtime.upstream import Upstream

METRICS = b"""# HELP vllm:num_requests_running Number of requests
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a b}"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0 1700000000
vllm:num_requests_waiting{engine="0"} 4
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:num_preemptions_total{engine="0"} 7
vllm:ttft_seconds_bucket{le="0.1"} 5
vllm:ttft_seconds_sum 1.5
process_open_fds NaN
nonsense
"""


@pytest.fixture
def gguf(tmp_path):
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    return str(file)


def run(main):
    return asyncio.run(asyncio.wait_for(main(), 30))


def test_figures_are_read_by_name_and_summed_over_labels():
    figures = read_figures(METRICS.decode())
    assert math.isnan(figures.pop("process_open_fds"))
    assert figures == {
        "vllm:num_requests_running": 5.0, "vllm:num_requests_waiting": 4.0, "vllm:kv_cache_usage_perc": 0.25,
        "vllm:num_preemptions_total": 7.0, "vllm:ttft_seconds_sum": 1.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("command", "full"),
    [
        (["/v/python3.11"], ["/v/python3.11", "-I", "x.py", "-m", "M"]),
        (["python", "--dtype", "half"], ["python", "-I", "x.py", "-m", "M", "--dtype", "half"]),
        (["python", "-m", "other.server", "--k"], ["python", "-m", "other.server", "-m", "M", "--k"]),
        (["vllm", "serve", "--k", "v"], ["vllm", "serve", "-m", "M", "--k", "v"]),
        (["llama-server"], ["llama-server", "-m", "M"]),
    ],
)
def test_a_command_takes_our_arguments_where_its_options_begin(command, full):
    assert full_command(command, ("-I", "x.py"), ("-m", "M")) == full


def test_llama_is_always_told_its_slots_and_the_launcher_reads_the_same_arguments(gguf):
    backend = LlamaCpp(
        "l", model_path=gguf, slots=3, ctx_tokens=100, batch_tokens=64, threads=2, command=("llama-server",)
    )
    command = backend.command()
    assert command[0] == "llama-server"
    read = llama_serve.options(command[1:])
    assert (read.model, read.parallel, read.ctx_size, read.batch_size, read.threads) == (gguf, 3, 300, 64, 2)
    assert (read.port, read.host, read.alias) == (backend.root.port, "127.0.0.1", "tiny")
    assert read.metrics
    assert read.slots
    assert backend.capabilities().knobs == {"batch_cap"}
    python = LlamaCpp("l", model_path=gguf, command=("/venv/bin/python",)).command()
    assert python[:3] == ["/venv/bin/python", "-I", llama_serve.__file__]


def test_how_many_tokens_their_memory_holds(gguf):
    llama = LlamaCpp("l", model_path=gguf, slots=3, ctx_tokens=100, command=("llama-server",))
    assert llama.capabilities().kv_tokens == 300
    assert LlamaCpp("l", adopt=True, url="http://127.0.0.1:9").capabilities().kv_tokens is None, "it may be one for all"
    vllm = Vllm("v", model="m", adopt=True, url="http://127.0.0.1:9")
    vllm.read_labels('vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0\n')
    assert vllm.capabilities().kv_tokens is None
    engine = 'vllm:cache_config_info{block_size="16",cache_dtype="auto",num_gpu_blocks="1000",num_gpu_blocks_override="7"} 1.0\n'
    vllm.read_labels(engine + engine.replace("1000", "500"))
    assert vllm.capabilities().kv_tokens == 24_000


def test_llama_says_what_is_missing(gguf, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="there is no file"):
        LlamaCpp("l", model_path="/nowhere.gguf", command=("x",))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="pip install xllamacpp"):
        LlamaCpp("l", model_path=gguf)
    with pytest.raises(ConfigError, match="not this machine"):
        LlamaCpp("l", model_path=gguf, command=("x",), url="http://10.0.0.1:80")
    with pytest.raises(ConfigError, match="only be adopted where it is"):
        LlamaCpp("l", adopt=True)


def test_an_adopted_server_that_is_not_there_is_named():
    async def main():
        backend = LlamaCpp("l", adopt=True, url="http://127.0.0.1:9")
        with pytest.raises(BackendError, match=r"nobody answers at http://127\.0\.0\.1:9/health"):
            await backend.start()
        await backend.stop()

    run(main)


def test_vllm_is_started_with_our_scheduler_where_it_finds_it():
    backend = Vllm(
        "v", model="m", model_path="/models/m", max_num_seqs=8, max_model_len=512, gpu_memory_utilization=0.5,
        command=("python", "--dtype", "bfloat16"), environ={"PYTHONPATH": "/mine", "HOME": "/h"}, models=("m", "alias"),
    )  # fmt: skip
    command = backend.command()
    assert command[:3] == ["python", "-m", "vllm.entrypoints.openai.api_server"]
    assert command[-2:] == ["--dtype", "bfloat16"]
    text = " ".join(command)
    for part in ("--model /models/m", "--served-model-name m alias", "--max-num-seqs 8", "--max-model-len 512", "--gpu-memory-utilization 0.5"):  # fmt: skip
        assert part in text
    environ = backend._environ()
    assert environ[CONTROL_VARIABLE] == str(backend.control_file)
    folder, rest = environ["PYTHONPATH"].split(":")
    assert (rest, environ["HOME"], environ["VLLM_NO_USAGE_STATS"]) == ("/mine", "/h", "1")
    module, name = command[command.index("--scheduler-cls") + 1].split(".")
    scope: dict = {}
    with open(f"{folder}/{module}.py") as file:
        exec(file.read(), scope)
    assert name in scope
    asyncio.run(backend.stop())
    assert not os.path.exists(folder)


def test_vllms_limits_are_written_whole_and_what_it_cannot_is_refused(tmp_path):
    file = tmp_path / "control.json"
    backend = Vllm("v", model="m", max_num_seqs=8, command=("python",), control_file=str(file))
    told = []
    backend.on_change = lambda well, problem: told.append(backend.capabilities().native_concurrency)
    assert backend.apply({"batch_cap": 2, "token_budget": 128}) == {}
    assert json.loads(file.read_text()) == {"max_running": 2, "max_tokens": 128}
    assert backend.apply({"batch_cap": 4.0}) == {}
    assert json.loads(file.read_text()) == {"max_running": 4, "max_tokens": 128}
    refused = backend.apply({"batch_cap": 9, "kv_budget_fraction": 0.5, "token_budget": 0})
    assert "8 seats" in refused["batch_cap"]
    assert "no knob" in refused["kv_budget_fraction"]
    assert "at least 1" in refused["token_budget"]
    assert json.loads(file.read_text()) == {"max_running": 4, "max_tokens": 128}
    assert told == [2, 4]


def test_an_adopted_vllm_is_scraped_and_live_only_with_its_control_file(tmp_path):
    async def main():
        async with Upstream() as up:
            up.metrics = METRICS
            backend = Vllm("v", model="tiny", url=up.url, adopt=True, max_num_seqs=8)
            await backend.start()
            assert backend.models == ("tiny",)
            load = backend.load()
            assert (load.running, load.waiting, load.kv_used_fraction, load.preemptions) == (5, 4, 0.25, 7)
            assert "no control file" in backend.apply({"batch_cap": 2})["batch_cap"]
            up.healthy = False
            assert not await backend.healthy()
            await backend.stop()
            named = Vllm(
                "v", model="tiny", url=up.url, adopt=True, max_num_seqs=8, control_file=str(tmp_path / "c.json")
            )
            assert named.apply({"batch_cap": 2}) == {}

    run(main)


def test_settings_become_backends_and_a_pool(gguf, tmp_path):
    async def main():
        one = Settings(
            backends=(
                BackendSettings(kind="openai", name="far", url="http://h:1", model="m", api_key_env="KEY", weight=2.0, variant="FP16"),
                BackendSettings(kind="llama.cpp", name="near", model="m", model_path=gguf, slots=3, command=("llama-server",), variant="INT4"),
                BackendSettings(kind="vllm", name="big", model_path="/m", command=("python",), max_num_seqs=9, served_models=("m", "n")),
                BackendSettings(kind="mock", name="toy"),
            ),
            routing="least_loaded",
        )  # fmt: skip
        toy = OpenAI("toy", "http://h:2", models=("m",))
        pool = make_pool(one, {"KEY": "sk-1"}, lambda settings: toy)
        far, near, big, mock = pool.backends
        assert far._headers["Authorization"] == "Bearer sk-1"
        assert (near.native_concurrency, big.native_concurrency, mock) == (3, 9, toy)
        assert pool.models() == ("m", "n")
        assert pool.variants() == ("FP16", "INT4")
        assert pool.routing == "least_loaded"
        assert "--served-model-name /m m n" in " ".join(big.command())
        await big.stop()
        told = []
        pool.on_change.append(lambda: told.append(near.capabilities().native_concurrency))
        assert near.apply({"batch_cap": 1}) == {}
        near.on_change(False, "dead")
        assert told[0] == 1
        assert not pool.usable(near)
        assert pool.member(near).problem == "dead"

    run(main)


def test_a_key_that_the_environment_lacks_is_named():
    settings = BackendSettings(kind="openai", name="far", url="http://h:1", api_key_env="NOT_SET")
    with pytest.raises(ConfigError, match="NOT_SET"):
        make_backend(settings, {}, lambda one: None)
    with pytest.raises(ConfigError, match=r"backends\.v\.model"):
        make_backend(BackendSettings(kind="vllm", name="v", command=(sys.executable,)), {}, lambda one: None)
