"""Pretraining of a stage: the same loop and step as fine-tuning, other data."""

import dataclasses
import json
import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from PIL import Image

from imagen_booth import booth, hosts, loop, optim, sharding, steps, tune
from imagen_booth.cascade import Cascade, by_name
from imagen_booth.checkpoint import Checkpoints
from imagen_booth.data import pictures, pipeline
from imagen_booth.data.toybox.grammar import TIERS
from imagen_booth.data.toybox.rendered import Rendered
from imagen_booth.embed import Embedding, tokenizer
from imagen_booth.errors import InputError
from imagen_booth.generate import draw_stage, grid
from imagen_booth.job import Pretraining
from imagen_booth.metrics import MetricWriter
from imagen_booth.stage import Stage
from imagen_booth.state import TrainState, ema_params
from imagen_booth.weights.load import Part, load
from imagen_booth.workdir import Workdir, now, recipe_of

log = logging.getLogger(__name__)

# Settings that can change without making what is trained another one.
FREE = ("steps", "records", "prompts", "sampler", "cache", "mesh") + booth.FREE

HELD_OUT_SEED = 1  # records of this seed are for measuring, never for training


class Captioned:
    """Records as rows of a batch: the image, its low-res version, its tokens.

    Args:
        records: ``image`` uint8 [S, S, 3] and ``caption``.
        encode: caption to tokens [L].
        low: side in pixels of the low-res version, None for none.
    """

    def __init__(
        self, records: Any, encode: Callable[[str], np.ndarray], low: int | None
    ):
        self._records, self._encode, self._low = records, encode, low

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> pipeline.Example:
        record = self._records[index]
        row = {"image": record["image"], "tokens": self._encode(record["caption"])}
        if self._low is None:
            return row
        small = Image.fromarray(record["image"]).resize(
            (self._low, self._low), Image.Resampling.LANCZOS
        )
        return row | {"low": np.asarray(small)}


def run(job: Pretraining, workdir: epath.Path) -> None:
    """Pretrains, or goes on.

    Args:
        job: the settings.
        workdir: gets ``manifest.json``, metrics, previews and the checkpoints, each
            of which holds averaged parameters ready for ``convert export``.

    Raises:
        InputError: a setting that cannot be.
        Stopped: a signal came; the state is saved.
        NotFinite: training diverged.
    """
    cascade = by_name(job.cascade)
    if job.tier not in TIERS:
        raise InputError(f"config.tier={job.tier!r} is not one of {', '.join(TIERS)}")
    if job.stage not in [stage.name for stage in cascade.stages]:
        raise InputError(f"config.stage={job.stage!r} is not a stage of {job.cascade}")
    stage = dataclasses.replace(cascade.stage(job.stage), crop=job.crop or None)
    if stage.low_resolution is not None and not job.text:
        raise InputError(
            "config.text is empty; give the folder of weights with the text encoder "
            "that the base stage was trained with"
        )
    work = Workdir(workdir)
    mesh = sharding.make_mesh(job.mesh.data, job.mesh.fsdp)
    dtype = booth.activation_dtype(job.dtype)
    with (
        jax.set_mesh(mesh),
        loop.StopRequest() as stop,
        MetricWriter(work.path, active=hosts.is_first()) as metrics,
    ):
        unet = load(cascade, stage.name, job.init, mesh, dtype)
        text = load(cascade, "text", job.text or job.init, mesh, dtype)
        work.write_json("config.json", dataclasses.asdict(job))
        work.record(
            created=work.manifest.get("created", now()),
            cascade={"name": cascade.name, "licence": cascade.licence},
            pretraining=recipe_of(job, "prompts", "sampler", "mesh"),
        )
        folder = work.claim(stage.name, recipe_of(job, *FREE))
        _fit(job, cascade, stage, unet, text, folder, work, mesh, metrics, stop)


