"""The record of a connection: the events accepted, refused, closed and noted, and their formats.

Workers write events, at about a microsecond each; the master renders them. An event is one line of
JSON in printable ASCII, so that a client cannot forge one and the master can write lines unchanged.
Raises only ValueError, for a line that is not an event.
"""

from __future__ import annotations

import enum
import json
import re
import time
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any

from superd.observe.records import LATEST, escaped
from superd.observe.refusals import Refusals

BATCH_SIZE = 24 * 1024  # bytes of lines that are sent to the master at once
BATCH_DELAY = 0.1  # seconds that a line may wait for more lines
LONGEST_LINE = 2048  # bytes
LONGEST_FIELD = LONGEST_LINE // 4  # bytes of a text; a line has at most three
REFUSALS_IN_FULL = 20  # of one reason per second; the rest of that second is counted by source
_ANSWERED = ',"duration":0.000000,"in":0,"out":'
_UNUSUAL = re.compile(r"[^!#-<>-~]")  # characters that the text format escapes or quotes
_FACT_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_ESCAPE = 12  # the most bytes that JSON needs for one character

# An event, byte for byte as ServiceRecords writes it. No quantifier is possessive: with one, Python
# 3.11.2 (Debian 12) accepts a batch whose last line is incomplete. Matching takes linear time
# nevertheless, because the next character always decides whether a repetition continues.
_TEXT = rb'"[ !#-\[\]-~]*(?:\\(?:["\\]|u[0-9a-f]{4})[ !#-\[\]-~]*)*"'
_NUMBER = rb"(?:0|[1-9][0-9]{0,19})"
_WORD = rb'"[a-z-]{1,32}"'
_PROCESS = rb"[1-9][0-9]{0,6}"  # a process ID
_ENDS = rb'"conn":"[0-9a-f]{1,16}-[0-9a-f]{1,16}","peer":%b,"local":%b(?:,"program":%b)?' % (
    _TEXT, _TEXT, _PROCESS,
)  # fmt: skip
# seconds since 1970: a machine's clock may start at 0
_TIME = rb"(?:0|[1-9][0-9]{0,%d})\.[0-9]{3}" % (len(f"{LATEST:.0f}") - 2)
_SECONDS = rb"%b\.[0-9]{6}" % _NUMBER
_FACT = rb'"[a-z][a-z0-9-]{0,31}":%b' % _TEXT
_COUNTS = rb'"duration":%b(?:,"in":%b,"out":%b)?' % (_SECONDS, _NUMBER, _NUMBER)
_EVENT = (
    rb'(?:"accepted",%b|"closed",%b,%b,"end":%b(?:,"target":%b,"connect":%b)?(?:,"outcome":%b)?'
    rb'|"refused","peer":%b,"local":%b,"reason":%b(?:,"count":%b)?'
    rb'|"noted",%b,"text":%b(?:,"facts":\{%b(?:,%b)*\})?)'
) % (
    _ENDS, _ENDS, _COUNTS, _WORD, _TEXT, _SECONDS, _TEXT, _TEXT, _TEXT, _WORD, _NUMBER,
    _ENDS, _TEXT, _FACT, _FACT,
)  # fmt: skip

ACCEPTED, CLOSED, REFUSED, NOTED = EVENTS = "accepted", "closed", "refused", "noted"


class End(enum.Enum):
    """How a connection ended."""

    CLIENT = "client"  # the client finished first
    SERVER = "server"  # the service finished first
    RESET = "reset"  # the client reset the connection
    FIRST_BYTE = "first-byte-timeout"
    IDLE = "idle-timeout"
    SESSION = "session-timeout"
    ERROR = "error"  # the plugin failed
    DRAIN = "drain"  # superd stopped, and drain-timeout expired
    TARGET_RESET = "target-reset"  # the target reset its connection
    UNREACHABLE = "unreachable"  # no target could be connected
    HALF_CLOSE = "half-close-timeout"
    EVICTED = "evicted"  # its slot was needed for another connection
    KILLED = "killed"  # by the operator


class ConnectionLog:
    """Sends the events of one worker to the master in batches.

    `send` returns whether the batch was sent; `later` calls a function after some seconds; `lost`
    gets the number of lines that could not be sent.
    """

    def __init__(
        self,
        pid: int,
        send: Callable[[bytes], bool],
        later: Callable[[float, Callable[[], None]], object],
        lost: Callable[[int], None],
    ) -> None:
        self.pid = pid
        self._send = send
        self._later = later
        self._report_lost = lost
        self._lines: list[str] = []
        self._size = 0
        self._lost = 0

    def add(self, lines: str) -> None:
        """Add one or more complete lines."""
        if not self._size:
            self._later(BATCH_DELAY, self.flush)
        self._lines.append(lines)
        self._size += len(lines)
        if self._size > BATCH_SIZE:
            self.flush()

    def flush(self) -> None:
        """Send the batch; if it cannot be sent, count its lines as lost."""
        lines, self._lines, self._size = self._lines, [], 0
        if lines:
            batch = "".join(lines)
            if not self._send(batch.encode("ascii")):
                self._lost += batch.count("\n")
            elif self._lost:
                self._report_lost(self._lost)
                self._lost = 0


