"""Our own weight files: one safetensors file per part, a manifest beside them.

A folder of weights holds ``text.safetensors``, ``base.safetensors``, ... and
``manifest.json``. Tensor names are the paths of the parameter tree, so a file is
readable without this package. Where a network is not of a size known by name, the
manifest describes it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from imagen_booth.cascade import Stage
from imagen_booth.config import build
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.diffusion.schedule import (
    CosineSchedule,
    LinearSchedule,
    TableSchedule,
)
from imagen_booth.errors import InputError
from imagen_booth.models.t5 import T5Config
from imagen_booth.storage import write_atomic
from imagen_booth.weights import tensor_files
from imagen_booth.weights.tensor_files import Tensor, WeightFiles

MANIFEST = "manifest.json"


def sha256(path: epath.Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


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


def find(folder: epath.Path, name: str) -> WeightFiles:
    """A part's weights in a folder of ours.

    Args:
        name: ``text`` or a stage's name.

    Raises:
        InputError: no such part, a damaged file, or a description that is not known.
    """
    manifest = read_manifest(folder)
    path = folder / f"{name}.safetensors"
    entry = manifest.get("parts", {}).get(name, {})
    described = None
    if "network" in entry:
        described = read_network(entry["network"], f"{folder / MANIFEST}: {name}")
    sampler = entry.get("sampler", {})
    build.build(SamplerConfig, sampler, f"{folder / MANIFEST}: {name}.sampler")
    return WeightFiles(
        tensor_files.open_file(path),
        lambda path, ndim: (path, tuple(range(ndim))),
        described,
        str(path),
        entry.get("licence") or manifest.get("licence", "not stated"),
        manifest.get("pretrained", True),
        sampler=sampler,
    )


def read_network(entry: dict[str, Any], where: str) -> Stage | T5Config:
    """What ``dataclasses.asdict`` of a stage or an encoder described.

    Raises:
        InputError: a field that is not known, naming ``where``.
    """
    if "schedule" not in entry:
        return build.build(T5Config, entry, where)
    # The field is declared as any schedule; which, only its own fields tell.
    kinds = CosineSchedule | LinearSchedule | TableSchedule
    schedule = build.build(kinds, entry["schedule"], f"{where}.schedule")
    return build.build(Stage, entry | {"schedule": schedule}, where)


def write(
    folder: epath.Path,
    name: str,
    weights: Mapping[str, Tensor],
    network: Stage | T5Config | None,
    entry: Mapping[str, Any],
    dtype: np.dtype | None = None,
) -> epath.Path:
    """Writes a part into a folder; what it holds of other parts stays.

    Args:
        weights: by path.
        network: what it is, unless its cascade's name says so.
        entry: what else the manifest says of the part.
        dtype: of the tensors; None for each its own.

    Returns:
        Path of the file of tensors.

    Raises:
        StorageError: it cannot be written.
    """
    path = folder / f"{name}.safetensors"
    tensor_files.save(path, weights, dtype)
    about = {
        "sha256": sha256(path),
        "dtype": ", ".join(
            sorted({str(dtype or each.dtype) for each in weights.values()})
        ),
        "parameters": sum(int(np.prod(each.shape)) for each in weights.values()),
        **entry,
    }
    if network is not None:
        about["network"] = dataclasses.asdict(network)
    record(folder, parts={name: about})
    return path


def record(folder: epath.Path, **entries: Any) -> None:
    """Adds entries to a folder's manifest; those of ``parts`` are merged."""
    manifest: dict[str, Any] = {}
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
    parts = manifest.get("parts", {}) | entries.pop("parts", {})
    manifest |= {**entries, "parts": parts}
    write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
