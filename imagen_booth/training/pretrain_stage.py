"""Pretraining of a stage: the same loop and step as fine-tuning, other data."""

import dataclasses
import functools
import json
import logging
import os
import pathlib
import platform
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from imagen_booth.cascade import Cascade, Stage, by_name
from imagen_booth.config.schema import PHOTOS, TOYBOX, Pretraining
from imagen_booth.data import image_files, pipeline
from imagen_booth.data.examples import CaptionedImages, Embedding
from imagen_booth.data.photo_crops import (
    PhotoFolder,
    PhotoRows,
    centre_crops,
    degraded_crop,
)
from imagen_booth.data.tfds_source import ImageCaptions
from imagen_booth.distributed import processes, sharding
from imagen_booth.distributed.stop import StopRequest
from imagen_booth.errors import InputError
from imagen_booth.rundir import layout, lock
from imagen_booth.rundir.checkpoints import Checkpoints
from imagen_booth.rundir.layout import RunDirectory, recipe, utc_now
from imagen_booth.rundir.metrics import MetricWriter
from imagen_booth.sampling.cascade_sampler import grid, sample_stage
from imagen_booth.sampling.text_embeddings import load_tokenizer
from imagen_booth.text.caption_cleaning import simple_clean
from imagen_booth.text.tokenizer import Tokenizer
from imagen_booth.toybox.grammar import WORDS
from imagen_booth.toybox.records import RenderedRecords, block_length
from imagen_booth.train_state import Params, TrainState, ema_params
from imagen_booth.training import finetune, loop, mesh_choice, optimizers, train_step
from imagen_booth.training.loop import LoopContext
from imagen_booth.weights import placement
from imagen_booth.weights.load import Part, load

log = logging.getLogger(__name__)

# Settings that may change between a run and its resumption.
FREE = (
    "steps",
    "records",
    "prompts",
    "sampler",
    "cache",
    "data_dir",
    "held_out",
    "vocabulary",
    "mesh",
) + layout.LOOP_SETTINGS
# Settings that apply to TFDS data sets only, and to the toybox only.
OF_SETS = ("source", "split", "held_out", "image_feature", "caption_feature")
OF_TOYBOX = ("records",)
# Settings of the run itself, and paths on this machine; no part of the weights' origin.
OF_RUN = ("prompts", "sampler", "cache", "data_dir", "text", "init")
OF_RUN += ("vocabulary", "mesh", *layout.LOOP_SETTINGS)

HELD_OUT_SEED = 1  # records of this seed are for measuring, never for training
HELD_OUT_RECORDS = 128
PREVIEW = 256  # side in pixels of the parts of photographs in previews


@dataclasses.dataclass(frozen=True)
class _Pretraining:
    """What every part of a pretraining run needs.

    Attributes:
        job: The settings.
        stage: The stage, cropped as the job sets it.
        unet: The stage's network.
        text: The text encoder; None where no record has a caption.
        tokenizer: The tokenizer; None where no record has a caption.
        train: Records to train on.
        held_out: Records to measure on.
        null: The null text.
        work: The run directory.
        mesh: The devices.
        metrics: Receives the metrics.
        profile: Whether to trace early steps.
    """

    job: Pretraining
    stage: Stage
    unet: Part
    text: Part | None
    tokenizer: Tokenizer | None
    train: CaptionedImages | PhotoRows
    held_out: CaptionedImages | PhotoRows
    null: Embedding
    work: RunDirectory
    mesh: jax.sharding.Mesh
    metrics: MetricWriter
    profile: bool

    def loss(self, null_text: float) -> Callable[..., Any]:
        """``(params, batch, key) -> (loss, sums)``."""
        encode = None if self.text is None else self.text.apply
        config = train_step.LossConfig(
            weighting=self.job.weighting, null_text=null_text, level=self.job.level
        )

        def loss_fn(params: Params, batch: train_step.Batch, key: jax.Array) -> Any:
            return train_step.batch_loss(
                self.stage, self.unet.apply, encode, config, params, batch, key
            )

        return loss_fn

    def batches(
        self,
        records: CaptionedImages | PhotoRows,
        rows: int,
        seed: int,
        **shared: np.ndarray,
    ) -> Any:
        """Batches of this many rows, cropped where the stage is."""
        stage = self.stage
        return pipeline.batches(
            [pipeline.Group(records, rows, 1.0, train_step.SUBJECT)],
            seed=seed,
            host=processes.index(),
            hosts=processes.count(),
            multiple=self.mesh.size * self.job.accumulate,
            prepare=_cropping(self.job, stage),
            shared=shared,
        )


