"""The plugin contract: each promise of superd to a plugin, tested with the real daemon."""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.clients import (
    ask_unixgram,
    ask_unixpacket,
    connect_unix,
    is_open,
    receive_to_end,
    reset,
    send_until_blocked,
)
from tests.support.harness import Superd, ask_udp, exchange, make_plugin, receive_all, until

# Runs the command in the client's first line, even if the connection is lost. `recall` answers with
# the value that an earlier connection stored.
TALK = """
    import asyncio
    from superd.plugin import Connection, LineTooLong, Service, hookimpl

    class Talk(Service):
        name = "talk"
        seen = ""

        async def stream(self, conn: Connection) -> None:
            command, *arguments = (await conn.readline()).decode().split()
            await getattr(self, command)(conn, *map(int, arguments))

        def see(self, what: object) -> None:
            Talk.seen = repr(what)

        async def recall(self, conn):
            await conn.send(self.seen.encode())

        async def who(self, conn):
            await conn.send(f"{conn.id} {conn.service} {conn.local} {conn.peer}".encode())

        async def read(self, conn, *limits):
            parts = [await conn.read(limit) for limit in limits] or [await conn.read()]
            await conn.send(repr(parts).encode())

        async def readline(self, conn, *limits):
            try:
                lines = [await conn.readline(limit) for limit in limits] or [await conn.readline()]
            except LineTooLong as error:
                lines = [str(error), await conn.read(4)]
            await conn.send(repr(lines).encode())

        async def lines(self, conn):
            async for line in conn:
                await conn.send(b"<" + line + b">")

        async def eof(self, conn):
            await conn.send(b"that is all")
            conn.send_eof()
            self.see(await conn.readline())

        async def leave(self, conn):
            await conn.send(b"goodbye")
            conn.close()
            conn.close()

        async def abort(self, conn):
            conn.abort()
            conn.abort()

        async def after(self, conn):
            conn.close()
            try:
                await conn.send(b"one thing more")
            except ConnectionError as error:
                self.see(error)

        async def gone(self, conn):
            self.see("waiting")
            try:
                self.see(await conn.readline())
            except ConnectionError as error:
                self.see(type(error))

        async def last(self, conn):
            self.see([line async for line in conn])

        async def flood(self, conn):
            total = 0
            try:
                while True:
                    await conn.send(bytes(65536))
                    total += 65536
                    self.see(total)
            except ConnectionError as error:
                self.see(f"gone after {total}")

        async def many(self, conn):
            senders = [asyncio.create_task(conn.send(bytes(1 << 20))) for _ in range(10)]
            await asyncio.gather(*senders)
            self.see("all sent")

        async def sleep(self, conn):
            self.see("asleep")
            await asyncio.sleep(3600)

        async def twice(self, conn):
            first = asyncio.create_task(conn.read())
            await asyncio.sleep(0)
            try:
                await conn.read()
            except RuntimeError as error:
                first.cancel()
                await conn.send(str(error).encode())

        async def timeout(self, conn):
            try:
                await asyncio.wait_for(conn.read(), 0.05)
            except TimeoutError:
                await conn.send(b"too late\\n")
                await conn.send(await conn.readline())

    @hookimpl
    def superd_services():
        return [Talk]
"""

# Has several methods, to test which of them superd calls.
ALL = """
    from superd.plugin import Service, hookimpl

    class Respond(Service):
        name = "respond"

        def respond(self, request):
            limited = "limited" if request.room == len(request.data) else "free"
            asked = request.data.decode().strip()
            return f"{asked} {limited} {request.local} {request.peer}".encode()

    class Datagram(Respond):
        name = "datagram"

        def datagram(self, request):
            return None if request.data == b"hush" else request.data[::-1]
"""

