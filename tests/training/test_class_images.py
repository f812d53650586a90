"""Class images: drawn once, in groups, and drawn again only where missing."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from imagen_booth.cascade import Stage
from imagen_booth.data import image_files
from imagen_booth.data.examples import Embedding
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.diffusion.schedule import CosineSchedule, TableSchedule
from imagen_booth.distributed import sharding
from imagen_booth.errors import Stopped
from imagen_booth.models import SIZES
from imagen_booth.sampling import cascade_sampler
from imagen_booth.training import class_images
from imagen_booth.weights.load import Part

BASE = Stage("base", 8, SIZES["tiny_base"], CosineSchedule())
SR = dataclasses.replace(BASE, name="sr256", resolution=16, low_resolution=8)
RECIPE = class_images.Recipe(
    prompt="a dog",
    unet="1234",
    made_from="5678",
    stage=BASE,
    level=0.0,
    sampler=SamplerConfig("ancestral", 2, threshold="static"),
    group=2,
    seed=40,
    dtype="float32",
)
TEXT = Embedding(np.ones((3, 5), np.float32), np.ones(3, bool))
NULL = Embedding(np.zeros((3, 5), np.float32), np.ones(3, bool))


class Half:
    """Predicts half of what it is given of x_t; no weights."""

    def __call__(self, params, x, time, text, mask, level, of_text):
        return 0.5 * x[..., :3]

    def read_text(self, params, *inputs):
        return ()


PART = Part(Half(), {}, "base", "random", "1234", "none", False)


@pytest.fixture
def drawn(monkeypatch):
    """What was asked of the sampler: the seeds of each group, and its low images."""
    calls, real = [], class_images.start_sampling

    def draw_stage(*args, **options):
        calls.append((args[-1], options["low"]))
        return real(*args, **options)

    monkeypatch.setattr(class_images, "start_sampling", draw_stage)
    return calls


def mesh_of(devices):
    return jax.make_mesh(
        (devices, 1),
        sharding.AXES,
        axis_types=(AxisType.Auto,) * 2,
        devices=jax.devices()[:devices],
    )


def draw(cache, count, recipe=RECIPE, lows=None, check_stop=lambda: None, devices=2):
    return class_images.sample_class_images(
        recipe,
        count,
        PART,
        TEXT,
        NULL,
        cache=cache,
        mesh=mesh_of(devices),
        check_stop=check_stop,
        lows=lows,
    )


def files(cache):
    folder = class_images.class_image_folder(RECIPE, cache)
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def test_drawn_once_and_read_ever_after(tmp_path, drawn):
    first = draw(tmp_path, 4)
    assert [seeds for seeds, _ in drawn] == [[40, 41], [42, 43]]
    assert [image.shape for image in first] == [(8, 8, 3)] * 4
    assert all(image.dtype == np.uint8 for image in first)
    assert len({image.tobytes() for image in first}) == 4
    kept = files(tmp_path)
    assert sorted(kept) == [f"{index:05d}.png" for index in range(4)]

    again = draw(tmp_path, 4)
    np.testing.assert_array_equal(again, first)
    assert len(drawn) == 2
    assert files(tmp_path) == kept
    # a job that wants fewer shares them, and one that wants more adds to them
    np.testing.assert_array_equal(draw(tmp_path, 2), first[:2])
    assert len(drawn) == 2
    np.testing.assert_array_equal(draw(tmp_path, 6)[:4], first)
    assert [seeds for seeds, _ in drawn[2:]] == [[44, 45]]


def test_more_devices_draw_more_groups_at_a_time_and_none_twice(
    tmp_path, drawn, monkeypatch
):
    rows, real = [], cascade_sampler.sampler_program

    def program(*about):
        draw = real(*about)

        def told(params, *, seeds, **inputs):
            shards = [np.asarray(each.data) for each in seeds.addressable_shards]
            rows.append([shard.tolist() for shard in shards])
            return draw(params, seeds=seeds, **inputs)

        return told

    monkeypatch.setattr(cascade_sampler, "sampler_program", program)
    many = draw(tmp_path / "many", 6, devices=4)
    assert [seeds for seeds, _ in drawn] == [[40, 41, 42, 43], [44, 45]]
    # One image for each device; the last batch keeps its shape, filled up.
    assert rows == [[[40], [41], [42], [43]], [[44], [45], [44], [45]]]
    np.testing.assert_array_equal(many, draw(tmp_path / "few", 6, devices=2))


@pytest.mark.parametrize("left", [None, 0, 20, 60])
def test_a_missing_or_damaged_picture_brings_back_its_group(tmp_path, drawn, left):
    draw(tmp_path, 6)
    kept = files(tmp_path)
    file = class_images.class_image_folder(RECIPE, tmp_path) / "00003.png"
    if left is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:left])
    draw(tmp_path, 6)
    assert [seeds for seeds, _ in drawn[3:]] == [[42, 43]]
    assert files(tmp_path) == kept


def test_a_stopped_run_keeps_what_was_drawn(tmp_path, drawn):
    def stop_at_the_third():
        if len(drawn) == 2:
            raise Stopped("stopped")

    with pytest.raises(Stopped):
        draw(tmp_path, 6, check_stop=stop_at_the_third)
    assert len(files(tmp_path)) == 4
    stopped = draw(tmp_path, 6)
    assert [seeds for seeds, _ in drawn] == [[40, 41], [42, 43], [44, 45]]
    np.testing.assert_array_equal(draw(tmp_path / "other", 6), stopped)


def test_a_batch_is_written_while_the_next_is_sampled(tmp_path, monkeypatch):
    order, start, save = [], class_images.start_sampling, class_images._save

    def starting(*args, **options):
        order.append(("sent", args[-1][0]))
        return start(*args, **options)

    def saving(*args):
        order.append(("written", args[3][0] + RECIPE.seed))
        save(*args)

    monkeypatch.setattr(class_images, "start_sampling", starting)
    monkeypatch.setattr(class_images, "_save", saving)
    draw(tmp_path, 6)
    assert order == [
        *(("sent", 40), ("sent", 42), ("written", 40)),
        *(("sent", 44), ("written", 42), ("written", 44)),
    ]


def test_pictures_say_what_made_them(tmp_path):
    draw(tmp_path, 2)
    folder = class_images.class_image_folder(RECIPE, tmp_path)
    metadata = image_files.read_png_metadata(folder / "00001.png")
    assert (metadata["prompt"], metadata["seed"], metadata["weights"]) == (
        "a dog",
        "41",
        "1234",
    )
    assert {"stage", "weights_licence", "sampler"} < metadata.keys()
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["unet"] == "1234"
    assert recipe["sampler"]["steps"] == 2


def test_super_resolution_enlarges_each_its_own(tmp_path, drawn):
    recipe = dataclasses.replace(RECIPE, stage=SR, level=1e-3)
    lows = [np.full((8, 8, 3), 50 * index, np.uint8) for index in range(4)]
    images = draw(tmp_path, 4, recipe, lows)
    assert [image.shape for image in images] == [(16, 16, 3)] * 4
    given = np.concatenate([low for _, low in drawn])
    np.testing.assert_array_equal(given, lows)


CHANGES = {
    "prompt": "a cat",
    "unet": "1235",
    "made_from": "5679",
    "stage": dataclasses.replace(BASE, schedule=TableSchedule()),
    "level": 1e-5,
    "sampler": dataclasses.replace(RECIPE.sampler, guidance=2.0),
    "group": 4,
    "seed": 41,
    "dtype": "bfloat16",
}


def test_every_change_of_recipe_is_another_folder(tmp_path):
    assert CHANGES.keys() == {field.name for field in dataclasses.fields(RECIPE)}
    others = [dataclasses.replace(RECIPE, **{k: v}) for k, v in CHANGES.items()]
    folders = {
        class_images.class_image_folder(recipe, tmp_path)
        for recipe in (RECIPE, *others)
    }
    assert len(folders) == 1 + len(CHANGES)
    assert (
        class_images.class_image_folder(dataclasses.replace(RECIPE), tmp_path)
        in folders
    )


def test_an_odd_prompt_is_a_plain_folder(tmp_path):
    recipe = dataclasses.replace(RECIPE, prompt="a ../dog/é?" + "x" * 300)
    folder = class_images.class_image_folder(recipe, tmp_path)
    assert folder.parent == tmp_path / "class_images"
    folder.mkdir(parents=True)
