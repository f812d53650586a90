"""Weights in our own layout: one safetensors file per part, and a manifest.

A folder of weights holds ``text.safetensors``, ``base.safetensors``, ... and
``manifest.json``. Tensor names are the paths of the parameter tree, so a file is
readable without this package. The manifest describes a network that differs from the
one in the named cascade.
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
    """Computes the hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(folder: epath.Path) -> dict[str, Any]:
    """Reads the manifest of a folder of weights.

    Raises:
        InputError: It does not exist or is not JSON.
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
    """Finds a part's weights in a folder in our layout.

    Args:
        folder: The folder.
        name: ``text`` or a stage's name.

    Raises:
        InputError: There is no such part, a file is damaged, or the description has
            unknown fields.
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
        tensors=tensor_files.open_file(path),
        spell=lambda path, ndim: (path, tuple(range(ndim))),
        describes=described,
        where=str(path),
        licence=entry.get("licence") or manifest.get("licence", "not stated"),
        pretrained=manifest.get("pretrained", True),
        sampler=sampler,
    )


def read_network(entry: dict[str, Any], where: str) -> Stage | T5Config:
    """Builds a stage or an encoder from its ``dataclasses.asdict``.

    Args:
        entry: The fields.
        where: Where they were read, for messages.

    Raises:
        InputError: A field is unknown or has a wrong value.
    """
    if "schedule" not in entry:
        return build.build(T5Config, entry, where)
    # Stage declares any kind of schedule; the fields decide which kind it is.
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
    """Writes a part into a folder; other parts there stay as they are.

    Args:
        folder: The folder.
        name: ``text`` or a stage's name.
        weights: Tensors by path of the parameter.
        network: The network, for the manifest; None if it is the one in the named
            cascade.
        entry: Further entries of the part in the manifest.
        dtype: Dtype of the tensors; None to keep each tensor's own.

    Returns:
        Path of the tensor file.

    Raises:
        StorageError: The file cannot be written.
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
    """Adds entries to a folder's manifest; ``parts`` is merged part by part."""
    manifest: dict[str, Any] = {}
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
    parts = manifest.get("parts", {}) | entries.pop("parts", {})
    manifest |= {**entries, "parts": parts}
    write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
