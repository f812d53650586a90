"""The checks of `doctor`: everything about a job that can be checked in seconds.

Wherever possible the checks call the functions of the run itself, so both refuse the
same settings with the same message.
"""

import contextlib
import dataclasses
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import jax
from etils import epath

from imagen_booth.cascade import Cascade, Stage, by_name
from imagen_booth.config import subject_table
from imagen_booth.config.schema import Job, Subjects
from imagen_booth.data import photos
from imagen_booth.diffusion import sampler
from imagen_booth.distributed import device_memory
from imagen_booth.errors import BoothError, DoesNotFit, InputError, StorageError
from imagen_booth.preflight import class_noun, memory
from imagen_booth.preflight.memory import StageCost
from imagen_booth.preflight.tpu_topology import CHIPS
from imagen_booth.preflight.units import in_bytes, in_flops, scaled
from imagen_booth.rundir import layout, lock
from imagen_booth.rundir.checkpoints import KEEP
from imagen_booth.rundir.layout import RunDirectory
from imagen_booth.sampling import cascade_sampler
from imagen_booth.sampling.text_embeddings import (
    cleaning_name,
    load_tokenizer,
    tokenize,
)
from imagen_booth.storage import is_object_store
from imagen_booth.text import caption_cleaning, prompts
from imagen_booth.text.prompts import Naming
from imagen_booth.text.tokenizer import UNKNOWN, Tokenizer
from imagen_booth.toybox import coverage
from imagen_booth.training import (
    mesh_choice,
    run_checks,
    subject_photos,
    subject_prompts,
)
from imagen_booth.weights import load, placement

