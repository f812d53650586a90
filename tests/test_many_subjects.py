"""Many subjects in one job: checked first, shared, failed, stopped, resumed, spread."""

import dataclasses
import json
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from etils import epath
from paths import ROOT, SHARED
from photo_files import blurred

from imagen_booth import dreambooth, many_subjects, train_state
from imagen_booth.config import build, presets
from imagen_booth.config.schema import SKIP
from imagen_booth.errors import InputError, NotFinite, Stopped, SubjectsFailed
from imagen_booth.preflight import checks
from imagen_booth.reports import subject_costs
from imagen_booth.reports.subject_costs import SubjectCost
from imagen_booth.rundir import checkpoints
from imagen_booth.rundir.lock import FolderLock

NAMES = ("ada", "bob", "eve")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three subjects of a class, with two photos each."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in NAMES:
        (folder / name).mkdir()
        for index in range(2):
            image = blurred(rng, 6, (300, 320))
            image.save(folder / name / f"{index}.png")
    return folder


def settings(photos, **more):
    """A job of the base stage alone on the tiny cascade."""
    config = presets.many_subjects("tiny")
    config.subjects, config.subject.class_noun = str(photos), "dog"
    config.sr256.steps = config.sr1024.steps = 0
    config.weights.sr256 = config.weights.sr1024 = "none"
    config.update_from_flattened_dict(more)
    return build.to_subjects(config)


class Runs:
    """Takes the place of a subject's run: it ends as the test says, and at once."""

    def __init__(self, **ends):
        self.ends, self.names = ends, []

    def __call__(self, job, accepted, work, *, profile):
        name = work.path.name
        self.names.append(name)
        work.write_json("config.json", dataclasses.asdict(job))
        work.record(status="running", timings={"text": 1.0}, subject={"noun": "dog"})
        if name in self.ends:
            raise self.ends[name]
        finished = dreambooth.utc_now()
        work.record(status="done", finished=finished, timings={"text": 2.0})
        (work.path / "report.html").write_text("report")
        work.record(reported=finished)


@pytest.fixture
def instead(monkeypatch):
    def replace(runs):
        monkeypatch.setattr(dreambooth, "run_accepted", runs)
        return runs

    monkeypatch.setattr(many_subjects, "embed_prompts", lambda *_, **__: None)
    return replace


def run(photos, work, overwrite=(), **more):
    return many_subjects.run(
        *settings(photos, **more), epath.Path(work), frozenset(overwrite)
    )


def test_all_that_is_wrong_is_named_before_any_work(photos, tmp_path):
    rows = [
        ("good", "ada", "dog", ""),
        ("hollow", "none", "dog", ""),
        ("twin", "ada", "dog", ""),
        ("twin", "bob", "dog", ""),
        ("nameless", "bob", "", ""),
        ("person", "bob", "woman", ""),
        ("rate", "bob", "dog", "-1"),
    ]
    (tmp_path / "none").mkdir()
    text = "name,photos,class_noun,base.optim.lr\n"
    for name, folder, noun, rate in rows:
        place = folder if folder == "none" else photos / folder
        text += f"{name},{place},{noun},{rate}\n"
    table = tmp_path / "table.csv"
    table.write_text(text)
    work = tmp_path / "many"
    with pytest.raises(InputError) as error:
        run(table, work, **{"subject.class_noun": ""})
    told = str(error.value).splitlines()
    assert told[0].startswith("6 problems in the subjects, and nothing is trained")
    for number, (name, words) in enumerate(
        [
            ("hollow", "none"),
            ("twin", "name='twin' is the name of line 5 too"),
            ("twin", "name='twin' is the name of line 4 too"),
            ("nameless", "class_noun is missing"),
            ("person", "config.subject.consent=true"),
            ("rate", "config.base.optim.lr=-1"),
        ],
        1,
    ):
        assert f"({name}): " in told[number]
        assert words in told[number]
    assert not work.exists()


def test_doctor_names_what_is_wrong_with_each_subject(photos, tmp_path):
    (tmp_path / "none").mkdir()
    table = tmp_path / "table.csv"
    table.write_text(
        f"name,photos\nada,{photos / 'ada'}\nhollow,none\nlost,\nbob,{photos / 'bob'}\n"
    )
    work = epath.Path(tmp_path) / "many"
    found = checks.check_many(*settings(table), work)
    wrong = {each.topic: each.text for each in found if each.level == checks.PROBLEM}
    assert wrong.keys() == {"hollow", "lost"}
    assert "line 4: photos is missing" in wrong["lost"]
    good = [each.topic for each in found if each.level == checks.OK]
    assert good == ["ada", "bob"]
    # What is true of all is told once.
    random = [each for each in found if "random weights" in each.text]
    assert {each.topic for each in random} == {"ada"}
    assert not work.exists()


