"""T5X checkpoints: a msgpack file ``checkpoint`` and a zarr array per large tensor.

The msgpack file holds the tree of parameters. A leaf is an array as Flax packs it, or
the description of a zarr array in the same folder. The path in that description is
where the array was first written, so only its last part is used. Newer files have the
tree under ``optimizer``. Only the encoder's parameters (in ``target``) are read.

Source: the formats of T5X's checkpoints.py and Flax's serialization.py.
"""

import io
import math
import mmap
from collections.abc import Iterator
from typing import Any, BinaryIO

import jax.numpy as jnp
import msgpack
import numpy as np
import tensorstore as ts
from etils import epath

from imagen_booth.errors import InputError
from imagen_booth.storage import is_object_store
from imagen_booth.weights.tensor_files import Index, Tensor, held

FILE = "checkpoint"
CHUNKED = "__msgpack_chunked_array__"  # marks an array over a gigabyte, in pieces
LARGEST = 2**32 - 1  # bytes of one msgpack object
# Bytes before the content of a msgpack extension, by its first byte.
EXTENSIONS = {0xC7: 3, 0xC8: 4, 0xC9: 6} | dict.fromkeys(range(0xD4, 0xD9), 2)

# Raised while a damaged file is read.
DAMAGED = (
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    msgpack.UnpackException,
)


def open_checkpoint(place: epath.Path) -> dict[str, Tensor] | None:
    """Lists the tensors of the encoder by their paths, which begin with ``target``.

    Args:
        place: Folder of a checkpoint, or its msgpack file; local or ``gs://``.

    Returns:
        The tensors, or None if there is no checkpoint.

    Raises:
        InputError: The file is truncated, or an array or a chunk of one is missing.
    """
    folder = place.parent if place.name == FILE else place
    return _Checkpoint(folder).tensors() if _exists(folder) else None


def _store(folder: epath.Path) -> ts.KvStore:
    # Tensorstore reads gs:// without further packages; epath needs gcsfs.
    path = str(folder) if is_object_store(folder) else f"file://{folder.resolve()}"
    return ts.KvStore.open(f"{path}/").result()


def _exists(folder: epath.Path) -> bool:
    if is_object_store(folder):
        return bool(_store(folder).list(ts.KvStore.KeyRange(FILE, f"{FILE}0")).result())
    path = folder / FILE
    return path.exists() and not path.is_dir() and path.stat().length > 0


