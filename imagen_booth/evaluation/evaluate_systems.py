"""Scores of runs, and of any system's folders of pictures, in one table.

    TO/evaluation.json    every score with its interval, and the networks behind it
    TO/evaluation.html    the same beside the paper's tables

Features are cached by picture and network, so a second call is quick.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from imagen_booth.distributed import sharding
from imagen_booth.errors import InputError
from imagen_booth.evaluation import (
    failure_modes,
    image_sets,
    protocol,
    report,
    run_images,
    toybox_judge,
)
from imagen_booth.evaluation.image_sets import (
    ImageInfo,
    ImageSet,
    SubjectPhotos,
    Templates,
)
from imagen_booth.evaluation.protocol import FeatureNetworks, Grouped
from imagen_booth.evaluation.scores import DRAWS, LEVEL, Score
from imagen_booth.reports import run_report
from imagen_booth.rundir.layout import utc_now
from imagen_booth.storage import write_atomic
from imagen_booth.text import prompt_files
from imagen_booth.text.prompt_suites import DREAMBENCH, DREAMBENCH_CLASSES, dreambench
from imagen_booth.weights import fetch

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Locations:
    """Weights of the networks: for each a folder or file, ``random``, or "" for none.

    Attributes:
        dino: Weights of DINO ViT-S/16.
        clip: Weights of CLIP.
        clip_model: Which CLIP, a name of ``vision.SIZES``.
        lpips: Weights of LPIPS.
        judge: Folder of a toybox judge, or "shipped"; "" takes the shipped one, but
            only if all subjects are toybox subjects.
    """

    dino: str = ""
    clip: str = ""
    clip_model: str = "clip_vit_b32"
    lpips: str = ""
    judge: str = ""


@dataclasses.dataclass(frozen=True)
class EvaluationRequest:
    """The pictures to score, as the flags of the command give them.

    Attributes:
        runs: Run directories, each ``DIR`` or ``NAME=DIR``.
        systems: Folders of pictures, each ``NAME=DIR``.
        classes: Folders of pictures of the class alone, each ``NAME=DIR``.
        photos: Folder of the subjects' photos; "" takes the crops that each run saw in
            training.
        nouns: Class nouns, each ``NOUN`` or ``SUBJECT=NOUN``.
        prompts: A file, a suite, ``dreambench``, or "".
        name: Folder in each run's ``samples``; "" to find it.
    """

    runs: Sequence[str] = ()
    systems: Sequence[str] = ()
    classes: Sequence[str] = ()
    photos: str = ""
    nouns: Sequence[str] = ()
    prompts: str = ""
    name: str = ""


def evaluate_systems(
    request: EvaluationRequest, places: Locations, to: epath.Path, cache: epath.Path
) -> tuple[epath.Path, list[str]]:
    """Scores all systems and writes JSON and page into ``to``.

    Args:
        request: The pictures.
        places: The weights of the networks.
        to: Folder of the results.
        cache: Folder for computed features.

    Returns:
        The page, and warnings for its reader.

    Raises:
        InputError: Runs, folders, prompts or weights are missing or do not fit
            together. It is raised before anything is computed.
        StorageError: Something cannot be written.
    """
    systems, of_runs = gather(request)
    every = [images for sets in systems.values() for images in sets]
    toybox_only = bool(of_runs) and all(map(run_images.is_toybox_run, of_runs))
    judge = toybox_judge.load(places.judge) if places.judge else None
    if judge is None and toybox_only:
        judge = toybox_judge.shipped()
    info = image_sets.inspect_images(every)
    subjects = _subjects(every, info)
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        networks = _load_networks(places, judge, cache, mesh, info)
        warnings = _warnings(systems, info, networks)
        log.info("computing features of %d pictures", len(info))
        protocol.compute_features(networks)
        measured = _measure(systems, subjects, networks)
    results = _results(systems, subjects, measured, networks, warnings)
    write_atomic(to / "evaluation.json", json.dumps(results, indent=1).encode())
    page = report.write(to, results, systems)
    for path, images in of_runs.items():
        # An evaluation has more pictures than training ends with, and so shows the
        # failures of a run more surely.
        failure_modes.check_image_set(
            path, images, judge if run_images.is_toybox_run(path) else None
        )
        run_report.write(path)
    return page, warnings


def _measure(
    systems: Mapping[str, Sequence[ImageSet]],
    subjects: Mapping[str, SubjectPhotos],
    networks: FeatureNetworks,
) -> dict[str, dict[str, list[Grouped]]]:
    """Values by system and subject; the photos are the first system."""
    measured: dict[str, dict[str, list[Grouped]]] = {
        protocol.PHOTOS: {
            name: [protocol.measure_photos(subject, networks)]
            for name, subject in subjects.items()
        }
    }
    for system, sets in systems.items():
        by_subject = measured.setdefault(system, {})
        for images in sets:
            log.info("measuring %s, %s", system, images.subject.name)
            values = protocol.measure(images, networks)
            by_subject.setdefault(images.subject.name, []).append(values)
    return measured


def _results(
    systems: Mapping[str, Sequence[ImageSet]],
    subjects: Mapping[str, SubjectPhotos],
    measured: Mapping[str, Mapping[str, list[Grouped]]],
    networks: FeatureNetworks,
    warnings: Sequence[str],
) -> dict[str, Any]:
    """The content of ``evaluation.json``."""
    return {
        "made": utc_now(),
        "warnings": list(warnings),
        "untrained": networks.untrained(),
        "instruments": networks.describe(),
        "bootstrap": {"draws": DRAWS, "level": LEVEL},
        "subjects": {
            name: {"noun": each.noun, "photos": len(each.photos)}
            for name, each in subjects.items()
        },
        "systems": {
            system: {
                **_counts(systems.get(system, []), networks.info),
                "scores": _score_dicts(protocol.pool_scores(by_subject)),
                "by_subject": {
                    name: _score_dicts(protocol.pool_scores({name: values}))
                    for name, values in by_subject.items()
                },
            }
            for system, by_subject in measured.items()
        },
    }


def gather(
    request: EvaluationRequest,
) -> tuple[dict[str, list[ImageSet]], dict[epath.Path, ImageSet]]:
    """All image sets by system, and those of runs by run directory.

    Raises:
        InputError: Something is missing, or does not fit together.
    """
    if not request.runs and not request.systems:
        raise InputError(
            "nothing to score; give --run=DIR, or --images=DIR with --photos=DIR"
        )
    templates = _templates(request.prompts)
    systems: dict[str, list[ImageSet]] = {}
    known = _subjects_of_photos(request) if request.photos else {}
    of_runs: dict[epath.Path, ImageSet] = {}
    for each in request.runs:
        label, path = parse_named(each)
        default_label, images = run_images.finished_runs(
            path, request.name, request.prompts, templates
        )
        of_runs[path] = _with_photos(images, known)
        systems.setdefault(label or default_label, []).append(of_runs[path])
    run_subjects = {each.subject.name: each.subject for each in of_runs.values()}
    known = {name: run_subjects.get(name, subject) for name, subject in known.items()}
    if request.systems and not known:
        if len(run_subjects) != 1:
            raise InputError(
                "--photos is missing; give the folder of the subject's photos, or one "
                "with a folder of photos for each subject"
            )
        known = run_subjects
    classes = dict(parse_named(each) for each in request.classes)
    for each in request.systems:
        label, path = parse_named(each)
        if not label:
            raise InputError(f"--system={each} should read --system=NAME=DIR")
        if label in systems or label == protocol.PHOTOS:
            raise InputError(f"two systems are called {label!r}; rename one")
        flag = f"--system={label}={path}"
        systems[label] = image_sets.image_sets(
            path, known, templates, flag, classes.pop(label, None)
        )
    if classes:
        raise InputError(
            f"--class_images={next(iter(classes))}=... names no --system; those are "
            f"{', '.join(systems)}"
        )
    return systems, of_runs


def parse_named(text: str) -> tuple[str, epath.Path]:
    """Name and folder of ``NAME=DIR``; the name of a plain ``DIR`` is ""."""
    name, equals, path = text.partition("=")
    if not equals or epath.Path(text).exists():
        return "", epath.Path(text)
    return name.strip(), epath.Path(path)


def _templates(source: str) -> Templates | None:
    """A function from a class noun to its prompts; None where ``source`` is ""."""
    if not source:
        return None
    if source == DREAMBENCH:
        return lambda noun: _read_prompts(dreambench(noun))
    prompts = _read_prompts(source)
    return lambda noun: prompts


def _read_prompts(source: str) -> list[str]:
    rows = list(prompt_files.read_source(source)())
    bad = [f"{row.where}: {row.problem}" for row in rows if row.problem]
    if bad or not rows:
        raise InputError(f"--prompts={source}: {bad[0] if bad else 'has no prompts'}")
    return [row.prompt for row in rows]


def _subjects_of_photos(request: EvaluationRequest) -> dict[str, SubjectPhotos]:
    """The subjects of ``--photos``, with the nouns of ``--noun``."""
    pairs = [each.rpartition("=") for each in request.nouns]
    given = {subject: noun for subject, _, noun in pairs}
    nouns = given if "" in given else {**DREAMBENCH_CLASSES, **given}
    photos = epath.Path(request.photos)
    known = image_sets.subjects(photos, nouns, f"--photos={photos}")
    unknown = [name for name in given if name and name not in known]
    if unknown:
        raise InputError(
            f"--noun={unknown[0]}={given[unknown[0]]} names no subject of --photos; "
            f"those are {', '.join(known)}"
        )
    return known


def _with_photos(images: ImageSet, known: Mapping[str, SubjectPhotos]) -> ImageSet:
    """A run's pictures with the photos of ``--photos``, if given, for its own."""
    if not known:
        return images
    own = images.subject
    name = next(iter(known)) if len(known) == 1 else own.name
    if name not in known:
        raise InputError(
            f"--photos has no folder {name!r} for that subject of a run; it has "
            f"{', '.join(known)}"
        )
    subject = dataclasses.replace(known[name], noun=own.noun)
    return dataclasses.replace(images, subject=subject)


def _subjects(
    every: Sequence[ImageSet], info: Mapping[epath.Path, ImageInfo]
) -> dict[str, SubjectPhotos]:
    """Subjects by name.

    Raises:
        InputError: Two subjects of one name have different photos.
    """
    found: dict[str, SubjectPhotos] = {}
    for images in every:
        subject = images.subject
        other = found.setdefault(subject.name, subject)
        if _digests(other, info) != _digests(subject, info):
            raise InputError(
                f"subject {other.name!r} has other photos in {other.photos[0].parent} "
                f"than in {subject.photos[0].parent}; give --photos, so that all "
                "systems are compared with the same photos"
            )
    return found


def _digests(
    subject: SubjectPhotos, info: Mapping[epath.Path, ImageInfo]
) -> frozenset[str]:
    return frozenset(info[file].digest for file in subject.photos)


def _load_networks(
    places: Locations,
    judge: toybox_judge.Judge | None,
    cache: epath.Path,
    mesh: jax.sharding.Mesh,
    info: Mapping[epath.Path, ImageInfo],
) -> FeatureNetworks:
    wanted = {
        "dino": ("dino_vits16", places.dino),
        "clip": (places.clip_model, places.clip),
        "lpips": ("lpips_alex", places.lpips),
    }
    if judge is None and not any(place for _, place in wanted.values()):
        hints = "; ".join(
            f"--{flag}: {protocol.fetch_hint(name)}"
            for flag, (name, _) in wanted.items()
        )
        raise InputError(
            f"no weights to score with. {hints}. Downloaded weights are in "
            f"{fetch.default_folder()}/NAME. --judge scores toybox subjects without "
            "them; 'random' in place of weights tries the protocol"
        )
    parts = {
        flag: protocol.load_network(flag, name, place, mesh) if place else None
        for flag, (name, place) in wanted.items()
    }
    return FeatureNetworks(**parts, judge=judge, cache=cache, mesh=mesh, info=info)


