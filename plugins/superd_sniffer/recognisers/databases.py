"""Protocols of databases, caches and queues: PostgreSQL, MySQL, SQL Server, Oracle, MongoDB,
Cassandra, Kafka, Redis, memcached, ZooKeeper. Pure; raises nothing but `Unreadable`.
"""

from __future__ import annotations

from superd_sniffer.recognisers.lines import first_words
from superd_sniffer.recognisers.reading import Details, Reader, Short, require, text

_POSTGRESQL_REQUESTS = {80877102: "cancel", 80877103: "ssl", 80877104: "gssenc"}


def postgresql(data: bytes) -> Details | None:
    """PostgreSQL's documentation, "Message Formats": the first message of a client."""
    reader = Reader(data)
    size, code = reader.number(4), reader.number(4)
    if code in _POSTGRESQL_REQUESTS:
        require(size == (8 if code != 80877102 else 16) or (code == 80877102 and size <= 300))
        return {"request": _POSTGRESQL_REQUESTS[code]}
    require(code in (0x00030000, 0x00030002) and 9 <= size <= 10000)
    details = {"request": "startup"}
    parameters = reader.part(size - 8)
    try:
        while key := parameters.until(b"\0"):
            value = parameters.until(b"\0")
            if key in (b"user", b"database", b"application_name"):
                details[key.decode().replace("_", "-")] = text(value)
    except Short:
        pass
    return details


def mysql(data: bytes) -> Details | None:
    """MySQL's HandshakeResponse41 and SSLRequest: the answer to a server's greeting."""
    reader = Reader(data)
    size, sequence, capabilities, _ = (reader.number(width, "little") for width in (3, 1, 4, 4))
    require(32 <= size <= 4096 and sequence == 1 and capabilities & 0x0200 != 0)  # PROTOCOL_41
    reader.take(1)
    require(not any(reader.take(19)))
    reader.take(4)  # MariaDB's capabilities
    if capabilities & 0x0800 and size == 32:
        return {"request": "ssl"}
    try:
        return {"request": "login", "user": text(reader.until(b"\0", 256))}
    except Short:
        return {"request": "login"}


_TDS_REQUESTS = {0x12: "prelogin", 0x10: "login"}


def mssql(data: bytes) -> Details | None:
    """MS-TDS 2.2.3.1: the header of the first packet, and the bytes after it."""
    reader = Reader(data)
    kind, status, size = reader.number(1), reader.number(1), reader.number(2)
    require(kind in _TDS_REQUESTS and status in (0, 1) and 20 <= size <= 4096)
    require(reader.number(2) == 0 and reader.number(1) <= 1 and reader.number(1) == 0)
    if kind == 0x12:  # the first option is the version, after the list of options
        token, offset, length = reader.number(1), reader.number(2), reader.number(2)
        require(token == 0 and 6 <= offset <= size and length == 6)
    else:
        require(reader.number(4, "little") <= size - 8)
    return {"request": _TDS_REQUESTS[kind]}


def oracle(data: bytes) -> Details | None:
    """Oracle's TNS: a connect packet, and the name of the service."""
    reader = Reader(data)
    size, checksum, kind, _, header = (reader.number(width) for width in (2, 2, 1, 1, 2))
    version, compatible = reader.number(2), reader.number(2)
    require(size >= 34 and checksum == 0 and kind == 1 and header == 0)
    require(300 <= compatible <= version <= 400)
    beginning = data[:1024]
    found = beginning.upper().find(b"SERVICE_NAME=")
    if found < 0:
        return {}
    name, closed, _ = beginning[found + 13 :].partition(b")")
    return {"service": text(name) if closed else ""}


_MONGODB_OPERATIONS = {2004: "query", 2012: "compressed", 2013: "msg"}


def mongodb(data: bytes) -> Details | None:
    """MongoDB's wire protocol: a header, and a query's collection."""
    reader = Reader(data)
    size, _, answered, operation = (reader.number(4, "little") for _ in range(4))
    require(26 <= size <= 48_000_000 and answered in (0, 0xFFFFFFFF))
    name = _MONGODB_OPERATIONS.get(operation)
    if name != "query":
        return {"operation": name} if name else None
    try:
        reader.take(4)
        return {"operation": name, "collection": text(reader.until(b"\0", 256))}
    except Short:
        return {"operation": name}


