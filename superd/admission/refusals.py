"""Why something was refused: one word for the log line, the counter, `explain` and the test.

Used in workers, by `superd status` and by `superd explain`. Never raises.
"""

from __future__ import annotations

import enum


class Refusal(enum.Enum):
    """A reason not to let somebody in, or not to answer a datagram.

    Where a key of the configuration is the reason, its name is the word.
    """

    BANNED = "banned"  # the source is banned from all services for a time
    ACCESS = "access"  # by allow and deny
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
    SOURCES = "too-many-sources"  # there is no memory left to count another one in
    BUSY = "busy"  # the counters are locked by a worker that has been stopped

    SOURCE_PORT = "source-port"  # a service port: an answer might come back for ever
    SOURCE_ADDRESS = "source-address"  # broadcast, multicast, no address at all, or our own
    DESTINATION = "destination"  # asked as one of many hosts, by broadcast or multicast
    TOO_LONG = "too-long"  # more bytes than superd reads; what is left of it means nothing
    AMPLIFICATION = "amplification"  # the answer is longer than the request
    UNNAMED = "unnamed"  # a unix socket without a name: there is nowhere to answer to
    SEND = "send"  # the kernel would not take the answer
