"""Probes of processes, threads, memory, files and users."""

from __future__ import annotations

import concurrent.futures
import contextvars
import ctypes
import getpass
import grp
import mmap
import multiprocessing
import os
import pathlib
import pwd
import queue
import select
import selectors
import shutil
import signal
import subprocess
import tempfile
import threading
import time

from tests.probes.probe import expect, probe

CONTEXT = contextvars.ContextVar("context", default=0)


@probe
def run_a_program() -> None:
    subprocess.run(["/bin/true"], check=True)


@probe
def spawn_a_program() -> None:
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)


@probe
def fork_a_child() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


@probe
def threads() -> None:
    thread = threading.Thread(target=time.sleep, args=(0,))
    thread.start()
    thread.join()
    timer = threading.Timer(0, time.sleep, (0,))
    timer.start()
    timer.join()
    queue.Queue[int]().put(1)
    contextvars.copy_context().run(CONTEXT.get)


@probe
def pool_of_threads() -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(str, range(4)))


@probe
def pool_of_processes() -> None:
    concurrent.futures.ProcessPoolExecutor(1).shutdown()


@probe
def lock_between_processes() -> None:
    multiprocessing.Lock()


@probe
def shared_memory() -> None:
    from multiprocessing import shared_memory

    block = shared_memory.SharedMemory(create=True, size=1)
    block.close()
    block.unlink()


@probe
def anonymous_memory() -> None:
    mmap.mmap(-1, 4096).close()
    os.close(os.memfd_create("probe"))


@probe
def polling() -> None:
    selectors.DefaultSelector().close()
    select.epoll().close()
    select.poll()
    for end in os.pipe():
        os.close(end)


@probe
def timers_and_signals() -> None:
    old = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)
    signal.getsignal(signal.SIGTERM)


@probe
def loaded_libraries() -> None:
    ctypes.CDLL(None).getpid()


@probe
def terminal() -> None:
    for end in os.openpty():
        os.close(end)


@probe
def root_directory() -> None:
    expect(os.getcwd() == "/", "is elsewhere")
    os.stat("/")
    shutil.disk_usage("/")


@probe
def file_in_memory() -> None:
    with tempfile.SpooledTemporaryFile(100) as spooled:
        spooled.write(b"x")


@probe
def temporary_file() -> None:
    tempfile.TemporaryFile().close()


@probe
def null_device() -> None:
    open("/dev/null").close()


@probe
def random_device() -> None:
    open("/dev/urandom", "rb").close()


@probe
def descriptors_in_proc() -> None:
    os.listdir("/proc/self/fd")


@probe
def load_of_the_machine() -> None:
    os.getloadavg()


@probe
def resources_used() -> None:
    time.process_time()
    os.cpu_count()
    os.times()


@probe
def user_by_name() -> None:
    pwd.getpwnam("daemon")


@probe
def group_by_name() -> None:
    grp.getgrnam("daemon")


@probe
def user_of_this_process() -> None:
    getpass.getuser()


@probe
def home_directory() -> None:
    pathlib.Path.home()
