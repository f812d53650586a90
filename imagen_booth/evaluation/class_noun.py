"""The class noun that fits the photos best, by a classifier.

The paper takes the class noun from the user or from a classifier, and shows that the
prior works against a wrong one for the rest of the training. Here the classifier is
zero-shot CLIP (arXiv 2103.00020, section 3.1): each photo is compared with "a photo of
a NOUN" for every noun below and the user's noun. For the toybox it is the judge.
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
SCALE = 100.0  # multiplies cosines before the softmax, as learned by OpenAI's CLIPs
FAR = 0.1  # a noun is far below this share of the best noun's probability
_MORE = """
airplane apple armchair baby bag bear bed bee bench bicycle bird boat book bottle box
bracelet bread building bus butterfly cake camera cap chair chicken coat cow cup deer
desk doll door dragon dress drum elephant face figurine fish flower fork fox frog
giraffe goat goose guitar hamster handbag hat helicopter helmet horse house jacket jar
jug kettle key keyboard knife lamp laptop lion lizard man mask mirror monkey motorcycle
mouse mug necklace owl painting parrot pen penguin phone piano pig pillow pizza plant
plate pumpkin rabbit ring robot scarf sculpture sheep shell ship shirt shoe skateboard
snail snake sofa spoon squirrel statue sunglasses sword table telescope tiger train tree
truck turtle umbrella violin wallet watch whale wolf woman
"""
NOUNS = tuple(
    dict.fromkeys((*DREAMBENCH_CLASSES.values(), *WORDS["noun"], *_MORE.split()))
)


@dataclasses.dataclass(frozen=True)
class NounGuess:
    """A classifier's probabilities of nouns for the photos.

    Attributes:
        best: The most probable noun.
        chances: Probability of each noun, averaged over photos, largest first.
        known: Whether the user's noun is among them.
        far: Whether the user's noun is far less probable than the best.
    """

    best: str
    chances: dict[str, float]
    known: bool
    far: bool

    def sentence(self, given: str, name: str = "subject") -> str:
        """The guess in words, and what to do with the user's noun.

        Args:
            given: The noun.
            name: Setting of the subject.
        """
        setting = f"config.{name}.class_noun"
        first = [f"{noun} ({share:.0%})" for noun, share in self.chances.items()][:3]
        guess = f"the photos look like {', '.join(first)}"
        if not given:
            return f"{guess}; give --{setting}={self.best}"
        if not self.known:
            return f"{guess}; the judge does not know the noun {given!r}"
        if not self.far:
            return f"{guess}; {setting}={given!r} fits"
        return (
            f"{guess} and not like {setting}={given!r} "
            f"({self.chances[given]:.0%}): with a wrong noun the prior works against "
            f"the subject; give --{setting}={self.best}, unless the classifier is wrong"
        )


def guess_by_clip(
    photos: Sequence[np.ndarray],
    given: str,
    clip: Part,
    *,
    cache: epath.Path,
    mesh: jax.sharding.Mesh,
) -> NounGuess:
    """The guess of zero-shot CLIP.

    Args:
        photos: At least one photo, uint8 [H, W, 3] each.
        given: The user's noun, or "".
        clip: CLIP, as ``vision.load`` returns it.
        cache: Folder of the feature cache.
        mesh: Devices of the network.
    """
    nouns = list(dict.fromkeys((*NOUNS, given) if given else NOUNS))
    pictures = features.of_images(clip, photos, cache=cache, mesh=mesh)
    texts = features.of_prompts(
        vision.text_tower(clip),
        [fill(TEMPLATE, "", noun) for noun in nouns],
        cache=cache,
        mesh=mesh,
    )
    return _guess(dict(zip(nouns, _softmax(pictures, texts), strict=True)), given)


def guess_by_judge(photos: Sequence[np.ndarray], given: str, judge: Judge) -> NounGuess:
    """The guess of the toybox judge.

    Args:
        photos: Photos, as ``Judge.read`` takes them.
        given: The user's noun, or "".
        judge: The judge.
    """
    readings = judge.read(photos)
    votes = dict.fromkeys(dict(judge.config.words)["noun"], 0.0)
    for word, sure in zip(readings.words["noun"], readings.sure["noun"], strict=True):
        votes[word] += float(sure) / len(photos)
    return _guess(votes, given)


def _softmax(pictures: np.ndarray, texts: np.ndarray) -> list[float]:
    logits = SCALE * scores.cosines(pictures, texts)
    chances = np.exp(logits - logits.max(1, keepdims=True))
    return (chances / chances.sum(1, keepdims=True)).mean(0).tolist()


def _guess(chances: Mapping[str, float], given: str) -> NounGuess:
    ordered = dict(sorted(chances.items(), key=lambda each: -each[1]))
    best = next(iter(ordered))
    known = given in ordered
    return NounGuess(
        best, ordered, known, known and ordered[given] < FAR * ordered[best]
    )