class _Checkpoint:
    """Reads one checkpoint."""

    def __init__(self, folder: epath.Path):
        self._folder = folder
        self._store = _store(folder)

    def tensors(self) -> dict[str, Tensor]:
        path = self._folder / FILE
        if is_object_store(self._folder):
            self._data: Any = self._store.read(FILE).result().value
            return self._read(io.BytesIO(self._data))
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as self._data,
        ):
            return self._read(file)

    def _read(self, file: BinaryIO) -> dict[str, Tensor]:
        unpacker = msgpack.Unpacker(
            file, max_buffer_size=LARGEST, max_bin_len=LARGEST, max_ext_len=LARGEST
        )
        try:
            tree = self._walk(unpacker)
            tree = tree.get("optimizer", tree)["target"]
            encoder = {name: node for name, node in tree.items() if name != "decoder"}
            found = dict(self._leaves(encoder, "target"))
        except DAMAGED as error:
            raise InputError(
                f"{self._folder / FILE} is not a whole T5X checkpoint ({error!r}); "
                "copy it again"
            ) from error
        # Opening is asynchronous, so wait only after all arrays are being opened.
        return {
            path: leaf if isinstance(leaf, Tensor) else self._zarr(*leaf)
            for path, leaf in found.items()
        }

    def _walk(self, unpacker: msgpack.Unpacker) -> Any:
        """Returns maps as dicts, and the (first byte, end) of everything else."""
        first = unpacker.tell()
        kind = self._data[first]
        if 0x80 <= kind <= 0x8F or kind in (0xDE, 0xDF):
            entries = range(unpacker.read_map_header())
            return {unpacker.unpack(): self._walk(unpacker) for _ in entries}
        unpacker.skip()
        return first, unpacker.tell()

    def _value(self, place: tuple[int, int]) -> Any:
        return msgpack.unpackb(self._data[slice(*place)])

    def _leaves(self, node: Any, path: str) -> Iterator[tuple[str, Any]]:
        """Yields (path, tensor) or (path, (name, opening array, its files))."""
        if not isinstance(node, dict):
            yield path, self._packed(node)
        elif CHUNKED in node:
            shape = [self._value(size) for size in node["shape"].values()]
            yield path, self._joined(shape, list(node["chunks"].values()))
        elif "kvstore" in node:
            # Older files have the path beside the store, not inside it.
            written = node["kvstore"].get("path") or node["path"]
            name = self._value(written).rstrip("/").split("/")[-1]
            spec = {"driver": "zarr", "kvstore": (self._store / f"{name}/").spec()}
            files = (self._store / f"{name}/").list()
            yield path, (name, ts.open(spec, open=True, read=True), files)
        else:
            for name, inner in node.items():
                yield from self._leaves(inner, f"{path}/{name}")

    def _packed(self, place: tuple[int, int]) -> Tensor:
        """Finds an array that Flax packed as an extension of shape, dtype and bytes."""
        first, end = place
        head = msgpack.Unpacker(raw=False)
        first += EXTENSIONS[self._data[first]]
        head.feed(self._data[first : min(first + 256, end)])
        head.read_array_header()
        shape, name = tuple(head.unpack()), head.unpack()
        dtype = np.dtype(jnp.bfloat16 if name == "bfloat16" else name)
        first = end - math.prod(shape) * dtype.itemsize
        if is_object_store(self._folder):
            flat = np.frombuffer(self._data[first:end], dtype)
            return held(flat.reshape(shape))

        def read(index: Index) -> np.ndarray:
            # Mapped for one read, so that the host never holds the whole file.
            return np.memmap(self._folder / FILE, dtype, "r", first, shape)[index]

        return Tensor(shape, dtype, read)

    def _joined(self, shape: list[int], places: list[tuple[int, int]]) -> Tensor:
        """Joins the pieces of an array that Flax packed in chunks."""
        parts = [self._packed(place) for place in places]

        def read(index: Index) -> np.ndarray:
            flat = np.concatenate([part.whole() for part in parts])
            return flat.reshape(shape)[index]

        return Tensor(tuple(shape), parts[0].dtype, read)

    def _zarr(self, name: str, opening: Any, listing: Any) -> Tensor:
        """Waits until a zarr array is open, and checks that no chunk is missing."""
        where = self._folder / name
        try:
            array = opening.result()
        except ValueError as error:
            raise InputError(
                f"{where} is missing or damaged, {self._folder / FILE} refers to it: "
                f"{error}"
            ) from error
        # Zarr reads an absent chunk as zeros; here it means an incomplete copy.
        chunks = array.chunk_layout.read_chunk.shape or ()
        expected = math.prod(
            -(-size // chunk) for size, chunk in zip(array.shape, chunks, strict=True)
        )
        found = sum(not key.startswith(b".") for key in listing.result())
        if found < expected:
            raise InputError(
                f"{where} has {found} of its {expected} chunks; copy the checkpoint "
                "again"
            )
        dtype = array.dtype.numpy_dtype
        # Older versions of T5X stored bfloat16 as uint16.
        kind = np.dtype(jnp.bfloat16) if dtype == np.uint16 else dtype

        def read(index: Index) -> np.ndarray:
            try:
                return array[index].read().result().view(kind)
            except ValueError as error:
                raise InputError(
                    f"{where} is damaged ({error}); copy the checkpoint again"
                ) from error

        return Tensor(tuple(array.shape), kind, read)