def _fit(
    job: Pretraining,
    cascade: Cascade,
    stage: Stage,
    unet: Part,
    text: Part,
    folder: epath.Path,
    work: Workdir,
    mesh: jax.sharding.Mesh,
    metrics: MetricWriter,
    stop: loop.StopRequest,
) -> None:
    pieces = tokenizer(cascade, "shipped")
    cache = epath.Path(job.cache) if job.cache else work.path / "records"

    def captioned(seed: int, length: int) -> Captioned:
        records = Rendered(
            cache,
            seed=seed,
            length=length,
            tier=TIERS[job.tier],
            size=stage.resolution,
        )
        return Captioned(
            records, lambda caption: pieces.encode([caption])[0], stage.low_resolution
        )

    length, width = cascade.text.length, cascade.text.encoder.width
    first = np.arange(length) == 0
    null = Embedding(np.zeros((length, width), np.float32), first)
    data = pipeline.batches(
        [pipeline.Group(captioned(0, job.records), job.batch, 1.0, steps.SUBJECT)],
        seed=job.seed,
        host=hosts.index(),
        hosts=hosts.count(),
        multiple=mesh.size * job.accumulate,
        prepare=pipeline.random_crop(stage.crop, stage.scale) if stage.crop else None,
        shared={"null": null.text, "null_mask": null.mask},
    )
    loss_config = steps.LossConfig(
        weighting=job.weighting, null_text=job.null_text, level=job.level
    )

    def loss_fn(params, batch, key):
        return steps.batch_loss(
            stage, unet.apply, text.apply, loss_config, params, batch, key
        )

    optimizer = optim.build(job.optim, job.steps)
    trainable = ("unet/.*",) if job.text else ("unet/.*", "text/.*")
    start = tune.start_state(
        {"unet": unet.params, "text": text.params},
        optimizer,
        job.optim.ema > 0,
        mesh,
        trainable,
    )
    shown = captioned(HELD_OUT_SEED, 256)

    def preview(now: TrainState, step: int) -> None:
        if step == 0:
            return  # the average holds nothing yet, and noise shows nothing
        params = ema_params(now, job.optim.ema)
        _show(job, stage, cascade, unet, text, params, pieces, null, shown, step, work)

    with Checkpoints(folder) as checkpoints:
        loop.fit(
            stage.name,
            start,
            steps.make_step(
                loss_fn,
                optimizer,
                seed=job.seed,
                ema=job.optim.ema,
                accumulate=job.accumulate,
            ),
            iter(data.to_iter_dataset()),
            loop.LoopConfig(
                job.steps,
                job.log_every,
                job.save_every,
                job.preview_every,
                always_usable=True,
            ),
            mesh=mesh,
            checkpoints=checkpoints,
            metrics=metrics,
            learning_rate=optim.learning_rate(job.optim, job.steps),
            preview=preview,
            inference=lambda now: ema_params(now, job.optim.ema),
            diagnose=lambda now, batch: steps.not_finite(loss_fn, now, batch, job.seed),
            stop=stop,
        )
    log.info("pretrained %s for %d steps", stage.name, job.steps)


def _show(
    job: Pretraining,
    stage: Stage,
    cascade: Cascade,
    unet: Part,
    text: Part,
    params: dict[str, Any],
    pieces: Any,
    null: Embedding,
    shown: Captioned,
    step: int,
    work: Workdir,
) -> None:
    """Draws the prompts; a super-resolution stage enlarges held-out records."""
    mesh = jax.sharding.get_mesh()
    prompts, low, truths = list(job.prompts), None, []
    if stage.low_resolution is not None:
        rows = [shown[index] for index in range(len(prompts))]
        prompts = [pieces.decode(row["tokens"]) for row in rows]
        low = np.stack([row["low"] for row in rows])
        truths = [row["image"] for row in rows]
    tokens = pieces.encode(prompts)
    mask = tokens > 0
    embedded = sharding.fetch(
        jax.jit(text.apply)(params["text"], *sharding.put_copies((tokens, mask), mesh))
    )
    images = draw_stage(
        stage,
        unet,
        params["unet"],
        job.sampler,
        [Embedding(*row) for row in zip(embedded, mask, strict=True)],
        null,
        range(len(prompts)),
        mesh=mesh,
        low=low,
        level=stage.normal_level,
    )
    cells = list(images)
    if low is not None:
        small = low.repeat(stage.scale, 1).repeat(stage.scale, 2)
        rows = zip(small, images, truths, strict=True)
        cells = [cell for row in rows for cell in row]
    if hosts.is_first():
        pictures.save_png(
            work.path / "samples" / "previews" / stage.name / f"step_{step:06d}.png",
            grid(cells, 3 if low is not None else 8),
            {"prompts": json.dumps(prompts), "step": str(step)},
        )
