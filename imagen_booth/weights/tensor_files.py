"""Tensors in files: found by reading headers, read one at a time, put on the mesh.

A part of a cascade is found as a set of tensors under the names of whoever wrote
them. Each is read when its place on the devices is known, and only the slices that
this process needs, so the host never holds a second copy of a model.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding

from imagen_booth.distributed import sharding
from imagen_booth.errors import InputError, StorageError
from imagen_booth.train_state import Params, flatten, unflatten

Index = tuple[slice, ...]
SHOWN = 12  # names in an error; the rest are counted
STRIP = 16  # elements

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that is not read yet.

    Attributes:
        shape, dtype: as stored.
        read: one slice per axis -> that part of it; may be a view of a file.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Index], np.ndarray]

    def whole(self) -> np.ndarray:
        """All of it."""
        return self.read((slice(None),) * len(self.shape))

    def transposed(self, axes: tuple[int, ...]) -> "Tensor":
        """With axis i taken from axis ``axes[i]`` of this one, as in numpy."""
        if axes == tuple(range(len(self.shape))):
            return self

        def read(index: Index) -> np.ndarray:
            own = [slice(None)] * len(axes)
            for axis, part in zip(axes, index, strict=True):
                own[axis] = part
            return self.read(tuple(own)).transpose(axes)

        return Tensor(tuple(self.shape[axis] for axis in axes), self.dtype, read)


def held(array: np.ndarray) -> Tensor:
    """An array in memory as a tensor."""
    return Tensor(array.shape, array.dtype, lambda index: array[index])


@dataclasses.dataclass(frozen=True)
class WeightFiles:
    """Weights of one part where they were found.

    Attributes:
        tensors: by the names in the files.
        spell: (path, axes) of a parameter of ours -> its name there, and the axes of
            the stored tensor in our order.
        describes: what the files say of the network, a Stage or a T5Config; None if
            they say nothing.
        where: the files, for messages.
        licence: of the weights.
        pretrained: False for random weights.
        rowwise: a row can be read without its whole tensor.
        sampler: fields of a SamplerConfig that the files name; empty if none.
    """

    tensors: Mapping[str, Tensor]
    spell: Callable[[str, int], tuple[str, tuple[int, ...]]]
    describes: Any
    where: str
    licence: str
    pretrained: bool = True
    rowwise: bool = True
    sampler: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def fingerprint(self) -> str:
        """Digest that tells weights apart without reading all of them.

        SHA-256 over every name, shape and dtype, all vectors and, where it costs
        little, the first and the last row of larger tensors: training moves each.
        """
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            tensor = self.tensors[name]
            digest.update(f"{name} {tensor.shape} {tensor.dtype};".encode())
            parts = []
            if len(tensor.shape) < 2:
                parts = [tensor.whole()]
            elif self.rowwise:
                others = (slice(None),) * (len(tensor.shape) - 1)
                last = tensor.shape[0] - 1
                parts = [
                    tensor.read((slice(row, row + 1), *others)) for row in (0, last)
                ]
            for part in parts:
                digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    def matched(self, wanted: Params) -> dict[str, Tensor]:
        """Every parameter's tensor, by path, in our axes.

        Args:
            wanted: shapes of the network.

        Raises:
            InputError: listing missing, surplus and wrong-shaped tensors together.
        """
        flat = flatten(wanted)
        spelt = {path: self.spell(path, len(leaf.shape)) for path, leaf in flat.items()}
        absent = [name for name, _ in spelt.values() if name not in self.tensors]
        surplus = sorted(self.tensors.keys() - {name for name, _ in spelt.values()})
        wrong = [f"{name} is missing{_near(name, surplus)}" for name in absent]
        wrong += [f"{name} is not expected{_near(name, absent)}" for name in surplus]
        fitting = {}
        for path, (name, axes) in spelt.items():
            if name in self.tensors:
                tensor, want = self.tensors[name], flat[path].shape
                if sorted(axes) != list(range(len(tensor.shape))) or (
                    tuple(tensor.shape[axis] for axis in axes) != tuple(want)
                ):
                    back = tuple(want[axes.index(axis)] for axis in range(len(want)))
                    wrong.append(f"{name} has shape {tensor.shape}, expected {back}")
                else:
                    fitting[path] = tensor.transposed(axes)
        if wrong:
            more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
            raise InputError(
                f"{self.where} does not fit this network: "
                f"{'; '.join(wrong[:SHOWN])}{more}"
            )
        return fitting


def _near(name: str, others: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, list(others), 1, 0.8)
    return f" (is {nearest[0]} meant?)" if nearest else ""


def copied(view: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A C-ordered copy, also where the array would do: files can change below it."""
    if view.flags.c_contiguous:
        return view.astype(dtype)
    # A transposed view is copied in strips that stay in the cache: several times
    # faster than at once.
    out = np.empty(view.shape, dtype)
    for first in range(0, view.shape[-1], STRIP):
        out[..., first : first + STRIP] = view[..., first : first + STRIP]
    return out


