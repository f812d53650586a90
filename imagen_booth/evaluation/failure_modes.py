"""The paper's three failures, looked for in what a run drew.

Not drawn: the place that a prompt asks for. Entangled: the subject changes with the
place. Overfitted: pictures repeat a photo. The first two need a reader that tells the
subject from what surrounds it, which for the toybox is the judge; without one they are
said to be not measured. The third compares pictures as wholes.

Source: Ruiz et al., arXiv 2208.12242, section 5 and the figure of failure modes.
"""

import dataclasses
import json
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

LEAST_SHOWN = 0.5  # share of pictures that show the place they were asked for
CHANCE = 0.05  # that a tie between place and likeness comes from nothing
SHUFFLES = 2000
# Of 52 photos of ten DreamBooth subjects, each held against the others of its subject,
# 6 came nearer than this share by layout; of slight crops and blurs of them 34.
NEAR = 0.5
MOST_NEAR = 0.25  # share of pictures that may be so near
SHOWN = 8  # pictures kept as evidence


@dataclasses.dataclass(frozen=True)
class Evidence:
    """A picture that shows a failure, and what is wrong with it."""

    file: epath.Path
    said: str


@dataclasses.dataclass(frozen=True)
class FailureMode:
    """One failure.

    Attributes:
        verdict: ``SEEN``, ``UNSEEN`` or ``UNMEASURED``.
        said: what was found, or why nothing was.
        rule: when it counts as seen.
        evidence: the worst pictures, whatever the verdict.
    """

    verdict: str
    said: str
    rule: str
    evidence: tuple[Evidence, ...] = ()


def check_run(path: epath.Path, folder: str) -> None:
    """Looks for failures in ``samples/FOLDER`` of a run, with the judge that ships.

    Raises:
        InputError: no pictures there.
        StorageError: the result cannot be written.
    """
    check_image_set(
        path, run_image_set(path, folder), shipped() if is_toybox_run(path) else None
    )


def check_image_set(path: epath.Path, work: ImageSet, judge: Judge | None) -> None:
    """Looks for failures in some pictures of a run, and writes ``failures.json``.

    Args:
        path: work directory.
        work: what it drew; prompts are known.
        judge: of the toybox; None for a subject that is none of it.

    Raises:
        StorageError: the result cannot be written.
    """
    readings = photos = None
    if judge is not None:
        readings = judge.read(image_sets.read(shot.file) for shot in work.pictures)
        photos = judge.read(map(image_sets.read, work.subject.photos))
    if judge is None or readings is None or photos is None:
        why = (
            "Not measured: telling the subject from the place takes a judge, which "
            "there is for subjects of the toybox alone."
        )
        modes = {
            "context": FailureMode(UNMEASURED, why, CONTEXT_RULE),
            "entangled": FailureMode(UNMEASURED, why, ENTANGLED_RULE),
            "overfitted": overfitted(work, *_layouts(work), "coarse grey layouts"),
        }
    else:
        asked = [requested_attributes(shot.prompt, judge) for shot in work.pictures]
        modes = {
            "context": not_drawn(work, asked, readings),
            "entangled": entangled(work, asked, readings, photos),
            "overfitted": overfitted(
                work,
                1 - scores.cosines(readings.looks, photos.looks),
                1 - scores.cosines(photos.looks, photos.looks),
                "the judge's view of the whole picture",
            ),
        }
    found = {
        "pictures": len(work.pictures),
        "photos": len(work.subject.photos),
        "by": "the toybox's judge" if judge else "plain measures",
        "modes": {name: _plain(mode, path) for name, mode in modes.items()},
    }
    write_atomic(path / FILE, json.dumps(found, indent=1).encode())


CONTEXT_RULE = (
    f"Seen where less than {LEAST_SHOWN:.0%} of the pictures that were asked for a "
    "place show it, or a place is in none of its pictures, of which there are two or "
    "more."
)


def not_drawn(
    work: ImageSet, asked: Sequence[Attributes | None], readings: Readings
) -> FailureMode:
    """Whether the places that prompts ask for are there.

    Args:
        asked: what each picture's prompt asks for; None where that is not known.
    """
    places = {
        number: each.context
        for number, each in enumerate(asked)
        if each is not None and each.context is not None
    }
    if not places:
        said = "Not measured: no prompt asks for a place that the judge knows."
        return FailureMode(UNMEASURED, said, CONTEXT_RULE)
    read = readings.words["context"]
    missed = [number for number, place in places.items() if read[number] != place]
    share = 1 - len(missed) / len(places)
    of = {
        place: [number for number, each in places.items() if each == place]
        for place in dict.fromkeys(places.values())
    }
    never = [
        place
        for place, numbers in of.items()
        if len(numbers) > 1 and all(number in missed for number in numbers)
    ]
    said = f"{len(places) - len(missed)} of {len(places)} pictures show the place"
    if never:
        said += f"; in none of its pictures: {', '.join(never)}"
    evidence = [
        Evidence(
            work.pictures[number].file,
            f"asked for {places[number]}, shows {read[number]}"
            + (" only" if read[number] == PLAIN else ""),
        )
        for number in sorted(missed, key=lambda n: -readings.sure["context"][n])
    ]
    seen = share < LEAST_SHOWN or bool(never)
    return _mode(seen, f"{said}.", CONTEXT_RULE, evidence)


ENTANGLED_RULE = (
    "Seen where likeness to the photos depends on the place (less than "
    f"{CHANCE:.0%} of shuffles of the pictures set places as far apart) and is, in "
    "some place, below that of every photo to the others; or where all pictures of a "
    "place show one colour that no photo has and no prompt asks for, and most others "
    "do not."
)


