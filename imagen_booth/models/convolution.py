"""Convolutions with fast gradients on a CPU, and less work after an upsampling.

XLA's CPU compiler has a fast convolution for one order of dimensions. It brings the
gradients of a convolution into this order, but not inside a loop, such as that of
gradient accumulation, where they take fifty times as long. For the gradient of a kernel
it gathers pixels, as many numbers at a time as the batch has rows. Here both gradients
are written for it. On other devices they are XLA's.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from imagen_booth.models.hint import on_one_device

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class Geometry(NamedTuple):
    """The fixed sizes of a convolution, each by rows and columns of pixels.

    Attributes:
        image: Size of the images.
        kernel: Size of the kernel.
        strides: Pixels from one place of the kernel to the next.
        padding: Zeros before and after the images.
    """

    image: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]


def _flax_convolution(x, kernel, strides, padding, **more):
    """`lax.conv_general_dilated` as flax calls it; `padding` may be a name."""
    if not (on_one_device() and _is_plain(**more)):
        return lax.conv_general_dilated(x, kernel, strides, padding, **more)
    image, size = x.shape[1:3], kernel.shape[:2]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(image, size, strides, padding)
    above, left = ((int(low), int(high)) for low, high in padding)
    return convolve(x, kernel, Geometry(image, size, tuple(strides), (above, left)))


def _is_plain(
    lhs_dilation=(1,), rhs_dilation=(1,), feature_group_count=1, precision=None, **_
):
    """Whether a convolution has what `convolve` knows: no groups, no dilation."""
    dilated = {*(lhs_dilation or ()), *(rhs_dilation or ())} - {1}
    return not dilated and feature_group_count == 1 and precision is None


class Conv(nn.Conv):
    """flax's convolution of images, with these gradients."""

    conv_general_dilated: Any = _flax_convolution


class UpsampleConv(nn.Conv):
    """A 3 x 3 convolution of images after each pixel is repeated 2 x 2 times."""

    conv_general_dilated: Any = lambda x, kernel, *_, **__: upsample_convolve(x, kernel)


def upsample_convolve(
    x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C D"]
) -> Float[Array, "B I J D"]:
    """Convolves images at twice their height and width, zeros outside.

    The kernel meets only 2 x 2 different pixels, because each is there 2 x 2 times. So
    sums of its weights, applied to the images as they are, give the same with 4/9 of
    the arithmetic, in half of the time on a CPU and, by the compiler's estimate, on a
    TPU v5e. The sums are computed in float32 and rounded once to the kernel's dtype.
    """
    # For a TPU v5e the compiler counts 0.4 of the other form's traffic. A GPU may
    # multiply the zeros between pixels, which was not measured, so it takes the other.
    return lax.platform_dependent(x, kernel, tpu=_by_dilation, default=_by_parity)


def _by_dilation(x, kernel):
    """With the sums over 2 x 2 places, over pixels that are pulled apart."""
    summed = kernel.astype(jnp.float32)
    for axis in (0, 1):
        ends = [(int(i == axis), 0) for i in range(4)]
        summed = jnp.pad(summed, ends) + jnp.pad(summed, [end[::-1] for end in ends])
    return lax.conv_general_dilated(
        x,
        summed.astype(kernel.dtype),
        (1, 1),
        ((2, 2), (2, 2)),
        lhs_dilation=(2, 2),
        dimension_numbers=DIMENSIONS,
    )


def _by_parity(x, kernel):
    """One kernel of 2 x 2 for each of even and odd rows and columns."""
    b, h, w, _ = x.shape
    padding = ((1, 0), (0, 1))  # of even and of odd places

    def convolved(kernel, row, column):
        return _flax_convolution(
            x,
            kernel.astype(x.dtype),
            (1, 1),
            (padding[row], padding[column]),
            dimension_numbers=DIMENSIONS,
        )

    halves = _pair_sums(kernel.astype(jnp.float32), 0)
    rows = [
        jnp.stack([convolved(k, i, j) for j, k in enumerate(_pair_sums(half, 1))], 3)
        for i, half in enumerate(halves)
    ]
    return jnp.stack(rows, 2).reshape(b, 2 * h, 2 * w, -1)


