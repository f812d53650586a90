"""What is run for the paper's claims: subjects, studies, and every arm of them.

An arm is one way to tune, as runs over subjects and seeds. Every run is an ordinary
job in a folder of its own, named after what sets it apart from the default job; two
arms that want the same run share it, and runs share class images.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from etils import epath

from imagen_booth.cascade import Cascade
from imagen_booth.config.schema import Job, TextualInversion
from imagen_booth.diffusion import sampler as samplers
from imagen_booth.errors import InputError
from imagen_booth.sampling.text_embeddings import load_tokenizer
from imagen_booth.text import identifier
from imagen_booth.toybox import subjects as toys
from imagen_booth.toybox.coverage import beyond
from imagen_booth.toybox.subjects import ToyboxSubject
from imagen_booth.training.subject_photos import TOYBOX_PHOTOS

# No cascade has seen these: subjects never share a generator with the individuals of
# pretraining. The studies over fewer subjects take the first ones.
SUBJECTS = tuple(
    ToyboxSubject(noun, 301 + number)
    for number, noun in enumerate(
        ("dog", "teapot", "cat", "car", "duck", "backpack", "dog", "cat")
    )
)
FEW = 3  # subjects of the studies that call for many runs of each
STUDIES = (
    "vanilla",
    "sr",  # before "fidelity", whose large pictures go through its stages
    "fidelity",
    "prior",
    "baselines",
    "noun",
    "identifier",
    "photos",
    "sampler",
)

# Arms. The first of each line tunes as the job says.
TUNED, UNTUNED = "tuned", "untuned"
ON, OFF = "with prior loss", "without prior loss"
CORRECT, NO_NOUN, WRONG = "correct noun", "no noun", "wrong noun"
WRONG_LONG = "wrong noun, three times as long"
CORRECT_ALONE = "correct noun, no prior loss"
RARE, COMMON, CHARACTERS = "rare word", "common word", "random characters"
LOW, NORMAL = "low level", "normal level"
DREAMBOOTH, NAIVE = "DreamBooth", "no prior loss"
INVERTED, DESCRIBED = "Textual Inversion", "prompts only"
ANCESTRAL = "ancestral sampler"
MORE_STEPS, SOLVER = "ancestral, ten times the steps", "solver of few steps"

LONGER = 3
MORE = 10  # times the class images' ancestral steps
RANDOM_CHARACTERS = "xxy5syt00"
SR_LOW = "sr_low"  # in the names of runs

# A living thing is called an object's name, and the other way round.
WRONG_NOUN = {
    "dog": "car",
    "cat": "teapot",
    "duck": "backpack",
    "car": "dog",
    "teapot": "cat",
    "backpack": "duck",
}

# The paper's six applications in words of the toybox.
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
    """One subject tuned in one way.

    Attributes:
        name: of its folder.
        subject: whom the photos show.
        photos: how many of them are used.
        job: the settings, with the folder of the photos.
    """

    name: str
    subject: ToyboxSubject
    photos: int
    job: Job


@dataclasses.dataclass(frozen=True)
class StudySize:
    """How much is run; a smaller extent's runs are part of a larger one's.

    Attributes:
        subjects: the first ones of ``SUBJECTS``, at most ``FEW`` in most studies.
        seeds: of every subject, in "prior".
        counts: of photos, in "photos".
    """

    subjects: int = len(SUBJECTS)
    seeds: int = 3
    counts: tuple[int, ...] = tuple(range(1, TOYBOX_PHOTOS + 1))

    def __post_init__(self):
        if not 1 <= self.subjects <= len(SUBJECTS):
            raise InputError(
                f"--subjects={self.subjects} should be from 1 to {len(SUBJECTS)}"
            )
        if self.seeds < 1:
            raise InputError(f"--seeds={self.seeds} should be 1 or more")


FULL, QUICK = StudySize(), StudySize(subjects=2, seeds=1, counts=(1, 4, TOYBOX_PHOTOS))


@dataclasses.dataclass(frozen=True)
class Study:
    """The runs of a study, by arm, each over subjects and then seeds."""

    name: str
    arms: Mapping[str, tuple[Run, ...]]


def prompts(knows: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The applications' prompts without those that a prior was not taught.

    Args:
        knows: as ``knowledge.beyond`` takes it.

    Returns:
        By application, empty where none of its prompts is left.
    """
    return {
        name: tuple(each for each in some if not beyond(each, knows))
        for name, some in APPLICATIONS.items()
    }


