"""Scores of runs and folders: against plain loops, by the command, on real photos."""

import ast
import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from models.test_vit_parity import SMALL_CLIP, VISION
from paths import ROOT
from PIL import Image
from reports.test_run_report import Page

from imagen_booth.config import build, presets
from imagen_booth.data import image_files
from imagen_booth.distributed import sharding
from imagen_booth.errors import InputError
from imagen_booth.evaluation import (
    clip_tokenizer,
    evaluate_systems,
    image_sets,
    preprocess,
    protocol,
    run_images,
    toybox_judge,
)
from imagen_booth.evaluation.evaluate_systems import EvaluationRequest, Locations
from imagen_booth.evaluation.image_sets import GeneratedImage, ImageSet, SubjectPhotos
from imagen_booth.evaluation.protocol import FeatureNetworks
from imagen_booth.models.toybox_judge import Judge as Network
from imagen_booth.text.prompt_suites import SUITES
from imagen_booth.weights import vision

REAL = ROOT.parent / "shared" / "data" / "dreambooth"
NAME = "zaf"
RANDOM = Locations(dino="random", clip="random", lpips="random")
PROMPTS = ("a dog", "a dog in the snow", "a red dog on the beach")

real_photos = pytest.mark.skipif(
    not REAL.exists(), reason="../shared/data/dreambooth with its photos is not here"
)


def noise(seed, size=64):
    cells = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return np.array(Image.fromarray(cells).resize((size, size), 3))


@pytest.fixture
def small(monkeypatch):
    """DINO and CLIP of the same kind as the real ones, small."""
    sizes = {"dino_vits16": VISION, "clip_vit_b32": SMALL_CLIP}
    for name, size in sizes.items():
        monkeypatch.setitem(vision.SIZES, name, size)
        recipe = dataclasses.replace(preprocess.RECIPES[name], resize=36, crop=32)
        monkeypatch.setitem(preprocess.RECIPES, name, recipe)


@pytest.fixture(scope="module")
def a_judge(tmp_path_factory):
    """The folder of an untrained judge."""
    network = Network(toybox_judge.CONFIG)
    blank = jnp.zeros((1, 64, 64, 3))
    params = jax.jit(network.init)(jax.random.key(0), blank)["params"]
    folder = epath.Path(tmp_path_factory.mktemp("judge"))
    toybox_judge.write(folder, params, {})
    return folder


def save(path, picture, **told):
    image_files.save_png(path, noise(picture), told)
    return epath.Path(path)


@pytest.fixture
def run(tmp_path):
    """The files of a finished run of a toy, with a job of three prompts by two."""
    work = epath.Path(tmp_path) / "runs" / "dog"
    job = dataclasses.asdict(build.to_job(presets.dreambooth("tiny")))
    job["subject"] |= {"photos": "toybox:dog/7", "class_noun": "dog"}
    work.mkdir(parents=True)
    (work / "config.json").write_text(json.dumps(job))
    about = {"subject": {"identifier": NAME, "class_noun": "dog"}, "status": "done"}
    about["cascade"] = {"name": "tiny", "parts": {}}
    (work / "manifest.json").write_text(json.dumps(about))
    for number in range(3):
        save(work / "photos" / f"{number}.png", number)
    save(work / "photos" / image_sets.SHEET, 99)
    lines = []
    for index, prompt in enumerate(PROMPTS):
        asked = prompt.replace("dog", f"{NAME} dog")
        for seed in range(2):
            name = f"64/{index}_{seed}.png"
            save(work / "samples" / "job" / name, 10 * index + seed, prompt=asked)
            lines.append(json.dumps({"file": name, "prompt": asked}))
    (work / "samples" / "job" / "index.jsonl").write_text("\n".join(lines))
    for seed in range(2):
        place = work / "samples/class/64" / f"{seed}.png"
        save(place, 50 + seed, prompt="a dog", seed=str(run_images.FIRST_SEED + seed))
    return work


