"""The studies from plan to page, one by one; what is there is not done again."""

import json
import logging
from collections.abc import Collection
from typing import Any

from etils import epath

from imagen_booth import dreambooth, storage
from imagen_booth.config.schema import Job, TextualInversion
from imagen_booth.data import image_files
from imagen_booth.evaluation import toybox_judge
from imagen_booth.experiments import cost, plan, report
from imagen_booth.experiments.image_store import ImageStore
from imagen_booth.experiments.measure import Measurements
from imagen_booth.experiments.plan import Run, StudySize
from imagen_booth.rundir.layout import utc_now
from imagen_booth.toybox import subjects as toys
from imagen_booth.training.subject_photos import TOYBOX_PHOTO_SIZE
from imagen_booth.weights.load import shipped_vocabulary

log = logging.getLogger(__name__)


def run_studies(
    job: Job,
    folder: epath.Path,
    names: Collection[str],
    extent: StudySize,
    text: TextualInversion,
) -> epath.Path:
    """Says what is to be done; then, study by study, runs, measures, and shows it.

    Args:
        job: the default job of a cascade.
        folder: gets ``runs/``, pictures, ``results.json`` and the page; studies that
            were measured there before, of the same weights, stay on it.
        names: of studies.
        extent: how many subjects, seeds and counts of photos.
        text: how Textual Inversion learns on this cascade.

    Returns:
        Path of the page.

    Raises:
        InputError: no judge, no such study, or runs there of other settings.
        Stopped: a signal came; the same command goes on from there.
    """
    plan.check(names)
    studio = ImageStore(job, folder)
    studies = plan.plan(job, studio.cascade, folder, names, extent, text)
    reader = toybox_judge.load()  # before hours are spent
    runs = plan.distinct(studies)
    to_do = [run for run in runs if not studio.finished(run.name, run.job)]
    waiting = {run.name for run in to_do}
    done = {run.name for run in runs} - waiting
    lab = Measurements(studio, reader, shipped_vocabulary(studio.cascade))
    speed, drawn = cost.rate(studio), lab.pictures_per_run()
    log.info("%s", cost.table(studio, studies, done, speed, drawn))
    results = _results(studio, reader)
    for study in studies:
        its = plan.distinct([study])
        for run in its:
            if run.name in waiting:
                number = len(to_do) - len(waiting) + 1
                log.info("run %d of %d: %s", number, len(to_do), run.name)
                render_photos(folder, run)
                dreambooth.run(run.job, studio.run_folder(run.name), frozenset())
                waiting.remove(run.name)
        log.info("measuring %s", study.name)
        shown = [run.subject for run in its]
        results["studies"][study.name] = lab.measure(study) | {
            "subjects": list(dict.fromkeys(f"{s.noun} {s.seed}" for s in shown)),
            "measured": utc_now(),
        }
        found = json.dumps(results, indent=1)
        storage.write_atomic(folder / "results.json", found.encode())
        report.write(folder, results)
    return folder / report.NAME


def render_photos(folder: epath.Path, run: Run) -> None:
    """The photos of a run's subject, once for all its runs."""
    place = plan.photo_folder(folder, run.subject, run.photos)
    if (place / f"{run.photos - 1:02d}.png").exists():
        return
    images = toys.photos(run.subject, run.photos, size=TOYBOX_PHOTO_SIZE)
    for index, image in enumerate(images):
        image_files.save_png(place / f"{index:02d}.png", image)


def _results(studio: ImageStore, reader: toybox_judge.Judge) -> dict[str, Any]:
    """Earlier results of the same weights and judge, or none."""
    about = {
        "cascade": studio.cascade.name,
        "weights": studio.origins,
        "judge": reader.manifest,
    }
    about = json.loads(json.dumps(about, default=str))
    file = studio.folder / "results.json"
    if file.exists():
        found = json.loads(file.read_text())
        if {name: found.get(name) for name in about} == about:
            return found
    return about | {"studies": {}}