class ServiceRecords:
    """Writes those events of one service that its entry asks for."""

    def __init__(self, log: ConnectionLog, service: str, events: Collection[str]) -> None:
        self._log = log
        self.wants_any = bool(events)
        head = f',"pid":{log.pid},"service":{json.dumps(service)},"event":'
        self._accepted = f'{head}"{ACCEPTED}","conn":"' if ACCEPTED in events else ""
        self._closed = f'{head}"{CLOSED}","conn":"' if CLOSED in events else ""
        self._refused = f'{head}"{REFUSED}","peer":"' if REFUSED in events else ""
        self._noted = f'{head}"{NOTED}","conn":"' if NOTED in events else ""
        self._refused_in_full: dict[str, int] = {}  # in this second, by reason
        self._refusals = Refusals()

    def accepted(self, ends: str) -> None:
        """Write that a connection was accepted; `ends` comes from `ends_of`."""
        if self._accepted:
            self._log.add(f'{{"time":{time.time():.3f}{self._accepted}{ends}}}\n')

    def closed(
        self,
        ends: str,
        duration: float,
        received: int | None,
        sent: int | None,
        end: str,
        outcome: str = "",
        target: tuple[str, float] | None = None,
    ) -> None:
        """Write that a connection has ended. The byte counts are None if they are unknown;
        `outcome` is how its program ended, if it had one; `target` is the target that served it and
        the seconds that it took to connect.
        """
        if self._closed:
            bytes_ = "" if received is None else f',"in":{received},"out":{sent}'
            more = f',"target":"{safe_name(target[0])}","connect":{target[1]:.6f}' if target else ""
            more += f',"outcome":"{safe(outcome)}"' if outcome else ""
            self._log.add(
                f'{{"time":{time.time():.3f}{self._closed}{ends},"duration":{duration:.6f}'
                f'{bytes_},"end":"{end}"{more}}}\n'
            )

    def answered(self, ends: str, sent: int, end: str) -> None:
        """Write both events of a connection that was answered and closed at once."""
        now = f"{time.time():.3f}"
        lines = f'{{"time":{now}{self._accepted}{ends}}}\n' if self._accepted else ""
        if self._closed:
            lines += f'{{"time":{now}{self._closed}{ends}{_ANSWERED}{sent},"end":"{end}"}}\n'
        if lines:
            self._log.add(lines)

    def noted(self, ends: str, text: str, facts: Mapping[str, str]) -> None:
        """Write a plugin's text about a client, and facts by name. A name is a lower-case word.
        Facts that do not fit into the line are dropped.
        """
        if not self._noted:
            return
        line = f'{{"time":{time.time():.3f}{self._noted}{ends},"text":"{safe(text)}"'
        room = LONGEST_LINE - len(line) - len(',"facts":{}}\n')
        told = []
        for key, value in facts.items():
            fact = f'"{key}":"{safe(value)}"'
            if _FACT_NAME.fullmatch(key) and len(fact) < room:
                room -= len(fact) + 1
                told.append(fact)
        more = f',"facts":{{{",".join(told)}}}' if told else ""
        self._log.add(f"{line}{more}}}\n")

    def refused(self, peer: str, local: str, reason: str) -> None:
        """Write a refusal, unless this second had many for the same reason already."""
        if not self._refused:
            return
        about = f'","local":"{local}","reason":"{reason}"'
        written = self._refused_in_full.get(reason, 0)
        if written < REFUSALS_IN_FULL:
            self._refused_in_full[reason] = written + 1
            self._log.add(f'{{"time":{time.time():.3f}{self._refused}{peer}{about}}}\n')
        else:
            self._refusals.add(peer, about)

    def end_window(self) -> None:
        """Write how many refusals each source had that were only counted; called once a second."""
        stamp = f'{{"time":{time.time():.3f}{self._refused}'
        for peer, about, count in self._refusals.take():
            number = f',"count":{count}' if count > 1 else ""
            self._log.add(f"{stamp}{peer}{about}{number}}}\n")
        self._refused_in_full.clear()


def ends_of(connection: str, peer: str, local: str) -> str:
    """Return the part that both events of a connection share, from safe texts (see `safe`)."""
    return f'{connection}","peer":"{peer}","local":"{local}"'


