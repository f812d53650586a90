"""What pictures of the toybox show, read by a small network; and scores from that.

For the toybox the judge is what DINO and CLIP are for photographs: its subject
embeddings say whether two pictures show one individual, its words whether a picture
shows what a prompt asked for. It takes no part in any training but its own.
"""

import dataclasses
from collections.abc import Iterable, Sequence
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
from imagen_booth.toybox.grammar import TIER_B, Attributes
from imagen_booth.train_state import Params, flatten, unflatten
from imagen_booth.weights import native, tensor_files
from imagen_booth.weights.load import shipped_folder

NAME = "judge"
PLAIN, BARE = "plain backdrop", "nothing"
# The whole grammar, whatever the tier: what is not taught is not answered.
WORDS: dict[str, tuple[str, ...]] = {
    "noun": TIER_B.nouns,
    "colour": TIER_B.colours,
    "context": (PLAIN, *TIER_B.contexts),
    "accessory": (BARE, *TIER_B.accessories),
    "view": TIER_B.views,
    "style": TIER_B.styles,
}
CONFIG = JudgeConfig(words=tuple(WORDS.items()))
ROWS = 64  # pictures read together


@dataclasses.dataclass(frozen=True)
class Readings:
    """What the judge sees in N pictures.

    Attributes:
        words: its N answers by attribute, from ``WORDS``.
        sure: the probability of each answer, f32 [N] by attribute.
        subjects: unit-length embeddings of the individuals shown, f32 [N, E].
        looks: unit-length descriptions of the whole pictures, f32 [N, D].
    """

    words: dict[str, list[str]]
    sure: dict[str, np.ndarray]
    subjects: np.ndarray
    looks: np.ndarray


class Judge:
    """A trained judge.

    Args:
        params: of the network, without the name of the part.
        manifest: what its weight file says of it.
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
            images: N >= 1 pictures, uint8 [S, S, 3] each, S a multiple of 64, taken
                one by one; they are reduced to 64 px by the mean over the area of each
                pixel.

        Raises:
            InputError: a picture of another shape.
        """
        size = self.config.size
        small = [reduced(image, size) for image in images]
        parts = []
        for start in range(0, len(small), ROWS):
            some = np.stack(small[start : start + ROWS])
            # Filled up, so that nothing compiles again.
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
    """A square picture at a side of ``size`` pixels, by area; uint8 in and out.

    Raises:
        InputError: it is not square, or its side is no multiple of ``size``.
    """
    height, width = image.shape[:2]
    if height != width or height % size:
        raise InputError(
            f"a picture of {width} x {height} px cannot be judged; it should be a "
            f"square with a side of {size} px or a multiple of it"
        )
    scale = height // size
    blocks = image.reshape(size, scale, size, scale, 3).astype(np.float32)
    return np.round(blocks.mean((1, 3))).astype(np.uint8)


def shown(attributes: Attributes) -> dict[str, str]:
    """The word of every attribute that a judge knows.

    An open colour has no word and is left out.
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


def asked(attributes: Attributes) -> dict[str, str]:
    """The words that a prompt with these attributes asks for.

    What a caption can leave unsaid, colour and place, is asked only where said; a
    view, a style or something worn that is not said is the usual one or nothing.
    """
    words = shown(attributes)
    if attributes.context is None:
        del words["context"]
    return words


def answers(readings: Readings, number: int, wanted: Attributes) -> dict[str, bool]:
    """Whether a picture shows each word that is asked of it, see ``asked``."""
    return {
        name: readings.words[name][number] == word
        for name, word in asked(wanted).items()
    }


def agreement(readings: Readings, wanted: Sequence[Attributes]) -> dict[str, float]:
    """How often pictures show what was asked.

    Args:
        wanted: what each picture should show, see ``asked``.

    Returns:
        By attribute, the share of agreeing pictures among those of which it is asked;
        attributes that nobody asks for are left out. ``all``: the share of pictures
        that agree in everything asked of them.
    """
    right: dict[str, list[bool]] = {"all": []}
    for number, each in enumerate(wanted):
        found = answers(readings, number, each)
        for name, answer in found.items():
            right.setdefault(name, []).append(answer)
        right["all"].append(all(found.values()))
    return {name: float(np.mean(each)) for name, each in right.items()}


def subject_similarity(pictures: np.ndarray, photos: np.ndarray) -> float:
    """Mean cosine over all pairs of a picture and a photo, -1 to 1.

    With pictures of the tuned subject this is subject fidelity, DINO's part in
    DreamBooth (arXiv 2208.12242).

    Args:
        pictures, photos: ``Readings.subjects``, [N, E] and [M, E].
    """
    return float(np.mean(pictures @ photos.T))


def preservation(class_pictures: np.ndarray, photos: np.ndarray) -> float:
    """PRES: how much the class has drifted to the subject; lower is better.

    The mean similarity of the subject's photos to pictures of random individuals of
    its class, drawn by the tuned model for "a dog" (arXiv 2208.12242, table 3).

    Args:
        class_pictures, photos: ``Readings.subjects``, [N, E] and [M, E].
    """
    return subject_similarity(class_pictures, photos)


def diversity(looks: np.ndarray) -> float:
    """DIV: how different pictures of one subject for one prompt are; 0 to 2.

    The mean over all pairs of two pictures of one minus the cosine of their looks,
    which stands for LPIPS (arXiv 2208.12242, table 3); higher is better.

    Args:
        looks: ``Readings.looks`` [N, D], N >= 2.
    """
    assert len(looks) > 1, "one picture has no diversity"
    one, other = np.triu_indices(len(looks), 1)
    return float(np.mean(1.0 - (looks @ looks.T)[one, other]))


def write(folder: epath.Path, params: Params, entry: dict[str, Any]) -> epath.Path:
    """Writes a judge's weights as bf16, and its manifest.

    Args:
        params: of the network ``CONFIG``.
        entry: what the manifest says of it besides.
    """
    weights = {
        path: tensor_files.held(np.asarray(leaf))
        for path, leaf in flatten(params).items()
    }
    about = {"judge": dataclasses.asdict(CONFIG), **entry}
    return native.write(folder, NAME, weights, None, about, np.dtype(jnp.bfloat16))


def shipped() -> Judge | None:
    """The judge that ships with the package, if one does."""
    there = shipped_folder(NAME) / f"{NAME}.safetensors"
    return load() if there.exists() else None


def load(folder: epath.PathLike = "shipped") -> Judge:
    """The judge in a folder of weights, or the one that is shipped.

    Raises:
        InputError: no judge there, or a damaged file.
    """
    place = shipped_folder(NAME) if folder == "shipped" else epath.Path(folder)
    if not (place / f"{NAME}.safetensors").exists():
        raise InputError(
            f"{place / NAME}.safetensors does not exist, so there is no judge; train "
            "one by python -m imagen_booth.pretrain "
            "--config=configs/pretrain.py:toybox_judge --workdir=runs/judge, which "
            "puts it in runs/judge/weights"
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
