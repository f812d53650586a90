"""DreamBooth's protocol: which features are compared, and how scores are pooled.

Public networks score photographs: DINO, CLIP-I, CLIP-T, PRES and DIV, see ``scores``.
The judge scores toybox pictures, with its own form of each metric but CLIP-I.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from imagen_booth.errors import InputError
from imagen_booth.evaluation import features, image_sets, preprocess, scores
from imagen_booth.evaluation import toybox_judge as judges
from imagen_booth.evaluation.image_sets import ImageInfo, ImageSet, SubjectPhotos
from imagen_booth.evaluation.scores import Score
from imagen_booth.toybox.captions import parse
from imagen_booth.toybox.grammar import Attributes
from imagen_booth.weights import fetch, vision
from imagen_booth.weights.load import Part

PHOTOS = "Real images"  # the paper's row of the photos among themselves
Grouped = dict[str, list[np.ndarray]]  # metric -> values of each prompt


class Metric(NamedTuple):
    """A metric of the table.

    Attributes:
        title: Name in the table; an arrow shows whether lower or higher is better.
        network: The network of ``FeatureNetworks`` that it needs.
        definition: The metric in words.
    """

    title: str
    network: str
    definition: str


METRICS = {
    "dino": Metric(
        "DINO",
        "dino",
        "mean cosine of DINO ViT-S/16 features over all pairs of a picture and a photo",
    ),
    "clip_i": Metric(
        "CLIP-I",
        "clip",
        "mean cosine of CLIP's image features over all pairs of a picture and a photo",
    ),
    "clip_t": Metric(
        "CLIP-T",
        "clip",
        "mean cosine of CLIP's features of a picture and of its prompt",
    ),
    "pres": Metric(
        "PRES ↓",
        "dino",
        "mean cosine of DINO features over all pairs of a picture of the class alone "
        "(“a [class]”), generated after fine-tuning, and a photo of the subject; "
        "lower is better",
    ),
    "div": Metric(
        "DIV ↑",
        "lpips",
        "mean LPIPS over all pairs of two pictures of one subject for one prompt; "
        "higher is better",
    ),
    "judge_subject": Metric(
        "subject (judge)",
        "judge",
        "in place of DINO: mean cosine of the judge's subject embeddings over all "
        "pairs of a picture and a photo",
    ),
    "judge_prompt": Metric(
        "prompt (judge)",
        "judge",
        "in place of CLIP-T: the share of the words of a prompt that the judge reads "
        "in the picture",
    ),
    "judge_pres": Metric(
        "PRES (judge) ↓",
        "judge",
        "in place of PRES: mean cosine of subject embeddings over all pairs of a "
        "picture of the class alone and a photo",
    ),
    "judge_div": Metric(
        "DIV (judge) ↑",
        "judge",
        "in place of DIV: one minus the mean cosine of the judge's descriptions of two "
        "pictures of one prompt",
    ),
}
# Entry of third_party/manifest.json for each network that has one.
ARTEFACTS = {
    "dino_vits16": "dino_s16",
    "clip_vit_b32": "clip_b32",
    "lpips_alex": "lpips_alex",
}


@dataclasses.dataclass(frozen=True)
class FeatureNetworks:
    """The networks of the metrics; None for a network that is not used.

    Attributes:
        dino: DINO ViT-S/16.
        clip: CLIP, both towers.
        lpips: LPIPS on AlexNet.
        judge: The toybox judge.
        cache: Folder for computed features.
        mesh: Devices of the networks.
        info: What ``image_sets.inspect_images`` found in every file.
    """

    dino: Part | None
    clip: Part | None
    lpips: Part | None
    judge: judges.Judge | None
    cache: epath.Path
    mesh: jax.sharding.Mesh
    info: Mapping[epath.Path, ImageInfo]

    def features(self, part: Part, files: Iterable[epath.Path]) -> np.ndarray:
        """DINO or CLIP features of some files, f32 [N, F]."""
        pictures = (
            (self.info[file].digest, functools.partial(image_sets.read, file))
            for file in files
        )
        return features.of_known(part, pictures, cache=self.cache, mesh=self.mesh)

    def public(self) -> dict[str, Part]:
        """The public networks that are used, by name."""
        parts = {"dino": self.dino, "clip": self.clip, "lpips": self.lpips}
        return {name: part for name, part in parts.items() if part is not None}

    def untrained(self) -> list[str]:
        """Names of networks with random weights; their scores mean nothing."""
        return [name for name, part in self.public().items() if not part.pretrained]

    def describe(self) -> dict[str, Any]:
        """Source, licence and preprocessing of every network, for the JSON."""
        found: dict[str, Any] = {
            name: {
                **part.origin(),
                "preparation": dataclasses.asdict(preprocess.RECIPES[part.name]),
            }
            for name, part in self.public().items()
        }
        if self.judge is not None:
            found["judge"] = {"name": "judge", **self.judge.manifest}
        return found


def load_network(flag: str, name: str, place: str, mesh: jax.sharding.Mesh) -> Part:
    """Loads a network of ``vision.SIZES``.

    Args:
        flag: Name of the flag that gave the place.
        name: Name of the network.
        place: Folder or file of the weights, or ``random``.
        mesh: Devices of the network.

    Raises:
        InputError: As ``vision.load``; the message explains how to get the weights.
    """
    try:
        return vision.load(name, place, mesh)
    except InputError as error:
        raise InputError(f"--{flag}={place}: {error}; {fetch_hint(name)}") from error


def fetch_hint(name: str) -> str:
    """How to get the weights of a network of ``vision.SIZES``, in words."""
    artefact = ARTEFACTS.get(name)
    if artefact is None:
        return f"{name} is on the hub, as openai/{name.replace('_vit_', '-vit-')}"
    entry = fetch.known()[artefact]
    if "repo" in entry:
        return (
            f"python -m imagen_booth.convert fetch {artefact} downloads {entry['what']}"
        )
    return (
        f"{artefact} in third_party/manifest.json is {entry['what']}, from "
        f"{entry['where']}; imagen_booth/weights/vision.py says how to convert it"
    )


def compute_features(networks: FeatureNetworks) -> None:
    """Computes the features of every file in full batches and caches them."""
    for part in (networks.dino, networks.clip):
        if part is not None:
            networks.features(part, networks.info)


def measure(images: ImageSet, networks: FeatureNetworks) -> Grouped:
    """Values of every metric that can be measured, one array per prompt.

    PRES has one group. Pictures without a known prompt are one group too, and have
    neither CLIP-T nor DIV.
    """
    found: Grouped = {}
    groups = images.by_prompt()
    prompts_known = "" not in groups
    files = [picture.file for picture in images.pictures]
    photos = images.subject.photos
    if networks.dino is not None:
        of_photos = networks.features(networks.dino, photos)
        likeness = scores.fidelity(networks.features(networks.dino, files), of_photos)
        found["dino"] = [likeness[group] for group in groups.values()]
        if images.class_pictures:
            of_class = networks.features(networks.dino, images.class_pictures)
            found["pres"] = [scores.fidelity(of_class, of_photos)]
    if networks.clip is not None:
        pictures = networks.features(networks.clip, files)
        likeness = scores.fidelity(pictures, networks.features(networks.clip, photos))
        found["clip_i"] = [likeness[group] for group in groups.values()]
        if prompts_known:
            texts = features.of_prompts(
                vision.text_tower(networks.clip),
                list(groups),
                cache=networks.cache,
                mesh=networks.mesh,
            )
            found["clip_t"] = [
                scores.prompt_fidelity(
                    pictures[group], np.repeat(text[None], len(group), 0)
                )
                for text, group in zip(texts, groups.values(), strict=True)
            ]
    several = [group for group in groups.values() if len(group) > 1 and prompts_known]
    if networks.lpips is not None and several:
        found["div"] = [
            np.array([_lpips_diversity(networks.lpips, some, networks.cache)])
            for some in ([files[number] for number in group] for group in several)
        ]
    if networks.judge is not None:
        found |= _measure_by_judge(images, networks.judge, several)
    return found


def _lpips_diversity(
    lpips: Part, files: Sequence[epath.Path], cache: epath.Path
) -> float:
    pictures = [image_sets.read(file) for file in files]
    return scores.diversity(features.distances(lpips, pictures, cache=cache))


def _measure_by_judge(
    images: ImageSet, judge: judges.Judge, several: Sequence[Sequence[int]]
) -> Grouped:
    """Values of the judge's metrics.

    Args:
        images: The pictures.
        judge: The toybox judge.
        several: Numbers of the pictures of each prompt that has two or more.
    """
    groups = images.by_prompt()
    readings = judge.read(image_sets.read(picture.file) for picture in images.pictures)
    photos = judge.read(map(image_sets.read, images.subject.photos)).subjects
    likeness = scores.fidelity(readings.subjects, photos)
    found = {"judge_subject": [likeness[group] for group in groups.values()]}
    if images.class_pictures:
        of_class = judge.read(map(image_sets.read, images.class_pictures))
        found["judge_pres"] = [scores.fidelity(of_class.subjects, photos)]
    requested = {prompt: requested_attributes(prompt) for prompt in groups}
    shares = [
        np.array(
            [
                np.mean(list(judges.answers(readings, number, attributes).values()))
                for number in groups[prompt]
            ]
        )
        for prompt, attributes in requested.items()
        if attributes is not None
    ]
    if shares:
        found["judge_prompt"] = shares
    if several:
        found["judge_div"] = [
            np.array([judges.diversity(readings.looks[group])]) for group in several
        ]
    return found


def requested_attributes(prompt: str) -> Attributes | None:
    """Attributes that a prompt names; None if the toybox does not know its words."""
    try:
        return parse(prompt)
    except InputError:
        return None


def measure_photos(subject: SubjectPhotos, networks: FeatureNetworks) -> Grouped:
    """Values of the photos among themselves; empty for a single photo.

    The value of a photo is its mean cosine to the others, so that the mean over photos
    is the mean over all pairs of different photos.
    """
    if len(subject.photos) < 2:
        return {}
    found: Grouped = {}
    for metric, part in (("dino", networks.dino), ("clip_i", networks.clip)):
        if part is not None:
            found[metric] = [scores.among(networks.features(part, subject.photos))]
    if networks.judge is not None:
        photos = networks.judge.read(map(image_sets.read, subject.photos))
        found["judge_subject"] = [scores.among(photos.subjects)]
    return found


def pool_scores(measured: Mapping[str, Iterable[Grouped]]) -> dict[str, Score]:
    """Scores of a system over its subjects.

    The bootstrap samples subjects; for a single subject, it samples prompts.

    Args:
        measured: By subject, what ``measure`` returned for each of its image sets.
    """
    by_metric: dict[str, dict[str, list[np.ndarray]]] = {}
    for subject, results in measured.items():
        for values in results:
            for metric, groups in values.items():
                by_subject = by_metric.setdefault(metric, {})
                by_subject.setdefault(subject, []).extend(groups)
    return {
        metric: scores.summarise(
            [np.concatenate(groups) for groups in by_subject.values()]
            if len(by_subject) > 1
            else next(iter(by_subject.values()))
        )
        for metric, by_subject in by_metric.items()
    }


def caveats(
    system: str, sets: Sequence[ImageSet], info: Mapping[epath.Path, ImageInfo]
) -> list[str]:
    """Warnings about the pictures of a system, for the reader of its scores."""
    found = []
    pictures = [picture for images in sets for picture in images.pictures]
    copies = sum(
        info[picture.file].digest
        in {info[photo].digest for photo in images.subject.photos}
        for images in sets
        for picture in images.pictures
    )
    if copies:
        found.append(
            f"{system}: {copies} of {len(pictures)} pictures are photos of the "
            "subject, pixel by pixel; each is compared with itself too"
        )
    oblong = [each for each in pictures if len(set(info[each.file].size)) > 1]
    if oblong:
        found.append(
            f"{system}: {len(oblong)} of {len(pictures)} pictures are not square; "
            "DINO and CLIP see only their middle"
        )
    if not all(picture.prompt for picture in pictures):
        found.append(f"{system}: the prompts are not known: no CLIP-T, no DIV")
        return found
    counts = {len(group) for images in sets for group in images.by_prompt().values()}
    if len(counts) > 1:
        found.append(
            f"{system}: {min(counts)} to {max(counts)} pictures of a prompt; check "
            "that every job is finished"
        )
    return found


def sizes(
    files: Iterable[epath.Path], info: Mapping[epath.Path, ImageInfo]
) -> list[str]:
    """Distinct sizes of pictures, such as "512 x 512", from small to large."""
    found = {info[file].size for file in files}
    return [f"{width} x {height}" for width, height in sorted(found)]
