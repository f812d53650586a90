"""Loads a part of a cascade onto the mesh, from any source of weights.

A source is ``shipped``, ``random``, or a folder or file that ``find`` can read.
"""

import dataclasses
import functools
import hashlib
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from imagen_booth.cascade import Cascade
from imagen_booth.distributed import sharding
from imagen_booth.errors import InputError
from imagen_booth.models import build
from imagen_booth.models.layers import TEXT
from imagen_booth.rundir import programs
from imagen_booth.train_state import Params, flatten, unflatten
from imagen_booth.weights import (
    deepfloyd,
    fetch,
    host_copies,
    lora_files,
    native,
    t5,
    tensor_files,
)
from imagen_booth.weights.tensor_files import WeightFiles

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Part:
    """One network of a cascade with its weights.

    Attributes:
        apply: Pure forward function; its first argument is the parameters.
        params: Tree of f32 arrays on the mesh.
        name: ``text`` or a stage's name.
        source: Source of the weights, as the configuration names it.
        fingerprint: Digest that identifies the weights in caches and manifests.
        licence: Licence of the weights.
        pretrained: False for random weights.
        network: Description of the network by its weights, for the manifest.
    """

    apply: Callable[..., Any]
    params: Params
    name: str
    source: str
    fingerprint: str
    licence: str
    pretrained: bool
    network: dict[str, Any] | None = None

    def origin(self) -> dict[str, Any]:
        """Describes the weights for the manifest."""
        described = {} if self.network is None else {"network": self.network}
        return described | {
            "name": self.name,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "licence": self.licence,
            "pretrained": self.pretrained,
        }


def shipped_folder(cascade: str) -> epath.Path:
    """Returns the folder of the weights that ship with the package."""
    return epath.Path(
        str(resources.files("imagen_booth.weights") / "shipped" / cascade)
    )


def shipped_vocabulary(cascade: Cascade) -> dict[str, list[str]]:
    """Returns the toybox words that the shipped base stage was trained on.

    Returns:
        Words by field of ``toybox.grammar.Words``; empty if nothing ships or the
        manifest does not list them.
    """
    folder = shipped_folder(cascade.name)
    if not (folder / native.MANIFEST).exists():
        return {}
    base = native.read_manifest(folder).get("parts", {}).get("base", {})
    return base.get("prior", {}).get("knows", {})


@functools.lru_cache(maxsize=64)
def network(cascade: Cascade, name: str, dtype: Any) -> tuple[Any, Callable[..., Any]]:
    """Builds a part's network without weights.

    The result is cached, so that its programs compile once.

    Args:
        cascade: The cascade.
        name: ``text`` or a stage's name.
        dtype: Dtype of the activations.

    Returns:
        ``init(key) -> params`` and ``apply(params, *inputs)``.
    """
    text = cascade.text
    config = text.encoder if name == "text" else cascade.stage(name).model
    module = build(config, dtype)

    def init(key: jax.Array) -> Params:
        return dict(module.init(key, *_example(cascade, name))["params"])

    return init, Forward(module, masked=name == "text" or text.masked)


