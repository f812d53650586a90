"""The best step: its rule, and runs that end with it however they were interrupted."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from etils import epath
from interruptions import signal_at
from photo_files import blurred

from imagen_booth import dreambooth, train_state
from imagen_booth.config import build, presets
from imagen_booth.config.schema import Job
from imagen_booth.data import image_files
from imagen_booth.errors import InputError, Stopped
from imagen_booth.rundir import checkpoints
from imagen_booth.sampling import finished_run
from imagen_booth.training import best_checkpoint, previews
from imagen_booth.training.best_checkpoint import BestCheckpoint
from imagen_booth.training.previews import PreviewScores
from imagen_booth.weights import export

STEPS = 4  # of a rate so high that a later step is worse than an earlier one


def measured(subject: float, klass: float) -> PreviewScores:
    """Colour and layout whose mean is what is given."""
    return PreviewScores(
        {"colour": subject + 0.1, "layout": subject - 0.1},
        {"colour": klass, "layout": klass},
    )


@pytest.mark.parametrize(
    ("subject", "klass", "expected"),
    [
        (0.6, 0.2, 0.6),  # the class stays where it was
        (0.6, 0.3, 0.5),  # it moved towards the subject
        (0.6, 0.1, 0.6),  # away from it earns nothing
    ],
)
def test_drift_of_the_class_is_taken_off(subject, klass, expected):
    found = best_checkpoint.score(measured(subject, klass), measured(0.9, 0.2))
    assert found == pytest.approx(expected)


def test_super_resolution_is_scored_by_psnr():
    found, first = (PreviewScores({"PSNR": each}, {}) for each in (31.0, 20.0))
    assert best_checkpoint.score(found, first) == 31.0


def test_the_highest_wins_and_the_earliest_of_equals(tmp_path):
    folder, shown = (epath.Path(tmp_path) / each for each in ("base", "previews"))
    best = BestCheckpoint(folder, shown, latest=None, steps=4)
    for step, value in enumerate((0.9, 0.3, 0.5, 0.5, 0.4)):  # step 0 takes no part
        best.consider(
            step, measured(value, 0.2), {"unet": {"a": np.full(3, float(step))}}
        )
    assert best.summary()["step"] == 2
    assert best.summary()["scores"]["4"] == pytest.approx(0.4)
    np.testing.assert_array_equal(best.params()["unet"]["a"], [2.0] * 3)
    assert len(list((folder / "best").glob("*/params"))) == 1


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    """The base stage alone, looked at after every step."""
    folder = tmp_path_factory.mktemp("photos")
    blurred(np.random.default_rng(3), 4, (80, 80)).save(folder / "0.png")
    settings = presets.dreambooth("tiny")
    settings.subject.photos = str(folder)
    settings.subject.class_noun = "dog"
    settings.cache = str(tmp_path_factory.mktemp("cache"))
    settings.keep = "best"
    settings.base.steps = STEPS
    settings.base.preview_every = 1
    settings.base.class_rows = 0
    settings.base.optim.lr = 0.03
    settings.sr256.steps = settings.sr1024.steps = 0
    settings.pictures.prompts = ("a [V] [N]",)
    return build.to_job(settings)


@pytest.fixture(scope="module")
def finished(job, tmp_path_factory) -> epath.Path:
    work = epath.Path(tmp_path_factory.mktemp("best")) / "run"
    dreambooth.run(job, work, frozenset())
    return work


def kept(work: epath.Path) -> dict:
    return json.loads((work / "manifest.json").read_text())["kept"]["base"]


def assert_same(one: epath.Path, other: epath.Path) -> None:
    first, second = (
        train_state.flatten(checkpoints.read_params(work / "base")[0])
        for work in (one, other)
    )
    assert first.keys() == second.keys()
    for name, leaf in first.items():
        np.testing.assert_array_equal(leaf, second[name], err_msg=name)


@pytest.mark.long
def test_a_run_ends_with_its_best_step(job, finished, tmp_path):
    recorded = kept(finished)
    scores = {int(step): each for step, each in recorded["scores"].items()}
    assert sorted(scores) == list(range(1, STEPS + 1))
    assert recorded["step"] == max(scores, key=lambda step: scores[step]) < STEPS
    # Each preview's file says what was measured, and the first what drift is from.
    seen = previews.read_scores(finished / "samples" / "previews" / "base")
    for step, value in scores.items():
        assert best_checkpoint.score(seen[step], seen[0]) == value
    # The same as a run that ends at that step.
    short = dataclasses.replace(
        job, keep="last", base=dataclasses.replace(job.base, steps=recorded["step"])
    )
    work = epath.Path(tmp_path) / "run"
    dreambooth.run(short, work, frozenset())
    assert_same(finished, work)
    for size in (64, 256):
        name = f"samples/final/{size}/00_0.png"
        one, two = (image_files.load_png(each / name) for each in (finished, work))
        np.testing.assert_array_equal(one, two)
    # One set of parameters is on disk, the last step's nowhere.
    folder = finished / "base"
    assert len(list(folder.glob("*/params"))) == 1
    assert not (folder / "best").exists()
    run = finished_run.read_run(finished)
    assert finished_run.finetuned_steps(run, run.stages[0]) == recorded["step"]
    [part] = export.export_run(finished, [])
    assert part.entries["steps"] == part.steps == recorded["step"]
    page = (finished / "report.html").read_text()
    assert f"Kept: step {recorded['step']}, score" in page


@pytest.mark.long
def test_stopped_and_killed_it_ends_the_same(job, finished, tmp_path, monkeypatch):
    """Stopped at each step, and dead between keeping parameters and their preview."""
    work = epath.Path(tmp_path) / "run"
    store, deaths = previews.write_preview, [1, 2, STEPS]
    left = signal_at(monkeypatch, [("base", step) for step in (1, 2, 3)])

    class Killed(Exception):
        pass

    def store_or_die(folder, step, *rest):
        if step in deaths:
            deaths.remove(step)
            raise Killed
        store(folder, step, *rest)

    monkeypatch.setattr(previews, "write_preview", store_or_die)
    ended = []
    for _ in range(20):
        try:
            dreambooth.run(job, work, frozenset())
            break
        except (Stopped, Killed) as error:
            ended.append(type(error))
    assert not left
    assert not deaths
    assert len(ended) == 6
    assert_same(work, finished)
    assert kept(work) == kept(finished)
    dreambooth.run(job, work, frozenset())  # finished: nothing is drawn or chosen again
    assert kept(work) == kept(finished)


@pytest.mark.parametrize(
    ("scores", "patience", "end"),
    [
        ((0.3, 0.5, 0.4, 0.45), 1, 3),
        ((0.3, 0.5, 0.4, 0.45), 2, 4),
        ((0.3, 0.5, 0.5, 0.6), 1, 3),  # as good is not better
        ((0.3, 0.4, 0.5, 0.6), 1, None),
    ],
)
def test_previews_without_a_better_one_are_counted(tmp_path, scores, patience, end):
    folder, shown = (epath.Path(tmp_path) / each for each in ("base", "previews"))
    best = BestCheckpoint(folder, shown, latest=None, steps=9)
    best.consider(0, measured(0.9, 0.2), {})
    for step, value in enumerate(scores, 1):
        best.consider(step, measured(value, 0.2), {"unet": {"a": np.zeros(1)}})
    ended = [step for step in range(5) if best.has_stalled(step, patience)]
    assert next(iter(ended), None) == end


@pytest.mark.long
def test_patience_ends_a_stage_early(job, finished, tmp_path, monkeypatch):
    """Stopped at each step before, it ends at the same one, and stays ended."""
    scores = {int(step): each for step, each in kept(finished)["scores"].items()}
    work, patient = epath.Path(tmp_path) / "run", dataclasses.replace(job, patience=1)
    end = min(
        step
        for step in range(2, STEPS + 1)
        if max(scores[at] for at in range(1, step)) >= scores[step]
    )
    left = signal_at(monkeypatch, [("base", step) for step in range(1, end)])
    while left:
        with pytest.raises(Stopped):
            dreambooth.run(patient, work, frozenset())
    dreambooth.run(patient, work, frozenset())
    assert checkpoints.read_params(work / "base")[1] == end
    assert sorted(kept(work)["scores"]) == [str(step) for step in range(1, end + 1)]
    dreambooth.run(patient, work, frozenset())
    assert checkpoints.read_params(work / "base")[1] == end
    # More patience continues from there, to the end of a run without any.
    dreambooth.run(dataclasses.replace(job, patience=STEPS), work, frozenset())
    assert_same(work, finished)
    assert kept(work) == kept(finished)


@pytest.mark.long
def test_the_best_preview_taken_away_from_a_stopped_run(
    job, finished, tmp_path, monkeypatch
):
    """The best of those left would be recorded of parameters that are not its own."""
    scores = {int(step): each for step, each in kept(finished)["scores"].items()}
    best = max(scores, key=lambda step: scores[step])
    work = epath.Path(tmp_path) / "run"
    with monkeypatch.context() as patch:
        signal_at(patch, [("base", best + 1)])
        with pytest.raises(Stopped):
            dreambooth.run(job, work, frozenset())
    taken = previews.preview_file(work / "samples" / "previews" / "base", best)
    content = taken.read_bytes()
    taken.unlink()
    with pytest.raises(InputError, match=f"{taken.name}.*overwrite=base"):
        dreambooth.run(job, work, frozenset())
    taken.write_bytes(content)
    dreambooth.run(job, work, frozenset())
    assert kept(work) == kept(finished)
    assert_same(work, finished)


@pytest.mark.long
def test_more_steps_go_on_from_the_best_so_far(job, finished, tmp_path):
    """Which is read from the finished run, where the last step's state is not it."""
    work = epath.Path(tmp_path) / "run"
    short = dataclasses.replace(job, base=dataclasses.replace(job.base, steps=3))
    dreambooth.run(short, work, frozenset())
    dreambooth.run(job, work, frozenset())
    assert_same(work, finished)
    assert kept(work) == kept(finished)


