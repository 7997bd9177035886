"""Values of SO_RCVTIMEO (socket(7)): a struct timeval of seconds and microseconds.

Used by the master, which sets the option on listeners, and by workers, whose connections inherit
it. Never raises.
"""

from __future__ import annotations

import struct

NO_TIMEOUT = struct.pack("@ll", 0, 0)

# Of listeners: accept(2) returns soon even if another process has made the socket blocking.
ACCEPT_TIMEOUT = struct.pack("@ll", 0, 10_000)
