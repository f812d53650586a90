"""DreamBooth for one subject, or two together, from photos to the report.

check photos -> choose identifier and embed prompts -> class images ->
fine-tune each stage -> pictures -> report

``run`` goes through these steps in order, and the functions below it follow the same
order. Every step looks at what is already in the run directory and resumes from there,
so the same command resumes a run that was stopped.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from imagen_booth.cascade import Cascade, Stage, notices
from imagen_booth.config.schema import SECOND, SUBJECT, Job
from imagen_booth.data import image_files
from imagen_booth.data.examples import ImagePair, SubjectExamples
from imagen_booth.data.photos import CheckedPhotos, NoGoodPhotos, Photo
from imagen_booth.distributed import processes
from imagen_booth.distributed.stop import StopRequest
from imagen_booth.errors import BoothError
from imagen_booth.evaluation import failure_modes
from imagen_booth.reports import run_report
from imagen_booth.rundir import lock
from imagen_booth.rundir.layout import (
    PREVIEWS,
    RunDirectory,
    cache_folder,
    recipe,
    utc_now,
    versions,
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
from imagen_booth.sampling.text_embeddings import LearnedEmbedding
from imagen_booth.storage import read_json
from imagen_booth.text.prompts import Naming
from imagen_booth.training import (
    class_images,
    finetune,
    frozen_targets,
    run_checks,
    subject_photos,
    subject_prompts,
    textual_inversion,
)
from imagen_booth.training.finetune import FinetuneContext
from imagen_booth.training.previews import Preview, photo_example, plan_preview
from imagen_booth.training.run_checks import AcceptedRun
from imagen_booth.training.subject_prompts import SubjectPrompts
from imagen_booth.weights.load import Part, load, to_frozen

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RunContext:
    """What every step of a run needs.

    Attributes:
        job: The settings.
        cascade: The model.
        work: The run directory.
        cache: The folder shared by runs.
        mesh: The devices.
        dtype: Dtype of the activations.
        stop: Whether a signal has come, after which the work saves and ends.
        metrics: Receives the metrics.
        profile: Whether to trace a few early steps of each stage.
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
    def timed(self, step: str) -> Iterator[None]:
        """Adds the seconds spent to the manifest, over all runs of the command."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = dict(self.work.manifest.get("timings", {}))
            seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - start
            self.work.record(timings=seconds)

    def load_part(self, name: str, *, train: bool = True) -> Part:
        """Loads the text encoder, or a stage's network, with pretrained weights.

        Args:
            train: As for ``load``.
        """
        rules, source = self.job.mesh.rules, getattr(self.job.weights, name)
        with self.timed("weights"):
            return load(
                self.cascade, name, source, self.mesh, self.dtype, rules, train=train
            )

    def embed_prompts(self, learned: LearnedEmbedding | None = None) -> SubjectPrompts:
        """Chooses the identifier and embeds every prompt of the run."""
        return subject_prompts.prepare_prompts(
            self.job, self.cascade, self.cache, self.mesh, self.dtype, learned
        )

    def plan_preview(
        self,
        stage: Stage,
        prompts: SubjectPrompts,
        subjects: Sequence[SubjectExamples],
    ) -> Preview:
        """What the previews of a stage show."""
        metadata = run_metadata(self.work.path, self.cascade)
        return plan_preview(self.job, stage, prompts, subjects, metadata)

    def examples(
        self,
        stage: Stage,
        prompts: SubjectPrompts,
        photos: Mapping[str, Sequence[Photo]],
        class_pairs: Mapping[str, Sequence[ImagePair]] | None = None,
    ) -> list[SubjectExamples]:
        """What a stage is fine-tuned on, for each subject that has photos.

        Args:
            photos: Photos by name of the subject's setting.
            class_pairs: Class images by class prompt. Subjects of one class share them:
                they go to the first of these.
        """
        found, rest = [], dict(class_pairs or {})
        for name, some in photos.items():
            subject, words = self.job.subjects[name], prompts.of_subjects[name]
            if not some:
                log.warning(
                    "no photo of %r is large enough for %s, which is fine-tuned on "
                    "the other subject alone",
                    words.instance_prompt,
                    stage.name,
                )
                continue
            found.append(
                SubjectExamples(
                    photos=[photo_example(subject, stage, photo) for photo in some],
                    prompt=words.instance_prompt,
                    text=prompts.embeddings[words.instance_prompt],
                    class_prompt=words.class_prompt,
                    class_text=prompts.embeddings[words.class_prompt],
                    class_pairs=rest.pop(words.class_prompt, ()),
                )
            )
        return found

    def finetune_context(self, name: str, folder: epath.Path) -> FinetuneContext:
        """What fine-tuning of ``name`` needs; its checkpoints are in ``folder``."""
        job, work = self.job, self.work.path
        return FinetuneContext(
            keep=job.keep,
            patience=job.patience,
            seed=job.seed,
            folder=folder,
            previews=work / "samples" / PREVIEWS / name,
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
    """Runs a job, or resumes it.

    Args:
        job: The settings.
        workdir: The run directory, local or ``gs://``; it holds all that the run makes.
        overwrite: Parts to redo, see ``rundir.layout.PARTS``.
        profile: Whether to trace early steps of each stage into ``workdir/profile``.

    Returns:
        Path of ``report.html``.

    Raises:
        InputError: Bad photos, prompts, weights or settings; found before any work.
        Stopped: A signal came; the same command resumes the run.
        NotFinite: Training diverged; the last good state is saved.
        StorageError: Something cannot be written.
    """
    cache_folder(job.cache, workdir)  # before anything is compiled
    try:
        accepted = run_checks.check_run(job, RunDirectory(workdir, overwrite))
    except NoGoodPhotos as error:
        subject_photos.report_refusal(workdir, error)
        raise
    with lock.held(workdir):
        work = RunDirectory(workdir, overwrite)
        return run_accepted(job, accepted, work, profile=profile)


def run_accepted(
    job: Job,
    accepted: AcceptedRun,
    work: RunDirectory,
    *,
    profile: bool = False,
) -> epath.Path:
    """Runs a job that was accepted, in a run directory that this process owns.

    Args:
        accepted: What the checks of the job found.
        profile: As for ``run``.

    Returns, Raises:
        As ``run``.
    """
    cascade, mesh = accepted.cascade, accepted.mesh
    checked = dict(zip(job.subjects, accepted.photos, strict=True))
    cache, dtype = cache_folder(job.cache, work.path), accepted.dtype
    with (
        jax.set_mesh(mesh),
        StopRequest() as stop,
        MetricWriter(
            work.path, active=processes.is_first(), tensorboard=job.tensorboard
        ) as metrics,
    ):
        context = RunContext(
            job, cascade, work, cache, mesh, dtype, stop, metrics, profile
        )
        try:
            for name, found in checked.items():
                place = subject_photos.folder_of(name, work.path)
                subject_photos.save_crops(job.subjects[name], found, place)
            with context.timed("text"):
                prompts = context.embed_prompts()
            _record_start(context, checked, prompts)
            if job.text.steps > 0:
                prompts = _learn_identifier(context, checked, prompts)
            stages = [
                _finetune_stage(context, stage, checked, prompts)
                for stage in cascade.stages
            ]
            with context.timed("pictures"):
                _sample_pictures(context, prompts, stages)
            finished = utc_now()
            work.record(status="done", finished=finished)
        except BaseException as error:
            _report_error(work, error)
            raise
        _write_report(work)
        work.record(reported=finished)
    return work.path / "report.html"


def _record_start(
    context: RunContext, checked: Mapping[str, CheckedPhotos], prompts: SubjectPrompts
) -> None:
    """Records the settings of the run, and logs warnings about it."""
    work, job = context.work, context.job
    work.write_json("config.json", dataclasses.asdict(job))
    warnings = [
        *subject_photos.notices(job),
        *notices(context.cascade),
        *cascade_sampler.scheduler_warnings(job, context.cascade),
        *prompts.warnings,
        *(warning for found in checked.values() for warning in found.warnings),
    ]
    subjects = {
        name: {
            "class_noun": subject.class_noun,
            "identifier": words.identifier,
            "identifier_ids": list(words.ids),
            "alone": words.replaces_noun,
            "instance_prompt": words.instance_prompt,
            "class_prompt": words.class_prompt,
            **subject_photos.photo_manifest(checked[name]),
        }
        for (name, subject), words in zip(
            job.subjects.items(), prompts.of_subjects.values(), strict=True
        )
    }
    if SECOND not in subjects:
        work.manifest.pop(SECOND, None)  # of a run of two that is redone with one
    work.record(
        run=work.path.name,
        status="running",
        created=work.manifest.get("created", utc_now()),
        seed=job.seed,
        **subjects,
        cascade={
            "name": context.cascade.name,
            "licence": context.cascade.licence,
            "parts": {"text": prompts.encoder},
        },
        warnings=warnings,
        versions=versions(),
    )
    for found in checked.values():
        for rejected in (*found.refused, *found.skipped):
            log.warning("%s is not used: %s", rejected.name, rejected.reason)
    for warning in warnings:
        log.warning("%s", warning)
    for words in prompts.of_subjects.values():
        log.info("the instance prompt is %r", words.instance_prompt)


def _learn_identifier(
    context: RunContext, checked: Mapping[str, CheckedPhotos], prompts: SubjectPrompts
) -> SubjectPrompts:
    """Textual Inversion; returns the prompts embedded with the learned identifier."""
    job, work, stage = context.job, context.work, context.cascade.stage("base")
    parts = {name: context.load_part(name) for name in ("text", stage.name)}
    work.record(cascade={"parts": {stage.name: parts[stage.name].origin()}})
    tokens = textual_inversion.read_tokens(job, context.cascade, prompts)
    photos = checked[SUBJECT].large_enough_for(stage.name)
    folder = work.claim(
        "text",
        run_checks.text_recipe(
            job,
            tokens,
            prompts,
            prompts.plain_reading,
            parts[stage.name].fingerprint,
            [photos],
            context.dtype,
        ),
    )
    [subject] = context.examples(stage, prompts, {SUBJECT: photos})
    with context.timed("learning words"):
        learned, result = textual_inversion.learn_embedding(
            tokens,
            context.cascade,
            parts,
            job.text,
            subject.photos,
            context.plan_preview(stage, prompts, [subject]),
            context.finetune_context("text", folder),
        )
    _record_result(work, "text", result)
    work.record(subject={"learned": learned.digest()})
    return context.embed_prompts(learned)


def _finetune_stage(
    context: RunContext,
    stage: Stage,
    checked: Mapping[str, CheckedPhotos],
    prompts: SubjectPrompts,
) -> LoadedStage:
    """Samples class images where the prior term is on, then fine-tunes."""
    job, work, name = context.job, context.work, stage.name
    config = job.finetuning(name)
    photos = {of: found.large_enough_for(name) for of, found in checked.items()}
    if config.steps > 0 and not any(photos.values()):
        log.warning("no photo is large enough for %s; it is not fine-tuned", name)
        config = dataclasses.replace(config, steps=0)
    part = context.load_part(name, train=config.steps > 0 and not config.adapts)
    work.record(cascade={"parts": {name: part.origin()}})
    if config.steps == 0:
        uses_identifier = job.uses_identifier(name, 0)
        return LoadedStage(
            stage, part, part.params, stage.normal_level, 0, uses_identifier
        )

    class_pairs: dict[str, Sequence[ImagePair]] = {}
    if job.uses_class_images(name):
        with context.timed("class images"):
            class_pairs = _class_pairs(context, stage, part, prompts)
    folder = work.claim(
        name,
        run_checks.stage_recipe(
            job,
            stage,
            prompts,
            prompts.reading,
            part.fingerprint,
            list(photos.values()),
            context.dtype,
        ),
    )
    if config.adapts:
        work.record(adapters={name: recipe(config.adapter)})
    subjects = context.examples(stage, prompts, photos, class_pairs)
    stage = stage.after_finetuning(config.hybrid)
    with context.timed(f"tuning {name}"):
        params, result = finetune.finetune_stage(
            stage,
            part,
            config,
            subjects,
            context.plan_preview(stage, prompts, subjects),
            context.finetune_context(name, folder),
            frozen_targets.prior_of(job, name, context.mesh.size, context.dtype),
        )
    _record_result(work, name, result)
    steps = result["kept"]["step"] if result["kept"] else config.steps
    params = to_frozen(params, context.dtype)
    part = dataclasses.replace(part, params=params)  # the ones before are consumed
    return LoadedStage(stage, part, params, config.level, steps, True)


def _class_pairs(
    context: RunContext, stage: Stage, part: Part, prompts: SubjectPrompts
) -> dict[str, Sequence[ImagePair]]:
    """The class images of a stage by class prompt; the report shows the base stage's.

    Subjects of one class share a set.
    """
    found: dict[str, Sequence[ImagePair]] = {}
    for name, words in prompts.of_subjects.items():
        if words.class_prompt in found:
            continue
        pairs, folder = class_images.class_image_pairs(
            context.job,
            context.cascade,
            stage,
            part,
            prompts,
            words.class_prompt,
            cache=context.cache,
            mesh=context.mesh,
            dtype=context.dtype,
            check_stop=context.stop.check,
        )
        found[words.class_prompt] = pairs
        if stage.low_resolution is None and processes.is_first():
            about = {"class_images": {"folder": str(folder), "count": len(pairs)}}
            context.work.record(**(about if name == SUBJECT else {name: about}))
            images = [pair.image for pair in pairs[:40]]
            sheet = image_files.contact_sheet(images, columns=10, cell=128)
            place = subject_photos.folder_of(name, context.work.path) / "samples"
            image_files.save_png(place / "class_images.png", sheet)
    return found


def _record_result(work: RunDirectory, name: str, result: dict[str, Any]) -> None:
    """Records the similarity before and after, and the step that was chosen."""
    work.record(similarity={name: result["similarity"]})
    if result["kept"] or work.manifest.get("kept"):
        work.record(kept={name: result["kept"]})


def _sample_pictures(
    context: RunContext, prompts: SubjectPrompts, stages: Sequence[LoadedStage]
) -> None:
    """Samples the final pictures, at the resolution of every stage."""
    job, work = context.job, context.work
    folder = work.claim("samples", {"pictures": recipe(job.pictures)})
    made_from = {
        "instance_prompt": prompts.instance_prompt,
        "text": prompts.reading,
        "weights": {each.stage.name: each.part.fingerprint for each in stages},
        "steps": {each.stage.name: each.steps for each in stages},
    }
    naming = None
    if prompts.second is not None:
        made_from["second_instance_prompt"] = prompts.second.instance_prompt
        naming = Naming(prompts.second.identifier, job.second.class_noun)
    done = folder / "drawn.json"
    if processes.decide(lambda: read_json(done, None) == made_from):
        return
    requests = [
        ImageRequest(prompt, plain, job.seed + seed, f"{index:02d}_{seed}")
        for index, (prompt, plain) in enumerate(
            zip(prompts.pictures, prompts.plain, strict=True)
        )
        for seed in range(job.pictures.seeds)
    ]
    samplers = {
        each.stage.name: getattr(job.pictures, each.stage.name) for each in stages
    }
    names = prompts.identifier, job.subject.class_noun, naming
    run_entries = run_metadata(work.path, context.cascade, *names)
    for each, images in sample_cascade(
        stages,
        requests,
        prompts.embeddings,
        samplers,
        batch=job.pictures.batch,
        mesh=context.mesh,
        check_stop=context.stop.check,
    ):
        if processes.is_first():
            size_folder = folder / "final" / str(each.stage.resolution)
            image_entries = image_metadata(each, samplers[each.stage.name])
            save_images(size_folder, requests, images, run_entries | image_entries)
    # The failures are those of the first subject, in the pictures of it alone.
    alone = any("[v2]" not in each.lower() for each in job.pictures.prompts)
    if requests and alone and processes.is_first():
        failure_modes.check_run(work.path, "final")
    work.write_json("samples/drawn.json", made_from)


def _write_report(work: RunDirectory) -> None:
    if processes.is_first():
        run_report.write(work.path)


def _report_error(work: RunDirectory, error: BaseException) -> None:
    """Records why the run ended and writes the report.

    A second error is only logged: the first one decides the exit code.
    """
    try:
        if isinstance(error, BoothError):
            work.record(status=f"{type(error).__name__}: {error}")
        _write_report(work)
    except Exception as second:
        log.warning("the report could not be written: %s", second)
