"""A part of a cascade, from wherever its weights are, onto the mesh."""

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
from imagen_booth.train_state import Params, flatten, unflatten
from imagen_booth.weights import deepfloyd, native, t5, tensor_files
from imagen_booth.weights.tensor_files import WeightFiles

log = logging.getLogger(__name__)

TOP = "sr1024"  # the stage that some cascades leave to the user


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
        network: what the weights say of the network, for the manifest.
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
        """For the manifest."""
        about = self.fingerprint, self.licence, self.pretrained, self.network
        return _origin(self.name, self.source, *about)


def _origin(
    name: str,
    source: str,
    fingerprint: str,
    licence: str,
    pretrained: bool,
    network: dict[str, Any] | None,
) -> dict[str, Any]:
    described = {} if network is None else {"network": network}
    return described | {
        "name": name,
        "source": source,
        "sha256": fingerprint,
        "licence": licence,
        "pretrained": pretrained,
    }


def shipped_folder(cascade: str) -> epath.Path:
    """Where the package keeps the weights of an embedded cascade."""
    return epath.Path(
        str(resources.files("imagen_booth.weights") / "shipped" / cascade)
    )


def shipped_vocabulary(cascade: Cascade) -> dict[str, list[str]]:
    """Words of the toybox that the shipped base stage knows, by field of ``Tier``.

    Empty where nothing ships, or where its manifest does not say.
    """
    folder = shipped_folder(cascade.name)
    if not (folder / native.MANIFEST).exists():
        return {}
    base = native.read_manifest(folder).get("parts", {}).get("base", {})
    return base.get("prior", {}).get("knows", {})


@functools.lru_cache(maxsize=64)
def network(cascade: Cascade, name: str, dtype: Any) -> tuple[Any, Callable[..., Any]]:
    """A part's network, with no weights yet; one, so that its programs compile once.

    Args:
        name: ``text`` or a stage's name.
        dtype: of the activations.

    Returns:
        ``init(key) -> params`` and ``apply(params, *inputs)``.
    """
    text = cascade.text
    config = text.encoder if name == "text" else cascade.stage(name).model
    module = build(config, dtype)

    def init(key: jax.Array) -> Params:
        return dict(module.init(key, *_example(cascade, name))["params"])

    def apply(params: Params, *inputs: Any) -> Any:
        if name != "text" and not text.masked:
            inputs = (*inputs[:3], None, *inputs[4:])
        return module.apply({"params": params}, *inputs)

    return init, apply


def _example(cascade: Cascade, name: str) -> tuple[Any, ...]:
    """Inputs of a part's network, for its parameters' shapes."""
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
    """The folder that a part's weights come from; None for random ones.

    Raises:
        InputError: no source is given, or nothing ships for this cascade.
    """
    field = f"config.weights.{name}"
    if not source:
        raise InputError(
            f"{field} is empty: the {cascade.name} cascade has no weights of its own. "
            "Give a folder of weights, or 'random' to try the machinery"
        )
    if source == "random":
        return None
    folder = shipped_folder(cascade.name) if source == "shipped" else epath.Path(source)
    if source == "shipped" and not folder.exists():
        raise InputError(
            f"{field}='shipped', but no weights ship for the {cascade.name} cascade; "
            "give a folder of weights, or 'random'"
        )
    return folder


def find(cascade: Cascade, name: str, source: str) -> WeightFiles | None:
    """A part's weights where ``source`` says, told by what lies there.

    A folder is one of ours (it has ``manifest.json``) or in diffusers' layout; a
    text encoder can also be in any form that ``t5.find`` reads.

    Returns:
        None for random weights.

    Raises:
        InputError: nothing of the kind there, or a damaged file.
    """
    place = locate(cascade, name, source)
    if place is None:
        return None
    if source == "shipped":
        _check_shipped(place, name)
    # First, because it reads gs:// without further packages.
    found = t5.find(place) if name == "text" else None
    if found is None and (place / native.MANIFEST).exists():
        found = native.find(place, name)
    elif found is None and name != "text" and deepfloyd.network_folder(place):
        found = deepfloyd.find(place, cascade.stage(name))
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
    """Raises InputError unless a part lies in the package as it was made."""
    parts = native.read_manifest(folder).get("parts", {})
    if name not in parts:
        raise InputError(
            f"config.weights.{name}='shipped', but of this cascade there ship only "
            f"{', '.join(parts) or 'no parts'}; give a folder of weights, or 'random'"
        )
    path = folder / f"{name}.safetensors"
    if not path.exists() or native.sha256(path) != parts[name].get("sha256"):
        wrong = "damaged" if path.exists() else "missing"
        raise InputError(f"{path} is {wrong}; install imagen_booth again")


