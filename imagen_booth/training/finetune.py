"""Fine-tuning of one stage on its subjects: examples, loss, previews, the loop."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath

from imagen_booth import train_state
from imagen_booth.cascade import Stage
from imagen_booth.config.schema import BEST, FineTuning
from imagen_booth.data import pipeline
from imagen_booth.data.examples import Embedding, ImagePair, SubjectExamples
from imagen_booth.distributed import processes, sharding
from imagen_booth.distributed.stop import StopRequest
from imagen_booth.rundir.checkpoints import Checkpoints, read_params
from imagen_booth.rundir.metrics import MetricWriter
from imagen_booth.rundir.programs import describe
from imagen_booth.training import (
    adapters,
    frozen_targets,
    loop,
    optimizers,
    previews,
    train_step,
)
from imagen_booth.training.best_checkpoint import BestCheckpoint, remove_previews
from imagen_booth.training.frozen_targets import FrozenPrior
from imagen_booth.training.loop import InitialState, LoopContext
from imagen_booth.training.previews import Preview, PreviewScores
from imagen_booth.weights.load import Part, place

Loss = Callable[..., tuple[Any, dict[str, Any]]]  # (params, batch, key, *fixed)
Sheet = tuple[Any, PreviewScores]  # a preview's grid, uint8 [H, W, 3], and its scores


class Finetuned(NamedTuple):
    """The result of fine-tuning.

    Attributes:
        params: Parameters that are stored for use, of the step that is kept.
        frozen: Parameters that did not train.
        result: Entries for the manifest: {"similarity": scores before and after, None
            where these previews are gone; "kept": ``BestCheckpoint.summary`` or None}.
    """

    params: Any
    frozen: train_state.Params
    result: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class PreviewSampling:
    """A preview and how to make it.

    Attributes:
        preview: What it shows.
        sample: Samples and scores it with all parameters of a state.
    """

    preview: Preview
    sample: Callable[[train_state.Params], Sheet]


@dataclasses.dataclass(frozen=True)
class FinetuneTask:
    """What trains.

    Attributes:
        name: The part that is fine-tuned, for messages and rows of metrics.
        params: All parameters at step 0, which are donated to the state.
        trainable: Patterns of those that train, see ``train_state.create``.
        loss_fn: The loss.
        usable: Selects from all parameters those that are stored for use.
        frozen: See ``Checkpoints``.
        fixed: Further arguments of the loss, which no step changes.
        made_from: What the step is made of, see ``StoredProgram``.
    """

    name: str
    params: train_state.Params
    trainable: tuple[str, ...]
    loss_fn: Loss
    usable: Callable[[train_state.Params], Any]
    frozen: Callable[[], train_state.Params] | None = None
    fixed: tuple[Any, ...] = ()
    made_from: str = ""

    def fixed_loss(self, params: Any, batch: Any, key: jax.Array) -> Any:
        """The loss with its further arguments."""
        return self.loss_fn(params, batch, key, *self.fixed)


@dataclasses.dataclass(frozen=True)
class FinetuneContext:
    """What fine-tuning needs besides the part, its settings and its data.

    Attributes:
        keep: Which parameters are kept, see ``Job.keep``.
        patience: Previews without a better one that end the stage, see
            ``Job.patience``.
        seed: Seed of data order, noise and times.
        folder: Folder of the checkpoints.
        previews: Folder of the preview grids.
        mesh: The devices.
        metrics: Receives the metrics.
        stop: Whether a signal has come, after which the work saves and ends.
        rules: Sharding rules, see ``sharding.spec_at``.
        profile: Folder for a trace of early steps; None for no trace.
    """

    keep: str
    patience: int
    seed: int
    folder: epath.Path
    previews: epath.Path
    mesh: jax.sharding.Mesh
    metrics: MetricWriter
    stop: StopRequest
    rules: Sequence[sharding.Rule] = ()
    profile: epath.Path | None = None

    def loop(self, checkpoints: Checkpoints) -> LoopContext:
        """What the loop needs of it."""
        return LoopContext(
            self.mesh, checkpoints, self.metrics, self.stop, self.profile
        )


def finetune_stage(
    stage: Stage,
    part: Part,
    config: FineTuning,
    subjects: Sequence[SubjectExamples],
    preview: Preview,
    context: FinetuneContext,
    prior: FrozenPrior | None = None,
) -> tuple[train_state.Params, dict[str, Any]]:
    """Fine-tunes a stage, or resumes from its newest checkpoint.

    Args:
        part: The stage's network with its pretrained weights, which are consumed; with
            an adapter, loaded without ``train``.
        subjects: The subjects, which share the rows of each step equally. Class images
            are unused where ``config.class_rows`` is 0, and where ``prior`` is given.
        prior: How the frozen model gives the class rows their targets; their images
            are then the photos.

    Returns:
        The fine-tuned parameters of the network, and entries for the manifest, see
        ``Finetuned``.
    """
    data = batches(
        stage,
        config,
        [[pair.example(each.text) for pair in each.photos] for each in subjects],
        class_sets(subjects, config.null_text, preview.null, prior),
        seed=context.seed,
        host=processes.index(),
        hosts=processes.count(),
        devices=context.mesh.size,
    )

    def network_params(params: train_state.Params) -> train_state.Params:
        return adapters.network_params(params, config)

    if config.adapts:
        network_params = jax.jit(network_params)

    def sample(params: train_state.Params) -> Sheet:
        return previews.sample_preview(
            stage, part, network_params(params), config.level, preview, context.mesh
        )

    finetuned = run_finetuning(
        _stage_task(stage, part, config, prior, context),
        config,
        pipeline.iterate(data),
        PreviewSampling(preview, sample),
        context,
    )
    return network_params(finetuned.frozen | finetuned.params), finetuned.result


def _stage_task(
    stage: Stage,
    part: Part,
    config: FineTuning,
    prior: FrozenPrior | None,
    context: FinetuneContext,
) -> FinetuneTask:
    """What trains in a stage: its network, or an adapter beside its frozen network."""
    params, frozen, fixed = {"unet": part.params}, None, ()
    if config.adapts:
        adapter = adapters.create(
            stage.name, part.params, config.adapter, context.seed, context.mesh
        )
        params, frozen = params | {"adapter": adapter}, params
    elif prior is not None:
        fixed = (frozen_targets.copy_params(part.params, prior.dtype),)
    return FinetuneTask(
        name=stage.name,
        params=params,
        trainable=adapters.trainable(config),
        loss_fn=make_loss(stage, part.apply, config, prior),
        usable=functools.partial(adapters.usable, tuning=config),
        frozen=None if frozen is None else lambda: frozen,
        fixed=fixed,
        made_from=describe(stage, part.apply, config, prior, context.seed),
    )


def class_sets(
    subjects: Sequence[SubjectExamples],
    share: float,
    null: Embedding,
    prior: FrozenPrior | None = None,
) -> list[list[pipeline.Example]]:
    """The rows of each class: its class images, or the photos with ``prior``."""
    sets = [
        each.class_pairs
        if prior is None
        else frozen_targets.repeat_photos(each.photos, share)
        for each in subjects
    ]
    return [
        class_examples(pairs, each.class_text, null, share)
        for each, pairs in zip(subjects, sets, strict=True)
        if pairs
    ]


def class_examples(
    pairs: Sequence[ImagePair], text: Embedding, null: Embedding, share: float
) -> list[pipeline.Example]:
    """Class images as rows, a share of them with the null text, evenly spread."""
    return [
        pair.example(null if int((i + 1) * share) > int(i * share) else text)
        for i, pair in enumerate(pairs)
    ]


def make_loss_config(config: FineTuning) -> train_step.LossConfig:
    """The settings of the loss of fine-tuning."""
    return train_step.LossConfig(
        weighting=config.weighting,
        hybrid=config.hybrid,
        level=(config.level, config.level),
    )


def make_loss(
    stage: Stage,
    apply: Callable[..., Any],
    config: FineTuning,
    prior: FrozenPrior | None = None,
) -> Loss:
    """The loss of fine-tuning: ``(params, batch, key, *fixed) -> (loss, sums)``.

    Args:
        apply: The stage's network, parameters first.
        prior: How the frozen model gives the class rows their targets; without an
            adapter it needs the frozen weights as the only one of ``fixed``.
    """
    loss_config = make_loss_config(config)

    def loss_fn(params, batch, key, *fixed):
        class_rows = None
        if prior is not None:
            # An adapter leaves the stage's own weights as they are.
            frozen = params["unet"] if config.adapts else fixed[0]
            class_rows = functools.partial(prior.class_rows, stage, apply, frozen)
        whole = {"unet": adapters.network_params(params, config)}
        return train_step.batch_loss(
            stage, apply, None, loss_config, whole, batch, key, class_rows
        )

    return loss_fn


def make_finetune_step(
    loss_fn: Loss, optimizer: Any, config: FineTuning, seed: int
) -> Any:
    """The pure step of fine-tuning, see ``train_step.make_step``."""
    return train_step.make_step(
        loss_fn,
        optimizer,
        seed=seed,
        ema=config.optim.ema,
        accumulate=config.accumulate,
    )


def batches(
    stage: Stage,
    config: FineTuning,
    subjects: Sequence[Sequence[pipeline.Example]],
    classes: Sequence[Sequence[pipeline.Example]],
    *,
    seed: int,
    host: int,
    hosts: int,
    devices: int,
) -> Any:
    """The batches of fine-tuning: this host's rows of each, as grain's MapDataset.

    Args:
        subjects: Rows of each subject, used in turn.
        classes: Rows of each class; unused where ``config.class_rows`` is 0.
        devices: Devices of all hosts; micro-batch rows are a multiple of them.
    """
    first, *others = subjects
    groups = [
        pipeline.Group(first, config.subject_rows, 1.0, train_step.SUBJECT, others)
    ]
    if config.class_rows:
        first, *others = classes
        rows, weight = config.class_rows, config.prior_weight
        groups.append(pipeline.Group(first, rows, weight, train_step.CLASS, others))
    return pipeline.batches(
        groups,
        seed=seed,
        host=host,
        hosts=hosts,
        multiple=devices * config.accumulate,
        prepare=pipeline.random_crop(stage.crop, stage.scale) if stage.crop else None,
    )


def run_finetuning(
    task: FinetuneTask,
    config: FineTuning,
    data: Iterator[Any],
    sampling: PreviewSampling,
    context: FinetuneContext,
) -> Finetuned:
    """Runs the loop for fine-tuning and chooses the parameters to keep.

    Args:
        sampling: The preview and how to sample it.

    Raises:
        InputError: ``keep="best"`` is set, and previews to choose by are gone.
        Stopped, NotFinite, StorageError: As ``loop.train``.
    """
    optimizer = optimizers.build(config.optim, config.steps)
    with Checkpoints(context.folder, frozen=task.frozen) as checkpoints:
        latest = checkpoints.latest()
        if latest is None:
            remove_previews(context.previews)
        best = None
        if context.keep == BEST:
            best = BestCheckpoint(
                context.folder, context.previews, latest, config.steps
            )
        hooks = _loop_hooks(task, config, sampling, best, context)
        training = loop.Training(
            task.name,
            initial_state(
                task.params,
                optimizer,
                config.optim.ema > 0,
                context.mesh,
                task.trainable,
                context.rules,
            ),
            make_finetune_step(task.loss_fn, optimizer, config, context.seed),
            data,
            loop.LoopConfig.of(config),
            hooks,
            fixed=task.fixed,
            made_from=task.made_from,
        )
        final = loop.train(training, context.loop(checkpoints))
    if best is None:
        params, summary, step = hooks.inference(final), None, int(final.step)
    else:
        best.finish()
        params, summary = _stored_params(context), best.summary()
        step = summary["step"]
    processes.wait(f"previews {task.name}")
    similarity = _similarity(context.previews, step)
    result = {"similarity": similarity, "kept": summary}
    return Finetuned(params, final.frozen, result)


def _stored_params(context: FinetuneContext) -> train_state.Params:
    """The parameters that are stored for use, on the devices."""
    return {
        kind: place(tree, context.mesh, context.rules if kind == "unet" else ())
        for kind, tree in read_params(context.folder)[0].items()
    }


def _loop_hooks(
    task: FinetuneTask,
    config: FineTuning,
    sampling: PreviewSampling,
    best: BestCheckpoint | None,
    context: FinetuneContext,
) -> loop.LoopHooks:
    """Previews with their scores, and the parameters of the last or the best step."""

    def preview(state: train_state.TrainState, step: int) -> None:
        file = previews.preview_file(context.previews, step)
        if processes.decide(file.exists):
            return  # written by a run that was killed later and resumed from before
        params = train_state.ema_params(state, config.optim.ema)
        sheet, scores = sampling.sample(params)
        if best is not None:
            best.consider(step, scores, task.usable(params))
        previews.write_preview(context.previews, step, sheet, sampling.preview, scores)

    def inference(state: train_state.TrainState) -> Any:
        if best is not None:
            return best.params()
        return task.usable(train_state.ema_params(state, config.optim.ema))

    def ends(step: int) -> bool:
        return best is not None and best.has_stalled(step, context.patience)

    return loop.LoopHooks(
        learning_rate=optimizers.learning_rate(config.optim, config.steps),
        preview=preview,
        inference=inference,
        diagnose=functools.partial(
            train_step.not_finite, task.fixed_loss, seed=context.seed
        ),
        ends=ends if best is not None and context.patience else None,
    )


def _similarity(folder: epath.Path, step: int) -> dict[str, Any] | None:
    """Scores of the subject at step 0 and at ``step``; None without their previews."""
    scores = previews.read_scores(folder)
    if not scores.keys() >= {0, step}:
        return None
    before, after = scores[0].subject, scores[step].subject
    return {each: {"before": before[each], "after": after[each]} for each in before}


def initial_state(
    params: train_state.Params,
    optimizer: Any,
    ema: bool,
    mesh: jax.sharding.Mesh,
    trainable: tuple[str, ...] = ("unet/.*",),
    rules: Sequence[sharding.Rule] = (),
) -> InitialState:
    """The state at step 0: its shapes on the mesh, and how to make it.

    The optimizer's arrays are made on the devices that hold them. ``params`` are
    donated to the state, and not used if the loop finds a checkpoint.
    """

    def create(params: train_state.Params) -> train_state.TrainState:
        return train_state.create(params, trainable, optimizer, ema)

    shapes = jax.eval_shape(create, params)
    placement = sharding.tree_shardings(shapes, mesh, rules)
    abstract = sharding.with_shardings(shapes, placement)
    make = jax.jit(create, out_shardings=placement, donate_argnums=0)
    return InitialState(abstract, lambda: make(params))
