"""What the gateway costs: CPU microseconds a request and a streamed chunk over the whole process tree, beside a raw-ASGI floor of the same run.

    client (core 1) ──► floor | gateway with mock | gateway with a proxied upstream (all on core 0) ──► upstream (core 1)

Every program is this file in another role, in a process of its own. Figures of CPU time, for the machine may be shared; latencies only where they
are asked for. `python benchmarks/gateway.py [--json] [--only mock,proxy,...] [--soak 100000]`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import uvicorn
import uvloop

from inferencegym.runtime.housekeeping import MOST_BETWEEN_S
from inferencegym.runtime.settings import BackendSettings, QueueSettings, ServerSettings, Settings
from inferencegym.testing.servers import free_port, until, until_healthy

TOKENS = 16
STREAMS, STREAM_TOKENS, PACE_S = 64, 128, 0.010
WAITERS = 10_000
#: How long a server may take to start, and so many to come or to go.
START_S, CROWD_S = 60.0, 120.0
MODEL = "llama-3.1-8b"
PROMPT = "x" * 200


def request(stream: bool, tokens: int = TOKENS) -> bytes:
    body = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": tokens, "ignore_eos": True}
    if stream:
        body["stream"] = True
    data = json.dumps(body).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(data), data)  # fmt: skip


# --- servers ---------------------------------------------------------------------------------------------------------------


def chunk(text: bytes, reason: bytes = b"null") -> bytes:
    return b'{"id":"c-1","object":"chat.completion.chunk","created":1,"model":"llama-3.1-8b","choices":[{"index":0,"delta":{"content":"%s"},"logprobs":null,"finish_reason":%s}]}' % (text, reason)  # fmt: skip


WHOLE = json.dumps({
    "id": "c-1", "object": "chat.completion", "created": 1, "model": MODEL,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": " word" * TOKENS}, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 54, "completion_tokens": TOKENS, "total_tokens": 54 + TOKENS},
}).encode()  # fmt: skip


class _Body(msgspec.Struct):
    model: str
    messages: list[dict]
    stream: bool = False
    max_tokens: int = TOKENS


async def floor(scope, receive, send) -> None:
    """Raw ASGI: read, decode, answer. Nothing less can be an OpenAI-compatible server on uvicorn."""
    if scope["path"] == "/readyz":
        body, asked = b"{}", None
    else:
        body, asked = WHOLE, msgspec.json.decode((await receive())["body"], type=_Body)
    if asked is None or not asked.stream:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    begin = time.monotonic()
    for i in range(asked.max_tokens):
        await asyncio.sleep(max(0.0, begin + (i + 1) * PACE_S - time.monotonic()))
        await send(
            {"type": "http.response.body", "body": b"data: " + chunk(b" word%d" % i) + b"\n\n", "more_body": True}
        )
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


class Upstream(asyncio.Protocol):
    """Answers from memory, streams at a pace; as light as Python can be."""

    def connection_made(self, transport):
        self.transport, self.rest = transport, b""

    def data_received(self, data: bytes) -> None:
        self.rest += data
        head, mark, body = self.rest.partition(b"\r\n\r\n")
        if not mark:
            return
        lowered = head.lower()
        length = int(lowered.partition(b"content-length:")[2].split(b"\r", 1)[0] or 0)
        if len(body) < length:
            return
        self.rest = b""
        if b'"stream": true' in body or b'"stream":true' in body:
            self.transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            self.count = int(body.partition(b'"max_tokens": ')[2].split(b",", 1)[0])
            self.at, self.begin = 0, asyncio.get_running_loop().time()
            self.pace()
        else:
            answer = b'{"object":"list","data":[{"id":"llama-3.1-8b"}]}' if lowered.startswith(b"get") else WHOLE
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(answer), answer))  # fmt: skip

    def pace(self) -> None:
        if self.transport.is_closing():
            return
        self.at += 1
        last = self.at == self.count
        event = b"data: " + chunk(b" word%d" % self.at, b'"length"' if last else b"null") + b"\n\n"
        if last:
            event += b'data: {"id":"c-1","choices":[],"usage":{"prompt_tokens":54,"completion_tokens":%d,"total_tokens":200}}\n\ndata: [DONE]\n\n' % self.count  # fmt: skip
        self.transport.write(b"%x\r\n%s\r\n" % (len(event), event) + (b"0\r\n\r\n" if last else b""))
        if not last:
            asyncio.get_running_loop().call_at(self.begin + self.at * PACE_S, self.pace)


def serve(role: str, port: int, upstream: int, log: str) -> None:
    """Run one of the servers until SIGTERM."""
    if role == "floor":
        uvicorn.run(floor, port=port, loop="uvloop", http="httptools", access_log=False, log_level="error", lifespan="off", ws="none", server_header=False)  # fmt: skip
    elif role == "upstream":

        async def main() -> None:
            await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port)
            await asyncio.Event().wait()

        uvloop.run(main())
    else:
        from inferencegym.cli.gateway import make_app
        from inferencegym.runtime.server import serve as run

        kinds = {
            # Real time at the pace of the step: an engine whose steps take about 10 ms with 64 sequences.
            "mock": BackendSettings(kind="mock", model=MODEL, time_scale=1000.0),
            "mock_paced": BackendSettings(kind="mock", model=MODEL),
            "proxy": BackendSettings(kind="openai", url=f"http://127.0.0.1:{upstream}", model=MODEL),
        }
        # One seat for 10,000 that wait.
        more = {"max_concurrency": 1} if role == "queue" else {}
        backend = msgspec.structs.replace(kinds["proxy" if role == "queue" else role], **more)
        server = ServerSettings(port=port, log=log)
        run(make_app, Settings(server=server, backends=(backend,), queue=QueueSettings(max_requests=20_000, ttl_s=600.0)))  # fmt: skip


# --- the client --------------------------------------------------------------------------------------------------------------


class Asking(asyncio.Protocol):
    """Sends one request after the other on one connection, and counts."""

    def __init__(self, data: bytes, count: int) -> None:
        self.data, self.left, self.chunks = data, count, 0
        self.done = asyncio.get_running_loop().create_future()
        self.latencies: list[float] = []
        self.rest, self.body_left, self.stream = b"", -1, False

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.begin, self.rest, self.body_left = time.perf_counter(), b"", -1
        self.transport.write(self.data)

    def data_received(self, data: bytes) -> None:
        if self.body_left < 0:
            self.rest += data
            head, mark, data = self.rest.partition(b"\r\n\r\n")
            if not mark:
                return
            assert head.startswith(b"HTTP/1.1 200"), head + data
            self.stream = b"chunked" in head
            self.body_left = (
                1 if self.stream else int(head.lower().partition(b"content-length: ")[2].split(b"\r", 1)[0])
            )
            self.rest = b""
        if self.stream:
            self.chunks += data.count(b'"content":"')
            if data.endswith(b"0\r\n\r\n"):
                assert b"[DONE]" in self.rest + data, "the stream ended without its end"
                self.answered()
            else:
                self.rest = data[-64:]
            return
        self.body_left -= len(data)
        if self.body_left <= 0:
            self.answered()

    def answered(self) -> None:
        self.latencies.append(time.perf_counter() - self.begin)
        self.left -= 1
        if self.left:
            self.send()
        else:
            self.transport.close()
            self.done.set_result(None)

    def connection_lost(self, error) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("closed in the middle"))


async def crowd(port: int, data: bytes, connections: int, each: int) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    asking = [
        (await loop.create_connection(lambda: Asking(data, each), "127.0.0.1", port))[1] for _ in range(connections)
    ]
    await asyncio.gather(*(one.done for one in asking))
    latencies = sorted(s for one in asking for s in one.latencies)
    return {"chunks": sum(one.chunks for one in asking), "p50_s": statistics.median(latencies), "p99_s": latencies[int(len(latencies) * 0.99)]}  # fmt: skip


async def wait_and_leave(port: int, waiters: int) -> dict[str, float]:
    """So many requests that wait behind one, then all leave at once."""
    loop = asyncio.get_running_loop()
    data = request(stream=True, tokens=100_000)
    transports = [(await loop.create_connection(lambda: Silent(data), "127.0.0.1", port))[0] for _ in range(waiters)]
    print("waiting", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    for transport in transports:
        transport.abort()
    return {"left": len(transports)}


class Silent(asyncio.Protocol):
    """Asks, and never listens."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def connection_made(self, transport) -> None:
        transport.write(self.data)


