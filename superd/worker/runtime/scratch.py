"""The one buffer that everything in a worker reads into; readers copy what they keep at once.

Used in the worker, on the loop, by one reader at a time. Private memory, which the kernel
allocates page by page at the first write, so that a worker uses no more than its clients send.
"""

from __future__ import annotations

import mmap

SCRATCH_SIZE = 1 << 18  # bytes; udp carries 65,527 at most, a unix datagram or packet may be longer

SCRATCH = memoryview(mmap.mmap(-1, SCRATCH_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
