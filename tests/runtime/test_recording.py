"""`serve --record`: live traffic becomes files that describe, replay and hold nothing of what was said. Parity P6, from the outside."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import subprocess
import sys

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from inferencegym.cli.gateway import make_app
from inferencegym.ground.errors import ConfigError
from inferencegym.metrics.record import COLUMNS, Records
from inferencegym.runtime.recorder import Recorder
from inferencegym.runtime.settings import BackendSettings, RecorderSettings, ServerSettings, ServiceClass, Settings
from inferencegym.runtime.siblings import Worker
from inferencegym.workload import read
from tests.runtime.asks import ask
from tests.runtime.virtual import House, mock, run_house

SECRET = "a word that nobody may find"


def inferencegym(*words):
    done = subprocess.run([sys.executable, "-m", "inferencegym", *map(str, words)], capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_live_traffic_is_recorded_described_and_simulated(start, tmp_path):
    folder, kept = tmp_path / "traffic", tmp_path / "load"
    process, url, _ = start(
        "--record", folder, "--set", "backends.main.time_scale=20", "--set", "recorder.rows_per_file=20"
    )
    inferencegym(
        "load", "--url", url, "--requests", 50, "--rate", 100, "--prompt-tokens", 40, "--output-tokens", 12, "--save", kept
    )  # fmt: skip
    said = {"model": "llama-3.1-8b", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 3}
    answer = httpx.post(f"{url}/v1/chat/completions", json=said, headers={"x-tenant": "lena"}, timeout=30)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert sorted(file.name for file in folder.iterdir()) == [
        f"{kind}-0000{i}.parquet" for kind in ("records", "workload") for i in (1, 2, 3)
    ]  # fmt: skip
    rows, sizes, arrivals = 0, [], []
    for i in (1, 2, 3):
        table = pq.read_table(folder / f"records-0000{i}.parquet")
        records, workload = Records.from_table(table), read(folder / f"workload-0000{i}.parquet")
        assert set(COLUMNS) <= set(table.column_names)
        assert records.observer == "gateway"
        assert records.ok.all()
        assert records.out_of_order().tolist() == []
        # Row for row the same, in the order of arrival.
        assert records.arrival_s.tolist() == workload.arrival_s.tolist() == sorted(workload.arrival_s)
        for name in ("prompt_tokens", "output_tokens", "slo_class", "tenant"):
            assert getattr(records, name).tolist() == getattr(workload, name).tolist(), name
        rows += len(records)
        sizes += records.output_tokens.tolist()
        arrivals += records.arrival_s.tolist()
    assert rows == 51
    assert sorted(sizes) == [3] + [12] * 50
    assert "lena" in read(folder / "workload-00003.parquet").tenant_names
    # The client's own account of the same requests came in the same order at the same pace.
    seen = Records.from_table(pq.read_table(next(kept.glob("**/*.parquet"))))
    theirs = np.sort(seen.arrival_s)[-50:]
    assert np.corrcoef(theirs, np.sort(arrivals)[:50])[0, 1] > 0.99
    first = folder / "workload-00001.parquet"
    described = json.loads(inferencegym("traces", "describe", first, "--json"))
    assert (described["requests"], described["failed_at_source"]) == (20, 0)
    told = json.loads(inferencegym("simulate", "--trace", first, "--json"))
    assert told["workload"]["requests"] == 20
    everything = b"".join(file.read_bytes() for file in folder.iterdir())
    assert SECRET.encode() not in everything
    assert answer.json()["choices"][0]["message"]["content"].encode() not in everything


def test_each_worker_has_a_folder_of_its_own(tmp_path):
    settings = Settings(
        server=ServerSettings(dashboard=False),
        backends=(BackendSettings(kind="openai", url="http://127.0.0.1:9"),),
        recorder=RecorderSettings(folder=str(tmp_path / "r"), rotate_s=7.0),
    )
    app = make_app(settings, Worker(3, tmp_path))
    assert [file.name for file in (tmp_path / "r").iterdir()] == ["worker-3"]
    assert len(app.gateway.companions) == 2
    plain = make_app(Settings(server=settings.server, backends=settings.backends))
    assert plain.gateway.companions == []


def test_what_has_ended_is_written_before_a_file_is_full(tmp_path):
    async def test(house: House) -> None:
        await house.ask(most=5)
        house.recorder.journal.rotate()
        house.recorder.journal.rotate()
        await house.ask(most=5)

    house = run_house(test, path=tmp_path, rows_per_file=1000)
    assert house.recorder.journal.files == 2, "nothing new, no new file"
    assert house.recorder.journal.written == 2


def test_a_full_disk_costs_rows_and_is_said_but_breaks_no_request(tmp_path, caplog):
    recorder = Recorder((ServiceClass("a"),), lambda: 1.0, path=tmp_path / "r", rows_per_file=2)
    (tmp_path / "r").rmdir()
    (tmp_path / "r").write_text("no folder any more")
    with caplog.at_level(logging.ERROR):
        for i in range(5):
            recorder.reject(ask(i, arrival_s=1.0), "rate")
        recorder.close()
    assert (recorder.journal.written, recorder.journal.lost) == (0, 5)
    assert caplog.text.count("could not be written") == 3


def test_a_folder_that_cannot_be_made_is_said_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"recorder\.folder"):
        Recorder((ServiceClass("a"),), lambda: 1.0, path=tmp_path / "file" / "r")


def test_preemptions_are_in_the_records():
    """Eight requests of up to 28 blocks share 100 blocks, so some have to make room."""

    async def test(house: House) -> None:
        await asyncio.gather(*(house.ask(prompt=50, most=400) for _ in range(8)))
        assert house.pool.backends[0].load().preemptions == house.recorder.preemptions > 0

    house = run_house(test, backends=[mock(kv_blocks=100)])
    assert house.recorder.records().preemptions.sum() == house.recorder.preemptions