def resolve(cascade: Cascade, sources: Mapping[str, str]) -> Cascade:
    """A cascade as its weights describe it; reads headers only.

    Files that say what their network is have the last word on it, and each stage
    takes the size that the stage below puts out. A cascade without a 1024 px stage
    gets one if there are weights for it.

    Args:
        sources: of ``text`` and every stage, as ``load`` takes them.

    Raises:
        InputError: missing weights, or parts that do not go together.
    """
    names = ["text", *(stage.name for stage in cascade.stages)]
    if TOP not in names and sources.get(TOP):
        names.append(TOP)
        below = cascade.stages[-1]
        top = dataclasses.replace(
            below, name=TOP, resolution=1024, low_resolution=below.resolution
        )
        cascade = cascade.having(top)
    for name in names:
        found = find(cascade, name, sources[name])
        if found is not None and found.describes is not None:
            cascade = cascade.having(found.describes)
    for below, stage in itertools.pairwise(cascade.stages):
        if stage.resolution % below.resolution:
            raise InputError(
                f"config.weights.{stage.name}={sources[stage.name]} draws "
                f"{stage.resolution} px, no multiple of the {below.resolution} px of "
                f"{below.name}"
            )
        cascade = cascade.having(
            dataclasses.replace(
                cascade.stage(stage.name), low_resolution=below.resolution
            )
        )
    for stage in cascade.stages:
        source = sources[stage.name]
        width = cascade.text.encoder.width
        if stage.model.text_width != width:
            raise InputError(
                f"config.weights.{stage.name}={source} reads text of width "
                f"{stage.model.text_width}, but config.weights.text={sources['text']} "
                f"gives {width}"
            )
        if cascade.text.masked and getattr(stage.model, "text_norm", "") == "group":
            raise InputError(
                f"config.weights.{stage.name}={source} is of the kind of DeepFloyd IF, "
                f"which the {cascade.name} cascade's text does not suit; use if_m"
            )
    return cascade


def weight_origin(cascade: Cascade, name: str, source: str) -> dict[str, Any]:
    """``Part.origin`` of a part, without its tensors."""
    about = _about(cascade, name, find(cascade, name, source))
    return _origin(name, source, *about)


def read_as(path: str, dtype: Any) -> Any:
    """The dtype in which a parameter is read by a network that computes in ``dtype``.

    Kernels and embedding tables are cast on every use; all others work in f32.

    Args:
        path: of the parameter, such as ``layers_0/mlp/wo/kernel``.
    """
    cast = path.rpartition("/")[2] in ("kernel", "embedding")
    return dtype if cast else jnp.float32


def to_frozen(params: Params, dtype: Any) -> Params:
    """Parameters in the dtypes in which they are read; works on shapes too.

    A network that is never trained gives the same numbers with these, in half the
    memory where ``dtype`` is bfloat16.
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
    """One part of a cascade with weights from ``source``.

    Args:
        cascade: as ``resolve`` gave it, if the weights describe themselves.
        name: ``text`` or a stage's name.
        source: ``shipped``, ``random`` (seeded by the part's name), or where weights
            are, see ``find``.
        rules: how parameters are cut, see ``sharding.spec_at``.
        train: keep f32 parameters, as training needs them; else what ``frozen`` makes
            of them.

    Raises:
        InputError: no such weights, or they do not fit the network or the rules.
    """
    init, apply = network(cascade, name, dtype)
    found = find(cascade, name, source)
    about = _about(cascade, name, found)
    abstract = jax.eval_shape(init, jax.random.key(0))
    if found is None:
        placement = sharding.tree_shardings(abstract, mesh, rules, kind_of(name))

        def start(key: jax.Array) -> Params:
            return init(key) if train else to_frozen(init(key), dtype)

        params = jax.jit(start, out_shardings=placement)(jax.random.key(_seed(name)))
        return Part(apply, params, name, source, *about)
    kept = None if train else functools.partial(read_as, dtype=dtype)
    params = tensor_files.place(
        found.matched(abstract), mesh, rules, kind_of(name), kept
    )
    return Part(apply, params, name, source, *about)


def kind_of(name: str) -> str:
    """``text`` or ``unet``, where the paths of a part's parameters begin."""
    return "text" if name == "text" else "unet"


def shapes(cascade: Cascade, name: str) -> Params:
    """Shapes of a part's parameters, f32."""
    init, _ = network(cascade, name, jnp.float32)
    return jax.eval_shape(init, jax.random.key(0))


def random_params(cascade: Cascade, name: str) -> Params:
    """The random weights of a part as numpy."""
    init, _ = network(cascade, name, jnp.float32)
    params = jax.jit(init)(jax.random.key(_seed(name)))
    return jax.tree.map(np.asarray, params)


def _seed(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest()[:7], 16)


def _about(cascade: Cascade, name: str, found: WeightFiles | None) -> tuple:
    """Fingerprint, licence, whether pretrained, and the network if it is described."""
    if found is not None:
        described = found.describes
        network = None if described is None else dataclasses.asdict(described)
        return found.fingerprint(), found.licence, found.pretrained, network
    text = f"random {_seed(name)} {cascade.text.encoder} {shapes(cascade, name)}"
    return hashlib.sha256(text.encode()).hexdigest(), "none", False, None


def place(
    tree: Params, mesh: jax.sharding.Mesh, rules: Sequence[sharding.Rule] = ()
) -> Params:
    """Host arrays of a stage's network as f32 on the mesh."""
    held = {path: tensor_files.held(leaf) for path, leaf in flatten(tree).items()}
    return tensor_files.place(held, mesh, rules)
