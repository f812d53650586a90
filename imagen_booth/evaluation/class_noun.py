"""What the photos seem to show, for the class noun.

The paper takes the noun from the user or from a classifier, and shows that a wrong one
is fought by the prior for the rest of the training. Here the classifier is CLIP without
training (arXiv 2103.00020, section 3.1): each photo is held against "a photo of a NOUN"
for every noun below and the one that was given. For the toybox it is the judge.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from etils import epath

from imagen_booth.evaluation import features, scores
from imagen_booth.evaluation.toybox_judge import WORDS, Judge
from imagen_booth.text.prompt_suites import DREAMBENCH_CLASSES
from imagen_booth.text.prompts import fill
from imagen_booth.weights import vision
from imagen_booth.weights.load import Part

TEMPLATE = "a photo of a [N]"
SCALE = 100.0  # of cosines before the softmax: what all of OpenAI's CLIPs learnt
FAR = 0.1  # a noun with less than this share of the best one's probability is far
_MORE = """
airplane apple armchair baby bag bear bed bee bench bicycle bird boat book bottle box
bracelet bread building bus butterfly cake camera cap chair chicken coat cow cup deer
desk doll door dragon dress drum elephant face figurine fish flower fork fox frog
giraffe goat goose guitar hamster handbag hat helicopter helmet horse house jacket jar
jug kettle key keyboard knife lamp laptop lion lizard man mask mirror monkey
motorcycle mouse necklace owl painting parrot pen penguin phone piano pig pillow pizza
plant plate pumpkin ring scarf sculpture sheep shell ship shirt shoe skateboard snail
snake sofa spoon squirrel statue sunglasses sword table telescope tiger train tree
truck turtle umbrella violin wallet watch whale wolf woman
"""
NOUNS = tuple(
    dict.fromkeys((*DREAMBENCH_CLASSES.values(), *WORDS["noun"], *_MORE.split()))
)


@dataclasses.dataclass(frozen=True)
class NounGuess:
    """What a classifier sees in the photos.

    Attributes:
        best: the noun that fits best.
        chances: probability of each noun, the mean over photos, largest first.
        known: whether the given noun is among them.
        far: whether the given noun is far from what is seen.
    """

    best: str
    chances: dict[str, float]
    known: bool
    far: bool

    def sentence(self, given: str) -> str:
        """For the user."""
        first = [f"{noun} ({share:.0%})" for noun, share in self.chances.items()][:3]
        said = f"the photos look like {', '.join(first)}"
        if not given:
            return f"{said}; give --config.subject.class_noun={self.best}"
        if not self.known:
            return f"{said}; whether that is a {given} cannot be told by the judge"
        if not self.far:
            return f"{said}; config.subject.class_noun={given!r} fits"
        return (
            f"{said} and not like config.subject.class_noun={given!r} "
            f"({self.chances[given]:.0%}): with a wrong noun the prior works against "
            f"the subject; give --config.subject.class_noun={self.best}, unless the "
            "classifier is mistaken"
        )


def guess_by_clip(
    photos: Sequence[np.ndarray],
    given: str,
    clip: Part,
    *,
    cache: epath.Path,
    mesh: jax.sharding.Mesh,
) -> NounGuess:
    """What CLIP sees.

    Args:
        photos: uint8 [H, W, 3] each, at least one.
        given: the user's noun, or "".
        clip: of ``vision.load``.
    """
    nouns = list(dict.fromkeys((*NOUNS, given) if given else NOUNS))
    pictures = features.of_images(clip, photos, cache=cache, mesh=mesh)
    texts = features.of_prompts(
        vision.text_tower(clip),
        [fill(TEMPLATE, "", noun) for noun in nouns],
        cache=cache,
        mesh=mesh,
    )
    return _seen(dict(zip(nouns, _softmax(pictures, texts), strict=True)), given)


def guess_by_judge(photos: Sequence[np.ndarray], given: str, judge: Judge) -> NounGuess:
    """What the judge of the toybox sees.

    Args:
        photos: as ``Judge.read`` takes them.
        given: the user's noun, or "".
    """
    readings = judge.read(photos)
    votes = dict.fromkeys(WORDS["noun"], 0.0)
    for word, sure in zip(readings.words["noun"], readings.sure["noun"], strict=True):
        votes[word] += float(sure) / len(photos)
    return _seen(votes, given)


def _softmax(pictures: np.ndarray, texts: np.ndarray) -> list[float]:
    logits = SCALE * scores.cosines(pictures, texts)
    chances = np.exp(logits - logits.max(1, keepdims=True))
    return (chances / chances.sum(1, keepdims=True)).mean(0).tolist()


def _seen(chances: Mapping[str, float], given: str) -> NounGuess:
    ordered = dict(sorted(chances.items(), key=lambda each: -each[1]))
    best = next(iter(ordered))
    known = given in ordered
    return NounGuess(
        best, ordered, known, known and ordered[given] < FAR * ordered[best]
    )