def _warnings(
    systems: Mapping[str, Sequence[ImageSet]],
    info: Mapping[epath.Path, ImageInfo],
    networks: FeatureNetworks,
) -> list[str]:
    found = []
    if random := networks.untrained():
        found.append(
            f"RANDOM WEIGHTS in {', '.join(random)}: their scores mean nothing and "
            "only try the protocol"
        )
    for system, sets in systems.items():
        found += protocol.caveats(system, sets, info)
    tasks = {
        frozenset(
            (images.subject.name, picture.prompt)
            for images in sets
            for picture in images.pictures
        )
        for sets in systems.values()
    }
    if len(tasks) > 1:
        found.append(
            "the systems differ in subjects or prompts, so their scores cannot be "
            "compared"
        )
    return found


def _counts(
    sets: Sequence[ImageSet], info: Mapping[epath.Path, ImageInfo]
) -> dict[str, Any]:
    pictures = [picture for images in sets for picture in images.pictures]
    return {
        "subjects": len({images.subject.name for images in sets}),
        "prompts": len({picture.prompt for picture in pictures} - {""}),
        "pictures": len(pictures),
        "class_pictures": sum(len(images.class_pictures) for images in sets),
        "sizes": protocol.sizes((picture.file for picture in pictures), info),
        "skipped": [str(file) for images in sets for file in images.skipped],
    }


def _score_dicts(scores: Mapping[str, Score]) -> dict[str, Any]:
    return {metric: dataclasses.asdict(score) for metric, score in scores.items()}