@dataclasses.dataclass(frozen=True)
class Forward:
    """The forward function of a network; its text describes what it computes.

    Attributes:
        module: The network.
        masked: Whether it reads the mask of its text.
    """

    module: Any
    masked: bool

    def __call__(self, params: Params, *inputs: Any, of_text: Any = None) -> Any:
        variables = {"params": params} | ({} if of_text is None else {TEXT: of_text})
        return self.module.apply(variables, *self._read(inputs))

    def read_text(self, params: Params, *inputs: Any) -> Any:
        """What a stage's network makes of the text alone, as ``of_text`` takes it.

        Jitted, it costs no more than that: the compiler leaves out all else.
        """
        made = self.module.apply(
            {"params": params}, *self._read(inputs), mutable=[TEXT]
        )
        return made[1].get(TEXT, {})  # nothing in a network that reads no text

    def _read(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return inputs if self.masked else (*inputs[:3], None, *inputs[4:])


def _example(cascade: Cascade, name: str) -> tuple[Any, ...]:
    """Makes inputs of a part's network, from which its parameters get their shapes."""
    text = cascade.text
    if name == "text":
        return jnp.zeros((1, text.length), jnp.int32), None
    stage = cascade.stage(name)
    size, row = stage.train_size, jnp.zeros((1,), jnp.float32)
    low = stage.low_resolution is not None
    return (
        jnp.zeros((1, size, size, 6 if low else 3), jnp.float32),
        row,
        jnp.zeros((1, text.length, stage.model.text_width), jnp.float32),
        jnp.ones((1, text.length), bool) if text.masked else None,
        row if low else None,
    )


def locate(cascade: Cascade, name: str, source: str) -> epath.Path | None:
    """Returns the folder of a part's weights; None for random weights.

    Raises:
        InputError: No source is given, or nothing ships for this cascade.
    """
    field = f"config.weights.{name}"
    if not source:
        how = (
            f"Run python -m imagen_booth.convert fetch {cascade.name}, or give"
            if cascade.name in fetch.CASCADES
            else "Give"
        )
        raise InputError(
            f"{field} is empty: the {cascade.name} cascade has no weights of its own. "
            f"{how} a folder of weights, or 'random' to try the programs"
        )
    if source == "random":
        return None
    if source != "shipped":
        return epath.Path(source)
    own = "" if name == "text" else cascade.stage(name).shipped
    folder = shipped_folder(own or cascade.name)
    if not folder.exists():
        raise InputError(
            f"{field}='shipped', but no weights ship for the {cascade.name} cascade; "
            "give a folder of weights, or 'random'"
        )
    return folder


def find(cascade: Cascade, name: str, source: str) -> WeightFiles | None:
    """Finds a part's weights and reads their headers.

    A folder has our layout, with a ``manifest.json``, or that of diffusers. A text
    encoder can also be in any form that ``t5.find`` reads.

    Returns:
        The weights, or None for random weights.

    Raises:
        InputError: There are no such weights, or a file is damaged.
    """
    place = locate(cascade, name, source)
    if place is None:
        return None
    if source == "shipped":
        _check_shipped(place, name)
    # Text comes first, because t5 reads gs:// without further packages.
    found = t5.find(place) if name == "text" else None
    if found is None and (place / native.MANIFEST).exists():
        found = native.find(place, name)
    elif found is None and name != "text" and deepfloyd.network_folder(place):
        found = deepfloyd.find(place, cascade.stage(name))
    if found is None and name != "text" and lora_files.place_of(place, name):
        raise InputError(
            f"config.weights.{name}={source} holds an adapter, not whole weights; give "
            f"the weights that it was trained on, and config.{name}.adapter.start="
            f"{source}"
        )
    if found is None:
        form = (
            "model.safetensors of a T5 encoder, or a T5X checkpoint"
            if name == "text"
            else "a unet folder in diffusers' layout"
        )
        raise InputError(
            f"config.weights.{name}={source} holds no weights of {name}; it should "
            f"have {native.MANIFEST} beside {name}.safetensors, or {form}"
        )
    return found


def _check_shipped(folder: epath.Path, name: str) -> None:
    """Raises InputError if a part does not ship or its file was changed."""
    parts = native.read_manifest(folder).get("parts", {})
    if name not in parts:
        raise InputError(
            f"config.weights.{name}='shipped', but this cascade ships only "
            f"{', '.join(parts) or 'no parts'}; give a folder of weights, or 'random'"
        )
    path = folder / f"{name}.safetensors"
    if not path.exists() or native.sha256(path) != parts[name].get("sha256"):
        wrong = "damaged" if path.exists() else "missing"
        raise InputError(f"{path} is {wrong}; install imagen_booth again")


def resolve(cascade: Cascade, sources: Mapping[str, str]) -> Cascade:
    """Returns a cascade with its networks as the weights describe them.

    Only headers are read. A description in the files replaces the cascade's own, and
    each stage's low resolution becomes the output size of the stage below. Upper stages
    whose source is ``none`` are left out.

    Args:
        cascade: The cascade by its name.
        sources: Sources of ``text`` and of every stage, as ``load`` takes them.

    Raises:
        InputError: Weights are missing, or parts do not fit together.
    """
    cascade = cascade.without(sources)
    for name in ("text", *(stage.name for stage in cascade.stages)):
        found = find(cascade, name, sources[name])
        if found is not None and found.describes is not None:
            cascade = cascade.having(found.describes)
    for below, stage in itertools.pairwise(cascade.stages):
        if stage.resolution % below.resolution:
            raise InputError(
                f"config.weights.{stage.name}={sources[stage.name]} outputs "
                f"{stage.resolution} px, which is not a multiple of the "
                f"{below.resolution} px of {below.name}"
            )
        cascade = cascade.having(
            dataclasses.replace(
                cascade.stage(stage.name), low_resolution=below.resolution
            )
        )
    for stage in cascade.stages:
        source = sources[stage.name]
        width = cascade.text.encoder.width
        reads_text = getattr(stage.model, "reads_text", True)
        if reads_text and stage.model.text_width != width:
            raise InputError(
                f"config.weights.{stage.name}={source} reads text of width "
                f"{stage.model.text_width}, but config.weights.text={sources['text']} "
                f"gives {width}"
            )
        if cascade.text.masked and getattr(stage.model, "text_norm", "") == "group":
            raise InputError(
                f"config.weights.{stage.name}={source} is a DeepFloyd IF network, "
                f"which does not fit the text of the {cascade.name} cascade; use if_m"
            )
    return cascade


def weight_origin(cascade: Cascade, name: str, source: str) -> dict[str, Any]:
    """Returns ``Part.origin`` of a part without loading its tensors."""
    found = find(cascade, name, source)
    return _part(cascade, name, source, found, apply=None, params={}).origin()


def read_as(path: str, dtype: Any) -> Any:
    """Returns the dtype in which a network that computes in ``dtype`` uses a parameter.

    Networks cast kernels and embedding tables to ``dtype`` on every use; all other
    parameters, and the last layer of a U-Net, are used in f32.

    Args:
        path: Path of the parameter, such as ``layers_0/mlp/wo/kernel``.
        dtype: Dtype of the activations.
    """
    module, _, leaf = path.rpartition("/")
    cast = leaf in ("kernel", "embedding") and module != "conv_out"
    return dtype if cast else jnp.float32


def to_frozen(params: Params, dtype: Any) -> Params:
    """Casts parameters, or their shapes, to the dtypes in which they are used.

    A network that is never trained gives the same numbers with these, in half the
    memory if ``dtype`` is bfloat16.
    """
    flat = flatten(params)
    return unflatten(
        {path: leaf.astype(read_as(path, dtype)) for path, leaf in flat.items()}
    )


def load(
    cascade: Cascade,
    name: str,
    source: str,
    mesh: jax.sharding.Mesh,
    dtype: Any,
    rules: Sequence[sharding.Rule] = (),
    *,
    train: bool = True,
) -> Part:
    """Loads one part of a cascade; once for all runs in ``host_copies.shared``.

    Args:
        cascade: The cascade, from ``resolve`` if the weights describe themselves.
        name: ``text`` or a stage's name.
        source: ``shipped``, ``random`` (seeded by the part's name), or the place of the
            weights, see ``find``.
        mesh: Devices to place the parameters on.
        dtype: Dtype of the activations.
        rules: Sharding rules, see ``sharding.spec_at``.
        train: Whether to keep all parameters in f32, as training needs them; otherwise
            they are cast by ``to_frozen``.

    Raises:
        InputError: There are no such weights, or they do not fit the network or the
            rules.
    """
    key = (cascade, name, source, mesh, dtype, tuple(rules), train)
    return host_copies.through(key, lambda: _load(*key))


def _load(
    cascade: Cascade,
    name: str,
    source: str,
    mesh: jax.sharding.Mesh,
    dtype: Any,
    rules: Sequence[sharding.Rule],
    train: bool,
) -> Part:
    init, apply = network(cascade, name, dtype)
    found = find(cascade, name, source)
    abstract = shapes(cascade, name)
    if found is None:
        shardings = sharding.tree_shardings(abstract, mesh, rules, kind_of(name))

        def start(key: jax.Array) -> Params:
            return init(key) if train else to_frozen(init(key), dtype)

        params = jax.jit(start, out_shardings=shardings)(jax.random.key(_seed(name)))
    else:
        kept = None if train else functools.partial(read_as, dtype=dtype)
        weights = found.matched(abstract)
        params = tensor_files.place(weights, mesh, rules, kind_of(name), kept)
    return _part(cascade, name, source, found, apply, params)


def kind_of(name: str) -> str:
    """Returns ``text`` or ``unet``, with which sharding rules' paths begin."""
    return "text" if name == "text" else "unet"


@functools.lru_cache(maxsize=64)
def shapes(cascade: Cascade, name: str) -> Params:
    """Returns the shapes of a part's f32 parameters; traced once, then remembered."""
    init, _ = network(cascade, name, jnp.float32)
    return programs.remember(
        lambda: jax.eval_shape(init, jax.random.key(0)),
        programs.describe("shapes", cascade, name),
    )


def random_params(cascade: Cascade, name: str) -> Params:
    """Returns the random weights of a part as numpy arrays."""
    init, _ = network(cascade, name, jnp.float32)
    params = jax.jit(init)(jax.random.key(_seed(name)))
    return jax.tree.map(np.asarray, params)


def _seed(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest()[:7], 16)


def _part(
    cascade: Cascade,
    name: str,
    source: str,
    found: WeightFiles | None,
    apply: Any,
    params: Params,
) -> Part:
    """Makes a part with the origin of its weights; ``found`` is None for random."""
    if found is None:
        text = f"random {_seed(name)} {cascade.text.encoder} {shapes(cascade, name)}"
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
    else:
        fingerprint = found.fingerprint()
    described = None if found is None else found.describes
    return Part(
        apply=apply,
        params=params,
        name=name,
        source=source,
        fingerprint=fingerprint,
        licence="none" if found is None else found.licence,
        pretrained=found is not None and found.pretrained,
        network=None if described is None else dataclasses.asdict(described),
    )


def place(
    tree: Params,
    mesh: jax.sharding.Mesh,
    rules: Sequence[sharding.Rule] = (),
    dtype: Any = jnp.float32,
) -> Params:
    """Places host arrays of a stage's network on the mesh.

    Args:
        tree: Tree of numpy arrays.
        mesh: Devices to place them on.
        rules: Sharding rules, see ``sharding.spec_at``.
        dtype: Dtype of the activations of a network that is not trained; f32
            otherwise. See ``read_as``.
    """
    held = {path: tensor_files.held(leaf) for path, leaf in flatten(tree).items()}
    kept = functools.partial(read_as, dtype=dtype)
    return tensor_files.place(held, mesh, rules, kept=kept)


def frozen_shapes(cascade: Cascade, name: str, dtype: Any) -> Params:
    """Returns the shapes of a part's parameters as ``to_frozen`` casts them."""
    return jax.eval_shape(
        functools.partial(to_frozen, dtype=dtype), shapes(cascade, name)
    )
