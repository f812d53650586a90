"""What the judge, and the true renders, say of every arm."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from imagen_booth.data import image_files
from imagen_booth.evaluation import scores, toybox_judge
from imagen_booth.experiments import claims, detail, judge_readings, plan
from imagen_booth.experiments.image_store import ImageStore
from imagen_booth.experiments.judge_readings import ImageReadings, RunReadings
from imagen_booth.experiments.plan import APPLICATIONS, Run, Study
from imagen_booth.toybox.coverage import held_out_captions
from imagen_booth.toybox.grammar import TIER_A
from imagen_booth.toybox.subjects import ToyboxSubject

Arms = dict[str, dict[str, list[np.ndarray]]]  # values of each subject, by metric

HELD_OUT = 40  # captions of "vanilla"
SHOWN = 8  # pictures of a class in a row of the page
SHOWN_SUBJECTS = 3
CROP = 256  # pixels shown of a larger picture


class Measurements:
    """Measures studies whose runs are done.

    Args:
        reader: reads the pictures.
        knows: words that the prior was taught, as ``knowledge.beyond`` takes them.
    """

    def __init__(
        self,
        studio: ImageStore,
        reader: toybox_judge.Judge,
        knows: Mapping[str, Sequence[str]],
    ):
        self.studio, self.knows = studio, knows
        self.applications = plan.prompts(knows)
        self.templates = [each for some in self.applications.values() for each in some]
        self.album = RunReadings(studio, reader, self.templates)

    def pictures_per_run(self) -> int:
        """Pictures that measuring draws with a tuned base stage, at most."""
        return (
            len(self.templates) * judge_readings.PICTURES
            + judge_readings.CLASS_PICTURES
        )

    def measure(self, study: Study) -> dict[str, Any]:
        """A study's entry of ``results.json``.

        Returns:
            ``tables``: scores by arm and metric; ``claims``: see ``claims.judged``;
            ``pictures``: captions, each with the files shown side by side;
            ``notes``: sentences.
        """
        special = {
            "vanilla": self._vanilla,
            "fidelity": self._fidelity,
            "baselines": self._beside,
            "prior": self._prior,
            "sampler": self._beside,
            "sr": self._sr,
        }
        return special.get(study.name, self._compared)(study)

    def _vanilla(self, study: Study) -> dict[str, Any]:
        """The untuned cascade on captions that pretraining held out."""
        taught = {name: tuple(words) for name, words in self.knows.items()}
        tier = dataclasses.replace(TIER_A, **taught)
        captions, wanted = zip(*held_out_captions(tier, HELD_OUT), strict=True)
        # Noise of its own for each, or one odd shape of a cat is counted many times: a
        # picture's seed is its number.
        numbers = [
            range(first, first + judge_readings.PICTURES)
            for first in range(
                0, judge_readings.PICTURES * len(captions), judge_readings.PICTURES
            )
        ]
        requests = [
            request
            for caption, some in zip(captions, numbers, strict=True)
            for request in self.studio.requests([caption], some)
        ]
        files = self.studio.draw("vanilla", self.studio.ready("base"), requests)
        readings = self.album.read(files)
        right: dict[str, list[list[bool]]] = {}  # by what is asked, for each caption
        for some, each in zip(numbers, wanted, strict=True):
            answers = [
                judge_readings.answers(readings, number, each) for number in some
            ]
            for name in answers[0]:
                values = [answer[name] for answer in answers]
                right.setdefault(name, []).append(values)
            right.setdefault("all", []).append([all(e.values()) for e in answers])
        found = {name: scores.summarise(values) for name, values in right.items()}
        first = [
            image_files.load_png(file) for file in files[:: judge_readings.PICTURES]
        ]
        sheet = files[0].parent / "first_of_each.png"
        shown = image_files.contact_sheet(first, captions, columns=6, cell=192)
        image_files.save_png(sheet, shown)
        return {
            "tables": [{n: {"right": dataclasses.asdict(found[n])} for n in found}],
            "claims": [
                claims.target("The class is right in 90 %.", found["noun"], 0.90),
                claims.target("The context is right in 85 %.", found["context"], 0.85),
            ],
            "pictures": [self._cell("the first of each", [sheet])],
            "notes": [],
        }

    def _fidelity(self, study: Study) -> dict[str, Any]:
        """Both fidelities, beside what true renders for the same prompts get."""
        runs = study.arms[plan.TUNED]
        subjects = [run.subject for run in runs]
        tuned = _fidelities(map(self.album.seen, runs))
        truth = _fidelities(map(self.album.true, subjects))
        alike = [
            np.array([scores.agreement(self.album.photos(one))]) for one in subjects
        ]
        arms: Arms = {
            "photos": {"subject": alike},
            "truth": truth,
            plan.TUNED: tuned,
            plan.UNTUNED: {
                "subject": [self.album.of_class(one)[1] for one in subjects]
            },
        }
        parts: Arms = {}
        for name, some in self.applications.items():
            of = np.isin(self.album.seen(runs[0]).templates, some)
            if of.any():
                parts[name] = {
                    f"{kind}{metric}": [values[of] for values in arm[metric]]
                    for metric in ("subject", "prompt")
                    for kind, arm in (("", tuned), ("true_", truth))
                }
        chosen = [some[0] for some in self.applications.values() if some]
        large = self.album.large(runs[0], chosen)
        cells = [self._cell(prompt, [file]) for prompt, file in large]
        for run in runs[:SHOWN_SUBJECTS]:
            name = _title(run.subject)
            cells += [
                self._cell(f"photos of {name}", self.album.photo_files(run.subject)),
                self._cell(
                    f"{name}, drawn",
                    self.album.seen(run).files[:: judge_readings.PICTURES],
                ),
                self._cell(
                    f"{name}, true",
                    self.album.true(run.subject).files[:: judge_readings.PICTURES],
                ),
            ]
        notes = [f"The prompts: {'; '.join(self.templates)}."]
        if self.applications["expression manipulation"]:
            notes.append("The judge reads no expressions, so none counts as asked.")
        asked = [each for some in APPLICATIONS.values() for each in some]
        unknown = [each for each in asked if each not in self.templates]
        if unknown:
            notes.append(
                "Not asked, because the prior was not taught their words: "
                f"{'; '.join(unknown)}."
            )
        return entry(study.name, [arms, parts], cells, notes)

    def _prior(self, study: Study) -> dict[str, Any]:
        """PRES, DIV, both fidelities, and how "a dog" drifts."""
        arms: Arms = {name: self._all_four(runs) for name, runs in study.arms.items()}
        pairs = [
            pair
            for pair in zip(study.arms[plan.ON], study.arms[plan.OFF], strict=True)
            if pair[0].job.seed == 0
        ]
        before = [self.album.of_class(run.subject)[1] for run, _ in pairs]
        arms[plan.UNTUNED] = {"pres": before}
        cells = []
        for on, off in pairs[:SHOWN_SUBJECTS]:
            subject = on.subject
            files = self.album.photo_files(subject)
            cells.append(self._cell(f"photos of {_title(subject)}", files))
            for label, name in (
                (plan.UNTUNED, ""),
                (plan.ON, on.name),
                (plan.OFF, off.name),
            ):
                files = self.album.of_class(subject, name)[0][:SHOWN]
                cells.append(self._cell(f"“a {subject.noun}”, {label}", files))
        return entry(study.name, [arms], cells, [])

    def _all_four(self, runs: Sequence[Run]) -> dict[str, list[np.ndarray]]:
        """Both fidelities, PRES and DIV of an arm."""

        def pres(run: Run) -> np.ndarray:
            # Untuned, the base stage draws the class as it always did.
            name = run.name if run.job.base.steps else ""
            return self.album.of_class(run.subject, name)[1]

        def div(run: Run) -> np.ndarray:
            return self.album.seen(run).diversity()

        return _fidelities(_by_subject(runs, self.album.seen)) | {
            "pres": _joined(_by_subject(runs, pres)),
            "div": _joined(_by_subject(runs, div)),
        }

    def _beside(self, study: Study) -> dict[str, Any]:
        """All four scores of every arm, and one picture of each prompt."""
        arms = {name: self._all_four(runs) for name, runs in study.arms.items()}
        cells = []
        for several in list(zip(*study.arms.values(), strict=True))[:SHOWN_SUBJECTS]:
            subject = several[0].subject
            files = self.album.photo_files(subject)
            cells.append(self._cell(f"photos of {_title(subject)}", files))
            for name, run in zip(study.arms, several, strict=True):
                files = self.album.seen(run).files[:: judge_readings.PICTURES]
                cells.append(self._cell(f"{_title(subject)}, {name}", files))
        notes = []
        if plan.DESCRIBED in study.arms:
            described = study.arms[plan.DESCRIBED]
            words = dict.fromkeys(run.job.subject.description for run in described)
            notes.append(f"The descriptions: {', '.join(words)}.")
        return entry(study.name, [arms], cells, notes)

    def _compared(self, study: Study) -> dict[str, Any]:
        """Both fidelities of every arm."""
        arms = {
            name: _fidelities(map(self.album.seen, runs))
            for name, runs in study.arms.items()
        }
        cells = []
        for name, runs in study.arms.items():
            files = self.album.seen(runs[0]).files[:: judge_readings.PICTURES]
            cells.append(self._cell(f"{_title(runs[0].subject)}, {name}", files))
        return entry(study.name, [arms], cells, [])

    def _sr(self, study: Study) -> dict[str, Any]:
        """Each upper stage on true pictures of the size below, beside the truth."""
        arms: Arms = {}
        cells = []
        for stage in self.studio.cascade.stages[1:]:
            low, size = stage.low_resolution or 0, stage.resolution
            for arm, of in {plan.UNTUNED: (), **study.arms}.items():
                runs = of or study.arms[plan.LOW]
                found = [
                    self.album.enlarged(run, stage.name, low, size, bool(of))
                    for run in runs
                ]
                arms.setdefault(arm, {})[f"error_{size}"] = [
                    np.array([detail.error(*pair) for pair in pairs])
                    for _, pairs in found
                ]
                arms[arm][f"amount_{size}"] = [
                    np.array([detail.amount(*pair) for pair in pairs])
                    for _, pairs in found
                ]
                cells.append(self._cell(f"{size} px, {arm}", found[0][0][:1], CROP))
            truth = self.album.scenes(study.arms[plan.LOW][0].subject, size)[:1]
            cells.append(self._cell(f"{size} px, true", truth, CROP))
        scenes = len(judge_readings.SCENES) * judge_readings.TAKES
        notes = [
            f"{scenes} new scenes of each subject. High-frequency error is the root "
            "mean square, in grey levels of 255, of the difference between the "
            "Laplacians of a picture and of the truth; detail is the strength of the "
            "picture's Laplacian over the truth's: below 1 blurred, above 1 invented.",
            "Each stage is given the true picture of the size below.",
        ]
        return entry(study.name, [arms], cells, notes)

    def _cell(
        self, caption: str, files: Sequence[epath.Path], crop: int = 0
    ) -> dict[str, Any]:
        """Pictures side by side on the page, cut to their middle where ``crop``."""
        names = [str(file.relative_to(self.studio.folder)) for file in files]
        return {"caption": caption, "files": names, "crop": crop}


def _title(subject: ToyboxSubject) -> str:
    return f"{subject.noun} {subject.seed}"


def _by_subject(runs: Iterable[Run], value: Callable[[Run], Any]) -> list[list[Any]]:
    """Values of runs, grouped by subject."""
    groups: dict[ToyboxSubject, list[Any]] = {}
    for run in runs:
        groups.setdefault(run.subject, []).append(value(run))
    return list(groups.values())


def _joined(groups: Iterable[Sequence[np.ndarray]]) -> list[np.ndarray]:
    return [np.concatenate(group) for group in groups]


def _fidelities(
    seen: Iterable[ImageReadings | Sequence[ImageReadings]],
) -> dict[str, list[np.ndarray]]:
    """Both fidelities of each subject, over one run of it or several."""
    groups = [[one] if isinstance(one, ImageReadings) else one for one in seen]
    return {
        "subject": _joined([each.subject for each in group] for group in groups),
        "prompt": _joined([each.prompt for each in group] for group in groups),
    }


def entry(
    study: str, tables: Sequence[Arms], cells: list[dict[str, Any]], notes: list[str]
) -> dict[str, Any]:
    """A study's results.

    Args:
        tables: values by arm, the claims' own first.
        cells: groups of pictures.
        notes: sentences.
    """
    return {
        "tables": [
            {
                arm: {
                    metric: dataclasses.asdict(scores.summarise(values))
                    for metric, values in metrics.items()
                }
                for arm, metrics in arms.items()
            }
            for arms in tables
            if arms
        ],
        "claims": claims.judged(study, tables[0]),
        "pictures": cells,
        "notes": notes,
    }
