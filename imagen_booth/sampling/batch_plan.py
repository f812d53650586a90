"""Plans a batch job: checks its rows, names its images."""

import dataclasses
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from imagen_booth.cascade import Stage
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.errors import InputError
from imagen_booth.sampling import finished_run
from imagen_booth.sampling.cascade_sampler import MAX_SEED
from imagen_booth.sampling.finished_run import FinishedRun
from imagen_booth.sampling.text_embeddings import cleaning_name, load_tokenizer
from imagen_booth.text import caption_cleaning
from imagen_booth.text.prompt_files import Row
from imagen_booth.text.tokenizer import UNKNOWN
from imagen_booth.weights.load import weight_origin

MAX_GUIDANCES = 8  # each compiles another program
MAX_LISTED = 20  # bad rows in an error
# Folders in RUN/samples that training writes.
TRAINING_FOLDERS = ("final", "previews")


class PromptPair(NamedTuple):
    """The two texts that a stage reads."""

    prompt: str
    negative: str


@dataclasses.dataclass(frozen=True)
class StagePass:
    """One stage of a job.

    Attributes:
        stage: The stage.
        sampler: Sampler settings; a row may set another guidance.
        steps: Steps of fine-tuning; 0 if the stage is as published.
        uses_identifier: Whether its prompts name the subject by the identifier, see
            ``Job.uses_identifier``.
        weights: Fingerprint of the weights that it starts from.
        made: Digest of all that its images depend on besides their row.
    """

    stage: Stage
    sampler: SamplerConfig
    steps: int
    uses_identifier: bool
    weights: str
    made: str


@dataclasses.dataclass(frozen=True)
class PlannedImage:
    """One image to sample.

    Attributes:
        seed: Seed of its noise.
        guidance: Guidance weight of the base stage; None for the run's.
        family: Family of its prompt, in a suite.
        named: Texts for stages that know the identifier.
        plain: Texts without the identifier, for stages that do not.
        files: Its file at each stage, relative to the job's folder.
    """

    seed: int
    guidance: float | None
    family: str
    named: PromptPair
    plain: PromptPair
    files: tuple[str, ...] = ()

    def texts(self, each: StagePass) -> PromptPair:
        """The texts that a stage reads for this image."""
        return self.named if each.uses_identifier else self.plain

    def sampler(self, each: StagePass) -> SamplerConfig:
        """The sampler settings of a stage for this image."""
        if self.guidance is None or each.stage.low_resolution is not None:
            return each.sampler
        return dataclasses.replace(each.sampler, guidance=self.guidance)


def job_folder(run: epath.Path, name: str) -> epath.Path:
    """The folder ``RUN/samples/NAME`` of a job.

    Raises:
        InputError: The name is not one path component of UTF-8 text, or belongs to
            training.
    """
    fault = ""
    if name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
        fault = "is not the name of one folder inside RUN/samples"
    elif any(unicodedata.category(mark) in ("Cc", "Cs") for mark in name):
        fault = "holds characters that are not printable UTF-8 text"
    elif name in TRAINING_FOLDERS:
        fault = "is a folder that training writes"
    if fault:
        raise InputError(f"--name={name!r} {fault}; give a name such as --name=snow")
    return run / "samples" / name


class _RowChecker:
    """Finds why a run cannot sample a row."""

    def __init__(self, run: FinishedRun, first_seed: int, seeds: int):
        self.run, self.first_seed, self.seeds = run, first_seed, seeds
        self.tokenizer = load_tokenizer(run.cascade, run.job.weights.vocabulary)
        cleaning = cleaning_name(run.cascade, run.job.cleaning)
        self.clean = caption_cleaning.cleaner(cleaning) or str
        self.guidance = run.job.pictures.base.guidance
        self.guidances = {self.guidance}

    def problem(self, row: Row) -> str:
        """Why the row cannot be sampled; "" if it can."""
        if row.problem:
            return row.problem
        first = self.first_seed if row.seed is None else row.seed
        last = first + self.seeds - 1
        if not 0 <= first <= last <= MAX_SEED:
            return f"seeds {first} to {last} are not all within 0 to {MAX_SEED}"
        guidance = self.guidance if row.guidance is None else row.guidance
        if row.negative_prompt and guidance == 1.0:
            return "a negative prompt has no effect at guidance 1; set another guidance"
        problem = self._text_problem("prompt", row.prompt) or self._text_problem(
            "negative_prompt", row.negative_prompt
        )
        if problem:
            return problem
        self.guidances.add(guidance)
        if len(self.guidances) > MAX_GUIDANCES:
            return f"more than {MAX_GUIDANCES} values of guidance in one job"
        return ""

    def _text_problem(self, field: str, text: str) -> str:
        control = [c for c in text if unicodedata.category(c) in ("Cc", "Cs")]
        if control:
            return f"{field} holds {control[0]!r}, which is not UTF-8 text"
        try:
            filled = self.clean(self.run.with_identifier(text))
        except InputError as error:
            return str(error)
        if field == "prompt" and not filled.strip():
            return "prompt is empty" + (" after cleaning" if text else "")
        # The run's own identifiers and class nouns are not the row's fault.
        own = re.sub(r"\[[vn][12]?\]", "", text, flags=re.IGNORECASE)
        for word in self.clean(own).split():
            if UNKNOWN in self.tokenizer.token_ids(word):
                return (
                    f"{field} holds {word[:40]!r}, for which the vocabulary has no "
                    "tokens"
                )
        length = len(self.tokenizer.token_ids(filled)) + 1
        if length > self.tokenizer.length:
            return (
                f"{field} is {length} tokens long and the {self.run.cascade.name} "
                f"cascade reads {self.tokenizer.length}; shorten it"
            )
        return ""


