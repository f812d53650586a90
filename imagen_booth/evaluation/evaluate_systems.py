"""Scores of runs, and of any system's folders of pictures, in one table.

    TO/evaluation.json    every number with its interval, and what it was measured by
    TO/evaluation.html    the same beside the paper's tables

Features are kept in the cache by picture and by network, so a second call is quick.
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
from imagen_booth.evaluation.scores import DRAWS, LEVEL
from imagen_booth.reports import run_report
from imagen_booth.rundir.layout import utc_now
from imagen_booth.storage import write_atomic
from imagen_booth.text import prompt_files
from imagen_booth.text.prompt_suites import DREAMBENCH, DREAMBENCH_CLASSES, dreambench
from imagen_booth.weights import fetch

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Locations:
    """Where the weights of the metrics are: a folder or file, ``random``, or "".

    Attributes:
        clip_model: which CLIP, of ``vision.SIZES``.
        judge: folder of a judge, or "shipped"; "" for the shipped one, on toybox
            subjects only.
    """

    dino: str = ""
    clip: str = ""
    clip_model: str = "clip_vit_b32"
    lpips: str = ""
    judge: str = ""


@dataclasses.dataclass(frozen=True)
class EvaluationRequest:
    """What the user wants scored.

    Attributes:
        runs: work directories, each ``DIR`` or ``NAME=DIR``.
        systems: folders of pictures, each ``NAME=DIR``.
        classes: folders of pictures of the class alone, each ``NAME=DIR``.
        photos: of the subjects; "" for the crops that each run saw in training.
        nouns: each ``NOUN`` or ``SUBJECT=NOUN``.
        prompts: a file, a suite, ``dreambench``, or "".
        name: of the folder in each run's ``samples``; "" to find it.
    """

    runs: Sequence[str] = ()
    systems: Sequence[str] = ()
    classes: Sequence[str] = ()
    photos: str = ""
    nouns: Sequence[str] = ()
    prompts: str = ""
    name: str = ""


def evaluate_systems(
    asked: EvaluationRequest, places: Locations, to: epath.Path, cache: epath.Path
) -> tuple[epath.Path, list[str]]:
    """Scores everything and writes JSON and page into ``to``.

    Returns:
        The page, and what its reader is warned of.

    Raises:
        InputError: runs, folders, prompts or weights that are missing or do not fit
            together; found before anything is computed.
        StorageError: something cannot be written.
    """
    systems, tuned = gather(asked)
    every = [work for some in systems.values() for work in some]
    toys = bool(tuned) and all(run_images.is_toybox_run(path) for path in tuned)
    reader = toybox_judge.load(places.judge) if places.judge else None
    if reader is None and toys:
        reader = toybox_judge.shipped()
    looks = image_sets.inspect_images(every)
    subjects = _subjects(every, looks)
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        through = _instruments(places, reader, cache, mesh, looks)
        warnings = _warnings(systems, looks, through)
        log.info("looking at %d pictures", len(looks))
        protocol.check_networks(through)
        measured: dict[str, dict[str, list[Grouped]]] = {
            protocol.PHOTOS: {
                name: [protocol.measure_photos(subject, through)]
                for name, subject in subjects.items()
            }
        }
        for system, some in systems.items():
            found = measured.setdefault(system, {})
            for work in some:
                log.info("measuring %s, %s", system, work.subject.name)
                values = protocol.measure(work, through)
                found.setdefault(work.subject.name, []).append(values)
    results = {
        "made": utc_now(),
        "warnings": warnings,
        "untrained": through.untrained(),
        "instruments": protocol.describe_networks(through),
        "bootstrap": {"draws": DRAWS, "level": LEVEL},
        "subjects": {
            name: {"noun": each.noun, "photos": len(each.photos)}
            for name, each in subjects.items()
        },
        "systems": {
            system: {
                **_counts(systems.get(system, []), looks),
                "scores": _plain(protocol.pool_scores(found)),
                "by_subject": {
                    name: _plain(protocol.pool_scores({name: some}))
                    for name, some in found.items()
                },
            }
            for system, found in measured.items()
        },
    }
    write_atomic(to / "evaluation.json", json.dumps(results, indent=1).encode())
    page = report.write(to, results, systems)
    for path, work in tuned.items():
        # With more pictures than a run drew by itself, its failures show better.
        failure_modes.check_image_set(
            path, work, reader if run_images.is_toybox_run(path) else None
        )
        run_report.write(path)
    return page, warnings


def gather(
    asked: EvaluationRequest,
) -> tuple[dict[str, list[ImageSet]], dict[epath.Path, ImageSet]]:
    """Everything to be scored, by system; and that of each run.

    Raises:
        InputError: it is not there, or does not fit together.
    """
    if not asked.runs and not asked.systems:
        raise InputError(
            "nothing to score; give --run=DIR, or --images=DIR with --photos=DIR"
        )
    templates = _templates(asked.prompts)
    systems: dict[str, list[ImageSet]] = {}
    known = _known(asked) if asked.photos else {}
    tuned: dict[epath.Path, ImageSet] = {}
    for each in asked.runs:
        label, path = named(each)
        usual, work = run_images.finished_runs(
            path, asked.name, asked.prompts, templates
        )
        work = _held_against(work, known)
        tuned[path] = work
        systems.setdefault(label or usual, []).append(work)
    of_runs = {work.subject.name: work.subject for work in tuned.values()}
    known = {name: of_runs.get(name, subject) for name, subject in known.items()}
    if asked.systems and not known:
        if len(of_runs) != 1:
            raise InputError(
                "--photos is missing; give the folder of the subject's photos, or one "
                "with a folder of photos for each subject"
            )
        known = of_runs
    classes = dict(named(each) for each in asked.classes)
    for each in asked.systems:
        label, path = named(each)
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
    return systems, tuned


def named(text: str) -> tuple[str, epath.Path]:
    """Name and folder of ``NAME=DIR``; no name of a ``DIR``."""
    name, equals, path = text.partition("=")
    if not equals or epath.Path(text).exists():
        return "", epath.Path(text)
    return name.strip(), epath.Path(path)


def _templates(source: str) -> Templates | None:
    """What gives the prompts for a class."""
    if not source:
        return None
    if source == DREAMBENCH:
        return lambda noun: _listed(dreambench(noun))
    listed = _listed(source)
    return lambda noun: listed


def _listed(source: str) -> list[str]:
    rows = list(prompt_files.read_source(source)())
    bad = [f"{row.where}: {row.problem}" for row in rows if row.problem]
    if bad or not rows:
        raise InputError(f"--prompts={source}: {bad[0] if bad else 'holds no prompts'}")
    return [row.prompt for row in rows]


def _known(asked: EvaluationRequest) -> dict[str, SubjectPhotos]:
    """The subjects of ``--photos``."""
    pairs = [each.rpartition("=") for each in asked.nouns]
    told = {subject: noun for subject, _, noun in pairs}
    nouns = told if "" in told else {**DREAMBENCH_CLASSES, **told}
    photos = epath.Path(asked.photos)
    known = image_sets.subjects(photos, nouns, f"--photos={photos}")
    strange = [name for name in told if name and name not in known]
    if strange:
        raise InputError(
            f"--noun={strange[0]}={told[strange[0]]} names no subject of --photos; "
            f"those are {', '.join(known)}"
        )
    return known


def _held_against(work: ImageSet, known: Mapping[str, SubjectPhotos]) -> ImageSet:
    """A run's pictures with the photos of ``--photos`` in place of its own."""
    if not known:
        return work
    own = work.subject
    name = next(iter(known)) if len(known) == 1 else own.name
    if name not in known:
        raise InputError(
            f"--photos has no folder {name!r} for that subject of a run; it has "
            f"{', '.join(known)}"
        )
    subject = dataclasses.replace(known[name], noun=own.noun)
    return dataclasses.replace(work, subject=subject)