PROTOCOL = """
    import asyncio
    from superd.plugin import Service, hookimpl

    class Upper(Service):
        name = "upper"
        ends = []

        def protocol(self, conn):
            return First(self, conn)

    class First(asyncio.Protocol):
        def __init__(self, service, conn):
            self.service = service
            self.conn = conn

        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, data):
            transport = self.transport
            if data == b"ends":
                transport.write(repr(self.service.ends).encode())
            elif data == b"who":
                values = [self.conn.id, self.conn.service, self.conn.local, self.conn.peer]
                values += [transport.get_extra_info(name) for name in ("peername", "sockname")]
                transport.writelines(str(value).encode() + b"|" for value in values)
            elif data == b"late":
                transport.write(b"in time")
                transport.close()
                transport.write(b"too late")
                transport.close()
                asyncio.get_running_loop().call_later(0.01, transport.write, b"much too late")
            elif data == b"eof":
                transport.write(b"no more")
                transport.write_eof()
            elif data == b"abort":
                transport.abort()
            elif data == b"switch":
                transport.set_protocol(Second(transport))
            elif data == b"pause":
                transport.pause_reading()
                transport.pause_reading()
                transport.write(f"{transport.is_reading()}".encode())
                asyncio.get_running_loop().call_later(0.1, self.resume)
            else:
                transport.write(data.upper())

        def resume(self):
            self.transport.resume_reading()
            self.transport.resume_reading()
            self.transport.write(f"{self.transport.is_reading()}".encode())

        def eof_received(self):
            self.service.ends.append("eof")
            return False

        def connection_lost(self, exc):
            self.service.ends.append(type(exc).__name__)

    class Second(asyncio.Protocol):
        def __init__(self, transport):
            self.transport = transport
            transport.write(b"second")

        def data_received(self, data):
            self.transport.write(data[::-1])

        def eof_received(self):
            return True  # the connection stays half-closed

    @hookimpl
    def superd_services():
        return [Upper]
"""

TAKE = """
    import asyncio
    from superd.plugin import Service, hookimpl

    class Take(Service):
        name = "take"
        kept = []

        async def takeover(self, sock, conn):
            loop = asyncio.get_running_loop()
            data = await loop.sock_recv(sock, 100)
            if data == b"own":
                for method in (conn.read, conn.readline, lambda: conn.send(b"")):
                    try:
                        await method()
                    except RuntimeError as error:
                        data = str(error).encode()
            elif data == b"who":
                data = f"{conn.id} {conn.service} {conn.local} {conn.peer}".encode()
            elif data == b"close":
                await loop.sock_sendall(sock, b"closing")
                sock.close()
                return
            elif data == b"detach":
                self.kept.append(sock.detach())
                return
            elif data == b"share":
                self.kept.append(sock.dup())  # as if a started program had inherited it
            elif data == b"abort":
                conn.abort()
                return
            elif data == b"blocking":
                sock.setblocking(True)
                data = await asyncio.to_thread(sock.recv, 100)
                sock.setblocking(False)
            await loop.sock_sendall(sock, b"taken: " + data)

    @hookimpl
    def superd_services():
        return [Take]
"""

HOOK = """
    @hookimpl
    def superd_services():
        return [{0}]
"""

PLUGINS = {
    "talk": TALK,
    "respond": ALL + HOOK.format("Respond"),
    "datagram": ALL + HOOK.format("Datagram"),
    "upper": PROTOCOL,
    "take": TAKE,
}

TOML = """
[daemon]
loop = "{loop}"

[service.talk]
plugin = "talk"
listen = ["tcp://127.0.0.1:0", "unix://{directory}/talk", "unixpacket://{directory}/packets"]

[service.respond]
plugin = "respond"
listen = [
    "tcp://127.0.0.1:0",
    "udp://127.0.0.1:0",
    "unix://{directory}/respond",
    "unixpacket://{directory}/respond-packet",
    "unixgram://{directory}/respond-datagram",
]

[service.datagram]
plugin = "datagram"
listen = ["udp://127.0.0.1:0", "unixgram://{directory}/datagram"]

[service.upper]
plugin = "upper"
listen = "tcp://127.0.0.1:0"

[service.take]
plugin = "take"
listen = ["tcp://127.0.0.1:0", "unix://{directory}/take"]
"""


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ask(served: Superd, command: str, more: bytes = b"") -> bytes:
    return exchange(served.connect("talk"), command.encode() + b"\n" + more)


