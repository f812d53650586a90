"""Everything that can be wrong with a run, found before anything of it is written.

``train`` refuses a job by these checks and leaves the run directory as it is;
``doctor`` reports them. The recipes are the settings that each part of a run depends
on: what is there of a part is continued only with the same recipe.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from imagen_booth.cascade import Cascade, Stage, by_name
from imagen_booth.config.build import sampler_at
from imagen_booth.config.schema import BEST, FineTuning, Job
from imagen_booth.data.photos import CheckedPhotos, Photo
from imagen_booth.diffusion import loss, sampler
from imagen_booth.distributed import processes
from imagen_booth.errors import InputError
from imagen_booth.rundir.layout import (
    LOOP_SETTINGS,
    PARTS,
    RunDirectory,
    check_workdir,
    recipe,
)
from imagen_booth.sampling.text_embeddings import cleaning_name, tokenize
from imagen_booth.training import (
    adapters,
    mesh_choice,
    optimizers,
    subject_photos,
    subject_prompts,
    textual_inversion,
)
from imagen_booth.training.subject_prompts import PromptTexts
from imagen_booth.training.textual_inversion import InversionTokens
from imagen_booth.weights import load, native
from imagen_booth.weights.placement import activation_dtype


@dataclasses.dataclass(frozen=True)
class AcceptedRun:
    """A run that was found good.

    Attributes:
        cascade: The model, as its weights describe it.
        mesh: The devices.
        dtype: Dtype of the activations.
        photos: The photos to train on, of each subject.
    """

    cascade: Cascade
    mesh: jax.sharding.Mesh
    dtype: Any
    photos: tuple[CheckedPhotos, ...]


def check_run(job: Job, work: RunDirectory) -> AcceptedRun:
    """Checks a job against everything it needs and against what is there of its run.

    Nothing is written but the rendered photos of a toy, where the run or the cache has
    none.

    Raises:
        InputError: Bad settings, weights, prompts or photos, or a run directory that
            was made with other settings.
        StorageError: The run directory cannot be written, or a file of it is damaged.
    """
    processes.decide(lambda: check_workdir(work.path))
    cascade = load.resolve(by_name(job.cascade), dataclasses.asdict(job.weights))
    cascade = cascade.rematerialised(job.rematerialised())
    mesh = mesh_choice.finetuning_mesh(cascade, job)
    dtype = activation_dtype(job.dtype)
    processes.decide(lambda: check_steps(job, work))
    check_settings(job, cascade)
    subject_photos.check_class_nouns(job)
    prompts = check_prompts(job, cascade)
    for name in ("text", *(stage.name for stage in cascade.stages)):
        found = load.find(cascade, name, getattr(job.weights, name))
        if found is not None:
            found.matched(load.shapes(cascade, name))
    processes.decide(lambda: _check_photo_setting(job, work))
    photos = tuple(
        subject_photos.inspect_photos(
            job,
            cascade,
            subject_photos.photo_folder(job, work, name),
            name,
        )
        for name in job.subjects
    )
    processes.decide(lambda: check_recipes(job, cascade, work, prompts, photos))
    return AcceptedRun(cascade, mesh, dtype, photos)


def check_existing(job: Job, cascade: Cascade, work: RunDirectory) -> None:
    """Checks a job against what is there of its run; writes nothing at all.

    Raises:
        InputError, StorageError: As ``check_run``.
    """
    check_steps(job, work)
    _check_photo_setting(job, work)
    folders = {}
    for name, subject in job.subjects.items():
        folders[name] = subject.photos
        if subject.photos.startswith(subject_photos.TOYBOX_PREFIX):
            place = subject_photos.folder_of(name, work.path) / "source"
            if not place.exists():
                return  # train would render them
            folders[name] = str(place)
    if any(work.holds(part) for part in PARTS):
        photos = tuple(
            subject_photos.inspect_photos(job, cascade, folder, name)
            for name, folder in folders.items()
        )
        check_recipes(job, cascade, work, check_prompts(job, cascade), photos)


def check_settings(job: Job, cascade: Cascade) -> None:
    """Checks the names in the settings of every stage.

    Raises:
        InputError: An optimizer, a loss weighting or a sampler that does not exist, or
            an adapter that does not fit its stage.
    """
    for name in job.finetuned_parts:
        config = job.finetuning(name)
        try:
            optimizers.build(config.optim, config.steps)
            loss.check_weight(config.weighting)
        except InputError as error:
            raise InputError(f"config.{name}: {error}") from error
    for stage in cascade.stages:
        config = job.finetuning(stage.name)
        if config.adapts:
            unet = load.shapes(cascade, stage.name)
            adapters.check_rank(stage.name, config.adapter, unet)
            if config.adapter.start:
                adapters.started(stage.name, config.adapter, unet)
        with sampler_at(f"config.pictures.{stage.name}"):
            check_sampler(stage, getattr(job.pictures, stage.name))
        if stage.low_resolution is None:
            with sampler_at("config.class_images.sampler"):
                check_sampler(stage, job.class_images.sampler)


def check_sampler(stage: Stage, config: sampler.SamplerConfig) -> None:
    """Checks that a stage can be sampled as the settings say.

    Raises:
        InputError: Its network predicts no variance, its schedule lacks the steps, or
            none of them is in the interval of guidance.
    """
    if config.variance == "learned" and not stage.learned_variance:
        raise InputError(
            f"sampler.variance='learned', but the network of {stage.name} predicts no "
            "variance; give 0.0"
        )
    sampler.network_calls(stage.schedule, config)


def check_prompts(job: Job, cascade: Cascade) -> PromptTexts:
    """Chooses the identifier and checks every prompt of the run.

    Raises:
        InputError: An identifier or a prompt that cannot be read.
    """
    texts = subject_prompts.choose_prompts(job, cascade)
    cleaning = cleaning_name(cascade, job.cleaning)
    tokenize(cascade, texts.every, job.weights.vocabulary, cleaning)
    if job.text.steps > 0:
        textual_inversion.read_tokens(job, cascade, texts)
    return texts


def check_steps(job: Job, work: RunDirectory) -> None:
    """Checks that no part was already fine-tuned for more steps than the job has.

    Raises:
        InputError: A part was, and is not to be redone.
    """
    for name in job.finetuned_parts:
        latest, steps = work.latest_step(name), job.finetuning(name).steps
        if latest > steps:
            raise InputError(
                f"config.{name}.steps={steps}, but {work.path / name} is already "
                f"fine-tuned for {latest} steps and cannot go back. Give "
                f"--overwrite={name} to redo it, or --config.{name}.steps={latest} or "
                "more, or another --workdir"
            )


def check_recipes(
    job: Job,
    cascade: Cascade,
    work: RunDirectory,
    prompts: PromptTexts,
    photos: Sequence[CheckedPhotos],
) -> None:
    """Checks that what is there of a run was made with the settings of the job.

    Raises:
        InputError: A part was made with other settings and is not to be redone.
        StorageError: The record of a part's settings is damaged.
    """
    origin = load.weight_origin(cascade, "text", job.weights.text)
    cleaning = cleaning_name(cascade, job.cleaning)
    plain = subject_prompts.plain_reading(cascade, origin["fingerprint"], cleaning)
    dtype, reading = activation_dtype(job.dtype), plain
    if job.text.steps > 0:
        stage = cascade.stage("base")
        tokens = textual_inversion.read_tokens(job, cascade, prompts)
        used = photos[0].large_enough_for(stage.name)
        weights = _fingerprint(job, cascade, stage)
        work.check(
            "text", text_recipe(job, tokens, prompts, plain, weights, [used], dtype)
        )
        reading = f"{plain} {_learned(job, work)}"
    for stage in cascade.stages:
        used = [some.large_enough_for(stage.name) for some in photos]
        if job.finetuning(stage.name).steps > 0 and any(used):
            weights = _fingerprint(job, cascade, stage)
            work.check(
                stage.name,
                stage_recipe(job, stage, prompts, reading, weights, used, dtype),
            )
    work.check("samples", {"pictures": recipe(job.pictures)})


def _fingerprint(job: Job, cascade: Cascade, stage: Stage) -> str:
    source = getattr(job.weights, stage.name)
    return load.weight_origin(cascade, stage.name, source)["fingerprint"]


def _learned(job: Job, work: RunDirectory) -> str:
    """Digest of the learned embedding that the stages of a run read."""
    done = work.holds("text") and work.latest_step("text") == job.text.steps
    recorded = (work.manifest.get("subject") or {}).get("learned")
    return recorded if done and recorded else "an embedding yet to be learned"


def _check_photo_setting(job: Job, work: RunDirectory) -> None:
    """Checks that toys' photos stay those that the run was begun with.

    Other photos are compared by their bytes; these would have to be rendered.

    Raises:
        InputError: They do not, and some part is not to be redone.
    """
    prefix = subject_photos.TOYBOX_PREFIX
    kept = [name for name in job.finetuned_parts if work.holds(name)]
    for name, subject in job.subjects.items():
        old, new = work.photo_setting(name), subject.photos
        if old not in ("", new) and kept and (old + new).count(prefix):
            raise InputError(
                f"{work.path} was made with other settings: {name}.photos: {old} -> "
                f"{new}. Give --overwrite={','.join(kept)} to redo it, or another "
                "--workdir"
            )


def text_recipe(
    job: Job,
    tokens: InversionTokens,
    prompts: PromptTexts,
    reading: str,
    weights: str,
    photos: Sequence[Sequence[Photo]],
    dtype: Any,
) -> dict[str, Any]:
    """The settings on which a learned embedding depends.

    Args:
        tokens: The tokens that are learned.
        reading: What prompts mean without it, see ``subject_prompts.plain_reading``.
        weights: Fingerprint of the base stage.
        photos: Photos of each subject.
    """
    return {
        "cascade": job.cascade,
        "weights": weights,
        "text": reading,
        **_common_recipe(job, prompts, photos, dtype),
        "ids": list(tokens.ids),
        "text_tuning": recipe(job.text, *_changeable(job, job.text)),
    }


def stage_recipe(
    job: Job,
    stage: Stage,
    prompts: PromptTexts,
    reading: str,
    weights: str,
    photos: Sequence[Sequence[Photo]],
    dtype: Any,
) -> dict[str, Any]:
    """The settings on which a fine-tuned stage depends.

    Args:
        reading: What prompts mean to the network, see ``SubjectPrompts.reading``.
        weights: Fingerprint of the network.
        photos: Photos of each subject.
    """
    config, frozen = job.finetuning(stage.name), job.frozen_prior(stage.name)
    used = job.uses_class_images(stage.name)
    return {
        "cascade": job.cascade,
        "weights": weights,
        "text": reading,
        **_common_recipe(job, prompts, photos, dtype),
        "class_images": recipe(job.class_images) if used else None,
        **({"frozen_model": recipe(frozen)} if frozen else {}),
        stage.name: recipe(config, *_changeable(job, config)),
        **_adapter_recipe(stage, config),
    }


def _adapter_recipe(stage: Stage, config: FineTuning) -> dict[str, Any]:
    """The recipe entry of an adapter; none for a stage that is trained as a whole."""
    if not config.adapts:
        return {}
    entry = recipe(config.adapter, "start")
    if config.adapter.start:
        path = adapters.start_file(stage.name, config.adapter)
        entry["start"] = native.sha256(path)
    return {"adapter": entry}


def _common_recipe(
    job: Job, prompts: PromptTexts, photos: Sequence[Sequence[Photo]], dtype: Any
) -> dict[str, Any]:
    """The recipe entries on which every fine-tuned part of a run depends.

    Args:
        photos: Photos of each subject.
    """
    first, *second = [
        {
            "photos": {photo.name: photo.sha256 for photo in some},
            "subject": recipe(
                subject, "photos", "identifier", "tokens", "consent", "description"
            ),
            "instance_prompt": words.instance_prompt,
        }
        for subject, words, some in zip(
            job.subjects.values(), prompts.of_subjects.values(), photos, strict=True
        )
    ]
    return {
        **first,
        **({"second": second[0]} if second else {}),
        "seed": job.seed,
        "dtype": str(dtype),
        **({"keep": BEST} if job.keep == BEST else {}),
    }


def _changeable(job: Job, config: FineTuning) -> tuple[str, ...]:
    """Settings that may change between a run and its resumption, or stand elsewhere."""
    names: set[str] = {*LOOP_SETTINGS, "adapter"}
    if job.keep == BEST:
        names.remove("preview_every")  # it decides which steps are candidates
    if config.optim.decay == "constant":
        # More steps continue a constant rate; a decay depends on their number.
        names.add("steps")
    return tuple(names)