def _cropping(job: Pretraining, stage: Stage) -> Callable[..., Any] | None:
    """What cuts training crops out of records; None for whole images."""
    if not stage.crop:
        return None
    cut = degraded_crop if job.source == PHOTOS else pipeline.random_crop
    return cut(stage.crop, stage.scale)


def run(job: Pretraining, workdir: epath.Path, *, profile: bool = False) -> None:
    """Pretrains a stage, or resumes.

    Args:
        job: The settings.
        workdir: The run directory, for ``manifest.json``, metrics, previews and
            checkpoints; each checkpoint holds averaged parameters for
            ``convert export``.
        profile: Whether to trace early steps into ``workdir/profile``.

    Raises:
        InputError: A setting is not valid.
        Stopped: A signal came; the state is saved.
        NotFinite: Training diverged.
    """
    cascade = by_name(job.cascade)
    stage = _check_stage(job, cascade)
    captioned = _captioned(job)
    work = RunDirectory(workdir)
    tokenizer = load_tokenizer(cascade, job.vocabulary) if captioned else None
    null = _null(cascade)
    caption_entries = _caption_entries(cascade, tokenizer, null)
    train, held_out = (
        _rows(job, stage, work, caption_entries, held_out=held_out)
        for held_out in (False, True)
    )
    layout.cache_folder(job.cache, work.path)
    mesh = mesh_choice.pretraining_mesh(cascade, job)
    dtype = placement.activation_dtype(job.dtype)
    with (
        lock.held(work.path),
        jax.set_mesh(mesh),
        StopRequest() as stop,
        MetricWriter(work.path, active=processes.is_first()) as metrics,
    ):
        rules = job.mesh.rules
        unet = load(cascade, stage.name, job.init, mesh, dtype, rules)
        text = (
            load(cascade, "text", job.text or job.init, mesh, dtype, rules)
            if captioned
            else None
        )
        pretraining = _Pretraining(
            job=job,
            stage=stage,
            unet=unet,
            text=text,
            tokenizer=tokenizer,
            train=train,
            held_out=held_out,
            null=null,
            work=work,
            mesh=mesh,
            metrics=metrics,
            profile=profile,
        )
        folder = _record_start(pretraining, cascade)
        _fit(pretraining, folder, stop)


def _check_stage(job: Pretraining, cascade: Cascade) -> Stage:
    """The stage, cropped as the job sets it.

    Raises:
        InputError: The stage, the number of records or the text encoder do not suit.
    """
    if job.stage not in [stage.name for stage in cascade.stages]:
        raise InputError(f"config.stage={job.stage!r} is not a stage of {job.cascade}")
    stage = dataclasses.replace(cascade.stage(job.stage), crop=job.crop or None)
    together = block_length(stage.resolution)
    if job.source == TOYBOX and job.records % together:
        raise InputError(
            f"config.records={job.records} is not a multiple of {together}, the number "
            "that is rendered together"
        )
    if job.source == PHOTOS and not job.crop:
        raise InputError(
            "config.crop=0, but photographs differ in size; give the side of the "
            "training crops in pixels, such as 128"
        )
    if stage.low_resolution is not None and _captioned(job) and not job.text:
        raise InputError(
            "config.text is empty; give the folder of weights with the text encoder "
            "that the base stage was trained with, or 'shipped'"
        )
    return stage


def _captioned(job: Pretraining) -> bool:
    return job.source == TOYBOX or bool(job.caption_feature)


def _record_start(run: _Pretraining, cascade: Cascade) -> epath.Path:
    """Records the settings of the run; returns the folder of its checkpoints."""
    job, work = run.job, run.work
    work.write_json("config.json", dataclasses.asdict(job))
    work.record(
        created=work.manifest.get("created", utc_now()),
        cascade={"name": cascade.name, "licence": cascade.licence},
        prior=_origin(run),
        versions={
            **layout.versions(),
            "commit": _commit(),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        },
    )
    return work.claim(run.stage.name, recipe(job, *FREE, *_unused(job)))


def _unused(job: Pretraining) -> tuple[str, ...]:
    """Settings that do not apply to the source in use."""
    return OF_SETS if job.source == TOYBOX else OF_TOYBOX