def wait_until_seen(served: Superd, value: str) -> None:
    """Wait until a connection has stored `value`."""
    until(lambda: ask(served, "recall").decode() == value, f"the value {value}")


# async stream(conn)


def test_a_connection_knows_its_id_its_service_and_both_addresses(served: Superd) -> None:
    host, port = served.address("talk")
    found = []
    for _ in range(2):
        with served.connect("talk") as client:
            client.sendall(b"who\n")
            name, service, local, peer = receive_all(client).decode().split()
            own = client.getsockname()[1]
        assert service == "talk"
        assert local == f"tcp://{host}:{port}"
        assert peer == f"tcp://127.0.0.1:{own}"
        found.append(name)
    assert len(set(found)) == 2


def test_a_unix_connection_has_its_path_and_an_unnamed_peer_as_addresses(served: Superd) -> None:
    answer = exchange(connect_unix(served.directory / "talk"), b"who\n").decode()
    assert answer.split(" ", 2)[2] == f"unix://{served.directory}/talk unix://(unnamed)"


def test_read_returns_the_received_data_up_to_the_limit(served: Superd) -> None:
    assert ask(served, "read", b"abc") == b"[b'abc']"
    assert ask(served, "read 2 1", b"abcdef") == b"[b'ab', b'c']"
    assert ask(served, "read 2 2 2", b"abc") == b"[b'ab', b'c', b'']"


def test_read_does_not_wait_for_the_limit(served: Superd) -> None:
    with served.connect("talk") as client:
        client.sendall(b"read 100\n")
        client.sendall(b"x")
        assert receive_all(client) == b"[b'x']"


@pytest.mark.parametrize("limit", [0, -1])
@pytest.mark.parametrize("how", ["read", "readline"])
def test_a_limit_below_one_is_a_value_error(served: Superd, how: str, limit: int) -> None:
    with served.connect("talk") as client:
        client.sendall(f"{how} {limit}\nabc".encode())
        assert receive_to_end(client) == (b"", "reset")
    served.wait_for_log(rf"ValueError: expected a limit of at least 1 byte, found {limit}")


def test_readline_returns_lines_and_then_the_rest(served: Superd) -> None:
    assert ask(served, "readline 9 9 9 9", b"one\n\ntwo") == b"[b'one\\n', b'\\n', b'two', b'']"


def test_readline_accepts_a_line_of_exactly_the_limit(served: Superd) -> None:
    assert ask(served, "readline 4 4", b"one\ntwo\n") == b"[b'one\\n', b'two\\n']"


def test_readline_raises_line_too_long_and_keeps_the_line_in_the_buffer(served: Superd) -> None:
    answer = ask(served, "readline 4", b"three\n")
    assert answer == b"['a line of more than 4 bytes', b'thre']"


def test_the_default_limit_of_readline_is_64_kib(served: Superd) -> None:
    fits, too_long = b"x" * 65535 + b"\n", b"x" * 65536 + b"\n"
    assert ask(served, "readline", fits) == repr([fits]).encode()
    assert ask(served, "readline", too_long).startswith(b"['a line of more than 65536 bytes'")


def test_iterating_a_connection_returns_lines(served: Superd) -> None:
    assert ask(served, "lines", b"one\ntwo\r\nrest") == b"<one\n><two\r\n><rest>"


def test_packets_are_read_as_a_stream_and_each_send_is_a_packet(served: Superd) -> None:
    path = served.directory / "packets"
    assert ask_unixpacket(path, b"lines\n", b"a\nb", b"c\n") == [b"<a\n>", b"<bc\n>"]


