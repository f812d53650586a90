"""Pretrains all stages of the toybox on one device in a given time.

Processes of the host make scenes; the device renders them into a pool of pictures that
stays in its memory, and trains on random rows of it while the pool still fills. The
stages are trained one after the other, each for its own number of seconds, in which
compiling and rendering are counted. Nothing is read from disk but weights, so a machine
needs no data set; the result is a folder of bfloat16 weights.

A run that was cut off resumes from that folder: finished stages stay as they are, and
an unfinished one continues from its averaged weights, with the seconds it had left.

``launch/pretrain_toybox.sh`` runs it.
"""

import collections
import dataclasses
import functools
import json
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jaxtyping import Array

from imagen_booth import train_state as states
from imagen_booth.cascade import Cascade, Stage, by_name
from imagen_booth.config.schema import OptimConfig
from imagen_booth.distributed import sharding
from imagen_booth.errors import NotFinite
from imagen_booth.sampling.text_embeddings import load_tokenizer
from imagen_booth.storage import read_json, write_atomic
from imagen_booth.text.caption_cleaning import simple_clean
from imagen_booth.toybox import examples, packing, renderer
from imagen_booth.toybox.grammar import WORDS
from imagen_booth.training import optimizers, train_step
from imagen_booth.weights import load, native, tensor_files

log = logging.getLogger(__name__)

HELD_OUT_SEED = 1  # as in ``pretrain_stage``: records of this seed are for measuring
WEIGHTING = "v_max_10"
CHECK_EVERY = 50  # steps between looks at the loss, which wait for the device
SAVE_EVERY = 60.0  # seconds
WARMUP = 100  # steps
AHEAD = 32  # chunks of scenes in the making
RAYS = 1 << 22  # rays that an accelerator traces at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagePlan:
    """How one stage is trained.

    Attributes:
        stage: Its name.
        seconds: Time for it, compiling and rendering included.
        pictures: Size of the pool of training pictures.
        chunk: Pictures rendered together.
        rows: Rows per step.
        lr: Peak learning rate of Adam. It falls linearly to 0 over the last ``decay``
            of the time.
        crop: Side of the training crops in pixels; 0 for whole pictures.
        decay: Share of the time, 0 to 1.
        ema: Decay of the average of the parameters, which is what is exported.
        held_out: Pictures to measure the loss on at the end, a multiple of ``rows``.
        level: Least and greatest augmentation level of super-resolution rows.
    """

    stage: str
    seconds: float
    pictures: int
    chunk: int
    rows: int
    lr: float
    crop: int = 0
    decay: float = 0.6
    ema: float = 0.999
    held_out: int = 512
    level: tuple[float, float] = (1e-4, 1e-2)

    def rate(self, taken: int, seconds: float) -> float:
        """Learning rate after this many steps and seconds."""
        left = 1.0 - min(seconds / self.seconds, 1.0)
        return self.lr * min((taken + 1) / WARMUP, 1.0) * min(left / self.decay, 1.0)


_UPPER = functools.partial(StagePlan, ema=0.995)
# For a GPU of 80 GB and 16 cores in ten minutes, start of the program included.
TEN_MINUTES = (
    StagePlan(
        stage="base", seconds=370, pictures=393216, chunk=1024, rows=256, lr=1.2e-3
    ),
    _UPPER(
        stage="sr256",
        seconds=110,
        pictures=16384,
        chunk=64,
        rows=64,
        lr=1e-3,
        crop=128,
        held_out=128,
    ),
    _UPPER(
        stage="sr1024",
        seconds=70,
        pictures=512,
        chunk=4,
        rows=16,
        lr=5e-4,
        crop=256,
        held_out=32,
    ),
)
# A step of each stage, to try all of it on a CPU.
TOY = tuple(
    dataclasses.replace(
        plan, seconds=1.0, pictures=2 * chunk, chunk=chunk, rows=chunk, held_out=chunk
    )
    for plan, chunk in zip(TEN_MINUTES, (4, 2, 1), strict=True)
)


