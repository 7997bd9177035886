"""Forwarded data arrives unchanged, at any size, pace and order of the ends; and sessions that do
not read cost a bounded amount of memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.scenarios.forwarding.ends import (
    BLOCK,
    PAIRS,
    Pair,
    Stream,
    Target,
    descriptors_are_closed,
    digest_of,
    entry,
    serving,
    stopped,
    wait_until_delivered,
)
from tests.support.clients import receive_to_end, reset
from tests.support.harness import EVENT_TIMEOUT, until
from tests.support.usage import private_memory

MAX_UNSENT_BYTES = 256 * 1024  # of a session that stalls both ways
GIB = 1 << 30


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def pairs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Pair]]:
    with contextlib.ExitStack() as stack:
        toml = f'[daemon]\nloop = "{request.param}"\n'
        targets = {name: Target(name.split("-")[1]) for name in PAIRS}
        for name, target in targets.items():
            stack.callback(target.close)
            toml += entry(name, target, name.split("-")[0])
        superd = stack.enter_context(serving(tmp_path_factory.mktemp("superd"), toml))
        yield {name: Pair(superd, name, t, name.split("-")[0]) for name, t in targets.items()}
        assert superd.counts("tcp-tcp")["errors"] == 0


def test_data_after_a_passed_descriptor_is_forwarded_without_delay(
    pairs: dict[str, Pair],
) -> None:
    """A read from unix(7) stops after it, and no further event reports the rest."""
    pair = pairs["unix-tcp"]
    with pair.open() as (client, server):
        with stopped(pair):
            socket.send_fds(client, [b"one"], [client.fileno()])
            client.sendall(b"two")
        got = b""
        while len(got) < 6:
            got += server.recv(100)
        assert got == b"onetwo"


def test_a_client_with_an_undecodable_path_is_forwarded_and_shown(
    pairs: dict[str, Pair], tmp_path: Path
) -> None:
    pair = pairs["unix-tcp"]
    (worker,) = pair.superd.workers()
    title = Path(f"/proc/{worker}/cmdline")
    with socket.socket(socket.AF_UNIX) as client:
        client.bind(os.fsencode(tmp_path) + b"/\xff")
        client.connect(str(pair.superd.directory / pair.service))
        with pair.target.accept() as server:
            client.sendall(b"x")
            assert server.recv(1) == b"x"
            until(lambda: b"/? > " in title.read_bytes(), "the client in the title")


# Sessions that do not read


def stall(pair: Pair, number: int) -> None:
    """Stall sessions both ways, measure their memory, then read and compare all data."""
    (worker,) = pair.superd.workers()
    with pair.open() as (client, server):
        client.sendall(b"x")
        assert server.recv(1) == b"x"
    pair.superd.wait_until_idle(pair.service)
    before = private_memory(worker)
    with descriptors_are_closed(pair.superd), pair.open_many(number) as sessions:
        sent = []
        for seed, ends in enumerate(sessions):
            both = []
            for direction, end in enumerate(ends):
                stream = Stream(2 * seed + direction)
                stream.fill(end)
                both.append(stream)
            sent.append(both)
        each = (private_memory(worker) - before) / number
        total = sum(stream.count for both in sent for stream in both)
        print(f"{number} sessions that hold {total >> 20} MiB cost {each / 1024:.0f} KiB each")
        for (client, server), (up, down) in zip(sessions, sent, strict=True):
            client.shutdown(socket.SHUT_WR)
            server.shutdown(socket.SHUT_WR)
            assert digest_of(server) == (up.count, up.digest.hexdigest())
            assert digest_of(client) == (down.count, down.digest.hexdigest())
    assert each <= MAX_UNSENT_BYTES + 8 * 1024  # and the session's own objects


@pytest.mark.root
@pytest.mark.parametrize("name", ["tcp-tcp", "unix-unix"])
def test_sessions_that_stall_cost_little_and_lose_nothing(
    pairs: dict[str, Pair], name: str
) -> None:
    stall(pairs[name], 10)


@pytest.mark.root
@pytest.mark.soak
@pytest.mark.parametrize("name", PAIRS)
def test_many_sessions_that_stall_cost_little(pairs: dict[str, Pair], name: str) -> None:
    stall(pairs[name], 50)


@pytest.mark.parametrize("name", PAIRS)
def test_a_target_that_accepts_and_never_reads_blocks_only_its_client(
    pairs: dict[str, Pair], name: str
) -> None:
    """The client is blocked, other clients are not, and the target's data arrives."""
    pair = pairs[name]
    with pair.open() as (client, server), pair.open() as (other, its_server):
        upload = Stream()
        upload.fill(client)
        server.sendall(b"an answer")
        assert client.recv(100) == b"an answer"
        other.sendall(b"me too")
        assert its_server.recv(100) == b"me too"
        client.shutdown(socket.SHUT_WR)
        assert digest_of(server) == (upload.count, upload.digest.hexdigest())