def cosine(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float((a @ b) / np.sqrt((a @ a) * (b @ b)))


def test_every_score_is_that_of_plain_loops(small, run, tmp_path, a_judge):
    mesh = sharding.make_mesh()
    parts = {
        flag: protocol.load_network(flag, name, "random", mesh)
        for flag, name in (
            ("dino", "dino_vits16"),
            ("clip", "clip_vit_b32"),
            ("lpips", "lpips_alex"),
        )
    }
    reader = toybox_judge.load(a_judge)
    systems, _ = evaluate_systems.gather(EvaluationRequest(runs=[str(run)]))
    ((work,),) = systems.values()
    seen_files = image_sets.inspect_images([work])
    networks = FeatureNetworks(
        **parts, judge=reader, cache=epath.Path(tmp_path), mesh=mesh, info=seen_files
    )
    assert [shot.prompt for shot in work.pictures] == [
        prompt for prompt in PROMPTS for _ in range(2)
    ]
    found = protocol.pool_scores({"dog": [protocol.measure(work, networks)]})

    def seen(flag, files):
        part = parts[flag]
        recipe = preprocess.RECIPES[part.name]
        return [
            np.asarray(
                part.apply(
                    part.params,
                    preprocess.prepare(image_files.load_png(file), recipe)[None],
                )
            )[0]
            for file in files
        ]

    files = [shot.file for shot in work.pictures]
    photos, others = work.subject.photos, work.class_pictures
    assert (len(photos), len(others)) == (3, 2)
    wanted = {}
    for metric, flag, which in (
        ("dino", "dino", files),
        ("clip_i", "clip", files),
        ("pres", "dino", others),
    ):
        pairs = itertools.product(seen(flag, which), seen(flag, photos))
        wanted[metric] = np.mean([cosine(*pair) for pair in pairs])
    tower = vision.text_tower(parts["clip"])
    tokens = clip_tokenizer.encode(
        "random", [shot.prompt for shot in work.pictures], SMALL_CLIP.text
    )
    texts = np.asarray(tower.apply(tower.params, tokens))
    wanted["clip_t"] = np.mean(list(map(cosine, seen("clip", files), texts)))
    recipe = preprocess.RECIPES["lpips_alex"]
    apart = []
    for two in zip(files[::2], files[1::2], strict=True):
        both = [preprocess.prepare(image_files.load_png(file), recipe) for file in two]
        table = parts["lpips"].apply(parts["lpips"].params, np.stack(both))
        apart.append(float(table[0, 1]))
    wanted["div"] = np.mean(apart)
    for metric, value in wanted.items():
        assert found[metric].mean == pytest.approx(value, abs=2e-5), metric
    # one group per prompt, so that every prompt weighs the same
    assert (found["dino"].groups, found["dino"].values) == (3, 6)
    assert (found["div"].groups, found["pres"].groups) == (3, 1)

    read = reader.read(map(image_files.load_png, files))
    own = reader.read(map(image_files.load_png, photos))
    pairs = itertools.product(read.subjects, own.subjects)
    value = np.mean([cosine(*pair) for pair in pairs])
    assert found["judge_subject"].mean == pytest.approx(value, abs=1e-5)
    asked = [
        {
            "accessory": "nothing",
            "view": "front",
            "style": "photo",
            "noun": "dog",
            **more,
        }
        for more in ({}, {"context": "snow"}, {"context": "beach", "colour": "red"})
        for _ in range(2)
    ]
    shares = [
        np.mean([read.words[name][number] == word for name, word in each.items()])
        for number, each in enumerate(asked)
    ]
    assert found["judge_prompt"].mean == pytest.approx(np.mean(shares))


def test_photos_among_themselves(small, run, tmp_path):
    mesh = sharding.make_mesh()
    part = protocol.load_network("dino", "dino_vits16", "random", mesh)
    files = tuple(run / "photos" / f"{number}.png" for number in range(3))
    subject = SubjectPhotos("dog", "dog", files)
    info = image_sets.inspect_images([ImageSet(subject, ())])
    cache = epath.Path(tmp_path)
    networks = FeatureNetworks(part, None, None, None, cache, mesh, info)
    found = protocol.measure_photos(subject, networks)
    recipe = preprocess.RECIPES["dino_vits16"]
    prepared = [preprocess.prepare(image_files.load_png(f), recipe) for f in files]
    seen = [np.asarray(part.apply(part.params, each[None]))[0] for each in prepared]
    wanted = np.mean([cosine(*pair) for pair in itertools.combinations(seen, 2)])
    (values,) = found["dino"]
    assert values.mean() == pytest.approx(wanted, abs=1e-5)
    assert (
        protocol.measure_photos(SubjectPhotos("dog", "dog", files[:1]), networks) == {}
    )


def test_subjects_weigh_the_same():
    def values(*groups):
        return {"dino": [np.array(each, np.float64) for each in groups]}

    one = {"dog": [values([0.0, 0.0], [0.6])]}
    assert protocol.pool_scores(one)["dino"].mean == pytest.approx(0.3)  # prompts
    both = one | {"cat": [values([1.0]), values([0.0])]}
    score = protocol.pool_scores(both)["dino"]
    assert score.mean == pytest.approx((0.2 + 0.5) / 2)
    assert (score.groups, score.values) == (2, 5)


def test_a_run_and_another_system_in_one_table(small, run, tmp_path, a_judge):
    other = tmp_path / "other"
    for index, seed in itertools.product(range(3), range(2)):
        save(other / f"{index:02}_{seed}.png", 30 * index + seed)
    (tmp_path / "prompts.txt").write_text(
        "a [V] [N]\na [V] [N] in the snow\na red [V] [N] on the beach\n"
    )
    shutil.copytree(run / "samples" / "job", run / "samples" / "prompts")
    page, warnings = evaluate_systems.evaluate_systems(
        EvaluationRequest(
            runs=[f"ours={run}"],
            systems=[f"theirs={other}"],
            classes=[f"theirs={run}/samples/class"],
            prompts=str(tmp_path / "prompts.txt"),
        ),
        dataclasses.replace(RANDOM, judge=str(a_judge)),
        epath.Path(tmp_path) / "out",
        epath.Path(tmp_path) / "cache",
    )
    found = json.loads((page.parent / "evaluation.json").read_text())
    assert list(found["systems"]) == [protocol.PHOTOS, "ours", "theirs"]
    for name in ("ours", "theirs"):
        system = found["systems"][name]
        assert system["scores"].keys() == set(protocol.METRICS)
        assert (system["prompts"], system["pictures"]) == (3, 6)
        assert system["class_pictures"] == 2
        for score in system["scores"].values():
            assert score["low"] <= score["mean"] <= score["high"]
    same = ("pres", "judge_pres")  # they were given the same class pictures
    ours, theirs = (found["systems"][name]["scores"] for name in ("ours", "theirs"))
    # An untrained judge gives every picture the same words.
    for metric in protocol.METRICS.keys() - {"judge_prompt"}:
        assert (ours[metric]["mean"] == theirs[metric]["mean"]) == (metric in same)
    assert "RANDOM WEIGHTS in dino, clip, lpips" in warnings[0]
    shown = Page(pathlib.Path(page))
    assert shown.text.count("RANDOM WEIGHTS") >= 8  # the note and every heading
    for figure in ("0.774", "0.885", "0.306", "0.493", "0.391", "0.664"):
        assert figure in shown.text
    assert f"{ours['dino']['mean']:.3f}" in shown.text
    assert not [each for each in shown.all("img") if "data:" not in each["src"]]
    assert (run / "failures.json").exists()
    assert "Failure modes" in (run / "report.html").read_text()


def test_runs_of_one_subject_need_the_same_photos(small, run, tmp_path):
    """As where two runs were tuned on more and fewer photos."""
    other = run.parent / "fewer"
    shutil.copytree(run, other)
    (other / "photos" / "2.png").unlink()
    both = [f"more={run}", f"fewer={other}"]
    to, cache = epath.Path(tmp_path) / "out", epath.Path(tmp_path) / "cache"
    places = Locations(dino="random")
    with pytest.raises(InputError, match="has other photos in .*; give --photos"):
        evaluate_systems.evaluate_systems(
            EvaluationRequest(runs=both), places, to, cache
        )
    photos = str(run / "photos")
    evaluate_systems.evaluate_systems(
        EvaluationRequest(runs=both, photos=photos), places, to, cache
    )
    found = json.loads((to / "evaluation.json").read_text())
    assert found["subjects"] == {"photos": {"noun": "dog", "photos": 3}}
    more, fewer = (found["systems"][name]["scores"] for name in ("more", "fewer"))
    assert more == fewer


def test_features_are_kept(small, run, tmp_path, monkeypatch):
    def once():
        evaluate_systems.evaluate_systems(
            EvaluationRequest(runs=[str(run)]),
            Locations(dino="random"),
            epath.Path(tmp_path) / "out",
            epath.Path(tmp_path) / "cache",
        )
        return json.loads((tmp_path / "out" / "evaluation.json").read_text())["systems"]

    first = once()
    kept = list((tmp_path / "cache" / "features").rglob("*.npy"))
    # Six pictures, three photos of which two are among them, two of the class.
    assert len(kept) == 9
    monkeypatch.setattr(vision, "_compiled", lambda *_: pytest.fail)
    assert once() == first


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda r: (r / "manifest.json").unlink(), "not the directory of a run"),
        (
            lambda r: (r / "manifest.json").write_text(
                (r / "manifest.json").read_text().replace('"done"', '"running"')
            ),
            "is not finished (running)",
        ),
        (lambda r: (r / "samples/job/64/0_0.png").unlink(), "which is not there"),
        (
            lambda r: (r / "samples/job/index.jsonl").write_text('{"file": "64/0'),
            "line 1 has no file and prompt",
        ),
        (lambda r: save(r / "samples/class/64/9.png", 9, prompt="a cat"), "'a cat'"),
        (
            lambda r: (r / "samples/job/64/0_0.png").write_bytes(b"\x89PNG torn"),
            "0_0.png: cannot be decoded",
        ),
        (
            lambda r: shutil.copytree(r / "samples/job", r / "samples/more"),
            "has the jobs job, more; choose one with --name",
        ),
    ],
)
def test_runs_that_cannot_be_scored(run, tmp_path, edit, why):
    edit(run)
    with pytest.raises(InputError, match=".") as error:
        evaluate_systems.evaluate_systems(
            EvaluationRequest(runs=[str(run)]),
            RANDOM,
            epath.Path(tmp_path),
            epath.Path(tmp_path),
        )
    assert why in str(error.value)
    assert not (tmp_path / "evaluation.json").exists()


