"""Hands the open sockets of a former configuration's listeners to those of the next one.

Runs in the master. Never binds. Raises CannotListen if a socket cannot be changed; then every
socket is as it was.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Sequence

from superd.listen.binding import (
    file_at,
    mode_of,
    set_accept_timeout,
    set_client_options,
    set_device,
    set_owner_and_mode,
)
from superd.listen.failures import CannotListen, failure_of
from superd.listen.listener import Listener
from superd.net.addresses import Transport

# Keys of an entry whose change the kernel always accepts on a listening socket.
CHANGEABLE_KEYS = ("backlog", "keepalive", "nodelay", "wait")


def adopt(listeners: Sequence[Listener], existing: Sequence[Listener]) -> list[Listener]:
    """Give shared sockets to `listeners`; return those of `existing` whose socket is not reused.

    A reused socket gets the owner and mode of its file, the device, backlog, keepalive, nodelay and
    accept timeout of its new entry.
    """
    before = {one.socket: one for one in existing}
    reused = [
        (before[one.socket], one) for one in listeners if one.socket in before and not one.is_closed
    ]
    _change_all(reused)
    for old, new in reused:
        if any(getattr(old.entry, key) != getattr(new.entry, key) for key in CHANGEABLE_KEYS):
            if new.address.transport is Transport.TCP:
                set_client_options(new.socket, new.entry)
            if not new.address.transport.is_datagram:
                set_accept_timeout(new.socket, new.entry)
            with contextlib.suppress(OSError):
                new.start()
    sockets = {listener.socket for listener in listeners}
    return [one for one in existing if one.socket not in sockets]


def _change_all(reused: Sequence[tuple[Listener, Listener]]) -> None:
    """Make the changes that the kernel may refuse, on every socket or on none."""
    for number, (old, new) in enumerate(reused):
        try:
            _change(old, new)
        except OSError as error:
            for was, failed in reused[: number + 1]:
                with contextlib.suppress(OSError):
                    _change(failed, was)
            failure = failure_of(error, new.service, new.entry, new.address)
            raise CannotListen([failure]) from None


def _change(old: Listener, new: Listener) -> None:
    """Set owner and mode of the file, and the device, to those of the new entry.

    A socket of a socket unit is not changed, as its unit decides these.
    """
    if old.is_external:
        return
    was, wanted, path = old.configured, new.configured, new.address.path
    if old.file and (was.mode, was.uid, was.gid) != (wanted.mode, wanted.uid, wanted.gid):
        if file_at(path) != old.file:
            raise FileExistsError(errno.EEXIST, "was replaced by another process")
        uid = os.geteuid() if wanted.uid == -1 != was.uid else wanted.uid
        gid = _group_of_new_files(path) if wanted.gid == -1 != was.gid else wanted.gid
        set_owner_and_mode(path, uid, gid, mode_of(wanted))
    is_internet = new.address.family != socket.AF_UNIX and new.entrance is None
    if is_internet and old.entry.device != new.entry.device:
        set_device(new.socket, new.entry.device)


def _group_of_new_files(path: str) -> int:
    """Return the group of a file that is created at a path (inode(7), S_ISGID)."""
    directory = os.stat(os.path.dirname(path))
    return directory.st_gid if directory.st_mode & stat.S_ISGID else os.getegid()