def test_the_others_are_trained_where_that_is_set(photos, tmp_path, instead):
    table = tmp_path / "table.csv"
    table.write_text(f"name,photos\nada,{photos / 'ada'}\nbob,\n")
    runs = instead(Runs())
    page = run(table, tmp_path / "many", bad_subjects=SKIP)
    assert runs.names == ["ada"]
    assert "line 3 (bob): photos is missing" in page.read_text()
    table.write_text("name,photos\nbob,\n")  # no other is left
    with pytest.raises(InputError, match="photos is missing"):
        run(table, tmp_path / "many", bad_subjects=SKIP)


def test_one_that_fails_does_not_stop_the_others(photos, tmp_path, instead):
    work = tmp_path / "many"
    runs = instead(Runs(ada=NotFinite("step 3 is not finite"), bob=RuntimeError("odd")))
    with pytest.raises(SubjectsFailed, match="2 of 3 subjects failed") as error:
        run(photos, work)
    assert runs.names == list(NAMES)
    assert error.value.exit_code == NotFinite.exit_code
    assert "ada: NotFinite: step 3 is not finite" in str(error.value)
    page = (work / "index.html").read_text()
    assert "ada: NotFinite: step 3 is not finite" in page
    assert "bob: RuntimeError: odd" in page
    manifest = json.loads((work / "bob" / "manifest.json").read_text())
    assert manifest["status"] == "RuntimeError: odd"  # for other processes' pages
    assert 'href="eve/report.html"' in page
    # Run again, it tries these alone, and then none.
    again = instead(Runs())
    run(photos, work)
    assert again.names == ["ada", "bob"]
    page = (work / "index.html").read_text()
    assert "3 done" in page
    assert "Failed" not in page
    none = instead(Runs())
    run(photos, work)
    assert none.names == []


def test_what_has_changed_runs_again(photos, tmp_path, instead):
    work = tmp_path / "many"
    instead(Runs())
    run(photos, work)
    changed = instead(Runs())
    run(photos, work, seed=1)
    assert changed.names == list(NAMES)
    time.sleep(1)  # times are in whole seconds
    redone = instead(Runs())
    run(photos, work, ["samples"], seed=1)
    assert redone.names == list(NAMES)
    (work / "bob" / "report.html").unlink()
    cut = instead(Runs())
    run(photos, work, seed=1)
    assert cut.names == ["bob"]
    manifest = (
        work / "eve" / "manifest.json"
    )  # as of a kill before the page was written
    found = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(found | {"reported": ""}))
    killed = instead(Runs())
    run(photos, work, seed=1)
    assert killed.names == ["eve"]


def test_a_signal_ends_the_job_before_the_next_subject(photos, tmp_path, instead):
    def stop(*given, **named):
        done(*given, **named)
        signal.raise_signal(signal.SIGTERM)

    done = Runs()
    instead(stop)
    with pytest.raises(Stopped):
        run(photos, tmp_path / "many")
    assert done.names == ["ada"]
    assert "2 waiting" in (tmp_path / "many" / "index.html").read_text()
    rest = instead(Runs())
    run(photos, tmp_path / "many")
    assert rest.names == ["bob", "eve"]


def test_a_subject_of_another_process_is_left_to_it(photos, tmp_path, instead):
    """And taken once that one has released it unfinished."""
    work = epath.Path(tmp_path) / "many"
    owner = FolderLock(work / "ada")
    assert owner.try_to_take()
    runs = instead(Runs())

    def release():
        while len(runs.names) < 2:
            time.sleep(0.05)
        before.extend(runs.names)
        owner.release()

    before: list[str] = []
    thread = threading.Thread(target=release)
    thread.start()
    run(photos, work)
    thread.join()
    assert before == ["bob", "eve"]
    assert runs.names == ["bob", "eve", "ada"]


def test_the_first_subject_pays_for_what_is_shared():
    costs = [
        SubjectCost({"text": 30.0, "tuning base": 60.0}, True, 2),
        SubjectCost({"text": 0.0, "tuning base": 40.0}, False, 2),
        SubjectCost({"text": 0.0, "tuning base": 50.0}, False, 2),
    ]
    assert subject_costs.table(costs, 3600.0) == [
        ("seconds", "first subject", "each of 2 further"),
        ("text", "30.0", "0.0"),
        ("fine-tuning base", "60.0", "45.0"),
        ("total", "90.0", "45.0"),
        ("chip-hours", "0.0500", "0.0250"),
        ("dollars", "180.0000", "90.0000"),
    ]
    assert subject_costs.table(costs[:1], 0.0)[-1] == ("chip-hours", "0.0500", "–")
    assert subject_costs.table([], 1.0) == []


