"""What is forwarded arrives as it was sent, whatever the size, the pace and the order of the ends;
and who does not read costs a bounded amount of memory.
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
    digest_of,
    entry,
    serving,
    stopped,
    wait_until_delivered,
)
from tests.support.clients import receive_to_end, reset
from tests.support.harness import EVENT_TIMEOUT, Superd, until
from tests.support.usage import open_descriptors, private_memory

MOST_KEPT = 256 * 1024  # bytes of a session that stalls both ways
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


def is_clean(superd: Superd, before: list[int]) -> None:
    until(lambda: open_descriptors(superd.workers()) == before, "all descriptors to be given back")


def test_what_follows_a_descriptor_passes_without_waiting_for_more(
    pairs: dict[str, Pair],
) -> None:
    """Reading from unix(7) stops behind it, and nothing tells of what is there already."""
    pair = pairs["unix-tcp"]
    with pair.open() as (client, server):
        with stopped(pair):
            socket.send_fds(client, [b"one"], [client.fileno()])
            client.sendall(b"two")
        got = b""
        while len(got) < 6:
            got += server.recv(100)
        assert got == b"onetwo"


def test_a_client_whose_name_is_no_text_is_forwarded_and_shown(
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


# Whoever does not read


def stall(pair: Pair, number: int) -> None:
    """Stall sessions both ways, see what they cost, and have all of it arrive after all."""
    (worker,) = pair.superd.workers()
    with pair.open() as (client, server):
        client.sendall(b"x")
        assert server.recv(1) == b"x"
    pair.superd.wait_until_idle(pair.service)
    before, descriptors = private_memory(worker), open_descriptors([worker])
    with pair.open_many(number) as sessions:
        sent = []
        for seed, ends in enumerate(sessions):
            both = []
            for way, end in enumerate(ends):
                stream = Stream(2 * seed + way)
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
    assert 0 < each <= MOST_KEPT + 8 * 1024  # and what a session is itself
    is_clean(pair.superd, descriptors)


@pytest.mark.root
@pytest.mark.parametrize("name", ["tcp-tcp", "unix-unix"])
def test_sessions_that_stall_cost_little_and_lose_nothing(
    pairs: dict[str, Pair], name: str
) -> None:
    stall(pairs[name], 10)


@pytest.mark.root
@pytest.mark.soak
@pytest.mark.parametrize("name", PAIRS)
def test_many_sessions_that_stall(pairs: dict[str, Pair], name: str) -> None:
    stall(pairs[name], 50)


@pytest.mark.parametrize("name", PAIRS)
def test_a_target_that_takes_the_connection_and_never_reads(
    pairs: dict[str, Pair], name: str
) -> None:
    """The client is stopped, other clients are not, and what it was sent arrives."""
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


def test_a_target_that_goes_away_and_comes_back(pairs: dict[str, Pair]) -> None:
    pair = pairs["tcp-tcp"]
    where = pair.target.sock.getsockname()
    with pair.open() as (client, server):
        pair.target.close()
        with contextlib.suppress(ConnectionResetError), pair.connect() as refused:
            assert receive_to_end(refused) == (b"", "reset")
        client.sendall(b"old ones go on")
        assert server.recv(100) == b"old ones go on"
        reset(server)  # so that its address is free
        assert receive_to_end(client) == (b"", "reset")
    pair.target.sock = socket.create_server(where, backlog=512)
    pair.target.sock.settimeout(EVENT_TIMEOUT)
    with pair.open() as (client, server):
        client.sendall(b"back again")
        assert server.recv(100) == b"back again"


def test_what_a_target_had_sent_before_it_broke_off_is_delivered(pairs: dict[str, Pair]) -> None:
    """The client reads only when it is over, and superd has kept a part itself."""
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


# Anything goes


@dataclass
class Plan:
    """What one session does, by its seed: how much each side sends, and who ends first."""

    seed: int
    most: int

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        self.sizes = [rng.choice((0, 1, rng.randint(2, 5000), rng.randint(1, self.most)))
                      for _ in "ab"]  # fmt: skip
        self.waits_for_end = rng.choice(("client", "server", "nobody"))

    def digest(self, side: int) -> str:
        digest = hashlib.sha256()
        for part in self.parts(side):
            digest.update(part)
        return digest.hexdigest()

    def parts(self, side: int) -> Iterator[memoryview]:
        """Return what a side sends, in pieces from one byte to a block."""
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
    """Do what the plan says for one side; return the digest of what came."""
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


async def run_many(pair: Pair, seeds: range, most: int) -> int:
    """Run sessions at once; return how many bytes they have carried, both ways."""
    results: dict[int, list[str]] = {seed: ["", ""] for seed in seeds}
    served = asyncio.Semaphore(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seed = int.from_bytes(await reader.readexactly(8), "big")
        results[seed][1] = await play(Plan(seed, most), 1, reader, writer)
        served.release()

    async def come(seed: int) -> None:
        if pair.listen == "unix":
            path = pair.superd.directory / pair.service
            reader, writer = await asyncio.open_unix_connection(path)
        else:
            reader, writer = await asyncio.open_connection(*pair.address)
        writer.write(seed.to_bytes(8, "big"))
        results[seed][0] = await play(Plan(seed, most), 0, reader, writer)

    start = asyncio.start_unix_server if pair.target.kind == "unix" else asyncio.start_server
    server = await start(serve, sock=pair.target.sock.dup(), backlog=512)
    async with server:
        await asyncio.gather(*map(come, seeds))
        for _ in seeds:
            await asyncio.wait_for(served.acquire(), EVENT_TIMEOUT)
    for seed, got in results.items():
        plan = Plan(seed, most)
        assert got == [plan.digest(1), plan.digest(0)], plan
    return sum(sum(Plan(seed, most).sizes) for seed in seeds)


def carry(pair: Pair, seeds: range, most: int) -> None:
    before = open_descriptors(pair.superd.workers())
    began = time.monotonic()
    carried = asyncio.run(run_many(pair, seeds, most))
    took = time.monotonic() - began
    print(f"{len(seeds)} sessions, {carried >> 20} MiB in {took:.1f} s")
    pair.superd.wait_until_idle(pair.service)
    is_clean(pair.superd, before)
    assert pair.superd.counts(pair.service)["errors"] == 0


@pytest.mark.parametrize("name", PAIRS)
def test_random_sessions_arrive_as_they_were_sent(pairs: dict[str, Pair], name: str) -> None:
    carry(pairs[name], range(200), 2 << 20)


@pytest.mark.soak
@pytest.mark.parametrize("name", PAIRS)
def test_ten_thousand_random_sessions(pairs: dict[str, Pair], name: str) -> None:
    for start in range(0, 10_000, 200):
        carry(pairs[name], range(start, start + 200), 1 << 20)


@pytest.mark.soak
@pytest.mark.parametrize("name", PAIRS)
def test_large_random_sessions(pairs: dict[str, Pair], name: str) -> None:
    carry(pairs[name], range(200), 16 << 20)


@pytest.mark.parametrize("size", [64 << 20, pytest.param(GIB, marks=pytest.mark.soak)])
def test_much_each_way_at_once(pairs: dict[str, Pair], size: int) -> None:
    streams = [Stream(1), Stream(2)]
    with pairs["tcp-tcp"].open() as ends:
        got: list[tuple[int, str]] = [(0, ""), (0, "")]

        def send(side: int) -> None:
            stream, end = streams[side], ends[side].dup()
            with end:
                while left := size - stream.count:
                    part = memoryview(BLOCK)[stream.offset : stream.offset + left]
                    end.sendall(part)
                    stream.took(part)
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