def test_send_eof_ends_one_direction_only(served: Superd) -> None:
    with served.connect("talk") as client:
        client.sendall(b"eof\n")
        assert receive_all(client) == b"that is all"
        client.sendall(b"I have more\n")
        wait_until_seen(served, r"b'I have more\n'")
        assert receive_to_end(client) == (b"", "fin")


@pytest.mark.parametrize("unread", [0, 1, 100_000])
def test_close_delivers_sent_data_and_can_be_repeated(served: Superd, unread: int) -> None:
    with served.connect("talk") as client:
        client.sendall(b"leave\n" + bytes(unread))
        assert receive_to_end(client) == (b"goodbye", "fin")


def test_abort_resets_and_can_be_repeated(served: Superd) -> None:
    with served.connect("talk") as client:
        client.sendall(b"abort\n")
        assert receive_to_end(client) == (b"", "reset")


def test_sending_after_close_is_a_connection_error(served: Superd) -> None:
    with served.connect("talk") as client:
        client.sendall(b"after\n")
        assert receive_to_end(client) == (b"", "fin")
    wait_until_seen(served, "ConnectionResetError('the connection is closed')")


@pytest.mark.parametrize("unread", [b"", b"half a line"])
def test_a_reset_is_a_connection_error_and_not_the_end_of_input(
    served: Superd, unread: bytes
) -> None:
    client = served.connect("talk")
    client.sendall(b"gone\n" + unread)
    wait_until_seen(served, "'waiting'")
    reset(client)
    wait_until_seen(served, "<class 'ConnectionResetError'>")


def test_data_that_a_client_sent_before_it_closed_can_be_read(served: Superd) -> None:
    client = served.connect("talk")
    client.sendall(b"last\none\ntwo\n")
    client.close()
    wait_until_seen(served, r"[b'one\n', b'two\n']")


def test_a_client_that_never_reads_blocks_only_its_sender(served: Superd) -> None:
    with served.connect("talk") as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        client.sendall(b"flood\n")

        def stalled() -> int | None:
            before = ask(served, "recall")
            sent = ask(served, "recall", bytes(1000))
            return int(sent) if sent == before and sent.isdigit() else None

        assert until(stalled, "the blocked sender") < 32 << 20
        assert is_open(client)
    until(lambda: b"gone after" in ask(served, "recall"), "the connection error in the sender")


def test_a_client_is_blocked_while_the_plugin_does_not_read(served: Superd) -> None:
    with served.connect("talk") as client:
        client.sendall(b"sleep\n")
        wait_until_seen(served, "'asleep'")
        assert send_until_blocked(client, 64 << 20) < 32 << 20


def test_several_tasks_can_send_to_one_slow_client(served: Superd) -> None:
    with served.connect("talk") as client:
        client.sendall(b"many\n")
        assert len(receive_all(client)) == 10 << 20
    wait_until_seen(served, "'all sent'")


def test_only_one_task_can_read(served: Superd) -> None:
    with served.connect("talk") as client:
        client.sendall(b"twice\n")
        assert b"another coroutine reads" in receive_all(client)


def test_a_cancelled_read_loses_no_data(served: Superd) -> None:
    with served.connect("talk") as client:
        client.sendall(b"timeout\n")
        assert client.recv(100) == b"too late\n"
        client.sendall(b"the line\n")
        assert receive_all(client) == b"the line\n"


# protocol(conn) -> asyncio.Protocol


def upper(served: Superd, data: bytes) -> bytes:
    return exchange(served.connect("upper"), data)


def test_a_protocol_receives_and_sends_data(served: Superd) -> None:
    assert upper(served, b"hello") == b"HELLO"


def test_a_protocol_knows_its_connection(served: Superd) -> None:
    host, port = served.address("upper")
    with served.connect("upper") as client:
        own = client.getsockname()[1]
        client.sendall(b"who")
        client.shutdown(socket.SHUT_WR)
        values = receive_all(client).decode().split("|")
    ends = [f"tcp://{host}:{port}", f"tcp://127.0.0.1:{own}"]
    names = [f"('127.0.0.1', {own})", f"('{host}', {port})"]
    assert values[1:] == ["upper", *ends, *names, ""]