@pytest.mark.long
def test_another_rule_is_another_tuning(job, finished):
    with pytest.raises(InputError, match="keep: best -> None.*--overwrite=base"):
        dreambooth.run(dataclasses.replace(job, keep="last"), finished, frozenset())
    with pytest.raises(InputError, match="config.keep='first' is not known"):
        dataclasses.replace(job, keep="first")


@pytest.mark.long
@pytest.mark.parametrize("rule", ["best", "last"])
def test_previews_taken_away_from_a_run_that_goes_on(job, finished, tmp_path, rule):
    work = epath.Path(tmp_path) / "run"
    base = dataclasses.replace(job.base, steps=3)
    dreambooth.run(dataclasses.replace(job, keep=rule, base=base), work, frozenset())
    shown = work / "samples" / "previews" / "base"
    shown.rmtree()
    more = dataclasses.replace(job, keep=rule)
    if rule == "best":  # nothing to choose by, and nothing is lost
        steps = sorted(path.name for path in (work / "base").iterdir())
        with pytest.raises(InputError, match=f"{shown}.*step_000000.*overwrite=base"):
            dreambooth.run(more, work, frozenset())
        assert sorted(path.name for path in (work / "base").iterdir()) == steps
        dreambooth.run(more, work, frozenset({"base"}))
        assert_same(work, finished)
    else:
        dreambooth.run(more, work, frozenset())
        assert checkpoints.read_params(work / "base")[1] == STEPS
        assert "Similarity to the photos" in (finished / "report.html").read_text()
        assert "Similarity to the photos" not in (work / "report.html").read_text()


@pytest.mark.long
def test_later_previews_taken_away_from_a_finished_run(job, finished, tmp_path):
    """Those of step 0 alone choose nothing."""
    work = epath.Path(tmp_path) / "run"
    shutil.copytree(finished, work)
    shown = work / "samples" / "previews" / "base"
    for step in range(1, STEPS + 1):
        previews.preview_file(shown, step).unlink()
    with pytest.raises(InputError, match=f"step_00000{STEPS}.*overwrite=base"):
        dreambooth.run(job, work, frozenset())
    shutil.copytree(finished / "samples", work / "samples", dirs_exist_ok=True)
    dreambooth.run(job, work, frozenset())
    assert kept(work) == kept(finished)
