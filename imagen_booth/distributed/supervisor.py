"""Stands by a process of several, because not all of its ends are Python's.

When a host is lost, jax's coordination service aborts the processes of all others,
and nothing in them can catch that.  So each of several processes is the child of one
that only waits, hands signals on, and turns an abort into a sentence and a code.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from typing import Any

AGAIN = 75  # exit code: run the same command again
LOST = (
    "another host was lost; run the same command on every host again to go on from "
    "the last checkpoint"
)
MARK = "IMAGEN_BOOTH_WATCHED"  # "PARENT:PIPE", of the child that is watched
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


def supervise() -> None:
    """Goes on in a child that is watched; the process that watches never returns.

    Called early, before anything that should happen once.
    """
    parent, _, _ = os.environ.get(MARK, "").partition(":")
    if parent == str(os.getppid()):
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
        return
    read, write = os.pipe()
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env=os.environ | {MARK: f"{os.getpid()}:{write}"},
        pass_fds=(write,),
        # A terminal's signals come here alone, and are handed on once.
        start_new_session=True,
    )
    os.close(write)

    def hand_on(number: int, _: Any) -> None:
        child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, hand_on)
    code = child.wait()
    if code == -signal.SIGABRT:
        told = os.read(read, 1)
        if not told:
            print(LOST, file=sys.stderr, flush=True)
        code = told[0] if told else AGAIN
    os._exit(code if code >= 0 else 128 - code)  # as a shell has it


def record_exit(code: int) -> None:
    """Tells who watches, if anyone, the code that this process is about to end with.

    It holds even if jax aborts the process on its way out.
    """
    parent, _, pipe = os.environ.get(MARK, "").partition(":")
    if parent == str(os.getppid()):
        with contextlib.suppress(OSError):
            os.write(int(pipe), bytes([code]))


def exit_lost() -> None:
    """Ends this process at once: the others could not be waited for."""
    print(LOST, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(AGAIN)
