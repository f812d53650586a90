"""Configs: defaults per cascade, the way to plain data, flags and their mistakes."""

import dataclasses
import importlib
import json
import pathlib
import sys

import ml_collections
import pytest
from absl import flags
from absl.testing import flagsaver
from paths import CONFIGS

from imagen_booth import cli, dreambooth
from imagen_booth.cascade import CASCADES
from imagen_booth.config import build
from imagen_booth.config.build import from_config, to_job
from imagen_booth.config.presets import dreambooth as defaults
from imagen_booth.config.presets import pretraining, two_subjects
from imagen_booth.config.schema import Job, Mesh, Pretraining
from imagen_booth.errors import InputError

SUBJECT, DOG = str(CONFIGS / "subject.py"), str(CONFIGS / "dog.py")


@pytest.mark.parametrize("variant", ["", ":paper", ":lora"])
@pytest.mark.parametrize("name", CASCADES)
def test_every_cascade_has_a_job(name, variant):
    job = to_job(defaults(name + variant))
    assert job.cascade == name
    # what config.json keeps of it is enough to make it again
    kept = json.loads(json.dumps(dataclasses.asdict(job)))
    assert build.build(Job, kept, "config") == job
    if variant == ":paper":
        assert job.class_images.count == job.base.steps == job.sr256.steps == 1000
    for stage in ("base", "sr256", "sr1024"):
        tuning = job.finetuning(stage)
        # The photo stage is small and has no attention: it trains as a whole.
        whole = stage == "sr1024" and name.startswith("if_")
        assert tuning.adapts == (variant == ":lora" and tuning.steps > 0 and not whole)


def test_toybox_with_adapters_is_the_default():
    assert to_job(defaults(None)) == to_job(defaults("toybox:lora"))


@pytest.mark.parametrize("name", CASCADES)
def test_methods_defaults(name):
    """Lambda 1, SR tuned at level 1e-5, no average in fine-tuning."""
    job = to_job(defaults(name))
    assert job.base.prior_weight == 1
    assert job.base.class_rows > 0
    assert job.sr256.level == job.sr1024.level == 1e-5
    assert {tuning.optim.ema for tuning in (job.base, job.sr256, job.sr1024)} == {0.0}
    assert job.class_images.sampler.method == "ancestral"


def test_the_papers_defaults():
    job = to_job(defaults("imagen"))
    rates = [(t.optim.name, t.optim.lr) for t in (job.base, job.sr256, job.sr1024)]
    assert rates == [("adafactor", 1e-5), ("adam", 1e-5), ("adam", 1e-5)]
    assert (job.base.subject_rows, job.base.class_rows) == (1, 1)
    shots = [job.pictures.base, job.pictures.sr256, job.pictures.sr1024]
    assert [(s.method, s.steps, s.guidance) for s in shots] == [
        ("ancestral", 256, 7.0),
        ("ancestral", 64, 4.0),
        ("ancestral", 32, 4.0),
    ]
    assert (shots[0].threshold, shots[0].ratio) == ("dynamic", 0.995)


@pytest.mark.parametrize("name", ["if_m", "if_l", "if_xl"])
def test_ifs_defaults(name):
    job = to_job(defaults(name))
    assert (job.base.optim.name, job.base.optim.lr) == ("adamw", 1e-7)
    assert (job.sr256.optim.name, job.sr256.optim.lr) == ("adamw", 5e-6)
    assert job.weights.sr1024 == "shipped"  # ours, for DeepFloyd published none
    assert job.finetuned_parts == ("base", "sr256", "sr1024")
    assert job.class_images.count == 200
    shot = job.pictures.base
    assert (shot.steps, shot.spacing, shot.guidance) == (100, "leading", 7.0)
    assert (shot.threshold, shot.ratio, shot.cap) == ("dynamic", 0.95, 1.5)
    assert (job.pictures.sr256.steps, job.pictures.sr256.guidance) == (50, 4.0)
    # stages that predict their variance are tuned to go on doing so
    assert job.base.hybrid
    assert job.sr256.hybrid
    assert shot.variance == "learned"


@pytest.mark.parametrize(
    ("arg", "words"),
    [
        ("toybx", "'toybx' is not known.*toybox.*if_xl"),
        ("toybox:papers", "'papers' of cascade 'toybox'.*:paper"),
    ],
)
def test_unknown_cascades_are_refused(arg, words):
    with pytest.raises(InputError, match=words):
        defaults(arg)


def test_defaults_take_no_new_key():
    config = defaults("tiny")
    with pytest.raises((AttributeError, KeyError), match="steps"):
        setattr(config.base, "stpes", 3)  # noqa: B010  unknown to the type checker


