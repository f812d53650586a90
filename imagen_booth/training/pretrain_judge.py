"""Training of the judge on renders with known words and on pairs of one individual.

Every row of a batch is two pictures. A row of records shows two individuals, a row of
pairs shows one individual twice. Both train the words; pairs train the subject
embedding.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jaxtyping import Array

from imagen_booth.config.schema import JudgeTraining
from imagen_booth.data import pipeline
from imagen_booth.distributed import processes, sharding
from imagen_booth.distributed.stop import StopRequest
from imagen_booth.evaluation import toybox_judge
from imagen_booth.evaluation.toybox_judge import WORDS
from imagen_booth.models.toybox_judge import Judge as Network
from imagen_booth.rundir import layout, lock
from imagen_booth.rundir.checkpoints import Checkpoints
from imagen_booth.rundir.layout import RunDirectory, recipe, utc_now
from imagen_booth.rundir.metrics import MetricWriter
from imagen_booth.toybox import examples
from imagen_booth.toybox.pairs import Pairs
from imagen_booth.toybox.records import BLOCK, RenderedRecords
from imagen_booth.train_state import Params, TrainState, ema_params
from imagen_booth.training import finetune, loop, optimizers, train_step
from imagen_booth.training.loop import LoopContext
from imagen_booth.training.pretrain_stage import HELD_OUT_SEED
from imagen_booth.weights.load import place

log = logging.getLogger(__name__)

FREE = ("cache", "mesh") + layout.LOOP_SETTINGS
RECORDS, PAIRS = 0, 1  # values of a batch's "group"

# Degradations that a cascade's samples may have, drawn anew for every picture.
BLUR = 1.6  # pixels, largest standard deviation
NOISE = 0.08  # largest standard deviation, of pictures in [-1, 1]
GAIN, SHIFT = 0.1, 0.06  # largest change of a colour channel


class DistinctIndividuals:
    """Records by twos, as ``Pairs`` has them."""

    def __init__(self, records: RenderedRecords, seed: int):
        self._records, self._seed = records, seed

    def __len__(self) -> int:
        return len(self._records) // 2

    def __getitem__(self, index: int) -> dict[str, Any]:
        two = range(2 * index, 2 * index + 2)
        images: list[Any] = [self._records[i]["image"] for i in two]
        return {
            "image": np.stack(images),
            "attributes": [examples.describe(self._seed, i)[0] for i in two],
        }


class Labelled:
    """Rows of a batch: two pictures, and the number of each word they show."""

    def __init__(self, records: DistinctIndividuals | Pairs):
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> pipeline.Example:
        record: dict[str, Any] = self._records[index]
        labels = [
            [
                words.index(toybox_judge.shown(each)[name])
                for name, words in WORDS.items()
            ]
            for each in record["attributes"]
        ]
        return {"image": record["image"], "words": np.array(labels, np.int32)}


def single(batch: pipeline.Example) -> pipeline.Example:
    """Rows of two pictures as rows of one, a pair's next to each other."""
    return {
        "image": np.concatenate(batch["image"]),
        "words": np.concatenate(batch["words"]),
        "weight": np.repeat(batch["weight"] / np.float32(2), 2),
        "group": np.repeat(batch["group"], 2),
    }


def degraded(image: Array, key: Array) -> Array:
    """Blurs, tints and mirrors pictures at random, and adds noise.

    Args:
        image: [B, S, S, 3] in [-1, 1].
    """
    blur_key, noise_key, size_key, gain_key, shift_key, flip_key = jax.random.split(
        key, 6
    )
    rows, side = image.shape[:2]
    column = (rows, 1, 1)
    tint = (rows, 1, 1, 3)

    # A Gaussian as a matrix over rows of pixels; most pictures stay nearly sharp.
    width = BLUR * jnp.square(jax.random.uniform(blur_key, column)) + 1e-2
    place = jnp.arange(side, dtype=jnp.float32)
    away = jnp.square(place[:, None] - place[None, :])[None]
    kernel = jax.nn.softmax(-away / (2 * jnp.square(width)), axis=-1)
    image = jnp.einsum("BIH,BJW,BHWC->BIJC", kernel, kernel, image)

    mirror = jax.random.bernoulli(flip_key, 0.5, (rows, 1, 1, 1))
    image = jnp.where(mirror, image[:, :, ::-1], image)
    gain = 1 + GAIN * jax.random.uniform(gain_key, tint, minval=-1.0)
    shift = SHIFT * jax.random.uniform(shift_key, tint, minval=-1.0)
    rough = NOISE * jnp.square(jax.random.uniform(size_key, (rows, 1, 1, 1)))
    noise = rough * jax.random.normal(noise_key, image.shape)
    return jnp.clip(image * gain + shift + noise, -1.0, 1.0)


