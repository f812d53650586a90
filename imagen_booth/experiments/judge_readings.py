"""The pictures of every run and subject, and what the toybox judge reads in them."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from etils import epath

from imagen_booth.data import image_files, photos
from imagen_booth.evaluation import scores, toybox_judge
from imagen_booth.experiments import plan
from imagen_booth.experiments.image_store import ImageStore
from imagen_booth.experiments.plan import Run
from imagen_booth.toybox.captions import parse
from imagen_booth.toybox.renderer import render
from imagen_booth.toybox.subjects import ToyboxSubject, truth_scene
from imagen_booth.training.subject_photos import TOYBOX_PHOTO_SIZE, TOYBOX_PHOTOS

PICTURES = 4  # pictures per prompt, as in the paper
CLASS_PICTURES = 16  # pictures of "a dog", for PRES
SCENES = ("a [V] [N] in the jungle", "a [V] [N] in a meadow")  # prompts of "sr"
TAKES = 2  # pictures of each scene
JUDGED_SIZE = 64  # pixels of renders that only the judge sees
WHITE = (255, 255, 255)  # fills photos that are padded to squares; no render is


@dataclasses.dataclass(frozen=True)
class ImageReadings:
    """N pictures of a subject for the applications' prompts, and their scores.

    Attributes:
        files: The N pictures, in the order of prompts, then seeds.
        templates: The prompt template of each picture.
        looks: The judge's descriptions of the pictures, [N, D].
        subject: f64 [N], mean cosine of each picture's subject to those of the photos.
        prompt: f64 [N], the share of the words of its prompt that a picture shows.
    """

    files: list[epath.Path]
    templates: list[str]
    looks: np.ndarray
    subject: np.ndarray
    prompt: np.ndarray

    def diversity(self) -> np.ndarray:
        """DIV of the pictures of each prompt."""
        templates = np.array(self.templates)
        groups = [self.looks[templates == each] for each in dict.fromkeys(templates)]
        return np.array([toybox_judge.diversity(looks) for looks in groups])


class RunReadings:
    """Samples or renders pictures on demand, and lets the judge read them.

    Args:
        store: Samples the pictures.
        judge: Reads the pictures.
        templates: Prompt templates of the applications.
    """

    def __init__(
        self, store: ImageStore, judge: toybox_judge.Judge, templates: Sequence[str]
    ):
        self.store, self.judge, self.templates = store, judge, templates
        # Studies share arms, and arms share subjects.
        self.photo_embeddings = functools.cache(self._photo_embeddings)
        self.generated = functools.cache(self._generated)
        self.true_renders = functools.cache(self._true_renders)
        self.class_pictures = functools.cache(self._class_pictures)

    def read(self, files: Sequence[epath.Path]) -> toybox_judge.Readings:
        """The judge's readings of some files."""
        return self.judge.read([image_files.load_png(file) for file in files])

    def photo_files(self, subject: ToyboxSubject) -> list[epath.Path]:
        """All photos of a subject, even where a run uses fewer."""
        folder = plan.photo_folder(self.store.folder, subject, TOYBOX_PHOTOS)
        return [folder / f"{index:02d}.png" for index in range(TOYBOX_PHOTOS)]

    def _photo_embeddings(self, subject: ToyboxSubject) -> np.ndarray:
        """The judge's subject embeddings of all photos, [M, E]."""
        return self.read(self.photo_files(subject)).subjects

    def _generated(self, run: Run) -> ImageReadings:
        """Pictures that a run generates for the applications' prompts."""
        files = self.store.sample(
            f"subject/{run.name}",
            self.store.load_stage("base", run.name),
            self.store.requests(self.templates, range(PICTURES), run.name),
            learned=self.store.learned_embedding(run.name),
        )
        return self._readings(files, run.subject)

    def _true_renders(self, subject: ToyboxSubject) -> ImageReadings:
        """Renders of the subject for the same prompts."""
        folder = self.store.folder / "truth" / plan.run_name(subject)
        files = []
        for template in self.templates:
            for take in range(PICTURES):
                name = template.replace("[V] [N]", "subject").replace(" ", "_")
                file = folder / str(JUDGED_SIZE) / f"{name}_{take}.png"
                files.append(file)
                if not file.exists():
                    image = _render(subject, template, take, JUDGED_SIZE)
                    image_files.save_png(file, image)
        return self._readings(files, subject)

    def _readings(
        self, files: list[epath.Path], subject: ToyboxSubject
    ) -> ImageReadings:
        templates = [each for each in self.templates for _ in range(PICTURES)]
        readings = self.read(files)
        shares = []
        for index, template in enumerate(templates):
            wanted = parse(template.replace("[N]", subject.noun))
            answers = toybox_judge.answers(readings, index, wanted)
            shares.append(np.mean(list(answers.values())))
        return ImageReadings(
            files=files,
            templates=templates,
            looks=readings.looks,
            subject=scores.fidelity(readings.subjects, self.photo_embeddings(subject)),
            prompt=np.array(shares),
        )

    def _class_pictures(
        self, subject: ToyboxSubject, run: str = ""
    ) -> tuple[list[epath.Path], np.ndarray]:
        """Pictures of the class alone, such as "a dog", and their scores for PRES.

        Args:
            run: The run whose base stage samples; "" for the pretrained stage, which
                starts from the same noise.

        Returns:
            N files, and f64 [N], the mean cosine of each to the subject's photos.
        """
        numbers = range(CLASS_PICTURES)
        requests = self.store.requests(["a [N]"], numbers, "", subject.noun)
        name = f"class/{run or f'{plan.UNTUNED}_{subject.noun}'}"
        stage = self.store.load_stage("base", run)
        files = self.store.sample(name, stage, requests)
        embeddings = self.read(files).subjects
        return files, scores.fidelity(embeddings, self.photo_embeddings(subject))

    def large(self, run: Run, templates: Sequence[str]) -> list[tuple[str, epath.Path]]:
        """One picture of a run per template by all stages, with its prompt.

        The super-resolution stages are those that the study "sr" fine-tuned for the
        subject, if it is done; else the pretrained ones.
        """
        first = self.generated(run).files[::PICTURES]
        by_template = dict(zip(self.templates, first, strict=True))
        files = [by_template[template] for template in templates]
        sr_run = plan.run_name(run.subject, plan.SR_LOW)
        if self.store.manifest(sr_run).get("status") != "done":
            sr_run = ""
        requests = self.store.requests(templates, [0], run.name)
        for stage in self.store.cascade.stages[1:]:
            low_images = [image_files.load_png(file) for file in files]
            name = f"large/{run.name}/{stage.resolution}"
            loaded = self.store.load_stage(stage.name, sr_run)
            files = self.store.sample(name, loaded, requests, low_images)
        return [(each.prompt, file) for each, file in zip(requests, files, strict=True)]

    def true_scenes(self, subject: ToyboxSubject, size: int) -> list[epath.Path]:
        """Renders of ``SCENES``, reduced to ``size`` pixels as training reduces photos.

        They are rendered at the size of photos.
        """
        folder = self.store.folder / "scenes" / plan.run_name(subject)
        takes = [(scene, take) for scene in SCENES for take in range(TAKES)]
        files = [folder / str(size) / f"{i:02d}.png" for i in range(len(takes))]
        if files[-1].exists():
            return files
        for file, (scene, take) in zip(files, takes, strict=True):
            full = folder / str(TOYBOX_PHOTO_SIZE) / file.name
            if not full.exists():
                image = _render(subject, scene, take, TOYBOX_PHOTO_SIZE)
                image_files.save_png(full, image)
            if size != TOYBOX_PHOTO_SIZE:
                image = image_files.load_png(full)
                image = photos.square(image, size, photos.Crop(), WHITE)
                image_files.save_png(file, image)
        return files

    def enlarged(
        self, run: Run, stage: str, low: int, size: int, tuned: bool
    ) -> tuple[list[epath.Path], list[tuple[np.ndarray, np.ndarray]]]:
        """``SCENES`` as a super-resolution stage enlarges their renders.

        Args:
            stage: Name of the stage.
            low: Side of the renders that the stage is given, in pixels.
            size: Side of the pictures that it makes, in pixels.
            tuned: Whether the stage is that of the run; else the pretrained one.

        Returns:
            Files, and for each its picture and the true render.
        """
        subject = run.subject
        sr_run = run.name if tuned else ""
        low_images = [
            image_files.load_png(file) for file in self.true_scenes(subject, low)
        ]
        files = self.store.sample(
            f"sr/{sr_run or plan.run_name(subject, plan.UNTUNED)}/{size}",
            self.store.load_stage(stage, sr_run),
            self.store.requests(SCENES, range(TAKES), sr_run, subject.noun),
            low_images,
        )
        pairs = [
            (image_files.load_png(file), image_files.load_png(truth))
            for file, truth in zip(files, self.true_scenes(subject, size), strict=True)
        ]
        return files, pairs


def _render(subject: ToyboxSubject, template: str, take: int, size: int) -> np.ndarray:
    scene = truth_scene(subject, template.replace("[N]", subject.noun), take)
    return render([scene], size)[0]
