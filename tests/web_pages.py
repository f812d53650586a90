"""The web page in a process of its own, and a browser to look at it."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from paths import ROOT
from photo_files import blurred
from PIL import Image
from train_jobs import QUICK, free_port

from imagen_booth.web.jobs import Queue

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
LIMIT = 1800  # seconds that a job may take


@contextlib.contextmanager
def served(
    root: pathlib.Path,
    *flags: str,
    code: str = "",
    environ: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Address of a page.

    Args:
        flags: Further flags of the command.
        code: Program in place of the command.
        environ: Variables added to the environment.
    """
    start = ("-c", code) if code else ("-m", "imagen_booth.web")
    process = subprocess.Popen(
        [sys.executable, *start, f"--root={root}", f"--port={free_port()}", *flags],
        cwd=ROOT,
        env=os.environ | QUICK | {"JAX_NUM_CPU_DEVICES": "1"} | dict(environ or {}),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("open http"), line
        yield line.split()[1].rstrip("/")
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def end_jobs(root: pathlib.Path) -> None:
    """Ends what a page left running."""
    queue = Queue(root)
    for record in reversed(queue.records()):
        if record.is_open:
            queue.stop(record)
            if record.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(record.pid, signal.SIGKILL)
    until(lambda: not queue.is_busy(), limit=60)


def until(done: Callable[[], Any], limit: float = LIMIT) -> Any:
    """Waits for a true value, and returns it."""
    deadline = time.monotonic() + limit
    while not (value := done()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.5)
    return value


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if not os.path.exists(CHROMIUM):
        pytest.skip("needs chromium")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


def photo_files(folder: pathlib.Path) -> list[str]:
    """Five photos, one of them turned by its EXIF data; and a text called a JPEG."""
    folder.mkdir(parents=True)
    rng, paths = np.random.default_rng(3), []
    for number in range(5):
        path = folder / f"IMG_{number}.jpg"
        exif = Image.Exif()
        if number == 1:
            exif[0x0112] = 6
        blurred(rng, 6, (1100, 1050)).save(path, exif=exif)
        paths.append(str(path))
    bad = folder / "notes.jpg"
    bad.write_text("not a picture")
    return [*paths, str(bad)]
