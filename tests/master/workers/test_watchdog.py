"""How much time counts against a worker that hangs."""

from __future__ import annotations

import pytest

from superd.master.workers.watchdog import Activity, runnable_time

BEFORE = Activity("R", own=10.0, others=5.0)


@pytest.mark.parametrize(
    ("activity", "counts"),
    [
        (Activity("S", 10.0, 5.0), 0.4),  # it sleeps in a system call
        (Activity("S", 10.0, 5.3), 0.1),  # other threads had the interpreter most of the time
        (Activity("S", 10.0, 9.0), 0.0),
        (Activity("R", 10.4, 5.0), 0.4),  # it computes
        (Activity("R", 10.1, 5.0), 0.4),  # and gets its share of a processor
        (Activity("R", 10.01, 5.0), 0.04),  # other processes have the processors
        (Activity("R", 10.0, 5.0), 0.0),
        (Activity("D", 10.0, 5.0), 0.0),  # the disk is slow
        (Activity("T", 10.0, 5.0), 0.0),  # it is stopped by SIGSTOP
        (Activity("t", 10.0, 5.0), 0.0),  # a debugger has stopped it
        (None, 0.4),  # there is no /proc
    ],
)
def test_time_counts_only_if_the_worker_could_have_run(
    activity: Activity | None, counts: float
) -> None:
    assert runnable_time(BEFORE, activity, 0.4) == pytest.approx(counts)


def test_the_first_check_counts_no_time_of_a_stopped_worker() -> None:
    assert runnable_time(None, Activity("T", 1.0, 0.0), 0.4) == 0
    assert runnable_time(None, Activity("R", 1.0, 0.0), 0.4) == 0.4
