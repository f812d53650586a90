"""Runs and measures the studies, one by one, and skips what is already done."""

import json
import logging
from collections.abc import Collection
from typing import Any

from etils import epath

from imagen_booth import dreambooth, storage
from imagen_booth.config.schema import FineTuning, Job, TextualInversion
from imagen_booth.evaluation import toybox_judge
from imagen_booth.experiments import cost, plan, report
from imagen_booth.experiments.image_store import ImageStore
from imagen_booth.experiments.measure import Measurements
from imagen_booth.experiments.plan import StudySize
from imagen_booth.rundir.layout import utc_now
from imagen_booth.training import subject_photos
from imagen_booth.weights.load import shipped_vocabulary

log = logging.getLogger(__name__)


def run_studies(
    job: Job,
    folder: epath.Path,
    names: Collection[str],
    size: StudySize,
    text: TextualInversion,
    whole: FineTuning,
) -> epath.Path:
    """Logs the cost of the studies, then runs and measures them one by one.

    Args:
        job: Default job of a cascade.
        folder: Folder of ``runs/``, pictures, ``results.json`` and the page. Studies
            that were measured there before with the same weights stay on the page.
        names: Names of studies.
        size: Number of subjects, seeds and photos.
        text: Settings of Textual Inversion on this cascade.
        whole: Settings of its base stage without an adapter.

    Returns:
        Path of the page.

    Raises:
        InputError: There is no judge, a name is not that of a study, or a run in the
            folder has other settings.
        Stopped: A signal arrived; the same command resumes.
    """
    plan.check_names(names)
    store = ImageStore(job, folder)
    studies = plan.plan_studies(job, store.cascade, folder, names, size, text, whole)
    judge = toybox_judge.load()  # fails now rather than after hours
    runs = plan.distinct_runs(studies)
    to_do = [run.name for run in runs if not store.is_finished(run.name, run.job)]
    done = {run.name for run in runs} - set(to_do)
    measurements = Measurements(store, judge, shipped_vocabulary(store.cascade))
    speed, pictures = cost.measure_speed(store), measurements.pictures_per_run()
    log.info("%s", cost.cost_table(store, studies, done, speed, pictures))
    results = _stored_results(store, judge)
    for study in studies:
        runs = plan.distinct_runs([study])
        for run in runs:
            if run.name not in done:
                number = to_do.index(run.name) + 1
                log.info("run %d of %d: %s", number, len(to_do), run.name)
                photos = plan.photo_folder(folder, run.subject, run.photos)
                subject_photos.render_photos(run.subject, photos, run.photos)
                dreambooth.run(run.job, store.run_folder(run.name), frozenset())
                done.add(run.name)
        log.info("measuring %s", study.name)
        subjects = [f"{run.subject.noun} {run.subject.seed}" for run in runs]
        results["studies"][study.name] = measurements.measure(study) | {
            "subjects": list(dict.fromkeys(subjects)),
            "measured": utc_now(),
        }
        text_of_results = json.dumps(results, indent=1)
        storage.write_atomic(folder / "results.json", text_of_results.encode())
        report.write(folder, results)
    return folder / report.NAME


def _stored_results(store: ImageStore, judge: toybox_judge.Judge) -> dict[str, Any]:
    """Earlier results of the same weights and judge; without studies if none."""
    about = {
        "cascade": store.cascade.name,
        "weights": store.origins,
        "judge": judge.manifest,
    }
    about = json.loads(json.dumps(about, default=str))
    file = store.folder / "results.json"
    found = storage.read_json(file, None)
    if found and {name: found.get(name) for name in about} == about:
        return found
    return about | {"studies": {}}
