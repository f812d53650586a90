"""Rewrites weights that PyTorch pickled as safetensors; needs torch.

No other module reads pickles, since they can hold programs. Here torch reads tensors
only, and a file with anything else in it is refused.
"""

import json
from typing import Any

import jax.numpy as jnp
from etils import epath

from imagen_booth.errors import InputError
from imagen_booth.storage import write_atomic
from imagen_booth.weights import tensor_files


def rewrite(folder: epath.Path) -> list[epath.Path]:
    """Writes each ``.bin`` of a folder, and its index, as safetensors beside it.

    Returns:
        Paths of the tensor files.

    Raises:
        InputError: Torch is not installed, or the folder has no such file, or a file
            does not hold tensors only.
        StorageError: The files cannot be written.
    """
    try:
        import torch  # an extra, and slow
    except ImportError as error:
        raise InputError(
            "pickled weights need torch: pip install 'imagen_booth[parity]'"
        ) from error
    files = sorted(folder.glob("*model*.bin"))
    if not files:
        raise InputError(
            f"--from={folder} has no pickled weights, such as pytorch_model.bin"
        )
    written = []
    for file in files:
        try:
            found = torch.load(file, map_location="cpu", weights_only=True)
            arrays = {name: _array(torch, value) for name, value in found.items()}
        except (OSError, MemoryError):
            raise
        except Exception as error:  # a damaged pickle can raise anything
            raise InputError(
                f"{file} is not a whole torch file of tensors ({error}); copy it "
                "again, or fetch the safetensors files"
            ) from error
        written.append(folder / _name(file.name))
        held = {name: tensor_files.held(array) for name, array in arrays.items()}
        tensor_files.save(written[-1], held)
    for index in folder.glob("*.bin.index.json"):
        content = json.loads(index.read_text())
        content["weight_map"] = {
            name: _name(file) for name, file in content["weight_map"].items()
        }
        write_atomic(folder / _name(index.name), json.dumps(content).encode())
    return written


def _array(torch: Any, value: Any) -> Any:
    value = value.detach().contiguous()
    if value.dtype == torch.bfloat16:  # numpy has no bfloat16 of its own
        return value.view(torch.uint16).numpy().view(jnp.bfloat16)
    return value.numpy()


def _name(file: str) -> str:
    """Maps ``pytorch_model-1-of-2.bin`` to ``model-1-of-2.safetensors``."""
    if file.startswith("pytorch_model"):
        file = file.removeprefix("pytorch_")
    return file.replace(".bin", ".safetensors")
