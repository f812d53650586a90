"""Fine-tuning of one stage on one subject: examples, loss, previews, the loop."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from imagen_booth import hosts, loop, optim, sharding, state, steps
from imagen_booth.checkpoint import Checkpoints
from imagen_booth.data import pictures, pipeline
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.embed import Embedding
from imagen_booth.evaluation import similarity
from imagen_booth.generate import draw_stage, grid
from imagen_booth.job import Tuning
from imagen_booth.metrics import MetricWriter
from imagen_booth.stage import Stage
from imagen_booth.weights.load import Part

Loss = Callable[[state.Params, steps.Batch, Any], tuple[Any, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Pair:
    """One training image, uint8, with its low-res version where the stage has one."""

    image: np.ndarray
    low: np.ndarray | None

    def example(self, embedding: Embedding) -> pipeline.Example:
        """As a row of a batch."""
        row = {
            "image": self.image,
            "text": embedding.text,
            "text_mask": embedding.mask,
        }
        return row if self.low is None else row | {"low": self.low}


@dataclasses.dataclass(frozen=True)
class Preview:
    """What is drawn at intervals, always with the same noise.

    Attributes:
        prompts: one per picture, the first ``subjects`` of them the instance prompt.
        embeddings: of the prompts.
        null: the null text.
        sampler: of the stage.
        rows: rows the sampler's program is compiled for.
        photos: pairs of the subject; a super-resolution preview enlarges their low
            versions, and every preview is compared with them.
        subjects: how many of the pictures show the subject.
    """

    prompts: Sequence[str]
    embeddings: Sequence[Embedding]
    null: Embedding
    sampler: SamplerConfig
    rows: int
    photos: Sequence[Pair]
    subjects: int


def tune(
    stage: Stage,
    part: Part,
    tuning: Tuning,
    subject: Sequence[Pair],
    subject_text: Embedding,
    class_pairs: Sequence[Pair],
    class_text: Embedding,
    preview: Preview,
    *,
    seed: int,
    folder: epath.Path,
    previews: epath.Path,
    mesh: jax.sharding.Mesh,
    metrics: MetricWriter,
    stop: loop.StopRequest,
) -> tuple[state.Params, dict[str, Any]]:
    """Fine-tunes a stage, from its newest checkpoint if there is one.

    Args:
        part: the stage's network with its pretrained weights; these are consumed.
        subject: the photos; each comes equally often.
        class_pairs: the prior set; unused where ``tuning.class_rows`` is 0.
        seed: of data order, noise and times.
        folder: of the checkpoints.
        previews: of the preview grids.

    Returns:
        The tuned parameters, and before/after similarity for the manifest.
    """
    optimizer = optim.build(tuning.optim, tuning.steps)
    loss_fn = loss_of(stage, part.apply, tuning)
    step_fn = step_of(loss_fn, optimizer, tuning, seed)
    data = batches(
        stage,
        tuning,
        [pair.example(subject_text) for pair in subject],
        [pair.example(class_text) for pair in class_pairs],
        seed=seed,
        host=hosts.index(),
        hosts=hosts.count(),
        devices=mesh.size,
    )

    def draw_preview(now: state.TrainState, step: int) -> None:
        params = state.ema_params(now, tuning.optim.ema)["unet"]
        show(stage, part, params, tuning, preview, step, previews, mesh)

    with Checkpoints(folder) as checkpoints:
        final = loop.fit(
            stage.name,
            start_state({"unet": part.params}, optimizer, tuning.optim.ema > 0, mesh),
            step_fn,
            iter(data.to_iter_dataset()),
            loop.LoopConfig(
                tuning.steps,
                tuning.log_every,
                tuning.save_every,
                tuning.preview_every,
            ),
            mesh=mesh,
            checkpoints=checkpoints,
            metrics=metrics,
            learning_rate=optim.learning_rate(tuning.optim, tuning.steps),
            preview=draw_preview,
            inference=lambda now: state.ema_params(now, tuning.optim.ema),
            diagnose=lambda now, batch: steps.not_finite(loss_fn, now, batch, seed),
            stop=stop,
        )
    before, after = (_measured(previews, step) for step in (0, tuning.steps))
    return state.ema_params(final, tuning.optim.ema)["unet"], {
        name: {"before": before[name], "after": after[name]} for name in before
    }


def loss_of(stage: Stage, apply: Callable[..., Any], tuning: Tuning) -> Loss:
    """What fine-tuning minimises: ``(params, batch, key) -> (loss, sums)``.

    Args:
        apply: the stage's network, parameters first.
    """
    config = steps.LossConfig(
        weighting=tuning.weighting,
        hybrid=tuning.hybrid,
        level=(tuning.level, tuning.level),
    )

    def loss_fn(params, batch, key):
        return steps.batch_loss(stage, apply, None, config, params, batch, key)

    return loss_fn


def step_of(loss_fn: Loss, optimizer: Any, tuning: Tuning, seed: int) -> Any:
    """The pure step of fine-tuning, see ``steps.make_step``."""
    return steps.make_step(
        loss_fn,
        optimizer,
        seed=seed,
        ema=tuning.optim.ema,
        accumulate=tuning.accumulate,
    )


def batches(
    stage: Stage,
    tuning: Tuning,
    subject: Sequence[pipeline.Example],
    classes: Sequence[pipeline.Example],
    *,
    seed: int,
    host: int,
    hosts: int,
    devices: int,
) -> Any:
    """The batches of fine-tuning, this host's rows of each, as grain's MapDataset.

    Args:
        subject, classes: rows that come in turn; the second unused where
            ``tuning.class_rows`` is 0.
        devices: of all hosts; the rows of a micro-batch are a multiple of them.
    """
    groups = [pipeline.Group(subject, tuning.subject_rows, 1.0, steps.SUBJECT)]
    if tuning.class_rows:
        groups.append(
            pipeline.Group(classes, tuning.class_rows, tuning.prior_weight, steps.CLASS)
        )
    return pipeline.batches(
        groups,
        seed=seed,
        host=host,
        hosts=hosts,
        multiple=devices * tuning.accumulate,
        prepare=pipeline.random_crop(stage.crop, stage.scale) if stage.crop else None,
    )


def start_state(
    params: state.Params,
    optimizer: Any,
    ema: bool,
    mesh: jax.sharding.Mesh,
    trainable: tuple[str, ...] = ("unet/.*",),
) -> loop.Start:
    """The state at step 0: its shapes on the mesh, and how to make it.

    The optimizer's arrays are made where they live; ``params`` are given away to the
    state, and never used if the loop finds a checkpoint.
    """

    def create(params: state.Params) -> state.TrainState:
        return state.create(params, trainable, optimizer, ema)

    shapes = jax.eval_shape(create, params)
    placement = sharding.tree_shardings(shapes, mesh)
    abstract = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where
        ),
        shapes,
        placement,
    )
    make = jax.jit(create, out_shardings=placement, donate_argnums=0)
    return loop.Start(abstract, lambda: make(params))


def show(
    stage: Stage,
    part: Part,
    params: state.Params,
    tuning: Tuning,
    preview: Preview,
    step: int,
    folder: epath.Path,
    mesh: jax.sharding.Mesh,
) -> None:
    """Draws one preview grid, stores it, and measures it against the photos.

    A super-resolution grid has rows of three: the low-res image, the stage's own
    enlargement of it, and the photo itself.
    """
    super_resolution = stage.low_resolution is not None
    low = None
    if super_resolution:
        low = np.stack([pair.low for pair in preview.photos if pair.low is not None])
    images = draw_stage(
        stage,
        part,
        params,
        preview.sampler,
        preview.embeddings,
        preview.null,
        range(len(preview.embeddings)),
        mesh=mesh,
        low=low,
        level=tuning.level,
        rows=preview.rows,
    )
    truths = [pair.image for pair in preview.photos]
    if super_resolution:
        assert low is not None
        enlarged = low.repeat(stage.scale, 1).repeat(stage.scale, 2)
        cells = [
            cell for row in zip(enlarged, images, truths, strict=True) for cell in row
        ]
        sheet = grid(cells, 3)
        pairs = list(zip(images, truths, strict=True))
        measured = {
            "PSNR against the photo, dB": float(
                np.mean([similarity.psnr(*pair) for pair in pairs])
            )
        }
    else:
        sheet = grid(list(images), 4)
        measured = similarity.to_photos(images[: preview.subjects], truths)
    if hosts.is_first():
        pictures.save_png(
            folder / f"step_{step:06d}.png",
            sheet,
            {
                "prompts": json.dumps(list(preview.prompts)),
                "step": str(step),
                "measured": json.dumps(measured),
            },
        )


def _measured(folder: epath.Path, step: int) -> dict[str, float]:
    hosts.wait(f"preview {folder.name} {step}")
    path = folder / f"step_{step:06d}.png"
    return json.loads(pictures.read_png_metadata(path)["measured"])
