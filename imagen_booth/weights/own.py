"""Our own weight files: one safetensors file per part, a manifest beside them.

A folder of weights holds ``text.safetensors``, ``base.safetensors``, ... and
``manifest.json``.  Tensor names are the paths of the parameter tree, so a file is
readable without this package.
"""

import hashlib
import json
from typing import Any

import numpy as np
import safetensors.numpy
from etils import epath
from safetensors import SafetensorError

from imagen_booth.data.pictures import write_atomic
from imagen_booth.errors import InputError
from imagen_booth.state import Params, flatten, unflatten

MANIFEST = "manifest.json"


def sha256(path: epath.Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def save(path: epath.Path, params: Params, dtype: Any = None) -> None:
    """Writes a tree of arrays, cast to ``dtype`` if given; replaces atomically.

    Raises:
        StorageError: it cannot be written.
    """
    flat = {
        name: np.ascontiguousarray(np.asarray(leaf, dtype))
        for name, leaf in flatten(params).items()
    }
    write_atomic(path, safetensors.numpy.save(flat))


def load(path: epath.Path) -> Params:
    """Reads a tree of numpy arrays, in the file's dtypes.

    Raises:
        InputError: no such file, or not a whole safetensors file.
    """
    try:
        return unflatten(safetensors.numpy.load(path.read_bytes()))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; it should hold weights") from error
    except SafetensorError as error:
        raise InputError(
            f"{path} is not a whole safetensors file ({error}); copy it again"
        ) from error


def read_manifest(folder: epath.Path) -> dict[str, Any]:
    """The manifest of a folder of weights.

    Raises:
        InputError: missing or not JSON.
    """
    path = folder / MANIFEST
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(
            f"{path} does not exist; a folder of weights has one"
        ) from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error}") from error


def check(params: Params, abstract: Params, source: str) -> None:
    """Compares a loaded tree with the shapes a network wants.

    Raises:
        InputError: listing missing, surplus and wrong-shaped tensors together.
    """
    have, want = flatten(params), flatten(abstract)
    missing = [f"{name} is missing" for name in want if name not in have]
    surplus = [f"{name} is not expected" for name in have if name not in want]
    shapes = [
        f"{name} has shape {have[name].shape}, expected {want[name].shape}"
        for name in want
        if name in have and have[name].shape != want[name].shape
    ]
    wrong = missing + surplus + shapes
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise InputError(
            f"{source} does not fit this network: {'; '.join(wrong[:8])}{more}"
        )
