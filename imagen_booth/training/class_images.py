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

    def indices(self, *groups: int) -> list[int]:
        """Indices of the images of groups."""
        return [group * self.group + i for group in groups for i in range(self.group)]


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
    wanted = _ClassImages(folder, recipe, part.licence, count)
    missing = processes.decide(wanted.read)
    together = max(1, mesh.size // recipe.group)
    sent: tuple[Sequence[int], PendingImages] | None = None
    try:
        for first in tqdm.tqdm(
            range(0, len(missing), together),
            desc="class images",
            unit="batch",
            disable=not missing,
        ):
            check_stop()
            indices = recipe.indices(*missing[first : first + together])
            started = start_sampling(
                recipe.stage,
                part,
                part.params,
                recipe.sampler,
                [embedding] * len(indices),
                null,
                [recipe.seed + index for index in indices],
                mesh=mesh,
                low=None if lows is None else np.stack([lows[i] for i in indices]),
                level=recipe.level,
                rows=together * recipe.group,
            )
            # The batch before is written while the devices work on this one.
            wanted.save(sent)
            sent = indices, started
    except Stopped:
        wanted.save(sent)
        raise
    wanted.save(sent)
    return wanted.images()


class _ClassImages:
    """Class images in the cache and in memory.

    Args:
        folder: Where they are kept.
        recipe: What made them.
        licence: Licence of the weights that made them.
        count: Number of images that are wanted.
    """

    def __init__(self, folder: epath.Path, recipe: Recipe, licence: str, count: int):
        self._folder, self._recipe, self._licence = folder, recipe, licence
        self._count, self._images = count, dict[int, np.ndarray]()

    def read(self) -> list[int]:
        """Reads what is there, and gives the groups that are missing or damaged."""
        recipe = self._recipe
        groups = range(-(-self._count // recipe.group))
        for index in recipe.indices(*groups):
            path = _path(self._folder, index)
            image = storage.from_cache(path, image_files.load_png)
            if image is not None:
                self._images[index] = image
        missing = [
            group
            for group in groups
            if not self._images.keys() >= set(recipe.indices(group))
        ]
        if missing:
            text = json.dumps(dataclasses.asdict(recipe), indent=1, default=repr)
            storage.write_atomic(self._folder / "recipe.json", text.encode())
        return missing

    def save(self, sampled: tuple[Sequence[int], PendingImages] | None) -> None:
        """Waits for images of these indices; the first process writes them."""
        if sampled is None:
            return
        indices, pending = sampled
        images = pending.fetch()
        if processes.is_first():
            _save(self._folder, self._recipe, self._licence, indices, images)
        self._images.update(zip(indices, images, strict=True))

    def images(self) -> list[np.ndarray]:
        """The images that are wanted, in order."""
        return [
            self._images[index]
            if index in self._images
            else image_files.load_png(_path(self._folder, index))
            for index in range(self._count)
        ]


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
