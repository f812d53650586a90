"""FLOPs and memory traffic of a traced program, counted equation by equation.

Counted are matrix products and convolutions: their FLOPs, and the bytes of their
operands and results. The body of a loop counts as often as it runs (a compiler's own
analysis counts it once); of a ``cond`` the most expensive branch counts, of a
choice by platform the one for other platforms, and of a ``while``, whose trip count is
unknown, one iteration.

Left out is everything that a compiler can fuse with a product: element-wise operations,
reductions, normalisations, sorts, slices and copies. Their FLOPs are few, but a program
that moves large arrays outside of products takes longer than its traffic here implies.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval


@dataclasses.dataclass(frozen=True)
class Cost:
    """Work of a program.

    Attributes:
        flops: Floating-point operations; a multiplication and an addition are two.
        bytes: Bytes read from and written to memory.
    """

    flops: float
    bytes: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.flops * times, self.bytes * times)


def count_flops(function: Callable[..., Any], *inputs: Any) -> float:
    """FLOPs of a function's matrix products and convolutions.

    Args:
        inputs: Arrays or shapes.
    """
    return count_cost(jax.make_jaxpr(function)(*inputs)).flops


def count_cost(program: Any) -> Cost:
    """Work of a program: its products, and its arguments and outputs in memory.

    Args:
        program: Closed jaxpr, as ``jax.make_jaxpr`` returns it.
    """
    jaxpr = program.jaxpr
    moved = sum(map(_size, [*jaxpr.constvars, *jaxpr.invars, *jaxpr.outvars]))
    # What no output needs is not compiled.
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _products(needed) + Cost(0.0, moved)


def _products(jaxpr: Any) -> Cost:
    """Work of the products in a jaxpr and in the jaxprs that it calls."""
    total = Cost(0.0, 0.0)
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, map(_products, _inner(equation))
        if name in ("dot_general", "conv_general_dilated"):
            moved = sum(map(_size, [*equation.invars, *equation.outvars]))
            total += Cost(_flops(equation), moved)
        elif equation.params.get("branches_platforms"):
            *_, usual = inner  # the others are for CPUs
            total += usual
        elif name in ("cond", "while"):
            total += max(inner, key=lambda cost: (cost.flops, cost.bytes))
        else:
            times = equation.params["length"] if name == "scan" else 1
            total += sum(inner, Cost(0.0, 0.0)) * times
    return total


def _flops(equation: Any) -> float:
    result = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        contracted = equation.params["dimension_numbers"][0][0]
        left = equation.invars[0].aval.shape
        return 2.0 * result * math.prod(left[axis] for axis in contracted)
    kernel = equation.invars[1].aval.shape
    outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    # A kernel meets zeros between pixels that are pulled apart.
    met = math.prod(kernel) / math.prod(equation.params["lhs_dilation"])
    return 2.0 * result * met / outputs


def _size(var: Any) -> float:
    """Bytes of a variable; a random key counts as none."""
    dtype = getattr(var.aval, "dtype", None)
    if dtype is None or jnp.issubdtype(dtype, jax.dtypes.extended):
        return 0.0
    return float(math.prod(var.aval.shape) * dtype.itemsize)


def _inner(equation: Any) -> Iterator[Any]:
    """Jaxprs that an equation calls: a loop's body, a branch, a jitted function."""
    for value in equation.params.values():
        for each in value if isinstance(value, tuple) else (value,):
            jaxpr = getattr(each, "jaxpr", each)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr
