"""docs/results/conformance.{json,md}: the conformance suite on our gateway, on a real llama.cpp, and on gateways of others.

    python runs/conformance.py [--peers FOLDER] [--only NAME;...]

FOLDER is a virtual environment with `pip install vllm-router==0.1.17 smg==1.13.0`; without it they are left out. Takes three minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from inferencegym.testing.servers import NotReadyError, free_port, until_healthy  # noqa: E402
from tests.openenv.llama import ENGINE, GGUF, engine_files  # noqa: E402

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


class Server(NamedTuple):
    """Whom to ask."""

    version: str
    command: list[str]
    key: str = ""
    behind: bool = False
    """Whether the suite serves its upstream."""
    burst: int = 64
    """Requests at once: a real engine on one thread gets fewer."""


def ours(folder: Path, port: int, backend: str) -> list[str]:
    """Our gateway: four seats, eight places in the queue, one key."""
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    file = folder / f"{len(list(folder.iterdir()))}.toml"
    file.write_text(
        "[dispatch]\nmax_concurrency = 4\n[queue]\nmax_requests = 8\n[server]\nlog = 'warning'\n"
        f"[[keys]]\nname = 'suite'\nsha256 = '{digest}'\n[[backends]]\nname = 'main'\n{backend}\n"
    )
    return [*OURS, "serve", "--config", str(file), "--port", str(port)]


def servers(folder: Path, port: int, upstream: int, peers: Path | None) -> dict[str, Server]:
    """By name. All listen on the same port, one after the other."""
    here = f"http://127.0.0.1:{upstream}"
    mine = version("inferencegym")
    found = {
        "ours, mock": Server(mine, ours(folder, port, "kind = 'mock'"), KEY),
        "ours, proxy": Server(mine, ours(folder, port, f"kind = 'openai'\nurl = '{here}'"), KEY, behind=True),
    }
    try:
        python, gguf = engine_files()
    except RuntimeError as error:
        print(f"llama.cpp is left out: {error}")
    else:
        about = f"kind = 'llama.cpp'\nmodel_path = '{gguf}'\nslots = 4\nctx = 8192\nthreads = 1\ncommand = ['{python}']"
        found["ours, llama.cpp"] = Server(mine, ours(folder, port, about), KEY, burst=16)
        launcher = ROOT / "src/inferencegym/runtime/backends/llama_serve.py"
        command = f"{python} {launcher} -m {gguf} --port {port} -np 4 -c 8192 -t 1 -a smollm2 --metrics -v 0"
        found["llama.cpp"] = Server(f"{ENGINE.split('==')[1]}, {GGUF}", command.split(), burst=16)
    if peers is not None:
        # An open breaker closes again while the suite waits for it.
        limits = (
            f"--max-concurrent-requests 4 --queue-size 8 --cb-timeout-duration-secs 5 --prometheus-port {free_port()}"
        )
        about = f"--host 127.0.0.1 --port {port} --worker-urls {here} {limits}".split()
        found["vllm-router"] = Server("0.1.17", [str(peers / "bin/vllm-router"), *about], behind=True)
        found["smg"] = Server("1.13.0", [str(peers / "bin/smg"), "launch", *about], behind=True)
    return found


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


def one(asked: Server, port: int, upstream: int, log: Path) -> dict:
    """The suite's JSON for one server."""
    url, command = f"http://127.0.0.1:{port}", asked.command
    if asked.behind:
        command = [sys.executable, "-c", WHEN_OPEN, str(upstream), *command]
    with running(command, log) as server:
        suite = [
            *OURS,
            "conformance",
            url,
            "--json",
            "--pid",
            str(server.pid),
            "--timeout",
            "60",
            "--burst",
            str(asked.burst),
        ]
        if asked.behind:
            suite += ["--upstream", str(upstream)]
        else:
            try:
                until_healthy(server, url, 180, headers={"authorization": f"Bearer {asked.key}"})
            except NotReadyError as error:
                raise SystemExit(f"{command[0]}: {error}: {log.read_text()[-500:]}") from error
        done = subprocess.run(
            suite, capture_output=True, text=True, env=os.environ | {"OPENAI_API_KEY": asked.key}, check=False
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
        "smg and vllm-router have their metrics on a port of their own; llama.cpp is started and ended by our launcher for the wheel xllamacpp.",
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
    parser.add_argument(
        "--only", default="", help="names of servers, with semicolons; the others are kept as they were"
    )
    args = parser.parse_args()
    file = RESULTS / "conformance.json"
    told = json.loads(file.read_text()) if args.only and file.exists() else {"servers": {}}
    told["date"] = datetime.now(UTC).strftime("%Y-%m-%d")
    wanted = [name.strip() for name in args.only.split(";") if name.strip()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        port, upstream = free_port(), free_port()
        for server, asked in servers(folder, port, upstream, args.peers).items():
            if wanted and server not in wanted:
                continue
            seen = one(asked, port, upstream, folder / "log")
            told["servers"][server] = {"version": asked.version, **seen}
            print(server, {v: sum(c["verdict"] == v for c in seen["checks"]) for v in MARKS}, flush=True)
            file.write_text(json.dumps(told, indent=1) + "\n")
            (RESULTS / "conformance.md").write_text(table(told))


if __name__ == "__main__":
    main()
