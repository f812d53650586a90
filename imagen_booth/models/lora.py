"""Low-rank adapters (LoRA): scale * A B is added to a kernel before the forward pass.

An adapter is a tree beside the parameters of a network, so it changes no network. For
``PATH/kernel`` it holds ``PATH/lora_A``, of the kernel's shape with ``rank`` in place
of the outputs, and ``PATH/lora_B`` [rank, outputs]. For a convolution the product is
that of peft: a convolution to ``rank`` channels, then one of 1 x 1.

Source: Hu et al., arXiv 2106.09685; start and convolutions as in peft 0.21.
"""

import math
import re
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float

A, B = "lora_A", "lora_B"
# Patterns of the kernels that can have an adapter.
KERNELS = {
    "attention": r"(.*/)?attentions_\d+/(to_q|to_k|to_v|to_out|add_[kv]_proj)/kernel",
    "all": r".*/kernel",
}


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    return dict(traverse_util.flatten_dict(dict(tree), sep="/"))


def kernel_paths(params: Mapping[str, Any], kernels: str, rank: int) -> list[str]:
    """Returns the paths of the kernels that get an adapter.

    Of ``all`` kernels, those with a smaller rank themselves get none, such as the last
    convolution with its few channels of colour.

    Args:
        params: Parameters of a network, or their shapes.
        kernels: A name in ``KERNELS``.
        rank: Rank of the adapter.
    """
    return [
        path
        for path, leaf in _flat(params).items()
        if re.fullmatch(KERNELS[kernels], path)
        and (kernels != "all" or full_rank(leaf.shape) >= rank)
    ]


def full_rank(shape: tuple[int, ...]) -> int:
    """Returns the rank that a kernel of this shape can have at most."""
    return min(math.prod(shape[:-1]), shape[-1])


def shapes(params: Mapping[str, Any], kernels: str, rank: int) -> dict[str, Any]:
    """Returns the shapes of an adapter, f32.

    Args:
        params: Parameters of the network, or their shapes.
        kernels: A name in ``KERNELS``.
        rank: Columns of A and rows of B, 1 or more.
    """
    flat = _flat(params)
    adapter = {}
    for path in kernel_paths(params, kernels, rank):
        *inner, outputs = flat[path].shape
        module = path.removesuffix("kernel")
        adapter[module + A] = jax.ShapeDtypeStruct((*inner, rank), jnp.float32)
        adapter[module + B] = jax.ShapeDtypeStruct((rank, outputs), jnp.float32)
    return traverse_util.unflatten_dict(adapter, sep="/")


def init(
    seed: int, params: Mapping[str, Any], kernels: str, rank: int
) -> dict[str, Any]:
    """Makes an adapter that changes nothing yet, numpy f32.

    A is uniform within 1 / sqrt(inputs) of zero, as peft draws it, and B is zero. The
    numbers depend on the seed and the path of a kernel, not on the other kernels. They
    are drawn on the host: a program with a draw for each kernel takes as long to
    compile as a training step.

    Args:
        seed: Seed, not negative.
        params: As for ``shapes``.
        kernels: As for ``shapes``.
        rank: As for ``shapes``.
    """
    adapter = {}
    for path, leaf in _flat(shapes(params, kernels, rank)).items():
        adapter[path] = np.zeros(leaf.shape, np.float32)
        if path.endswith(A):
            bound = math.prod(leaf.shape[:-1]) ** -0.5
            rng = np.random.default_rng((seed, zlib.crc32(path.encode())))
            adapter[path][:] = rng.uniform(-bound, bound, leaf.shape)
    return traverse_util.unflatten_dict(adapter, sep="/")


def product(
    a: Float[Array, "*inner R"], b: Float[Array, "R O"], scale: float
) -> Float[Array, "*inner O"]:
    """Returns what an adapter adds to a kernel."""
    return scale * jnp.tensordot(a, b, 1)


def add(
    params: Mapping[str, Any], adapter: Mapping[str, Any], scale: float
) -> dict[str, Any]:
    """Adds an adapter to the parameters of its network.

    The sum is computed in f32 and rounded to the kernel's own dtype. In bfloat16 this
    is the rounding that the network would apply, and the gradient passes it unchanged.

    Args:
        params: Parameters of the network.
        adapter: Adapter as ``init`` makes it.
        scale: Factor of the product, alpha / rank.
    """
    flat = _flat(params)
    low = _flat(adapter)
    for path in low:
        if path.endswith(A):
            module = path.removesuffix(A)
            kernel = flat[module + "kernel"]
            change = product(low[path], low[module + B], scale)
            total = kernel.astype(jnp.float32) + change
            flat[module + "kernel"] = total.astype(kernel.dtype)
    return traverse_util.unflatten_dict(flat, sep="/")