def cassandra(data: bytes) -> Details | None:
    """Cassandra's native protocol, versions 3 to 5: OPTIONS, or STARTUP with its map."""
    reader = Reader(data)
    version, flags = reader.number(1), reader.number(1)
    stream, operation, size = reader.number(2), reader.number(1), reader.number(4)
    require(3 <= version <= 5 and flags in (0, 0x10) and stream < 0x8000)
    if operation == 5 and size == 0:
        return {"version": str(version), "request": "options"}
    require(operation == 1 and 2 <= size <= 1024 and reader.number(2) <= 16)
    return {"version": str(version), "request": "startup"}


_KAFKA_REQUESTS = {3: "metadata", 18: "api-versions"}


def kafka(data: bytes) -> Details | None:
    """Kafka's protocol guide: one of the requests that a client sends first."""
    body = Reader(data).vector(4)
    require(10 <= body.left <= 4096)
    key, version = body.number(2), body.number(2)
    require(key in _KAFKA_REQUESTS and version <= 20)
    body.take(4)
    length = body.number(2)
    require(length <= body.left or length == 0xFFFF)
    client = "" if length == 0xFFFF else text(body.take(length))
    return {"request": _KAFKA_REQUESTS[key], "client": client}


# inline commands that no other protocol has
_REDIS_INLINE = frozenset(
    b"PING INFO KEYS CONFIG FLUSHALL FLUSHDB SLAVEOF REPLICAOF DBSIZE CLIENT EVAL".split()
)
_REDIS_WITH_SUBCOMMAND = frozenset(("CONFIG", "CLIENT", "INFO", "SLAVEOF", "REPLICAOF", "MODULE"))


def redis(data: bytes) -> Details | None:
    """Redis's RESP, or an inline command. Records only arguments that cannot be secret."""
    if not data.startswith(b"*"):
        words = first_words(data)
        if not words or words[0].upper() not in _REDIS_INLINE or len(words) > 8:
            return None
        return {"command": _redis_command(words[:2])}
    reader = Reader(data)
    reader.take(1)
    count = reader.until(b"\r\n", 6)
    require(count.isdigit() and reader.take(1) == b"$")
    words = []
    try:
        for _ in range(min(int(count), 2)):
            size = reader.until(b"\r\n", 6)
            require(size.isdigit())
            words.append(reader.take(int(size)))
            reader.take(3)
    except Short:
        pass
    return {"command": _redis_command(words)}


def _redis_command(words: list[bytes]) -> str:
    shown = [text(one) for one in words]
    if shown and shown[0].upper() in _REDIS_WITH_SUBCOMMAND:
        return " ".join(shown)
    return shown[0] if shown else ""


_MEMCACHED_ALONE = frozenset((b"stats", b"version", b"flush_all"))
_MEMCACHED_KEYED = frozenset((b"get", b"gets", b"stats", b"delete", b"touch", b"incr", b"decr"))
_MEMCACHED_STORING = frozenset((b"set", b"add", b"replace", b"append", b"prepend", b"cas"))


def memcached(data: bytes) -> Details | None:
    """memcached's protocol.txt, or the header of its binary protocol."""
    if data[:1] == b"\x80":
        return _memcached_binary(Reader(data))
    words = first_words(data)
    if not words:
        return None
    numbers = words[2:5]
    fits = (
        (words[0] in _MEMCACHED_ALONE and len(words) == 1)
        or (words[0] in _MEMCACHED_KEYED and 2 <= len(words) <= 4)
        or (words[0] in _MEMCACHED_STORING and len(words) >= 5 and all(map(bytes.isdigit, numbers)))
    )
    return {"command": text(b" ".join(words[:2]))} if fits else None


def _memcached_binary(reader: Reader) -> Details | None:
    _, operation, key, extras, kind, status, body = (
        reader.number(width) for width in (1, 1, 2, 1, 1, 2, 4)
    )
    reader.take(12)
    require(operation <= 0x3D and key <= 250 and extras <= 32 and kind == status == 0)
    require(key + extras <= body <= 1 << 20)
    return {"command": f"0x{operation:02x}"}


def memcached_datagram(data: bytes) -> Details | None:
    """protocol.txt, "UDP protocol": a header of four numbers, and a message as in a stream."""
    return memcached(data[8:]) if data[2:8] == b"\0\0\0\x01\0\0" else None


_FOUR_LETTERS = frozenset((b"ruok", b"envi", b"mntr", b"srvr", b"wchs", b"isro"))


def zookeeper(data: bytes) -> Details | None:
    """ZooKeeper's four letter words, which need no line end."""
    word = data.rstrip(b"\r\n") if len(data) <= 6 else data
    return {"command": text(word)} if word in _FOUR_LETTERS else None
