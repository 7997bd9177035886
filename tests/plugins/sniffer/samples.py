"""First bytes of real clients, and the guesses for them.

Most were recorded on loopback: curl, OpenSSL, OpenSSH, redis-cli, smbclient, mosquitto, ldapsearch,
psql, mariadb, git, dig, snmpget, tftp, logger. The others are made by their specifications, or like
the probes of scanners.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.plugins.sniffer.hellos import OPENSSL, OPENSSL_DTLS, OPENSSL_TLS_1_2, PYTHON

h = bytes.fromhex


class Sample(NamedTuple):
    protocol: str
    data: bytes
    details: dict[str, str] = {}  # noqa: RUF012  never changed


SMBCLIENT = bytes.fromhex(
    "000000e2fe534d42400000000000000000001f00000000000000000000000000000000000000000000000000"
    "00000000000000000000000000000000000000000000000024000500010000007f000000882ccb0dce131e48"
    "b5f8636c123eb8d7700000000400000002021002000302031103000001002600000000000100200001008e63"
    "c0267f1652f4c8d612dfc704d2ca05c8ee3fe54ead1c6cee9742962f1be0000002000a000000000004000200"
    "0100040003000000000000000800080000000000030002000100000005001200000000003100320037002e00"
    "30002e0030002e003100"
)
MARIADB = bytes.fromhex(
    "d100000185a2bf00000010002100000000000000000000000000000000000000000000006b6e6f636b657200"
    "14169db9177907779146a2c6a0e6516f2c6b92c84f"
)

STREAMS = [
    Sample("tls", OPENSSL, {
        "version": "1.3", "sni": "knock.example", "ja4": "t13d311000_e8f1e7e78f70_1f22a2ca17c4",
    }),
    Sample("tls", OPENSSL_TLS_1_2, {
        "version": "1.2", "alpn": "http/1.1", "ja4": "t12i2807h1_d943125447b4_e7e480e5a997",
    }),
    Sample("tls", PYTHON, {
        "version": "1.3", "sni": "knock.example", "alpn": "h2",
        "ja4": "t13d1812h2_85036bcba153_d41ae481755e",
    }),
    Sample("tls", OPENSSL[:100], {"version": "1.2", "hello": "cut off"}),
    Sample("tls", h("1603010010 01 00000c 0303") + bytes(10), {"hello": "malformed"}),
    Sample("tls", h("802b 01 0301 0012 0000 0010 010080 0700c0 050080 030080 060040 040080")
           + bytes(16), {"version": "1.0", "hello": "ssl 2.0"}),
    Sample("ssh", b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u10\r\n",
           {"banner": "SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u10"}),
    Sample("ssh", b"SSH-2.0-Go\r\n\0\0\x05\xdc", {"banner": "SSH-2.0-Go"}),
    Sample("http2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + h("000012 04 00 00000000")),
    Sample("http", b"GET /a?b=c HTTP/1.1\r\nHost: knock.example\r\nUser-Agent: curl/7.88.1\r\n"
           b"Accept: */*\r\n\r\n", {
               "method": "GET", "target": "/a?b=c", "version": "1.1", "host": "knock.example",
               "user-agent": "curl/7.88.1",
           }),
    Sample("http", b"CONNECT knock.example:443 HTTP/1.1\r\nhost:knock.example:443\r\n\r\n", {
        "method": "CONNECT", "target": "knock.example:443", "version": "1.1",
        "host": "knock.example:443",
    }),
    Sample("http", b"GET http://knock.example/ HTTP/1.1\r\n\r\n",
           {"method": "GET", "target": "http://knock.example/", "version": "1.1"}),
    Sample("http", b"\r\nGET / HTTP/1.0\r\n\r\n",
           {"method": "GET", "target": "/", "version": "1.0"}),
    Sample("http", b"GET /\r\n", {"method": "GET", "target": "/", "version": "0.9"}),
    Sample("http", b"GET /cut/of", {"method": "GET", "target": "/cut/of"}),
    Sample("http", b"OPTIONS / HTTP/1.0\r\n\r\n",
           {"method": "OPTIONS", "target": "/", "version": "1.0"}),
    Sample("http", b"GET /nice%20ports%2C/Tri%6Eity.txt%2ebak HTTP/1.0\r\n\r\n", {
        "method": "GET", "target": "/nice%20ports%2C/Tri%6Eity.txt%2ebak", "version": "1.0",
    }),
    Sample("rtsp", b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\nUser-Agent: curl/7.88.1\r\n\r\n", {
        "method": "OPTIONS", "target": "*", "version": "1.0", "cseq": "1",
        "user-agent": "curl/7.88.1",
    }),
    Sample("rtsp", b"DESCRIBE rtsp://knock.example/live RTSP/1.0\r\n", {
        "method": "DESCRIBE", "target": "rtsp://knock.example/live", "version": "1.0",
    }),
    Sample("sip", b"OPTIONS sip:nm SIP/2.0\r\nFrom: <sip:nm@nm>;tag=root\r\nCSeq: 42\r\n\r\n",
           {"method": "OPTIONS", "target": "sip:nm", "version": "2.0",
            "from": "<sip:nm@nm>;tag=root"}),
    Sample("xmpp", b"<?xml version='1.0'?><stream:stream to='knock.example' xmlns='jabber:client'>",
           {"to": "knock.example"}),
    Sample("proxy", b"PROXY TCP4 192.0.2.1 198.51.100.7 37040 80\r\nGET / HTTP/1.1\r\n", {
        "version": "1", "source": "192.0.2.1:37040", "destination": "198.51.100.7:80",
    }),
    Sample("proxy", b"PROXY UNKNOWN\r\n", {"version": "1"}),
    Sample("proxy", b"\r\n\r\n\0\r\nQUIT\n" + h("21 21 0024") + h("20010db8" + "00" * 11 + "01") * 2
           + h("9c40 01bb"), {
               "version": "2", "source": "[2001:db8::1]:40000", "destination": "[2001:db8::1]:443",
           }),
    Sample("smb", SMBCLIENT, {
        "version": "2", "command": "negotiate", "dialects": "2.0.2,2.1,3.0,3.0.2,3.1.1",
    }),
    Sample("smb", h("0000002f ff534d4272 0000000018410000000000000000000000000000008d7200000000")
           + h("00 0c00") + b"\2NT LM 0.12\0",
           {"version": "1", "command": "negotiate", "dialects": "NT LM 0.12"}),
    Sample("netbios", h("81000044 20") + b"CKFDENECFDEFFCFGEFFCCACACACACACA" + h("0020")
           + b"EKEBFDFEEBFACACACACACACACACACAAA" + b"\0",
           {"called": "*SMBSERVER", "calling": "JASTAP"}),
    Sample("rdp", h("0300002a 25e00000000000") + b"Cookie: mstshash=nmap\r\n"
           + h("01000800 03000000"), {"cookie": "nmap", "security": "tls,credssp"}),
    Sample("rdp", b"\3\0\0/*\xe0\0\0\0\0\0Cookie: mstshash=Administr\r\n\1\0\x08\0\3\0\0\0",
           {"cookie": "Administr", "security": "tls,credssp"}),
    Sample("rdp", h("03000013 0ee00000000000 01000800 0b000000"),
           {"security": "tls,credssp,credssp-ex"}),
    Sample("rdp", h("0300000b 06e00000000000")),
    Sample("s7", h("03000016 11e00000001400 c1020100 c2020102 c0010a"), {"selector": "0102"}),
    Sample("telnet", h("fffd18 fffd1f fffb01"), {"options": "do terminal-type,do naws,will echo"}),
    Sample("telnet", h("fffc18 fffb1f fffa1f00000000fff0 fffd01"),
           {"options": "wont terminal-type,will naws"}),
    Sample("vnc", b"RFB 003.008\n", {"version": "3.8"}),
    Sample("x11", h("6c00 0b00 0000 1200 1000 0000") + b"MIT-MAGIC-COOKIE-1\0\0" + bytes(16),
           {"version": "11.0", "authorization": "MIT-MAGIC-COOKIE-1"}),
    Sample("x11", h("4200 000b 0000 0000 0000 0000"), {"version": "11.0"}),
    Sample("adb", b"CNXN" + h("00000001 00001000 07000000 32020000 bcb1a7b1") + b"host::\0",
           {"version": "0x01000000", "banner": "host::"}),
    Sample("jdwp", b"JDWP-Handshake"),
    Sample("rmi", b"JRMI\0\2K", {"kind": "stream"}),
    Sample("rmi", h("aced0005 7372"), {"kind": "serialized object"}),
    Sample("giop", b"GIOP" + h("010001 00 24000000")),
    Sample("pjl", b"\x1b%-12345X@PJL INFO ID\r\n"),
    Sample("fox", b"fox a 1 -1 fox hello\n{\n"),
    Sample("distcc", b"DIST00000001ARGC00000005"),
    Sample("mqseries", b"TSH \0\0\0\xec\x01\x01"),
    Sample("weblogic", b"t3 12.2.1\nAS:255\nHL:19\n\n"),
    Sample("gh0st", b"Gh0st\xad\0\0\0\xe0\0\0\0x\x9c"),
    Sample("nomachine", b"NXSH-5.6.7\n"),
    Sample("epmd", b"\0\1n"),
    Sample("radmin", h("01000000 01000000 0808")),
    Sample("postgresql", h("00000008 04d2162f"), {"request": "ssl"}),
    Sample("postgresql", h("00000008 04d21630"), {"request": "gssenc"}),
    Sample("postgresql", h("0000003b 00030000") + b"user\0knocker\0database\0stock\0"
           b"application_name\0psql\0\0", {
               "request": "startup", "user": "knocker", "database": "stock",
               "application-name": "psql",
           }),
    Sample("mysql", MARIADB, {"request": "login", "user": "knocker"}),
    Sample("mysql", h("20000001 85aabf00 00000010 21") + bytes(23), {"request": "ssl"}),
    Sample("mssql", h("12010034 00000000 00 0015 0006 01 001b 0001 02 001c 000c 03 0028 0004 ff")
           + h("08000155 0000 00"), {"request": "prelogin"}),
    Sample("oracle", h("005a0000 01000000 0136 012c 0000 0800 7fff 7f08 0000 0001 0020 003a")
           + bytes(30) + b"(DESCRIPTION=(CONNECT_DATA=(SERVICE_NAME=stock)))",
           {"service": "stock"}),
    Sample("mongodb", h("3f000000 01000000 00000000 d4070000 00000000") + b"admin.$cmd\0",
           {"operation": "query", "collection": "admin.$cmd"}),
    Sample("mongodb", h("27000000 02000000 00000000 dd070000 00000000"), {"operation": "msg"}),
    Sample("cassandra", h("04000000 05 00000000"), {"version": "4", "request": "options"}),
    Sample("kafka", h("00000011 0012 0000 00000001 0007") + b"knocker",
           {"request": "api-versions", "client": "knocker"}),
    Sample("redis", b"*1\r\n$4\r\nINFO\r\n", {"command": "INFO"}),
    Sample("redis", b"*2\r\n$4\r\nAUTH\r\n$6\r\nsecret\r\n", {"command": "AUTH"}),
    Sample("redis", b"*4\r\n$6\r\nCONFIG\r\n$3\r\nSET\r\n$3\r\ndir\r\n$10\r\n/root/.ssh\r\n",
           {"command": "CONFIG SET"}),
    Sample("redis", b"PING\r\n", {"command": "PING"}),
    Sample("memcached", b"stats\r\n", {"command": "stats"}),
    Sample("memcached", b"set key 0 900 5\r\nvalue\r\n", {"command": "set key"}),
    Sample("memcached", h("8010 0000 00 00 0000 00000000 00000000 0000000000000000"),
           {"command": "0x10"}),
    Sample("zookeeper", b"ruok", {"command": "ruok"}),
    Sample("zookeeper", b"mntr\n", {"command": "mntr"}),
    Sample("ldap", h("300c 020101 60 07 020103 0400 8000"), {"operation": "bind"}),
    Sample("ldap", h("301a 020101 60 15 020103 0408") + b"cn=admin\x80\x06secret",
           {"operation": "bind", "dn": "cn=admin"}),
    Sample("ldap", h("3084 0000001d 020107 63 84 00000014 0400 0a0100 0a0100 020100 020100")
           + h("010100"), {"operation": "search"}),
    Sample("kerberos", h("0000000e 6a0c 300a a103020105 a20302010a"), {"request": "as"}),
    Sample("mqtt", h("1013 0004") + b"MQTT" + h("04 02 003c 0007") + b"knocker",
           {"version": "3.1.1", "client": "knocker"}),
    Sample("mqtt", h("1017 0004") + b"MQTT" + h("05 02 003c 03 210014 0007") + b"knocker",
           {"version": "5", "client": "knocker"}),
    Sample("amqp", b"AMQP\0\0\x09\x01", {"version": "0.9.1"}),
    Sample("ajp", h("1234 0001 0a"), {"request": "cping"}),
    Sample("modbus", h("0001 0000 0006 01 03 0000 000a"), {"unit": "1", "function": "3"}),
    Sample("modbus", h("5a47 0000 0005 00 2b 0e 01 00"), {"unit": "0", "function": "43"}),
    Sample("iec104", h("6804 43 000000"), {"frame": "test"}),
    Sample("dnp3", h("0564 05 c0 0100 0a00 e08c"), {"destination": "1", "source": "10"}),
    Sample("enip", h("6300 0000 00000000 00000000 c1debed100000000 00000000"),
           {"command": "list-identity"}),
    Sample("afp", h("0003 0001 00000000 00000002 00000000 0f00"), {"request": "status"}),
    Sample("bittorrent", b"\x13BitTorrent protocol" + bytes(8) + b"\xab" * 20 + b"-KN0001-",
           {"hash": "ab" * 20}),
    Sample("git", b"0041git-upload-pack /project.git\0host=127.0.0.1:38369\0\0version=2\0",
           {"command": "git-upload-pack", "path": "/project.git", "host": "127.0.0.1:38369"}),
    Sample("rsync", b"@RSYNCD: 31.0 sha512 sha256\n", {"version": "31.0"}),
    Sample("sunrpc", h("80000028 72fe1d13 00000000 00000002 000186a0 00000002 00000004")
           + bytes(16), {"program": "portmap", "version": "2", "procedure": "4"}),
    Sample("dns", h("0036 676f 0120 0001 0000 0000 0001 05") + b"knock\x07example"
           + h("00 001c 0001 000029 04d0 00000000 000c 000a0008 d96ee56d92fb8020"),
           {"name": "knock.example", "type": "AAAA"}),
    Sample("dns", h("001e 0006 0100 0001 0000 0000 0000 07") + b"version\x04bind"
           + h("00 0010 0003"), {"name": "version.bind", "type": "TXT", "class": "CH"}),
    Sample("socks5", h("0502 0001"), {"methods": "none,gssapi"}),
    Sample("socks5", h("0501 00 050100 03 0d") + b"knock.example" + h("01bb"),
           {"methods": "none", "command": "connect", "destination": "knock.example:443"}),
    Sample("socks5", h("0501 02 0104") + b"root\x04toor" + h("050100 01 c0000207 0050"), {
        "methods": "password", "user": "root", "command": "connect", "destination": "192.0.2.7:80",
    }),
    Sample("socks4", h("0401 0050 c0000207 00"),
           {"command": "connect", "destination": "192.0.2.7:80"}),
    Sample("socks4", h("0401 0050 00000001 00") + b"knock.example\0",
           {"command": "connect", "destination": "knock.example:80"}),
    Sample("minecraft", h("14 00 fd05 0d") + b"knock.example" + h("63dd 01 0100"),
           {"request": "status", "place": "knock.example:25565"}),
    Sample("minecraft", h("fe01"), {"request": "ping"}),
    Sample("openvpn", h("000e 38 37a52608a21ba0b1 00 00000000")),
    Sample("pptp", h("009c 0001 1a2b3c4d 0001 0000 0100 0000 00000001 00000001 0000 0001")
           + b"knock".ljust(64, b"\0") + b"none".ljust(64, b"\0"),
           {"host": "knock", "vendor": "none"}),
    Sample("smtp", b"EHLO knock.example\r\n", {"command": "EHLO", "name": "knock.example"}),
    Sample("smtp", b"MAIL FROM:<a@knock.example>\r\n",
           {"command": "MAIL", "address": "<a@knock.example>"}),
    Sample("irc", b"NICK knocker\r\nUSER knocker 0 * :Knocker\r\n",
           {"command": "NICK", "nick": "knocker"}),
    Sample("pop3", b"CAPA\r\n", {"command": "CAPA"}),
    Sample("imap", b"A001 CAPABILITY\r\n", {"command": "CAPABILITY"}),
    Sample("ftp", b"USER anonymous\r\n", {"command": "USER", "user": "anonymous"}),
    Sample("ftp", b"AUTH TLS\r\n", {"command": "AUTH"}),
    Sample("stomp", b"CONNECT\naccept-version:1.2\n\n\0", {"command": "CONNECT"}),
    Sample("ident", b"6191, 23\r\n", {"ports": "6191,23"}),
    Sample("lpd", b"\x01default\n", {"command": "1", "queue": "default"}),
    Sample("iperf3", b"7cgjvj5n3zq2ep54k6yoxwh4a2mtfrdlsbui\0"),
    Sample("probe", b"\r\n\r\n", {"kind": "empty lines"}),
    Sample("probe", b"MGLNDD_192.0.2.7_23\n",
           {"kind": "magellan", "line": "MGLNDD_192.0.2.7_23"}),
    Sample("probe", b"HELP\r\n", {"kind": "help"}),
]  # fmt: skip

DATAGRAMS = [
    Sample("dns", h("3570 0120 0001 0000 0000 0001 05") + b"knock\x07example"
           + h("00 000f 0001 000029 04d0 00000000 000c 000a0008 10f93bd52ef7ae32"),
           {"name": "knock.example", "type": "MX"}),
    Sample("dns", h("0000 0000 0001 0000 0000 0000 09") + b"_services\x07_dns-sd\x04_udp\x05local"
           + h("00 000c 0001"), {"name": "_services._dns-sd._udp.local", "type": "PTR"}),
    Sample("dns", h("0000 1000 0000 0000 0000 0000"), {"opcode": "status"}),
    Sample("dns", h("1234 0100 0001 0000 0000 0000 00 00ff 0001"), {"name": ".", "type": "ANY"}),
    Sample("netbios", h("80f0 0010 0001 0000 0000 0000 20") + b"CK" + b"A" * 30 + h("00 0021 0001"),
           {"name": "*<00>", "type": "NBSTAT"}),
    Sample("ntp", h("e30004fa 00010000 00010000") + bytes(28) + h("c54f234b71b152f3"),
           {"version": "4", "mode": "client"}),
    Sample("ntp", h("1700032a 00000000"), {"version": "2", "mode": "private", "request": "42"}),
    Sample("ntp", h("16020001 00000000 00000000"), {"version": "2", "mode": "control"}),
    Sample("snmp", h("3029 020101 0406") + b"public" + h("a01c 02040b8f6747 020100 020100")
           + h("300e 300c 06082b06010201010100 0500"),
           {"version": "2c", "community": "public", "request": "get"}),
    Sample("snmp", h("303e 020103 3011 0204118c8d0f 020300ffe3 040104 020103 0410 300e 0400 020100")
           + h("020100 0400 0400 0400 3014 0400 0400 a00e 020464a96d48 020100 020100 3000"),
           {"version": "3"}),
    Sample("tftp", b"\0\1boot.cfg\0netascii\0",
           {"operation": "read", "file": "boot.cfg", "mode": "netascii"}),
    Sample("tftp", b"\0\2boot.cfg\0octet\0tsize\0000\0",
           {"operation": "write", "file": "boot.cfg", "mode": "octet"}),
    Sample("stun", h("0001 0000 2112a442 000102030405060708090a0b"), {"method": "binding"}),
    Sample("dtls", OPENSSL_DTLS, {
        "version": "dtls 1.2", "sni": "knock.example",
        "ja4": "dd2d280700_d943125447b4_e7e480e5a997",
    }),
    Sample("quic", h("c3 00000001 08 0001020304050607 00 00 449e") + bytes(1178), {"version": "1"}),
    Sample("quic", h("c0 babababa 08 0001020304050607 08 0001020304050607") + bytes(1178),
           {"version": "0xbabababa"}),
    Sample("quic", h("c3 ff00001d 08 0001020304050607 00 00"), {"version": "draft-29"}),
    Sample("sip", b"REGISTER sip:knock.example SIP/2.0\r\nUser-Agent: friendly-scanner\r\n\r\n", {
        "method": "REGISTER", "target": "sip:knock.example", "version": "2.0",
        "user-agent": "friendly-scanner",
    }),
    Sample("ssdp", b'M-SEARCH * HTTP/1.1\r\nHost: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\n'
           b"ST: ssdp:all\r\n\r\n", {"method": "M-SEARCH", "st": "ssdp:all"}),
    Sample("dhcp", h("01010600 12345678") + bytes(20) + h("020000000001") + bytes(202)
           + h("63825363 350101 0c05") + b"knock\xff",
           {"mac": "02:00:00:00:00:01", "message": "discover", "host": "knock"}),
    Sample("bittorrent", b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe",
           {"query": "ping"}),
    Sample("steam", b"\xff\xff\xff\xffTSource Engine Query\0", {"query": "info"}),
    Sample("quake", b"\xff\xff\xff\xffgetstatus\n", {"query": "getstatus"}),
    Sample("ipmi", h("0600ff07 00000000 00000000 0009 20 18 c8 81 00 38 8e 04 b5"),
           {"message": "ipmi"}),
    Sample("ipmi", h("0600ff06 000011be 80 00 00 00"), {"message": "ping"}),
    Sample("bacnet", h("810a 0011 0104 0005 010c 0c 0233ff00 194b"), {"function": "10"}),
    Sample("ldap", h("3025 020101 63 20 0400 0a0100 0a0100 020100 020100 010100 870b")
           + b"objectClass3000", {"operation": "search"}),
    Sample("kerberos", h("6a0c 300a a103020105 a20302010a"), {"request": "as"}),
    Sample("sunrpc", h("72fe1d13 00000000 00000002 000186a0 00000002 00000004") + bytes(16),
           {"program": "portmap", "version": "2", "procedure": "4"}),
    Sample("memcached", h("0001 0000 0001 0000") + b"stats\r\n", {"command": "stats"}),
    Sample("ike", h("0011223344556677 0000000000000000 01 10 02 00 00000000 0000001c"),
           {"version": "1", "exchange": "main"}),
    Sample("ike", h("00000000 0011223344556677 0000000000000000 21 20 22 08 00000000 0000001c"),
           {"version": "2", "exchange": "sa-init"}),
    Sample("wireguard", h("01000000") + b"\xa5" * 144),
    Sample("openvpn", h("38 37a52608a21ba0b1 00 00000000")),
    Sample("radius", h("01 07 001b 000102030405060708090a0b0c0d0e0f 01 07") + b"knock",
           {"request": "access", "user": "knock"}),
    Sample("coap", h("40 01 7d70 bb") + b".well-known\x04core",
           {"method": "GET", "path": "/.well-known/core"}),
    Sample("syslog", b"<13>1 2026-11-26T01:18:45Z knock root - - - hello",
           {"priority": "13", "message": "1 2026-11-26T01:18:45Z knock root - - - hello"}),
    Sample("probe", b"help\r\n\r\n", {"kind": "help"}),
]  # fmt: skip

# data of no protocol, or of several
UNKNOWN_STREAMS = [
    b"", b"\0", bytes(64), b"hello\r\n", b"QUIT\r\n", b"\x05\x01", b"\x04\x01", b"GET", b"GET ",
    b"\xff\xff\xff\xff", b"SSH-", b"\x16\x03\x01", b"stat", b"POST\r\n", b"\x30\x84", b"login:",
    b"PRI * HTTP/", b"user anonymous", b"\xff\xfe\x00\x41\x00", b"OPTIONS / ", b"1234",
]  # fmt: skip
UNKNOWN_DATAGRAMS = [b"", b"\0", bytes(64), bytes(48), b"hello", b"\xff" * 64, b"s", h("0d89c19c")]
