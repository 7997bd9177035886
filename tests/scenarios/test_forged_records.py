"""A compromised worker cannot write records of other workers or services, nor harm the master."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.clients import receive_to_end
from tests.support.harness import make_plugin, until
from tests.support.inside import INSIDE, run_inside

FORGER = """
data = b'{"time":1700000000.123,"pid":%d,"service":"inside","event":"refused",%s}\\n'
for number in range(3, 100):
    try:
        sock = socket.socket(fileno=os.dup(number))
    except OSError:
        continue
    with sock:
        if sock.type == socket.SOCK_SEQPACKET:
            sock.send(data % (os.getpid(), FORGED))
"""
FORGED = {
    "another service": b'"service":"web","peer":"192.0.2.1:5"',
    "an impossible time": b'"time":1e300,"peer":"192.0.2.1:5"',
    "nested": b'"peer":' + b"[" * 1000 + b"]" * 1000,
    "infinite": b'"peer":"192.0.2.1:5","duration":Infinity',
}


@pytest.mark.parametrize("form", ["text", "json", "xinetd"])
def test_a_worker_that_forges_records_is_ended_and_its_records_are_not_written(
    start_superd: Start, tmp_path: Path, form: str
) -> None:
    file = tmp_path / "records"
    served = start_superd(
        f"""
        [daemon]
        record-log = "{file}"
        record-format = "{form}"

        [service.inside]
        plugin = "inside"
        listen = "tcp://127.0.0.1:0"
        """,
        env=make_plugin(tmp_path / "plugins", "inside", INSIDE),
    )
    for forged in FORGED.values():
        [worker] = served.workers()
        with served.connect("inside") as client:
            client.sendall(f"FORGED = {forged!r}\n{FORGER}\nresult = 1\n".encode())
            client.shutdown(socket.SHUT_WR)
            receive_to_end(client)
        served.wait_for_log(
            f"worker {worker} sent an invalid message: events of another worker or service"
        )
        until(lambda ended=worker: served.workers() not in ([], [ended]), "another worker")  # type: ignore[misc]
    assert run_inside(served, "inside", "result = 1") == 1
    assert "192.0.2.1" not in file.read_text()
