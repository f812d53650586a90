"""DreamBooth's protocol: which features are compared with which, and what is pooled.

By photographs' networks: DINO, CLIP-I, CLIP-T, PRES and DIV, see ``scores``. By the
toybox's judge: what stands for DINO, CLIP-T, PRES and DIV there.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from imagen_booth.errors import InputError
from imagen_booth.evaluation import features, image_sets, preprocess, scores
from imagen_booth.evaluation import toybox_judge as judges
from imagen_booth.evaluation.image_sets import ImageInfo, ImageSet, SubjectPhotos
from imagen_booth.evaluation.scores import Score
from imagen_booth.toybox import coverage
from imagen_booth.toybox.captions import parse
from imagen_booth.toybox.grammar import TIERS, Attributes
from imagen_booth.weights import fetch, vision
from imagen_booth.weights.load import Part

PHOTOS = "Real images"  # the paper's row of the photos among themselves
Grouped = dict[str, list[np.ndarray]]  # metric -> values of each prompt

# metric: (how it is called, the network it looks through, what it is)
METRICS = {
    "dino": (
        "DINO",
        "dino",
        "mean cosine of DINO ViT-S/16 features over all pairs of a picture and a photo",
    ),
    "clip_i": (
        "CLIP-I",
        "clip",
        "mean cosine of CLIP's image features over all pairs of a picture and a photo",
    ),
    "clip_t": (
        "CLIP-T",
        "clip",
        "mean cosine of CLIP's features of a picture and of its prompt",
    ),
    "pres": (
        "PRES ↓",
        "dino",
        "mean cosine of DINO features over all pairs of a picture of the class alone "
        "(“a [class]”), drawn after tuning, and a photo of the subject; "
        "lower is better",
    ),
    "div": (
        "DIV ↑",
        "lpips",
        "mean LPIPS over all pairs of two pictures of one subject for one prompt; "
        "higher is better",
    ),
    "judge_subject": (
        "subject (judge)",
        "judge",
        "in DINO's place: mean cosine of the judge's subject embeddings over all "
        "pairs of a picture and a photo",
    ),
    "judge_prompt": (
        "prompt (judge)",
        "judge",
        "in CLIP-T's place: the share of the words asked of a picture that the judge "
        "reads in it",
    ),
    "judge_pres": (
        "PRES (judge) ↓",
        "judge",
        "in PRES's place: mean cosine of subject embeddings over all pairs of a "
        "picture of the class alone and a photo",
    ),
    "judge_div": (
        "DIV (judge) ↑",
        "judge",
        "in DIV's place: one minus the mean cosine of the looks of two pictures of one "
        "prompt",
    ),
}
ARTEFACTS = {
    "dino_vits16": "dino_s16",
    "clip_vit_b32": "clip_b32",
    "lpips_alex": "lpips_alex",
}


@dataclasses.dataclass(frozen=True)
class FeatureNetworks:
    """What pictures are looked at through; None for what there is not.

    Attributes:
        cache: folder that keeps features.
        looks: what ``folders.survey`` found in every file.
    """

    dino: Part | None
    clip: Part | None
    lpips: Part | None
    judge: judges.Judge | None
    cache: epath.Path
    mesh: jax.sharding.Mesh
    looks: Mapping[epath.Path, ImageInfo]

    def features(self, part: Part, files: Iterable[epath.Path]) -> np.ndarray:
        """What DINO or CLIP sees in some files, f32 [N, F]."""
        known = (
            (self.looks[file].digest, functools.partial(image_sets.read, file))
            for file in files
        )
        return features.of_known(part, known, cache=self.cache, mesh=self.mesh)

    def networks(self) -> dict[str, Part]:
        """The public ones that there are."""
        each = {"dino": self.dino, "clip": self.clip, "lpips": self.lpips}
        return {name: part for name, part in each.items() if part is not None}

    def untrained(self) -> list[str]:
        """Those with random weights, whose numbers mean nothing."""
        return [name for name, part in self.networks().items() if not part.pretrained]


def load_network(flag: str, name: str, place: str, mesh: jax.sharding.Mesh) -> Part:
    """A network of ``vision.SIZES``, its absence explained by how to get it.

    Args:
        flag: what the user gave its place by.

    Raises:
        InputError: as ``vision.load``, and how to get the weights.
    """
    try:
        return vision.load(name, place, mesh)
    except InputError as error:
        raise InputError(f"--{flag}={place}: {error}; {fetch_hint(name)}") from error


def fetch_hint(name: str) -> str:
    """Where the weights of a network of ``vision.SIZES`` are to be had."""
    artefact = ARTEFACTS.get(name)
    if artefact is None:
        return f"{name} is on the hub, as openai/{name.replace('_vit_', '-vit-')}"
    entry = fetch.known()[artefact]
    if "repo" in entry:
        return f"python -m imagen_booth.convert fetch {artefact} brings {entry['what']}"
    return (
        f"{artefact} in third_party/manifest.json is {entry['what']}, from "
        f"{entry['where']}; imagen_booth/weights/vision.py says how to convert it"
    )


def check_networks(through: FeatureNetworks) -> None:
    """Computes the features of every file in full batches, for later calls to find."""
    for part in (through.dino, through.clip):
        if part is not None:
            through.features(part, through.looks)


def measure(work: ImageSet, through: FeatureNetworks) -> Grouped:
    """Values of every metric that can be measured, one array per prompt.

    PRES has one group; pictures whose prompts are not known are one group too, and
    have neither CLIP-T nor DIV.
    """
    found: Grouped = {}
    groups = work.by_prompt()
    numbers = list(groups.values())
    told = "" not in groups
    files = [shot.file for shot in work.pictures]
    photos = work.subject.photos

    def grouped(values: np.ndarray) -> list[np.ndarray]:
        return [values[group] for group in numbers]

    if through.dino is not None:
        seen = through.features(through.dino, photos)
        pictures = through.features(through.dino, files)
        found["dino"] = grouped(scores.fidelity(pictures, seen))
        if work.class_pictures:
            others = through.features(through.dino, work.class_pictures)
            found["pres"] = [scores.fidelity(others, seen)]
    if through.clip is not None:
        pictures = through.features(through.clip, files)
        likeness = scores.fidelity(pictures, through.features(through.clip, photos))
        found["clip_i"] = grouped(likeness)
        if told:
            texts = features.of_prompts(
                vision.text_tower(through.clip),
                list(groups),
                cache=through.cache,
                mesh=through.mesh,
            )
            found["clip_t"] = [
                scores.prompt_fidelity(
                    pictures[group], np.repeat(texts[None, row], len(group), 0)
                )
                for row, group in enumerate(numbers)
            ]
    several = [group for group in numbers if len(group) > 1] if told else []
    if through.lpips is not None and several:
        apart = [
            features.distances(
                through.lpips,
                [image_sets.read(files[number]) for number in group],
                cache=through.cache,
            )
            for group in several
        ]
        found["div"] = [np.array([scores.diversity(each)]) for each in apart]
    if through.judge is not None:
        found |= _judged(work, through.judge, several)
    return found


def _judged(
    work: ImageSet, judge: judges.Judge, several: Sequence[Sequence[int]]
) -> Grouped:
    groups = work.by_prompt()
    readings = judge.read(image_sets.read(shot.file) for shot in work.pictures)
    photos = judge.read(map(image_sets.read, work.subject.photos)).subjects
    likeness = scores.fidelity(readings.subjects, photos)
    found = {"judge_subject": [likeness[group] for group in groups.values()]}
    if work.class_pictures:
        others = judge.read(map(image_sets.read, work.class_pictures))
        found["judge_pres"] = [scores.fidelity(others.subjects, photos)]
    asked = {prompt: requested_attributes(prompt, judge) for prompt in groups}
    shares = [
        np.array(
            [
                np.mean(list(judges.answers(readings, number, wanted).values()))
                for number in groups[prompt]
            ]
        )
        for prompt, wanted in asked.items()
        if wanted is not None
    ]
    if shares:
        found["judge_prompt"] = shares
    if several:
        found["judge_div"] = [
            np.array([judges.diversity(readings.looks[group])]) for group in several
        ]
    return found


def requested_attributes(prompt: str, judge: judges.Judge) -> Attributes | None:
    """What a prompt asks for, if the judge was taught all its words, else None."""
    tier = judge.manifest.get("recipe", {}).get("tier", "B")
    if coverage.beyond(prompt, dataclasses.asdict(TIERS[tier])):
        return None
    try:
        return parse(prompt)
    except InputError:
        return None


def measure_photos(subject: SubjectPhotos, through: FeatureNetworks) -> Grouped:
    """The photos among themselves, one value each; nothing where there is only one.

    A photo's value is its mean cosine to the others: their mean is that over all
    pairs of different photos.
    """
    if len(subject.photos) < 2:
        return {}
    found: Grouped = {}
    for metric, part in (("dino", through.dino), ("clip_i", through.clip)):
        if part is not None:
            found[metric] = [scores.among(through.features(part, subject.photos))]
    if through.judge is not None:
        images = map(image_sets.read, subject.photos)
        found["judge_subject"] = [scores.among(through.judge.read(images).subjects)]
    return found


def pool_scores(measured: Mapping[str, Iterable[Grouped]]) -> dict[str, Score]:
    """Scores of a system over its subjects.

    Groups of the bootstrap are subjects; of a single subject, its prompts.

    Args:
        measured: by subject, what ``measure`` found in each work.
    """
    by_metric: dict[str, dict[str, list[np.ndarray]]] = {}
    for subject, some in measured.items():
        for values in some:
            for metric, groups in values.items():
                kept = by_metric.setdefault(metric, {})
                kept.setdefault(subject, []).extend(groups)
    return {
        metric: scores.summarise(
            [np.concatenate(groups) for groups in found.values()]
            if len(found) > 1
            else next(iter(found.values()))
        )
        for metric, found in by_metric.items()
    }


def caveats(
    system: str, some: Sequence[ImageSet], looks: Mapping[Any, ImageInfo]
) -> list[str]:
    """What a reader of the numbers should know of a system's pictures."""
    said = []
    shots = [shot for work in some for shot in work.pictures]
    copies = sum(
        looks[shot.file].digest
        in {looks[photo].digest for photo in work.subject.photos}
        for work in some
        for shot in work.pictures
    )
    if copies:
        said.append(
            f"{system}: {copies} of {len(shots)} pictures are photos of the subject, "
            "pixel by pixel; each is compared with itself too"
        )
    long = [s for s in shots if looks[s.file].size[0] != looks[s.file].size[1]]
    if long:
        said.append(
            f"{system}: {len(long)} of {len(shots)} pictures are not square; what "
            "DINO and CLIP see is their middle"
        )
    told = all(shot.prompt for shot in shots)
    if not told:
        said.append(f"{system}: nothing says the prompts: no CLIP-T, no DIV")
    counts = sorted(
        {len(group) for work in some for group in work.by_prompt().values()}
    )
    if told and len(counts) > 1:
        said.append(
            f"{system}: {counts[0]} to {counts[-1]} pictures of a prompt; was every "
            "job finished?"
        )
    return said


def sizes(
    shots: Iterable[epath.Path], looks: Mapping[epath.Path, ImageInfo]
) -> list[str]:
    """Distinct sizes, "512 x 512", from small to large."""
    found = {looks[file].size for file in shots}
    return [f"{width} x {height}" for width, height in sorted(found)]


def describe_networks(through: FeatureNetworks) -> dict[str, Any]:
    """The instruments, for the JSON: sources, licences, preparation."""
    found: dict[str, Any] = {
        kind: {
            **part.origin(),
            "preparation": dataclasses.asdict(preprocess.RECIPES[part.name]),
        }
        for kind, part in through.networks().items()
    }
    if through.judge is not None:
        found["judge"] = {"name": "judge", **through.judge.manifest}
    return found