def test_data_that_a_protocol_writes_after_close_is_dropped(served: Superd) -> None:
    before = served.counts("upper")["errors"]
    with served.connect("upper") as client:
        client.sendall(b"late")
        assert receive_to_end(client) == (b"in time", "fin")
    assert upper(served, b"hello") == b"HELLO"
    assert served.counts("upper")["errors"] == before


def test_a_protocol_can_half_close(served: Superd) -> None:
    with served.connect("upper") as client:
        client.sendall(b"eof")
        assert receive_all(client) == b"no more"
        assert not receive_to_end(client)[0]
        client.shutdown(socket.SHUT_WR)


def test_a_protocol_can_abort(served: Superd) -> None:
    with served.connect("upper") as client:
        client.sendall(b"abort")
        assert receive_to_end(client) == (b"", "reset")


def test_a_protocol_can_switch_to_another_that_stays_open_after_a_half_close(
    served: Superd,
) -> None:
    with served.connect("upper") as client:
        client.sendall(b"switch")
        assert client.recv(100) == b"second"
        client.sendall(b"abc")
        assert client.recv(100) == b"cba"
        client.shutdown(socket.SHUT_WR)
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(1)


def test_a_protocol_can_pause_and_resume_reading(served: Superd) -> None:
    with served.connect("upper") as client:
        client.sendall(b"pause")
        assert client.recv(100) == b"False"
        client.sendall(b"and on")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"TrueAND ON"


def test_connection_lost_gets_the_reason_of_the_end(served: Superd) -> None:
    def ends() -> str:
        return upper(served, b"ends").decode()

    before = ends()
    upper(served, b"")
    assert "'eof', 'NoneType'" in ends()[len(before) - 1 :]
    client = served.connect("upper")
    client.sendall(b"x")
    assert client.recv(1) == b"X"
    reset(client)
    until(lambda: "ConnectionResetError" in ends(), "the reset in connection_lost")


# respond(request), datagram(request)


def test_respond_serves_streams_and_datagrams(served: Superd) -> None:
    host, port = served.address("respond")
    with served.connect("respond") as client:
        own = client.getsockname()[1]
        answer = receive_all(client).decode()
    assert answer == f" free tcp://{host}:{port} tcp://127.0.0.1:{own}"
    port = served.address("respond", "udp")[1]
    answer = ask_udp((host, port), b"?".ljust(90)).decode()
    assert re.fullmatch(rf"\? free udp://{host}:{port} udp://127\.0\.0\.1:\d+", answer)


def test_respond_serves_every_kind_of_unix_socket(served: Superd) -> None:
    path = str(served.directory / "respond")
    with connect_unix(path) as client:
        assert receive_all(client).decode() == f" free unix://{path} unix://(unnamed)"
    (packet,) = ask_unixpacket(f"{path}-packet")
    assert f"unixpacket://{path}-packet" in packet.decode()
    assert f"unixgram://{path}-datagram" in ask_unixgram(f"{path}-datagram", b"?").decode()


def test_datagram_has_precedence_over_respond_and_can_return_none(served: Superd) -> None:
    address = served.address("datagram", "udp")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(15)
        client.connect(address)
        client.send(b"hush")
        client.send(b"abc")
        assert client.recv(100) == b"cba"
    assert ask_unixgram(served.directory / "datagram", b"abc") == b"cba"


# async takeover(sock, conn)


def take(served: Superd, data: bytes) -> tuple[bytes, str]:
    with served.connect("take") as client:
        client.sendall(data)
        return receive_to_end(client)


def test_a_plugin_has_a_taken_over_socket_until_it_returns(served: Superd) -> None:
    assert take(served, b"hello") == (b"taken: hello", "fin")
    with connect_unix(served.directory / "take") as client:
        client.sendall(b"hello")
        assert receive_to_end(client) == (b"taken: hello", "fin")


