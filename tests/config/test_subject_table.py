"""The subjects of a job of many: what is read, and what each bad entry is told."""

import dataclasses
import json

import pytest

from imagen_booth.config import build, presets, subject_table
from imagen_booth.config.schema import Subject, Subjects
from imagen_booth.errors import InputError

SUBJECTS, JOB = build.to_subjects(presets.many_subjects("tiny"))


def read(path, **subject):
    job = dataclasses.replace(JOB, subject=dataclasses.replace(JOB.subject, **subject))
    return subject_table.read(Subjects(str(path)), job)


def only(rows):
    [row] = rows
    return row


def job_of(row):
    assert row.problems == ()
    assert row.job is not None
    return row.job


def table(tmp_path, text, name="table.csv"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_a_config_of_many_has_the_settings_of_a_job_and_its_own():
    config = presets.many_subjects("tiny")
    config.subjects, config.base.steps = "folder", 7
    subjects, job = build.to_subjects(config)
    assert (subjects.subjects, subjects.bad_subjects) == ("folder", "refuse")
    single = presets.dreambooth("tiny")
    single.base.steps = 7
    assert job == build.to_job(single)
    assert build.has_many(config)
    assert not build.has_many(single)
    config.bad_subjects = "drop"
    with pytest.raises(InputError, match="bad_subjects='drop'.*'refuse' or 'skip'"):
        build.to_subjects(config)


def test_a_folder_of_folders_takes_its_classes_from_the_file_beside_them(tmp_path):
    for name in ("dog6", "mine", ".ipynb_checkpoints"):
        (tmp_path / name).mkdir()
    (tmp_path / "prompts_and_classes.txt").write_text(
        "Classes\n\nsubject_name,class\ndog6,dog\nbear_plushie,stuffed animal\n\n"
        "Prompts\n'a {0} {1} in the jungle'.format(unique_token, class_token),\n"
    )
    dog, mine = read(tmp_path)
    assert dog.name == "dog6"
    assert job_of(dog).subject.class_noun == "dog"
    assert job_of(dog).subject.photos == str(tmp_path / "dog6")
    assert "class_noun is missing" in only(mine.problems)
    assert "mine,CLASS of prompts_and_classes.txt" in only(mine.problems)
    _, mine = read(tmp_path, class_noun="cat")
    assert job_of(mine).subject.class_noun == "cat"


def test_a_row_of_csv_sets_what_its_columns_name(tmp_path):
    file = table(
        tmp_path,
        "name,photos,class_noun,prompts,base.steps,base.optim.lr,subject.shift,"
        "text.templates,tensorboard,pictures.base.steps,subject.identifier\n"
        'rex,photos/rex,dog,a [V] [N]|a [V] [N] at sea,9,1e-4,"(0.5, -0.5)",'
        "\"('a [V]',)\",true,3,123\n"
        "11,toybox:dog/11,dog,,,,,,,,\n",
    )
    rex, toy = read(file)
    job = job_of(rex)
    assert job.subject.photos == str(tmp_path / "photos/rex")
    assert job.pictures.prompts == ("a [V] [N]", "a [V] [N] at sea")
    assert (job.base.steps, job.base.optim.lr) == (9, 1e-4)
    assert job.subject.shift == (0.5, -0.5)
    assert job.text.templates == ("a [V]",)
    assert job.tensorboard is True
    assert job.pictures.base.steps == 3
    assert job.subject.identifier == "123"  # a text stays a text
    assert job.sr256 == JOB.sr256
    assert (toy.name, job_of(toy).subject.photos) == ("11", "toybox:dog/11")
    plain = dataclasses.replace(JOB.subject, photos="toybox:dog/11", class_noun="dog")
    assert job_of(toy) == dataclasses.replace(JOB, subject=plain)


def test_a_line_of_jsonl_sets_what_its_keys_name(tmp_path):
    entry = {
        "name": "rex",
        "photos": "/data/rex",
        "class_noun": "dog",
        "prompts": ["a [V] [N]"],
        "base.steps": 2,
        "seed": None,
    }
    job = job_of(only(read(table(tmp_path, json.dumps(entry) + "\n\n", "table.jsonl"))))
    assert job.subject.photos == "/data/rex"
    assert job.pictures.prompts == ("a [V] [N]",)
    assert (job.base.steps, job.seed) == (2, JOB.seed)


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ("base.step\nrex,x,dog,3", "'base.step' is not a column.*mean base.steps"),
        ("colour\nrex,x,dog,red", "'colour' is not a column.*name, photos, class_noun"),
        ("base\nrex,x,dog,3", "'base' is not a column"),
        ("cascade\nrex,x,dog,toybox", "'cascade' is not a column"),
        ("base.steps\nrex,x,dog,many", "config.base.steps='many' should be of type"),
        ("base.steps\nrex,x,dog,-1", "config.base.steps=-1 should be 0 or more"),
        ("seed\nrex,x,,3", "class_noun is missing; give it in a column class_noun"),
        ("seed\nrex,,dog,3", "photos is missing; give a folder, or toybox:CLASS/SEED"),
        ("seed\n,x,dog,3", "name is missing"),
        ("seed\n../rex,x,dog,3", "name='../rex' cannot be a folder's name"),
        ("seed\nrex*,x,dog,3", r"name='rex\*' cannot be a folder's name"),
        ("seed\ncache,x,dog,3", "name='cache' is a folder of the job itself"),
    ],
)
def test_what_is_wrong_with_a_row_is_named(tmp_path, cells, told):
    row = only(read(table(tmp_path, "name,photos,class_noun," + cells)))
    assert row.job is None
    assert row.where == "line 2"
    with pytest.raises(InputError, match=told):
        raise InputError(only(row.problems))


def test_two_subjects_of_one_name_are_both_named(tmp_path):
    rows = read(
        table(tmp_path, "name,photos,class_noun\nrex,a,dog\nmia,b,cat\nrex,c,dog\n")
    )
    assert [row.job is None for row in rows] == [True, False, True]
    assert "'rex' is the name of line 4 too" in only(rows[0].problems)
    assert "'rex' is the name of line 2 too" in only(rows[2].problems)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("table.csv", "name,photos\nrex,x,dog\n", "line 2 has more cells"),
        ("table.csv", 'name,photos\n"rex,x\n', "is not CSV"),
        ("table.csv", "name,photos\n", "lists no subject"),
        ("table.jsonl", "{}\n[1]\n", "line 2 is not an object"),
        ("table.jsonl", "{\n", "line 1 is not JSON"),
        ("table.txt", "rex\n", "give a .csv or .jsonl file"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(tmp_path, name, text, told):
    with pytest.raises(InputError, match=told):
        read(table(tmp_path, text, name))


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="config.subjects=.*does not exist"):
        read(tmp_path / "none")
    with pytest.raises(InputError, match="config.subjects= does not exist"):
        subject_table.read(SUBJECTS, JOB)


def test_two_subjects_of_one_run_are_no_rows_of_a_table(tmp_path):
    job = dataclasses.replace(JOB, second=Subject(photos="cats", class_noun="cat"))
    with pytest.raises(InputError, match="config.second.photos='cats'.*two_subjects"):
        subject_table.read(Subjects(str(tmp_path)), job)
    path = table(tmp_path, "name,photos,class_noun,second.photos\nrex,a,dog,cats\n")
    assert "'second.photos' is not a column" in only(read(path)).problems[0]
