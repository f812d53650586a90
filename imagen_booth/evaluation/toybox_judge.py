"""The toybox judge: what a picture of the toybox shows, and scores from its readings.

The judge does for the toybox what DINO and CLIP do for photographs: its subject
embeddings say whether two pictures show one individual, its words whether a picture
shows what a prompt names. Only its own training uses it.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from imagen_booth.config import build
from imagen_booth.data.pipeline import to_unit
from imagen_booth.errors import InputError
from imagen_booth.models.toybox_judge import Judge as Network
from imagen_booth.models.toybox_judge import JudgeConfig
from imagen_booth.toybox import grammar
from imagen_booth.toybox.grammar import Attributes
from imagen_booth.train_state import Params, flatten, unflatten
from imagen_booth.weights import native, tensor_files
from imagen_booth.weights.load import shipped_folder

NAME = "judge"
PLAIN, BARE = "plain backdrop", "nothing"
# Words of a new judge. The shipped one has heads for more, which it never answers with.
WORDS: dict[str, tuple[str, ...]] = {
    "noun": grammar.WORDS.nouns,
    "colour": grammar.WORDS.colours,
    "context": (PLAIN, *grammar.WORDS.contexts),
    "accessory": (BARE, *grammar.WORDS.accessories),
    "view": grammar.WORDS.views,
    "style": grammar.WORDS.styles,
}
CONFIG = JudgeConfig(words=tuple(WORDS.items()))
ROWS = 64  # pictures in a batch


@dataclasses.dataclass(frozen=True)
class Readings:
    """The judge's output for N pictures.

    Attributes:
        words: By attribute, the N most probable words of ``WORDS``.
        sure: By attribute, the probabilities of those words, f32 [N].
        subjects: Unit-length embeddings of the individuals shown, f32 [N, E].
        looks: Unit-length descriptions of the whole pictures, f32 [N, D].
    """

    words: dict[str, list[str]]
    sure: dict[str, np.ndarray]
    subjects: np.ndarray
    looks: np.ndarray


class Judge:
    """A trained judge.

    Args:
        params: Parameters of the network, without the name of the part.
        config: Shape of the network, and its words.
        manifest: The judge's entry in the manifest of its weights.
    """

    def __init__(
        self,
        params: Params,
        config: JudgeConfig = CONFIG,
        manifest: dict[str, Any] | None = None,
    ):
        self.config = config
        self.manifest = manifest or {}
        self._params = params
        network = Network(config)
        self._apply = jax.jit(lambda params, x: network.apply({"params": params}, x))

    def read(self, images: Iterable[np.ndarray]) -> Readings:
        """Reads pictures.

        Args:
            images: N >= 1 pictures, uint8 [S, S, 3] each, S a multiple of 64. They are
                taken one by one and reduced to 64 px by averaging over areas.

        Raises:
            InputError: A picture has another shape.
        """
        size = self.config.size
        small = [reduced(image, size) for image in images]
        parts = []
        for start in range(0, len(small), ROWS):
            some = np.stack(small[start : start + ROWS])
            # Padded to one shape, so that the network compiles once.
            spare = ((0, ROWS - len(some)), (0, 0), (0, 0), (0, 0))
            out = self._apply(self._params, to_unit(np.pad(some, spare)))
            parts.append(jax.tree.map(np.asarray, out))
        logits, subjects, looks = jax.tree.map(
            lambda *each: np.concatenate(each)[: len(small)], *parts
        )
        words, sure = {}, {}
        for name, known in self.config.words:
            chances = np.asarray(jax.nn.softmax(logits[name]))
            words[name] = [known[best] for best in chances.argmax(1)]
            sure[name] = chances.max(1)
        return Readings(words, sure, subjects, looks)


def reduced(image: np.ndarray, size: int) -> np.ndarray:
    """A square uint8 picture, reduced to a side of ``size`` pixels by averaging.

    Raises:
        InputError: It is not square, or its side is not a multiple of ``size``.
    """
    height, width = image.shape[:2]
    if height != width or height % size:
        raise InputError(
            f"a picture of {width} x {height} px cannot be judged; it must be "
            f"a square with a side of {size} px or a multiple of it"
        )
    scale = height // size
    blocks = image.reshape(size, scale, size, scale, 3).astype(np.float32)
    return np.round(blocks.mean((1, 3))).astype(np.uint8)


def shown(attributes: Attributes) -> dict[str, str]:
    """The word of every attribute that the judge reads.

    A colour that is not set has no word and is left out.
    """
    found = {
        "noun": attributes.noun,
        "colour": attributes.colour,
        "context": attributes.context or PLAIN,
        "accessory": attributes.accessory or BARE,
        "view": attributes.view,
        "style": attributes.style,
    }
    return {name: word for name, word in found.items() if word is not None}


def requested_words(attributes: Attributes) -> dict[str, str]:
    """The words that a picture for these attributes should show.

    A prompt without a colour or a place accepts any. A prompt without a view, a style
    or an accessory implies the default view, the default style and no accessory.
    """
    words = shown(attributes)
    if attributes.context is None:
        del words["context"]
    return words


def answers(readings: Readings, number: int, wanted: Attributes) -> dict[str, bool]:
    """Whether a picture shows each of the ``requested_words`` of its prompt.

    Args:
        readings: Readings of several pictures.
        number: Index of the picture.
        wanted: Attributes of its prompt.
    """
    return {
        name: readings.words[name][number] == word
        for name, word in requested_words(wanted).items()
    }


def diversity(looks: np.ndarray) -> float:
    """DIV of pictures of one subject for one prompt, 0 to 2; higher is better.

    The mean over all pairs of one minus the cosine of two pictures' descriptions. It
    takes the place of LPIPS (arXiv 2208.12242, table 3).

    Args:
        looks: ``Readings.looks`` [N, D], N >= 2.
    """
    assert len(looks) > 1, "one picture has no diversity"
    one, other = np.triu_indices(len(looks), 1)
    return float(np.mean(1.0 - (looks @ looks.T)[one, other]))


def write(folder: epath.Path, params: Params, entry: dict[str, Any]) -> epath.Path:
    """Writes a judge's weights as bf16, and its manifest.

    Args:
        folder: Folder of the files.
        params: Parameters of the network of ``CONFIG``.
        entry: Further fields of its entry in the manifest.
    """
    weights = {
        path: tensor_files.held(np.asarray(leaf))
        for path, leaf in flatten(params).items()
    }
    about = {"judge": dataclasses.asdict(CONFIG), **entry}
    return native.write(folder, NAME, weights, None, about, np.dtype(jnp.bfloat16))


@functools.cache  # the page checks photos many times
def shipped() -> Judge | None:
    """The judge that ships with the package; None if there is none."""
    there = shipped_folder(NAME) / f"{NAME}.safetensors"
    return load() if there.exists() else None


def load(folder: epath.PathLike = "shipped") -> Judge:
    """The judge in a folder of weights, or the shipped one.

    Raises:
        InputError: The folder has no judge, or a file is damaged.
    """
    place = shipped_folder(NAME) if folder == "shipped" else epath.Path(folder)
    if not (place / f"{NAME}.safetensors").exists():
        raise InputError(
            f"{place / NAME}.safetensors does not exist, so there is no judge; "
            "train one with python -m imagen_booth.pretrain "
            "--config=configs/pretrain.py:toybox_judge --workdir=runs/judge, which "
            "writes it to runs/judge/weights"
        )
    about = native.read_manifest(place).get("parts", {}).get(NAME, {})
    if "judge" not in about:
        raise InputError(
            f"{place / native.MANIFEST} does not describe {NAME}.safetensors"
        )
    where = f"{place / native.MANIFEST}: {NAME}"
    config = build.build(JudgeConfig, about["judge"], where)
    path = place / f"{NAME}.safetensors"
    found = native.find(place, NAME)
    if native.sha256(path) != about.get("sha256"):
        raise InputError(
            f"{path} is not the file that {native.MANIFEST} describes; copy both again"
        )
    side = jax.ShapeDtypeStruct((1, config.size, config.size, 3), jnp.float32)
    shapes = jax.eval_shape(Network(config).init, jax.random.key(0), side)["params"]
    params = {
        name: jnp.asarray(tensor.whole(), jnp.float32)
        for name, tensor in found.matched(shapes).items()
    }
    return Judge(unflatten(params), config, about)
