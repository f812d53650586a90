"""The scores of DreamBooth's protocol, from features, with intervals.

====== ======================================================== =================
DINO   similarity of pictures and photos in DINO features       ``fidelity``
CLIP-I similarity of pictures and photos in CLIP features       ``fidelity``
CLIP-T similarity of pictures and prompts in CLIP features      ``prompt_fidelity``
PRES   similarity of class pictures and photos in DINO          ``fidelity``
       features; lower is better: the class keeps its variety
DIV    LPIPS distance between pictures of one prompt            ``diversity``
====== ======================================================== =================

The paper does not name its CLIP or the backbone of its LPIPS, nor whether ``[V]`` stays
in the prompt. Published scores should name the choices.

Source: Ruiz et al., arXiv 2208.12242, section 4.1 and Table 3.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

DRAWS = 2000  # bootstrap samples
LEVEL = 0.95  # share of them inside the interval


@dataclasses.dataclass(frozen=True)
class Score:
    """A mean with its bootstrap interval.

    Attributes:
        mean: Mean of the groups' means.
        low, high: Bounds of the middle 95 % of the bootstrap means.
        groups: Number of groups.
        values: Number of values in all groups.
    """

    mean: float
    low: float
    high: float
    groups: int
    values: int


def cosines(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Cosines of all pairs, f64 [N, M], of features [N, F] and [M, F]."""
    return _unit(rows) @ _unit(columns).T


def among(photos: np.ndarray) -> np.ndarray:
    """Mean cosine of each photo to the others; their mean is the row "Real images".

    Args:
        photos: Features [M, F], M >= 2.

    Returns:
        f64 [M], -1 to 1.
    """
    alike = cosines(photos, photos)
    np.fill_diagonal(alike, 0.0)
    return alike.sum(1) / (len(photos) - 1)


def fidelity(pictures: np.ndarray, photos: np.ndarray) -> np.ndarray:
    """Mean cosine of each picture to the photos: DINO, CLIP-I and PRES.

    Args:
        pictures: Features [N, F] of generated pictures of the subject; for PRES, of
            pictures of the class alone.
        photos: Features [M, F] of the subject's photos.

    Returns:
        f64 [N], -1 to 1.
    """
    return cosines(pictures, photos).mean(1)


def prompt_fidelity(pictures: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Cosine of each picture and its prompt: CLIP-T.

    Args:
        pictures: Features [N, F].
        prompts: Features [N, F] of the prompt of each picture.

    Returns:
        f64 [N], -1 to 1.
    """
    return (_unit(pictures) * _unit(prompts)).sum(1)


def diversity(distances: np.ndarray) -> float:
    """Mean distance of two pictures of one prompt: DIV.

    Args:
        distances: LPIPS [N, N], N >= 2.

    Returns:
        The mean over pairs of different pictures.
    """
    return float(distances[_pairs(len(distances))].mean(dtype=np.float64))


def summarise(groups: Iterable[Sequence[float] | np.ndarray], seed: int = 0) -> Score:
    """The mean of the groups' means, with a percentile bootstrap interval.

    Values that vary together belong in one group. The bootstrap samples groups with
    replacement, and not the values in them; of a single group it samples the values. A
    group is a subject, or a prompt where there is one subject. With few groups the
    interval is too narrow, as bootstrap intervals are.

    Args:
        groups: Values of each group, at least one.
        seed: Seed of the bootstrap; the same seed gives the same interval.
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
