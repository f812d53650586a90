"""Parts of a cascade that are read once, and placed anew for each run."""

import jax
import jax.numpy as jnp
import numpy as np

from imagen_booth.cascade import by_name
from imagen_booth.distributed import sharding
from imagen_booth.weights import host_copies
from imagen_booth.weights import load as loading
from imagen_booth.weights.load import load


def test_each_run_gets_the_weights_as_they_were_and_files_are_read_once(monkeypatch):
    """Also after a run has consumed its arrays, on several devices."""
    cascade, mesh = by_name("tiny"), sharding.make_mesh(2, 2)
    given = cascade, "base", "random", mesh, jnp.dtype("float32")
    plain, loads, real = load(*given), [], loading._load

    def count(*inputs):
        loads.append(inputs[1])
        return real(*inputs)

    monkeypatch.setattr(loading, "_load", count)
    consume = jax.jit(
        lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0
    )
    with host_copies.shared():
        for _ in range(3):
            part = load(*given)
            assert part.origin() == plain.origin()
            for one, other in zip(
                jax.tree.leaves(plain.params), jax.tree.leaves(part.params), strict=True
            ):
                assert one.sharding == other.sharding
                np.testing.assert_array_equal(one, other)
            jax.block_until_ready(consume(part.params))
        assert loads == ["base"]
        load(*given, train=False)
        assert loads == ["base", "base"]
    load(*given)
    assert loads == ["base", "base", "base"]