def _subjects(
    every: Sequence[ImageSet], looks: Mapping[Any, ImageInfo]
) -> dict[str, SubjectPhotos]:
    """Subjects by name.

    Raises:
        InputError: two of one name that have other photos.
    """
    found: dict[str, SubjectPhotos] = {}
    for work in every:
        other = found.setdefault(work.subject.name, work.subject)
        one, two = (
            {looks[file].digest for file in subject.photos}
            for subject in (other, work.subject)
        )
        if one != two:
            raise InputError(
                f"subject {other.name!r} has other photos in {other.photos[0].parent} "
                f"than in {work.subject.photos[0].parent}; give --photos, so that all "
                "are held against the same"
            )
    return found


def _instruments(
    places: Locations,
    reader: toybox_judge.Judge | None,
    cache: epath.Path,
    mesh: Any,
    looks: Mapping[epath.Path, ImageInfo],
) -> FeatureNetworks:
    wanted = {
        "dino": ("dino_vits16", places.dino),
        "clip": (places.clip_model, places.clip),
        "lpips": ("lpips_alex", places.lpips),
    }
    if reader is None and not any(place for _, place in wanted.values()):
        said = "; ".join(
            f"--{flag}: {protocol.fetch_hint(name)}"
            for flag, (name, _) in wanted.items()
        )
        at = fetch.default_folder()
        raise InputError(
            f"no weights to score with. {said}. Fetched weights are in {at}/NAME. On "
            "subjects of the toybox --judge does without; 'random' in place of "
            "weights tries the protocol"
        )
    parts = {
        flag: protocol.load_network(flag, name, place, mesh) if place else None
        for flag, (name, place) in wanted.items()
    }
    return FeatureNetworks(**parts, judge=reader, cache=cache, mesh=mesh, looks=looks)


def _warnings(
    systems: Mapping[str, Sequence[ImageSet]], looks: Any, through: FeatureNetworks
) -> list[str]:
    said = []
    if random := through.untrained():
        said.append(
            f"RANDOM WEIGHTS in {', '.join(random)}: their numbers mean nothing and "
            "only try the protocol"
        )
    for system, some in systems.items():
        said += protocol.caveats(system, some, looks)
    asked = {
        system: {
            (work.subject.name, shot.prompt) for work in some for shot in work.pictures
        }
        for system, some in systems.items()
    }
    if len({frozenset(each) for each in asked.values()}) > 1:
        said.append(
            "the systems differ in subjects or prompts; their scores are not of one "
            "task"
        )
    return said


def _counts(some: Sequence[ImageSet], looks: Mapping[Any, ImageInfo]) -> dict[str, Any]:
    shots = [shot for work in some for shot in work.pictures]
    skipped = [str(file) for work in some for file in work.skipped]
    return {
        "subjects": len({work.subject.name for work in some}),
        "prompts": len({s.prompt for s in shots} - {""}),
        "pictures": len(shots),
        "class_pictures": sum(len(work.class_pictures) for work in some),
        "sizes": protocol.sizes((shot.file for shot in shots), looks),
        "skipped": skipped,
    }


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: dataclasses.asdict(each) for name, each in found.items()}