def changed(path, value):
    """The tiny job as JSON, with one value replaced or added."""
    tree = dataclasses.asdict(to_job(defaults("tiny")))
    *parents, last = path.split(".")
    inner = tree
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return tree


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("base.stpes", 3, "config.base.stpes is not a setting.*config.base.steps"),
        ("qqqq", 3, "config.qqqq is not a setting"),
        ("base.steps", "many", "config.base.steps='many' should be of type int"),
        ("base.steps", 2.5, "config.base.steps=2.5 should be of type int"),
        ("base.steps", True, "config.base.steps=True should be of type int"),
        ("base.hybrid", 1, "config.base.hybrid=1 should be of type bool"),
        ("base.optim.lr", "1e-3", "config.base.optim.lr='1e-3' .*float"),
        ("subject.shift", [0.5], "config.subject.shift"),
        ("subject.background", [0, 0, "x"], r"config.subject.background\[2\]='x'"),
        ("pictures.base.steps", 2.5, "config.pictures.base.steps=2.5"),
        ("pictures.base.method", "ddmi", "method is 'ddmi'.*'?ddim"),
        ("base.steps", -1, "steps=-1"),
        ("base.accumulate", 0, "accumulate=0"),
        ("sr256.level", 1.0, "level=1.0"),
        ("base.null_text", 1.0, "null_text=1.0"),
        ("base.adapter.rank", 0, "config.base.adapter.rank=0 should be 1 or more"),
        ("base.adapter.alpha", 0.0, "config.base.adapter.alpha=0.0 .* above 0"),
        ("patience", -1, "config.patience=-1 should be 0 or more"),
        ("patience", 2, "config.patience=2, but config.keep='last'"),
        ("class_images.count", 3, "config.class_images.count=3 is not a multiple"),
    ],
)
def test_bad_settings_are_named(path, value, words):
    with pytest.raises(InputError, match=words):
        build.build(Job, changed(path, value), "config")


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("base.optim.lr", 1, 1.0),
        ("subject.shift", [1, 0], (1.0, 0.0)),
        ("pictures.base.steps", "smart27", "smart27"),
        ("pictures.base.variance", "learned", "learned"),
        ("pictures.base.variance", 0.5, 0.5),
        ("pictures.base.cap", None, None),
        ("pictures.prompts", ["a", "b"], ("a", "b")),
    ],
)
def test_settings_of_several_kinds(path, value, expected):
    job = build.build(Job, changed(path, value), "config")
    for name in path.split("."):
        job = getattr(job, name)
    assert job == expected
    assert type(job) is type(expected)


@pytest.mark.parametrize("stage", ["base", "sr256", "sr1024"])
def test_pretraining_has_a_job_per_stage(stage):
    job = from_config(Pretraining, pretraining(f"toybox_{stage}"))
    assert (job.cascade, job.stage) == ("toybox", stage)
    assert job.optim.ema > 0


def test_pretraining_on_photographs_without_captions():
    job = from_config(Pretraining, pretraining("sr1024_div2k"))
    assert (job.cascade, job.stage) == ("toybox", "sr1024")
    assert (job.source, job.image_feature) == ("div2k/bicubic_x4", "hr")
    assert job.caption_feature == ""


def test_unknown_pretraining_is_refused():
    with pytest.raises(InputError, match="'toybox_sr512'.*toybox_sr1024"):
        pretraining("toybox_sr512")


# The command, in this process: its flags are defined, set and taken back.

# ml_collections loads config files in a way that importlib deprecates.
reads_config = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture
def train():
    """The command's module, new, its flags known to absl while the test runs."""
    name = "imagen_booth.train"
    with flagsaver.flagsaver():
        yield importlib.import_module(name)
    del sys.modules[name]


@pytest.fixture
def run(train, monkeypatch):
    """Runs the command's main with arguments; returns what it hands to the booth."""
    handed = []

    def record(job, workdir, overwrite, *, profile):
        assert not profile
        handed.append((job, workdir, overwrite))
        return workdir / "report.html"

    monkeypatch.setattr(dreambooth, "run", record)

    def command(*args):
        # overrides of a config are looked for there
        monkeypatch.setattr(sys, "argv", ["train", *args])
        flags.FLAGS(sys.argv)
        train.main()
        return handed.pop()

    return command


@reads_config
def test_a_toy_dog(run):
    job, workdir, overwrite = run(f"--config={DOG}")
    assert job.cascade == "toybox"
    assert job.subject.photos == "toybox:dog/11"
    assert job.subject.class_noun == "dog"
    assert str(workdir) == "runs/dog"
    assert overwrite == frozenset()


@reads_config
def test_ones_own_subject_with_overrides(run):
    job, workdir, overwrite = run(
        f"--config={SUBJECT}:tiny",
        "--config.subject.photos=some/folder",
        "--config.subject.class_noun=dog",
        "--config.subject.shift=(0.5,-1)",
        "--config.base.steps=7",
        "--config.base.optim.lr=2e-4",
        "--config.pictures.sr256.cap=1.5",
        "--config.pictures.prompts=('a [V] [N]',)",
        "--config.tensorboard",
        '--config.mesh.rules=(("unet/conv_in/kernel",(None,None,None,"fsdp")),)',
        "--workdir=runs/elsewhere",
        "--overwrite=base,samples",
    )
    plain = to_job(defaults("tiny"))
    assert job == dataclasses.replace(
        plain,
        subject=dataclasses.replace(
            plain.subject, photos="some/folder", class_noun="dog", shift=(0.5, -1.0)
        ),
        base=dataclasses.replace(
            plain.base, steps=7, optim=dataclasses.replace(plain.base.optim, lr=2e-4)
        ),
        pictures=dataclasses.replace(
            plain.pictures,
            prompts=("a [V] [N]",),
            sr256=dataclasses.replace(plain.pictures.sr256, cap=1.5),
        ),
        tensorboard=True,
        mesh=Mesh(rules=(("unet/conv_in/kernel", (None, None, None, "fsdp")),)),
    )
    assert str(workdir) == "runs/elsewhere"
    assert overwrite == {"base", "samples"}


@reads_config
@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("base.steps=smart50", "smart50"),
        ("base.steps=7", 7),
        ("base.variance=0.5", 0.5),
        ("base.variance=0", 0.0),
        ("base.variance=learned", "learned"),
        ("base.cap=2", 2.0),
        ("base.cap=None", None),
    ],
)
def test_flags_of_several_types(run, flag, expected):
    job, _, _ = run(f"--config={SUBJECT}:if_m", f"--config.pictures.{flag}")
    found = getattr(job.pictures.base, flag.partition("=")[0].partition(".")[2])
    assert found == expected
    assert type(found) is type(expected)


@reads_config
@pytest.mark.parametrize("sampler", ["pictures.sr256", "class_images.sampler"])
@pytest.mark.parametrize(
    "flag", ["guidance_interval=(5.0,0.2)", "steps=10,20,5", "method=ddmi"]
)
def test_errors_of_a_sampler_name_its_place(run, sampler, flag):
    with pytest.raises(InputError) as caught:
        run(f"--config={SUBJECT}:if_m", f"--config.{sampler}.{flag}")
    assert str(caught.value).startswith(f"config.{sampler}.")


@reads_config
@pytest.mark.parametrize("flag", ["steps=2.5", "steps", "cap=much", "variance=[1]"])
def test_flags_of_several_types_are_checked(run, flag):
    name = flag.partition("=")[0]
    with pytest.raises(InputError, match=f"config.pictures.base.{name}="):
        run(f"--config={SUBJECT}:if_m", f"--config.pictures.base.{flag}")


def test_no_config_is_refused(run):
    with pytest.raises(InputError, match="--config is missing"):
        run()


@reads_config
@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([f"--config={SUBJECT}", "--config.base.stpes=3"], ["stpes", "steps"]),
        ([f"--config={SUBJECT}", "--config.base.optm.lr=3"], ["optm", "optim"]),
        ([f"--config={SUBJECT}", "--config.base.steps=many"], ["steps", "many"]),
        ([f"--config={SUBJECT}:toybx"], ["toybx", "toybox", "if_xl"]),
        ([f"--config={SUBJECT}", "stray"], ["stray", "--flag=value"]),
    ],
)
def test_mistakes_on_the_command_line_end_with_2(
    args, words, train, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["train", *args])
    with pytest.raises(SystemExit) as stop:
        cli.run(train.main, None)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    assert "Traceback" not in message


def test_configs_are_locked():
    for path in (DOG, SUBJECT):
        scope: dict = {}
        exec(pathlib.Path(path).read_text(), scope)
        config = scope["get_config"]("tiny")
        assert isinstance(config, ml_collections.ConfigDict)
        assert config.is_locked


def two(**changes):
    """The job of configs/two_subjects.py on the tiny cascade, with settings changed."""
    config = two_subjects("tiny")
    config.update_from_flattened_dict(
        {
            "subject.photos": "dogs",
            "subject.class_noun": "dog",
            "second.photos": "cats",
            "second.class_noun": "cat",
        }
        | {name.replace("__", "."): value for name, value in changes.items()}
    )
    return to_job(config)


def test_two_subjects_have_twice_the_steps_and_prompts_of_both():
    one, both = to_job(defaults("tiny")), two()
    for name in ("base", "sr256", "sr1024"):
        assert both.finetuning(name).steps == 2 * one.finetuning(name).steps
    assert any("[V2]" in each and "[V1]" in each for each in both.pictures.prompts)
    assert list(both.subjects) == ["subject", "second"]
    assert both.class_nouns == ("dog", "cat")
    assert two(second__class_noun="dog").class_nouns == ("dog",)
    assert list(one.subjects) == ["subject"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"second__photos": ""}, "config.second.class_noun='cat'.*photos is empty"),
        ({"second__photos": "dogs"}, "config.second.photos='dogs' is config.subject"),
        ({"text__steps": 3}, "config.text.steps=3, .*'cats' is another; set"),
        ({"second__description": "grey cat"}, "config.second.description='grey cat'"),
        ({"second__crop": "middle"}, "config.second.crop='middle' .* centre, pad"),
    ],
)
def test_second_subjects_that_cannot_be(changes, words):
    with pytest.raises(InputError, match=words):
        two(**changes)
