"""Class images: samples of the frozen model for the class prompt.

They are stored as lossless PNG in a folder that is named by everything they depend on,
so runs on the same class share them. They are sampled in groups of a fixed shape, as
many groups at a time as the devices have rows for; each device samples its own rows. A
run that was killed samples only the groups that are missing.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from etils import epath

from imagen_booth import storage
from imagen_booth.cascade import Cascade, Stage
from imagen_booth.config.schema import Job
from imagen_booth.data import image_files
from imagen_booth.data.examples import Embedding, ImagePair
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.distributed import processes
from imagen_booth.errors import Stopped
from imagen_booth.sampling.cascade_sampler import PendingImages, start_sampling
from imagen_booth.training.subject_prompts import SubjectPrompts
from imagen_booth.weights.load import Part, load


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that a set of class images depends on.

    Attributes:
        prompt: The class prompt, e.g. ``a dog``.
        unet: Fingerprint of the network's weights.
        made_from: Fingerprint of the text encoder, or digest of the class images
            that a super-resolution stage enlarges.
        stage: The stage that samples.
        level: Augmentation level of the images that are enlarged.
        sampler: Sampler of the stage.
        group: Number of images sampled together.
        seed: Seed of image 0; image ``i`` has seed ``seed + i``.
        dtype: Dtype of the activations.
    """

    prompt: str
    unet: str
    made_from: str
    stage: Stage
    level: float
    sampler: SamplerConfig
    group: int
    seed: int
    dtype: str

    def digest(self) -> str:
        """A name for the folder; equal recipes give equal images.

        It does not depend on how the network is compiled.
        """
        model = dataclasses.replace(self.stage.model, remat=False)
        plain = dataclasses.replace(self.stage, model=model)
        recipe = dataclasses.replace(self, stage=plain)
        # A later setting leaves the names of earlier folders alone where it is off.
        text = repr(recipe).replace(", guidance_interval=None", "")
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def indices(self, group: int) -> range:
        """Indices of the images of a group."""
        return range(group * self.group, (group + 1) * self.group)


def class_image_folder(recipe: Recipe, cache: epath.Path) -> epath.Path:
    """Where the images of a recipe are kept."""
    noun = "".join(c if c.isalnum() else "_" for c in recipe.prompt)[:40]
    return cache / "class_images" / f"{noun}-{recipe.digest()}"


