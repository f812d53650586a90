"""Detects the paper's three failure modes in the pictures of a run.

Context: the place that a prompt names is missing. Entangled: the subject changes
with the place. Overfitted: pictures repeat a photo. The first two need a network that
reads subject and place apart. The toybox has one, its judge; for photographs they are
reported as not measured. The third compares whole pictures.

Source: Ruiz et al., arXiv 2208.12242, section 5 and the figure of failure modes.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from imagen_booth.data import similarity
from imagen_booth.evaluation import image_sets, scores
from imagen_booth.evaluation.image_sets import ImageSet
from imagen_booth.evaluation.protocol import requested_attributes
from imagen_booth.evaluation.run_images import is_toybox_run, run_image_set
from imagen_booth.evaluation.toybox_judge import PLAIN, Judge, Readings, shipped
from imagen_booth.storage import write_atomic
from imagen_booth.toybox.grammar import Attributes

FILE = "failures.json"
SEEN, UNSEEN, UNMEASURED = "seen", "not seen", "not measured"

LEAST_SHOWN = 0.5  # least share of pictures that show the place of their prompt
CHANCE = 0.05  # significance level of likeness that depends on the place
SHUFFLES = 2000  # of the permutation test
# Share of the smallest distance between two photos. Of 52 photos of ten DreamBooth
# subjects, 6 are nearer than this to another photo of the subject by layout; of slight
# crops and blurs of the photos, 34 are.
NEAR = 0.5
MOST_NEAR = 0.25  # share of pictures so near to a photo from which a run is overfitted
SHOWN = 8  # pictures of evidence


@dataclasses.dataclass(frozen=True)
class Evidence:
    """A picture that shows a failure; ``said`` describes the failure."""

    file: epath.Path
    said: str


@dataclasses.dataclass(frozen=True)
class FailureMode:
    """The finding on one failure mode.

    Attributes:
        verdict: ``SEEN``, ``UNSEEN`` or ``UNMEASURED``.
        said: The finding in words, or why the mode was not measured.
        rule: The condition for ``SEEN``, in words.
        evidence: The worst pictures, whatever the verdict.
    """

    verdict: str
    said: str
    rule: str
    evidence: tuple[Evidence, ...] = ()


def check_run(path: epath.Path, folder: str) -> None:
    """Checks the pictures in ``samples/FOLDER`` of a run with the shipped judge.

    Raises:
        InputError: The folder has no pictures.
        StorageError: The result cannot be written.
    """
    check_image_set(
        path, run_image_set(path, folder), shipped() if is_toybox_run(path) else None
    )


def check_image_set(path: epath.Path, images: ImageSet, judge: Judge | None) -> None:
    """Checks pictures of a run for the failure modes and writes ``failures.json``.

    Args:
        path: The run directory.
        images: Pictures of the run, with their prompts.
        judge: The toybox judge; None if the subject is not a toybox subject.

    Raises:
        StorageError: The result cannot be written.
    """
    if judge is None:
        why = (
            "Not measured: it needs a judge that reads subject and place apart, which "
            "exists for toybox subjects only."
        )
        modes = {
            "context": FailureMode(UNMEASURED, why, CONTEXT_RULE),
            "entangled": FailureMode(UNMEASURED, why, ENTANGLED_RULE),
            "overfitted": overfitted(images, *_layouts(images), "coarse grey layouts"),
        }
    else:
        readings = judge.read(image_sets.read(each.file) for each in images.pictures)
        photos = judge.read(map(image_sets.read, images.subject.photos))
        requested = [requested_attributes(each.prompt) for each in images.pictures]
        modes = {
            "context": missing_context(images, requested, readings),
            "entangled": entangled(images, requested, readings, photos),
            "overfitted": overfitted(
                images,
                1 - scores.cosines(readings.looks, photos.looks),
                1 - scores.cosines(photos.looks, photos.looks),
                "the judge's description of the whole picture",
            ),
        }
    found = {
        "pictures": len(images.pictures),
        "photos": len(images.subject.photos),
        "by": "the toybox judge" if judge else "plain measures",
        "modes": {name: _mode_dict(mode, path) for name, mode in modes.items()},
    }
    write_atomic(path / FILE, json.dumps(found, indent=1).encode())


CONTEXT_RULE = (
    f"Seen if less than {LEAST_SHOWN:.0%} of the pictures show the place of their "
    "prompt, or if a place with two or more pictures is in none of them."
)


def missing_context(
    images: ImageSet, requested: Sequence[Attributes | None], readings: Readings
) -> FailureMode:
    """Whether pictures show the places of their prompts.

    Args:
        images: The pictures.
        requested: Attributes of each picture's prompt; None where not known.
        readings: The judge's readings of the pictures.
    """
    places = {
        number: each.context
        for number, each in enumerate(requested)
        if each is not None and each.context is not None
    }
    if not places:
        why = "Not measured: no prompt names a place that the judge knows."
        return FailureMode(UNMEASURED, why, CONTEXT_RULE)
    read = readings.words["context"]
    missed = [number for number, place in places.items() if read[number] != place]
    share = 1 - len(missed) / len(places)
    counts, misses = Counter(places.values()), Counter(places[n] for n in missed)
    never = [place for place in counts if counts[place] == misses[place] > 1]
    finding = f"{len(places) - len(missed)} of {len(places)} pictures show the place"
    if never:
        finding += f"; in none of its pictures: {', '.join(never)}"
    evidence = [
        Evidence(
            images.pictures[number].file,
            f"prompt: {places[number]}, picture: {read[number]}"
            + (" only" if read[number] == PLAIN else ""),
        )
        for number in sorted(missed, key=lambda n: -readings.sure["context"][n])
    ]
    seen = share < LEAST_SHOWN or bool(never)
    return _mode(seen, f"{finding}.", CONTEXT_RULE, evidence)


ENTANGLED_RULE = (
    "Seen if similarity to the photos depends on the place (less than "
    f"{CHANCE:.0%} of random shuffles of the pictures differ as much between places) "
    "and is lower in some place than that of any photo to the others; or if all "
    "pictures of a place show one colour that no photo has, no prompt names, and "
    "most other pictures do not show."
)


def entangled(
    images: ImageSet,
    requested: Sequence[Attributes | None],
    readings: Readings,
    photos: Readings,
) -> FailureMode:
    """Whether the subject changes with the place.

    Counts only pictures whose prompt names nothing but a place, or nothing, and
    that show it; a place counts if it has two or more of them.

    Args:
        images: The pictures.
        requested: Attributes of each picture's prompt; None where not known.
        readings: The judge's readings of the pictures.
        photos: The judge's readings of the photos.
    """
    groups: dict[str, list[int]] = {}
    for number, each in enumerate(requested):
        if each is None or each != Attributes(noun=each.noun, context=each.context):
            continue
        place = each.context or PLAIN
        if readings.words["context"][number] == place:
            groups.setdefault(place, []).append(number)
    groups = {place: some for place, some in groups.items() if len(some) > 1}
    if len(groups) < 2 or len(photos.subjects) < 2:
        why = (
            "Not measured: it needs two photos, and two pictures in each of two "
            "places. Run python -m imagen_booth.evaluate on pictures of a suite of "
            "prompts with --seeds=4."
        )
        return FailureMode(UNMEASURED, why, ENTANGLED_RULE)
    likeness = scores.fidelity(readings.subjects, photos.subjects)
    chance = permutation_p_value([likeness[some] for some in groups.values()])
    means = {place: float(likeness[some].mean()) for place, some in groups.items()}
    worst = min(means, key=lambda place: means[place])
    least = float(scores.among(photos.subjects).min())
    drifts = chance < CHANCE and means[worst] < least
    changed = _changed_colour(groups, readings, photos)
    finding = (
        f"Similarity to the photos is {max(means.values()):.2f} in the best place and "
        f"{means[worst]:.2f} in the worst ({worst}); the lowest of a photo to "
        f"the others is {least:.2f}. In {chance:.1%} of random shuffles, pictures "
        "differ as much between places"
    )
    if changed:
        finding += f"; the colour changes in: {', '.join(changed)}"
    shown = [number for place in changed or [worst] for number in groups[place]]
    evidence = [
        Evidence(
            images.pictures[number].file,
            f"{images.pictures[number].prompt}: {readings.words['colour'][number]}, "
            f"similarity {likeness[number]:.2f}",
        )
        for number in sorted(shown, key=lambda number: likeness[number])
    ]
    seen = drifts or bool(changed)
    return _mode(seen, f"{finding}.", ENTANGLED_RULE, evidence)


def permutation_p_value(groups: Sequence[np.ndarray]) -> float:
    """P-value of a permutation test of the variance between groups, in (0, 1].

    Groups are weighted by size. The order as given counts as one of the shuffles.

    Args:
        groups: Values of each group, at least two groups.
    """
    values = np.concatenate(groups)
    bounds = np.cumsum([len(group) for group in groups])[:-1]
    rng = np.random.default_rng(0)

    def between(order: np.ndarray) -> float:
        parts = np.split(order, bounds)
        return float(
            sum(len(each) * (each.mean() - values.mean()) ** 2 for each in parts)
        )

    own = between(values) * (1 - 1e-9)  # rounding must not hide a tie
    reached = sum(between(rng.permutation(values)) >= own for _ in range(SHUFFLES))
    return (1 + reached) / (1 + SHUFFLES)


def _changed_colour(
    groups: dict[str, list[int]], readings: Readings, photos: Readings
) -> list[str]:
    """Places whose pictures all have one colour that no photo has."""
    own, read = set(photos.words["colour"]), readings.words["colour"]
    changed = []
    for place, some in groups.items():
        here = {read[number] for number in some}
        others = [
            read[number]
            for at, rest in groups.items()
            if at != place
            for number in rest
        ]
        if len(here) == 1 and not here & own:
            (colour,) = here
            if others.count(colour) * 2 < len(others):
                changed.append(place)
    return changed


OVERFITTED_RULE = (
    f"Seen if at least {MOST_NEAR:.0%} of the pictures are nearer to a photo than "
    f"{NEAR:.0%} of the smallest distance between two photos."
)


def overfitted(
    images: ImageSet, to_photos: np.ndarray, between: np.ndarray, by: str
) -> FailureMode:
    """Whether pictures repeat photos.

    Args:
        images: The pictures.
        to_photos: Distances of pictures to photos [N, M], 0 for the same picture.
        between: Distances of photos to each other [M, M].
        by: What was compared, in words.
    """
    photos = images.subject.photos
    if len(photos) < 2:
        why = "Not measured: it needs the distance between two photos."
        return FailureMode(UNMEASURED, why, OVERFITTED_RULE)
    limit = NEAR * float(between[np.triu_indices(len(photos), 1)].min())
    nearest = to_photos.min(1)
    near = [number for number in np.argsort(nearest) if nearest[number] < limit]
    finding = (
        f"{len(near)} of {len(nearest)} pictures are that near, by {by}: the limit is "
        f"{limit:.3f}, the nearest picture's distance {nearest.min():.3f}."
    )
    evidence = [
        Evidence(
            images.pictures[number].file,
            f"{nearest[number]:.3f} from {photos[to_photos[number].argmin()].stem}",
        )
        for number in near
    ]
    seen = len(near) >= MOST_NEAR * len(nearest)
    return _mode(seen, finding, OVERFITTED_RULE, evidence)


def _layouts(images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """Layout distances of pictures to photos [N, M], and between photos [M, M]."""
    photos = [image_sets.read(file) for file in images.subject.photos]

    def distances(image: np.ndarray) -> list[float]:
        return [1 - similarity.layout_similarity(image, photo) for photo in photos]

    to_photos = [distances(image_sets.read(each.file)) for each in images.pictures]
    return np.array(to_photos), np.array([distances(photo) for photo in photos])


def _mode(
    seen: bool, finding: str, rule: str, evidence: Sequence[Evidence]
) -> FailureMode:
    return FailureMode(SEEN if seen else UNSEEN, finding, rule, tuple(evidence[:SHOWN]))


def _mode_dict(mode: FailureMode, path: epath.Path) -> dict[str, Any]:
    """A failure mode for the JSON; files are relative to the run directory."""
    evidence = [
        {"file": str(each.file.relative_to(path)), "said": each.said}
        for each in mode.evidence
    ]
    return {**dataclasses.asdict(mode), "evidence": evidence}
