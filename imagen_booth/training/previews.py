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
from imagen_booth.config.schema import Job
from imagen_booth.data import image_files, photos, similarity
from imagen_booth.data.examples import Embedding, ImagePair
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
            the last ``classes`` of them the class prompt.
        embeddings: Embeddings of the prompts.
        null: The null text.
        sampler: Sampler of the stage.
        rows: Batch size that the sampler's program is compiled for.
        photos: Pairs of the subject; a super-resolution preview enlarges their low
            versions, and every preview is compared with them.
        subjects, classes: Number of pictures of the subject, and of its class.
        metadata: Further metadata of their files, such as run, cascade and licence.
    """

    prompts: Sequence[str]
    embeddings: Sequence[Embedding]
    null: Embedding
    sampler: SamplerConfig
    rows: int
    photos: Sequence[ImagePair]
    subjects: int
    classes: int = 0
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)


def photo_example(job: Job, stage: Stage, photo: photos.Photo) -> ImagePair:
    """A photo as a stage is trained on it, with its low-res version."""
    low = stage.low_resolution
    return ImagePair(
        subject_photos.crop_photo(job.subject, photo, stage.resolution),
        None if low is None else subject_photos.crop_photo(job.subject, photo, low),
    )


def plan_preview(
    job: Job,
    stage: Stage,
    prompts: SubjectPrompts,
    subject: Sequence[ImagePair],
    metadata: Mapping[str, str],
) -> Preview:
    """What previews of a stage show.

    Base: the subject, the subject elsewhere, and its class; else two photos enlarged.
    """
    if stage.low_resolution is None:
        counts = zip(
            BASE_PICTURES,
            (prompts.instance_prompt, None, prompts.class_prompt),
            strict=True,
        )
        shown = [
            prompt or prompts.pictures[(1 + index) % len(prompts.pictures)]
            for count, prompt in counts
            for index in range(count)
        ]
    else:
        subject = subject[:2]
        shown = [prompts.instance_prompt] * len(subject)
    return Preview(
        prompts=shown,
        embeddings=[prompts.embeddings[prompt] for prompt in shown],
        null=prompts.embeddings[""],
        sampler=getattr(job.pictures, stage.name),
        rows=max(rows_at(stage, job.pictures.batch), len(shown)),
        photos=subject,
        subjects=BASE_PICTURES[0],
        classes=BASE_PICTURES[2] if stage.low_resolution is None else 0,
        metadata=metadata,
    )


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
    low = None
    if stage.low_resolution is not None:
        low = np.stack([pair.low for pair in preview.photos if pair.low is not None])
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
    truths = [pair.image for pair in preview.photos]
    if low is None:
        of_class = images[len(images) - preview.classes :]
        return grid(list(images), 4), PreviewScores(
            similarity.to_photos(images[: preview.subjects], truths),
            similarity.to_photos(of_class, truths) if preview.classes else {},
        )
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
