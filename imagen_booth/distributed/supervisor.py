"""Runs a process of a multi-host job as a child, to explain how it ended.

When a host is lost, jax's coordination service aborts the processes of all others,
which Python cannot catch. So each of several processes is the child of a supervisor
that only waits, forwards signals, and turns an abort into a message and an exit code.
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
    "another host was lost; run the same command on every host again to resume from "
    "the last checkpoint"
)
MARK = "IMAGEN_BOOTH_WATCHED"  # the child's variable: "PARENT:PIPE"
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


def supervise() -> None:
    """Continues in a supervised child process; the supervisor never returns.

    Call it early, before anything that should happen only once.
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
        # The terminal signals only the supervisor, which forwards each signal once.
        start_new_session=True,
    )
    os.close(write)

    def forward(number: int, _: Any) -> None:
        child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    code = child.wait()
    if code == -signal.SIGABRT:
        recorded = os.read(read, 1)
        if not recorded:
            print(LOST, file=sys.stderr, flush=True)
        code = recorded[0] if recorded else AGAIN
    os._exit(code if code >= 0 else 128 - code)  # 128 + signal, as in a shell


def record_exit(code: int) -> None:
    """Reports the exit code of this process to the supervisor, if there is one.

    The code holds even if jax aborts the process while it exits.
    """
    parent, _, pipe = os.environ.get(MARK, "").partition(":")
    if parent == str(os.getppid()):
        with contextlib.suppress(OSError):
            os.write(int(pipe), bytes([code]))


def exit_lost() -> None:
    """Ends this process at once: an ordinary exit would wait for the lost host."""
    print(LOST, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(AGAIN)