def test_a_target_that_stops_and_restarts(pairs: dict[str, Pair]) -> None:
    pair = pairs["tcp-tcp"]
    where = pair.target.sock.getsockname()
    with pair.open() as (client, server):
        pair.target.close()
        with contextlib.suppress(ConnectionResetError), pair.connect() as refused:
            assert receive_to_end(refused) == (b"", "reset")
        client.sendall(b"old ones continue")
        assert server.recv(100) == b"old ones continue"
        reset(server)  # frees its address
        assert receive_to_end(client) == (b"", "reset")
    pair.target.sock = socket.create_server(where, backlog=512)
    pair.target.sock.settimeout(EVENT_TIMEOUT)
    with pair.open() as (client, server):
        client.sendall(b"back again")
        assert server.recv(100) == b"back again"


def test_data_sent_before_a_reset_of_the_target_is_delivered(pairs: dict[str, Pair]) -> None:
    """The client reads after the reset, while superd still holds a part of the data."""
    pair = pairs["tcp-tcp"]
    download = Stream()
    with pair.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        server = pair.target.accept()
        download.fill(server)
        with ThreadPoolExecutor() as threads:
            reading = threads.submit(receive_to_end, client)
            wait_until_delivered(server)
            reset(server)
            data, how = reading.result(EVENT_TIMEOUT)
    assert hashlib.sha256(data).hexdigest() == download.digest.hexdigest()
    assert how == "reset"


# Random sessions


@dataclass
class Plan:
    """The behaviour of a session, by its seed: sizes, and which side waits for the other's end."""

    seed: int
    max_size: int

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        self.sizes = [rng.choice((0, 1, rng.randint(2, 5000), rng.randint(1, self.max_size)))
                      for _ in "ab"]  # fmt: skip
        self.waits_for_end = rng.choice(("client", "server", "neither"))

    def digest(self, side: int) -> str:
        digest = hashlib.sha256()
        for part in self.parts(side):
            digest.update(part)
        return digest.hexdigest()

    def parts(self, side: int) -> Iterator[memoryview]:
        """Yield the data of a side, in pieces from one byte to a block."""
        rng = random.Random(self.seed * 2 + side)
        left = self.sizes[side]
        while left:
            longest = rng.choice((1, 100, 1460, len(BLOCK), len(BLOCK), len(BLOCK)))
            size = min(left, rng.randint(1, longest))
            start = rng.randint(0, len(BLOCK) - size)
            yield memoryview(BLOCK)[start : start + size]
            left -= size


