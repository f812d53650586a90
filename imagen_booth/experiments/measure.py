"""The scores of every arm, from the judge and from true renders."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from imagen_booth.data import image_files
from imagen_booth.evaluation import scores, toybox_judge
from imagen_booth.experiments import claims, cost, judge_readings, plan
from imagen_booth.experiments.image_store import ImageStore
from imagen_booth.experiments.judge_readings import ImageReadings, RunReadings
from imagen_booth.experiments.plan import APPLICATIONS, Run, Study
from imagen_booth.toybox.coverage import held_out_captions
from imagen_booth.toybox.subjects import ToyboxSubject

Arms = dict[str, dict[str, list[np.ndarray]]]  # arm -> metric -> values per subject

HELD_OUT = 40  # captions of "vanilla"
SHOWN = 8  # pictures of a class in a row of the page
SHOWN_SUBJECTS = 3
CROP = 256  # pixels shown of a larger picture


class Measurements:
    """Measures studies whose runs are finished.

    Args:
        store: Samples the pictures.
        judge: Reads the pictures.
        vocabulary: Words that the prior knows, as ``coverage.beyond`` takes them.
    """

    def __init__(
        self,
        store: ImageStore,
        judge: toybox_judge.Judge,
        vocabulary: Mapping[str, Sequence[str]],
    ):
        self.store, self.vocabulary = store, vocabulary
        self.prompts = plan.known_prompts(vocabulary)
        self.templates = [each for some in self.prompts.values() for each in some]
        self.readings = RunReadings(store, judge, self.templates)

    def pictures_per_run(self) -> int:
        """The most pictures that measuring a run samples with its base stage."""
        prompts = len(self.templates) * judge_readings.PICTURES
        return prompts + judge_readings.CLASS_PICTURES

    def measure(self, study: Study) -> dict[str, Any]:
        """The entry of a study in ``results.json``.

        Returns:
            ``tables``: scores by arm and metric; ``claims``: see ``claims.verdicts``;
            ``pictures``: captions, each with the files shown side by side;
            ``notes``: sentences; ``drift``, of some studies: PRES and subject fidelity
            by arm and subject.
        """
        special = {
            "vanilla": self._vanilla,
            "fidelity": self._fidelity,
            "baselines": self._four_scores,
            "prior": self._prior,
            "prior_source": self._prior_sources,
            "adapters": self._adapters,
            "sampler": self._four_scores,
            "sr": self._super_resolution,
        }
        return special.get(study.name, self._two_scores)(study)

    def _vanilla(self, study: Study) -> dict[str, Any]:
        """The pretrained cascade on captions that pretraining held out."""
        asked = held_out_captions(HELD_OUT, self.vocabulary)
        captions, wanted = zip(*asked, strict=True)
        each = judge_readings.PICTURES
        # All pictures have different noise: with shared noise, one odd shape would
        # count once per caption.
        numbers = [range(each * i, each * (i + 1)) for i in range(len(captions))]
        requests = [
            request
            for caption, some in zip(captions, numbers, strict=True)
            for request in self.store.requests([caption], some)
        ]
        stage = self.store.load_stage("base")
        files = self.store.sample("vanilla", stage, requests)
        readings = self.readings.read(files)
        right: dict[str, list[list[bool]]] = {}  # attribute -> answers per caption
        for some, attributes in zip(numbers, wanted, strict=True):
            answers = [toybox_judge.answers(readings, n, attributes) for n in some]
            for name in answers[0]:
                right.setdefault(name, []).append([one[name] for one in answers])
            right.setdefault("all", []).append([all(one.values()) for one in answers])
        found = {name: scores.summarise(values) for name, values in right.items()}
        first = [image_files.load_png(file) for file in files[::each]]
        sheet = files[0].parent / "first_of_each.png"
        shown = image_files.contact_sheet(first, captions, columns=6, cell=192)
        image_files.save_png(sheet, shown)
        return {
            "tables": [{n: {"right": dataclasses.asdict(found[n])} for n in found}],
            "claims": [
                claims.target("The class is right in 90 %.", found["noun"], 0.90),
                claims.target("The context is right in 85 %.", found["context"], 0.85),
            ],
            "pictures": [self._cell("the first picture of each caption", [sheet])],
            "notes": [],
        }

    def _fidelity(self, study: Study) -> dict[str, Any]:
        """Subject and prompt fidelity, beside those of true renders."""
        runs = study.arms[plan.TUNED]
        subjects = [run.subject for run in runs]
        tuned = _fidelities([self.readings.generated(run)] for run in runs)
        truth = _fidelities([self.readings.true_renders(one)] for one in subjects)
        photos = [self.readings.photo_embeddings(one) for one in subjects]
        arms: Arms = {
            "photos": {"subject": [np.array([scores.among(p).mean()]) for p in photos]},
            "truth": truth,
            plan.TUNED: tuned,
            plan.UNTUNED: {
                "subject": [self.readings.class_pictures(one)[1] for one in subjects]
            },
        }
        by_application: Arms = {}
        for name, templates in self.prompts.items():
            chosen = np.isin(self.readings.generated(runs[0]).templates, templates)
            if chosen.any():
                by_application[name] = {
                    f"{kind}{metric}": [values[chosen] for values in arm[metric]]
                    for metric in ("subject", "prompt")
                    for kind, arm in (("", tuned), ("true_", truth))
                }
        cells, notes = self._fidelity_cells(runs), self._prompt_notes()
        return entry(study.name, [arms, by_application], cells, notes)

    def _fidelity_cells(self, runs: Sequence[Run]) -> list[dict[str, Any]]:
        templates = [some[0] for some in self.prompts.values() if some]
        large = self.readings.large(runs[0], templates)
        cells = [self._cell(prompt, [file]) for prompt, file in large]
        for run in runs[:SHOWN_SUBJECTS]:
            name = _title(run.subject)
            cells.append(self._photos(run.subject))
            for label, readings in (
                ("generated", self.readings.generated(run)),
                ("true", self.readings.true_renders(run.subject)),
            ):
                cells.append(self._cell(f"{name}, {label}", _first(readings)))
        return cells

    def _prompt_notes(self) -> list[str]:
        notes = [f"The prompts: {'; '.join(self.templates)}."]
        asked = [prompt for prompts in APPLICATIONS.values() for prompt in prompts]
        unknown = [prompt for prompt in asked if prompt not in self.templates]
        if unknown:
            notes.append(
                "Left out, because the prior was not trained on their words: "
                f"{'; '.join(unknown)}."
            )
        return notes

    def _prior(self, study: Study) -> dict[str, Any]:
        """PRES, DIV, both fidelities, and pictures of the class before and after."""
        arms: Arms = {name: self._all_four(runs) for name, runs in study.arms.items()}
        shown = [
            runs
            for runs in zip(*study.arms.values(), strict=True)
            if runs[0].job.seed == 0
        ]
        before = [self.readings.class_pictures(run.subject)[1] for run, *_ in shown]
        arms[plan.UNTUNED] = {"pres": before}
        cells = []
        for runs in shown[:SHOWN_SUBJECTS]:
            subject = runs[0].subject
            cells.append(self._photos(subject))
            names = {plan.UNTUNED: ""} | {
                arm: run.name for arm, run in zip(study.arms, runs, strict=True)
            }
            for label, name in names.items():
                files = self.readings.class_pictures(subject, name)[0][:SHOWN]
                cells.append(self._cell(f"“a {subject.noun}”, {label}", files))
        return entry(study.name, [arms], cells, [])

    def _all_four(self, runs: Sequence[Run]) -> dict[str, list[np.ndarray]]:
        """Both fidelities, PRES and DIV of an arm."""

        def pres(run: Run) -> np.ndarray:
            # Without fine-tuning, the base stage is the pretrained one.
            name = run.name if run.job.base.steps else ""
            return self.readings.class_pictures(run.subject, name)[1]

        def div(run: Run) -> np.ndarray:
            return self.readings.generated(run).diversity()

        return _fidelities(_by_subject(runs, self.readings.generated)) | {
            "pres": _joined(_by_subject(runs, pres)),
            "div": _joined(_by_subject(runs, div)),
        }

    def _four_scores(self, study: Study) -> dict[str, Any]:
        """All four scores of every arm, their plot, and one picture of each prompt."""
        arms = {name: self._all_four(runs) for name, runs in study.arms.items()}
        cells = []
        for runs in list(zip(*study.arms.values(), strict=True))[:SHOWN_SUBJECTS]:
            subject = runs[0].subject
            cells.append(self._photos(subject))
            for arm, run in zip(study.arms, runs, strict=True):
                files = _first(self.readings.generated(run))
                cells.append(self._cell(f"{_title(subject)}, {arm}", files))
        notes = []
        if plan.DESCRIBED in study.arms:
            described = study.arms[plan.DESCRIBED]
            words = dict.fromkeys(run.job.subject.description for run in described)
            notes.append(f"The descriptions: {', '.join(words)}.")
        found = entry(study.name, [arms], cells, notes)
        return found | {"drift": _drift(study, arms)}

    def _prior_sources(self, study: Study) -> dict[str, Any]:
        """All four scores of every arm, its seconds, and one picture of each prompt."""
        found = self._four_scores(study)
        [table] = found["tables"]
        # Runs of one noun and seed share class images: the longest time is that of the
        # run that sampled them.
        shared: dict[tuple[str, int], float] = {}
        for run in plan.distinct_runs([study]):
            key = run.subject.noun, run.job.seed
            seconds = self.store.manifest(run.name)["timings"]
            shared[key] = max(shared.get(key, 0.0), seconds.get("class images", 0.0))

        def seconds(run: Run) -> np.ndarray:
            key = run.subject.noun, run.job.seed
            images = shared[key] if run.job.uses_class_images("base") else 0.0
            timings = self.store.manifest(run.name)["timings"]
            return np.array([images + timings["tuning base"]])

        for arm, runs in study.arms.items():
            values = _joined(_by_subject(runs, seconds))
            table[arm]["seconds"] = dataclasses.asdict(scores.summarise(values))
        found["notes"].append(
            "Seconds include compiling. Class images that runs share count in each."
        )
        return found

    def _adapters(self, study: Study) -> dict[str, Any]:
        """All four scores of every arm, and what it costs in time, memory and bytes."""
        found = self._four_scores(study)
        [table] = found["tables"]
        for arm, runs in study.arms.items():
            seconds = [
                np.array([self.store.manifest(run.name)["timings"]["tuning base"]])
                for run in runs
            ]
            table[arm]["seconds_tuning"] = dataclasses.asdict(scores.summarise(seconds))
            costs = cost.training_memory(self.store, runs[0].job)
            for metric, value in zip(("memory", "export"), costs, strict=True):
                one = scores.summarise([np.array([value])])
                table[arm][metric] = dataclasses.asdict(one)
        found["notes"].append(
            "Seconds include compiling. Memory is the compiler's peak of a step on "
            "this machine. An export has two bytes for each parameter that trains."
        )
        return found

    def _two_scores(self, study: Study) -> dict[str, Any]:
        """Both fidelities of every arm."""
        arms, cells = {}, []
        for name, runs in study.arms.items():
            arms[name] = _fidelities([self.readings.generated(run)] for run in runs)
            files = _first(self.readings.generated(runs[0]))
            cells.append(self._cell(f"{_title(runs[0].subject)}, {name}", files))
        return entry(study.name, [arms], cells, [])

    def _super_resolution(self, study: Study) -> dict[str, Any]:
        """Each super-resolution stage on true renders, compared with true renders."""
        arms: Arms = {}
        cells = []
        for stage in self.store.cascade.stages[1:]:
            low, size = stage.low_resolution or 0, stage.resolution
            for arm, runs in {plan.UNTUNED: (), **study.arms}.items():
                found = [
                    self.readings.enlarged(run, stage.name, low, size, bool(runs))
                    for run in runs or study.arms[plan.LOW]
                ]
                metrics = arms.setdefault(arm, {})
                for name, metric in (
                    ("error", high_frequency_error),
                    ("amount", high_frequency_ratio),
                ):
                    metrics[f"{name}_{size}"] = [
                        np.array([metric(*pair) for pair in pairs])
                        for _, pairs in found
                    ]
                cells.append(self._cell(f"{size} px, {arm}", found[0][0][:1], CROP))
            subject = study.arms[plan.LOW][0].subject
            truth = self.readings.true_scenes(subject, size)[:1]
            cells.append(self._cell(f"{size} px, true", truth, CROP))
        scenes = len(judge_readings.SCENES) * judge_readings.TAKES
        notes = [
            f"{scenes} new scenes of each subject. High-frequency error is the root "
            "mean square, in grey levels of 255, of the difference between the "
            "Laplacians of a picture and of the truth. Detail is the strength of the "
            "picture's Laplacian over the truth's: below 1 the picture is blurred, "
            "above 1 it has invented detail.",
            "The input of each stage is the true picture at its lower size.",
        ]
        return entry(study.name, [arms], cells, notes)

    def _photos(self, subject: ToyboxSubject) -> dict[str, Any]:
        files = self.readings.photo_files(subject)
        return self._cell(f"photos of {_title(subject)}", files)

    def _cell(
        self, caption: str, files: Sequence[epath.Path], crop: int = 0
    ) -> dict[str, Any]:
        """Pictures side by side on the page, cropped to ``crop`` pixels where not 0."""
        names = [str(file.relative_to(self.store.folder)) for file in files]
        return {"caption": caption, "files": names, "crop": crop}


def laplacian(picture: np.ndarray) -> np.ndarray:
    """The high frequencies of a picture: 4 times a pixel minus its four neighbours.

    A wave of w radians per pixel along a row or column passes with gain 2 - 2 cos w,
    so slow shades vanish and edges and texture remain. Borders are left out.

    Args:
        picture: uint8 [H, W, 3].

    Returns:
        f64 [H - 2, W - 2, 3], in grey levels of 255.
    """
    x = picture.astype(np.float64)
    neighbours = x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:]
    return 4 * x[1:-1, 1:-1] - neighbours


def high_frequency_error(picture: np.ndarray, truth: np.ndarray) -> float:
    """Root mean square difference of the Laplacians of two pictures; lower is better.

    Args:
        picture, truth: uint8 [H, W, 3].
    """
    return _root_mean_square(laplacian(picture) - laplacian(truth))


def high_frequency_ratio(picture: np.ndarray, truth: np.ndarray) -> float:
    """Strength of a picture's Laplacian over the truth's; below 1 it is blurred.

    Args:
        picture, truth: uint8 [H, W, 3].
    """
    strength = _root_mean_square(laplacian(truth))
    return _root_mean_square(laplacian(picture)) / max(strength, 1e-9)


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _drift(study: Study, arms: Arms) -> dict[str, dict[str, tuple[float, float]]]:
    """By arm and subject: PRES and subject fidelity, where below 0 as 0."""
    names = dict.fromkeys(
        _title(run.subject) for runs in study.arms.values() for run in runs
    )
    return {
        arm: {
            name: (max(float(pres.mean()), 0.0), max(float(subject.mean()), 0.0))
            for name, pres, subject in zip(
                names, metrics["pres"], metrics["subject"], strict=True
            )
        }
        for arm, metrics in arms.items()
    }


def _title(subject: ToyboxSubject) -> str:
    return f"{subject.noun} {subject.seed}"


def _first(readings: ImageReadings) -> list[epath.Path]:
    """The first picture of each prompt."""
    return readings.files[:: judge_readings.PICTURES]


def _by_subject(runs: Iterable[Run], value: Callable[[Run], Any]) -> list[list[Any]]:
    """Values of runs, grouped by subject."""
    groups: dict[ToyboxSubject, list[Any]] = {}
    for run in runs:
        groups.setdefault(run.subject, []).append(value(run))
    return list(groups.values())


def _joined(groups: Iterable[Sequence[np.ndarray]]) -> list[np.ndarray]:
    return [np.concatenate(group) for group in groups]


def _fidelities(
    readings: Iterable[Sequence[ImageReadings]],
) -> dict[str, list[np.ndarray]]:
    """Both fidelities of each subject, over all readings of the subject."""
    groups = list(readings)
    return {
        "subject": _joined([each.subject for each in group] for group in groups),
        "prompt": _joined([each.prompt for each in group] for group in groups),
    }


def entry(
    study: str, tables: Sequence[Arms], cells: list[dict[str, Any]], notes: list[str]
) -> dict[str, Any]:
    """The results of a study, as ``Measurements.measure`` returns them.

    Args:
        study: Name of the study.
        tables: Values by arm. The claims are about the first table.
        cells: Groups of pictures.
        notes: Sentences.
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
        "claims": claims.verdicts(study, tables[0]),
        "pictures": cells,
        "notes": notes,
    }
