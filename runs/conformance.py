"""docs/results/conformance.{json,md}: the conformance suite on our gateway, on a real llama.cpp, and on gateways of others.

    python runs/conformance.py [--peers FOLDER] [--only NAME,...]

FOLDER is a virtual environment with `pip install vllm-router==0.1.17 smg==1.13.0`; without it they are left out. Takes two minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.openenv.llama import ENGINE, GGUF, engine_files  # noqa: E402
from tests.starting import free_port  # noqa: E402

RESULTS = ROOT / "docs" / "results"
KEY = "sk-conformance-0123456789"
OURS = [sys.executable, "-m", "inferencegym"]
#: Becomes a command once a port answers: a gateway may want its upstream at its start, and the suite's upstream is there while the suite runs.
WHEN_OPEN = """
import os, socket, sys, time
while socket.socket().connect_ex(("127.0.0.1", int(sys.argv[1]))):
    time.sleep(0.05)
os.execv(sys.argv[2], sys.argv[2:])
"""
MARKS = {"pass": "✓", "fail": "**✗**", "skipped": "–"}


def ours(folder: Path, port: int, *given: str) -> list[str]:
    """Our gateway: four seats, eight places in the queue, one key."""
    file = folder / "gateway.toml"
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    file.write_text(
        "[dispatch]\nmax_concurrency = 4\n[queue]\nmax_requests = 8\n[server]\nlog = 'warning'\n"
        f"[[keys]]\nname = 'suite'\nsha256 = '{digest}'\n"
    )
    return [*OURS, "serve", "--config", str(file), "--port", str(port), *given]


def targets(folder: Path, port: int, upstream: int, peers: Path | None) -> dict[str, tuple[str, list[str], bool, str]]:
    """Name -> (version, command, whether the suite serves its upstream, key)."""
    here = f"http://127.0.0.1:{upstream}"
    mine = version("inferencegym")
    found = {
        "ours, mock": (mine, ours(folder, port), False, KEY),
        "ours, proxy": (mine, ours(folder, port, "--url", here), True, KEY),
    }
    try:
        python, gguf = engine_files()
    except RuntimeError as error:
        print(f"llama.cpp is left out: {error}")
    else:
        launcher = ROOT / "src/inferencegym/runtime/backends/llama_serve.py"
        command = f"{python} {launcher} -m {gguf} --port {port} -np 4 -c 8192 -t 1 -a smollm2 --metrics -v 0"
        found["llama.cpp"] = (f"{ENGINE.split('==')[1]}, {GGUF}", command.split(), False, "")
    if peers is not None:
        # An open breaker closes again while the suite waits for it.
        seats = f"--max-concurrent-requests 4 --queue-size 8 --cb-timeout-duration-secs 5 --prometheus-port {free_port()}".split()
        about = f"--host 127.0.0.1 --port {port} --worker-urls {here}".split()
        found["vllm-router"] = ("0.1.17", [str(peers / "bin/vllm-router"), *about, *seats], True, "")
        found["smg"] = ("1.13.0", [str(peers / "bin/smg"), "launch", *about, *seats], True, "")
    return found


def answers(url: str, path: str, key: str) -> bool:
    """Whether a page is there."""
    try:
        asked = urllib.request.Request(url + path, headers={"authorization": f"Bearer {key}"})
        with urllib.request.urlopen(asked, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@contextmanager
def running(command: list[str], log: Path):
    """A server in a session of its own."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def one(command: list[str], port: int, upstream: int | None, key: str, log: Path) -> dict:
    """The suite's JSON for one server."""
    url = f"http://127.0.0.1:{port}"
    if upstream is not None:
        command = [sys.executable, "-c", WHEN_OPEN, str(upstream), *command]
    with running(command, log) as server:
        suite = [*OURS, "conformance", url, "--json", "--pid", str(server.pid), "--timeout", "20"]
        if upstream is not None:
            suite += ["--upstream", str(upstream)]
        else:
            end = time.monotonic() + 180
            while not answers(url, "/v1/models", key):
                assert server.poll() is None, f"{command[0]} ended with {server.returncode}: {log.read_text()[-500:]}"
                assert time.monotonic() < end, f"{command[0]} did not start"
                time.sleep(0.2)
        done = subprocess.run(
            suite, capture_output=True, text=True, env=os.environ | {"OPENAI_API_KEY": key}, check=False
        )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def table(told: dict) -> str:
    """The page."""
    names = list(told["servers"])
    checks = {name: {c["id"]: c for c in told["servers"][name]["checks"]} for name in names}
    lines = [
        "# Conformance", "",
        f"`inferencegym conformance` (docs/conformance.md) on {told['date']}, made by `python runs/conformance.py`. Each gateway has four seats and eight",
        "places in its queue where it knows such limits; gateways of others, and our proxy, stand in front of the suite's scripted upstream.",
        "✓ pass, **✗** fail, – cannot be told from outside here. The words of each failure stand below.", "",
        "| check | level | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names),
        "| | | " + " | ".join(told["servers"][name]["version"].split(",")[0] for name in names) + " |",
    ]  # fmt: skip
    for check in next(iter(checks.values())).values():
        cells = " | ".join(MARKS[checks[name][check["id"]]["verdict"]] for name in names)
        lines.append(f"| {check['sentence']} (`{check['id']}`) | {check['level']} | {cells} |")
    for level in ("must", "should"):
        totals = [[c["verdict"] for c in checks[name].values() if c["level"] == level] for name in names]
        lines.append(
            f"| **{level}: failed of judged** | | "
            + " | ".join(f"{t.count('fail')} of {len(t) - t.count('skipped')}" for t in totals)
            + " |"
        )
    for name in names:
        failed = [c for c in checks[name].values() if c["verdict"] == "fail"]
        if failed:
            lines += ["", f"## {name} {told['servers'][name]['version']}", ""]
            lines += [f"- `{c['id']}` ({c['level']}): {c['note'].replace('|', '/')}" for c in failed]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--only", default="", help="names of servers; the others are kept as they were")
    args = parser.parse_args()
    file = RESULTS / "conformance.json"
    told = json.loads(file.read_text()) if args.only and file.exists() else {"servers": {}}
    told["date"] = datetime.now(UTC).strftime("%Y-%m-%d")
    wanted = [name.strip() for name in args.only.split(",") if name.strip()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        port, upstream = free_port(), free_port()
        for server, (release, command, behind, key) in targets(folder, port, upstream, args.peers).items():
            if wanted and server.split(", ")[-1] not in wanted:
                continue
            seen = one(command, port, upstream if behind else None, key, folder / "log")
            told["servers"][server] = {"version": release, **seen}
            print(server, {v: sum(c["verdict"] == v for c in seen["checks"]) for v in MARKS}, flush=True)
            file.write_text(json.dumps(told, indent=1) + "\n")
            (RESULTS / "conformance.md").write_text(table(told))


if __name__ == "__main__":
    main()