def run(
    folder: epath.Path,
    plans: Iterable[StagePlan] = TEN_MINUTES,
    *,
    cascade: str = "toybox",
    init: str = "shipped",
    text: str = "shipped",
    workers: int = 0,
) -> None:
    """Trains the stages, or resumes.

    Args:
        folder: Folder of weights to write; ``progress.json`` in it records how far they
            are.
        plans: The stages in order.
        cascade: Name of the cascade.
        init: Weights that stages start from: a folder, ``shipped`` or ``random``. A
            stage has the network that its weights describe; stages that the folder
            lacks start from shipped weights.
        text: Weights of the text encoder, which stays as it is.
        workers: Processes that make scenes; 0 for one on each core but one.

    Raises:
        InputError: Weights that do not exist or do not fit.
        NotFinite: Training diverged.
    """
    sources = {
        stage.name: _source(stage.name, init) for stage in by_name(cascade).stages
    }
    model = load.resolve(by_name(cascade), sources | {"text": text})
    jax.devices()  # before the other processes are kept away from the device
    with _scene_makers(workers) as makers:
        for plan in plans:
            spent = _read_progress(folder).get(plan.stage, {}).get("seconds", 0.0)
            if spent >= plan.seconds:
                log.info("%s: finished before", plan.stage)
                continue
            source = sources[plan.stage]
            _StageTraining(model, plan, folder, source, text).train(makers, spent)


def _source(stage: str, init: str) -> str:
    if init in ("shipped", "random"):
        return init
    return init if (epath.Path(init) / f"{stage}.safetensors").exists() else "shipped"


@dataclasses.dataclass
class Pool:
    """Training pictures on the device; the first ``filled`` rows hold some.

    Attributes:
        image: uint8 [N, S, S, 3].
        low: uint8 [N, s, s, 3] reduced pictures of super-resolution, or None.
        tokens: int32 [N, L] tokens of the captions.
        filled: Rows in use.
    """

    image: Array
    low: Array | None
    tokens: Array
    filled: int = 0

    @classmethod
    def empty(cls, model: Cascade, stage: Stage, count: int) -> "Pool":
        """A pool of ``count`` rows without pictures."""

        def pictures(side: int) -> Array:
            return jnp.zeros((count, side, side, 3), jnp.uint8)

        low = stage.low_resolution
        tokens = jnp.zeros((count, model.text.length), jnp.int32)
        return cls(pictures(stage.resolution), pictures(low) if low else None, tokens)

    def fill(self, stage: Stage, scenes: Any, tokens: np.ndarray) -> None:
        """Renders a chunk of packed scenes into the pool, as far as there is room."""
        first = min(self.filled, len(self.tokens) - len(tokens))
        image, low = _draw(scenes, stage)
        self.image, self.low, self.tokens = _put(
            (self.image, self.low, self.tokens), (image, low, tokens), first
        )
        self.filled = first + len(tokens)

    def take(self, stage: Stage, rows: int, step: int, part: int = 0) -> Any:
        """A batch: random rows, or ``part`` of the pool, counted from 1."""
        return _take(
            *(self.image, self.low, self.tokens, self.filled, step, part),
            stage=stage,
            rows=rows,
        )


