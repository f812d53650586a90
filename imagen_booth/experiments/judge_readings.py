"""The pictures that the studies are about, and what the judge reads in them."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from etils import epath

from imagen_booth.data import image_files, photos
from imagen_booth.evaluation import scores, toybox_judge
from imagen_booth.evaluation.toybox_judge import answers
from imagen_booth.experiments import plan
from imagen_booth.experiments.image_store import ImageStore
from imagen_booth.experiments.plan import Run
from imagen_booth.toybox.captions import parse
from imagen_booth.toybox.renderer import render
from imagen_booth.toybox.subjects import ToyboxSubject, truth_scene
from imagen_booth.training.subject_photos import TOYBOX_PHOTO_SIZE, TOYBOX_PHOTOS

PICTURES = 4  # per prompt, as in the paper
CLASS_PICTURES = 16  # of "a dog", for PRES
SCENES = ("a [V] [N] in the jungle", "a [V] [N] in a meadow")  # of "sr"
TAKES = 2  # of each
JUDGED_SIZE = 64  # pixels of renders that only the judge sees
WHITE = (255, 255, 255)  # beside a padded photo, which a render never is


@dataclasses.dataclass(frozen=True)
class ImageReadings:
    """Pictures of a subject for the applications' prompts, drawn or rendered.

    Attributes:
        files, templates: N, in the order of prompts, then seeds.
        looks: the judge's, [N, D].
        subject: f64 [N] mean cosine of each picture to the photos.
        prompt: f64 [N] share of the words asked of each that it shows.
    """

    files: list[epath.Path]
    templates: list[str]
    looks: np.ndarray
    subject: np.ndarray
    prompt: np.ndarray

    def diversity(self) -> np.ndarray:
        """DIV of each prompt, over its pictures."""
        of = np.array(self.templates)
        alike = [self.looks[of == each] for each in dict.fromkeys(self.templates)]
        return np.array([toybox_judge.diversity(looks) for looks in alike])


class RunReadings:
    """Draws, renders and reads pictures; what is there already is found again.

    Args:
        reader: reads the pictures.
        templates: the applications' prompts.
    """

    def __init__(
        self, studio: ImageStore, reader: toybox_judge.Judge, templates: Sequence[str]
    ):
        self.studio, self.reader, self.templates = studio, reader, templates
        # Studies share arms, and arms subjects.
        self.photos = functools.cache(self._photos)
        self.seen = functools.cache(self._seen)
        self.true = functools.cache(self._true)
        self.of_class = functools.cache(self._of_class)

    def read(self, files: Sequence[epath.Path]) -> toybox_judge.Readings:
        """What the judge sees in some files."""
        return self.reader.read([image_files.load_png(file) for file in files])

    def photo_files(self, subject: ToyboxSubject) -> list[epath.Path]:
        """All photos of a subject, also where a run used fewer."""
        folder = plan.photo_folder(self.studio.folder, subject, TOYBOX_PHOTOS)
        return [folder / f"{index:02d}.png" for index in range(TOYBOX_PHOTOS)]

    def _photos(self, subject: ToyboxSubject) -> np.ndarray:
        """The judge's embeddings of all photos, [M, E]."""
        return self.read(self.photo_files(subject)).subjects

    def _seen(self, run: Run) -> ImageReadings:
        """What a run draws for the applications' prompts."""
        requests = self.studio.requests(self.templates, range(PICTURES), run.name)
        ready = self.studio.ready("base", run.name)
        learned = self.studio.learned(run.name)
        name = f"subject/{run.name}"
        files = self.studio.draw(name, ready, requests, learned=learned)
        return self._looked_at(files, run.subject)

    def _true(self, subject: ToyboxSubject) -> ImageReadings:
        """True pictures for the same prompts."""
        folder = self.studio.folder / "truth" / plan.run_name(subject)
        files = []
        for template in self.templates:
            for take in range(PICTURES):
                name = template.replace("[V] [N]", "subject").replace(" ", "_")
                name = f"{name}_{take}.png"
                files.append(folder / str(JUDGED_SIZE) / name)
                if not files[-1].exists():
                    image = _rendered(subject, template, take, JUDGED_SIZE)
                    image_files.save_png(files[-1], image)
        return self._looked_at(files, subject)

    def _looked_at(
        self, files: list[epath.Path], subject: ToyboxSubject
    ) -> ImageReadings:
        templates = [each for each in self.templates for _ in range(PICTURES)]
        readings = self.read(files)
        prompt = []
        for index, template in enumerate(templates):
            wanted = parse(template.replace("[N]", subject.noun))
            prompt.append(np.mean(list(answers(readings, index, wanted).values())))
        likeness = scores.fidelity(readings.subjects, self.photos(subject))
        return ImageReadings(
            files, templates, readings.looks, likeness, np.array(prompt)
        )

    def _of_class(
        self, subject: ToyboxSubject, run: str = ""
    ) -> tuple[list[epath.Path], np.ndarray]:
        """Pictures of "a dog", and how like the subject's photos each is, f64 [N].

        Args:
            run: which tuned model draws; "" for the untuned one, from the same noise.
        """
        seeds = range(CLASS_PICTURES)
        requests = self.studio.requests(["a [N]"], seeds, "", subject.noun)
        name = f"class/{run or f'{plan.UNTUNED}_{subject.noun}'}"
        files = self.studio.draw(name, self.studio.ready("base", run), requests)
        readings = self.read(files)
        return files, scores.fidelity(readings.subjects, self.photos(subject))

    def large(self, run: Run, templates: Sequence[str]) -> list[tuple[str, epath.Path]]:
        """One picture of a run per prompt through all stages, under its words.

        The upper stages are those that "sr" tuned for the subject, if it is done.
        """
        drawn = dict(zip(self.templates, self.seen(run).files[::PICTURES], strict=True))
        files = [drawn[template] for template in templates]
        other = plan.run_name(run.subject, plan.SR_LOW)
        tuned = other if self.studio.manifest(other).get("status") == "done" else ""
        requests = self.studio.requests(templates, [0], run.name)
        for stage in self.studio.cascade.stages[1:]:
            lows = [image_files.load_png(file) for file in files]
            name = f"large/{run.name}/{stage.resolution}"
            ready = self.studio.ready(stage.name, tuned)
            files = self.studio.draw(name, ready, requests, lows)
        return [(each.prompt, file) for each, file in zip(requests, files, strict=True)]

    def scenes(self, subject: ToyboxSubject, size: int) -> list[epath.Path]:
        """True pictures of ``SCENES`` at a size, made as photos are for training."""
        folder = self.studio.folder / "scenes" / plan.run_name(subject)
        takes = [(scene, take) for scene in SCENES for take in range(TAKES)]
        files = [folder / str(size) / f"{i:02d}.png" for i in range(len(takes))]
        if not files[-1].exists():
            for file, (scene, take) in zip(files, takes, strict=True):
                whole = folder / str(TOYBOX_PHOTO_SIZE) / file.name
                if not whole.exists():
                    image_files.save_png(
                        whole, _rendered(subject, scene, take, TOYBOX_PHOTO_SIZE)
                    )
                if size != TOYBOX_PHOTO_SIZE:
                    image = photos.square(
                        image_files.load_png(whole), size, photos.Crop(), WHITE
                    )
                    image_files.save_png(file, image)
        return files

    def enlarged(
        self, run: Run, stage: str, low: int, size: int, tuned: bool
    ) -> tuple[list[epath.Path], list[tuple[np.ndarray, np.ndarray]]]:
        """``SCENES`` as an upper stage makes them from the true picture below it.

        Args:
            stage: its name.
            low, size: pixels of what it is given and of what it makes.
            tuned: as the run tuned it; else as it came.

        Returns:
            Files, and for each its picture and the truth.
        """
        subject = run.subject
        of = run.name if tuned else ""
        requests = self.studio.requests(SCENES, range(TAKES), of, subject.noun)
        lows = [image_files.load_png(file) for file in self.scenes(subject, low)]
        name = f"sr/{of or plan.run_name(subject, plan.UNTUNED)}/{size}"
        files = self.studio.draw(name, self.studio.ready(stage, of), requests, lows)
        truths = self.scenes(subject, size)
        pairs = [
            (image_files.load_png(file), image_files.load_png(truth))
            for file, truth in zip(files, truths, strict=True)
        ]
        return files, pairs


def _rendered(
    subject: ToyboxSubject, template: str, take: int, size: int
) -> np.ndarray:
    scene = truth_scene(subject, template.replace("[N]", subject.noun), take)
    return render([scene], size)[0]