def with_seed(run, first, **changes):
    """The run trained on ``changes``, its pictures of the class from a first seed."""
    config = json.loads((run / "config.json").read_text()) | changes
    (run / "config.json").write_text(json.dumps(config))
    for number in range(2):
        file = run / "samples/class/64" / f"{number}.png"
        save(file, 50 + number, prompt="a dog", seed=str(first + number))
    return EvaluationRequest(runs=[str(run)])


@pytest.mark.parametrize(
    ("trained", "first", "advised"),
    [
        (0, 0, 1_000_000),
        (0, 3, 1_000_000),  # the last class image
        (7, 6, 1_000_000),  # the first one
        (999_999, 1_000_000, 1_000_003),
    ],
)
def test_pictures_of_the_class_never_share_noise_with_class_images(
    run, trained, first, advised
):
    """The tiny job trains on four class images, of seeds ``trained`` and up."""
    asked = with_seed(run, first, seed=trained)
    told = f"seeds {trained} to {trained + 3}.*--seeds=2 --first_seed={advised} "
    with pytest.raises(InputError, match=told):
        evaluate_systems.gather(asked)
    evaluate_systems.gather(with_seed(run, advised))


def test_any_seeds_do_where_no_class_image_was_trained_on(run):
    base = json.loads((run / "config.json").read_text())["base"]
    evaluate_systems.gather(with_seed(run, 0, base=base | {"class_rows": 0}))
    file = run / "samples/class/64/0.png"
    save(file, 50, prompt="a dog")  # says no seed
    evaluate_systems.gather(with_seed(run, 4, base=base))


def test_help_gives_the_first_seed():
    # Read, not imported: a command's flags are global.
    source = (ROOT / "imagen_booth" / "evaluate.py").read_text()
    assert f"--first_seed={run_images.FIRST_SEED} " in str(
        ast.get_docstring(ast.parse(source))
    )


def test_prompts_of_a_suite_have_to_be_there(run):
    (run / "samples/job").rename(run / "samples/dreambench_living")
    with pytest.raises(InputError, match="24 of 25 prompts of dreambench have no"):
        evaluate_systems.gather(
            EvaluationRequest(runs=[str(run)], prompts="dreambench")
        )
    with pytest.raises(InputError, match="samples/view does not exist"):
        evaluate_systems.gather(EvaluationRequest(runs=[str(run)], prompts="view"))


@pytest.fixture
def table(tmp_path):
    """Photos of two subjects, and a system's pictures of both for two prompts."""
    for number, subject in enumerate(("dog", "vase")):
        for index in range(2):
            save(tmp_path / f"photos/{subject}/{index}.png", 10 * number + index)
            for seed in range(2):
                file = tmp_path / f"system/{subject}/{index}_{seed}.png"
                save(file, 100 * number + 10 * index + seed)
    (tmp_path / "prompts.csv").write_text("prompt\na [V] [N]\na [V] [N] in a box\n")
    return tmp_path


def asked(table, **changes):
    settings = {
        "systems": [f"system={table / 'system'}"],
        "photos": str(table / "photos"),
        "prompts": str(table / "prompts.csv"),
    }
    return EvaluationRequest(**settings | changes)


def test_subjects_in_folders(table):
    systems, tuned = evaluate_systems.gather(asked(table))
    assert not tuned
    dog, vase = systems["system"]
    assert [s.prompt for s in dog.pictures] == ["a dog"] * 2 + ["a dog in a box"] * 2
    assert [s.prompt for s in vase.pictures][::2] == ["a vase", "a vase in a box"]
    assert len(vase.subject.photos) == 2
    ((_, vase),) = evaluate_systems.gather(asked(table, nouns=["vase=jug"]))[0].values()
    assert vase.pictures[3].prompt == "a jug in a box"


def rename(table, old, new):
    (table / old).rename(table / new)


@pytest.mark.parametrize(
    ("edit", "changes", "why"),
    [
        (
            lambda t: rename(t, "system/vase", "system/cup"),
            {},
            "lacks vase and has cup",
        ),
        (lambda t: rename(t, "system", "gone"), {}, "does not exist"),
        (lambda t: shutil.rmtree(t / "photos/dog"), {}, "has dog besides"),
        (
            lambda t: rename(t, "system/dog/1_1.png", "system/dog/x.png"),
            {},
            "1 of 4 pictures cannot be matched to the 2 prompts, such as x.png",
        ),
        (
            lambda t: rename(t, "system/dog/1_1.png", "system/dog/7_1.png"),
            {},
            "such as 7_1.png",
        ),
        (
            lambda t: [(t / f"system/dog/1_{n}.png").unlink() for n in range(2)],
            {},
            "1 of 2 prompts have no picture, such as number 1, 'a dog in a box'",
        ),
        (lambda t: None, {"nouns": ["box=carton"]}, "names no subject of --photos"),
        (lambda t: rename(t, "photos/vase", "photos/urn"), {}, "lacks urn"),
        (lambda t: None, {"photos": ""}, "--photos is missing"),
        (lambda t: None, {"systems": ["/nowhere"]}, "--system=NAME=DIR"),
        (lambda t: None, {"classes": ["x=/nowhere"]}, "names no --system"),
        (lambda t: None, {"systems": []}, "nothing to score"),
        (lambda t: None, {"prompts": "/nowhere.txt"}, "is neither a file nor a suite"),
        (
            lambda t: [shutil.rmtree(t / "photos" / s) for s in ("dog", "vase")],
            {},
            "is empty",
        ),
    ],
)
def test_folders_that_do_not_fit(table, edit, changes, why):
    edit(table)
    with pytest.raises(InputError, match=".") as error:
        evaluate_systems.gather(asked(table, **changes))
    assert why in str(error.value)


def test_a_subject_without_a_noun(table):
    for place in ("photos", "system"):
        rename(table, f"{place}/vase", f"{place}/thing_9")
    with pytest.raises(InputError, match="--noun=thing_9=dog"):
        evaluate_systems.gather(asked(table))
    ((_, thing),) = evaluate_systems.gather(asked(table, nouns=["thing"]))[0].values()
    assert thing.pictures[0].prompt == "a thing"


def test_prompts_inside_pictures(tmp_path):
    save(tmp_path / "photos/0.png", 0)
    save(tmp_path / "own/a.png", 1, prompt=f"An {NAME}  dog", identifier=NAME)
    (tmp_path / "own" / "Thumbs.db").write_text("x")
    wanted = EvaluationRequest(
        systems=[f"own={tmp_path / 'own'}"],
        photos=str(tmp_path / "photos"),
        nouns=["dog"],
    )
    ((work,),) = evaluate_systems.gather(wanted)[0].values()
    assert [shot.prompt for shot in work.pictures] == ["A dog"]
    assert [file.name for file in work.skipped] == ["Thumbs.db"]
    save(tmp_path / "own/b.png", 2)
    with pytest.raises(
        InputError, match="1 of 2 pictures have no prompt in their metadata"
    ):
        evaluate_systems.gather(wanted)


def test_what_a_reader_is_warned_of(tmp_path):
    photo = save(tmp_path / "0.png", 0)
    wide = epath.Path(tmp_path) / "wide.png"
    image_files.save_png(wide, noise(1)[:40])
    shots = (
        GeneratedImage(photo, "a"),
        GeneratedImage(wide, "b"),
        GeneratedImage(photo, "b"),
    )
    work = ImageSet(SubjectPhotos("s", "", (photo,)), shots)
    said = protocol.caveats("x", [work], image_sets.inspect_images([work]))
    assert "2 of 3 pictures are photos of the subject" in said[0]
    assert "1 of 3 pictures are not square" in said[1]
    assert "1 to 2 pictures of a prompt" in said[2]
    assert protocol.sizes(
        (s.file for s in shots), image_sets.inspect_images([work])
    ) == [
        "64 x 40",
        "64 x 64",
    ]


def test_identifiers_are_taken_out_as_words():
    assert (
        image_sets.strip_identifier("an axo dog, axons", "axo", "dog") == "a dog, axons"
    )
    assert (
        image_sets.strip_identifier("A zaf owl on a zaf", "zaf", "owl")
        == "An owl on a "
    )
    assert (
        image_sets.strip_identifier("an axo orange axo dog", "axo", "dog")
        == "an orange dog"
    )
    assert image_sets.strip_identifier("an [V] [N]", "axo", "dog") == "a dog"
    assert image_sets.strip_identifier("a dog", "", "dog") == "a dog"


def evaluate(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "imagen_booth.evaluate", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_on_a_toy_run(run, tmp_path, a_judge):
    done = evaluate(f"--run={run}", f"--judge={a_judge}", "--name=job")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"\nopen {run}/evaluation/evaluation.html\n")
    assert "warning: DreamBooth (tiny): 2 of 6 pictures are photos" in done.stdout
    found = json.loads((run / "evaluation" / "evaluation.json").read_text())
    scores = found["systems"]["DreamBooth (tiny)"]["scores"]
    assert scores.keys() == {m for m in protocol.METRICS if m.startswith("judge")}


@pytest.mark.long
def test_command_on_a_folder_of_runs(run, tmp_path, a_judge):
    other = run.parent / "cat"
    shutil.copytree(run, other)
    settings = json.loads((other / "config.json").read_text())
    settings["subject"]["photos"] = "toybox:dog/8"
    (other / "config.json").write_text(json.dumps(settings))
    unfinished = run.parent / "new"
    unfinished.mkdir()
    (unfinished / "manifest.json").write_text('{"status": "running"}')
    done = evaluate(f"--runs={run.parent}", f"--judge={a_judge}", "--name=job")
    assert done.returncode == 0, done.stderr
    assert f"warning: {unfinished} is not finished and is left out" in done.stderr
    page = run.parent / "evaluation" / "evaluation.html"
    assert done.stdout.endswith(f"\nopen {page}\n")
    assert "the class has drifted" in page.read_text()
    found = json.loads((run.parent / "evaluation" / "evaluation.json").read_text())
    system = found["systems"]["runs"]
    assert set(system["by_subject"]) == {"dog/7", "dog/8"}
    assert system["subjects"] == 2
    done = evaluate(f"--runs={unfinished}", f"--judge={a_judge}")
    assert done.returncode == 2
    assert f"--runs={unfinished} holds no finished run" in done.stderr


def test_command_says_what_weights_to_get(run, tmp_path):
    settings = json.loads((run / "config.json").read_text())
    settings["subject"]["photos"] = "my/dog"
    (run / "config.json").write_text(json.dumps(settings))
    done = evaluate(f"--run={run}")
    assert done.returncode == 2
    assert "convert fetch dino_s16" in done.stderr
    assert "convert fetch clip_b32" in done.stderr
    assert "lpips_alex in third_party/manifest.json" in done.stderr
    done = evaluate(f"--run={run}", f"--dino={tmp_path}")
    assert done.returncode == 2
    assert f"--dino={tmp_path}" in done.stderr
    assert "convert fetch dino_s16" in done.stderr


def stand_ins(folder, subjects, seeds):
    """A system whose pictures are the real photos, in turn, for 25 prompts each."""
    for subject in subjects:
        files = sorted((REAL / subject).glob("*.jpg"))
        for place in (folder / "photos" / subject, folder / "real" / subject):
            place.mkdir(parents=True)
        for file in files:
            shutil.copy(file, folder / "photos" / subject)
        for index, seed in itertools.product(range(25), range(seeds)):
            name = f"{index:02}_{seed}.jpg"
            file = files[(index + seed) % len(files)]
            (folder / "real" / subject / name).symlink_to(file)
    return EvaluationRequest(
        systems=[f"photos as pictures={folder / 'real'}"],
        classes=[f"photos as pictures={folder / 'photos'}"],
        photos=str(folder / "photos"),
        prompts="dreambench",
    )


@pytest.mark.long
@real_photos
def test_dreambench_on_some_real_subjects(small, tmp_path):
    wanted = stand_ins(tmp_path, ("dog", "duck_toy"), 2)
    page, _ = evaluate_systems.evaluate_systems(
        wanted, RANDOM, epath.Path(tmp_path) / "out", epath.Path(tmp_path) / "cache"
    )
    found = json.loads((page.parent / "evaluation.json").read_text())
    system = found["systems"]["photos as pictures"]
    assert (system["subjects"], system["pictures"]) == (2, 100)
    lists = [SUITES["dreambench_living"], SUITES["dreambench_objects"]]
    filled = {
        prompt.replace("[V] ", "").replace("[N]", noun)
        for some, noun in zip(lists, ("dog", "toy"), strict=True)
        for _, prompt in some
    }
    assert system["prompts"] == len(filled) == 50
    assert system["scores"]["dino"]["groups"] == 2
    assert set(system["scores"]) == {"dino", "clip_i", "clip_t", "pres", "div"}


@real_photos
@pytest.mark.slow
def test_dreambench_whole_on_the_real_subjects(tmp_path):
    """Ten subjects by 25 prompts by 4 pictures, with networks of the real sizes."""
    subjects = sorted(each.name for each in REAL.iterdir() if each.is_dir())
    wanted = stand_ins(tmp_path, subjects, 4)
    page, _ = evaluate_systems.evaluate_systems(
        wanted, RANDOM, epath.Path(tmp_path) / "out", epath.Path(tmp_path) / "cache"
    )
    found = json.loads((page.parent / "evaluation.json").read_text())
    system = found["systems"]["photos as pictures"]
    assert (system["subjects"], system["pictures"]) == (10, 1000)
    # Both are of the photos against themselves, some of them counted more often.
    pres, dino = (system["scores"][name]["mean"] for name in ("pres", "dino"))
    assert pres == pytest.approx(dino, abs=0.02)
