"""Fine-tuning of one stage on one subject: examples, loss, previews, the loop."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from etils import epath

from imagen_booth import train_state
from imagen_booth.cascade import Stage
from imagen_booth.config.schema import BEST, FineTuning
from imagen_booth.data import pipeline
from imagen_booth.data.examples import Embedding, ImagePair
from imagen_booth.distributed import processes, sharding
from imagen_booth.distributed.stop import StopRequest
from imagen_booth.rundir.checkpoints import Checkpoints, read_params
from imagen_booth.rundir.metrics import MetricWriter
from imagen_booth.training import loop, optimizers, previews, train_step
from imagen_booth.training.best_checkpoint import BestCheckpoint, remove_previews
from imagen_booth.training.loop import InitialState
from imagen_booth.training.previews import Preview, PreviewScores
from imagen_booth.weights.load import Part, place

Loss = Callable[[train_state.Params, train_step.Batch, Any], tuple[Any, dict[str, Any]]]
Sheet = tuple[
    Any, PreviewScores
]  # a preview's picture, uint8 [H, W, 3], and its measures


@dataclasses.dataclass(frozen=True)
class FinetuneContext:
    """Where and with what a tuning is carried out.

    Attributes:
        keep: which parameters it ends with, see ``Job.keep``.
        seed: of data order, noise and times.
        folder: of the checkpoints.
        shown: folder of the preview grids.
        mesh: devices.
        metrics: where numbers go.
        stop: asks to save and end.
        rules: how parameters are cut, see ``sharding.spec_at``.
        profile: where a trace of early steps is left; None for none.
    """

    keep: str
    seed: int
    folder: epath.Path
    shown: epath.Path
    mesh: jax.sharding.Mesh
    metrics: MetricWriter
    stop: StopRequest
    rules: Sequence[sharding.Rule] = ()
    profile: epath.Path | None = None


def finetune_stage(
    stage: Stage,
    part: Part,
    tuning: FineTuning,
    subject: Sequence[ImagePair],
    subject_text: Embedding,
    class_pairs: Sequence[ImagePair],
    class_text: Embedding,
    preview: Preview,
    means: FinetuneContext,
) -> tuple[train_state.Params, dict[str, Any]]:
    """Fine-tunes a stage, from its newest checkpoint if there is one.

    Args:
        part: the stage's network with its pretrained weights; these are consumed.
        subject: the photos; each comes equally often.
        class_pairs: the prior set; unused where ``tuning.class_rows`` is 0.

    Returns:
        The tuned parameters, and entries for the manifest, see ``fit``.
    """
    optimizer = optimizers.build(tuning.optim, tuning.steps)
    loss_fn = make_loss(stage, part.apply, tuning)
    data = batches(
        stage,
        tuning,
        [pair.example(subject_text) for pair in subject],
        class_examples(class_pairs, class_text, preview.null, tuning.null_text),
        seed=means.seed,
        host=processes.index(),
        hosts=processes.count(),
        devices=means.mesh.size,
    )

    def draw(params: train_state.Params) -> Sheet:
        return previews.sample_preview(
            stage, part, params["unet"], tuning.level, preview, means.mesh
        )

    params, told = run_finetuning(
        stage.name,
        tuning,
        initial_state(
            {"unet": part.params},
            optimizer,
            tuning.optim.ema > 0,
            means.mesh,
            rules=means.rules,
        ),
        loss_fn,
        optimizer,
        iter(data.to_iter_dataset()),
        draw,
        preview,
        lambda params: params,
        means,
    )
    return params["unet"], told


def class_examples(
    pairs: Sequence[ImagePair], text: Embedding, null: Embedding, share: float
) -> list[pipeline.Example]:
    """Class images as rows, a share of them with the null text, evenly spread."""
    return [
        pair.example(null if int((i + 1) * share) > int(i * share) else text)
        for i, pair in enumerate(pairs)
    ]


def make_loss_config(tuning: FineTuning) -> train_step.LossConfig:
    """The loss that a tuning asks for."""
    return train_step.LossConfig(
        weighting=tuning.weighting,
        hybrid=tuning.hybrid,
        level=(tuning.level, tuning.level),
    )


def make_loss(stage: Stage, apply: Callable[..., Any], tuning: FineTuning) -> Loss:
    """What fine-tuning minimises: ``(params, batch, key) -> (loss, sums)``.

    Args:
        apply: the stage's network, parameters first.
    """
    config = make_loss_config(tuning)

    def loss_fn(params, batch, key):
        return train_step.batch_loss(stage, apply, None, config, params, batch, key)

    return loss_fn


def make_finetune_step(
    loss_fn: Loss, optimizer: Any, tuning: FineTuning, seed: int
) -> Any:
    """The pure step of fine-tuning, see ``steps.make_step``."""
    return train_step.make_step(
        loss_fn,
        optimizer,
        seed=seed,
        ema=tuning.optim.ema,
        accumulate=tuning.accumulate,
    )


def batches(
    stage: Stage,
    tuning: FineTuning,
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
    groups = [pipeline.Group(subject, tuning.subject_rows, 1.0, train_step.SUBJECT)]
    if tuning.class_rows:
        groups.append(
            pipeline.Group(
                classes, tuning.class_rows, tuning.prior_weight, train_step.CLASS
            )
        )
    return pipeline.batches(
        groups,
        seed=seed,
        host=host,
        hosts=hosts,
        multiple=devices * tuning.accumulate,
        prepare=pipeline.random_crop(stage.crop, stage.scale) if stage.crop else None,
    )


def run_finetuning(
    name: str,
    tuning: FineTuning,
    start: InitialState,
    loss_fn: Loss,
    optimizer: Any,
    data: Iterator[Any],
    draw: Callable[[train_state.Params], Sheet],
    preview: Preview,
    usable: Callable[[train_state.Params], Any],
    means: FinetuneContext,
    frozen: Callable[[], train_state.Params] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Runs the loop with a tuning's steps, previews, and choice of parameters.

    Args:
        name: of what is tuned, for messages and metric rows.
        draw: draws and measures a preview with a state's parameters.
        usable: of these, what is kept for use.
        frozen: see ``Checkpoints``.

    Returns:
        What ``usable`` gave at the step that is kept, on the mesh, and {"similarity":
        measures before and after, None where these previews are gone, "kept":
        ``Best.told`` or None}.

    Raises:
        InputError: the best step is asked for, and previews to choose by are gone.
        Stopped, NotFinite, StorageError: as ``loop.fit``.
    """
    folder, shown, mesh, seed = means.folder, means.shown, means.mesh, means.seed
    step_fn = make_finetune_step(loss_fn, optimizer, tuning, seed)
    with Checkpoints(folder, frozen=frozen) as checkpoints:
        latest = checkpoints.latest()
        if latest is None:
            remove_previews(shown)
        best = None
        if means.keep == BEST:
            best = BestCheckpoint(folder, shown, latest, tuning.steps)

        def draw_preview(now: train_state.TrainState, step: int) -> None:
            if previews.preview_file(shown, step).exists():
                return  # by a run that was killed after it, and went on from before
            params = train_state.ema_params(now, tuning.optim.ema)
            sheet, measured = draw(params)
            if best is not None:
                best.look(step, measured, usable(params))
            previews.write_preview(shown, step, sheet, preview, measured)

        def inference(now: train_state.TrainState) -> Any:
            if best is not None:
                return best.params()
            return usable(train_state.ema_params(now, tuning.optim.ema))

        final = loop.train(
            name,
            start,
            step_fn,
            data,
            loop.LoopConfig(
                tuning.steps,
                tuning.log_every,
                tuning.save_every,
                tuning.preview_every,
            ),
            mesh=mesh,
            checkpoints=checkpoints,
            metrics=means.metrics,
            learning_rate=optimizers.learning_rate(tuning.optim, tuning.steps),
            preview=draw_preview,
            inference=inference,
            diagnose=lambda now, batch: train_step.not_finite(
                loss_fn, now, batch, seed
            ),
            stop=means.stop,
            profile=means.profile,
        )
    if best is None:
        kept, told, after_step = inference(final), None, int(final.step)
    else:
        best.done()
        told = best.told()
        kept = place(read_params(folder)[0], mesh, means.rules)
        after_step = told["step"]
    processes.wait(f"previews {name}")
    measured = previews.read_scores(shown)
    similarity = None
    if measured.keys() >= {0, after_step}:  # unless someone took them away
        before, after = measured[0].subject, measured[after_step].subject
        similarity = {
            each: {"before": before[each], "after": after[each]} for each in before
        }
    return kept, {"similarity": similarity, "kept": told}


def initial_state(
    params: train_state.Params,
    optimizer: Any,
    ema: bool,
    mesh: jax.sharding.Mesh,
    trainable: tuple[str, ...] = ("unet/.*",),
    rules: Sequence[sharding.Rule] = (),
) -> InitialState:
    """The state at step 0: its shapes on the mesh, and how to make it.

    The optimizer's arrays are made where they live; ``params`` are given away to the
    state, and never used if the loop finds a checkpoint.
    """

    def create(params: train_state.Params) -> train_state.TrainState:
        return train_state.create(params, trainable, optimizer, ema)

    shapes = jax.eval_shape(create, params)
    placement = sharding.tree_shardings(shapes, mesh, rules)
    abstract = sharding.placed(shapes, placement)
    make = jax.jit(create, out_shardings=placement, donate_argnums=0)
    return InitialState(abstract, lambda: make(params))
