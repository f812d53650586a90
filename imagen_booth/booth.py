"""The order of steps for one subject, from photos to the report.

check photos -> embed prompts -> class images -> fine-tune each stage -> pictures

Every step looks at what is already in the work directory and goes on from there,
so the same command continues a run that was stopped.
"""

import contextlib
import dataclasses
import json
import logging
import platform
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from imagen_booth import hosts, loop, prepare, prior, report, sharding, tune
from imagen_booth.cascade import Cascade, by_name, notices
from imagen_booth.data import photos, pictures
from imagen_booth.errors import BoothError, InputError
from imagen_booth.generate import Ready, Request, draw_cascade, rows_at, store
from imagen_booth.job import Job
from imagen_booth.metrics import MetricWriter
from imagen_booth.prepare import Words
from imagen_booth.stage import Stage
from imagen_booth.weights.load import Part, load, resolve
from imagen_booth.workdir import Workdir, now, recipe_of

log = logging.getLogger(__name__)

# Settings of a tuning that can change without making its result another one.
FREE = ("log_every", "save_every", "preview_every", "remat")
BASE_PREVIEWS = (4, 2, 2)  # pictures of the subject, of it elsewhere, of its class


@dataclasses.dataclass(frozen=True)
class Booth:
    """What every step of a run needs.

    Attributes:
        job: the settings.
        cascade: the model.
        work: the work directory.
        cache: folder shared by runs.
        mesh: devices.
        dtype: of activations.
        stop: asks the work to save and end.
        metrics: where numbers go.
    """

    job: Job
    cascade: Cascade
    work: Workdir
    cache: epath.Path
    mesh: jax.sharding.Mesh
    dtype: Any
    stop: loop.StopRequest
    metrics: MetricWriter

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Adds the seconds spent to the manifest, over all runs of the command."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = dict(self.work.manifest.get("timings", {}))
            spent[what] = spent.get(what, 0.0) + time.perf_counter() - start
            self.work.record(timings=spent)


def run(job: Job, workdir: epath.Path, overwrite: frozenset[str]) -> epath.Path:
    """Runs a job, or what is left of it.

    Args:
        job: the settings.
        workdir: local or ``gs://``; holds everything the run makes.
        overwrite: parts to redo, see ``workdir.PARTS``.

    Returns:
        Path of ``report.html``.

    Raises:
        InputError: bad photos, words, weights or settings; found before any work.
        Stopped: a signal came; the same command goes on from there.
        NotFinite: training diverged; the last good state is saved.
        StorageError: something cannot be written.
    """
    cascade = resolve(by_name(job.cascade), dataclasses.asdict(job.weights))
    cascade = cascade.rematerialised(job.rematerialised())
    work = Workdir(workdir, overwrite)
    cache = cache_folder(job, work.path)
    mesh = sharding.make_mesh(job.mesh.data, job.mesh.fsdp)
    dtype = activation_dtype(job.dtype)
    intake = prepare.check_photos(job, cascade, work)
    with (
        jax.set_mesh(mesh),
        loop.StopRequest() as stop,
        MetricWriter(
            work.path, active=hosts.is_first(), tensorboard=job.tensorboard
        ) as metrics,
    ):
        booth = Booth(job, cascade, work, cache, mesh, dtype, stop, metrics)
        try:
            with booth.timed("text"):
                words = prepare.choose_words(job, cascade, cache, mesh, dtype)
            _begin(booth, intake, words)
            ready = [
                _tune_stage(booth, stage, intake, words) for stage in cascade.stages
            ]
            with booth.timed("pictures"):
                _draw_pictures(booth, words, ready)
            work.record(status="done", finished=now())
        except BoothError as error:
            work.record(status=f"{type(error).__name__}: {error}")
            raise
        finally:
            if hosts.is_first():
                report.write(work.path)
    return work.path / "report.html"


def cache_folder(job: Job, workdir: epath.Path) -> epath.Path:
    """Where runs share class images, embeddings and compiled programs."""
    cache = epath.Path(job.cache) if job.cache else workdir.parent / "cache"
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
    return cache


def story_of(workdir: epath.Path, cascade: Cascade) -> dict[str, str]:
    """Metadata of every picture that a run draws."""
    return {
        "run": workdir.name,
        "cascade": cascade.name,
        "licence": cascade.licence,
    }


