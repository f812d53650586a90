"""The studies of the paper's claims: their subjects, arms and runs.

An arm is one way to fine-tune, applied to several subjects and seeds. Each run is an
ordinary job in a folder of its own, whose name describes how it differs from the
default job. Arms that need the same run share it, and runs share class images.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from etils import epath

from imagen_booth.cascade import Cascade
from imagen_booth.config.schema import (
    CLASS_IMAGES,
    FROZEN_MODEL,
    FineTuning,
    Job,
    TextualInversion,
)
from imagen_booth.diffusion import sampler as samplers
from imagen_booth.errors import InputError
from imagen_booth.sampling.text_embeddings import load_tokenizer
from imagen_booth.text import identifier
from imagen_booth.toybox import subjects as toys
from imagen_booth.toybox.coverage import beyond
from imagen_booth.toybox.subjects import ToyboxSubject
from imagen_booth.training.subject_photos import TOYBOX_PHOTOS

# No cascade was pretrained on these: their seeds are not seeds of pretraining. Studies
# over fewer subjects take the first ones.
SUBJECTS = tuple(
    ToyboxSubject(noun, 301 + number)
    for number, noun in enumerate(
        ("dog", "teapot", "cat", "car", "duck", "backpack", "dog", "cat")
    )
)
FEW = 3  # subjects of the studies with many arms
STUDIES = (
    "vanilla",
    "sr",  # before "fidelity", whose large pictures use its fine-tuned stages
    "fidelity",
    "prior",
    "prior_source",
    "adapters",
    "baselines",
    "noun",
    "identifier",
    "photos",
    "sampler",
)

# Arms, as the results name them.
TUNED, UNTUNED = "tuned", "untuned"
ON, OFF = "with prior loss", "without prior loss"
ON_FROZEN = "with prior loss, frozen model"  # in place of class images
CORRECT, NO_NOUN, WRONG = "correct noun", "no noun", "wrong noun"
WRONG_LONG = "wrong noun, three times as long"
CORRECT_ALONE = "correct noun, no prior loss"
RARE, COMMON, CHARACTERS = "rare word", "common word", "random characters"
LOW, NORMAL = "low level", "normal level"
DREAMBOOTH, NAIVE = "DreamBooth", "no prior loss"
INVERTED, DESCRIBED = "Textual Inversion", "prompts only"
ANCESTRAL = "ancestral sampler"
MORE_STEPS, SOLVER = "ancestral, ten times the steps", "solver of few steps"
LISTED = "solver of ten named steps"
# Sources of the prior term: class images, or the frozen model at these shares of noisy
# images from pure noise.
NO_PRIOR, IMAGES = "none", "class images"
MIXED = "frozen model, photos and noise"
FROZEN = {
    "frozen model, photos": 0.0,
    MIXED: 0.5,
    "frozen model, noise": 1.0,
}

# What trains in the base stage: all its parameters, or an adapter of a rank on kernels.
WHOLE = "all parameters"
ADAPTERS = {
    "LoRA, rank 4": (4, "attention"),
    "LoRA, rank 16": (16, "attention"),
    "LoRA, rank 64": (64, "attention"),
    "LoRA, rank 16, all kernels": (16, "all"),
}

PRIOR_SEEDS = 2  # at most, in the study "prior_source"
LONGER = 3  # times the steps of the default job, in WRONG_LONG
MORE = 10  # times the class images' ancestral steps, in MORE_STEPS
STEPS = "ays_if"  # list of steps in LISTED
RANDOM_CHARACTERS = "xxy5syt00"
SR_LOW = "sr_low"  # part of the names of runs in the arm LOW

# A wrong noun is that of an object for an animal, and of an animal for an object.
WRONG_NOUN = {
    "dog": "car",
    "cat": "teapot",
    "duck": "backpack",
    "car": "dog",
    "teapot": "cat",
    "backpack": "duck",
}

# The paper's six applications in the words of the toybox.
APPLICATIONS: dict[str, tuple[str, ...]] = {
    "recontextualisation": (
        "a [V] [N] in the snow",
        "a [V] [N] in the jungle",
        "a [V] [N] on the beach",
        "a [V] [N] in the desert",
    ),
    "art renditions": ("a painting of a [V] [N]", "a statue of a [V] [N]"),
    "expression manipulation": ("a sleeping [V] [N]", "a surprised [V] [N]"),
    "novel views": (
        "a [V] [N] seen from the side",
        "a [V] [N] seen from the back",
        "a [V] [N] seen from above",
    ),
    "accessorisation": ("a [V] [N] wearing a hat", "a [V] [N] wearing a scarf"),
    "property modification": ("a green [V] [N]", "a white [V] [N]"),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One subject, fine-tuned in one way.

    Attributes:
        name: Name of the run's folder.
        subject: The subject in the photos.
        photos: Number of photos.
        job: The settings, with the folder of the photos.
    """

    name: str
    subject: ToyboxSubject
    photos: int
    job: Job


