"""Reads the metrics of a running superd as Prometheus does.

Runs in the test's process. `SERVICE` is an entry for the plugin metrics.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

from tests.support.harness import EVENT_TIMEOUT, Superd

SERVICE = """
[service.metrics]
plugin = "metrics"
listen = "tcp://127.0.0.1:0"
"""


class Scrape:
    """All samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {one.name: one for one in text_string_to_metric_families(text)}
        self.samples = [sample for one in self.families.values() for sample in one.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """Return the value of the only sample that has these labels."""
        (value,) = self.all(name, **labels)
        return value

    def all(self, name: str, **labels: str) -> list[float]:
        """Return the values of all samples that have these labels."""
        return [
            sample.value
            for sample in self.samples
            if sample.name == f"superd_{name}" and labels.items() <= sample.labels.items()
        ]


def scrape_metrics(superd: Superd) -> Scrape:
    """Scrape /metrics over a new connection."""
    status, text = get_page(superd, "/metrics")
    assert status == 200
    return Scrape(text)


def get_page(superd: Superd, path: str, method: str = "GET") -> tuple[int, str]:
    """Request a page over a new connection; return status and text."""
    with persistent(superd) as connection:
        return request_page(connection, path, method)


def persistent(superd: Superd, service: str = "metrics") -> Persistent:
    """Return a connection for several requests."""
    return Persistent(*superd.address(service), timeout=EVENT_TIMEOUT)


class Persistent(http.client.HTTPConnection):
    """A connection that a with statement closes."""

    def __enter__(self) -> Persistent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def request_page(
    connection: http.client.HTTPConnection, path: str, method: str = "GET"
) -> tuple[int, str]:
    """Request a page; return status and text."""
    connection.request(method, path)
    with connection.getresponse() as response:
        return response.status, response.read().decode()


def read_responses(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Yield status and body of each response until the connection ends."""
    with connection.makefile("rb") as stream:
        while line := stream.readline():
            headers = http.client.parse_headers(stream)
            yield int(line.split()[1]), stream.read(int(headers["Content-Length"]))
