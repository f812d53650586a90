"""Prompts -> cascade -> images.

The same function samples class images, previews and the images of a run. An image
depends on its prompt, its seed and the settings, not on the batch it is in.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from imagen_booth.cascade import Cascade, Stage
from imagen_booth.config.schema import Job
from imagen_booth.data import image_files
from imagen_booth.data.examples import Embedding
from imagen_booth.data.pipeline import to_bytes, to_unit
from imagen_booth.denoiser import condition, guided_denoiser
from imagen_booth.diffusion import sampler
from imagen_booth.distributed import sharding
from imagen_booth.errors import InputError
from imagen_booth.models.hint import hint
from imagen_booth.rundir.programs import StoredProgram, describe
from imagen_booth.text.prompts import Naming
from imagen_booth.train_state import Params
from imagen_booth.weights.load import Forward, Part, find

MAX_SEED = 2**32 - 1  # seeds are uint32
# Each stage has its own random stream of an image's seed. A changed number would change
# the images of every seed.
STREAM = {"base": 0, "sr256": 1, "sr1024": 2}
LOW_NOISE = 2**31 - 1  # folded in for the noise of the low-res image; beyond all steps


@functools.lru_cache(maxsize=32)
def sampler_program(
    stage: Stage,
    apply: Forward,
    config: sampler.SamplerConfig,
) -> Callable[..., Any]:
    """The sampler of a stage, jitted and stored; cached, to compile once per shape.

    Returns:
        ``(params, seeds, text, mask, null, null_mask, low, level) -> images``, with
        inputs from ``sampler_inputs`` and images [B, R, R, 3] f32 in [-1, 1].
    """
    plan = sampler.plan(stage.schedule, config)
    shape = (stage.resolution, stage.resolution, 3)

    @jax.jit
    def program(params, seeds, text, mask, null, null_mask, low, level):
        root = jax.vmap(jax.random.key)(seeds)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, STREAM[stage.name]))(root)
        cond = None
        if stage.low_resolution is not None:
            noise = jax.vmap(
                lambda key: jax.random.normal(jax.random.fold_in(key, LOW_NOISE), shape)
            )(keys)
            cond = condition(stage, low, level, noise)
        denoise = guided_denoiser(
            stage,
            functools.partial(apply, params),
            text,
            mask,
            null,
            null_mask,
            cond,
            config,
            functools.partial(apply.read_text, params),
        )
        return hint(sampler.sample(denoise, keys, shape, plan, config))

    return StoredProgram(program, describe(stage, apply, config))


class PendingImages(NamedTuple):
    """Images that the devices are sampling.

    Attributes:
        images: [rows, R, R, 3] f32 in [-1, 1], on the devices.
        count: Number of rows that are images; the others are padding.
    """

    images: jax.Array
    count: int

    def fetch(self) -> np.ndarray:
        """Waits for the images: [B, R, R, 3] uint8 on every process."""
        return to_bytes(sharding.fetch(self.images)[: self.count])


def sample_stage(*inputs: Any, **settings: Any) -> np.ndarray:
    """Samples one image per embedding with one stage, see ``start_sampling``.

    Returns:
        [B, R, R, 3] uint8 on every process.

    Raises:
        InputError: A seed out of range.
    """
    return start_sampling(*inputs, **settings).fetch()


def start_sampling(
    stage: Stage,
    part: Part,
    params: Params,
    config: sampler.SamplerConfig,
    embeddings: Sequence[Embedding],
    null: Embedding | Sequence[Embedding],
    seeds: Sequence[int],
    *,
    mesh: jax.sharding.Mesh,
    low: np.ndarray | None = None,
    level: float = 0.0,
    rows: int | None = None,
) -> PendingImages:
    """Sends the sampling of one image per embedding to the devices.

    Args:
        part: The stage's network, for its ``apply``.
        params: The weights to sample with.
        embeddings: Embeddings of B prompts.
        null: What guidance moves away from: one embedding for all, or one per prompt.
        seeds: B integers from 0 to ``MAX_SEED``.
        low: [B, h, w, 3] uint8 images of the previous stage; None for the base stage.
        level: Augmentation level of ``low``.
        rows: Number of rows to compile for and pad to; B by default.

    Raises:
        InputError: A seed out of range.
    """
    # The global batch is the same numpy array on every process.
    placed = {
        name: None
        if value is None
        else jax.make_array_from_callback(
            value.shape, sharding.rows(mesh), lambda index, value=value: value[index]
        )
        for name, value in sampler_inputs(
            embeddings, null, seeds, low, level, rows=rows, devices=mesh.size
        ).items()
    }
    images = sampler_program(stage, part.apply, config)(params, **placed)
    return PendingImages(images, len(embeddings))


def sampler_inputs(
    embeddings: Sequence[Embedding],
    null: Embedding | Sequence[Embedding],
    seeds: Sequence[int],
    low: np.ndarray | None,
    level: float,
    *,
    rows: int | None,
    devices: int,
) -> dict[str, np.ndarray | None]:
    """The global batch of a stage's sampler.

    Args:
        embeddings, null, seeds, low, level, rows: As for ``sample_stage``.
        devices: The number of rows is padded to a multiple of this by repeating rows.

    Raises:
        InputError: A seed out of range.
    """
    outside = [seed for seed in seeds if not 0 <= seed <= MAX_SEED]
    if outside:
        raise InputError(
            f"an image has the seed {outside[0]}, but seeds run from 0 to {MAX_SEED}; "
            "give another first seed"
        )
    count = len(embeddings)
    nulls = [null] * count if isinstance(null, Embedding) else list(null)
    total = -(-(rows or count) // devices) * devices
    pick = [row % count for row in range(total)]

    def stack(values: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([values[index] for index in pick])

    return {
        "seeds": np.asarray(seeds, np.uint32)[pick],
        "text": stack([each.text for each in embeddings]),
        "mask": stack([each.mask for each in embeddings]),
        "null": stack([each.text for each in nulls]),
        "null_mask": stack([each.mask for each in nulls]),
        "low": None if low is None else to_unit(low[pick]),
        "level": None if low is None else np.full(total, level, np.float32),
    }


@dataclasses.dataclass(frozen=True)
class LoadedStage:
    """A stage with its weights.

    Attributes:
        stage: The stage.
        part: Its network.
        params: The weights to sample with.
        level: Augmentation level of the low-res image.
        steps: Steps of fine-tuning; 0 if the stage is as published.
        uses_identifier: Whether its prompts name the subject by the identifier, see
            ``Job.uses_identifier``.
    """

    stage: Stage
    part: Part
    params: Params
    level: float
    steps: int
    uses_identifier: bool


@dataclasses.dataclass(frozen=True)
class ImageRequest:
    """One image to sample.

    Attributes:
        prompt: Prompt for the stages that know the identifier.
        plain: Prompt without the identifier, for the stages that do not.
        seed: Seed of its noise, from 0 to ``MAX_SEED``.
        name: File name without suffix.
    """

    prompt: str
    plain: str
    seed: int
    name: str


def rows_at(stage: Stage, batch: int) -> int:
    """Images per batch: ``batch`` at 64 px, fewer at higher resolutions."""
    return max(2, batch * 64 // stage.resolution)


def sample_cascade(
    stages: Sequence[LoadedStage],
    requests: Sequence[ImageRequest],
    embeddings: Mapping[str, Embedding],
    samplers: Mapping[str, sampler.SamplerConfig],
    *,
    batch: int,
    mesh: jax.sharding.Mesh,
    check_stop: Callable[[], None],
) -> Iterator[tuple[LoadedStage, np.ndarray]]:
    """Samples images stage by stage: all of one stage before the next.

    Args:
        stages: The stages, from low to high resolution.
        embeddings: Embedding of every prompt; "" is the null text.
        samplers: Sampler settings by stage name.
        batch: Images per batch at 64 px.
        check_stop: Raises if a signal has come; called between batches.

    Yields:
        Each stage with its [B, R, R, 3] uint8 images, in the order of ``requests``.
    """
    lows: np.ndarray | None = None
    for each in stages:
        rows = rows_at(each.stage, batch)
        images: list[np.ndarray] = []
        sent: PendingImages | None = None
        for start in range(0, len(requests), rows):
            check_stop()
            some = requests[start : start + rows]
            texts = [one.prompt if each.uses_identifier else one.plain for one in some]
            started = start_sampling(
                each.stage,
                each.part,
                each.params,
                samplers[each.stage.name],
                [embeddings[text] for text in texts],
                embeddings[""],
                [one.seed for one in some],
                mesh=mesh,
                low=None if lows is None else lows[start : start + rows],
                level=each.level,
                rows=rows,
            )
            # One batch is fetched while the devices work on the next.
            if sent is not None:
                images.append(sent.fetch())
            sent = started
        if sent is not None:
            images.append(sent.fetch())
        lows = np.concatenate(images)
        yield each, lows


def image_metadata(
    loaded: LoadedStage, config: sampler.SamplerConfig
) -> dict[str, str]:
    """Metadata that the images of one stage share."""
    return {
        "stage": loaded.stage.name,
        "weights": loaded.part.fingerprint,
        "weights_licence": loaded.part.licence,
        "tuned_steps": str(loaded.steps),
        "sampler": json.dumps(dataclasses.asdict(config)),
    }


def save_images(
    folder: epath.Path,
    requests: Sequence[ImageRequest],
    images: np.ndarray,
    shared: Mapping[str, str],
) -> None:
    """Writes images as PNG files with metadata, and a contact sheet.

    Args:
        images: [B, R, R, 3] uint8, one per request.
        shared: Metadata besides prompt and seed, from ``run_metadata`` and
            ``image_metadata``.

    Raises:
        StorageError: A file cannot be written.
    """
    for request, image in zip(requests, images, strict=True):
        image_files.save_png(
            folder / f"{request.name}.png",
            image,
            {"prompt": request.prompt, "seed": str(request.seed), **shared},
        )
    sheet = image_files.contact_sheet(
        list(images), [request.prompt for request in requests]
    )
    image_files.save_png(folder / "contact_sheet.png", sheet, shared)


def grid(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Images of one size in rows of ``columns``; empty cells are white."""
    rows = -(-len(images) // columns)
    height, width, _ = images[0].shape
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + height, left : left + width] = image
    return sheet


