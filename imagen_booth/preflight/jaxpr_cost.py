"""The work in a traced program: its arithmetic, and its memory traffic.

Both are counted in the program as it was traced, where the body of a loop counts as
often as it runs; a compiler's own analysis counts it once.

Traffic is by a simple model of a compiler which joins all it can. Products,
reductions, sorts and slices read arrays from memory and write their result there.
Everything else is joined to whoever reads it, and only what it was made of is read, up
to ``JOINED`` arrays; beyond that it is written too. Of an array that is narrowed on the
way, by a cast or a cut, only as much is read as is left.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

JOINED = 8

_READERS = {
    "dot_general",
    "conv_general_dilated",
    "argmax",
    "argmin",
    "cumlogsumexp",
    "cummax",
    "cumprod",
    "cumsum",
    "reduce_and",
    "reduce_max",
    "reduce_min",
    "reduce_or",
    "reduce_prod",
    "reduce_sum",
    "reduce_window_sum",
    "sort",
    "top_k",
    "gather",
    "dynamic_slice",
}
# What writes into its first operand, in place: only the part at this position moves.
_WRITERS = {"dynamic_update_slice": 1, "scatter": 2, "scatter-add": 2}

# Arrays in memory that a value is made of, by number: how many bytes of each are read.
_Sources = dict[int, float]


class _Value(NamedTuple):
    """What reading a value takes, and whether it lies in memory itself."""

    sources: _Sources
    stored: bool


_FREE = _Value({}, stored=True)  # a literal, a key


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a program does.

    Attributes:
        flops: floating-point operations of matrix products and convolutions; a
            product and a sum are two.
        bytes: read from and written to memory.
    """

    flops: float
    bytes: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.flops * times, self.bytes * times)


NONE = Cost(0.0, 0.0)


def count_flops(function: Callable[..., Any], *inputs: Any) -> float:
    """Floating-point operations of a function's products and convolutions.

    Args:
        inputs: arrays or shapes.
    """
    return count_cost(jax.make_jaxpr(function)(*inputs)).flops


def count_cost(program: Any) -> Cost:
    """The work of a traced program.

    Args:
        program: closed jaxpr, such as ``jax.make_jaxpr`` and a jitted function's
            ``trace`` give.
    """
    return _Counter().whole(program.jaxpr)


class _Counter:
    """Walks programs, and numbers the arrays that lie in memory."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def _stored(self, var: Any) -> _Value:
        """A new array in memory."""
        size = _size(var)
        return _Value({next(self._numbers): size}, stored=True) if size else _FREE

    def whole(self, jaxpr: Any, constants: Sequence[_Value] = ()) -> Cost:
        """Work of a program whose results are written to memory.

        Args:
            constants: what the first inputs are made of; the others lie in memory.
        """
        own = [self._stored(var) for var in jaxpr.invars[len(constants) :]]
        work, results = self._walk(jaxpr, [*constants, *own])
        # What is not yet written is, all together, so that it is read only once.
        fresh = [not value.stored for value in results]
        written = sum(map(_size, itertools.compress(jaxpr.outvars, fresh)))
        read = _union(itertools.compress(results, fresh))
        return work + Cost(0.0, sum(read.values()) + written)

    def _walk(self, jaxpr: Any, given: Sequence[_Value]) -> tuple[Cost, list[_Value]]:
        """Work of a program's equations, and what its outputs are made of."""
        made: dict[Any, _Value] = dict(zip(jaxpr.invars, given, strict=True))
        made |= {var: self._stored(var) for var in jaxpr.constvars}

        def value(atom: Any) -> _Value:
            return _FREE if hasattr(atom, "val") else made[atom]

        total = NONE
        for equation in jaxpr.eqns:
            inputs = [value(atom) for atom in equation.invars]
            work, results = self._step(equation, inputs)
            total = total + work
            made |= dict(zip(equation.outvars, results, strict=True))
        return total, [value(atom) for atom in jaxpr.outvars]

    def _step(self, equation: Any, inputs: list[_Value]) -> tuple[Cost, list[_Value]]:
        name, inner = equation.primitive.name, list(_inner(equation))
        sizes = [_size(var) for var in equation.outvars]
        stored = [self._stored(var) for var in equation.outvars]
        if name in _READERS:
            read = _union(inputs)
            if name in ("gather", "dynamic_slice"):
                read = _at_most(read, sizes[0])
            return Cost(_flops(equation), sum(read.values()) + sum(sizes)), stored
        if name in _WRITERS:
            part = inputs[_WRITERS[name]].sources
            written = _size(equation.invars[_WRITERS[name]])
            return Cost(0.0, sum(part.values()) + written), stored
        if name == "scan":
            constants = inputs[: _constants(equation, inner[0])]
            return self.whole(inner[0], constants) * equation.params["length"], stored
        if name in ("cond", "while"):
            # Of a choice the dearest; of a loop without a known end one round.
            works = [self.whole(one) for one in inner]
            return max(works, key=lambda one: (one.flops, one.bytes)), stored
        if len(inner) == 1 and len(inner[0].invars) == len(inputs):
            return self._walk(inner[0], inputs)
        if inner:
            return sum(map(self.whole, inner), NONE), stored
        read = _union(inputs)
        if len(read) > JOINED:
            return Cost(0.0, sum(read.values()) + sum(sizes)), stored
        return NONE, [_Value(_at_most(read, size), stored=False) for size in sizes]


def _union(values: Iterable[_Value]) -> _Sources:
    """All that is read for several values together, each array once."""
    joined: _Sources = {}
    for value in values:
        for number, size in value.sources.items():
            joined[number] = max(size, joined.get(number, 0.0))
    return joined


def _at_most(sources: _Sources, size: float) -> _Sources:
    return {number: min(each, size) for number, each in sources.items()}


def _flops(equation: Any) -> float:
    result = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        contracted = equation.params["dimension_numbers"][0][0]
        left = equation.invars[0].aval.shape
        return 2.0 * result * math.prod(left[axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * result * math.prod(kernel) / outputs
    return 0.0


def _size(var: Any) -> float:
    """Bytes of a variable; a key counts nothing."""
    dtype = getattr(var.aval, "dtype", None)
    if dtype is None or jnp.issubdtype(dtype, jax.dtypes.extended):
        return 0.0
    return float(math.prod(var.aval.shape) * dtype.itemsize)


def _constants(equation: Any, body: Any) -> int:
    """How many of a scan's first inputs are the same in every round.

    Of what goes round and what comes out, shapes tell which is cut into rounds: jax
    0.10 and 0.11 keep these numbers in different places.
    """

    def whole(outside: Sequence[Any], inside: Sequence[Any]) -> int:
        pairs = zip(outside, inside, strict=True)
        return sum(len(out.aval.shape) == len(one.aval.shape) for out, one in pairs)

    carried = whole(equation.outvars, body.outvars)
    return whole(equation.invars, body.invars) - carried


def _inner(equation: Any) -> Iterator[Any]:
    """The programs that an equation calls: of a loop, a branch, a jitted function."""
    for value in equation.params.values():
        for each in value if isinstance(value, tuple) else (value,):
            jaxpr = getattr(each, "jaxpr", each)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr
