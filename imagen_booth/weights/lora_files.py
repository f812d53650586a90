"""Adapters in files, in the layout that diffusers and peft read.

``pytorch_lora_weights.safetensors`` holds ``unet.MODULE.lora_A.weight`` [rank, inputs]
and ``unet.MODULE.lora_B.weight`` [outputs, rank] for each module, with the size of a
convolution's kernel as further axes. MODULE is the module's name in diffusers. Readers
take alpha = rank where a file does not state alpha, so a file that is written here has
alpha / rank multiplied into B.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from imagen_booth.errors import InputError
from imagen_booth.models import lora
from imagen_booth.train_state import Params, flatten, unflatten
from imagen_booth.weights import deepfloyd, native, tensor_files
from imagen_booth.weights.tensor_files import SHOWN, Tensor, held

FILE = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"  # entry of a file's header in which diffusers
PREFIX = "unet."  # writes alpha and rank as JSON, under this prefix
STAGES = ("base", "sr256", "sr1024")


def place_of(folder: epath.Path, stage: str) -> epath.Path | None:
    """Returns the file of a stage's adapter, if ``folder`` has one or is one."""
    if folder.name.endswith(".safetensors") and folder.exists():
        return folder
    for inner in (folder / stage, folder):
        if (inner / FILE).exists():
            return inner / FILE
    return None


def find(folder: epath.Path, stage: str, field: str) -> epath.Path:
    """Returns the file of a stage's adapter.

    Args:
        folder: Folder with ``FILE``, or with ``STAGE/FILE``; or the file itself.
        stage: Name of the stage.
        field: Setting or flag that named the folder, for messages.

    Raises:
        InputError: There is no adapter of this stage.
    """
    path = place_of(folder, stage)
    if path is not None:
        return path
    others = [name for name in STAGES if (folder / name / FILE).exists()]
    if others:
        raise InputError(
            f"{field}={folder} holds an adapter of {', '.join(others)} and none of "
            f"{stage}; give the folder of an adapter of {stage}"
        )
    if (folder / native.MANIFEST).exists() or deepfloyd.network_folder(folder):
        raise InputError(
            f"{field}={folder} holds the weights of a whole network, not an adapter; "
            f"a folder of an adapter has {FILE}. Whole weights belong in "
            f"config.weights.{stage}"
        )
    raise InputError(
        f"{field}={folder} holds no adapter: neither {FILE} nor {stage}/{FILE} exists"
    )


def _spelt(shapes: Params) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yields the path of every kernel, its module's name in a file, and its shape."""
    for path, leaf in flatten(shapes).items():
        if path.endswith("/kernel"):
            name, _ = deepfloyd.spell(path, len(leaf.shape))
            yield path, PREFIX + name.removesuffix("weight"), tuple(leaf.shape)


def read(path: epath.Path, shapes: Params, field: str) -> Params:
    """Reads an adapter, with the scale of its file multiplied into B.

    Args:
        path: The file.
        shapes: Shapes of the parameters of the network that it belongs to.
        field: Setting or flag that named the file, for messages.

    Returns:
        Tree as ``lora.init`` makes it, numpy f32; the scale to use it with is 1.

    Raises:
        InputError: The file is damaged, is no adapter, or belongs to another network.
    """
    tensors = tensor_files.open_file(path)
    endings = tuple(f".{each}.weight" for each in (lora.A, lora.B))
    strange = [name for name in tensors if not name.endswith(endings)]
    if strange or not tensors:
        example = f", such as {strange[0]}" if strange else ""
        raise InputError(
            f"{field}: {path} is not an adapter in peft's layout: it has "
            f"{len(strange)} tensors that are not lora_A or lora_B{example}; whole "
            "weights belong in config.weights"
        )
    wrong, adapter = [], {}
    for kernel, module, shape in _spelt(shapes):
        names = [f"{module}{each}.weight" for each in (lora.A, lora.B)]
        found = [tensors.pop(name, None) for name in names]
        if found == [None, None]:
            continue
        if None in found:
            wrong.append(f"{names[found.index(None)]} is missing")
            continue
        a, b = (each.whole().astype(np.float32) for each in found if each is not None)
        rank = a.shape[0]
        turned = a.transpose({2: (1, 0), 4: (2, 3, 1, 0)}[len(shape)])
        if turned.shape != (*shape[:-1], rank) or b.shape[:2] != (shape[-1], rank):
            wrong.append(f"{module}lora_A and lora_B are {a.shape} and {b.shape}")
            continue
        place = kernel.removesuffix("kernel")
        adapter[place + lora.A] = turned
        adapter[place + lora.B] = b.reshape(b.shape[:2]).T
    wrong += [f"{name} is not expected" for name in sorted(tensors)]
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise InputError(
            f"{field}: the adapter {path} belongs to another network: "
            f"{'; '.join(wrong[:SHOWN])}{more}"
        )
    scale = _scale(path)
    for name in adapter:
        if scale != 1.0 and name.endswith(lora.B):
            adapter[name] = adapter[name] * np.float32(scale)
    return unflatten(adapter)


