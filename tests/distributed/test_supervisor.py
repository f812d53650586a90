"""What a watched process's end becomes: its own code, or a sentence and 75."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from paths import ROOT

from imagen_booth.distributed import supervisor

CHILD = "import os, signal, sys, time; from imagen_booth import watch; watch.over(); "


def start(then: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + then, "word"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("then", "code", "said"),
    [
        ("print(sys.argv[1:])", 0, ""),
        ("sys.exit(4)", 4, ""),
        ("os.abort()", 75, supervisor.LOST),
        ("watch.leave_lost()", 75, supervisor.LOST),
        ("watch.note(5); os.abort()", 5, ""),
        ("watch.note(0); os.abort()", 0, ""),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, ""),
    ],
)
def test_how_a_watched_process_ends(then, code, said):
    with start(then) as process:
        out, err = process.communicate(timeout=600)
    assert process.returncode == code
    assert err.strip() == said
    assert out.strip() == ("['word']" if "argv" in then else "")


def test_signals_are_handed_on_once():
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


def test_it_does_not_outlive_the_one_that_watches():
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
            assert time.monotonic() < end, "the child goes on alone"
            time.sleep(0.05)


def test_nobody_watches_and_nothing_is_noted(monkeypatch):
    monkeypatch.setenv(supervisor.MARK, f"{os.getppid() + 1}:0")
    supervisor.record_exit(3)
