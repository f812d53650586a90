"""Prompts -> cascade -> images.

The same function draws class images, preview grids and the pictures of a run.  An
image depends on its prompt, its seed and the settings, not on the batch it is in.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

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
from imagen_booth.models.hint import hint
from imagen_booth.train_state import Params
from imagen_booth.weights.load import Part, find

# Each stage draws from its own stream of a picture's seed; the number is part of
# what a seed means, so it never changes.
STREAM = {"base": 0, "sr256": 1, "sr1024": 2}
LOW_NOISE = 2**31 - 1  # fold for the noise of the low-res image, beyond all steps


@functools.lru_cache(maxsize=32)
def sampler_program(
    stage: Stage,
    apply: Callable[..., Any],
    config: sampler.SamplerConfig,
) -> Callable[..., Any]:
    """The jitted sampler of a stage; kept, so that it compiles once per shape.

    Returns:
        ``(params, seeds, text, mask, null, null_mask, low, level) -> images``, the
        inputs as ``inputs`` makes them, images [B, R, R, 3] f32 in [-1, 1].
    """
    plan = sampler.plan(stage.schedule, config)
    shape = (stage.resolution, stage.resolution, 3)

    @jax.jit
    def draw(params, seeds, text, mask, null, null_mask, low, level):
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
            *(text, mask, null, null_mask),
            cond,
            config,
        )
        return hint(sampler.sample(denoise, keys, shape, plan, config))

    return draw


def sample_stage(
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
) -> np.ndarray:
    """Draws one image per embedding with one stage.

    Args:
        part: the stage's network; its ``apply`` is used.
        params: the weights to draw with.
        embeddings: B prompts.
        null: what guidance moves away from, for all or one per prompt.
        seeds: B integers below 2^32.
        low: [B, h, w, 3] uint8 images of the stage before; None for the base stage.
        level: augmentation level of ``low``.
        rows: compile for this many rows and pad up to it; default B.

    Returns:
        [B, R, R, 3] uint8 on every process.
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
    return to_bytes(sharding.fetch(images)[: len(embeddings)])


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
    """The global batch that a stage's sampler is given.

    Args:
        embeddings, null, seeds, low, level, rows: as ``draw_stage`` takes them.
        devices: the rows are made a multiple of these, by repeating some.
    """
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
    """A stage ready to draw with.

    Attributes:
        stage, part: the network.
        params: the weights to use.
        level: augmentation level of the low-res image.
        steps: steps it was tuned for; 0 if it is as it came.
        named: it is told of the subject by its identifier, see ``Job.names``.
    """

    stage: Stage
    part: Part
    params: Params
    level: float
    steps: int
    named: bool


@dataclasses.dataclass(frozen=True)
class ImageRequest:
    """One picture to draw.

    Attributes:
        prompt: what is drawn; stages that know the identifier read this.
        plain: the prompt without the identifier, for stages that do not.
        seed: of its noise, below 2^32.
        name: file name without suffix.
    """

    prompt: str
    plain: str
    seed: int
    name: str


def rows_at(stage: Stage, batch: int) -> int:
    """Pictures drawn together: ``batch`` at 64 px, fewer where they are larger."""
    return max(2, batch * 64 // stage.resolution)


def sample_cascade(
    ready: Sequence[LoadedStage],
    requests: Sequence[ImageRequest],
    found: Mapping[str, Embedding],
    samplers: Mapping[str, sampler.SamplerConfig],
    *,
    batch: int,
    mesh: jax.sharding.Mesh,
    check_stop: Callable[[], None],
) -> Iterator[tuple[LoadedStage, np.ndarray]]:
    """Draws pictures stage by stage, all of them with one stage before the next.

    Args:
        ready: the stages, from low to high resolution.
        found: embeddings of every prompt; "" is the null text.
        samplers: by stage name.
        batch: pictures drawn together at 64 px.
        check_stop: raises if the run is asked to stop; called between batches.

    Yields:
        Each stage with its [B, R, R, 3] uint8 pictures, in the order of ``requests``.
    """
    lows: np.ndarray | None = None
    for each in ready:
        rows = rows_at(each.stage, batch)
        drawn = []
        for start in range(0, len(requests), rows):
            check_stop()
            some = requests[start : start + rows]
            spoken = [one.prompt if each.named else one.plain for one in some]
            drawn.append(
                sample_stage(
                    each.stage,
                    each.part,
                    each.params,
                    samplers[each.stage.name],
                    [found[prompt] for prompt in spoken],
                    found[""],
                    [one.seed for one in some],
                    mesh=mesh,
                    low=None if lows is None else lows[start : start + rows],
                    level=each.level,
                    rows=rows,
                )
            )
        lows = np.concatenate(drawn)
        yield each, lows


def image_metadata(ready: LoadedStage, config: sampler.SamplerConfig) -> dict[str, str]:
    """What the metadata of a stage's pictures says of how they were drawn."""
    return {
        "stage": ready.stage.name,
        "weights": ready.part.fingerprint,
        "weights_licence": ready.part.licence,
        "tuned_steps": str(ready.steps),
        "sampler": json.dumps(dataclasses.asdict(config)),
    }


def save_images(
    folder: epath.Path,
    requests: Sequence[ImageRequest],
    images: np.ndarray,
    story: Mapping[str, str],
) -> None:
    """Writes pictures and a contact sheet; each PNG says what made it.

    Args:
        images: [B, R, R, 3] uint8, one per request.
        story: metadata besides prompt and seed, see ``booth.story_of``, ``about``.
    """
    for request, image in zip(requests, images, strict=True):
        image_files.save_png(
            folder / f"{request.name}.png",
            image,
            {"prompt": request.prompt, "seed": str(request.seed), **story},
        )
    sheet = image_files.contact_sheet(
        list(images), [request.prompt for request in requests]
    )
    image_files.save_png(folder / "contact_sheet.png", sheet, story)


def grid(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Images of one size side by side, row by row, white where none is left."""
    rows = -(-len(images) // columns)
    height, width, _ = images[0].shape
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + height, left : left + width] = image
    return sheet


def run_metadata(
    workdir: epath.Path, cascade: Cascade, identifier: str = "", noun: str = ""
) -> dict[str, str]:
    """Metadata of every picture that a run draws, as far as it is known."""
    told = {
        "run": workdir.name,
        "cascade": cascade.name,
        "licence": cascade.licence,
        "software": f"imagen_booth {metadata.version('imagen_booth')}",
        "identifier": identifier,
        "subject": noun,
    }
    return {name: value for name, value in told.items() if value}


def scheduler_warnings(job: Job, cascade: Cascade) -> list[str]:
    """Where a job draws otherwise than the scheduler files of its weights say.

    The job's settings count: the warnings name both.

    Raises:
        InputError: weights that cannot be read.
    """
    said = []
    for stage in cascade.stages:
        source = getattr(job.weights, stage.name)
        found = find(cascade, stage.name, source)
        told = {} if found is None else found.sampler
        samplers = {f"pictures.{stage.name}": getattr(job.pictures, stage.name)}
        if stage.low_resolution is None:
            samplers["class_images.sampler"] = job.class_images.sampler
        said += [
            f"config.{where}.{field} is {getattr(sampler, field)!r}, but the scheduler "
            f"of config.weights.{stage.name}={source} has {value!r}; the setting counts"
            for where, sampler in samplers.items()
            for field, value in told.items()
            if getattr(sampler, field) != value
        ]
    return said