async def play(
    plan: Plan, side: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> str:
    """Run one side of a session by its plan; return the digest of the received data."""
    rng = random.Random(plan.seed * 3 + side)
    received = hashlib.sha256()
    ended = asyncio.Event()

    async def read() -> None:
        while part := await reader.read(rng.randint(1, 1 << 17)):
            received.update(part)
            if rng.random() < 0.02:
                await asyncio.sleep(rng.random() * 0.05)
        ended.set()

    async def write() -> None:
        if plan.waits_for_end == ("client", "server")[side]:
            await ended.wait()
        for part in plan.parts(side):
            writer.write(part)
            if rng.random() < 0.2:
                await writer.drain()
            if rng.random() < 0.005:
                await asyncio.sleep(rng.random() * 0.05)
        writer.write_eof()
        await writer.drain()

    await asyncio.gather(read(), write())
    writer.close()
    return received.hexdigest()


async def run_many(pair: Pair, seeds: range, max_size: int) -> int:
    """Run sessions concurrently; return the number of bytes in both directions."""
    results: dict[int, list[str]] = {seed: ["", ""] for seed in seeds}
    served = asyncio.Semaphore(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seed = int.from_bytes(await reader.readexactly(8), "big")
        results[seed][1] = await play(Plan(seed, max_size), 1, reader, writer)
        served.release()

    async def connect(seed: int) -> None:
        if pair.listen == "unix":
            path = pair.superd.directory / pair.service
            reader, writer = await asyncio.open_unix_connection(path)
        else:
            reader, writer = await asyncio.open_connection(*pair.address)
        writer.write(seed.to_bytes(8, "big"))
        results[seed][0] = await play(Plan(seed, max_size), 0, reader, writer)

    start = asyncio.start_unix_server if pair.target.kind == "unix" else asyncio.start_server
    server = await start(serve, sock=pair.target.sock.dup(), backlog=512)
    async with server:
        await asyncio.gather(*map(connect, seeds))
        for _ in seeds:
            await asyncio.wait_for(served.acquire(), EVENT_TIMEOUT)
    for seed, got in results.items():
        plan = Plan(seed, max_size)
        assert got == [plan.digest(1), plan.digest(0)], plan
    return sum(sum(Plan(seed, max_size).sizes) for seed in seeds)


def check_random_sessions(pair: Pair, seeds: range, max_size: int) -> None:
    with descriptors_are_closed(pair.superd):
        began = time.monotonic()
        carried = asyncio.run(run_many(pair, seeds, max_size))
        took = time.monotonic() - began
        print(f"{len(seeds)} sessions, {carried >> 20} MiB in {took:.1f} s")
        pair.superd.wait_until_idle(pair.service)
    assert pair.superd.counts(pair.service)["errors"] == 0


@pytest.mark.parametrize("name", PAIRS)
def test_random_sessions_arrive_unchanged(pairs: dict[str, Pair], name: str) -> None:
    check_random_sessions(pairs[name], range(200), 2 << 20)


@pytest.mark.soak
@pytest.mark.parametrize("name", PAIRS)
def test_ten_thousand_random_sessions_arrive_unchanged(pairs: dict[str, Pair], name: str) -> None:
    for start in range(0, 10_000, 200):
        check_random_sessions(pairs[name], range(start, start + 200), 1 << 20)


@pytest.mark.soak
@pytest.mark.parametrize("name", PAIRS)
def test_large_random_sessions_arrive_unchanged(pairs: dict[str, Pair], name: str) -> None:
    check_random_sessions(pairs[name], range(200), 16 << 20)


@pytest.mark.parametrize("size", [64 << 20, pytest.param(GIB, marks=pytest.mark.soak)])
def test_bulk_in_both_directions_arrives_unchanged(pairs: dict[str, Pair], size: int) -> None:
    streams = [Stream(1), Stream(2)]
    with pairs["tcp-tcp"].open() as ends:
        got: list[tuple[int, str]] = [(0, ""), (0, "")]

        def send(side: int) -> None:
            stream, end = streams[side], ends[side].dup()
            with end:
                while left := size - stream.count:
                    part = memoryview(BLOCK)[stream.offset : stream.offset + left]
                    end.sendall(part)
                    stream.sent(part)
                end.shutdown(socket.SHUT_WR)

        def read(side: int) -> None:
            got[side] = digest_of(ends[side])

        threads = [
            threading.Thread(target=work, args=(n,)) for work in (send, read) for n in (0, 1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert got == [(size, streams[1].digest.hexdigest()), (size, streams[0].digest.hexdigest())]