def _pair_sums(kernel, axis):
    """Of three weights, the sums that meet the same pixel in even and in odd places."""
    first, second, third = jnp.split(kernel, 3, axis)
    even = jnp.concatenate([first, second + third], axis)
    odd = jnp.concatenate([first + second, third], axis)
    return even, odd


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(
    x: Float[Array, "B H W C"], kernel: Float[Array, "h w C D"], geometry: Geometry
) -> Float[Array, "B I J D"]:
    """Cross-correlation of images with a kernel, zeros outside the images."""
    return _convolve(x, kernel, geometry)


def _convolve(x, kernel, geometry):
    strides, padding = geometry.strides, geometry.padding
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=DIMENSIONS
    )


def _forward(x, kernel, geometry):
    """The output, and what the gradients need: less where one is not wanted."""
    saved = (
        x.value if kernel.perturbed else None,
        kernel.value if x.perturbed else None,
    )
    return _convolve(x.value, kernel.value, geometry), saved


def _backward(geometry, saved, out):
    """Gradients of images and kernel, from the gradient of the output."""
    x, kernel = saved
    of_images = of_kernel = None
    if kernel is not None:
        shape = (len(out), *geometry.image, kernel.shape[2])
        of_images = _by_platform(
            lambda kernel, out: _image_gradient(kernel, out, geometry),
            lambda x, kernel: _convolve(x, kernel, geometry),
            jax.ShapeDtypeStruct(shape, kernel.dtype),
            kernel,
            out,
        )
    if x is not None:
        shape = (*geometry.kernel, x.shape[-1], out.shape[-1])
        of_kernel = _by_platform(
            lambda x, out: _kernel_gradient(x, out, geometry),
            lambda kernel, x: _convolve(x, kernel, geometry),
            jax.ShapeDtypeStruct(shape, x.dtype),
            x,
            out,
        )
    return of_images, of_kernel


convolve.defvjp(_forward, _backward, symbolic_zeros=True)


def _by_platform(
    on_cpu: Callable[..., Any],
    forward: Callable[..., Any],
    wanted: jax.ShapeDtypeStruct,
    other: Array,
    out: Array,
) -> Array:
    """A gradient as computed here on a CPU, and by XLA elsewhere.

    Args:
        on_cpu: Gives the gradient from ``other`` and ``out``.
        forward: The convolution, whose first argument the gradient is for.
        wanted: The gradient's shape.
        other: The second argument.
        out: Gradient of the output.
    """

    def usual(other, out):
        return jax.linear_transpose(lambda one: forward(one, other), wanted)(out)[0]

    return lax.platform_dependent(other, out, cpu=on_cpu, default=usual)


def _image_gradient(kernel, out, geometry):
    ends = []
    for axis in (0, 1):
        size, width = geometry.image[axis], geometry.kernel[axis]
        low = width - 1 - geometry.padding[axis][0]
        places = (out.shape[1 + axis] - 1) * geometry.strides[axis] + 1
        ends.append((low, size + width - 1 - low - places))
    return lax.conv_general_dilated(
        out,
        kernel[::-1, ::-1].swapaxes(2, 3),
        (1, 1),
        ends,
        lhs_dilation=geometry.strides,
        dimension_numbers=DIMENSIONS,
    )


def _kernel_gradient(x, out, geometry):
    """Convolution along one axis, in which what is summed lies side by side.

    That is a row of pixels of all images. Each column of the kernel has its own copy of
    the images, moved by as much.
    """
    high, wide = geometry.kernel
    down, right = geometry.strides
    channels, features = x.shape[3], out.shape[3]
    x = jnp.pad(x.transpose(3, 1, 2, 0), ((0, 0), *geometry.padding, (0, 0)))
    out = out.transpose(1, 2, 0, 3)
    reach = (out.shape[1] - 1) * right + 1
    moved = [x[:, :, column : column + reach : right] for column in range(wide)]
    gradient = lax.conv_general_dilated(
        jnp.stack(moved).reshape(wide * channels, x.shape[1], 1, -1),
        out.reshape(len(out), 1, -1, features),
        (1, 1),
        "VALID",
        rhs_dilation=(down, 1),
        dimension_numbers=DIMENSIONS,
    )
    # Strides may leave rows over.
    gradient = gradient[:, :high].reshape(wide, channels, high, features)
    return gradient.transpose(2, 0, 1, 3)
