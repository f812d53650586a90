"""Tensors in files: listed from headers, read one at a time, placed on the mesh.

The weights of a part are a set of tensors under the names that their authors gave
them. A tensor is read when its place on the devices is known, and only the slices that
this process needs, so the host never holds a second copy of a model.
"""

import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding
from safetensors import SafetensorError, safe_open

from imagen_booth.distributed import sharding
from imagen_booth.errors import InputError
from imagen_booth.storage import is_object_store, open_atomic
from imagen_booth.train_state import Params, flatten, unflatten

Index = tuple[slice, ...]
SHOWN = 12  # names in an error; the rest are counted
STRIP = 16  # elements

FLOATS = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
DTYPES = FLOATS | {
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
# Raised while the header of a damaged file is read.
DAMAGED = (
    SafetensorError,
    UnicodeDecodeError,
    json.JSONDecodeError,
    KeyError,
    TypeError,
    AttributeError,
)
CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that is not read yet.

    Attributes:
        shape: Shape as stored.
        dtype: Dtype as stored.
        read: Function from one slice per axis to that part of the tensor; the result
            may be a view of a file.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Index], np.ndarray]

    def whole(self) -> np.ndarray:
        """Reads the whole tensor."""
        return self.read((slice(None),) * len(self.shape))

    def transposed(self, axes: tuple[int, ...]) -> "Tensor":
        """Permutes the axes as numpy does: axis i is ``axes[i]`` of this tensor."""
        if axes == tuple(range(len(self.shape))):
            return self

        def read(index: Index) -> np.ndarray:
            own = [slice(None)] * len(axes)
            for axis, part in zip(axes, index, strict=True):
                own[axis] = part
            return self.read(tuple(own)).transpose(axes)

        return Tensor(tuple(self.shape[axis] for axis in axes), self.dtype, read)


def held(array: np.ndarray) -> Tensor:
    """Wraps an array in memory as a tensor."""
    return Tensor(array.shape, array.dtype, lambda index: array[index])


@dataclasses.dataclass(frozen=True)
class WeightFiles:
    """The weights of one part, as found in files.

    Attributes:
        tensors: Tensors by their names in the files.
        spell: Function from (path, number of axes) of one of our parameters to its
            name in the files and the axes of the stored tensor in our order.
        describes: The network as the files describe it, a Stage or a T5Config; None if
            they do not describe it.
        where: The files, for messages.
        licence: Licence of the weights.
        pretrained: False for random weights.
        rowwise: Whether a row can be read without reading its whole tensor.
        sampler: Fields of a SamplerConfig that the files name; empty if none.

    Raises:
        InputError: A tensor is not of a floating-point dtype of 16 bits or more.
    """

    tensors: Mapping[str, Tensor]
    spell: Callable[[str, int], tuple[str, tuple[int, ...]]]
    describes: Any
    where: str
    licence: str
    pretrained: bool = True
    rowwise: bool = True
    sampler: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            if tensor.dtype not in FLOATS.values():
                raise InputError(
                    f"{self.where} holds quantised or integer tensors ({name} is "
                    f"{tensor.dtype}), which are not supported as weights; use the "
                    "float32, bfloat16 or float16 files of this network"
                )

    def fingerprint(self) -> str:
        """Computes a digest that identifies the weights without reading all of them.

        It is the SHA-256 of every name, shape and dtype, of all vectors and, where
        rows can be read alone, of the first and last row of larger tensors. Training
        changes all of these.
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
        """Finds the tensor of every parameter of a network.

        Args:
            wanted: Shapes of the network's parameters.

        Returns:
            Tensors by path of the parameter, with axes in our order.

        Raises:
            InputError: Tensors are missing, unexpected or of the wrong shape; the
                message lists all of them.
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
    """Copies an array in C order, in any case: it may be the view of a file."""
    if view.flags.c_contiguous:
        return view.astype(dtype)
    # Strips of a transposed view stay in the cache, which makes the copy several times
    # faster.
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
    """Reads tensors onto the mesh, one after the other.

    Args:
        tensors: Tensors by path of the parameter.
        mesh: Devices to place them on.
        rules: Sharding rules, see ``sharding.tree_shardings``.
        part: Kind of the network, see ``sharding.tree_shardings``.
        kept: Function from a path to the dtype on the devices; None for f32
            throughout.

    Returns:
        Tree of arrays.
    """

    def put(path: str, tensor: Tensor) -> jax.Array:
        dtype = np.dtype(kept(path) if kept else np.float32)

        def read(index: Any) -> np.ndarray:
            view = tensor.read(index)
            if view.dtype == dtype and not view.flags.c_contiguous:
                return view  # jax copies it, faster than numpy
            return view.astype(dtype)

        spec = sharding.spec_at(f"{part}/{path}", tensor.shape, mesh, rules)
        where = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(tensor.shape, where, read)

    return unflatten({path: put(path, each) for path, each in tensors.items()})