def place(
    tensors: Mapping[str, Tensor],
    mesh: Mesh,
    rules: Sequence[sharding.Rule] = (),
    part: str = "unet",
    kept: Callable[[str], Any] | None = None,
) -> Params:
    """Reads tensors by path onto the mesh, one after the other.

    Args:
        rules, part: as ``sharding.tree_shardings`` takes them.
        kept: path -> dtype to keep it in; None for f32 throughout.
    """

    def put(path: str, tensor: Tensor) -> jax.Array:
        dtype = np.dtype(kept(path) if kept else np.float32)

        def read(index: Any) -> np.ndarray:
            view = tensor.read(index)
            if view.dtype == dtype and not view.flags.c_contiguous:
                return view  # which jax copies, and faster
            return view.astype(dtype)

        spec = sharding.spec_at(f"{part}/{path}", tensor.shape, mesh, rules)
        where = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(tensor.shape, where, read)

    return unflatten({path: put(path, each) for path, each in tensors.items()})


def open_file(path: epath.PathLike) -> dict[str, Tensor]:
    """The tensors of a safetensors file, from its header.

    A local file is mapped into memory tensor by tensor, and unmapped again.

    Raises:
        InputError: no such file, or one that is cut short or not of this format.
    """
    path = epath.Path(path)
    try:
        size = path.stat().length
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            if not 8 < start <= size:
                raise ValueError("its header is cut short")
            header = json.loads(file.read(start - 8))
        header.pop("__metadata__", None)
        end, tensors = 0, {}
        for name, entry in sorted(
            header.items(), key=lambda item: item[1]["data_offsets"]
        ):
            dtype, shape = DTYPES.get(entry["dtype"]), tuple(entry["shape"])
            if dtype is None:
                raise ValueError(f"{name} has dtype {entry['dtype']}")
            first, last = entry["data_offsets"]
            if first != end or last - first != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{name} has the wrong number of bytes")
            end = last
            tensors[name] = stored(path, start + first, shape, dtype)
        if start + end != size:
            raise ValueError(f"it has {size} bytes, its header says {start + end}")
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; it should hold weights") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not a whole safetensors file ({error}); copy it again"
        ) from error
    return tensors


def stored(
    path: epath.Path, offset: int, shape: tuple[int, ...], dtype: np.dtype
) -> Tensor:
    """A tensor that lies in a file as it is, from byte ``offset`` on."""
    count = math.prod(shape)

    def read(index: Index) -> np.ndarray:
        if count == 0:
            return np.zeros(shape, dtype)[index]
        if "://" not in str(path):
            data = np.memmap(path, np.uint8, "r", offset, (count * dtype.itemsize,))
        else:
            with path.open("rb") as file:
                file.seek(offset)
                data = np.frombuffer(file.read(count * dtype.itemsize), np.uint8)
        return np.asarray(data).view(dtype).reshape(shape)[index]

    return Tensor(shape, dtype, read)


def open_shards(folder: epath.Path, index: epath.Path) -> dict[str, Tensor]:
    """The tensors of several safetensors files, by the index that lists them.

    Raises:
        InputError: the index, a file, or a tensor that it promises is missing.
    """
    try:
        files = json.loads(index.read_text())["weight_map"]
        names = sorted(set(files.values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(
            f"{index} is not an index of safetensors files ({error!r}); copy it again"
        ) from error
    shards = {name: open_file(folder / name) for name in names}
    lost = [name for name, file in files.items() if name not in shards[file]]
    if lost:
        raise InputError(
            f"{folder / files[lost[0]]} lacks {lost[0]}, which {index.name} promises; "
            "copy both again"
        )
    return {name: each for shard in shards.values() for name, each in shard.items()}


def open_stem(folder: epath.Path, stem: str) -> tuple[dict[str, Tensor], str] | None:
    """Tensors of ``STEM.safetensors`` in a folder, whole or in shards.

    Full precision goes before ``STEM.fp16``.

    Returns:
        The tensors and the file that names them, or None if there are none.

    Raises:
        InputError: a damaged file, or pickled weights alone.
    """
    for variant in ("", ".fp16"):
        path = folder / f"{stem}{variant}.safetensors"
        if path.exists():
            return open_file(path), str(path)
        for name in (
            f"{stem}.safetensors.index{variant}.json",
            f"{stem}{variant}.safetensors.index.json",
        ):
            if (folder / name).exists():
                return open_shards(folder, folder / name), str(folder / name)
    if any(folder.glob(f"*{stem}*.bin")):
        raise InputError(
            f"{folder} has no {stem}.safetensors, and pickled weights (.bin) are not "
            "read; fetch the safetensors files, or rewrite these with "
            f"`python -m imagen_booth.convert unpickle --from={folder}`"
        )
    return None


def save(
    path: epath.Path, tensors: Mapping[str, Tensor], dtype: np.dtype | None = None
) -> None:
    """Writes a safetensors file, holding one tensor at a time; replaces atomically.

    Args:
        dtype: of all tensors; None for each its own.

    Raises:
        StorageError: it cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        kind = np.dtype(dtype or tensor.dtype)
        first, end = end, end + math.prod(tensor.shape) * kind.itemsize
        header[name] = {
            "dtype": CODES[kind],
            "shape": list(tensor.shape),
            "data_offsets": [first, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    beside = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors.values():
                kind = np.dtype(dtype or tensor.dtype)
                data = copied(tensor.whole(), kind)
                file.write(data.reshape(-1).view(np.uint8))
        beside.replace(path)
    except OSError as error:
        raise StorageError(f"could not write {path}: {error}") from error
    finally:
        beside.unlink(missing_ok=True)