@dataclasses.dataclass(frozen=True)
class StudySize:
    """How many runs the studies have. A larger size contains a smaller one's runs.

    Attributes:
        subjects: Number of subjects, the first ones of ``SUBJECTS``. Studies with many
            arms use at most ``FEW`` of them.
        seeds: Seeds of each subject in the study "prior"; at most ``PRIOR_SEEDS``
            in "prior_source".
        photo_counts: Numbers of photos in the study "photos".
        prior_weights: Weights of the prior term in the study "prior_source".
    """

    subjects: int = len(SUBJECTS)
    seeds: int = 3
    photo_counts: tuple[int, ...] = tuple(range(1, TOYBOX_PHOTOS + 1))
    prior_weights: tuple[float, ...] = (1.0, 0.3, 3.0)

    def __post_init__(self):
        if not 1 <= self.subjects <= len(SUBJECTS):
            raise InputError(
                f"--subjects={self.subjects} should be from 1 to {len(SUBJECTS)}"
            )
        if self.seeds < 1:
            raise InputError(f"--seeds={self.seeds} should be 1 or more")


FULL = StudySize()
QUICK = StudySize(
    subjects=2, seeds=1, photo_counts=(1, 4, TOYBOX_PHOTOS), prior_weights=(1.0,)
)


@dataclasses.dataclass(frozen=True)
class Study:
    """A study: for each arm, its runs in the order of subjects, then seeds."""

    name: str
    arms: Mapping[str, tuple[Run, ...]]


def known_prompts(
    vocabulary: Mapping[str, Sequence[str]],
) -> dict[str, tuple[str, ...]]:
    """The prompts of each application whose words the prior knows.

    Args:
        vocabulary: Words of the prior, as ``coverage.beyond`` takes them.

    Returns:
        Prompts by application; an application without a known prompt has none.
    """
    return {
        name: tuple(prompt for prompt in prompts if not beyond(prompt, vocabulary))
        for name, prompts in APPLICATIONS.items()
    }


def plan_studies(
    job: Job,
    cascade: Cascade,
    folder: epath.Path,
    names: Collection[str],
    size: StudySize,
    text: TextualInversion,
    whole: FineTuning,
) -> list[Study]:
    """The studies of the given names, in the order of ``STUDIES``.

    Args:
        job: Default job of a cascade; its subject is replaced.
        cascade: The cascade of the job.
        folder: Folder of the photos and of the shared cache.
        names: Names of studies.
        size: Number of subjects, seeds and photos.
        text: Settings of Textual Inversion on this cascade.
        whole: Settings of its base stage without an adapter.

    Raises:
        InputError: A name is not in ``STUDIES``, or there is no name.
    """
    check_names(names)
    runs = _RunBuilder(job, cascade, folder, text, whole)
    subjects = SUBJECTS[: size.subjects]
    studies = {
        "vanilla": {},
        **_method_studies(runs, subjects, range(size.seeds)),
        "prior_source": _prior_sources(runs, subjects, size),
        **_input_studies(runs, subjects[:FEW], size.photo_counts),
    }
    return [Study(name, studies[name]) for name in STUDIES if name in names]


def check_names(names: Collection[str]) -> None:
    """Raises InputError if a name is not in ``STUDIES``, or if there is no name."""
    if not names or set(names) - set(STUDIES):
        raise InputError(
            f"--studies={','.join(names)} should name some of {', '.join(STUDIES)}"
        )


def distinct_runs(studies: Iterable[Study]) -> list[Run]:
    """Every run of the studies once, in order."""
    by_name = {
        run.name: run
        for study in studies
        for runs in study.arms.values()
        for run in runs
    }
    return list(by_name.values())


