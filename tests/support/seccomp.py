"""Runs a program for which a system call does not exist: `python -m tests.support.seccomp`.

The arguments are an errno, the number of the system call, and the command. Executes the command in
its own process, under a filter (seccomp(2)) that its children inherit.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

CLOSE_RANGE = 436  # on every architecture

PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
FILTER_MODE = 2
LOAD_NUMBER = (0x20, 0, 0, 0)  # BPF_LD | BPF_W | BPF_ABS
ALLOW = (0x06, 0, 0, 0x7FFF0000)
FAIL = 0x00050000  # with the errno


def refuse(number: int, errno: int) -> None:
    """Have a system call fail in this process, and in all that it starts."""
    steps = [LOAD_NUMBER, (0x15, 0, 1, number), (0x06, 0, 0, FAIL | errno), ALLOW]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    head = ctypes.create_string_buffer(struct.pack("HP", len(steps), ctypes.addressof(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    for words in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, FILTER_MODE, head, 0, 0)):
        if libc.prctl(*words):
            raise OSError(ctypes.get_errno(), "prctl")


def main() -> None:
    errno, number, *command = sys.argv[1:]
    refuse(int(number), int(errno))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
