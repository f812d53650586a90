"""A supervised process ends with its own exit code, or with a message and 75."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from paths import ROOT

from imagen_booth.distributed import supervisor

CHILD = """
import os, signal, sys, time
from imagen_booth.distributed import supervisor
supervisor.supervise()
"""


def start(then: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + then, "word"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("then", "code", "message"),
    [
        ("print(sys.argv[1:])", 0, ""),
        ("sys.exit(4)", 4, ""),
        ("os.abort()", 75, supervisor.LOST),
        ("supervisor.exit_lost()", 75, supervisor.LOST),
        ("supervisor.record_exit(5); os.abort()", 5, ""),
        ("supervisor.record_exit(0); os.abort()", 0, ""),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, ""),
    ],
)
def test_exit_code_of_a_supervised_process(then, code, message):
    with start(then) as process:
        out, err = process.communicate(timeout=600)
    assert process.returncode == code
    assert err.strip() == message
    assert out.strip() == ("['word']" if "argv" in then else "")


def test_signals_are_forwarded_once():
    counting = (
        "seen = []; signal.signal(signal.SIGTERM, lambda *_: seen.append(1)); "
        "print('ready', flush=True); time.sleep(2); sys.exit(40 + len(seen))"
    )
    with start(counting) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=600)
    assert process.returncode == 41


def test_child_does_not_outlive_its_supervisor():
    with start("print(os.getpid(), flush=True); time.sleep(300)") as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
        process.wait()
        end = time.monotonic() + 30
        while pathlib.Path(f"/proc/{child}").exists():
            status = pathlib.Path(f"/proc/{child}/status").read_text()
            if "State:\tZ" in status:
                break
            assert time.monotonic() < end, "the child still runs"
            time.sleep(0.05)


def test_exit_code_is_not_recorded_without_a_supervisor(monkeypatch):
    monkeypatch.setenv(supervisor.MARK, f"{os.getppid() + 1}:0")
    supervisor.record_exit(3)
