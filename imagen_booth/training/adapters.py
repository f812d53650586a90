"""What an adapter changes in fine-tuning: which parameters there are, and which train.

The parameters of a stage are ``{"unet": ...}``, and ``{"unet": ..., "adapter": ...}``
with an adapter, of which ``unet`` is then frozen. Everything else is as without one.
"""

from typing import Any

import jax
import numpy as np
from etils import epath

from imagen_booth.config.schema import Adapter, FineTuning
from imagen_booth.distributed import sharding
from imagen_booth.errors import InputError
from imagen_booth.models import lora
from imagen_booth.train_state import Params, flatten, unflatten
from imagen_booth.weights import lora_files
from imagen_booth.weights.load import to_frozen


def trainable(tuning: FineTuning) -> tuple[str, ...]:
    """Patterns of the parameters that train, see ``train_state.split``."""
    return ("adapter/.*",) if tuning.adapts else ("unet/.*",)


def usable(params: Params, tuning: FineTuning) -> Params:
    """The parameters that fine-tuning has changed, which are stored for use."""
    return {"adapter": params["adapter"]} if tuning.adapts else params


def network_params(params: Params, tuning: FineTuning) -> Params:
    """The parameters of the stage's network, with the adapter added if there is one."""
    if not tuning.adapts:
        return params["unet"]
    return lora.add(params["unet"], params["adapter"], tuning.adapter.scale)


def param_shapes(
    name: str, unet: Params, tuning: FineTuning, dtype: Any
) -> dict[str, Params]:
    """Shapes of all parameters of a stage in fine-tuning.

    Args:
        name: Name of the stage, for messages.
        unet: Shapes of the network's f32 parameters.
        tuning: Settings of the stage.
        dtype: Dtype of the activations.

    Raises:
        InputError: The rank is above that of a kernel.
    """
    if not tuning.adapts:
        return {"unet": unet}
    config = tuning.adapter
    check_rank(name, config, unet)

    frozen = jax.eval_shape(lambda params: to_frozen(params, dtype), unet)
    return {"unet": frozen, "adapter": lora.shapes(unet, config.kernels, config.rank)}


def check_rank(name: str, config: Adapter, unet: Params) -> None:
    """Checks that every kernel with an adapter can have its rank.

    Raises:
        InputError: There is no such kernel, or one has a smaller rank itself.
    """
    flat = flatten(unet)
    ranks = {
        path: lora.full_rank(flat[path].shape)
        for path in lora.kernel_paths(unet, config.kernels, config.rank)
    }
    if not ranks:
        raise InputError(
            f"config.{name}.adapter.kernels={config.kernels!r}, but the network of "
            f"{name} has no such kernel of rank {config.rank} or more; use "
            f"{_other(config.kernels)!r}, or another config.{name}.adapter.rank"
        )
    smallest = min(ranks, key=lambda path: ranks[path])
    if config.rank > ranks[smallest]:
        raise InputError(
            f"config.{name}.adapter.rank={config.rank} is above {ranks[smallest]}, the "
            f"rank of the kernel {smallest} {flat[smallest].shape}; use "
            f"{ranks[smallest]} or less"
        )


def create(
    name: str,
    unet: Params,
    config: Adapter,
    seed: int,
    mesh: jax.sharding.Mesh,
) -> Params:
    """Makes the adapter that training starts from, on the mesh.

    Args:
        name: Name of the stage, for messages.
        unet: Parameters of the network.
        config: Settings of the adapter.
        seed: Seed of a new adapter.
        mesh: The devices.

    Raises:
        InputError: The rank is above that of a kernel, or ``config.start`` does not
            name an adapter with these settings.
    """
    abstract = jax.eval_shape(lambda tree: tree, unet)
    check_rank(name, config, abstract)
    shapes = {"adapter": lora.shapes(abstract, config.kernels, config.rank)}
    place = sharding.tree_shardings(shapes, mesh)["adapter"]
    if config.start:
        made = started(name, config, abstract)
    else:
        made = lora.init(seed, abstract, config.kernels, config.rank)
    return jax.device_put(made, place)


def start_file(name: str, config: Adapter) -> epath.Path:
    """The file of the adapter to start from.

    Raises:
        InputError: There is none at ``config.start``.
    """
    field = f"config.{name}.adapter.start"
    return lora_files.find(epath.Path(config.start), name, field)


def started(name: str, config: Adapter, shapes: Params) -> Params:
    """Reads the adapter to start from, numpy f32.

    Args:
        name: Name of the stage.
        config: Settings of the adapter, with a ``start``.
        shapes: Shapes of the network's parameters.

    Raises:
        InputError: There is none, it is of another network or rank, or it is for other
            kernels.
    """
    field, path = f"config.{name}.adapter.start", start_file(name, config)
    flat = flatten(lora_files.read(path, shapes, field))
    ranks = {leaf.shape[0] for at, leaf in flat.items() if at.endswith(lora.B)}
    if ranks != {config.rank}:
        raise InputError(
            f"{field}={config.start} has rank "
            f"{', '.join(map(str, sorted(ranks)))}, but config.{name}.adapter.rank="
            f"{config.rank}; set that to the rank of the file"
        )
    wanted = set(lora.kernel_paths(shapes, config.kernels, config.rank))
    found = {at.removesuffix(lora.A) + "kernel" for at in flat if at.endswith(lora.A)}
    if found != wanted:
        raise InputError(
            f"{field}={config.start} adapts {len(found)} kernels, but "
            f"config.{name}.adapter.kernels={config.kernels!r} names {len(wanted)}; "
            f"use {_other(config.kernels)!r}, or another adapter"
        )
    return unflatten(
        {
            at: leaf / np.float32(config.scale) if at.endswith(lora.B) else leaf
            for at, leaf in flat.items()
        }
    )


def _other(kernels: str) -> str:
    return next(name for name in lora.KERNELS if name != kernels)
