"""The Workloads section: what it lists, that its figures are the command line's, and that a large file is read in part and says so."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient
from typer.testing import CliRunner

from inferencegym.cli.traces import app as traces
from inferencegym.envs.catalogue import task
from inferencegym.envs.splits import scenario
from inferencegym.ground.errors import ConfigError
from inferencegym.web import workload_desk
from inferencegym.web.app import make_dashboard
from inferencegym.web.desk import Desk
from inferencegym.web.traffic import burstiness, figures, reuse_by_depth
from inferencegym.web.workload_desk import described, listing
from inferencegym.web.workloads import Asked, WorkloadsSection
from inferencegym.workload import Workload, generate, write
from inferencegym.workload.describe import describe


@pytest.fixture(scope="module")
def client():
    """A dashboard with a real desk."""
    section = WorkloadsSection(Desk())
    dashboard = make_dashboard([section], server="env")
    with TestClient(Starlette(routes=[Mount("/dashboard", dashboard)]), raise_server_exceptions=True) as made:
        yield made
    section.close()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of traces."""
    monkeypatch.setenv("INFERENCEGYM_TRACE_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def typed(command: str):
    """What a command line of `inferencegym traces` prints as JSON."""
    program, verb, *words = shlex.split(command)
    assert (program, verb) == ("inferencegym", "traces")
    result = CliRunner().invoke(traces, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def found(name: str, **asked):
    return json.loads(described(Asked(name, **asked)))


def test_what_is_here_is_listed_and_what_is_not_says_how_to_get_it(folder):
    write(generate("azure-code", seed=1, requests=30), folder / "mine.parquet")
    (folder / "notes.csv").write_text("a,b\n1,2\n")
    listed = {one["id"]: one for one in listing()}
    assert listed["burstgpt"]["kind"] == "fit"
    assert listed["bursty_workload"]["kind"] == "task"
    assert (listed["mine"]["kind"], listed["mine"]["requests"], listed["mine"]["available"]) == ("trace", 30, True)
    assert "no list of requests" in listed["notes"]["why_not"]
    assert listed["BurstGPT_1"]["why_not"].endswith("inferencegym traces fetch BurstGPT_1")
    assert "INFERENCEGYM_TRACE_DIR" in listed["azure_conversation"]["why_not"]
    assert "INFERENCEGYM_TRACE_DIR" in listed["azure_conv_2023"]["why_not"]
    assert len(listed) == len(listing()), "two workloads share an id"


def test_a_trace_with_the_name_of_a_fit_has_an_id_of_its_own(folder):
    write(generate("azure-code", seed=1, requests=30), folder / "burstgpt.parquet")
    assert found("burstgpt")["kind"] == "fit"
    real = found("trace:burstgpt")
    assert real["described"]["requests"] == 30
    assert typed(real["command"]) == real["described"]


@pytest.mark.parametrize(
    "asked",
    [
        Asked("azure-code", seed=3, duration_s=600.0),
        Asked("mooncake-conversation", duration_s=900.0, rate_rps=1.0 / 3.0),
        Asked("mine"),
        Asked("mine", duration_s=120.5, rate_rps=7.25),
    ],
)
def test_the_page_and_the_command_give_the_same_figures(folder, asked):
    write(generate("mooncake-conversation", seed=5, duration_s=600), folder / "mine.parquet")
    answer = json.loads(described(asked))
    assert answer["described"] == typed(answer["command"])
    assert answer["read"]["whole"]


def test_over_http_it_is_the_same_answer(client):
    answer = client.get("/dashboard/api/workloads/azure-code?seed=3&duration_s=600").json()
    assert answer["described"] == typed(answer["command"])
    assert "azure-code" in {one["id"] for one in client.get("/dashboard/api/workloads").json()["workloads"]}


def test_a_tasks_traffic_is_that_of_its_scenario():
    answer = found("bursty_workload", seed=2, split="train")
    assert answer["described"]["digest"] == task("bursty_workload").workload(scenario("train", 2)).digest()
    said: dict[str, object] = {}
    exec(answer["python"].replace("print(", "said.update("), {"said": said})
    assert json.loads(json.dumps(said)) == answer["described"]


def test_what_does_not_apply_is_said(folder):
    write(generate("azure-code", seed=1, requests=30), folder / "mine.parquet")
    assert found("mine", seed=4, split="test")["unused"] == ["seed", "split"]
    assert found("bursty_workload", rate_rps=2.0)["unused"] == ["rate_rps"]
    assert found("burstgpt", duration_s=60.0)["unused"] == []


def test_curves_agree_with_the_figures():
    w = generate("azure-code", seed=0, duration_s=1800)
    made = figures(w)
    curves, arrivals = made["curves"], made["described"]["arrivals"]
    rate = curves["rate"]
    bins = len(rate["rps"])
    inside = np.count_nonzero(w.arrival_s < bins * rate["bin_s"])
    assert bins <= 240
    assert sum(rate["rps"]) * rate["bin_s"] == pytest.approx(inside)
    scales = {one["window_s"]: one["idc"] for one in curves["burstiness"]}
    assert (scales[1.0], scales[60.0]) == (arrivals["idc_1s"], arrivals["idc_60s"])
    for name in ("gaps_s", "prompt_tokens", "output_tokens"):
        curve = curves[name]
        assert len(curve["edges"]) == len(curve["shares"]) + 1
        assert sum(curve["shares"]) + curve["below"] + curve["above"] == pytest.approx(1.0)


def test_reuse_by_depth_adds_up_to_the_hit_rate():
    rows = [[1, 2, 3, 4], [1, 2, 5], [1, 2, 3, 6, 7], [8], [1, 2, 5, 9]]
    w = Workload.of(
        arrival_s=np.arange(5.0), prompt_tokens=[16 * len(row) for row in rows], output_tokens=np.ones(5, int),
        prefix_offsets=np.cumsum([0, *map(len, rows)]), prefix_ids=np.concatenate(rows), prefix_block_tokens=16,
    )  # fmt: skip
    curve = reuse_by_depth(w)
    assert curve["depth_tokens"] == [16, 32, 48, 64, 80]
    weighted = np.dot(curve["share"], curve["prompts"]) / np.sum(curve["prompts"])
    assert weighted == pytest.approx(describe(w)["prefixes"]["hit_rate_blocks"])
    assert curve["share"][0] == pytest.approx(3 / 5)


def test_of_a_large_text_file_the_beginning_is_read_and_the_answer_says_so(folder, monkeypatch):
    rows = "".join(f"{0.5 * i},ChatGPT,{100 + i},{20 + i % 7},{120 + i},Conversation log\n" for i in range(400))
    (folder / "big.csv").write_text("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n" + rows)
    monkeypatch.setattr(workload_desk, "TEXT_BYTES", 4000)
    answer = found("big")
    assert not answer["read"]["whole"]
    lines = int(answer["read"]["words"].split()[2])
    assert answer["described"]["requests"] == lines - 1 < 400
    cut, describing = answer["command"].split(" && ")
    subprocess.run(cut, shell=True, cwd=folder, check=True)
    by_hand = typed(describing.replace("part.csv", str(folder / "part.csv")))
    for figures_ in (by_hand, answer["described"]):
        figures_.pop("name"), figures_.pop("source")
    assert by_hand == answer["described"]


def test_of_a_large_table_the_first_row_groups_are_read(folder, monkeypatch):
    whole = generate("azure-code", seed=1, requests=1000)
    write(whole, folder / "big.parquet")
    table = pq.read_table(folder / "big.parquet")
    pq.write_table(table, folder / "big.parquet", row_group_size=100)
    monkeypatch.setattr(workload_desk, "VALUES", 250 * table.num_columns)
    answer = found("big")
    assert answer["read"] == {"whole": False, "words": "the first 200 of 1,000 rows were read: it is large"}
    assert answer["described"]["digest"] == whole.head(200).digest()


def test_answers_are_kept_until_the_file_changes(folder, monkeypatch):
    write(generate("azure-code", seed=1, requests=30), folder / "mine.parquet")
    first = described(Asked("mine"))
    assert described(Asked("mine")) is first
    write(generate("azure-code", seed=1, requests=31), folder / "mine.parquet")
    assert found("mine")["described"]["requests"] == 31
    monkeypatch.setattr(workload_desk, "_CACHED_ANSWERS", 2)
    for seed in range(3):
        described(Asked("burstgpt", seed=seed, duration_s=60.0))
    assert len(workload_desk._answers) == 2


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("seed=-1", "seed"), ("seed=1.5", "seed"), ("seed=99999999999", "seed"), ("duration_s=0", "duration_s"),
        ("duration_s=nan", "duration_s"), ("rate_rps=fast", "rate_rps"), ("split=exam", "split"),
        ("duration=5", "duration"), ("duration_s=1e9", "duration_s"),
        ("duration_s=1e6", "duration_s"), ("rate_rps=1e-9&duration_s=60", "rate_rps"), ("rate_rps=1e300&duration_s=60", "rate_rps"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_field(client, query, field):
    answer = client.get(f"/dashboard/api/workloads/azure-code?{query}")
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["field"] == field
    assert error["allowed"]


def test_a_long_and_empty_trace_is_not_counted_in_windows_by_the_hundred_million():
    scales = [one["window_s"] for one in burstiness(np.array([0.0, 4_000_000.0, 9_000_000.0]))]
    assert scales[0] == 1.0, "0.1 s and 0.3 s would be 90 and 30 million windows"
    assert 3600.0 in scales


def test_an_unknown_workload_and_an_absent_one_say_what_to_do(folder):
    with pytest.raises(ConfigError, match="none called 'nothing' here"):
        described(Asked("nothing"))
    with pytest.raises(ConfigError, match="traces fetch BurstGPT_2"):
        described(Asked("BurstGPT_2"))


def test_the_servers_process_loads_nothing_heavy_for_it():
    code = "import sys, inferencegym.web.workloads, inferencegym.web.leaderboard; print({'numpy', 'numba', 'pyarrow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.needs_shared
def test_real_traces_give_the_commands_figures(shared_data, monkeypatch):
    monkeypatch.setenv("INFERENCEGYM_TRACE_DIR", str(shared_data / "traces"))
    for asked in (Asked("mooncake_conversation"), Asked("weka_agentic_coding"), Asked("servegen_client_rates@deepseek-r1", seed=1)):  # fmt: skip
        answer = json.loads(described(asked))
        assert answer["described"] == typed(answer["command"])
        assert answer["read"]["whole"] == (asked.name == "mooncake_conversation")
