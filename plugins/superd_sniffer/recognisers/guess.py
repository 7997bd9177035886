"""Guesses a client's protocol from its first bytes.

A guess is made only if an error is unlikely: from a magic number, from the structure of a request
with all its lengths, or from a whole line. More bytes of a stream never change a guess, except that
empty lines may precede any protocol.

Pure: reads its argument and nothing else, in linear time. Never raises, and never returns a
password.
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
from superd_sniffer.recognisers.reading import MAX_VALUE_LENGTH, Details, Unreadable

Recogniser = Callable[[bytes], Details | None]


@dataclass(frozen=True)
class Guess:
    """A protocol in one lower-case word, and details of the first message.

    Values are the client's text, at most 256 characters, and not escaped.
    """

    protocol: str
    details: dict[str, str] = field(default_factory=dict)


def guess(data: bytes, *, datagram: bool) -> Guess | None:
    """Return the protocol of a datagram or of the beginning of a stream; None if unknown."""
    for protocol, recognise in DATAGRAMS if datagram else STREAMS:
        try:
            details = recognise(data)
        except Unreadable:
            continue
        if details is not None:
            return Guess(
                protocol, {key: one[:MAX_VALUE_LENGTH] for key, one in details.items() if one}
            )
    return None


# tried in this order: magic numbers first, then structured messages, lines of words last
STREAMS: tuple[tuple[str, Recogniser], ...] = (
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

DATAGRAMS: tuple[tuple[str, Recogniser], ...] = (
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
