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
from etils import epath

from imagen_booth.cascade import Cascade, Stage, by_name, notices
from imagen_booth.config.schema import BEST, FineTuning, Job
from imagen_booth.data import image_files, photos
from imagen_booth.data.examples import ImagePair
from imagen_booth.data.photos import CheckedPhotos
from imagen_booth.distributed import processes
from imagen_booth.distributed.stop import StopRequest
from imagen_booth.errors import BoothError
from imagen_booth.evaluation import failure_modes
from imagen_booth.reports import run_report
from imagen_booth.rundir.layout import (
    LOOP_SETTINGS,
    PREVIEWS,
    RunDirectory,
    cache_folder,
    recipe,
    utc_now,
)
from imagen_booth.rundir.metrics import MetricWriter
from imagen_booth.sampling import cascade_sampler
from imagen_booth.sampling.cascade_sampler import (
    ImageRequest,
    LoadedStage,
    image_metadata,
    run_metadata,
    sample_cascade,
    save_images,
)
from imagen_booth.training import (
    class_images,
    finetune,
    mesh_choice,
    subject_photos,
    subject_prompts,
    textual_inversion,
)
from imagen_booth.training.finetune import FinetuneContext
from imagen_booth.training.previews import photo_example, plan_preview
from imagen_booth.training.subject_prompts import SubjectPrompts
from imagen_booth.weights.load import Part, load, resolve
from imagen_booth.weights.placement import activation_dtype

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RunContext:
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
        profile: leave a trace of early steps of each stage.
    """

    job: Job
    cascade: Cascade
    work: RunDirectory
    cache: epath.Path
    mesh: jax.sharding.Mesh
    dtype: Any
    stop: StopRequest
    metrics: MetricWriter
    profile: bool = False

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

    def part(self, name: str) -> Part:
        """The text encoder, or a stage's network, with its weights as they came."""
        job = self.job
        source = getattr(job.weights, name)
        rules = job.mesh.rules
        return load(self.cascade, name, source, self.mesh, self.dtype, rules)

    def means(self, name: str, folder: epath.Path) -> FinetuneContext:
        """Where and with what ``name`` is tuned, its checkpoints in ``folder``."""
        job, work = self.job, self.work.path
        return FinetuneContext(
            keep=job.keep,
            seed=job.seed,
            folder=folder,
            shown=work / "samples" / PREVIEWS / name,
            mesh=self.mesh,
            metrics=self.metrics,
            stop=self.stop,
            rules=job.mesh.rules,
            profile=work / "profile" / name if self.profile else None,
        )