def plan(
    job: Job,
    cascade: Cascade,
    folder: epath.Path,
    names: Collection[str],
    extent: StudySize,
    text: TextualInversion,
) -> list[Study]:
    """All studies called for, in the order of ``STUDIES``.

    Args:
        job: the default job of a cascade; its subject is replaced.
        cascade: of the job.
        folder: where photos and the shared cache go.
        names: of studies.
        extent: how many subjects, seeds and counts of photos.
        text: how Textual Inversion learns on this cascade.

    Raises:
        InputError: a name that is no study, or no name.
    """
    check(names)
    maker = _Planner(job, cascade, folder, text)
    many = SUBJECTS[: extent.subjects]
    few = many[:FEW]
    seeds = range(extent.seeds)

    def over(
        make: Callable[..., Run],
        subjects: Sequence[ToyboxSubject] = few,
        **settings: int,
    ) -> tuple[Run, ...]:
        return tuple(make(subject, **settings) for subject in subjects)

    def prior(on: bool) -> tuple[Run, ...]:
        return tuple(maker.usual(s, seed, prior=on) for s in many for seed in seeds)

    usual = over(maker.usual)
    studies = {
        "vanilla": {},
        "fidelity": {TUNED: usual},
        "baselines": {
            DREAMBOOTH: over(maker.usual, many),
            NAIVE: over(maker.usual, many, prior=False),
            INVERTED: over(maker.inverted, many),
            DESCRIBED: over(maker.described, many),
        },
        "prior": {ON: prior(True), OFF: prior(False)},
        "sampler": {
            ANCESTRAL: usual,
            MORE_STEPS: over(maker.class_images_of, more=True),
            SOLVER: over(maker.class_images_of, more=False),
        },
        "noun": {
            CORRECT: usual,
            CORRECT_ALONE: over(maker.usual, prior=False),  # as NO_NOUN has to be
            NO_NOUN: over(maker.no_noun),
            WRONG: over(maker.wrong_noun, longer=1),
            WRONG_LONG: over(maker.wrong_noun, longer=LONGER),
        },
        "identifier": {
            RARE: usual,
            COMMON: over(maker.common_word),
            CHARACTERS: over(maker.characters),
        },
        "photos": {
            str(count): over(maker.usual, photos=count) for count in extent.counts
        },
        "sr": {
            NORMAL: over(maker.enlarging, many, low=False),
            LOW: over(maker.enlarging, many, low=True),
        },
    }
    return [Study(name, studies[name]) for name in STUDIES if name in names]


def check(names: Collection[str]) -> None:
    """Raises InputError for a name that is no study, or no name."""
    if not names or set(names) - set(STUDIES):
        raise InputError(
            f"--studies={','.join(names)} should name some of {', '.join(STUDIES)}"
        )


def distinct(studies: Iterable[Study]) -> list[Run]:
    """Every run of the studies once, in order."""
    runs = {
        run.name: run
        for study in studies
        for some in study.arms.values()
        for run in some
    }
    return list(runs.values())