def entangled(
    work: ImageSet,
    asked: Sequence[Attributes | None],
    readings: Readings,
    photos: Readings,
) -> FailureMode:
    """Whether the subject looks another in some places.

    Only prompts that ask for nothing but a place are looked at, pictures that show it,
    and places, or the plain backdrop, of which there are two such pictures or more.
    """
    groups: dict[str, list[int]] = {}
    for number, each in enumerate(asked):
        if each is None or each != Attributes(noun=each.noun, context=each.context):
            continue
        place = each.context or PLAIN
        if readings.words["context"][number] == place:
            groups.setdefault(place, []).append(number)
    groups = {place: some for place, some in groups.items() if len(some) > 1}
    if len(groups) < 2 or len(photos.subjects) < 2:
        said = (
            "Not measured: it takes two photos, and two pictures in each of two "
            "places; python -m imagen_booth.evaluate looks again at a suite of prompts "
            "drawn with --seeds=4."
        )
        return FailureMode(UNMEASURED, said, ENTANGLED_RULE)
    likeness = scores.fidelity(readings.subjects, photos.subjects)
    parts = [likeness[some] for some in groups.values()]
    chance = chance_of(parts)
    means = {place: float(likeness[some].mean()) for place, some in groups.items()}
    worst = min(means, key=lambda place: means[place])
    least = float(scores.among(photos.subjects).min())
    drifts = chance < CHANCE and means[worst] < least
    changed = _changed_colour(groups, readings, photos)
    said = (
        f"Likeness to the photos is {max(means.values()):.2f} in its best place and "
        f"{means[worst]:.2f} in its worst ({worst}), that of a photo to the others "
        f"{least:.2f} at the least; shuffled pictures differ as much between places in "
        f"{chance:.1%} of cases"
    )
    if changed:
        said += f"; the colour is another in: {', '.join(changed)}"
    shown = [number for place in changed or [worst] for number in groups[place]]
    evidence = [
        Evidence(
            work.pictures[number].file,
            f"{work.pictures[number].prompt}: {readings.words['colour'][number]}, "
            f"likeness {likeness[number]:.2f}",
        )
        for number in sorted(shown, key=lambda number: likeness[number])
    ]
    seen = drifts or bool(changed)
    return _mode(seen, f"{said}.", ENTANGLED_RULE, evidence)


def chance_of(parts: Sequence[np.ndarray]) -> float:
    """How often values differ as much between groups when they are shuffled.

    The variance between groups, each weighed by its size, decides; the values as they
    are count as one of the shuffles.

    Args:
        parts: values of each group, at least two groups.
    """
    values, bounds = (
        np.concatenate(parts),
        np.cumsum([len(part) for part in parts])[:-1],
    )
    rng = np.random.default_rng(0)

    def between(order: np.ndarray) -> float:
        groups = np.split(order, bounds)
        return float(
            sum(len(each) * (each.mean() - values.mean()) ** 2 for each in groups)
        )

    own = between(values) * (1 - 1e-9)
    reached = sum(between(rng.permutation(values)) >= own for _ in range(SHUFFLES))
    return (1 + reached) / (1 + SHUFFLES)


def _changed_colour(
    groups: dict[str, list[int]], readings: Readings, photos: Readings
) -> list[str]:
    """Places all of whose pictures have one colour that is not the subject's."""
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
    f"Seen where at least {MOST_NEAR:.0%} of the pictures lie nearer to a photo than "
    f"{NEAR:.0%} of the distance of the two photos that are nearest to each other."
)


def overfitted(
    work: ImageSet, to_photos: np.ndarray, between: np.ndarray, by: str
) -> FailureMode:
    """Whether pictures repeat photos.

    Args:
        to_photos: distances of pictures to photos [N, M], 0 for the same picture.
        between: of photos to each other [M, M].
        by: says what was compared.
    """
    photos = work.subject.photos
    if len(photos) < 2:
        said = "Not measured: one photo gives no distance to compare with."
        return FailureMode(UNMEASURED, said, OVERFITTED_RULE)
    limit = NEAR * float(between[np.triu_indices(len(photos), 1)].min())
    nearest = to_photos.min(1)
    near = [number for number in np.argsort(nearest) if nearest[number] < limit]
    said = (
        f"{len(near)} of {len(nearest)} pictures are that near, by {by}: the distance "
        f"that counts is {limit:.3f}, the nearest picture's {nearest.min():.3f}."
    )
    evidence = [
        Evidence(
            work.pictures[number].file,
            f"{nearest[number]:.3f} from {photos[to_photos[number].argmin()].stem}",
        )
        for number in near
    ]
    seen = len(near) >= MOST_NEAR * len(nearest)
    return _mode(seen, said, OVERFITTED_RULE, evidence)


def _layouts(work: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    photos = [image_sets.read(file) for file in work.subject.photos]
    shots = (image_sets.read(shot.file) for shot in work.pictures)
    to_photos = [
        [1 - similarity.layout_similarity(image, photo) for photo in photos]
        for image in shots
    ]
    between = [
        [1 - similarity.layout_similarity(one, other) for other in photos]
        for one in photos
    ]
    return np.array(to_photos), np.array(between)


def _mode(
    seen: bool, said: str, rule: str, evidence: Sequence[Evidence]
) -> FailureMode:
    return FailureMode(SEEN if seen else UNSEEN, said, rule, tuple(evidence[:SHOWN]))


def _plain(mode: FailureMode, path: epath.Path) -> dict[str, Any]:
    """For the JSON; files are relative to the run."""
    evidence = [
        {"file": str(each.file.relative_to(path)), "said": each.said}
        for each in mode.evidence
    ]
    return {**dataclasses.asdict(mode), "evidence": evidence}
