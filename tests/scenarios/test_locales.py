"""Odd locales and time zones: text and the time of day in a jail."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.clients import connect_and_receive, connect_unix
from tests.support.harness import (
    EVENT_TIMEOUT,
    exchange,
    make_plugin,
    receive_all,
)
from tests.support.inside import INSIDE, run_inside
from tests.support.jails import (
    RESET,
)

TOKYO = "Asia/Tokyo" if Path("/usr/share/zoneinfo/Asia/Tokyo").exists() else "JST-9"


@pytest.mark.root
@pytest.mark.parametrize(
    "env",
    [
        {"LC_ALL": "C", "LANG": "C"},
        {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "", "LANG": "tr_TR.UTF-8", "LC_CTYPE": "tr_TR.UTF-8"},
        {"TZ": TOKYO},
        {"TZ": "Nowhere/Odd"},
    ],
    ids=str,
)
def test_odd_locales_and_time_zones_change_only_the_time_of_day(
    start_superd: Start, tmp_path: Path, jail: Path, env: dict[str, str]
) -> None:
    """The time zone is read before the chroot. Text is UTF-8 in any locale."""
    superd = start_superd(
        f"""
        [defaults]
        chroot = "{jail}"
        [service.inside]
        plugin = "inside"
        listen = ["tcp://127.0.0.1:0", "unix://{tmp_path}/caf\u00e9"]
        [service.daytime]
        plugin = "daytime"
        listen = "tcp://127.0.0.1:0"
        """,
        env={**make_plugin(tmp_path / "plugins", "inside", INSIDE), **env},
    )
    assert run_inside(superd, "inside", "result = 'i'.upper() + '\u00e9'.upper()") == "I\u00c9"
    failing = b"raise ValueError('caf\\u00e9 \\ud83d\\ude00 \\udc80')"
    assert connect_and_receive(superd.address("inside"), failing) == RESET
    superd.wait_for_log("ValueError: caf\u00e9 .*udc80")
    with connect_unix(f"{tmp_path}/caf\u00e9") as client:
        client.sendall(b"result = 1")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"1"
    answer = time.strptime(exchange(superd.connect("daytime"), b"").decode().strip())
    offset = (
        9 * 3600 if env.get("TZ") == TOKYO else 0 if "TZ" in env else time.localtime().tm_gmtoff
    )
    assert abs(time.mktime(answer) - time.mktime(time.gmtime()) - offset) < EVENT_TIMEOUT
    superd.stop()
