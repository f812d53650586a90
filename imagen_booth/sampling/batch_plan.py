"""What a batch job is to draw: its rows looked at, its pictures named."""

import dataclasses
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from imagen_booth.cascade import Stage
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.errors import InputError
from imagen_booth.sampling import finished_run
from imagen_booth.sampling.finished_run import FinishedRun
from imagen_booth.sampling.text_embeddings import cleaning_name, load_tokenizer
from imagen_booth.text import caption_cleaning
from imagen_booth.text.prompt_files import Row
from imagen_booth.text.tokenizer import UNKNOWN
from imagen_booth.weights.load import weight_origin

MOST_GUIDANCES = 8  # each is another program to compile
SHOWN = 20  # bad rows named


class PromptPair(NamedTuple):
    """What a stage reads."""

    prompt: str
    negative: str


@dataclasses.dataclass(frozen=True)
class StagePass:
    """One stage of a job.

    Attributes:
        stage: the network.
        sampler: how it draws, but for the guidance that a row may set.
        steps: it was tuned for; 0 if it is as it came.
        named: it is told of the subject by its identifier, see ``Job.names``.
        weights: fingerprint of the weights it came with.
        made: digest of all that its pictures depend on besides what a row says.
    """

    stage: Stage
    sampler: SamplerConfig
    steps: int
    named: bool
    weights: str
    made: str


@dataclasses.dataclass(frozen=True)
class PlannedImage:
    """One picture to draw.

    Attributes:
        seed: of its noise.
        guidance: weight in the base stage; None for the run's.
        family: of prompts, in a suite.
        named: for stages that know the subject.
        plain: without the identifier, for those that do not.
        files: at each stage, below the job's folder.
    """

    seed: int
    guidance: float | None
    family: str
    named: PromptPair
    plain: PromptPair
    files: tuple[str, ...] = ()

    def spoken(self, each: StagePass) -> PromptPair:
        """What a stage reads of it."""
        return self.named if each.named else self.plain

    def sampler(self, each: StagePass) -> SamplerConfig:
        """How a stage draws it."""
        if self.guidance is None or each.stage.low_resolution is not None:
            return each.sampler
        return dataclasses.replace(each.sampler, guidance=self.guidance)


def check_rows(
    run: FinishedRun, source: str, rows: Iterable[Row], first_seed: int, seeds: int
) -> int:
    """Looks at every row before anything is drawn.

    Returns:
        How many pictures the rows ask for.

    Raises:
        InputError: naming the rows that cannot be drawn, and why.
    """
    pieces = load_tokenizer(run.cascade, run.job.weights.vocabulary)
    clean = (
        caption_cleaning.cleaner(cleaning_name(run.cascade, run.job.cleaning)) or str
    )
    usual = run.job.pictures.base.guidance

    def fault(row: Row) -> str:
        if row.problem:
            return row.problem
        first = first_seed if row.seed is None else row.seed
        if first + seeds > 2**32:
            return f"seed={first} with {seeds} pictures goes beyond {2**32 - 1}"
        guidance = usual if row.guidance is None else row.guidance
        if row.negative_prompt and guidance == 1.0:
            return "a negative prompt says nothing at guidance 1; give the row another"
        for field in ("prompt", "negative_prompt"):
            text = getattr(row, field)
            strange = [c for c in text if unicodedata.category(c) in ("Cc", "Cs")]
            if strange:
                return f"{field} holds {strange[0]!r}, which is no UTF-8 text"
            try:
                filled = clean(run.named(text))
            except InputError as error:
                return str(error)
            if field == "prompt" and not filled.strip():
                return "prompt is empty" + (" once it is cleaned" if text else "")
            # The words of the run itself are not the row's fault.
            own = clean(re.sub(r"\[[vn]\]", "", text, flags=re.IGNORECASE)).split()
            lacking = [word for word in own if UNKNOWN in pieces.pieces(word)]
            if lacking:
                return (
                    f"{field} holds {lacking[0][:40]!r}, for which the vocabulary has "
                    "no tokens"
                )
            length = len(pieces.pieces(filled)) + 1
            if length > pieces.length:
                return (
                    f"{field} is {length} tokens long and the {run.cascade.name} "
                    f"cascade reads {pieces.length}; shorten it"
                )
        return ""

    good, bad, said = 0, 0, []
    guidances = {usual}
    for row in rows:
        problem = fault(row)
        if not problem and row.guidance is not None:
            guidances.add(row.guidance)
            if len(guidances) > MOST_GUIDANCES:
                problem = f"more than {MOST_GUIDANCES} values of guidance in one job"
        good, bad = good + (not problem), bad + bool(problem)
        if problem and len(said) < SHOWN:
            said.append(f"  {row.where}: {problem}")
    if bad:
        more = [f"  and {bad - len(said)} more"] if bad > len(said) else []
        raise InputError(
            "\n".join(
                [
                    f"--prompts={source}: {bad} of {good + bad} rows cannot be drawn; "
                    "mend or remove them, nothing was drawn",
                    *said,
                    *more,
                ]
            )
        )
    if not good:
        raise InputError(f"--prompts={source} holds no prompts")
    return good * seeds


def stage_passes(run: FinishedRun, dtype: Any) -> tuple[StagePass, ...]:
    """The stages of a run, with what identifies their work; no weights are read.

    Raises:
        InputError: missing weights, or a tuning that has not come to an end.
    """
    job, found = run.job, []
    reading = weight_origin(run.cascade, "text", job.weights.text)["sha256"]
    learned = finished_run.learned_embedding(run)
    cleaning = cleaning_name(run.cascade, job.cleaning)
    for stage in run.stages:
        weights = weight_origin(
            run.cascade, stage.name, getattr(job.weights, stage.name)
        )
        steps = finished_run.tuned_steps(run, stage)
        recipe = run.path / stage.name / "recipe.json"
        named = job.names(stage.name, steps)
        made = (
            *(weights["sha256"], steps, recipe.read_text() if steps else ""),
            *(reading, cleaning, repr(stage), str(dtype)),
            job.tuning(stage.name).level if steps else stage.normal_level,
            *((learned.digest(),) if learned is not None and named else ()),
        )
        found.append(
            StagePass(
                stage,
                getattr(job.pictures, stage.name),
                *(steps, named),
                weights["sha256"],
                hashlib.sha256(repr(made).encode()).hexdigest(),
            )
        )
    return tuple(found)


def plan_images(
    run: FinishedRun,
    passes: Sequence[StagePass],
    rows: Iterable[Row],
    first_seed: int,
    seeds: int,
) -> Iterator[PlannedImage]:
    """The pictures that rows ask for, in their order, each with its files."""
    for row in rows:
        named, plain = (
            PromptPair(fill(row.prompt), fill(row.negative_prompt))
            for fill in (run.named, run.plain)
        )
        slug = re.sub(r"[^a-z0-9]+", "-", plain.prompt.lower())[:40].strip("-")
        first = first_seed if row.seed is None else row.seed
        for seed in range(first, first + seeds):
            picture = PlannedImage(seed, row.guidance, row.family, named, plain)
            files, key = [], ""
            for each in passes:
                made = (
                    *(key, each.made, seed),
                    *picture.spoken(each),
                    repr(picture.sampler(each)),
                )
                key = hashlib.sha256(repr(made).encode()).hexdigest()[:16]
                files.append(f"{each.stage.resolution}/{slug}_{seed}_{key}.png")
            yield dataclasses.replace(picture, files=tuple(files))