OK, WARNING, PROBLEM = "ok", "warning", "problem"
# FLOP/s of one core in the toybox's job, from 3 min 23 s to 5 min 22 s on two cores.
CPU_RATE = 35e9
TPU_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
}
LISTED = 20  # findings of one topic and level that are shown one by one


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        topic: Topic of the line: ``photos``, ``weights``, ...
        level: ``ok``, ``warning``, or ``problem`` if a run would end with it.
        text: One sentence.
        exit_code: Exit code of a run with this problem; 0 otherwise.
    """

    topic: str
    level: str
    text: str
    exit_code: int = 0


def shortened(findings: Sequence[Finding]) -> Iterator[Finding]:
    """The first ``LISTED`` findings of each topic and level, then a count of the rest.

    Problems are never left out.
    """
    total = Counter((each.topic, each.level) for each in findings)
    seen = Counter[tuple[str, str]]()
    for finding in findings:
        kind = finding.topic, finding.level
        seen[kind] += 1
        if finding.level == PROBLEM or seen[kind] <= LISTED:
            yield finding
        elif seen[kind] == LISTED + 1:
            rest = f"and {total[kind] - LISTED} more of this kind"
            yield dataclasses.replace(finding, text=rest)


class _Findings(list[Finding]):
    """A list of findings, and the topic of the next ones."""

    topic = ""

    @contextlib.contextmanager
    def about(self, topic: str) -> Iterator[None]:
        """Turns an error meant for the user into a finding."""
        self.topic = topic
        try:
            yield
        except BoothError as error:
            self.append(Finding(topic, PROBLEM, str(error), error.exit_code))

    def ok(self, text: str) -> None:
        self.append(Finding(self.topic, OK, text))

    def warn(self, text: str) -> None:
        self.append(Finding(self.topic, WARNING, text))


def check(
    job: Job,
    workdir: epath.Path,
    clip: str = "",
    judge: str = "",
    overwrite: frozenset[str] = frozenset(),
) -> list[Finding]:
    """Checks everything that a run of this job depends on; writes nothing.

    Args:
        workdir: Run directory; it need not exist.
        overwrite: Parts to redo, as train takes them.
        clip, judge: Weights of a classifier for the class noun, see ``class_noun``.
    """
    cascade = by_name(job.cascade).rematerialised(job.rematerialised())
    found = _Findings()
    with found.about("weights"):
        cascade = cascade.without(dataclasses.asdict(job.weights))
        cascade = _check_weights(found, job, cascade)
    with found.about("photos"):
        _check_photos(found, job, cascade)
    with found.about("noun"):
        class_noun.check_class_noun(found, job, cascade, clip, judge)
    with found.about("identifier"):
        _check_identifier_and_prompts(found, job, cascade)
    with found.about("prior"):
        _check_prior(found, job, cascade)
    mesh, dtype = None, jax.numpy.float32
    with found.about("devices"):
        dtype = placement.activation_dtype(job.dtype)
        mesh = _check_devices(found, job, cascade)
    costs: dict[str, StageCost] = {}
    flops = 0.0
    for stage in cascade.stages:
        with found.about(stage.name):
            tuning = job.finetuning(stage.name)
            cost = memory.stage_cost(
                cascade,
                stage,
                tuning,
                jax.device_count(),
                dtype,
                job.frozen_prior(stage.name),
            )
            costs[stage.name] = cost
            flops += _check_work(found, job, stage, cost)
    with found.about("time"):
        _check_time(found, flops)
    if mesh is not None:
        with found.about("memory"):
            _check_memory(found, job, cascade, costs, mesh)
    accepted = not any(each.level == PROBLEM for each in found)
    with found.about("run"):
        _check_run(found, job, cascade, RunDirectory(workdir, overwrite), accepted)
    with found.about("disk"):
        _check_disk(found, job, cascade, costs, workdir)
    return found


def check_many(
    settings: Subjects,
    job: Job,
    workdir: epath.Path,
    clip: str = "",
    judge: str = "",
    overwrite: frozenset[str] = frozenset(),
) -> list[Finding]:
    """Checks every subject of a job of many; writes nothing.

    Each has the problems and warnings of a job of its own, without those that an
    earlier one has too.

    Args:
        settings: The subjects.
        job: The settings of all of them.
        workdir: Folder of the run directories.
        clip, judge, overwrite: As for ``check``.
    """
    found, known = _Findings(), set[str]()
    rows: list[subject_table.SubjectRow] = []
    with found.about("subjects"):
        rows = subject_table.read(settings, job)
    for row in rows:
        topic = row.name or row.where
        own = [
            Finding(topic, PROBLEM, f"{row.where}: {one}", 2) for one in row.problems
        ]
        if row.job is not None:
            checked = check(row.job, workdir / row.name, clip, judge, overwrite)
            own += [dataclasses.replace(each, topic=topic) for each in checked]
        faults = [each for each in own if each.level != OK and each.text not in known]
        found.extend(faults)
        known |= {each.text for each in faults}
        if not any(each.level == PROBLEM for each in own):
            found.append(Finding(topic, OK, f"{row.where} can be trained"))
    return found


def _check_run(
    found: _Findings, job: Job, cascade: Cascade, work: RunDirectory, accepted: bool
) -> None:
    """Compares the job with what is there of its run, as train does.

    Args:
        accepted: Whether nothing else is wrong with the job.
    """
    layout.check_workdir(work.path)
    if who := lock.owner(work.path):
        raise InputError(f"{work.path} is in use: {who}")
    if accepted:
        run_checks.check_settings(job, cascade)
        run_checks.check_existing(job, cascade, work)
    if work.manifest:
        status = work.manifest.get("status", "unknown")
        found.ok(f"{work.path} holds a run ({status}); train would resume it")
    else:
        found.ok(f"{work.path} is free for a new run")


def _check_weights(found: _Findings, job: Job, cascade: Cascade) -> Cascade:
    """Finds the weights of every network and checks their names and shapes.

    Returns:
        The cascade as the weights describe it, if all are there.
    """
    sources, described, before = dataclasses.asdict(job.weights), cascade, len(found)
    for name in ("text", *(stage.name for stage in cascade.stages)):
        with found.about("weights"):
            place = load.find(cascade, name, sources[name])
            if place is None:
                found.warn(f"{name}: random weights; the pictures will be noise")
                continue
            if place.describes is not None:
                described = described.having(place.describes)
            place.matched(load.shapes(described, name))
            size = in_bytes(device_memory.size(place.tensors))
            found.ok(f"{name}: {size}, {place.where}; licence: {place.licence}")
            if not place.pretrained:
                found.warn(f"{name}: by their metadata the weights are untrained")
    if any(each.level == PROBLEM for each in found[before:]):
        return cascade
    cascade = load.resolve(cascade, sources)
    for warning in cascade_sampler.scheduler_warnings(job, cascade):
        found.warn(warning)
    return cascade


def _check_photos(found: _Findings, job: Job, cascade: Cascade) -> None:
    for notice in subject_photos.notices(job):
        found.warn(notice)
    for name in job.subjects:
        with found.about("photos"):
            _check_photos_of(found, job, cascade, name)


def _check_photos_of(found: _Findings, job: Job, cascade: Cascade, name: str) -> None:
    subject, stages = job.subjects[name], subject_photos.resolutions(job, cascade)
    if subject.photos.startswith(subject_photos.TOYBOX_PREFIX):
        toy = subject_photos.toybox_subject(subject.photos, name)
        size = subject_photos.TOYBOX_PHOTO_SIZE
        found.ok(
            f"toy {toy.noun} number {toy.seed}, rendered at {size} x {size}; used for "
            f"{', '.join(stages) or 'no stage: none is fine-tuned'}"
        )
        return
    try:
        intake = subject_photos.inspect_photos(job, cascade, subject.photos, name)
    except photos.NoGoodPhotos as error:
        intake = error.intake
        # The rest of its message lists what follows here as findings.
        refusal = str(error).splitlines()[0]
        found.append(Finding("photos", PROBLEM, refusal, error.exit_code))
    for photo in intake.photos:
        notes = "".join(f"; {note}" for note in photo.notes)
        found.ok(
            f"{photo.name} ({photo.width} x {photo.height} {photo.format}) is used for "
            f"{', '.join(photo.stages) or 'no stage'}{notes}"
        )
    for refused in intake.refused:
        found.warn(f"{refused.name} is refused: {refused.reason}")
    for skipped in intake.skipped:
        found.ok(f"{skipped.name} is skipped: {skipped.reason}")
    for warning in intake.warnings:
        found.warn(warning)


def _check_identifier_and_prompts(found: _Findings, job: Job, cascade: Cascade) -> None:
    subject_photos.check_class_nouns(job)
    pieces = load_tokenizer(cascade, job.weights.vocabulary)
    subjects, warnings = subject_prompts.choose_words(job, cascade, pieces)
    namings = []
    for of, words in subjects.items():
        subject, name, ids = job.subjects[of], words.identifier, words.ids
        namings.append(Naming(name, subject.class_noun))
        how = "from the config" if subject.identifier else "drawn with the seed"
        tokens = f"token{'s' * (len(ids) != 1)} {', '.join(map(str, ids))}"
        instance = prompts.instance_prompt(*namings[-1])
        found.ok(f"{name!r}, {how}, {tokens}; the instance prompt is {instance!r}")
    for warning in warnings:
        found.warn(warning)
    cleaning = cleaning_name(cascade, job.cleaning)
    clean = caption_cleaning.cleaner(cleaning) or str
    with found.about("prompts"):
        before = len(found)
        (name, noun), second = namings[0], (*namings, None)[1]
        known = {word for each in namings for word in clean(each.identifier).split()}
        filled = []
        for template in job.pictures.prompts:
            with found.about("prompts"):
                filled.append(prompts.fill(template, name, noun, second=second))
                prompt = clean(filled[-1])
                _check_prompt(found, cascade, pieces, prompt, known)
        tokenize(cascade, filled, job.weights.vocabulary, cleaning)
        if len(found) == before:
            count = len(job.pictures.prompts)
            found.ok(f"{count}, each within the vocabulary and {pieces.length} tokens")


def _check_prompt(
    found: _Findings, cascade: Cascade, pieces: Tokenizer, prompt: str, known: set[str]
) -> None:
    """Warns of words that the encoder cannot read.

    Args:
        prompt: Cleaned prompt.
        known: Words that are not checked.
    """
    words = [word for word in prompt.split() if word not in known]
    lost = [word for word in words if UNKNOWN in pieces.token_ids(word)]
    if lost:
        found.warn(
            f"{prompt!r}: the vocabulary lacks characters of {', '.join(lost)}; "
            "use plain letters"
        )
    # Our own vocabulary holds every word of the captions as one piece.
    split = [word for word in words if len(pieces.token_ids(word)) > 1]
    strange = [word for word in split if word not in lost and word.isalpha()]
    if strange and cascade.text.vocabulary == "embedded":
        found.warn(
            f"{prompt!r}: the vocabulary of {cascade.name} lacks {', '.join(strange)}"
        )


def _check_prior(found: _Findings, job: Job, cascade: Cascade) -> None:
    """Warns of words of the toybox that the shipped weights do not know."""
    missing = any(each.topic == "weights" and each.level == PROBLEM for each in found)
    if job.weights.base != "shipped" or missing:
        return
    knows = load.shipped_vocabulary(cascade)
    texts = {
        f"config.{name}.class_noun": each.class_noun
        for name, each in job.subjects.items()
    }
    texts |= {repr(template): template for template in job.pictures.prompts}
    for where, text in texts.items():
        if lacking := coverage.beyond(text, knows):
            found.warn(
                f"{where}: the shipped weights were not trained on the "
                f"{' and the '.join(lacking)}; pictures will not show it reliably"
            )


def _check_devices(found: _Findings, job: Job, cascade: Cascade) -> jax.sharding.Mesh:
    mesh = mesh_choice.finetuning_mesh(cascade, job)
    kind = jax.devices()[0].device_kind
    dtype = placement.activation_dtype(job.dtype)
    sizes = " x ".join(f"{axis} {count}" for axis, count in mesh.shape.items())
    found.ok(f"{mesh.size} x {kind} as {sizes}, {dtype} activations")
    return mesh


def _check_work(found: _Findings, job: Job, stage: Stage, cost: StageCost) -> float:
    """Reports the FLOPs of a stage, and returns their sum."""
    tuning, drawn = job.finetuning(stage.name), getattr(job.pictures, stage.name)
    shown = len(job.pictures.prompts) * job.pictures.seeds
    pictures = shown * _picture(stage, drawn, cost)
    training = classes = 0.0
    parts = [f"{shown} pictures {in_flops(pictures)}"]
    if tuning.steps:
        rows = cost.batch["image"].shape[0]
        training = tuning.steps * cost.step_flops
        parts.insert(0, f"{tuning.steps} steps of {rows} rows {in_flops(training)}")
    if job.uses_class_images(stage.name):
        first = stage.low_resolution is None
        config = job.class_images.sampler if first else drawn
        count = job.class_images.count * len(job.class_nouns)
        classes = count * _picture(stage, config, cost)
        parts.append(f"{count} class images {in_flops(classes)}")
    found.ok(f"{_count(cost)} parameters; {', '.join(parts)}")
    return pictures + training + classes


def _check_time(found: _Findings, flops: float) -> None:
    """Reports the time that the FLOPs of a run take on this machine, where known."""
    device, count = jax.devices()[0], jax.device_count()
    if device.platform == "cpu":
        count = len(os.sched_getaffinity(0))
        rate, what = CPU_RATE, f"{count} CPU core{'s' * (count > 1)}"
    elif chip := TPU_KINDS.get(device.device_kind):
        rate, what = CHIPS[chip].flops / 2, f"{count} x {device.device_kind}"
    else:
        found.ok(f"unknown for {device.device_kind}: {in_flops(flops)} in all")
        return
    minutes = flops / (rate * count) / 60
    found.ok(
        f"about {max(1, round(minutes))} min on {what}, besides compiling: "
        f"{in_flops(flops)} at {in_flops(rate * count)}/s"
    )


def _picture(stage: Stage, config: sampler.SamplerConfig, cost: StageCost) -> float:
    """FLOPs of one picture."""
    run_checks.check_sampler(stage, config)
    return sampler.network_calls(stage.schedule, config) * cost.row_flops


def _check_memory(
    found: _Findings,
    job: Job,
    cascade: Cascade,
    costs: dict[str, StageCost],
    mesh: jax.sharding.Mesh,
) -> None:
    """Bytes on each device in every phase of a run, without activations."""
    rules, dtype = job.mesh.rules, placement.activation_dtype(job.dtype)
    encoder = load.frozen_shapes(cascade, "text", dtype)
    text = device_memory.size_per_device(encoder, mesh, rules, "text")
    needs = {"text encoder": text}
    found.ok(f"text encoder: parameters {in_bytes(text)} on each device")
    earlier = 0
    for name, cost in costs.items():
        params = device_memory.size_per_device(cost.params, mesh, rules, "unet")
        parts = {"parameters": params, "earlier stages": earlier}
        if cost.training is not None:
            held, trained, frozen = (
                device_memory.size_per_device(tree, mesh, rules)
                for tree in (
                    cost.training,
                    cost.training.trainable,
                    cost.training.frozen,
                )
            )
            parts["parameters"] = trained + frozen
            parts["optimizer state"] = held - trained - frozen
            parts["gradients"] = trained
            if job.frozen_prior(name) is not None and not job.finetuning(name).adapts:
                parts["frozen copy"] = params
            parts["batch"] = device_memory.size(cost.batch) // mesh.size
        needs[name] = sum(parts.values())
        listed = ", ".join(f"{part} {in_bytes(n)}" for part, n in parts.items() if n)
        found.ok(f"{name}: {listed}")
        earlier += params
    largest = max(needs, key=lambda name: needs[name])
    most, limit = in_bytes(needs[largest]), device_memory.available()
    peak = f"{largest} needs the most, {most} on each device, besides activations"
    if limit is None:
        found.ok(f"{peak}; the memory of this device is unknown")
    elif needs[largest] > limit:
        raise DoesNotFit(
            f"{largest} needs {most} on each device, which has {in_bytes(limit)}; use "
            "more devices with a larger config.mesh.fsdp, or "
            f"config.{largest}.optim.name='adafactor'"
        )
    else:
        found.ok(f"{peak}; a device has {in_bytes(limit)}")


def _check_disk(
    found: _Findings,
    job: Job,
    cascade: Cascade,
    costs: dict[str, StageCost],
    workdir: epath.Path,
) -> None:
    """Compares the free space with the most that the run writes."""
    checkpoints = sum(
        # KEEP checkpoints, one being written, and the last has the parameters twice.
        (KEEP + 1)
        * (device_memory.size(cost.training) - device_memory.size(cost.training.frozen))
        + device_memory.size(cost.training.trainable)
        for cost in costs.values()
        if cost.training is not None
    )
    shown = len(job.pictures.prompts) * job.pictures.seeds
    pictures, classes = 0, 0
    for stage in cascade.stages:
        pixels = 3 * stage.resolution**2
        pictures += shown * pixels
        if job.uses_class_images(stage.name):
            classes += job.class_images.count * len(job.class_nouns) * pixels
    wanted: dict[int, int] = defaultdict(int)
    cache = layout.cache_folder(job.cache, workdir)
    for name, folder, need, what in (
        ("--workdir", workdir, checkpoints + pictures, "checkpoints and pictures"),
        ("config.cache", cache, classes, "class images"),
    ):
        if is_object_store(folder):
            found.ok(
                f"{folder}: up to {in_bytes(need)} of {what}; free space is unknown"
            )
            continue
        place = layout.check_folder(name, folder)
        device, free = os.stat(place).st_dev, shutil.disk_usage(place).free
        wanted[device] += need
        text = f"{folder}: up to {in_bytes(need)} of {what}, {in_bytes(free)} are free"
        if wanted[device] > free:
            raise StorageError(f"{text}; free some, or give another --workdir")
        found.ok(text)


def _count(cost: StageCost) -> str:
    return scaled(sum(leaf.size for leaf in jax.tree.leaves(cost.params)), 1000)
