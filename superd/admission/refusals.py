"""The reasons for refusals, with one name for the log line, the counter, `explain` and the test.

Used in workers, by `superd status` and by `superd explain`. Never raises.
"""

from __future__ import annotations

import enum


class Refusal(enum.Enum):
    """A reason to refuse a connection or a datagram.

    If a key of the configuration is the reason, the value is the name of the key.
    """

    BANNED = "banned"  # the source is banned from all services
    ACCESS = "access"  # allow and deny
    TIMES = "access-times"
    LOAD = "max-load"
    RATE = "rate"
    SOURCE_RATE = "rate-per-source"
    SOURCE_CONNECTIONS = "max-per-source"
    CONNECTIONS = "max-connections"
    DAEMON_LOAD = "daemon-max-load"
    DAEMON_RATE = "daemon-rate"
    DAEMON_SOURCE_RATE = "daemon-rate-per-source"
    DAEMON_SOURCE_CONNECTIONS = "daemon-max-per-source"
    DAEMON_CONNECTIONS = "daemon-max-connections"
    SOURCES = "too-many-sources"  # the ledger has no room for one more source
    BUSY = "busy"  # a worker that was stopped (SIGSTOP) holds the lock of the ledger

    SOURCE_PORT = (
        "source-port"  # the port of a service: the two could answer each other without end
    )
    SOURCE_ADDRESS = "source-address"  # broadcast, multicast, unspecified, or an address of superd
    DESTINATION = "destination"  # sent to many hosts, by broadcast or multicast
    TOO_LONG = "too-long"  # longer than superd reads; the rest would be cut off
    AMPLIFICATION = "amplification"  # the answer would be longer than the request
    UNNAMED = "unnamed"  # from a unix socket without a name, which cannot be answered
    SEND = "send"  # the kernel did not accept the answer