def open_file(path: epath.PathLike) -> dict[str, Tensor]:
    """Lists the tensors of a safetensors file, local or in an object store.

    Raises:
        InputError: The file does not exist, is truncated or damaged, or has a dtype
            that is not supported.
    """
    path = epath.Path(path)
    try:
        return _open_remote(path) if is_object_store(path) else _open_local(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; it should hold weights") from error
    except DAMAGED as error:
        raise InputError(
            f"{path} is not a whole safetensors file ({error}); copy it again"
        ) from error


def _open_local(path: epath.Path) -> dict[str, Tensor]:
    file = safe_open(str(path), "numpy")

    def tensor(name: str) -> Tensor:
        stored = file.get_slice(name)

        def read(index: Index) -> np.ndarray:
            if all(part == slice(None) for part in index):
                return file.get_tensor(name)  # slices of empty tensors are refused
            return stored[index]

        dtype = _dtype(path, name, stored.get_dtype())
        return Tensor(tuple(stored.get_shape()), dtype, read)

    return {name: tensor(name) for name in file.keys()}  # noqa: SIM118


def _open_remote(path: epath.Path) -> dict[str, Tensor]:
    """Reads the header now and one range of bytes for each tensor later.

    The safetensors package reads files of the file system only.
    """
    size = path.stat().length
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        if not 8 < start <= size:
            raise SafetensorError("its header is truncated")
        header = json.loads(file.read(start - 8))
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if start + end != size:
        raise SafetensorError(f"it has {size} bytes, but {start + end} by its header")

    def tensor(name: str, entry: Mapping[str, Any]) -> Tensor:
        shape, dtype = tuple(entry["shape"]), _dtype(path, name, entry["dtype"])
        first, last = entry["data_offsets"]
        if last - first != math.prod(shape) * dtype.itemsize:
            raise SafetensorError(f"{name} has the wrong number of bytes")

        def read(index: Index) -> np.ndarray:
            with path.open("rb") as file:
                file.seek(start + first)
                data = file.read(last - first)
            return np.frombuffer(data, dtype).reshape(shape)[index]

        return Tensor(shape, dtype, read)

    return {name: tensor(name, entry) for name, entry in header.items()}


def read_metadata(path: epath.Path) -> dict[str, str]:
    """Reads the free entries in the header of a safetensors file."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(size)).get("__metadata__") or {}


def _dtype(path: epath.Path, name: str, code: str) -> np.dtype:
    if code not in DTYPES:
        raise InputError(
            f"{path}: {name} has dtype {code}, which is not supported; use the "
            "float32, bfloat16 or float16 files of this network"
        )
    return DTYPES[code]


def open_shards(folder: epath.Path, index: epath.Path) -> dict[str, Tensor]:
    """Lists the tensors of several safetensors files that share an index.

    Raises:
        InputError: The index is damaged, or a file or tensor that it names is missing.
    """
    try:
        files = json.loads(index.read_text())["weight_map"]
        names = sorted(set(files.values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(
            f"{index} is not an index of safetensors files ({error!r}); copy it again"
        ) from error
    shards = {name: open_file(folder / name) for name in names}
    absent = [name for name, file in files.items() if name not in shards[file]]
    if absent:
        raise InputError(
            f"{folder / files[absent[0]]} lacks {absent[0]}, which {index.name} names; "
            "copy both again"
        )
    return {name: each for shard in shards.values() for name, each in shard.items()}


def open_stem(folder: epath.Path, stem: str) -> tuple[dict[str, Tensor], str] | None:
    """Lists the tensors of ``STEM.safetensors`` in a folder, one file or shards.

    ``STEM.fp16.safetensors`` is read where there is no file of full precision.

    Returns:
        The tensors and the file that lists them, or None if there are none.

    Raises:
        InputError: A file is damaged, or the folder has pickled weights only.
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
    """Writes a safetensors file and replaces an earlier one atomically.

    The safetensors package writes from memory only. This holds one tensor at a time, so
    that a network larger than the host's memory can be converted.

    Args:
        path: File to write.
        tensors: Tensors by name.
        dtype: Dtype in the file; None to keep each tensor's own.

    Raises:
        StorageError: The file cannot be written.
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
    with open_atomic(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            kind = np.dtype(dtype or tensor.dtype)
            data = copied(tensor.whole(), kind)
            file.write(data.reshape(-1).view(np.uint8).data)
