"""Why something was refused: one word for the log line, the counter and the test.

Used in workers and by `superd status`. Never raises.
"""

from __future__ import annotations

import enum


class Refusal(enum.Enum):
    """A reason not to answer a datagram."""

    SOURCE_PORT = "source-port"  # a service port: an answer might come back for ever
    SOURCE_ADDRESS = "source-address"  # broadcast, multicast or no address at all
    DESTINATION = "destination"  # asked as one of many hosts, by broadcast or multicast
    TOO_LONG = "too-long"  # more bytes than superd reads; what is left of it means nothing
    AMPLIFICATION = "amplification"  # the answer is longer than the request
    UNNAMED = "unnamed"  # a unix socket without a name: there is nowhere to answer to
    SEND = "send"  # the kernel would not take the answer
