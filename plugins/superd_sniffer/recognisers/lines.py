"""Protocols that begin with a line of words: SMTP, FTP, POP3, IMAP, IRC, ident; and the lines that
scanners send to identify a server. Pure; raises nothing.

An incomplete line is not recognised, as any word may be the beginning of another.
"""

from __future__ import annotations

from superd_sniffer.recognisers.reading import Details, text

_MAX_LINE_BYTES = 512


def first_words(data: bytes) -> list[bytes] | None:
    """Return the words of the first line; None if it is incomplete, too long or empty."""
    line, end, _ = data[:_MAX_LINE_BYTES].partition(b"\n")
    if not end or b"\0" in line:
        return None
    return line.split() or None


def _verb(data: bytes) -> tuple[str, list[bytes]]:
    """Return the first word, in upper case, and those after it."""
    words = first_words(data)
    return (text(words[0]).upper(), words[1:]) if words else ("", [])


def _joined(words: list[bytes]) -> str:
    return text(b" ".join(words))


def smtp(data: bytes) -> Details | None:
    """RFC 5321, and LMTP (RFC 2033)."""
    verb, rest = _verb(data)
    if verb in ("EHLO", "HELO", "LHLO"):
        return {"command": verb, "name": _joined(rest)}
    after = _joined(rest).upper()
    if (verb == "MAIL" and after.startswith("FROM:")) or (
        verb == "RCPT" and after.startswith("TO:")
    ):
        return {"command": verb, "address": _joined(rest).partition(":")[2]}
    return {"command": verb} if verb == "STARTTLS" and not rest else None


_FTP_ALONE = frozenset(("SYST", "FEAT", "PASV", "EPSV", "XPWD"))


def ftp(data: bytes) -> Details | None:
    """RFC 959 and RFC 4217. USER with one name may also be POP3."""
    verb, rest = _verb(data)
    if verb in _FTP_ALONE and not rest:
        return {"command": verb}
    if verb == "USER" and len(rest) == 1:
        return {"command": verb, "user": text(rest[0])}
    if verb == "AUTH" and [one.upper() for one in rest] in ([b"TLS"], [b"SSL"], [b"TLS-C"]):
        return {"command": verb}
    return None


def pop3(data: bytes) -> Details | None:
    """RFC 1939, 2449 and 2595."""
    verb, rest = _verb(data)
    if verb == "APOP" and len(rest) == 2:
        return {"command": verb, "user": text(rest[0])}
    return {"command": verb} if verb in ("CAPA", "STLS") and not rest else None


_IMAP_ALONE = frozenset(("CAPABILITY", "STARTTLS", "NOOP", "LOGOUT"))


def imap(data: bytes) -> Details | None:
    """RFC 9051: a tag and a command. The user is not recorded: a password follows it."""
    words = first_words(data)
    if not words or len(words) < 2 or len(words[0]) > 12 or not words[0].isalnum():
        return None
    command = text(words[1]).upper()
    is_alone = command in _IMAP_ALONE and len(words) == 2
    if is_alone or (command in ("LOGIN", "AUTHENTICATE", "ID") and len(words) > 2):
        return {"command": command}
    return None


def irc(data: bytes) -> Details | None:
    """RFC 2812, 3.1, and the capabilities of IRCv3."""
    verb, rest = _verb(data)
    if verb == "NICK" and len(rest) == 1:
        return {"command": verb, "nick": text(rest[0].lstrip(b":"))}
    if verb == "USER" and len(rest) >= 4:
        return {"command": verb, "user": text(rest[0])}
    if verb == "CAP" and rest and rest[0].upper() in (b"LS", b"REQ"):
        return {"command": verb}
    return None


def stomp(data: bytes) -> Details | None:
    """STOMP 1.2: the command of a first frame."""
    words = first_words(data)
    return {"command": text(words[0])} if words in ([b"CONNECT"], [b"STOMP"]) else None


def lpd(data: bytes) -> Details | None:
    """RFC 1179, 5: a command and a queue, in one line."""
    if not 3 <= len(data) <= 64 or not 1 <= data[0] <= 5 or data.find(b"\n") != len(data) - 1:
        return None
    queue = data[1:-1]
    return {"command": str(data[0]), "queue": text(queue)} if _is_printable(queue) else None


def _is_printable(word: bytes) -> bool:
    return word.isascii() and word.decode("ascii").isprintable()


def iperf3(data: bytes) -> Details | None:
    """The beginning of iperf3: a cookie of 36 characters."""
    is_cookie = len(data) >= 37 and data[36] == 0 and data[:36].isalnum()
    return {} if is_cookie else None


def ident(data: bytes) -> Details | None:
    """RFC 1413: the pair of ports of the query."""
    words = b"".join(first_words(data) or ())
    ports = words.split(b",")
    if len(ports) != 2 or not all(one.isdigit() and len(one) <= 5 for one in ports):
        return None
    return {"ports": text(words)}


def probe(data: bytes) -> Details | None:
    """Input of no protocol: empty lines and requests for help, which many servers answer, and the
    marks of surveys.
    """
    if len(data) <= 4 and b"\n" in data and not data.strip(b"\r\n"):
        return {"kind": "empty lines"}
    if data.startswith(b"MGLNDD_"):  # a survey of the Internet; the line has the address it probes
        return {"kind": "magellan", "line": text(data.partition(b"\n")[0])}
    verb, rest = _verb(data)
    return {"kind": "help"} if verb == "HELP" and not rest else None
