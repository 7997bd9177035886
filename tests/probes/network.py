"""Probes of sockets, names and TLS."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import socket
import ssl
import threading

from tests.probes.probe import expect, probe

HERE = "127.0.0.1"


@probe
def numeric_addresses() -> None:
    socket.getaddrinfo(HERE, 80)
    socket.getaddrinfo("::1", 80)
    socket.getnameinfo((HERE, 80), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    socket.inet_pton(socket.AF_INET6, "::1")


@probe
def own_name() -> None:
    socket.gethostname()
    socket.getfqdn("127.0.0.1")


@probe
def connect_to_a_number() -> None:
    with socket.create_server((HERE, 0)) as server:
        socket.create_connection(server.getsockname()[:2]).close()


@probe
def look_up_localhost() -> None:
    socket.getaddrinfo("localhost", 80)


@probe
def look_up_a_host_by_address() -> None:
    socket.gethostbyaddr(HERE)


@probe
def look_up_a_service() -> None:
    socket.getservbyname("http")


@probe
def look_up_a_service_with_a_host() -> None:
    socket.getaddrinfo(HERE, "http")


@probe
def look_up_a_protocol() -> None:
    socket.getprotobyname("tcp")


@probe
def web_server_and_client() -> None:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"probe")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer((HERE, 0), Answer) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        client = http.client.HTTPConnection(HERE, server.server_port, timeout=5)
        client.request("GET", "/", headers={"X-Name": "\u00e9".encode("latin-1")})
        expect(client.getresponse().read() == b"probe", "another answer")
        client.close()
        thread.join()


@probe
def tls_handshake() -> None:
    contexts = [ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)]
    for context in contexts:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("aNULL:@SECLEVEL=0")  # needs no certificate
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = contexts[0].wrap_bio(there, back, server_side=True)
    client = contexts[1].wrap_bio(back, there, server_hostname="b\u00fccher.example")
    for _ in range(4):
        for side in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    expect(client.cipher() and server.cipher(), "no handshake")


@probe
def certificate_from_a_file() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with contextlib.suppress(ssl.SSLError):
        context.load_cert_chain("/etc/hostname")