def run(
    job: Job,
    workdir: epath.Path,
    overwrite: frozenset[str],
    *,
    profile: bool = False,
) -> epath.Path:
    """Runs a job, or what is left of it.

    Args:
        job: the settings.
        workdir: local or ``gs://``; holds everything the run makes.
        overwrite: parts to redo, see ``workdir.PARTS``.
        profile: leave a trace of early steps of each stage in ``workdir/profile``.

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
    work = RunDirectory(workdir, overwrite)
    cache = cache_folder(job.cache, work.path)
    mesh = mesh_choice.mesh_to_tune(cascade, job)
    dtype = activation_dtype(job.dtype)
    intake = subject_photos.check_photos(job, cascade, work)
    with (
        jax.set_mesh(mesh),
        StopRequest() as stop,
        MetricWriter(
            work.path, active=processes.is_first(), tensorboard=job.tensorboard
        ) as metrics,
    ):
        booth = RunContext(
            job, cascade, work, cache, mesh, dtype, stop, metrics, profile
        )
        try:
            with booth.timed("text"):
                words = subject_prompts.prepare_prompts(
                    job, cascade, cache, mesh, dtype
                )
            _begin(booth, intake, words)
            if job.text.steps > 0:
                words = _learn_words(booth, intake, words)
            ready = [
                _tune_stage(booth, stage, intake, words) for stage in cascade.stages
            ]
            with booth.timed("pictures"):
                _draw_pictures(booth, words, ready)
            work.record(status="done", finished=utc_now())
        except BoothError as error:
            work.record(status=f"{type(error).__name__}: {error}")
            raise
        finally:
            if processes.is_first():
                run_report.write(work.path)
    return work.path / "report.html"


def _begin(booth: RunContext, intake: CheckedPhotos, words: SubjectPrompts) -> None:
    """Records what the run is, and says what is known to be wrong."""
    work, job = booth.work, booth.job
    work.write_json("config.json", dataclasses.asdict(job))
    warnings = [
        *notices(booth.cascade),
        *cascade_sampler.scheduler_warnings(job, booth.cascade),
        *words.warnings,
        *intake.warnings,
    ]
    work.record(
        run=work.path.name,
        status="running",
        created=work.manifest.get("created", utc_now()),
        seed=job.seed,
        subject={
            "class_noun": job.subject.class_noun,
            "identifier": words.identifier,
            "identifier_ids": list(words.ids),
            "alone": words.alone,
            "instance_prompt": words.instance,
            "class_prompt": words.klass,
            **subject_photos.photo_manifest(intake),
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
    booth: RunContext, stage: Stage, intake: CheckedPhotos, words: SubjectPrompts
) -> LoadedStage:
    """Class images where they are wanted, then fine-tuning."""
    job, work, name = booth.job, booth.work, stage.name
    tuning = job.tuning(name)
    part = booth.part(name)
    work.record(cascade={"parts": {name: part.origin()}})
    teachers = intake.teaching(name)
    if tuning.steps > 0 and not teachers:
        log.warning("no photo can teach %s; it stays as it came", name)
        tuning = dataclasses.replace(tuning, steps=0)
    if tuning.steps == 0:
        named = job.names(name, 0)
        return LoadedStage(stage, part, part.params, stage.normal_level, 0, named)

    class_pairs: list[ImagePair] = []
    if tuning.class_rows:
        with booth.timed("class images"):
            class_pairs = _class_pairs(booth, stage, part, words)
    folder = work.claim(
        name,
        {
            "cascade": job.cascade,
            "weights": part.fingerprint,
            "text": words.reading,
            **_taught(booth, teachers, words),
            "class_images": recipe(job.class_images) if class_pairs else None,
            name: recipe(tuning, *_free(job, tuning)),
        },
    )
    subject = [photo_example(job, stage, photo) for photo in teachers]
    stage = stage.tuned(tuning.hybrid)
    with booth.timed(f"tuning {name}"):
        params, told = finetune.finetune_stage(
            stage,
            part,
            tuning,
            subject,
            words.found[words.instance],
            class_pairs,
            words.found[words.klass],
            plan_preview(
                job, stage, words, subject, run_metadata(work.path, booth.cascade)
            ),
            booth.means(name, folder),
        )
    _record_tuning(work, name, told)
    steps = told["kept"]["step"] if told["kept"] else tuning.steps
    return LoadedStage(stage, part, params, tuning.level, steps, True)


def _taught(
    booth: RunContext, teachers: Sequence[photos.Photo], words: SubjectPrompts
) -> dict[str, Any]:
    """What every tuning of a run depends on, for its recipe."""
    job = booth.job
    return {
        "photos": {photo.name: photo.sha256 for photo in teachers},
        "subject": recipe(
            job.subject, "photos", "identifier", "tokens", "consent", "description"
        ),
        "instance_prompt": words.instance,
        "seed": job.seed,
        "dtype": str(booth.dtype),
        **({"keep": BEST} if job.keep == BEST else {}),
    }


def _free(job: Job, tuning: FineTuning) -> tuple[str, ...]:
    """Settings that may change while the result stays, or goes on, the same."""
    free: set[str] = set(LOOP_SETTINGS)
    if job.keep == BEST:
        free.remove("preview_every")  # which steps are looked at
    if tuning.optim.decay == "constant":
        # More steps are a continuation; a decay depends on their number.
        free.add("steps")
    return tuple(free)


def _record_tuning(work: RunDirectory, name: str, told: dict[str, Any]) -> None:
    """What a tuning has to say of itself, for the manifest."""
    work.record(similarity={name: told["similarity"]})
    if told["kept"] or work.manifest.get("kept"):
        work.record(kept={name: told["kept"]})


def _learn_words(
    booth: RunContext, intake: CheckedPhotos, words: SubjectPrompts
) -> SubjectPrompts:
    """Textual Inversion; the words again, as the encoder then reads them."""
    job, work, stage = booth.job, booth.work, booth.cascade.stage("base")
    parts = {name: booth.part(name) for name in ("text", stage.name)}
    work.record(cascade={"parts": {stage.name: parts[stage.name].origin()}})
    inversion = textual_inversion.read_tokens(job, booth.cascade, words)
    teachers = intake.teaching(stage.name)
    folder = work.claim(
        "text",
        {
            "cascade": job.cascade,
            "weights": parts[stage.name].fingerprint,
            "text": words.plain_reading,
            **_taught(booth, teachers, words),
            "ids": list(inversion.ids),
            "text_tuning": recipe(job.text, *_free(job, job.text)),
        },
    )
    subject = [photo_example(job, stage, photo) for photo in teachers]
    with booth.timed("learning words"):
        learned, told = textual_inversion.learn_embedding(
            inversion,
            booth.cascade,
            parts,
            job.text,
            subject,
            plan_preview(
                job, stage, words, subject, run_metadata(work.path, booth.cascade)
            ),
            booth.means("text", folder),
        )
    _record_tuning(work, "text", told)
    work.record(subject={"learned": learned.digest()})
    return subject_prompts.prepare_prompts(
        job, booth.cascade, booth.cache, booth.mesh, booth.dtype, learned
    )


def _class_pairs(
    booth: RunContext, stage: Stage, part: Part, words: SubjectPrompts
) -> list[ImagePair]:
    """The prior set of a stage; that of the base stage is shown in the report."""
    pairs, folder = class_images.class_image_pairs(
        booth.job,
        booth.cascade,
        stage,
        part,
        words,
        cache=booth.cache,
        mesh=booth.mesh,
        dtype=booth.dtype,
        check_stop=booth.stop.check,
    )
    if stage.low_resolution is None and processes.is_first():
        booth.work.record(class_images={"folder": str(folder), "count": len(pairs)})
        images = [pair.image for pair in pairs[:40]]
        sheet = image_files.contact_sheet(images, columns=10, cell=128)
        image_files.save_png(booth.work.path / "samples" / "class_images.png", sheet)
    return pairs


def _draw_pictures(
    booth: RunContext, words: SubjectPrompts, ready: Sequence[LoadedStage]
) -> None:
    """The final pictures, at the resolution of every stage."""
    job, work = booth.job, booth.work
    folder = work.claim("samples", {"pictures": recipe(job.pictures)})
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
        ImageRequest(prompt, plain, job.seed + seed, f"{index:02d}_{seed}")
        for index, (prompt, plain) in enumerate(
            zip(words.pictures, words.plain, strict=True)
        )
        for seed in range(job.pictures.seeds)
    ]
    noun = job.subject.class_noun
    story = run_metadata(work.path, booth.cascade, words.identifier, noun)
    for each, images in sample_cascade(
        ready,
        requests,
        words.found,
        {each.stage.name: getattr(job.pictures, each.stage.name) for each in ready},
        batch=job.pictures.batch,
        mesh=booth.mesh,
        check_stop=booth.stop.check,
    ):
        if processes.is_first():
            place = folder / "final" / str(each.stage.resolution)
            drawn = image_metadata(each, getattr(job.pictures, each.stage.name))
            save_images(place, requests, images, story | drawn)
    if requests and processes.is_first():
        failure_modes.check_run(work.path, "final")
    work.write_json("samples/drawn.json", made)