@dataclasses.dataclass(frozen=True)
class _RunBuilder:
    """Makes the runs of every arm from the default job."""

    job: Job
    cascade: Cascade
    folder: epath.Path
    text: TextualInversion
    whole: FineTuning

    def default(
        self,
        subject: ToyboxSubject,
        seed: int = 0,
        *,
        photos: int = TOYBOX_PHOTOS,
        prior: bool = True,
    ) -> Run:
        """The base stage fine-tuned as the job says; the others stay pretrained."""
        job = self._job(subject, photos, seed)
        if not prior:
            job = _with_base(job, class_rows=0)
        return self._run(subject, ["no_prior"], _base_only(job), photos)

    def prior_source(
        self, subject: ToyboxSubject, seed: int, source: str, weight: float
    ) -> Run:
        """The prior term from one source, at one weight.

        Args:
            source: ``IMAGES`` or a name in ``FROZEN``.
            weight: Weight of the term.
        """
        job = _with_base(self._job(subject, seed=seed), prior_weight=weight)
        if source in FROZEN:
            mark, share = f"frozen_{FROZEN[source]:g}", FROZEN[source]
            settings = dataclasses.replace(job.frozen_model, from_noise=share)
            job = dataclasses.replace(job, prior=FROZEN_MODEL, frozen_model=settings)
        else:
            mark, job = CLASS_IMAGES, dataclasses.replace(job, prior=CLASS_IMAGES)
        marks = [mark]
        if weight != self.job.base.prior_weight:
            marks.append(f"weight_{weight:g}")
        return self._run(subject, marks, _base_only(job))

    def class_images(self, subject: ToyboxSubject, seed: int = 0) -> Run:
        """The prior term from class images, as in the paper."""
        return self.prior_source(subject, seed, IMAGES, self.job.base.prior_weight)

    def frozen_model(self, subject: ToyboxSubject, seed: int = 0) -> Run:
        """The prior term from the frozen model, on photos and noise."""
        return self.prior_source(subject, seed, MIXED, self.job.base.prior_weight)

    def adapter(self, subject: ToyboxSubject, rank: int, kernels: str) -> Run:
        """An adapter of this rank; alpha is the rank, as by default."""
        adapter = dataclasses.replace(
            self.job.base.adapter, rank=rank, alpha=float(rank), kernels=kernels
        )
        job = self._job(subject)
        base = dataclasses.replace(job.base, adapter=adapter)
        job = dataclasses.replace(job, base=base)
        return self._run(subject, [f"lora_{kernels}_{rank}"], _base_only(job))

    def all_parameters(self, subject: ToyboxSubject) -> Run:
        """No adapter: all parameters of the base stage train."""
        base = dataclasses.replace(self.whole, preview_every=0)
        job = dataclasses.replace(self._job(subject), base=base)
        return self._run(subject, ["whole"], _base_only(job))

    def no_noun(self, subject: ToyboxSubject) -> Run:
        """Prompts with two rare words, the second in the place of the class noun.

        Without a class noun there is no class, so this run has no prior loss.
        """
        job = self._job(subject)
        tokenizer = load_tokenizer(self.cascade, job.weights.vocabulary)
        two_words = identifier.draw(
            tokenizer, self.cascade.text.rare, subject.noun, 2, job.seed
        )
        first, second = two_words.text.split()
        job = _with_subject(job, identifier=first, class_noun=second)
        job = _base_only(_with_base(job, class_rows=0))
        return self._run(subject, ["no_noun"], job)

    def wrong_noun(self, subject: ToyboxSubject, times: int) -> Run:
        """The noun of another class, and class images of that class.

        Args:
            times: Factor on the number of steps.
        """
        job = _with_subject(self._job(subject), class_noun=WRONG_NOUN[subject.noun])
        job = _with_base(job, steps=times * job.base.steps)
        marks = ["wrong_noun"] + ([f"times_{times}"] if times > 1 else [])
        return self._run(subject, marks, _base_only(job))

    def common_word(self, subject: ToyboxSubject) -> Run:
        """The identifier is a colour that the subject does not have."""
        word = next(
            each for each in ("blue", "green") if each != subject.individual.colour
        )
        job = _with_subject(self._job(subject), identifier=word)
        return self._run(subject, ["common_word"], _base_only(job))

    def random_characters(self, subject: ToyboxSubject) -> Run:
        """The identifier is a random string, which has one token per character."""
        job = _with_subject(self._job(subject), identifier=RANDOM_CHARACTERS)
        return self._run(subject, ["characters"], _base_only(job))

    def textual_inversion(self, subject: ToyboxSubject) -> Run:
        """Only the embedding of the identifier is learned."""
        text = dataclasses.replace(self.text, preview_every=0)
        job = dataclasses.replace(_with_base(self._job(subject), steps=0), text=text)
        return self._run(subject, ["inverted"], _base_only(job))

    def prompts_only(self, subject: ToyboxSubject) -> Run:
        """Prompts describe the subject, and nothing is fine-tuned."""
        job = _base_only(_with_base(self._job(subject), steps=0))
        job = _with_subject(job, description=toys.describe(subject))
        return self._run(subject, ["described"], job)

    def class_sampler(self, subject: ToyboxSubject, mark: str) -> Run:
        """Class images by another sampler than the job's.

        Args:
            mark: ``class_more`` for ``MORE`` times the ancestral steps,
                ``class_solver`` for a solver with half of them, ``class_listed`` for
                one with the steps of ``STEPS``.
        """
        job = self._job(subject)
        default = job.class_images.sampler
        schedule = self.cascade.stage("base").schedule
        # Counted in the plan, because the setting may be the name of a list of steps.
        steps = len(samplers.plan(schedule, default).t)
        solver = dataclasses.replace(default, method="dpmpp_2m")
        sampler = {
            "class_more": dataclasses.replace(default, steps=MORE * steps),
            "class_solver": dataclasses.replace(solver, steps=max(2, steps // 2)),
            "class_listed": dataclasses.replace(solver, steps=STEPS),
        }[mark]
        class_images = dataclasses.replace(job.class_images, sampler=sampler)
        job = dataclasses.replace(job, prior=CLASS_IMAGES, class_images=class_images)
        return self._run(subject, [mark], _base_only(job))

    def super_resolution(self, subject: ToyboxSubject, *, low: bool) -> Run:
        """The super-resolution stages alone are fine-tuned.

        Args:
            low: Whether at the augmentation level of the job; else at the level of
                pretraining.
        """
        job = self._job(subject)
        levels = {
            stage.name: job.finetuning(stage.name).level if low else stage.normal_level
            for stage in self.cascade.stages
            if stage.low_resolution is not None
        }
        changes = {
            name: dataclasses.replace(
                job.finetuning(name), level=level, preview_every=0
            )
            for name, level in levels.items()
        }
        job = _with_base(dataclasses.replace(job, **changes), steps=0)
        return self._run(subject, [SR_LOW if low else "sr_normal"], job)

    def _job(
        self, subject: ToyboxSubject, photos: int = TOYBOX_PHOTOS, seed: int = 0
    ) -> Job:
        """The default job for a subject, which ends with a single picture."""
        pictures = dataclasses.replace(
            self.job.pictures, prompts=("a [V] [N]",), seeds=1
        )
        job = dataclasses.replace(
            self.job, seed=seed, pictures=pictures, cache=str(self.folder / "cache")
        )
        job = _with_base(job, preview_every=0)
        return _with_subject(
            job,
            photos=str(photo_folder(self.folder, subject, photos)),
            class_noun=subject.noun,
            identifier="",
        )

    def _run(
        self,
        subject: ToyboxSubject,
        marks: list[str],
        job: Job,
        photos: int = TOYBOX_PHOTOS,
    ) -> Run:
        """The run of a job; with the settings of the default job, it is its run.

        Args:
            marks: How the job differs from the default one, besides seed and photos.
        """
        if job == _base_only(self._job(subject, photos, job.seed)):
            marks = []
        if photos != TOYBOX_PHOTOS:
            marks = [f"photos_{photos}", *marks]
        if job.seed:
            marks = [f"seed_{job.seed}", *marks]
        return Run(run_name(subject, *marks), subject, photos, job)


def _method_studies(
    runs: _RunBuilder, subjects: Sequence[ToyboxSubject], seeds: Sequence[int]
) -> dict[str, dict[str, tuple[Run, ...]]]:
    """Arms of the studies of the method: its losses, stages and alternatives."""
    few = subjects[:FEW]

    def each(make: Callable[..., Run], **settings: bool) -> tuple[Run, ...]:
        return tuple(
            make(subject, seed, **settings) for subject in subjects for seed in seeds
        )

    return {
        "fidelity": {TUNED: _over(few, runs.default)},
        "baselines": {
            DREAMBOOTH: _over(subjects, runs.default),
            NAIVE: _over(subjects, runs.default, prior=False),
            INVERTED: _over(subjects, runs.textual_inversion),
            DESCRIBED: _over(subjects, runs.prompts_only),
        },
        "prior": {
            ON: each(runs.class_images),
            ON_FROZEN: each(runs.frozen_model),
            OFF: each(runs.default, prior=False),
        },
        "adapters": {
            WHOLE: _over(subjects, runs.all_parameters),
            **{
                name: _over(subjects, runs.adapter, rank=rank, kernels=kernels)
                for name, (rank, kernels) in ADAPTERS.items()
            },
        },
        "sampler": {
            ANCESTRAL: _over(few, runs.class_images),
            MORE_STEPS: _over(few, runs.class_sampler, mark="class_more"),
            SOLVER: _over(few, runs.class_sampler, mark="class_solver"),
            LISTED: _over(few, runs.class_sampler, mark="class_listed"),
        },
        "sr": {
            NORMAL: _over(subjects, runs.super_resolution, low=False),
            LOW: _over(subjects, runs.super_resolution, low=True),
        },
    }


def prior_arm(source: str, weight: float) -> str:
    """Name of an arm in the study "prior_source"."""
    return f"{source}, weight {weight:g}"


def _prior_sources(
    runs: _RunBuilder, subjects: Sequence[ToyboxSubject], size: StudySize
) -> dict[str, tuple[Run, ...]]:
    """Arms of the study "prior_source": every source of the term at every weight."""
    seeds = range(min(size.seeds, PRIOR_SEEDS))
    pairs = [(subject, seed) for subject in subjects for seed in seeds]
    arms = {NO_PRIOR: tuple(runs.default(*pair, prior=False) for pair in pairs)}
    for source in (IMAGES, *FROZEN):
        for weight in size.prior_weights:
            arms[prior_arm(source, weight)] = tuple(
                runs.prior_source(*pair, source, weight) for pair in pairs
            )
    return arms


def _input_studies(
    runs: _RunBuilder, subjects: Sequence[ToyboxSubject], photo_counts: Sequence[int]
) -> dict[str, dict[str, tuple[Run, ...]]]:
    """Arms of the studies of what the user provides: noun, identifier and photos."""
    default = _over(subjects, runs.default)
    return {
        "noun": {
            CORRECT: default,
            # NO_NOUN has no prior loss, so it is compared with this arm.
            CORRECT_ALONE: _over(subjects, runs.default, prior=False),
            NO_NOUN: _over(subjects, runs.no_noun),
            WRONG: _over(subjects, runs.wrong_noun, times=1),
            WRONG_LONG: _over(subjects, runs.wrong_noun, times=LONGER),
        },
        "identifier": {
            RARE: default,
            COMMON: _over(subjects, runs.common_word),
            CHARACTERS: _over(subjects, runs.random_characters),
        },
        "photos": {
            str(count): _over(subjects, runs.default, photos=count)
            for count in photo_counts
        },
    }


def _over(
    subjects: Sequence[ToyboxSubject], make: Callable[..., Run], **settings: int | str
) -> tuple[Run, ...]:
    """One run per subject."""
    return tuple(make(subject, **settings) for subject in subjects)


def photo_folder(folder: epath.Path, subject: ToyboxSubject, photos: int) -> epath.Path:
    """Folder of the first ``photos`` photos of a subject, shared by all its runs."""
    return folder / "photos" / run_name(subject, str(photos))


def run_name(subject: ToyboxSubject, *marks: str) -> str:
    """Name of a subject's run; the marks say how it differs from the default job."""
    return ".".join([f"{subject.noun}_{subject.seed}", *marks])


def _with_subject(job: Job, **settings: str) -> Job:
    return dataclasses.replace(
        job, subject=dataclasses.replace(job.subject, **settings)
    )


def _with_base(job: Job, **settings: float) -> Job:
    return dataclasses.replace(job, base=dataclasses.replace(job.base, **settings))


def _base_only(job: Job) -> Job:
    """The job with super-resolution neither fine-tuned nor sampled in many steps."""
    pictures = job.pictures
    return dataclasses.replace(
        job,
        sr256=dataclasses.replace(job.sr256, steps=0),
        sr1024=dataclasses.replace(job.sr1024, steps=0),
        pictures=dataclasses.replace(
            pictures,
            sr256=dataclasses.replace(pictures.sr256, steps=2),
            sr1024=dataclasses.replace(pictures.sr1024, steps=2),
        ),
    )
