"""Probes of asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time

from tests.probes.probe import expect, probe

HERE = "127.0.0.1"


@probe
async def tasks() -> None:
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(0))
    await asyncio.wait_for(asyncio.sleep(0), 5)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 0.001)


@probe
async def queues_and_locks() -> None:
    waiting: asyncio.Queue[int] = asyncio.Queue()
    async with asyncio.Lock(), asyncio.Semaphore():
        await waiting.put(1)
        await waiting.get()


@probe
async def in_a_thread() -> None:
    await asyncio.to_thread(time.sleep, 0)
    await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0)


@probe
async def loop_in_a_thread() -> None:
    await asyncio.to_thread(asyncio.run, asyncio.sleep(0))


@probe
async def stream_server_and_client() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    server = await asyncio.start_server(serve, HERE, 0)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection(HERE, port)
    writer.write(b"probe\n")
    expect(await reader.read() == b"probe\n", "another answer")
    writer.close()
    server.close()


@probe
async def datagrams() -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=(HERE, 0)
    )
    transport.close()


@probe
async def sockets_on_the_loop() -> None:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        await loop.sock_sendall(ours, b"x")
        await loop.sock_recv(theirs, 1)


@probe
async def numeric_lookup_on_the_loop() -> None:
    await asyncio.get_running_loop().getaddrinfo(HERE, 80)


@probe
async def name_lookup_on_the_loop() -> None:
    await asyncio.get_running_loop().getaddrinfo("localhost", 80)


@probe
async def program_on_the_loop() -> None:
    process = await asyncio.create_subprocess_exec("/bin/true")
    await process.wait()


@probe
async def signal_handler_on_the_loop() -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, print)
    loop.remove_signal_handler(signal.SIGUSR1)