# --- measuring ---------------------------------------------------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and all it has started."""
    ticks = 0
    for one in tree(pid):
        with open(f"/proc/{one}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def exact_cpu_s(pid: int) -> float:
    """The same to the nanosecond, for the process itself and its threads; what has ended is in `cpu_s` only."""
    total = 0
    for one in tree(pid):
        for thread in os.listdir(f"/proc/{one}/task"):
            with open(f"/proc/{one}/task/{thread}/schedstat", "rb") as file:
                total += int(file.read().split()[0])
    return total / 1e9


def tree(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        with open(f"/proc/{one}/task/{one}/children", "rb") as file:
            found += [int(child) for child in file.read().split()]
    return found


def rss_mib(pid: int) -> float:
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmRSS"))


@contextmanager
def process(core: int, *arguments: str) -> Iterator[subprocess.Popen]:
    started = subprocess.Popen([sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, {core}))  # fmt: skip
    try:
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait(60)


@contextmanager
def server(role: str, upstream: int = 0, log: str = "info") -> Iterator[tuple[int, int]]:
    """A server of some role: its process and its port."""
    port = free_port()
    # The gateway's log goes to a file, as it would: lines are part of the cost.
    with process(
        1 if role == "upstream" else 0, "--role", role, "--port", str(port), "--upstream", str(upstream), "--log", log
    ) as started:
        until_healthy(started, f"http://127.0.0.1:{port}", START_S, path="/readyz")
        yield started.pid, port


def ask(port: int, stream: bool, connections: int, each: int, tokens: int = TOKENS) -> dict[str, float]:
    """The crowd, in a process of its own on the other core."""
    with process(
        1,
        "--role",
        "client",
        "--port",
        str(port),
        "--connections",
        str(connections),
        "--each",
        str(each),
        "--tokens",
        str(tokens),
        *(["--stream"] if stream else []),
    ) as client:
        told = client.stdout.readline()
    return json.loads(told)


def us_per_request(pid: int, port: int, requests: int, passes: int = 3) -> float:
    ask(port, False, 16, 60)
    costs = []
    for _ in range(passes):
        before = exact_cpu_s(pid)
        ask(port, False, 16, requests // 16)
        costs.append((exact_cpu_s(pid) - before) / (requests // 16 * 16) * 1e6)
    return min(costs)


def us_per_chunk(pid: int, port: int, passes: int = 2) -> tuple[float, float]:
    """CPU microseconds a chunk of paced streams, and how long the last stream took, in units of its pace."""
    ask(port, True, STREAMS, 1, 16)
    costs, stretched = [], []
    for _ in range(passes):
        before = exact_cpu_s(pid)
        told = ask(port, True, STREAMS, 1, STREAM_TOKENS)
        assert told["chunks"] == STREAMS * STREAM_TOKENS, f"{told['chunks']} chunks of {STREAMS * STREAM_TOKENS}"
        costs.append((exact_cpu_s(pid) - before) / told["chunks"] * 1e6)
        stretched.append(told["p99_s"] / (STREAM_TOKENS * PACE_S))
    return min(costs), min(stretched)


def measure(only: set[str], requests: int, soak: int) -> dict[str, float]:
    told: dict[str, float] = {}

    def wants(name: str) -> bool:
        return not only or name in only

    with server("floor") as (pid, port):
        told["floor_us_per_request"] = us_per_request(pid, port, requests)
        if wants("chunks"):
            told["floor_us_per_chunk_paced"], _ = us_per_chunk(pid, port)
    if wants("mock"):
        with server("mock") as (pid, port):
            told["idle_rss_mib"] = rss_mib(pid)
            told["mock_us_per_request"] = us_per_request(pid, port, requests)
            told["mock_times_floor"] = told["mock_us_per_request"] / told["floor_us_per_request"]
            if soak:
                told["soak_rss_growth"] = soaked(pid, port, soak)
    if wants("chunks"):
        with server("mock_paced") as (pid, port):
            told["mock_us_per_chunk_paced"], _ = us_per_chunk(pid, port)
    if wants("proxy") or wants("chunks") or wants("latency"):
        with server("upstream") as (_, upstream), server("proxy", upstream) as (pid, port):
            told["proxy_idle_rss_mib"] = rss_mib(pid)
            if wants("proxy"):
                told["proxy_us_per_request"] = us_per_request(pid, port, requests)
                if soak:
                    told["proxy_soak_rss_growth"] = soaked(pid, port, soak)
            if wants("chunks"):
                told["us_per_chunk_paced"], told["paced_stretch"] = us_per_chunk(pid, port)
            if wants("latency"):
                added, added99 = [], []
                for _ in range(5):
                    straight, through = ask(upstream, False, 1, 300), ask(port, False, 1, 300)
                    added.append((through["p50_s"] - straight["p50_s"]) * 1e3)
                    added99.append((through["p99_s"] - straight["p99_s"]) * 1e3)
                told["added_p50_ms"], told["added_p99_ms"] = min(added), min(added99)
    if wants("cancel"):
        told |= cancel()
        with server("upstream") as (_, upstream):
            told |= uvloop.run(cancel_in_process(upstream))
    return told


def soaked(pid: int, port: int, requests: int) -> float:
    """How much larger the process is after so many requests than after the first 10,000 (by then every table is as long as it gets), as a share."""
    ask(port, False, 16, 10_000 // 16)
    warm = rss_mib(pid)
    ask(port, False, 16, requests // 16)
    return rss_mib(pid) / warm - 1


async def cancel_in_process(upstream: int) -> dict[str, float]:
    """The same without sockets, the latest first: CPU microseconds for each that leaves the queue, and memory blocks of Python that stay for each."""
    import gc

    from inferencegym.cli.gateway import make_app
    from inferencegym.runtime import wire
    from inferencegym.runtime.gateway import Head

    backend = BackendSettings(kind="openai", url=f"http://127.0.0.1:{upstream}", model=MODEL, max_concurrency=1)
    queue = QueueSettings(max_requests=2 * WAITERS, ttl_s=600.0)
    gateway = make_app(Settings(server=ServerSettings(log="error"), backends=(backend,), queue=queue)).gateway
    await gateway.start()
    body = request(stream=True, tokens=100_000).partition(b"\r\n\r\n")[2]

    async def once() -> float:
        flows = [
            gateway.submit(gateway.ask("chat", body, wire.read("chat", body), Head(str(number)), gateway.clock()))
            for number in range(WAITERS + 1)
        ]
        readers = [asyncio.ensure_future(flow.next()) for flow in flows]
        await asyncio.sleep(0)
        assert gateway.waiting() == WAITERS
        before = time.thread_time()
        for flow in flows[:0:-1]:
            flow.leave()
        cost = time.thread_time() - before
        flows[0].leave()
        await asyncio.gather(*readers)
        assert gateway.under_way() == gateway.waiting() == gateway.in_flight() == 0
        return cost

    await once()
    gc.collect()
    blocks = sys.getallocatedblocks()
    costs = [await once() for _ in range(5)]
    gc.collect()
    left = sys.getallocatedblocks() - blocks
    await gateway.stop()
    return {"cancel_in_process_us_each": min(costs) / WAITERS * 1e6, "cancel_blocks_left_each": left / (5 * WAITERS)}


def cancel() -> dict[str, float]:
    """10,000 wait behind one and leave at once: what it costs, and whether all is given back."""
    import urllib.request

    with server("upstream") as (_, upstream), server("queue", upstream) as (pid, port):

        def under_way() -> int:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/runtime/drain", timeout=60) as answer:
                return json.load(answer)["under_way"]

        idle_mib = rss_mib(pid)
        costs, mib = [], []
        for _ in range(3):
            with process(1, "--role", "leaver", "--port", str(port), "--connections", str(WAITERS)) as client:
                assert client.stdout.readline() == "waiting\n"
                until(lambda: under_way() >= WAITERS, "all wait", CROWD_S, poll_s=0.2)
                before = exact_cpu_s(pid)
                client.stdin.write("go\n")
                client.stdin.flush()
                until(lambda: under_way() == 0, "all have left", CROWD_S, poll_s=0.05)
                costs.append((exact_cpu_s(pid) - before) / WAITERS * 1e6)
                client.stdout.readline()
            time.sleep(MOST_BETWEEN_S + 2.0)  # the housekeeper has looked by then
            mib.append(rss_mib(pid))
        return {"cancel_us_each": min(costs), "cancel_idle_mib": idle_mib, "cancel_rss_after_1_mib": mib[0], "cancel_rss_after_3_mib": mib[2]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="write the figures as JSON")
    parser.add_argument("--only", default="", help="some of mock, proxy, chunks, latency, cancel")
    parser.add_argument("--requests", type=int, default=4800)
    parser.add_argument("--soak", type=int, default=20_000, help="requests of the soak; 0: none")
    parser.add_argument("--role", default="", help=argparse.SUPPRESS)
    for name in ("port", "upstream", "connections", "each", "tokens"):
        parser.add_argument(f"--{name}", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--log", default="info", help=argparse.SUPPRESS)
    parser.add_argument("--stream", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    if options.role == "client":
        print(json.dumps(uvloop.run(crowd(options.port, request(options.stream, options.tokens), options.connections, options.each))))  # fmt: skip
    elif options.role == "leaver":
        print(json.dumps(uvloop.run(wait_and_leave(options.port, options.connections))))
    elif options.role:
        if options.role not in ("floor", "upstream"):
            os.dup2(os.open("/tmp/gateway-benchmark.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        serve(options.role, options.port, options.upstream, options.log)
    else:
        told = measure({name for name in options.only.split(",") if name}, options.requests, options.soak)
        rounded = {name: round(value, 3 if abs(value) < 1 else 1) for name, value in told.items()}
        print(json.dumps(rounded) if options.json else "\n".join(f"{name:>26} {value:10}" for name, value in rounded.items()))  # fmt: skip


if __name__ == "__main__":
    main()