class _StageTraining:
    """One stage in training: its programs, weights and plan."""

    def __init__(
        self, model: Cascade, plan: StagePlan, folder: epath.Path, init: str, text: str
    ):
        self._model, self._plan, self._folder = model, plan, folder
        on_cpu = jax.default_backend() == "cpu"
        dtype = jnp.float32 if on_cpu else jnp.bfloat16
        mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
        self.stage = dataclasses.replace(
            model.stage(plan.stage), crop=plan.crop or None
        )
        self.steps_before = _read_progress(folder).get(plan.stage, {}).get("steps", 0)
        source = str(folder) if self.steps_before else init
        unet = load.load(model, plan.stage, source, mesh, dtype)
        encoder = load.load(model, "text", text, mesh, jnp.float32)
        self._optimizer = optax.inject_hyperparams(_adam)(learning_rate=0.0)
        self.state = states.create(
            {"unet": unet.params, "text": encoder.params},
            ("unet/.*",),
            self._optimizer,
            ema=True,
        )
        config = train_step.LossConfig(WEIGHTING, null_text=0.1, level=plan.level)

        def loss(config: train_step.LossConfig) -> Callable[..., Any]:
            return functools.partial(
                train_step.batch_loss, self.stage, unet.apply, encoder.apply, config
            )

        step = train_step.make_step(
            loss(config), self._optimizer, seed=self.steps_before, ema=plan.ema
        )
        self._step = jax.jit(step, donate_argnums=0)
        measured = loss(dataclasses.replace(config, null_text=0.0))
        self._measure = jax.jit(lambda *inputs: measured(*inputs)[1])

    def train(self, makers: Any, spent: float) -> None:
        """Trains until the time is over, less ``spent`` seconds, and exports."""
        plan, stage = self._plan, self.stage
        begun = time.perf_counter() - spent
        held_out = Pool.empty(self._model, stage, plan.held_out)
        scenes = _Scenes(self._model, makers, plan.chunk, HELD_OUT_SEED)
        while held_out.filled < plan.held_out:
            held_out.fill(stage, *scenes.take())
        pool = Pool.empty(self._model, stage, plan.pictures)
        scenes = _Scenes(self._model, makers, plan.chunk, 0)
        pool.fill(stage, *scenes.take())
        saved, taken, seconds = time.perf_counter(), 0, 0.0
        while taken == 0 or seconds < plan.seconds:
            if pool.filled < plan.pictures and scenes.ready():
                pool.fill(stage, *scenes.take())
            seconds = time.perf_counter() - begun
            batch = pool.take(stage, plan.rows, taken)
            self._set_rate(plan.rate(taken, seconds))
            self.state, metrics = self._step(self.state, batch)
            taken += 1
            if taken % CHECK_EVERY == 0 or taken == 1:
                self._check(taken, seconds, metrics, pool)
            if time.perf_counter() - saved > SAVE_EVERY:
                self._export(taken, seconds, {})
                saved = time.perf_counter()
        loss = self._held_out_loss(held_out)
        log.info("%s: %d steps, held-out loss %.5f", plan.stage, taken, loss)
        seconds = max(time.perf_counter() - begun, plan.seconds)
        self._export(taken, seconds, {"loss": loss, "records": plan.held_out})

    def _set_rate(self, rate: float) -> None:
        rates = self.state.opt_state.hyperparams | {"learning_rate": jnp.float32(rate)}
        opt_state = self.state.opt_state._replace(hyperparams=rates)
        self.state = dataclasses.replace(self.state, opt_state=opt_state)

    def _check(self, taken: int, seconds: float, metrics: Any, pool: Pool) -> None:
        """Waits for the device and looks at the loss."""
        if not bool(metrics["finite"]):
            raise NotFinite(f"{self._plan.stage}: step {taken} is not finite")
        log.info(
            "%s: step %d, %.0f s, loss %.4f, %d pictures",
            *(self._plan.stage, taken, seconds, float(metrics["loss"]), pool.filled),
        )

    def _held_out_loss(self, pool: Pool) -> float:
        rows = self._plan.rows
        averaged = states.ema_params(self.state, self._plan.ema)
        losses = []
        for index in range(pool.filled // rows):
            batch = pool.take(self.stage, rows, 0, index + 1)
            key = jax.random.fold_in(jax.random.key(1), index)
            sums = self._measure(averaged, batch, key)
            losses.append(float(sums["sum_subject"]) / float(sums["rows_subject"]))
        return float(np.mean(losses))

    def _export(self, taken: int, seconds: float, held_out: dict[str, Any]) -> None:
        """Writes the averaged weights as bfloat16, and how far they are."""
        plan, model, folder = self._plan, self._model, self._folder
        averaged = states.flatten(states.ema_params(self.state, plan.ema)["unet"])
        weights = {
            path: tensor_files.held(np.asarray(leaf)) for path, leaf in averaged.items()
        }
        steps = self.steps_before + taken
        origin = {
            "config": dataclasses.asdict(plan) | {"weighting": WEIGHTING},
            "knows": dataclasses.asdict(WORDS),
            "steps": steps,
            "images": steps * plan.rows,
            "held_out": held_out,
        }
        entry = {"steps": steps, "prior": origin, "licence": model.licence}
        named = by_name(model.name).stage(plan.stage)
        own = dataclasses.replace(self.stage, crop=named.crop)
        native.write(
            folder,
            plan.stage,
            weights,
            None if own == named else own,
            entry,
            np.dtype(jnp.bfloat16),
        )
        native.record(
            folder, cascade=model.name, licence=model.licence, pretrained=True
        )
        reached = {plan.stage: {"steps": steps, "seconds": seconds}}
        progress = _read_progress(folder) | reached
        write_atomic(folder / "progress.json", json.dumps(progress).encode())


def _adam(learning_rate: float) -> optax.GradientTransformation:
    return optimizers.build(OptimConfig(lr=learning_rate, b2=0.99), 1)


def _read_progress(folder: epath.Path) -> dict[str, Any]:
    path = folder / "progress.json"
    return read_json(path, None) if path.exists() else {}


@functools.partial(jax.jit, static_argnames=("stage", "rows"))
def _take(
    image: Array,
    low: Array | None,
    tokens: Array,
    filled: Array,
    step: Array,
    part: Array,
    *,
    stage: Stage,
    rows: int,
) -> train_step.Batch:
    """``Pool.take``, cropped where the stage is."""
    key, row_key = jax.random.split(jax.random.fold_in(jax.random.key(0), step))
    chosen = jax.random.randint(row_key, (rows,), 0, filled)
    chosen = jnp.where(part > 0, jnp.arange(rows) + (part - 1) * rows, chosen)
    length = tokens.shape[1]
    batch = {
        "tokens": tokens[chosen],
        "weight": jnp.full((rows,), 1.0 / rows),
        "group": jnp.full((rows,), train_step.SUBJECT, jnp.int32),
        "null": jnp.zeros((length, stage.model.text_width)),
        "null_mask": jnp.arange(length) == 0,
    }
    images = image[chosen]
    if low is not None:
        small = low[chosen]
        side = stage.train_size // stage.scale
        corners = jax.random.randint(key, (rows, 2), 0, small.shape[1] - side + 1)

        def cut(pictures: Array, corners: Array, side: int) -> Array:
            def one(picture: Array, corner: Array) -> Array:
                return jax.lax.dynamic_slice(picture, (*corner, 0), (side, side, 3))

            return jax.vmap(one)(pictures, corners)

        batch["low"] = _to_unit(cut(small, corners, side))
        images = cut(images, corners * stage.scale, stage.train_size)
    return batch | {"image": _to_unit(images)}


def _to_unit(image: Array) -> Array:
    return image.astype(jnp.float32) / 127.5 - 1.0


def _draw(scenes: Any, stage: Stage) -> tuple[Array, Array | None]:
    """Pictures of packed scenes and their reductions, both uint8."""
    rays = renderer.RAYS if jax.default_backend() == "cpu" else RAYS
    image = renderer.draw(scenes, stage.resolution, rays=rays)
    if stage.low_resolution is None:
        return image, None
    shape = (len(image), stage.low_resolution, stage.low_resolution, 3)
    low = jax.image.resize(image.astype(jnp.float32), shape, "lanczos3")
    return image, jnp.round(jnp.clip(low, 0.0, 255.0)).astype(jnp.uint8)


@functools.partial(jax.jit, donate_argnums=0)
def _put(pool: Any, rows: Any, first: Array) -> Any:
    return jax.tree.map(
        lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, first, 0),
        pool,
        rows,
    )


