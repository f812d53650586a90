"""Pretraining: what it measures and records, from shipped weights, on other sets."""

import dataclasses
import io
import json

import numpy as np
import pytest
from etils import epath
from PIL import Image

from imagen_booth.cascade import CASCADES, PHOTO_STAGE, by_name
from imagen_booth.config import build, presets
from imagen_booth.config.schema import Pretraining
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.errors import InputError
from imagen_booth.rundir.checkpoints import read_params
from imagen_booth.toybox import examples, grammar
from imagen_booth.train_state import flatten
from imagen_booth.training import pretrain_stage
from imagen_booth.weights import export, load, native


def paint(seed, indices, *, size):
    """Noise with captions, in the place of pictures that take long to render."""
    rng = np.random.default_rng((seed, indices[0]))
    images = rng.integers(0, 256, (len(indices), size, size, 3), np.uint8)
    made = [examples.example(seed, index) for index in indices]
    return images, [e.caption for e in made], [e.attributes for e in made]


@pytest.fixture(autouse=True)
def _no_renderer(monkeypatch):
    monkeypatch.setattr(examples, "render_examples", paint)


def job_of(name="tiny_base", **changes):
    """Two quick steps of a pretraining."""
    plain = build.from_config(Pretraining, presets.pretraining(name))
    quick = dataclasses.replace(
        plain,
        records=256,
        steps=2,
        batch=4,
        save_every=1,
        preview_every=1,
        prompts=plain.prompts[:2],
        sampler=SamplerConfig("ddim", 1),
    )
    return dataclasses.replace(quick, **changes)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A finished run of the base stage, and its weights as they ship."""
    folder = epath.Path(tmp_path_factory.mktemp("base"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examples, "render_examples", paint)
        pretrain_stage.run(job_of(), folder / "run")
    shipped = folder / "shipped"
    export.write_native(
        shipped, export.export_run(folder / "run", []), np.dtype("float32")
    )
    return folder / "run", shipped


def held_out_losses(run):
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss/held_out"] for row in rows if "loss/held_out" in row}


@pytest.mark.long
def test_held_out_loss_is_logged_and_recorded(base):
    run, _ = base
    losses = held_out_losses(run)
    assert sorted(losses) == [1, 2]
    prior = json.loads((run / "manifest.json").read_text())["prior"]
    assert (prior["steps"], prior["images"]) == (2, 8)
    assert prior["held_out"]["records"] == 128
    assert prior["held_out"]["loss"] == pytest.approx(losses[2], rel=1e-5)
    # An untrained network says x0 = 0: the noise's mean square of 1/3, times the mean
    # weight, 10 t + (2 / pi) 3 where sin(pi t / 2) = 1 / sqrt(10), which is 3.96.
    assert losses[2] == pytest.approx(3.96 / 3, rel=0.3)


@pytest.mark.long
def test_finished_run_is_measured_again_to_the_same_loss(base, tmp_path):
    run, _ = base
    for name in ("base", "manifest.json", "records"):
        (tmp_path / name).symlink_to(run / name)
    before = json.loads((run / "manifest.json").read_text())
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "manifest.json").write_text(json.dumps(before | {"prior": {}}))
    pretrain_stage.run(job_of(), epath.Path(tmp_path))
    after = json.loads((tmp_path / "manifest.json").read_text())
    assert after["prior"] == before["prior"]


@pytest.mark.long
def test_shipped_manifest_tells_how_the_weights_were_made(base):
    _, shipped = base
    text = (shipped / native.MANIFEST).read_text()
    assert str(shipped.parent) not in text, "a place on this machine"
    manifest = json.loads(text)
    assert manifest["cascade"] == "tiny"
    assert sorted(manifest["parts"]) == ["base", "text"]
    part = manifest["parts"]["base"]
    assert part["steps"] == part["prior"]["steps"] == 2
    assert part["prior"]["config"]["seed"] == 0
    assert part["prior"]["config"]["optim"]["b2"] == 0.99
    assert part["prior"]["knows"]["nouns"] == list(grammar.WORDS.nouns)
    assert {"imagen_booth", "commit", "jax", "machine"} <= part["made_by"].keys()


@pytest.mark.long
def test_from_shipped_weights(base, tmp_path, monkeypatch):
    run, shipped = base
    monkeypatch.setattr(load, "shipped_folder", lambda cascade: shipped)
    still = job_of(init="shipped", cache=str(run / "records"))
    still = dataclasses.replace(
        still, steps=1, optim=dataclasses.replace(still.optim, lr=0.0)
    )
    pretrain_stage.run(still, epath.Path(tmp_path))
    params, _ = read_params(epath.Path(tmp_path / "base"))
    for kind, name in (("unet", "base"), ("text", "text")):
        stored = load.find(by_name("tiny"), name, "shipped")
        assert stored is not None
        for path, leaf in flatten(params[kind]).items():
            expected = stored.tensors[path].whole()
            np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-7)
    prior = json.loads((tmp_path / "manifest.json").read_text())["prior"]
    assert sorted(prior["made_from"]) == ["base", "text"]


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.long
def test_top_stage_on_photographs_without_captions(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets", reason="TFDS is not installed")

    class Div2k(tfds.core.GeneratorBasedBuilder):
        """What the set of that name has, in small."""

        VERSION = tfds.core.Version("2.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="bicubic_x4")]

        def _info(self):
            pictures = {name: tfds.features.Image() for name in ("lr", "hr")}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(pictures)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._draw(5), "validation": self._draw(2)}

        _generate_examples = None

        def _draw(self, count):
            rng = np.random.default_rng(count)
            for index in range(count):
                large = rng.integers(0, 256, (130 + index, 200, 3), np.uint8)
                yield index, {"hr": png(large), "lr": png(large[::4, ::4])}

    sets = str(tmp_path / "sets")
    builder = Div2k(data_dir=sets, file_format="array_record")
    offline = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=offline)

    job = job_of("sr1024_div2k", data_dir=sets, cascade="tiny", crop=64)
    run = epath.Path(tmp_path / "run")
    pretrain_stage.run(dataclasses.replace(job, steps=1), run)
    params, steps = read_params(run / "sr1024")
    assert (list(params), steps) == (["unet"], 1)
    assert list(held_out_losses(run)) == [1]
    assert "knows" not in json.loads((run / "manifest.json").read_text())["prior"]
    (preview,) = (run / "samples/previews/sr1024").iterdir()
    with Image.open(preview) as picture:
        assert picture.width > 1024


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("tiny_base", {"source": "no_such_set"}, "config.source=no_such_set"),
        ("tiny_sr256", {}, "config.text is empty.*'shipped'"),
        ("tiny_base", {"records": 300}, "config.records=300 is not a multiple of 256"),
        ("tiny_base", {"init": "shipped"}, "no weights ship for the tiny cascade"),
    ],
)
def test_bad_settings_are_named(tmp_path, name, changes, words):
    with pytest.raises(InputError, match=words):
        pretrain_stage.run(job_of(name, **changes), epath.Path(tmp_path))


@pytest.mark.long
def test_a_stage_learns_from_photographs(tmp_path, monkeypatch):
    """Crops of a folder, without text, through the stage of the photo cascades."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(10):
        pixels = rng.integers(0, 256, (260, 300, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    cascade = by_name("if_m")
    small = dataclasses.replace(
        PHOTO_STAGE,
        model=dataclasses.replace(
            PHOTO_STAGE.model, widths=(8, 8, 8), blocks_down=(1, 1, 1), time_width=8
        ),
    )
    monkeypatch.setitem(CASCADES, "if_m", cascade.having(small))
    job = job_of("photo_sr1024", data_dir=str(folder), crop=32)
    run = epath.Path(tmp_path / "run")
    pretrain_stage.run(job, run)
    prior = json.loads((run / "manifest.json").read_text())["prior"]
    assert prior["data"] == {"photographs": 9, "licences": {"not stated": 9}}
    assert prior["held_out"]["records"] == 128
    preview = run / "samples" / "previews" / "sr1024" / "step_000002.png"
    with preview.open("rb") as file, Image.open(file) as image:
        assert image.size == (3 * 256, 256)  # low, prediction, truth
    shipped = epath.Path(tmp_path / "shipped")
    export.write_native(shipped, export.export_run(run, []), np.dtype("bfloat16"))
    found = native.find(shipped, "sr1024")
    assert found.licence == "Apache-2.0"
    with pytest.raises(InputError, match="config.crop=0"):
        pretrain_stage.run(job_of("photo_sr1024", data_dir=str(folder), crop=0), run)
