"""Protocols of file transfer: SMB and its NetBIOS session, Git, rsync, BitTorrent, Sun's RPC.
Pure; raises nothing but `Unreadable`.
"""

from __future__ import annotations

from superd_sniffer.recognisers.names import netbios_label
from superd_sniffer.recognisers.reading import Details, Reader, Short, require, text

_SMB1, _SMB2, _SMB3_ENCRYPTED, _SMB3_COMPRESSED = b"\xffSMB", b"\xfeSMB", b"\xfdSMB", b"\xfcSMB"
_DIALECTS = {0x0202: "2.0.2", 0x0210: "2.1", 0x0300: "3.0", 0x0302: "3.0.2", 0x0311: "3.1.1"}
_SMB1_COMMANDS = {0x72: "negotiate", 0x73: "session-setup", 0x75: "tree-connect", 0x2B: "echo"}
_SMB2_COMMANDS = {0: "negotiate", 1: "session-setup", 3: "tree-connect", 13: "echo"}


def smb(data: bytes) -> Details | None:
    """MS-CIFS 2.2.4.52 and MS-SMB2 2.2.3, each after the length of RFC 1002 (4.3.1)."""
    reader = Reader(data)
    require(reader.number(1) == 0)
    message = reader.vector(3)
    mark = message.take(4)
    try:
        if mark == _SMB1:
            return {"version": "1", **_smb1(message)}
        if mark == _SMB2:
            return {"version": "2", **_smb2(message)}
    except Short:
        return {"version": "1" if mark == _SMB1 else "2"}
    return {"version": "3"} if mark in (_SMB3_ENCRYPTED, _SMB3_COMPRESSED) else None


def _smb1(message: Reader) -> Details:
    command = message.number(1)
    details = {"command": _SMB1_COMMANDS.get(command, f"0x{command:02x}")}
    if command == 0x72:
        message.take(27)
        if message.number(1) == 0:  # no words of parameters
            dialects = message.part(min(message.number(2, "little"), message.left))
            names = [
                text(one[1:]) for one in dialects.rest()[:1024].split(b"\0") if one[:1] == b"\2"
            ]
            details["dialects"] = ",".join(names)
    return details


def _smb2(message: Reader) -> Details:
    message.take(8)
    command = message.number(2, "little")
    details = {"command": _SMB2_COMMANDS.get(command, str(command))}
    if command == 0:
        message.take(50)
        require(message.number(2, "little") == 36)
        count = message.number(2, "little")
        message.take(32)
        numbers = [message.number(2, "little") for _ in range(min(count, 16))]
        details["dialects"] = ",".join(_DIALECTS.get(one, f"0x{one:04x}") for one in numbers)
    return details


def netbios_session(data: bytes) -> Details | None:
    """RFC 1002, 4.3.2: a session request, with the names of both ends."""
    reader = Reader(data)
    require(reader.take(2) == b"\x81\0" and reader.number(2) == 68)
    names = []
    for _ in range(2):
        name, _suffix = netbios_label(reader)
        require(reader.number(1) == 0)
        names.append(name)
    return {"called": names[0], "calling": names[1]}


_AFP_COMMANDS = {3: "status", 4: "open-session"}


def afp(data: bytes) -> Details | None:
    """Apple's Data Stream Interface: the session before a login to the Filing Protocol."""
    reader = Reader(data)
    require(reader.number(1) == 0)
    command = reader.number(1)
    require(command in _AFP_COMMANDS)
    reader.take(2)
    require(reader.number(4) == 0 and reader.number(4) <= 64 and reader.number(4) == 0)
    return {"request": _AFP_COMMANDS[command]}


_GIT_COMMANDS = (b"git-upload-pack", b"git-receive-pack", b"git-upload-archive")


def git(data: bytes) -> Details | None:
    """gitprotocol-pack(5): git's own transport."""
    if not all(one in b"0123456789abcdefABCDEF" for one in data[:4]):
        return None
    command, space, rest = data[4:1024].partition(b" ")
    if command not in _GIT_COMMANDS or not space:
        return None
    line = rest[: max(int(data[:4], 16) - 5 - len(command), 0)]
    path, _, more = line.partition(b"\0")
    host = more.partition(b"host=")[2].partition(b"\0")[0]
    return {"command": text(command), "path": text(path.rstrip(b"\n")), "host": text(host)}


def rsync(data: bytes) -> Details | None:
    """The daemon's greeting, which a client sends as well."""
    greeting, end, _ = data[:64].partition(b"\n")
    if not greeting.startswith(b"@RSYNCD: ") or not end:
        return None
    return {"version": text(greeting[9:].split(b" ")[0])}


def bittorrent(data: bytes) -> Details | None:
    """BEP 3: a handshake."""
    if not data.startswith(b"\x13BitTorrent protocol"):
        return None
    return {"hash": data[28:48].hex() if len(data) >= 48 else ""}


def dht(data: bytes) -> Details | None:
    """BEP 5: a query to a node."""
    if not data.startswith(b"d1:ad2:id20:"):
        return None
    query = data[:1024].partition(b"e1:q")[2].partition(b":")[2]
    known = (b"ping", b"find_node", b"get_peers", b"announce_peer")
    return {"query": next((text(one) for one in known if query.startswith(one)), "")}


_PROGRAMS = {100000: "portmap", 100003: "nfs", 100005: "mount", 100021: "nlm", 100024: "status"}


def sunrpc(data: bytes) -> Details | None:
    """RFC 5531, 9: a call."""
    return _call(Reader(data))


def sunrpc_stream(data: bytes) -> Details | None:
    """RFC 5531, 11: a call in one fragment."""
    reader = Reader(data)
    size = reader.number(4)
    require(size & 0x80000000 != 0)
    return _call(reader.part(size & 0x7FFFFFFF))


def _call(reader: Reader) -> Details | None:
    reader.take(4)
    kind, version, program, release, procedure = (reader.number(4) for _ in range(5))
    require(kind == 0 and version == 2 and procedure <= 100)
    name = _PROGRAMS.get(program, str(program))
    require(program in _PROGRAMS or (release <= 10 and 100000 <= program < 0x60000000))
    return {"program": name, "version": str(release), "procedure": str(procedure)}