class _Scenes:
    """Chunks of packed scenes with the tokens of their captions, without end."""

    def __init__(self, model: Cascade, makers: Any, chunk: int, seed: int):
        self._makers, self._chunk, self._seed = makers, chunk, seed
        self._tokenizer = load_tokenizer(model, "shipped")
        self._pending: collections.deque[Any] = collections.deque()
        self._first = 0

    def _order(self) -> None:
        while len(self._pending) < AHEAD:
            job = (self._seed, self._first, self._chunk)
            self._pending.append(self._makers.apply_async(make_scenes, job))
            self._first += self._chunk

    def ready(self) -> bool:
        """Whether the next chunk is there without waiting."""
        self._order()
        return self._pending[0].ready()

    def take(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The next chunk."""
        self._order()
        scenes, captions = self._pending.popleft().get()
        return scenes, self._tokenizer.encode([simple_clean(each) for each in captions])


def make_scenes(
    seed: int, first: int, count: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Packed scenes and captions of ``count`` records; work of another process."""
    made = [examples.example(seed, first + i) for i in range(count)]
    return packing.stack([each.scene for each in made]), [each.caption for each in made]


def _scene_makers(workers: int) -> Any:
    """A pool of processes that never touch the device."""
    count = workers or max((os.cpu_count() or 2) - 1, 1)
    before = os.environ.get("JAX_PLATFORMS")
    os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        return multiprocessing.get_context("spawn").Pool(count)
    finally:
        if before is None:
            del os.environ["JAX_PLATFORMS"]
        else:
            os.environ["JAX_PLATFORMS"] = before