def _scale(path: epath.Path) -> float:
    """Reads alpha / rank from the header of a file; 1 where it is not stated.

    Raises:
        InputError: Modules have ranks or alphas of their own.
    """
    stated = tensor_files.read_metadata(path).get(METADATA)
    if not stated:
        return 1.0
    fields = json.loads(stated)
    if any(fields.get(f"{PREFIX}{name}_pattern") for name in ("rank", "alpha")):
        raise InputError(
            f"{path} states a rank or an alpha for single modules, which is not "
            "supported; use one rank and one alpha for all"
        )
    return fields.get(f"{PREFIX}lora_alpha", 1) / fields.get(f"{PREFIX}r", 1)


def save(
    path: epath.Path,
    adapter: Mapping[str, Tensor],
    scale: float,
    dtype: np.dtype | None = None,
) -> None:
    """Writes an adapter.

    Args:
        path: File to write.
        adapter: Tensors by path, as ``lora.init`` names them.
        scale: Factor of A B, which is multiplied into B.
        dtype: Dtype in the file; None to keep f32.

    Raises:
        StorageError: The file cannot be written.
    """
    spelt = {}
    for at, tensor in adapter.items():
        module, _, leaf = at.rpartition("/")
        array = np.asarray(tensor.whole(), np.float32)
        a_axes = len(adapter[f"{module}/{lora.A}"].shape)
        name, _ = deepfloyd.spell(f"{module}/kernel", a_axes)
        if leaf == lora.B:
            array = np.float32(scale) * array.T
            array = array.reshape(*array.shape, *(1,) * (a_axes - 2))
        else:
            array = array.transpose({2: (1, 0), 4: (3, 2, 0, 1)}[a_axes])
        spelt[f"{PREFIX}{name.removesuffix('weight')}{leaf}.weight"] = held(array)
    tensor_files.save(path, spelt, dtype)


def merged(
    weights: Mapping[str, Tensor], adapter: Params, scale: float
) -> dict[str, Tensor]:
    """Adds an adapter to the weights of its network, one tensor at a time.

    Args:
        weights: Tensors of the network by path; each is read when it is used.
        adapter: Adapter as ``lora.init`` makes it, numpy.
        scale: Factor of A B.

    Returns:
        All tensors of the network, in the dtypes of ``weights``.
    """
    low, sums = flatten(adapter), dict(weights)
    for path in low:
        if path.endswith(lora.A):
            module = path.removesuffix(lora.A)
            kernel = weights[module + "kernel"]
            sums[module + "kernel"] = _sum(
                kernel, low[path], low[module + lora.B], scale
            )
    return sums


def _sum(kernel: Tensor, a: np.ndarray, b: np.ndarray, scale: float) -> Tensor:
    """A kernel with scale * A B added when it is read."""

    def read(index: Any) -> np.ndarray:
        change = np.float32(scale) * np.tensordot(a, b, 1)
        whole = kernel.whole().astype(np.float32) + change
        return whole.astype(kernel.dtype)[index]

    return Tensor(kernel.shape, kernel.dtype, read)
