"""Make this process one that nobody notices, and that never outlives the one that started it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading

import psutil

_PR_SET_PDEATHSIG = 1


def yield_to_others() -> None:
    """Take processor and disk only when nobody else wants them; best effort on each system.

    Threads inherit it from the one that starts them, so call it first.
    """
    me = psutil.Process()
    with contextlib.suppress(OSError, psutil.Error, AttributeError):
        if sys.platform == "win32":
            me.nice(psutil.IDLE_PRIORITY_CLASS)
            me.ionice(psutil.IOPRIO_VERYLOW)
        else:
            os.nice(19)
    if sys.platform == "linux":
        with contextlib.suppress(OSError, psutil.Error):
            me.ionice(psutil.IOPRIO_CLASS_IDLE)
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def end_with_parent(parent_pid: int) -> None:
    """Have the kernel end this process with the thread that started it, stopped or not (Linux).

    Elsewhere :func:`end_with` does it, once this process is not suspended.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def end_with(descriptor: int) -> None:
    """End this process at once when what its parent holds open comes to an end.

    It reads from the file itself: a thread that waits in a buffered reader aborts the interpreter
    when that ends by itself.
    """

    def read() -> None:
        while os.read(descriptor, 4096):
            pass
        os._exit(0)

    threading.Thread(target=read, name="parent", daemon=True).start()
