"""The one place that writes files: whole or not at all."""

import os
import threading

from etils import epath

from imagen_booth.errors import StorageError


def write_atomic(path: epath.PathLike, data: bytes) -> None:
    """Writes a file that is either whole or absent, whenever the process dies.

    The bytes go to a hidden file beside `path`, which is then renamed over it. Parent
    folders are made.

    Raises:
        StorageError: where the bytes cannot be written, naming the path.
    """
    path = epath.Path(path)
    beside = path.parent / f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(data)
        beside.replace(path)
    except OSError as error:
        raise StorageError(f"could not write {path}: {error}") from error
    finally:
        beside.unlink(missing_ok=True)
