"""The small HTTP client against servers that send exact bytes: framing in any portions, ends of every kind, and which connection serves again."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from inferencegym.runtime.backends.http import Client, Disconnected, NotHttpError, Unreachable

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: a/b; charset=x\r\nContent-Length: 5\r\nX-A: 1\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;ext=1\r\nllo\r\n0\r\nTrailer: x\r\n\r\n"


@asynccontextmanager
async def server(*answers: bytes | None, portion: int = 0, keepalive_s: float = 5.0):
    """A server whose nth request gets the nth answer (the last one again and again); None closes. Each connection's requests are counted."""
    turn, counts, writers = iter(range(10**6)), [], []

    async def connected(reader, writer):
        writers.append(writer)
        number = len(counts)
        counts.append(0)
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                counts[number] += 1
                answer = answers[min(next(turn), len(answers) - 1)]
                if answer is None:
                    break
                for i in range(0, len(answer), portion or len(answer)):
                    writer.write(answer[i : i + (portion or len(answer))])
                    await writer.drain()
                    await asyncio.sleep(0)
                if answer.endswith(b"<close>"):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    client = Client("127.0.0.1", port, connect_timeout_s=2.0, keepalive_s=keepalive_s)
    try:
        yield client, counts, writers
    finally:
        client.close()
        listening.close()
        await asyncio.sleep(0.01)


async def ask(client, keep: bool = True) -> tuple[int, bytes]:
    response = await client.post(b"POST / HTTP/1.1\r\nhost: x\r\n\r\n", keep)
    body = b""
    while data := await response.readany():
        body += data
    assert response.at_eof()
    return response.status, body


def run(main):
    asyncio.run(asyncio.wait_for(main(), 20))


@pytest.mark.parametrize(
    "answer", [WHOLE, CHUNKED, b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE], ids=["length", "chunked", "continue"]
)
@pytest.mark.parametrize("portion", [0, 1, 3])
def test_a_body_is_whole_in_whatever_portions_and_the_connection_serves_again(answer, portion):
    async def main():
        async with server(answer, portion=portion) as (client, counts, _):
            for _ in range(3):
                assert await ask(client) == (200, b"hello")
            assert counts == [3]

    run(main)


def test_the_heads_names_are_found_in_lower_case():
    async def main():
        async with server(WHOLE) as (client, _, _):
            response = await client.post(b"POST / HTTP/1.1\r\n\r\n", True)
            assert (response.headers["x-a"], response.content_type) == ("1", "a/b")

    run(main)


@pytest.mark.parametrize(
    ("answer", "keep"),
    [
        (WHOLE, False),
        (WHOLE.replace(b"X-A: 1", b"Connection: close"), True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", True),
        (WHOLE + b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", True),
    ],
    ids=["not wanted", "close is said", "HTTP/1.0", "too much"],
)
def test_a_connection_that_may_not_serve_again_does_not(answer, keep):
    async def main():
        async with server(answer) as (client, counts, _):
            for _ in range(3):
                assert await ask(client, keep) == (200, b"hello")
            assert counts == [1, 1, 1]

    run(main)


def test_a_body_without_length_ends_with_the_connection():
    async def main():
        async with server(b"HTTP/1.1 200 OK\r\n\r\nhello<close>") as (client, _, _):
            assert await ask(client) == (200, b"hello<close>")

    run(main)


@pytest.mark.parametrize(
    "answer", [CHUNKED[:-9] + b"<close>", WHOLE[:-1].replace(b"5", b"50") + b"<close>", WHOLE[:20] + b"<close>"]
)
def test_a_body_or_head_that_breaks_off_is_told(answer):
    async def main():
        async with server(answer) as (client, _, _):
            with pytest.raises((Disconnected, NotHttpError)):
                await ask(client)

    run(main)


@pytest.mark.parametrize("answer", [b"\x00\x01\r\n\r\n", b"SSH-2.0\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: " + b"b" * 70_000 + b"\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"])  # fmt: skip
def test_what_is_no_http_is_told(answer):
    async def main():
        async with server(answer) as (client, _, _):
            with pytest.raises(NotHttpError):
                await ask(client)

    run(main)


def test_only_an_idle_connection_is_tried_again_and_only_if_no_byte_came():
    async def main():
        async with server(WHOLE, None, WHOLE, WHOLE[:30] + b"<close>") as (client, counts, _):
            assert await ask(client) == (200, b"hello")
            assert await ask(client) == (200, b"hello")  # the idle one was closed: another
            assert counts == [2, 1]
            with pytest.raises(Disconnected):
                await ask(client)  # a part of an answer came
            with pytest.raises(Disconnected):
                await ask(client)  # a new connection
            assert len(counts) == 3

    run(main)


def test_idle_connections_are_closed_in_time_and_forgotten_when_the_server_closes_them():
    async def main():
        async with server(WHOLE, keepalive_s=0.05) as (client, counts, writers):
            await ask(client)
            await asyncio.sleep(0.1)
            await ask(client)
            assert counts == [1, 1]
            writers[1].close()
            await asyncio.sleep(0.05)
            assert not client._idle
            assert not client._all

    run(main)


def test_the_server_is_held_back_while_nobody_reads():
    big = 16 << 20

    async def main():
        async with server(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % big + b"x" * big) as (client, _, writers):
            response = await client.post(b"POST / HTTP/1.1\r\n\r\n", True)
            await asyncio.sleep(0.3)
            assert response._size < 1 << 20
            assert writers[0].transport.get_write_buffer_size() > 0
            size = 0
            while data := await response.readany():
                size += len(data)
            assert size == big

    run(main)


def test_where_nobody_listens_is_told():
    async def main():
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"):
            await ask(Client("127.0.0.1", 9, connect_timeout_s=1.0, keepalive_s=1.0))

    run(main)