@dataclasses.dataclass(frozen=True)
class _Planner:
    """Turns the default job into that of an arm."""

    job: Job
    cascade: Cascade
    folder: epath.Path
    text: TextualInversion

    def usual(
        self,
        subject: ToyboxSubject,
        seed: int = 0,
        *,
        photos: int = TOYBOX_PHOTOS,
        prior: bool = True,
    ) -> Run:
        """The base stage as the job tunes it; the others stay as they came."""
        job = self._job(subject, photos, seed)
        marks = [f"seed_{seed}"] if seed else []
        if photos != TOYBOX_PHOTOS:
            marks.append(f"photos_{photos}")
        if not prior:
            marks.append("no_prior")
            job = _with_base(job, class_rows=0)
        return self._run(subject, marks, photos, _base_only(job))

    def no_noun(self, subject: ToyboxSubject) -> Run:
        """Prompts of two rare words, the second of which stands where the noun would.

        There is no class then, so there is no prior to preserve.
        """
        job = self._job(subject)
        pieces = load_tokenizer(self.cascade, job.weights.vocabulary)
        drawn = identifier.draw(
            pieces, self.cascade.text.rare, subject.noun, 2, job.seed
        )
        first, second = drawn.text.split()
        job = _with_subject(job, identifier=first, class_noun=second)
        return self._run(
            subject,
            ["no_noun"],
            TOYBOX_PHOTOS,
            _base_only(_with_base(job, class_rows=0)),
        )

    def wrong_noun(self, subject: ToyboxSubject, longer: int) -> Run:
        """Another class's noun, with that class as its prior."""
        job = _with_subject(self._job(subject), class_noun=WRONG_NOUN[subject.noun])
        job = _with_base(job, steps=longer * job.base.steps)
        marks = ["wrong_noun"] + ([f"times_{longer}"] if longer > 1 else [])
        return self._run(subject, marks, TOYBOX_PHOTOS, _base_only(job))

    def common_word(self, subject: ToyboxSubject) -> Run:
        """A word that the prior knows well in that place: another colour's."""
        colours = ("blue", "green")
        word = next(each for each in colours if each != subject.individual.colour)
        job = _with_subject(self._job(subject), identifier=word)
        return self._run(subject, ["common_word"], TOYBOX_PHOTOS, _base_only(job))

    def characters(self, subject: ToyboxSubject) -> Run:
        """Characters at random, which the tokenizer takes one by one."""
        job = _with_subject(self._job(subject), identifier=RANDOM_CHARACTERS)
        return self._run(subject, ["characters"], TOYBOX_PHOTOS, _base_only(job))

    def inverted(self, subject: ToyboxSubject) -> Run:
        """Textual Inversion: the networks as they came, the identifier learnt."""
        text = dataclasses.replace(self.text, preview_every=0)
        job = dataclasses.replace(_with_base(self._job(subject), steps=0), text=text)
        return self._run(subject, ["inverted"], TOYBOX_PHOTOS, _base_only(job))

    def described(self, subject: ToyboxSubject) -> Run:
        """The subject in words, and nothing tuned."""
        job = _base_only(_with_base(self._job(subject), steps=0))
        job = _with_subject(job, description=toys.describe(subject))
        return self._run(subject, ["described"], TOYBOX_PHOTOS, job)

    def class_images_of(self, subject: ToyboxSubject, *, more: bool) -> Run:
        """Class images by many more ancestral steps, or by a solver at half of them."""
        job = self._job(subject)
        usual = job.class_images.sampler
        schedule = self.cascade.stage("base").schedule
        steps = len(samplers.plan(schedule, usual).t)  # a setting may list sections
        sampler = (
            dataclasses.replace(usual, steps=MORE * steps)
            if more
            else dataclasses.replace(usual, method="dpmpp_2m", steps=max(2, steps // 2))
        )
        own = dataclasses.replace(job.class_images, sampler=sampler)
        job = _base_only(dataclasses.replace(job, class_images=own))
        mark = "class_more" if more else "class_solver"
        return self._run(subject, [mark], TOYBOX_PHOTOS, job)

    def enlarging(self, subject: ToyboxSubject, *, low: bool) -> Run:
        """The super-resolution stages alone, at the job's level or pretraining's."""
        job = self._job(subject)
        levels = {
            stage.name: job.tuning(stage.name).level if low else stage.normal_level
            for stage in self.cascade.stages
            if stage.low_resolution is not None
        }
        changes = {
            name: dataclasses.replace(job.tuning(name), level=level, preview_every=0)
            for name, level in levels.items()
        }
        job = _with_base(dataclasses.replace(job, **changes), steps=0)
        return self._run(subject, [SR_LOW if low else "sr_normal"], TOYBOX_PHOTOS, job)

    def _job(
        self, subject: ToyboxSubject, photos: int = TOYBOX_PHOTOS, seed: int = 0
    ) -> Job:
        """The default job on a subject, with one picture of its own."""
        pictures = dataclasses.replace(
            self.job.pictures, prompts=("a [V] [N]",), seeds=1
        )
        job = dataclasses.replace(
            self.job, seed=seed, pictures=pictures, cache=str(self.folder / "cache")
        )
        place = photo_folder(self.folder, subject, photos)
        job = _with_base(job, preview_every=0)
        return _with_subject(
            job, photos=str(place), class_noun=subject.noun, identifier=""
        )

    def _run(
        self, subject: ToyboxSubject, marks: list[str], photos: int, job: Job
    ) -> Run:
        return Run(run_name(subject, *marks), subject, photos, job)


def photo_folder(folder: epath.Path, subject: ToyboxSubject, photos: int) -> epath.Path:
    """Where the first photos of a subject are rendered to, for all its runs."""
    return folder / "photos" / run_name(subject, str(photos))


def run_name(subject: ToyboxSubject, *marks: str) -> str:
    """A subject, and what sets one of its runs apart."""
    return ".".join([f"{subject.noun}_{subject.seed}", *marks])


def _with_subject(job: Job, **settings: str) -> Job:
    return dataclasses.replace(
        job, subject=dataclasses.replace(job.subject, **settings)
    )


def _with_base(job: Job, **settings: int) -> Job:
    return dataclasses.replace(job, base=dataclasses.replace(job.base, **settings))


def _base_only(job: Job) -> Job:
    """Without super-resolution, which draws the run's one picture in haste."""
    own = job.pictures
    return dataclasses.replace(
        job,
        sr256=dataclasses.replace(job.sr256, steps=0),
        sr1024=dataclasses.replace(job.sr1024, steps=0),
        pictures=dataclasses.replace(
            own,
            sr256=dataclasses.replace(own.sr256, steps=2),
            sr1024=dataclasses.replace(own.sr1024, steps=2),
        ),
    )