def activation_dtype(name: str, accelerated: bool | None = None) -> Any:
    """bfloat16 on an accelerator and float32 on a CPU, unless named.

    Args:
        accelerated: whether it runs on an accelerator; None to look.

    Raises:
        InputError: a name that is neither.
    """
    if name not in ("", "float32", "bfloat16"):
        raise InputError(
            f"config.dtype={name!r} is not known; use 'float32', 'bfloat16' or ''"
        )
    if accelerated is None:
        accelerated = jax.default_backend() != "cpu"
    return jnp.dtype(name or ("bfloat16" if accelerated else "float32"))


def _begin(booth: Booth, intake: photos.Intake, words: Words) -> None:
    """Records what the run is, and says what is known to be wrong."""
    work, job = booth.work, booth.job
    work.write_json("config.json", dataclasses.asdict(job))
    warnings = [
        *notices(booth.cascade),
        *prepare.sampler_warnings(job, booth.cascade),
        *words.warnings,
        *intake.warnings,
    ]
    work.record(
        run=work.path.name,
        status="running",
        created=work.manifest.get("created", now()),
        seed=job.seed,
        subject={
            "class_noun": job.subject.class_noun,
            "identifier": words.identifier,
            "identifier_ids": list(words.ids),
            "instance_prompt": words.instance,
            "class_prompt": words.klass,
            **prepare.photo_entries(intake),
        },
        cascade={
            "name": booth.cascade.name,
            "licence": booth.cascade.licence,
            "parts": {"text": words.encoder},
        },
        warnings=warnings,
        versions={
            "python": platform.python_version(),
            "imagen_booth": metadata.version("imagen_booth"),
            "jax": jax.__version__,
            "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
        },
    )
    for rejected in (*intake.refused, *intake.skipped):
        log.warning("%s is not used: %s", rejected.name, rejected.reason)
    for warning in warnings:
        log.warning("%s", warning)
    log.info("the instance prompt is %r", words.instance)


def _tune_stage(
    booth: Booth, stage: Stage, intake: photos.Intake, words: Words
) -> Ready:
    """Class images where they are wanted, then fine-tuning."""
    job, work, name = booth.job, booth.work, stage.name
    tuning = job.tuning(name)
    part = load(
        booth.cascade, name, getattr(job.weights, name), booth.mesh, booth.dtype
    )
    work.record(cascade={"parts": {name: part.origin()}})
    teachers = intake.teaching(name)
    if tuning.steps > 0 and not teachers:
        log.warning("no photo can teach %s; it stays as it came", name)
        tuning = dataclasses.replace(tuning, steps=0)
    if tuning.steps == 0:
        return Ready(stage, part, part.params, stage.normal_level, 0)

    class_pairs: list[tune.Pair] = []
    if tuning.class_rows:
        with booth.timed("class images"):
            class_pairs = _class_pairs(booth, stage, part, words)
    # More steps at a constant rate are a continuation; a decay depends on their number.
    free = FREE if tuning.optim.decay != "constant" else (*FREE, "steps")
    folder = work.claim(
        name,
        {
            "cascade": job.cascade,
            "weights": part.fingerprint,
            "text": words.reading,
            "photos": {photo.name: photo.sha256 for photo in teachers},
            "subject": recipe_of(
                job.subject, "photos", "identifier", "tokens", "consent"
            ),
            "instance_prompt": words.instance,
            "class_images": recipe_of(job.class_images) if class_pairs else None,
            "seed": job.seed,
            "dtype": str(booth.dtype),
            name: recipe_of(tuning, *free),
        },
    )
    subject = [_photo_pair(job, stage, photo) for photo in teachers]
    stage = stage.tuned(tuning.hybrid)
    with booth.timed(f"tuning {name}"):
        params, similarity = tune.tune(
            stage,
            part,
            tuning,
            subject,
            words.found[words.instance],
            class_pairs,
            words.found[words.klass],
            _preview(booth, stage, words, subject),
            seed=job.seed,
            folder=folder,
            previews=work.path / "samples" / "previews" / name,
            mesh=booth.mesh,
            metrics=booth.metrics,
            stop=booth.stop,
        )
    work.record(similarity={name: similarity})
    return Ready(stage, part, params, tuning.level, tuning.steps)