def pair_losses(subjects: Array, weight: Array, temperature: float) -> Array:
    """The loss of finding each picture's partner among all pictures of the batch.

    This is the cross entropy of the softmax over cosines (NT-Xent, arXiv 2002.05709,
    eq. 1).

    Args:
        subjects: [B, E] of unit length; rows 2i and 2i + 1 are partners.
        weight: [B]; rows of weight 0 are padding and partners to none.

    Returns:
        [B], of meaning only where partners show one individual.
    """
    rows = jnp.arange(len(subjects))
    open_to = (weight > 0)[None, :] & (rows[:, None] != rows[None, :])
    logits = jnp.where(open_to, subjects @ subjects.T / temperature, -1e9)
    return optax.softmax_cross_entropy_with_integer_labels(logits, rows ^ 1)


def batch_loss(
    apply: Callable[..., Any],
    temperature: float,
    params: Params,
    batch: train_step.Batch,
    key: Array,
) -> tuple[Array, dict[str, Array]]:
    """Weighted loss of a batch: the mean over attributes, and that over pairs.

    Args:
        apply: ``(params, image) -> logits, subjects, looks``.
        params: ``{"judge"}``.
        batch: As ``single`` makes it.

    Returns:
        Loss [], and sums over the rows for ``steps.make_step``.
    """
    logits, subjects, _ = apply(params["judge"], degraded(batch["image"], key))
    weight = batch["weight"]
    real = (weight > 0).astype(jnp.float32)
    pairs = (batch["group"] == PAIRS).astype(jnp.float32)
    words, metrics = jnp.zeros_like(weight), {}
    for number, name in enumerate(WORDS):
        label = batch["words"][:, number]
        words += optax.softmax_cross_entropy_with_integer_labels(logits[name], label)
        right = (logits[name].argmax(-1) == label).astype(jnp.float32)
        metrics[f"right_{name}"] = jnp.sum(right * real) / jnp.sum(real)
    words /= len(WORDS)
    partners = pair_losses(subjects, weight, temperature)
    loss = jnp.sum(weight * (words + pairs * partners))
    return loss, metrics | {
        "loss": loss,
        "sum_words": jnp.sum(words * real),
        "rows_words": jnp.sum(real),
        "sum_pairs": jnp.sum(partners * pairs),
        "rows_pairs": jnp.sum(pairs),
    }


def measure(
    one: toybox_judge.Judge, records: DistinctIndividuals, pairs: Pairs
) -> dict[str, Any]:
    """What a judge gets right on pictures it never saw.

    Returns:
        ``words``: By attribute the share of records named rightly, and the mean of
        that share over the words that occur (``even``), for which rare words count
        as much as common ones. ``subject``: mean cosine of pairs, that of
        individuals of one class, and how often the pair is the nearer of the two.
    """
    rows = [records[index] for index in range(len(records))]
    wanted = [toybox_judge.shown(each) for row in rows for each in row["attributes"]]
    readings = one.read([image for row in rows for image in row["image"]])
    words = {}
    for name, answers in readings.words.items():
        truth = np.array([each[name] for each in wanted])
        right = np.array(answers) == truth
        even = np.mean([right[truth == word].mean() for word in np.unique(truth)])
        words[name] = {"right": float(right.mean()), "even": float(even)}

    rows = [pairs[index] for index in range(len(pairs))]
    nouns = np.array([row["attributes"][0].noun for row in rows])
    subjects = one.read([image for row in rows for image in row["image"]]).subjects
    cosine = subjects[::2] @ subjects[1::2].T
    same = np.diagonal(cosine)
    others = (nouns[:, None] == nouns[None, :]) & ~np.eye(len(rows), dtype=bool)
    subject = {
        "pair": float(same.mean()),
        "class": float(cosine[others].mean()),
        "nearer": float(np.mean((same[:, None] > cosine)[others])),
    }
    return {"words": words, "subject": subject}


def run(job: JudgeTraining, workdir: epath.Path) -> None:
    """Trains a judge, or resumes, and writes its weights to ``workdir/weights``.

    Raises:
        InputError: A setting is not valid.
        Stopped: A signal came; the state is saved.
        NotFinite: Training diverged.
    """
    work = RunDirectory(workdir)
    layout.cache_folder(job.cache, work.path)
    mesh = sharding.make_mesh(job.mesh.data, job.mesh.fsdp)
    with (
        lock.held(work.path),
        jax.set_mesh(mesh),
        StopRequest() as stop,
        MetricWriter(work.path, active=processes.is_first()) as metrics,
    ):
        work.write_json("config.json", dataclasses.asdict(job))
        work.record(created=work.manifest.get("created", utc_now()))
        folder = work.claim(toybox_judge.NAME, recipe(job, *FREE))
        _fit(job, folder, work, mesh, metrics, stop)


def _fit(
    job: JudgeTraining,
    folder: epath.Path,
    work: RunDirectory,
    mesh: jax.sharding.Mesh,
    metrics: MetricWriter,
    stop: StopRequest,
) -> None:
    """Trains to the last step and writes the weights."""
    cache = epath.Path(job.cache) if job.cache else work.path / "records"
    train = _render(job, cache, 0, job.records, job.pairs)
    held_out = _render(job, cache, HELD_OUT_SEED, job.held_out, job.held_out // 4)
    network = Network(toybox_judge.CONFIG)

    def loss_fn(params, batch, key):
        def apply(params: Params, image: Array) -> Any:
            return network.apply({"params": params}, image)

        return batch_loss(apply, job.temperature, params, batch, key)

    size = toybox_judge.CONFIG.size
    blank = jnp.zeros((1, size, size, 3), jnp.float32)
    params = jax.jit(network.init)(jax.random.key(job.seed), blank)["params"]
    params = place(jax.tree.map(np.asarray, params), mesh)
    optimizer = optimizers.build(job.optim, job.steps)

    def preview(state: TrainState, step: int) -> None:
        if step > 0:
            scores = measure(toybox_judge.Judge(_stored(job, state)), *held_out)
            metrics.write(toybox_judge.NAME, step, _score_row(scores))

    training = loop.Training(
        toybox_judge.NAME,
        finetune.initial_state(
            {toybox_judge.NAME: params},
            optimizer,
            job.optim.ema > 0,
            mesh,
            ("judge/.*",),
        ),
        train_step.make_step(loss_fn, optimizer, seed=job.seed, ema=job.optim.ema),
        pipeline.iterate(_batches(job, mesh, *train)),
        loop.LoopConfig.of(job),
        loop.LoopHooks(
            learning_rate=optimizers.learning_rate(job.optim, job.steps),
            preview=preview,
            inference=lambda state: ema_params(state, job.optim.ema),
            diagnose=functools.partial(train_step.not_finite, loss_fn, seed=job.seed),
        ),
    )
    with Checkpoints(folder) as checkpoints:
        context = LoopContext(mesh, checkpoints, metrics, stop)
        final = loop.train(training, context)
    _write_weights(job, work, _stored(job, final), held_out)


def _render(
    job: JudgeTraining, cache: epath.Path, seed: int, records: int, pairs: int
) -> tuple[DistinctIndividuals, Pairs]:
    """Records and pairs, rendered now, block by block.

    Otherwise the threads that read ahead would each begin with the same ones.
    """
    size = toybox_judge.CONFIG.size
    rendered = RenderedRecords(cache, seed=seed, length=records, size=size)
    both = (
        DistinctIndividuals(rendered, seed),
        Pairs(cache, seed=seed, length=pairs, size=size),
    )
    for each in both:
        for index in range(0, len(each), BLOCK // 2):
            each[index]
    return both


def _batches(
    job: JudgeTraining,
    mesh: jax.sharding.Mesh,
    records: DistinctIndividuals,
    pairs: Pairs,
) -> Any:
    """Batches of rows of both kinds, as grain's MapDataset."""
    rows = job.record_rows + job.pair_rows
    return pipeline.batches(
        [
            pipeline.Group(Labelled(source), count, count / rows, group)
            for source, count, group in (
                (records, job.record_rows, RECORDS),
                (pairs, job.pair_rows, PAIRS),
            )
        ],
        seed=job.seed,
        host=processes.index(),
        hosts=processes.count(),
        multiple=mesh.size,
    ).map(single)


def _stored(job: JudgeTraining, state: TrainState) -> Params:
    """The averaged parameters on the host, rounded as their file will be."""
    params = ema_params(state, job.optim.ema)[toybox_judge.NAME]
    return jax.tree.map(
        lambda leaf: sharding.fetch(leaf).astype(jnp.bfloat16).astype(np.float32),
        params,
    )


def _score_row(scores: dict[str, Any]) -> dict[str, float]:
    """Scores as a row of metrics."""
    row = {f"eval/{name}": each["right"] for name, each in scores["words"].items()}
    return row | {
        f"eval/subject_{name}": each for name, each in scores["subject"].items()
    }


def _write_weights(
    job: JudgeTraining,
    work: RunDirectory,
    params: Params,
    held_out: tuple[DistinctIndividuals, Pairs],
) -> None:
    """Writes the weights with their origin and their scores on held-out renders."""
    entry = {
        "licence": "Apache-2.0",
        "made": utc_now(),
        "recipe": recipe(job, *FREE),
        "images": 2 * (job.record_rows + job.pair_rows) * job.steps,
        "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
        "held_out": measure(toybox_judge.Judge(params), *held_out),
    }
    if processes.is_first():
        toybox_judge.write(work.path / "weights", params, entry)
    log.info("trained the judge: %s", entry["held_out"])
