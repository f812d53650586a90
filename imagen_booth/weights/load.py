"""A part of a cascade, from wherever its weights are, onto the mesh."""

import dataclasses
import hashlib
from collections.abc import Callable
from importlib import resources
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from imagen_booth import sharding
from imagen_booth.cascade import Cascade
from imagen_booth.errors import InputError
from imagen_booth.models import build
from imagen_booth.state import Params
from imagen_booth.weights import own


@dataclasses.dataclass(frozen=True)
class Part:
    """One network of a cascade with its weights.

    Attributes:
        apply: the pure forward function, parameters first.
        params: tree of f32 arrays on the mesh.
        name: ``text`` or a stage's name.
        source: where the weights came from.
        fingerprint: identifies the weights, for caches and manifests.
        licence: of the weights.
        pretrained: False for random weights.
    """

    apply: Callable[..., Any]
    params: Params
    name: str
    source: str
    fingerprint: str
    licence: str
    pretrained: bool

    def origin(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "name": self.name,
            "source": self.source,
            "sha256": self.fingerprint,
            "licence": self.licence,
            "pretrained": self.pretrained,
        }


def shipped_folder(cascade: str) -> epath.Path:
    """Where the package keeps the weights of an embedded cascade."""
    return epath.Path(
        str(resources.files("imagen_booth.weights") / "shipped" / cascade)
    )


def network(cascade: Cascade, name: str, dtype: Any) -> tuple[Any, Callable[..., Any]]:
    """A part's network, with no weights yet.

    Args:
        name: ``text`` or a stage's name.
        dtype: of the activations.

    Returns:
        ``init(key) -> params`` and ``apply(params, *inputs)``.
    """
    text = cascade.text
    tokens = jnp.zeros((1, text.length), jnp.int32)
    if name == "text":
        inputs: tuple[Any, ...] = (tokens, None)
        config: Any = text.encoder
    else:
        stage = cascade.stage(name)
        config = stage.model
        size, row = stage.train_size, jnp.zeros((1,), jnp.float32)
        low = stage.low_resolution is not None
        inputs = (
            jnp.zeros((1, size, size, 6 if low else 3), jnp.float32),
            row,
            jnp.zeros((1, text.length, text.encoder.width), jnp.float32),
            jnp.ones((1, text.length), bool),
            row if low else None,
        )
    module = build(config, dtype)

    def init(key: jax.Array) -> Params:
        return dict(module.init(key, *inputs)["params"])

    def apply(params: Params, *inputs: Any) -> Any:
        return module.apply({"params": params}, *inputs)

    return init, apply


def load(
    cascade: Cascade, name: str, source: str, mesh: jax.sharding.Mesh, dtype: Any
) -> Part:
    """One part of a cascade with weights from ``source``.

    Args:
        name: ``text`` or a stage's name.
        source: ``shipped``, ``random`` (seeded by the part's name), or a folder.

    Raises:
        InputError: no such weights, or they do not fit the network.
    """
    field = f"config.weights.{name}"
    init, apply = network(cascade, name, dtype)
    abstract = jax.eval_shape(init, jax.random.key(0))
    placement = sharding.tree_shardings(abstract, mesh)
    if not source:
        raise InputError(
            f"{field} is empty: the {cascade.name} cascade has no weights of its own. "
            "Give a folder of weights, or 'random' to try the machinery"
        )
    if source == "random":
        seed = int(hashlib.sha256(name.encode()).hexdigest()[:7], 16)
        params = jax.jit(init, out_shardings=placement)(jax.random.key(seed))
        fingerprint = hashlib.sha256(
            f"random {seed} {cascade.text.encoder} {abstract}".encode()
        ).hexdigest()
        return Part(apply, params, name, source, fingerprint, "none", False)
    folder = shipped_folder(cascade.name) if source == "shipped" else epath.Path(source)
    if source == "shipped" and not folder.exists():
        raise InputError(
            f"{field}='shipped', but no weights ship for the {cascade.name} cascade; "
            "give a folder of weights, or 'random'"
        )
    manifest = own.read_manifest(folder)
    path = folder / f"{name}.safetensors"
    tree = own.load(path)
    own.check(tree, abstract, str(path))
    params = jax.tree.map(
        lambda leaf, where: jax.device_put(leaf.astype(np.float32), where),
        tree,
        placement,
    )
    return Part(
        apply,
        params,
        name,
        source,
        own.sha256(path),
        manifest.get("licence", "not stated"),
        manifest.get("pretrained", True),
    )