def _photo_pair(job: Job, stage: Stage, photo: photos.Photo) -> tune.Pair:
    low = stage.low_resolution
    return tune.Pair(
        prepare.square(job.subject, photo, stage.resolution),
        None if low is None else prepare.square(job.subject, photo, low),
    )


def _class_pairs(
    booth: Booth, stage: Stage, part: Part, words: Words
) -> list[tune.Pair]:
    """The prior set of a stage, drawn by its frozen weights from the stages below."""
    job = booth.job
    below = [
        each for each in booth.cascade.stages if each.resolution < stage.resolution
    ]
    lows: list[np.ndarray] | None = None
    made_from = words.reading
    for each in (*below, stage):
        network = (
            part
            if each is stage
            else load(
                booth.cascade,
                each.name,
                getattr(job.weights, each.name),
                booth.mesh,
                booth.dtype,
            )
        )
        recipe = prior.Recipe(
            prompt=words.klass,
            unet=network.fingerprint,
            made_from=made_from,
            stage=each,
            level=0.0 if each.low_resolution is None else each.normal_level,
            sampler=(
                job.class_images.sampler
                if each.low_resolution is None
                else getattr(job.pictures, each.name)
            ),
            group=job.class_images.group,
            seed=job.seed,
            dtype=str(booth.dtype),
        )
        images = prior.class_images(
            recipe,
            job.class_images.count,
            network,
            words.found[words.klass],
            words.found[""],
            lows=lows,
            cache=booth.cache,
            mesh=booth.mesh,
            check_stop=booth.stop.check,
        )
        if each is stage:
            break
        lows, made_from = images, recipe.digest()
    if stage.low_resolution is None and hosts.is_first():
        folder = prior.folder_of(recipe, booth.cache)
        booth.work.record(class_images={"folder": str(folder), "count": len(images)})
        sheet = pictures.contact_sheet(images[:40], columns=10, cell=128)
        pictures.save_png(booth.work.path / "samples" / "class_images.png", sheet)
    if lows is None:
        return [tune.Pair(image, None) for image in images]
    return [tune.Pair(*pair) for pair in zip(images, lows, strict=True)]


def _preview(
    booth: Booth, stage: Stage, words: Words, subject: Sequence[tune.Pair]
) -> tune.Preview:
    """Base: the subject, the subject elsewhere, and its class; else two photos."""
    job = booth.job
    if stage.low_resolution is None:
        counts = zip(BASE_PREVIEWS, (words.instance, None, words.klass), strict=True)
        shown = [
            prompt or words.pictures[(1 + index) % len(words.pictures)]
            for count, prompt in counts
            for index in range(count)
        ]
    else:
        subject = subject[:2]
        shown = [words.instance] * len(subject)
    return tune.Preview(
        prompts=shown,
        embeddings=[words.found[prompt] for prompt in shown],
        null=words.found[""],
        sampler=getattr(job.pictures, stage.name),
        rows=max(rows_at(stage, job.pictures.batch), len(shown)),
        photos=subject,
        subjects=BASE_PREVIEWS[0],
    )


def _draw_pictures(booth: Booth, words: Words, ready: Sequence[Ready]) -> None:
    """The final pictures, at the resolution of every stage."""
    job, work = booth.job, booth.work
    folder = work.claim("samples", {"pictures": recipe_of(job.pictures)})
    made = {
        "instance_prompt": words.instance,
        "text": words.reading,
        "weights": {each.stage.name: each.part.fingerprint for each in ready},
        "steps": {each.stage.name: each.steps for each in ready},
    }
    done = folder / "drawn.json"
    if done.exists() and json.loads(done.read_text()) == made:
        return
    requests = [
        Request(prompt, plain, job.seed + seed, f"{index:02d}_{seed}")
        for index, (prompt, plain) in enumerate(
            zip(words.pictures, words.plain, strict=True)
        )
        for seed in range(job.pictures.seeds)
    ]
    story = story_of(work.path, booth.cascade)
    for stage, images in draw_cascade(
        ready,
        requests,
        words.found,
        {each.stage.name: getattr(job.pictures, each.stage.name) for each in ready},
        batch=job.pictures.batch,
        mesh=booth.mesh,
        check_stop=booth.stop.check,
    ):
        if hosts.is_first():
            store(folder / "final" / str(stage.resolution), requests, images, story)
    work.write_json("samples/drawn.json", made)