def safe(text: str) -> str:
    """Return text for an event: printable ASCII, escaped for JSON, and cut to length."""
    text = escaped(text)[:LONGEST_FIELD]
    quoted = json.dumps(text)[1:-1]
    if len(quoted) > LONGEST_FIELD:
        return json.dumps(text[: LONGEST_FIELD // _ESCAPE])[1:-1]
    return quoted


@lru_cache(1024)
def safe_name(text: str) -> str:
    """Return `safe(text)`; cached, for texts that occur often."""
    return safe(text)


def pattern_of(pid: int, services: Collection[str]) -> re.Pattern[bytes]:
    """Return the pattern of a worker's batches; it matches no event of another worker's services.

    It describes events completely: an additional key could repeat the name of the service, which
    readers of JSON would believe, and a value of another type could break a renderer.
    """
    re.purge()  # the module would keep the long patterns of hundreds of workers that have ended
    names = b"|".join(re.escape(json.dumps(name).encode()) for name in services)
    return re.compile(
        rb'(?:(?!.{%d})\{"time":%b,"pid":%d,"service":(?:%b),"event":%b\}\n)+'
        % (LONGEST_LINE, _TIME, pid, names, _EVENT)
    )


def parsed(line: str | bytes) -> dict[str, Any]:
    """Return the event in a line; ValueError if it is not one."""
    event = json.loads(line)
    if not isinstance(event, dict) or event.get("event") not in EVENTS:
        raise ValueError("not an event")
    if not isinstance(event.get("time"), float) or not isinstance(event.get("service"), str):
        raise ValueError("not an event")
    return event


def message_of(event: Mapping[str, Any]) -> str:
    """Return an event as the message of a log line: `accepted service=echo conn=1-2 ...`."""
    if event["event"] == NOTED:
        facts = event.get("facts", {})
        known = {"service": event["service"], "conn": event["conn"], **facts}
        return " ".join(
            [event["text"], *(f"{key}={_shown(value)}" for key, value in known.items())]
        )
    pairs = ((key, value) for key, value in event.items() if key not in ("time", "pid", "event"))
    return " ".join([event["event"], *(f"{key}={_shown(value)}" for key, value in pairs)])


def _shown(value: object) -> str:
    """Return a value, quoted if it could be read as more than one pair."""
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    if not _UNUSUAL.search(text):
        return text
    text = escaped(text)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ' "=') else text


def as_text(event: Mapping[str, Any]) -> str:
    """Return an event as a line of the text format."""
    seconds, _, milliseconds = f"{event['time']:.3f}".partition(".")
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(seconds)))
    return f"{stamp}.{milliseconds} superd[{event.get('pid', 0)}] info: {message_of(event)}"


# xinetd's names for refusals (its access.c); the others keep superd's
_OF_XINETD = {
    "access": "address",
    "banned": "address",
    "access-times": "time",
    "max-load": "load",
    "daemon-max-load": "load",
    "max-connections": "service_limit",
    "max-per-source": "per_source_limit",
    "daemon-max-per-source": "per_source_limit",
    "daemon-max-connections": "process_limit",
    "rate": "connections per second",
    "rate-per-source": "connections per second",
    "daemon-rate": "connections per second",
    "daemon-rate-per-source": "connections per second",
}


def as_xinetd(event: Mapping[str, Any]) -> str:
    """Return an event as xinetd writes it to a log file, byte for byte."""
    return f"{xinetd_stamp(event['time'])}: {xinetd_message_of(event)}"


def xinetd_message_of(event: Mapping[str, Any]) -> str:
    """Return an event as xinetd sends it to syslog.

    The pid is that of the program; 0 for a service without one, as with xinetd's internal services.
    """
    service = escaped(event["service"])
    pid = int(event.get("program", 0))
    host = _host(event)
    origin = f" from={host}" if host else ""
    if event["event"] == ACCEPTED:
        return f"START: {service} pid={pid}{origin}"
    if event["event"] == CLOSED:
        seconds = int(event.get("duration", 0))
        how = re.match(r"(status|signal) (\d+)", str(event.get("outcome", "")))
        status = f"{how[1]}={how[2]}" if how else "status=0"
        return f"EXIT: {service} {status} pid={pid} duration={seconds}(sec)"
    if event["event"] == NOTED:
        return f"NOTE: {service}{origin} {escaped(str(event['text']))}"
    reason = str(event.get("reason", ""))
    return f"FAIL: {service} {_OF_XINETD.get(reason, escaped(reason))}{origin}"


def xinetd_stamp(moment: float) -> str:
    """Return a time as xinetd writes it."""
    return time.strftime("%y/%m/%d@%H:%M:%S", time.localtime(moment))


def _host(event: Mapping[str, Any]) -> str:
    """Return the host of a tcp or udp peer, or the netblock of several; "" for a unix socket's."""
    if str(event.get("local", "")).startswith("unix"):
        return ""
    peer = escaped(str(event.get("peer", "")))
    return peer if "/" in peer else peer.rpartition(":")[0].strip("[]")  # or a netblock


FORMS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {"text": as_text, "xinetd": as_xinetd}
