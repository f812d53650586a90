"""A Cloud Storage emulator on loopback."""

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

from train_jobs import free_port

BUCKET = "bucket"
_SERVE = """
import sys, time
from gcp_storage_emulator.server import create_server

server = create_server("127.0.0.1", int(sys.argv[1]), True, sys.argv[2])
server.start()
while True:
    time.sleep(3600)
"""


@contextlib.contextmanager
def emulator() -> Iterator[dict[str, str]]:
    """Serves an empty bucket.

    Yields:
        Variables that make gcsfs and tensorstore talk to it.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    variables = {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url}
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(port), BUCKET],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    before = {name: os.environ.get(name) for name in variables}
    try:
        _await(f"{url}/storage/v1/b/{BUCKET}", server)
        os.environ.update(variables)
        yield variables
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        server.kill()
        server.wait()


def _await(url: str, server: subprocess.Popen) -> None:
    for _ in range(600):
        assert server.poll() is None, "the emulator ended"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.1)
    raise TimeoutError(url)