def _rows(
    job: Pretraining,
    stage: Stage,
    work: RunDirectory,
    caption_entries: Callable[[str], pipeline.Example],
    *,
    held_out: bool,
) -> CaptionedImages | PhotoRows:
    """Rows to train on or to measure on."""
    if job.source == PHOTOS:
        split = job.held_out if held_out else job.split
        photos = PhotoFolder(job.data_dir, split, least=job.crop)
        return PhotoRows(photos, caption_entries)
    records = _records(job, stage.resolution, work, held_out=held_out)
    return CaptionedImages(records, caption_entries, stage.low_resolution)


def _records(job: Pretraining, size: int, work: RunDirectory, *, held_out: bool) -> Any:
    """Records of the source, to train on or to measure on."""
    if job.source == TOYBOX:
        return RenderedRecords(
            epath.Path(job.cache) if job.cache else work.path / "records",
            seed=HELD_OUT_SEED if held_out else 0,
            length=block_length(size) if held_out else job.records,
            size=size,
        )
    return ImageCaptions(
        job.source,
        job.held_out if held_out else job.split,
        data_dir=job.data_dir,
        image=job.image_feature,
        caption=job.caption_feature,
        size=size,
    )


def _null(cascade: Cascade) -> Embedding:
    length, width = cascade.text.length, cascade.text.encoder.width
    return Embedding(np.zeros((length, width), np.float32), np.arange(length) == 0)


def _caption_entries(
    cascade: Cascade, tokenizer: Tokenizer | None, null: Embedding
) -> Callable[[str], pipeline.Example]:
    """A caption as a row has it: its tokens, or the null text where there is none."""
    if tokenizer is None:
        return lambda caption: {"text": null.text, "text_mask": null.mask}

    def entries(caption: str) -> pipeline.Example:
        cleaned = simple_clean(caption) if cascade.text.lower else caption
        return {"tokens": tokenizer.encode([cleaned])[0]}

    return entries


def _origin(run: _Pretraining) -> dict[str, Any]:
    """The manifest's entry on how the weights are made; exports copy it."""
    job = run.job
    parts = [part for part in (run.unet, run.text) if part is not None]
    origin: dict[str, Any] = {
        "config": recipe(job, *OF_RUN, *_unused(job)),
        "made_from": {part.name: part.fingerprint for part in parts if part.pretrained},
    }
    if isinstance(run.train, PhotoRows):
        origin["data"] = run.train.records.origin
    if job.source == TOYBOX:
        origin["knows"] = dataclasses.asdict(WORDS)
    return origin


def _commit() -> str:
    """The commit of the checkout with this package; empty if it is not in one."""
    root = pathlib.Path(__file__).parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return ""
    describe = "git describe --always --dirty --abbrev=40 --exclude=*"
    result = subprocess.run(
        describe.split(), cwd=root, capture_output=True, text=True, check=False
    )
    return result.stdout.strip()


def _fit(run: _Pretraining, folder: epath.Path, stop: StopRequest) -> None:
    """Trains to the last step, with previews and held-out losses."""
    job, stage, work = run.job, run.stage, run.work
    null = {"null": run.null.text, "null_mask": run.null.mask}
    data = run.batches(run.train, job.batch, job.seed, **null)
    loss_fn = run.loss(job.null_text)
    optimizer = optimizers.build(job.optim, job.steps)
    params, trained = {"unet": run.unet.params}, ["unet"]
    if run.text is not None:
        params["text"] = run.text.params
        trained += [] if job.text else ["text"]
    start = finetune.initial_state(
        params,
        optimizer,
        job.optim.ema > 0,
        run.mesh,
        tuple(f"{name}/.*" for name in trained),
        job.mesh.rules,
    )
    hooks = _loop_hooks(run, loss_fn, trained)
    training = loop.Training(
        stage.name,
        start,
        train_step.make_step(
            loss_fn,
            optimizer,
            seed=job.seed,
            ema=job.optim.ema,
            accumulate=job.accumulate,
        ),
        pipeline.iterate(data),
        loop.LoopConfig.of(job, always_usable=True),
        hooks,
    )
    profile = work.path / "profile" / stage.name if run.profile else None
    with Checkpoints(folder) as checkpoints:
        context = LoopContext(run.mesh, checkpoints, run.metrics, stop, profile)
        final = loop.train(training, context)
    if work.manifest["prior"].get("steps") != int(final.step):
        # An earlier run ended between the last save and its preview.
        hooks.preview(final, int(final.step))
    log.info("pretrained %s for %d steps", stage.name, job.steps)