def test_costs_are_of_subjects_that_ran_from_start_to_end(photos, tmp_path, instead):
    work = epath.Path(tmp_path) / "many"
    (work / "ada").mkdir(parents=True)
    (work / "ada" / "manifest.json").write_text(json.dumps({"status": "running"}))
    instead(Runs())
    run(photos, work)
    names = sorted(path.name for path in (work / subject_costs.FOLDER).iterdir())
    assert names == ["bob.json", "eve.json"]
    (work / subject_costs.FOLDER / "bob.json").write_text("{}")  # damaged
    assert len(subject_costs.read(work / subject_costs.FOLDER)) == 1


def bits(work):
    """Every parameter and picture that a run leaves."""
    found = {
        name: np.asarray(leaf).tobytes()
        for name, leaf in train_state.flatten(
            checkpoints.read_params(epath.Path(work) / "base")[0]
        ).items()
    }
    for path in sorted((work / "samples").rglob("*.png")):
        found[str(path.relative_to(work))] = path.read_bytes()
    return found


def command(work, *more, config="subjects"):
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "imagen_booth.train"),
            f"--config=configs/{config}.py:tiny",
            "--config.sr256.steps=0",
            "--config.sr1024.steps=0",
            "--config.weights.sr256=none",
            "--config.weights.sr1024=none",
            f"--workdir={work}",
            *more,
        ],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )


def kill_when(process, ready):
    while process.poll() is None and not ready():
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL


def is_done(folder):
    try:
        return json.loads((folder / "manifest.json").read_text())["status"] == "done"
    except (OSError, ValueError, KeyError):
        return False


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three subjects of DreamBooth's own photos, in DreamBench's layout."""
    source = SHARED / "data" / "dreambooth"
    if not source.exists():
        pytest.skip(f"{source} is absent")
    folder = tmp_path_factory.mktemp("three")
    for name in ("prompts_and_classes.txt", "cat", "dog", "dog6"):
        (folder / name).symlink_to((source / name).resolve())
    return folder


@pytest.fixture(scope="module")
def alone(three, tmp_path_factory):
    """The same subjects, each by a command of its own: it sets how a CPU computes."""
    work = tmp_path_factory.mktemp("alone")
    for name, noun in (("cat", "cat"), ("dog", "dog"), ("dog6", "dog")):
        subject = (
            f"--config.subject.photos={three / name}",
            f"--config.subject.class_noun={noun}",
        )
        assert command(work / name, *subject, config="subject").wait() == 0
    return work


@pytest.mark.long
def test_killed_midway_and_resumed_equals_single_commands(three, alone, tmp_path):
    work = tmp_path / "many"
    flag = f"--config.subjects={three}"
    kill_when(command(work, flag), lambda: any((work / "dog" / "base").glob("2*")))
    assert is_done(work / "cat")
    assert not is_done(work / "dog6")
    process = command(work, flag)
    assert process.wait() == 0
    for name in ("cat", "dog", "dog6"):
        assert is_done(work / name)
        assert bits(work / name) == bits(alone / name)
        assert (work / name / "config.json").read_text() == (
            alone / name / "config.json"
        ).read_text()
        left = {path.name for path in (work / name).iterdir()}
        assert left == {path.name for path in (alone / name).iterdir()}
    assert len(list((work / "cache" / "class_images").iterdir())) == 2  # cat and dog


@pytest.mark.long
def test_of_two_processes_one_is_killed_and_the_other_ends_all(three, alone, tmp_path):
    work = tmp_path / "many"
    flags = (f"--config.subjects={three}", "--processes=1")
    both = [command(work, *flags) for _ in range(2)]
    # The second one is killed with a subject in its hands.
    while not all(
        any(
            f'"pid": {process.pid}' in path.read_text()
            for path in work.glob("*/lock/*.json")
        )
        for process in both
    ):
        assert all(process.poll() is None for process in both)
        time.sleep(0.05)
    both[1].kill()
    both[1].wait()
    assert both[0].wait() == 0
    for name in ("cat", "dog", "dog6"):
        assert bits(work / name) == bits(alone / name)