def run_metadata(
    workdir: epath.Path,
    cascade: Cascade,
    identifier: str = "",
    noun: str = "",
    second: Naming | None = None,
) -> dict[str, str]:
    """Metadata that all images of a run share; empty values are left out."""
    values = {
        "run": workdir.name,
        "cascade": cascade.name,
        "licence": cascade.licence,
        "software": f"imagen_booth {metadata.version('imagen_booth')}",
        "identifier": identifier,
        "subject": noun,
        "second_identifier": second.identifier if second else "",
        "second_subject": second.noun if second else "",
    }
    return {name: value for name, value in values.items() if value}


def scheduler_warnings(job: Job, cascade: Cascade) -> list[str]:
    """Warnings where a job's sampler differs from the scheduler files of its weights.

    The job's settings are used; each warning names both values.

    Raises:
        InputError: Weights that cannot be read.
    """
    warnings = []
    for stage in cascade.stages:
        source = getattr(job.weights, stage.name)
        found = find(cascade, stage.name, source)
        published = {} if found is None else found.sampler
        samplers = {f"pictures.{stage.name}": getattr(job.pictures, stage.name)}
        if stage.low_resolution is None:
            samplers["class_images.sampler"] = job.class_images.sampler
        warnings += [
            f"config.{where}.{field} is {getattr(config, field)!r}, but the scheduler "
            f"of config.weights.{stage.name}={source} has {value!r}; the setting counts"
            for where, config in samplers.items()
            for field, value in published.items()
            if getattr(config, field) != value
        ]
    return warnings
