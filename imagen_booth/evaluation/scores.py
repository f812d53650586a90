"""The scores of DreamBooth's protocol, from features, with intervals.

====== ======================================================== =================
DINO   generated pictures like the photos, by DINO's features   ``fidelity``
CLIP-I the same by CLIP's                                       ``fidelity``
CLIP-T generated pictures like their prompts, by CLIP's         ``prompt_fidelity``
PRES   class pictures like the photos, by DINO's; lower is      ``fidelity``
       better: the class has not become the subject
DIV    pictures of one prompt unlike each other, by LPIPS       ``diversity``
====== ======================================================== =================

The paper does not say which CLIP, whether ``[V]`` stays in the prompt, nor LPIPS's
backbone; whoever publishes these numbers says which were taken.

Source: Ruiz et al., arXiv 2208.12242, section 4.1 and Table 3.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

DRAWS = 2000  # of the bootstrap
LEVEL = 0.95  # share of them inside the interval


@dataclasses.dataclass(frozen=True)
class Score:
    """A mean with its bootstrap interval.

    Attributes:
        mean: of the groups' means.
        low, high: the middle 95 % of redrawn means.
        groups: how many groups there are.
        values: how many values in all.
    """

    mean: float
    low: float
    high: float
    groups: int
    values: int


def cosines(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Cosine of the angle of all pairs, f64 [N, M] of features [N, F] and [M, F]."""
    return _unit(rows) @ _unit(columns).T


def among(photos: np.ndarray) -> np.ndarray:
    """How like the other photos each photo is: its mean cosine to them.

    Args:
        photos: features [M, F], M >= 2.

    Returns:
        f64 [M], -1 to 1.
    """
    alike = cosines(photos, photos)
    np.fill_diagonal(alike, 0.0)
    return alike.sum(1) / (len(photos) - 1)


def fidelity(pictures: np.ndarray, photos: np.ndarray) -> np.ndarray:
    """How like the photos each picture is: DINO, CLIP-I and PRES.

    Args:
        pictures: features [N, F] of generated pictures of the subject, or, for PRES, of
            the class alone.
        photos: features [M, F] of the subject's photos.

    Returns:
        f64 [N]: each picture's mean cosine to all photos, -1 to 1.
    """
    return cosines(pictures, photos).mean(1)


def prompt_fidelity(pictures: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """How like its prompt each picture is: CLIP-T.

    Args:
        pictures: features [N, F].
        prompts: features [N, F] of the prompt of each.

    Returns:
        f64 [N]: cosines, -1 to 1.
    """
    return (_unit(pictures) * _unit(prompts)).sum(1)


def diversity(distances: np.ndarray) -> float:
    """How unlike each other one prompt's pictures are: DIV.

    Args:
        distances: LPIPS [N, N], N at least 2.

    Returns:
        The mean over pairs of different pictures.
    """
    return float(distances[_pairs(len(distances))].mean(dtype=np.float64))


def agreement(photos: np.ndarray) -> float:
    """How like each other a subject's photos are, the paper's row "Real images".

    Args:
        photos: features [M, F], M at least 2.

    Returns:
        The mean cosine over pairs of different photos.
    """
    return float(cosines(photos, photos)[_pairs(len(photos))].mean())


def summarise(groups: Iterable[Sequence[float] | np.ndarray], seed: int = 0) -> Score:
    """The mean of groups, each weighing the same, with a percentile bootstrap.

    What varies together belongs in one group. Groups are drawn again, with replacement,
    not the values in them; a single group's values are drawn instead. Over subjects,
    a group is a subject; of one subject, it is a prompt. With few groups the interval
    is too narrow, as all bootstraps are.

    Args:
        groups: values of each, at least one.
        seed: of the draws; the same seed gives the same interval.
    """
    members = [np.asarray(group, np.float64) for group in groups]
    assert members, "a score needs a group"
    assert all(member.size for member in members), "a group needs a value"
    units = np.array([member.mean() for member in members])
    if len(members) == 1:
        units = members[0]
    drawn = np.random.default_rng(seed).integers(0, len(units), (DRAWS, len(units)))
    tails = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    low, high = np.quantile(units[drawn].mean(1), tails)
    count = sum(member.size for member in members)
    return Score(float(units.mean()), float(low), float(high), len(members), count)


def _unit(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def _pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
    assert count > 1, "pairs need two members"
    return np.triu_indices(count, 1)