def test_a_taken_over_connection_knows_its_addresses(served: Superd) -> None:
    answer, _ = take(served, b"who")
    host, port = served.address("take")
    assert re.fullmatch(
        rf"taken: \S+ take tcp://{host}:{port} tcp://127\.0\.0\.1:\d+", answer.decode()
    )


def test_the_methods_of_a_taken_over_connection_raise(served: Superd) -> None:
    error, how = take(served, b"own")
    assert b"the plugin has taken over the socket" in error
    assert how == "fin"


def test_a_plugin_can_close_a_taken_over_socket(served: Superd) -> None:
    assert take(served, b"close") == (b"closing", "fin")


def test_a_plugin_can_detach_and_keep_a_taken_over_socket(served: Superd) -> None:
    with served.connect("take") as client:
        client.sendall(b"detach")
        served.wait_until_idle("take")
        assert is_open(client)


def test_a_taken_over_socket_that_is_also_open_elsewhere_keeps_no_other_socket_open(
    served: Superd,
) -> None:
    with served.connect("take") as shared, served.connect("respond") as other:
        shared.sendall(b"share")
        assert receive_all(shared) == b"taken: share"
        assert receive_all(other)

        def is_closed(client: socket.socket) -> bool:
            """The kernel answers with a reset if no process has the socket open."""
            try:
                client.sendall(b"are you there?")
            except ConnectionError:
                return True
            return False

        until(lambda: is_closed(other), "the closing of the other socket")
        shared.sendall(b"nobody reads this")
        # the next client gets the former descriptor of the shared socket, the third another one
        with served.connect("talk") as next_one, served.connect("respond") as third:
            next_one.sendall(b"who\n")
            assert receive_all(next_one)
            assert receive_all(third)
            until(lambda: is_closed(third), "the closing of the third socket")


def test_a_taken_over_connection_can_be_aborted(served: Superd) -> None:
    assert take(served, b"abort") == (b"", "reset")


def test_a_taken_over_socket_can_be_made_blocking_and_has_no_timeout(served: Superd) -> None:
    with served.connect("take") as client:
        client.sendall(b"blocking")
        assert take(served, b"hello") == (b"taken: hello", "fin")  # other connections are served
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(100)
        client.settimeout(15)
        client.sendall(b"at last")
        assert receive_all(client) == b"taken: at last"


@pytest.mark.parametrize("unread", [1, 100_000])
def test_data_that_a_plugin_sent_over_a_taken_over_socket_is_not_lost(
    served: Superd, unread: int
) -> None:
    with served.connect("take") as client:
        client.sendall(b"x" * 100 + bytes(unread))
        assert receive_to_end(client) == (b"taken: " + b"x" * 100, "fin")


# The life of a service

LIFE = """
    import asyncio, os
    from superd.plugin import Options, ReadableFile, Service, hookimpl

    class LifeOptions(Options):
        journal: ReadableFile

    class Life(Service):
        name = "life"
        options_model = LifeOptions
        file = -1

        def __init__(self, options):
            super().__init__(options)
            self.note("init")

        def prepare(self):
            self.file = os.open(self.options.journal, os.O_WRONLY | os.O_APPEND)
            self.note("prepare")

        def note(self, step):
            file = self.file if self.file >= 0 else os.open(self.options.journal, 1025)
            os.write(file, f"{os.getpid()} {os.geteuid()} {step}\\n".encode())

        def respond(self, request):
            self.note("respond")
            return b""

        async def stream(self, conn):
            self.note("stream")
            await conn.readline()
            self.note("end of stream")

        def close(self):
            self.note("close")

    @hookimpl
    def superd_services():
        return [Life]
"""