def sample_class_images(
    recipe: Recipe,
    count: int,
    part: Part,
    embedding: Embedding,
    null: Embedding,
    *,
    cache: epath.Path,
    mesh: jax.sharding.Mesh,
    check_stop: Callable[[], None],
    lows: Sequence[np.ndarray] | None = None,
) -> list[np.ndarray]:
    """Samples what is missing and returns the first ``count`` class images.

    All devices of all hosts sample together, each its own images; the first process
    writes.

    Args:
        check_stop: Raises if a signal has come; called between groups.
        lows: Class images of the stage below, uint8, one per image.

    Returns:
        ``count`` uint8 images [R, R, 3].
    """
    folder = class_image_folder(recipe, cache)
    groups = range(-(-count // recipe.group))
    images: dict[int, np.ndarray] = {}

    def read_what_is_there() -> list[int]:
        """Fills ``images`` and gives the groups that are missing or damaged."""
        wanted = [index for group in groups for index in recipe.indices(group)]
        images.update(_readable(folder, wanted))
        return [g for g in groups if not images.keys() >= set(recipe.indices(g))]

    missing = processes.decide(read_what_is_there)
    if processes.is_first() and missing:
        text = json.dumps(dataclasses.asdict(recipe), indent=1, default=repr)
        storage.write_atomic(folder / "recipe.json", text.encode())
    together = max(1, mesh.size // recipe.group)

    def save(indices: Sequence[int], pending: PendingImages) -> None:
        sampled = pending.fetch()
        if processes.is_first():
            _save(folder, recipe, part.licence, indices, sampled)
        images.update(zip(indices, sampled, strict=True))

    sent: tuple[Sequence[int], PendingImages] | None = None
    try:
        for first in tqdm.tqdm(
            range(0, len(missing), together),
            desc="class images",
            unit="batch",
            disable=not missing,
        ):
            check_stop()
            indices = [
                index
                for group in missing[first : first + together]
                for index in recipe.indices(group)
            ]
            started = start_sampling(
                recipe.stage,
                part,
                part.params,
                recipe.sampler,
                [embedding] * len(indices),
                null,
                [recipe.seed + index for index in indices],
                mesh=mesh,
                low=None
                if lows is None
                else np.stack([lows[index] for index in indices]),
                level=recipe.level,
                rows=together * recipe.group,
            )
            # The batch before is written while the devices work on this one.
            if sent is not None:
                save(*sent)
            sent = indices, started
    except Stopped:
        if sent is not None:
            save(*sent)
        raise
    if sent is not None:
        save(*sent)
    return [
        images[index] if index in images else image_files.load_png(_path(folder, index))
        for index in range(count)
    ]


def _readable(folder: epath.Path, indices: Sequence[int]) -> dict[int, np.ndarray]:
    """The images that are in the cache, whole."""
    found = {
        index: storage.from_cache(_path(folder, index), image_files.load_png)
        for index in indices
    }
    return {index: image for index, image in found.items() if image is not None}


def _save(
    folder: epath.Path,
    recipe: Recipe,
    licence: str,
    indices: Sequence[int],
    images: np.ndarray,
) -> None:
    """Writes images with what made them in their metadata."""
    metadata = {
        "prompt": recipe.prompt,
        "stage": recipe.stage.name,
        "weights": recipe.unet,
        "weights_licence": licence,
        "sampler": json.dumps(dataclasses.asdict(recipe.sampler)),
    }
    for index, image in zip(indices, images, strict=True):
        seed = {"seed": str(recipe.seed + index)}
        image_files.save_png(_path(folder, index), image, metadata | seed)


def class_image_pairs(
    job: Job,
    cascade: Cascade,
    stage: Stage,
    part: Part,
    prompts: SubjectPrompts,
    class_prompt: str,
    *,
    cache: epath.Path,
    mesh: jax.sharding.Mesh,
    dtype: Any,
    check_stop: Callable[[], None],
) -> tuple[list[ImagePair], epath.Path]:
    """The class images of a stage, sampled by the frozen cascade up to it.

    Args:
        part: The stage's network; those below are loaded.
        class_prompt: The prompt of the class images.

    Returns:
        The pairs, and the folder of the stage's class images.
    """
    lows: list[np.ndarray] | None = None
    made_from = prompts.plain_reading  # the class prompt has no learned identifier
    below = [each for each in cascade.stages if each.resolution < stage.resolution]
    for each in (*below, stage):
        source = getattr(job.weights, each.name)
        network = (
            part
            if each is stage
            else load(
                cascade, each.name, source, mesh, dtype, job.mesh.rules, train=False
            )
        )
        recipe = _stage_recipe(
            job, each, network.fingerprint, made_from, class_prompt, str(dtype)
        )
        images = sample_class_images(
            recipe,
            job.class_images.count,
            network,
            prompts.embeddings[class_prompt],
            prompts.embeddings[""],
            lows=lows,
            cache=cache,
            mesh=mesh,
            check_stop=check_stop,
        )
        if each is stage:
            break
        lows, made_from = images, recipe.digest()
    folder = class_image_folder(recipe, cache)
    if lows is None:
        return [ImagePair(image, None) for image in images], folder
    return [ImagePair(*both) for both in zip(images, lows, strict=True)], folder


def _stage_recipe(
    job: Job, stage: Stage, unet: str, made_from: str, prompt: str, dtype: str
) -> Recipe:
    """The recipe of one stage's class images in a job."""
    enlarges = stage.low_resolution is not None
    sampler = (
        getattr(job.pictures, stage.name) if enlarges else job.class_images.sampler
    )
    return Recipe(
        prompt=prompt,
        unet=unet,
        made_from=made_from,
        stage=stage,
        level=stage.normal_level if enlarges else 0.0,
        sampler=sampler,
        group=job.class_images.group,
        seed=job.seed,
        dtype=dtype,
    )


def _path(folder: epath.Path, index: int) -> epath.Path:
    return folder / f"{index:05d}.png"
