"""The one buffer that everything in a worker reads into; what is to be kept is copied at once.

Used in the worker, on the loop, by one reader at a time. Private memory that the kernel gives page
by page when it is first written to, so that a worker pays only for what its clients send.
"""

from __future__ import annotations

import mmap

LARGEST = 1 << 18  # bytes: udp carries 65,527 at most, a unix datagram or packet may be longer

SCRATCH = memoryview(mmap.mmap(-1, LARGEST, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