def _loop_hooks(
    run: _Pretraining, loss_fn: Callable[..., Any], trained: list[str]
) -> loop.LoopHooks:
    """Previews with the held-out loss, and the averaged parameters."""
    job = run.job
    measure = _measure(run)

    def preview(state: TrainState, step: int) -> None:
        if step == 0:
            return  # a sample of untrained weights shows nothing
        params = ema_params(state, job.optim.ema)
        _write_preview(run, params, step)
        held_out = measure(params)
        run.metrics.write(run.stage.name, step, {"loss/held_out": held_out["loss"]})
        run.work.record(
            prior={"steps": step, "images": step * job.batch, "held_out": held_out}
        )

    def inference(state: TrainState) -> Params:
        params = ema_params(state, job.optim.ema)
        return {name: params[name] for name in trained}

    return loop.LoopHooks(
        learning_rate=optimizers.learning_rate(job.optim, job.steps),
        preview=preview,
        inference=inference,
        diagnose=functools.partial(train_step.not_finite, loss_fn, seed=job.seed),
    )


def _measure(run: _Pretraining) -> Callable[[Params], dict[str, float]]:
    """Measures the mean loss on held-out records, and their number.

    Records, crops, noise and times are the same every time.
    """
    job = run.job
    # Of a photograph every visit sees another crop.
    whole = isinstance(run.held_out, PhotoRows)
    records = HELD_OUT_RECORDS if whole else min(HELD_OUT_RECORDS, len(run.held_out))
    rows = min(job.batch // job.accumulate, records)
    batches = run.batches(run.held_out, rows, HELD_OUT_SEED)
    loss_fn = run.loss(null_text=0.0)
    program = jax.jit(lambda *inputs: loss_fn(*inputs)[1])

    def measure(params: Params) -> dict[str, float]:
        total, count = 0.0, 0.0
        for index in range(records // rows):
            batch = sharding.put_rows(batches[index], run.mesh)
            key = jax.random.fold_in(jax.random.key(HELD_OUT_SEED), index)
            sums = program(params, batch, key)
            total += float(sums["sum_subject"])
            count += float(sums["rows_subject"])
        return {"loss": total / count, "records": int(count)}

    return measure


def _write_preview(run: _Pretraining, params: Params, step: int) -> None:
    """Samples the prompts; a super-resolution stage enlarges held-out records."""
    job, stage, tokenizer = run.job, run.stage, run.tokenizer
    prompts, low, truths = list(job.prompts), None, []
    if isinstance(run.held_out, PhotoRows):
        rows = centre_crops(run.held_out.records, len(prompts), PREVIEW, stage.scale)
        prompts = [""] * len(rows)
        stage = dataclasses.replace(
            stage, resolution=PREVIEW, low_resolution=PREVIEW // stage.scale
        )
        low = np.stack([row["low"] for row in rows])
        truths = [row["image"] for row in rows]
    elif stage.low_resolution is not None:
        count = min(len(prompts), len(run.held_out))
        rows = [run.held_out[index] for index in range(count)]
        prompts = [tokenizer.decode(row["tokens"]) if tokenizer else "" for row in rows]
        low = np.stack([row["low"] for row in rows])
        truths = [row["image"] for row in rows]
    images = sample_stage(
        stage,
        run.unet,
        params["unet"],
        job.sampler,
        _embedded(run, params, prompts),
        run.null,
        range(len(prompts)),
        mesh=run.mesh,
        low=low,
        level=stage.normal_level,
    )
    cells = list(images)
    if low is not None:
        small = low.repeat(stage.scale, 1).repeat(stage.scale, 2)
        rows = zip(small, images, truths, strict=True)
        cells = [cell for row in rows for cell in row]
    if processes.is_first():
        image_files.save_png(
            run.work.path
            / "samples"
            / "previews"
            / stage.name
            / f"step_{step:06d}.png",
            grid(cells, 3 if low is not None else 8),
            {"prompts": json.dumps(prompts), "step": str(step)},
        )


def _embedded(run: _Pretraining, params: Params, prompts: list[str]) -> list[Embedding]:
    if run.text is None or run.tokenizer is None:
        return [run.null] * len(prompts)
    tokens = run.tokenizer.encode(prompts)
    inputs = sharding.put_copies((tokens, tokens > 0), run.mesh)
    embedded = sharding.fetch(jax.jit(run.text.apply)(params["text"], *inputs))
    return [Embedding(*row) for row in zip(embedded, tokens > 0, strict=True)]