def check_rows(
    run: FinishedRun, flag: str, rows: Iterable[Row], first_seed: int, seeds: int
) -> int:
    """Checks every row before anything is sampled.

    Args:
        flag: The flag that gave the rows, for errors.
        first_seed: First seed of the rows without a seed of their own.
        seeds: Images per row.

    Returns:
        Number of images of all rows.

    Raises:
        InputError: Rows that cannot be sampled, with the reason for each; or no rows.
    """
    checker = _RowChecker(run, first_seed, seeds)
    good, bad, listed = 0, 0, []
    for row in rows:
        problem = checker.problem(row)
        good, bad = good + (not problem), bad + bool(problem)
        if problem and len(listed) < MAX_LISTED:
            listed.append(f"  {row.where}: {problem}")
    if bad:
        more = [f"  and {bad - len(listed)} more"] if bad > len(listed) else []
        first = (
            f"{flag}: {bad} of {good + bad} rows cannot be sampled; correct or remove "
            "them, nothing was sampled"
        )
        raise InputError("\n".join([first, *listed, *more]))
    if not good:
        raise InputError(f"{flag} holds no prompts")
    return good * seeds


def stage_passes(run: FinishedRun, dtype: Any) -> tuple[StagePass, ...]:
    """The stages of a run and the digests of their work; reads no weights.

    Raises:
        InputError: Missing weights, or a stage whose fine-tuning is not finished.
    """
    job, passes = run.job, []
    encoder = weight_origin(run.cascade, "text", job.weights.text)["fingerprint"]
    learned = finished_run.learned_embedding(run)
    cleaning = cleaning_name(run.cascade, job.cleaning)
    for stage in run.stages:
        source = getattr(job.weights, stage.name)
        weights = weight_origin(run.cascade, stage.name, source)["fingerprint"]
        steps = finished_run.finetuned_steps(run, stage)
        recipe = run.path / stage.name / "recipe.json"
        uses_identifier = job.uses_identifier(stage.name, steps)
        made = [
            weights,
            steps,
            recipe.read_text() if steps else "",
            encoder,
            cleaning,
            repr(stage),
            str(dtype),
            job.finetuning(stage.name).level if steps else stage.normal_level,
        ]
        if learned is not None and uses_identifier:
            made.append(learned.digest())
        passes.append(
            StagePass(
                stage=stage,
                sampler=getattr(job.pictures, stage.name),
                steps=steps,
                uses_identifier=uses_identifier,
                weights=weights,
                made=hashlib.sha256(repr(tuple(made)).encode()).hexdigest(),
            )
        )
    return tuple(passes)


def plan_images(
    run: FinishedRun,
    passes: Sequence[StagePass],
    rows: Iterable[Row],
    first_seed: int,
    seeds: int,
) -> Iterator[PlannedImage]:
    """The images of rows, in their order, each with its files."""
    for row in rows:
        named, plain = (
            PromptPair(prompt=fill(row.prompt), negative=fill(row.negative_prompt))
            for fill in (run.with_identifier, run.plain)
        )
        slug = re.sub(r"[^a-z0-9]+", "-", plain.prompt.lower())[:40].strip("-")
        first = first_seed if row.seed is None else row.seed
        for seed in range(first, first + seeds):
            image = PlannedImage(seed, row.guidance, row.family, named, plain)
            files, key = [], ""
            for each in passes:
                texts, sampler = image.texts(each), repr(image.sampler(each))
                made = (key, each.made, seed, texts.prompt, texts.negative, sampler)
                key = hashlib.sha256(repr(made).encode()).hexdigest()[:16]
                files.append(f"{each.stage.resolution}/{slug}_{seed}_{key}.png")
            yield dataclasses.replace(image, files=tuple(files))
