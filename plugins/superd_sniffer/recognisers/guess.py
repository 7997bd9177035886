"""Which protocol a client speaks, as far as its first bytes tell.

A guess is made where a wrong one is unlikely: of a magic number, of a request's shape with all its
lengths, or of a whole line. Everything else is no guess. A message that goes on keeps the protocol
that was guessed of its beginning, except that empty lines may precede anything.

Pure: reads its argument and nothing else, in linear time. Never raises, and never tells a password.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from superd_sniffer.recognisers import (
    databases,
    datagrams,
    desktops,
    encrypted,
    files,
    games,
    lines,
    machines,
    marks,
    names,
    requests,
    tunnels,
)
from superd_sniffer.recognisers.reading import LONGEST, Details, Unreadable

Recognizer = Callable[[bytes], Details | None]


@dataclass(frozen=True)
class Guess:
    """A protocol in one lower-case word, and what is worth recording of the first message.

    Values are what the client sent, of at most 256 characters, and not escaped.
    """

    protocol: str
    details: dict[str, str] = field(default_factory=dict)


def guess(data: bytes, *, datagram: bool) -> Guess | None:
    """Return what a datagram is, or the beginning of a stream."""
    for protocol, recognize in DATAGRAMS if datagram else STREAMS:
        try:
            details = recognize(data)
        except Unreadable:
            continue
        if details is not None:
            return Guess(protocol, {key: one[:LONGEST] for key, one in details.items() if one})
    return None


# in this order: magic numbers first, then what has a shape, lines of words last
STREAMS: tuple[tuple[str, Recognizer], ...] = (
    ("tls", encrypted.tls),
    ("ssh", encrypted.ssh),
    ("http2", requests.http2),
    ("rtsp", requests.rtsp),
    ("sip", requests.sip),
    ("http", requests.http),
    ("proxy", tunnels.proxy),
    ("smb", files.smb),
    ("rdp", desktops.rdp),
    ("s7", machines.s7),
    ("telnet", desktops.telnet),
    ("vnc", desktops.vnc),
    ("x11", desktops.x11),
    ("adb", desktops.adb),
    *marks.STREAMS,
    ("rmi", desktops.rmi),
    ("postgresql", databases.postgresql),
    ("mysql", databases.mysql),
    ("mssql", databases.mssql),
    ("oracle", databases.oracle),
    ("mongodb", databases.mongodb),
    ("cassandra", databases.cassandra),
    ("kafka", databases.kafka),
    ("redis", databases.redis),
    ("memcached", databases.memcached),
    ("zookeeper", databases.zookeeper),
    ("ldap", names.ldap),
    ("kerberos", names.kerberos_stream),
    ("mqtt", machines.mqtt),
    ("amqp", machines.amqp),
    ("ajp", machines.ajp),
    ("modbus", machines.modbus),
    ("iec104", machines.iec104),
    ("dnp3", machines.dnp3),
    ("enip", machines.enip),
    ("afp", files.afp),
    ("bittorrent", files.bittorrent),
    ("git", files.git),
    ("rsync", files.rsync),
    ("sunrpc", files.sunrpc_stream),
    ("netbios", files.netbios_session),
    ("dns", names.dns_stream),
    ("minecraft", games.minecraft),
    ("socks5", tunnels.socks5),
    ("socks4", tunnels.socks4),
    ("openvpn", encrypted.openvpn_stream),
    ("pptp", tunnels.pptp),
    ("xmpp", requests.xmpp),
    ("smtp", lines.smtp),
    ("irc", lines.irc),
    ("pop3", lines.pop3),
    ("imap", lines.imap),
    ("ftp", lines.ftp),
    ("stomp", lines.stomp),
    ("ident", lines.ident),
    ("lpd", lines.lpd),
    ("iperf3", lines.iperf3),
    ("probe", lines.probe),
)

DATAGRAMS: tuple[tuple[str, Recognizer], ...] = (
    ("stun", datagrams.stun),
    ("dtls", encrypted.dtls),
    ("quic", encrypted.quic),
    ("sip", requests.sip),
    ("ssdp", requests.ssdp),
    ("dhcp", names.dhcp),
    ("bittorrent", files.dht),
    ("steam", games.steam),
    ("quake", games.quake),
    ("ipmi", datagrams.ipmi),
    ("bacnet", machines.bacnet),
    ("snmp", datagrams.snmp),
    ("ldap", names.ldap),
    ("kerberos", names.kerberos),
    ("sunrpc", files.sunrpc),
    ("memcached", databases.memcached_datagram),
    ("ike", encrypted.ike),
    ("wireguard", encrypted.wireguard),
    ("openvpn", encrypted.openvpn),
    ("netbios", names.netbios),
    ("dns", names.dns),
    ("ntp", datagrams.ntp),
    ("tftp", datagrams.tftp),
    ("radius", datagrams.radius),
    ("coap", machines.coap),
    ("syslog", datagrams.syslog),
    ("probe", lines.probe),
)
