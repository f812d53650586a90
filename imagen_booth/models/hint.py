"""Where the rows of a batch are, for use inside a network."""

import math

import jax
from jax.sharding import PartitionSpec as P

BATCH_AXES = ("data", "fsdp")


def hint(x: jax.Array) -> jax.Array:
    """Constrains the leading (batch) axis to the mesh's batch axes.

    Identity when no mesh is set (`jax.set_mesh`), and for a batch that the mesh
    does not divide, such as a single picture: the compiler then decides alone.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % math.prod(mesh.shape[a] for a in BATCH_AXES):
        return x
    return jax.lax.with_sharding_constraint(x, P(BATCH_AXES))


def on_one_device() -> bool:
    """Whether all rows are on one device; on several they have to stay where they are.

    Code that merges the batch with other axes, or loops over it, asks this first.
    """
    return jax.sharding.get_abstract_mesh().size <= 1
