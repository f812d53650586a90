"""Class images: what the frozen model makes of the class prompt.

They are stored as lossless PNG in a folder named by everything that made them, so
runs on the same class share them.  They are drawn in groups, as many at a time as the
devices have rows for and always in the same shape, each device its own rows; a run
that was killed draws only the groups that are missing.
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

from imagen_booth.cascade import Cascade, Stage
from imagen_booth.config.schema import Job
from imagen_booth.data import image_files
from imagen_booth.data.examples import Embedding, ImagePair
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.distributed import processes
from imagen_booth.sampling.cascade_sampler import sample_stage
from imagen_booth.training.subject_prompts import SubjectPrompts
from imagen_booth.weights.load import Part, load


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that a set of class images depends on.

    Attributes:
        prompt: the class prompt, e.g. ``a dog``.
        unet: fingerprint of the network's weights.
        made_from: fingerprint of the text encoder, or digest of the class images
            that a super-resolution stage enlarges.
        stage: the stage that draws.
        level: augmentation level of the images that are enlarged.
        sampler: how they are drawn.
        group: images drawn together.
        seed: image ``i`` has seed ``seed + i``.
        dtype: of the activations.
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
        """Names the folder: equal recipes, equal images.

        How the network is compiled is no part of it.
        """
        model = dataclasses.replace(self.stage.model, remat=False)
        plain = dataclasses.replace(self.stage, model=model)
        recipe = dataclasses.replace(self, stage=plain)
        return hashlib.sha256(repr(recipe).encode()).hexdigest()[:24]


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
    """Draws what is missing and returns the first ``count`` class images.

    All devices of all hosts draw together, none of them an image that another draws;
    the first process writes.

    Args:
        check_stop: raises if the run is asked to stop; called between groups.
        lows: uint8 class images of the stage below, one per image.

    Returns:
        ``count`` uint8 images [R, R, 3].
    """
    folder = class_image_folder(recipe, cache)
    groups = -(-count // recipe.group)
    missing = [group for group in range(groups) if not _complete(folder, group, recipe)]
    if processes.is_first() and missing:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.json").write_text(
            json.dumps(dataclasses.asdict(recipe), indent=1, default=repr)
        )
    story = {
        "prompt": recipe.prompt,
        "stage": recipe.stage.name,
        "weights": recipe.unet,
        "weights_licence": part.licence,
        "sampler": json.dumps(dataclasses.asdict(recipe.sampler)),
    }
    together = max(1, mesh.size // recipe.group)
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
            for index in range(group * recipe.group, (group + 1) * recipe.group)
        ]
        images = sample_stage(
            recipe.stage,
            part,
            part.params,
            recipe.sampler,
            [embedding] * len(indices),
            null,
            [recipe.seed + index for index in indices],
            mesh=mesh,
            low=None if lows is None else np.stack([lows[index] for index in indices]),
            level=recipe.level,
            rows=together * recipe.group,
        )
        if processes.is_first():
            for index, image in zip(indices, images, strict=True):
                image_files.save_png(
                    _path(folder, index),
                    image,
                    story | {"seed": str(recipe.seed + index)},
                )
        processes.wait(f"class images {first}")
    return [image_files.load_png(_path(folder, index)) for index in range(count)]


def class_image_pairs(
    job: Job,
    cascade: Cascade,
    stage: Stage,
    part: Part,
    words: SubjectPrompts,
    *,
    cache: epath.Path,
    mesh: jax.sharding.Mesh,
    dtype: Any,
    check_stop: Callable[[], None],
) -> tuple[list[ImagePair], epath.Path]:
    """The prior set of a stage, drawn by its frozen weights from the stages below.

    Args:
        part: the stage's network; those below are loaded.

    Returns:
        The pairs, and the folder of the stage's class images.
    """
    lows: list[np.ndarray] | None = None
    made_from = words.plain_reading  # the class prompt has no learnt word
    below = [each for each in cascade.stages if each.resolution < stage.resolution]
    for each in (*below, stage):
        source = getattr(job.weights, each.name)
        network = (
            part
            if each is stage
            else load(cascade, each.name, source, mesh, dtype, job.mesh.rules)
        )
        enlarges = each.low_resolution is not None
        recipe = Recipe(
            prompt=words.klass,
            unet=network.fingerprint,
            made_from=made_from,
            stage=each,
            level=each.normal_level if enlarges else 0.0,
            sampler=(
                getattr(job.pictures, each.name)
                if enlarges
                else job.class_images.sampler
            ),
            group=job.class_images.group,
            seed=job.seed,
            dtype=str(dtype),
        )
        images = sample_class_images(
            recipe,
            job.class_images.count,
            network,
            words.found[words.klass],
            words.found[""],
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


def _path(folder: epath.Path, index: int) -> epath.Path:
    return folder / f"{index:05d}.png"


def _complete(folder: epath.Path, group: int, recipe: Recipe) -> bool:
    indices = range(group * recipe.group, (group + 1) * recipe.group)
    return all(_path(folder, index).exists() for index in indices)