def test_the_methods_of_a_service_are_called_in_the_documented_order(
    start_superd: Start, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    journal.touch()
    served = start_superd(
        f"""
        [service.life]
        plugin = "life"
        listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"]
        options = {{ journal = "{journal}" }}
        """,
        env=make_plugin(tmp_path / "plugins", "life", LIFE),
    )
    (worker,) = served.workers()
    client = served.connect("life")
    until(lambda: " stream" in journal.read_text(), "the stream")
    served.signal(signal.SIGTERM)
    served.wait_for_log("stopping")
    client.sendall(b"goodbye\n")
    assert receive_to_end(client) == (b"", "fin")
    client.close()
    assert served.wait() == 0
    notes = [line.split(" ", 2) for line in journal.read_text().splitlines()]
    steps = [step for pid, _, step in notes if int(pid) == worker]
    assert steps == ["init", "prepare", "stream", "end of stream", "close"]
    elsewhere = [step for pid, _, step in notes if int(pid) != worker]
    assert elsewhere == ["init", "prepare"]  # the preflight


BACKGROUND = """
    import asyncio, os
    from superd.plugin import Options, ReadableFile, Service, hookimpl

    class BackgroundOptions(Options):
        journal: ReadableFile

    class Background(Service):
        name = "background"
        options_model = BackgroundOptions

        def prepare(self):
            self.file = os.open(self.options.journal, os.O_WRONLY | os.O_APPEND)

        def note(self, what):
            os.write(self.file, what.encode() + b"\\n")

        def start(self):
            loop = asyncio.get_running_loop()
            self.tasks = [loop.create_task(each()) for each in (self.flush, self.fail, self.stay)]

        async def flush(self):
            try:
                await asyncio.Future()
            finally:
                await asyncio.sleep(0.01)
                self.note("flushed")

        async def fail(self):
            try:
                await asyncio.Future()
            finally:
                raise RuntimeError("not now")

        async def stay(self):
            while True:
                try:
                    await asyncio.Future()
                except asyncio.CancelledError:
                    self.note("stays")

        def respond(self, request):
            return b"served"

        def close(self):
            self.note("close")

    @hookimpl
    def superd_services():
        return [Background]
"""


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_remaining_tasks_are_cancelled_before_close_and_cannot_delay_it(
    start_superd: Start, tmp_path: Path, loop: str, number: signal.Signals
) -> None:
    journal = tmp_path / "journal"
    journal.touch()
    served = start_superd(
        f"""
        [daemon]
        loop = "{loop}"

        [service.background]
        plugin = "background"
        listen = "tcp://127.0.0.1:0"
        options = {{ journal = "{journal}" }}
        """,
        env=make_plugin(tmp_path / "plugins", "background", BACKGROUND),
    )
    assert exchange(served.connect("background"), b"") == b"served"
    served.signal(number)
    until(lambda: "close" in journal.read_text(), "the worker's last step")
    assert sorted(journal.read_text().split()[:-1]) == ["flushed", "stays"]
    assert journal.read_text().split()[-1] == "close"
    served.wait_for_log(
        r"warning: a task was cancelled and has not ended within (1|0\.25) s,"
        r" in plugin superd_background\.py:\d+, stay service=background\n"
    )
    served.wait_for_log(r"a task failed as it was cancelled: RuntimeError: not now")
    if number != signal.SIGHUP:
        assert served.wait() == 0


@pytest.mark.root
def test_a_service_is_prepared_as_root_and_serves_as_the_configured_user(
    start_superd: Start, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    journal.touch()
    served = start_superd(
        f"""
        [service.life]
        plugin = "life"
        listen = "udp://127.0.0.1:0"
        user = 64321
        group = 64321
        options = {{ journal = "{journal}" }}
        """,
        env=make_plugin(tmp_path / "plugins", "life", LIFE),
    )
    assert ask_udp(served.address("life", "udp"), b"?") == b""
    (worker,) = served.workers()
    notes = [line.split(" ", 2) for line in journal.read_text().splitlines()]
    users = {step: user for pid, user, step in notes if int(pid) == worker}
    assert users == {"init": "0", "prepare": "0", "respond": "64321"}
