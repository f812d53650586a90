"""Previews of a stage in training: the same pictures each time, and their scores."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from imagen_booth import train_state
from imagen_booth.cascade import Stage
from imagen_booth.config.schema import Job, Subject
from imagen_booth.data import image_files, photos, similarity
from imagen_booth.data.examples import Embedding, ImagePair, SubjectExamples
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.distributed import processes
from imagen_booth.sampling.cascade_sampler import grid, rows_at, sample_stage
from imagen_booth.storage import from_cache
from imagen_booth.training import subject_photos
from imagen_booth.training.subject_prompts import SubjectPrompts
from imagen_booth.weights.load import Part

BASE_PICTURES = (4, 2, 2)  # of the subject, of it elsewhere, of its class


@dataclasses.dataclass(frozen=True)
class Preview:
    """The pictures sampled at intervals, always from the same noise.

    Attributes:
        prompts: One per picture, the first ``subjects`` of them the instance prompt,
            the last ``classes`` of them the class prompt; of two subjects, equally
            many of the one and then of the other.
        embeddings: Embeddings of the prompts.
        null: The null text.
        sampler: Sampler of the stage.
        rows: Batch size that the sampler's program is compiled for.
        photos: Pairs of each subject; a super-resolution preview enlarges their low
            versions, and every preview is compared with them.
        subjects, classes: Number of pictures of the subject, and of its class.
        metadata: Further metadata of their files, such as run, cascade and licence.
    """

    prompts: Sequence[str]
    embeddings: Sequence[Embedding]
    null: Embedding
    sampler: SamplerConfig
    rows: int
    photos: Sequence[Sequence[ImagePair]]
    subjects: int
    classes: int = 0
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)


def photo_example(subject: Subject, stage: Stage, photo: photos.Photo) -> ImagePair:
    """A photo as a stage is trained on it, with its low-res version."""
    low = stage.low_resolution
    return ImagePair(
        subject_photos.crop_photo(subject, photo, stage.resolution),
        None if low is None else subject_photos.crop_photo(subject, photo, low),
    )


def plan_preview(
    job: Job,
    stage: Stage,
    prompts: SubjectPrompts,
    subjects: Sequence[SubjectExamples],
    metadata: Mapping[str, str],
) -> Preview:
    """What previews of a stage show.

    Base: the subject, the subject elsewhere, and its class; else two photos enlarged.
    Two subjects share the pictures of each kind.
    """
    pairs = [each.photos for each in subjects]
    if stage.low_resolution is None:
        of_subject, elsewhere, of_class = BASE_PICTURES
        shown = [
            *_in_turn([each.prompt for each in subjects], of_subject),
            *(
                prompts.pictures[(1 + index) % len(prompts.pictures)]
                for index in range(elsewhere)
            ),
            *_in_turn([each.class_prompt for each in subjects], of_class),
        ]
    else:
        pairs = [some[: 2 // len(subjects)] for some in pairs]
        shown = [
            each.prompt
            for each, some in zip(subjects, pairs, strict=True)
            for _ in some
        ]
    return Preview(
        prompts=shown,
        embeddings=[prompts.embeddings[prompt] for prompt in shown],
        null=prompts.embeddings[""],
        sampler=getattr(job.pictures, stage.name),
        rows=max(rows_at(stage, job.pictures.batch), len(shown)),
        photos=pairs,
        subjects=BASE_PICTURES[0],
        classes=BASE_PICTURES[2] if stage.low_resolution is None else 0,
        metadata=metadata,
    )


def _in_turn(prompts: Sequence[str], count: int) -> list[str]:
    """``count`` prompts, equally many of each."""
    return [prompt for prompt in prompts for _ in range(count // len(prompts))]


def _similarity(
    images: np.ndarray, photos: Sequence[Sequence[ImagePair]]
) -> dict[str, float]:
    """The mean over subjects of the similarity of their pictures to their photos.

    Args:
        images: As many pictures of each subject, one subject after the other.
    """
    found = [
        similarity.to_photos(shown, [pair.image for pair in pairs])
        for shown, pairs in zip(np.split(images, len(photos)), photos, strict=True)
    ]
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


@dataclasses.dataclass(frozen=True)
class PreviewScores:
    """Similarity of a preview's pictures to the photos, by measure.

    Attributes:
        subject: Scores of the subject, see ``similarity``; PSNR for super-resolution.
        class_scores: The same scores of the class; empty for super-resolution.
    """

    subject: dict[str, float]
    class_scores: dict[str, float]


def sample_preview(
    stage: Stage,
    part: Part,
    params: train_state.Params,
    level: float,
    preview: Preview,
    mesh: jax.sharding.Mesh,
) -> tuple[np.ndarray, PreviewScores]:
    """Samples a preview grid and scores it against the photos.

    A super-resolution grid has rows of three: the low-res image, the stage's own
    enlargement of it, and the photo itself.

    Args:
        level: Augmentation level of the low-res image.

    Returns:
        The grid, uint8 [H, W, 3], and its scores.
    """
    low, pairs = None, [pair for some in preview.photos for pair in some]
    if stage.low_resolution is not None:
        low = np.stack([pair.low for pair in pairs if pair.low is not None])
    images = sample_stage(
        stage,
        part,
        params,
        preview.sampler,
        preview.embeddings,
        preview.null,
        range(len(preview.embeddings)),
        mesh=mesh,
        low=low,
        level=level,
        rows=preview.rows,
    )
    if low is None:
        of_class = images[len(images) - preview.classes :]
        return grid(list(images), 4), PreviewScores(
            _similarity(images[: preview.subjects], preview.photos),
            _similarity(of_class, preview.photos) if preview.classes else {},
        )
    truths = [pair.image for pair in pairs]
    enlarged = low.repeat(stage.scale, 1).repeat(stage.scale, 2)
    cells = [cell for row in zip(enlarged, images, truths, strict=True) for cell in row]
    near = [similarity.psnr(*pair) for pair in zip(images, truths, strict=True)]
    return grid(cells, 3), PreviewScores(
        {"PSNR against the photo, dB": float(np.mean(near))}, {}
    )


def preview_file(folder: epath.Path, step: int) -> epath.Path:
    """Where a step's preview is."""
    return folder / f"step_{step:06d}.png"


def write_preview(
    folder: epath.Path,
    step: int,
    sheet: np.ndarray,
    shown: Preview,
    found: PreviewScores,
) -> None:
    """Writes a preview with its prompts and scores; the first process does."""
    if processes.is_first():
        entries: dict[str, Any] = {
            "prompts": list(shown.prompts),
            "step": step,
            "measured": found.subject,
            "measured_class": found.class_scores,
        }
        image_files.save_png(
            preview_file(folder, step),
            sheet,
            {name: json.dumps(value) for name, value in entries.items()}
            | dict(shown.metadata),
        )


def read_scores(folder: epath.Path) -> dict[int, PreviewScores]:
    """The scores of the previews in a folder, by step."""
    found = {}
    for path in folder.glob("step_*.png") if folder.exists() else ():
        metadata = from_cache(path, image_files.read_png_metadata)
        if metadata is None or "measured" not in metadata:
            continue
        found[int(path.stem.removeprefix("step_"))] = PreviewScores(
            json.loads(metadata["measured"]),
            json.loads(metadata.get("measured_class", "{}")),
        )
    return found
