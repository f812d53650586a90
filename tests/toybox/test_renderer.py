"""The ray tracer: closed-form silhouettes, and agreement between its ways to draw."""

import dataclasses
import math

import numpy as np
import pytest

from imagen_booth.errors import InputError
from imagen_booth.toybox import examples, grammar, packing, scene
from imagen_booth.toybox.packing import MAX_SOLIDS
from imagen_booth.toybox.renderer import draw, render

LAMP = scene.Material(colour=(1.0, 1.0, 1.0), glow=5.0)
DISTANCE, FOV = 6.0, 30.0
HALF = math.tan(math.radians(FOV / 2))


def dark_scene(shapes, eye=(0.0, 1.0, DISTANCE), target=(0.0, 1.0, 0.0)):
    """The shapes before nothing at all, so that only what glows is seen."""
    black = (0.0, 0.0, 0.0)
    return scene.Scene(
        shapes=tuple(shapes),
        camera=scene.Camera(eye=eye, target=target, fov=FOV),
        light=scene.Light(
            towards=(0.0, 1.0, 1.0), colour=black, above=black, below=black
        ),
        sky=scene.Sky(top=black, horizon=black),
        ground=scene.Ground(kind="studio", colour=black, second=black, third=black),
    )


def coverage(shapes, **view) -> np.ndarray:
    """Share of each pixel that glows."""
    return render([dark_scene(shapes, **view)], 64)[0, :, :, 0] / 255.0


def example_scenes(count):
    return [examples.example(5, i).scene for i in range(count)]


def test_ball_has_the_outline_of_a_sphere():
    build = scene.Build()
    build.ball((0.0, 1.0, 0.0), 0.8, LAMP)
    apparent = math.tan(math.asin(0.8 / DISTANCE)) / HALF
    assert coverage(build).mean() == pytest.approx(math.pi * apparent**2 / 4, rel=0.02)


def test_box_has_the_outline_of_its_near_face():
    build = scene.Build()
    build.box((0.0, 1.0, 0.0), (0.6, 0.4, 0.5), LAMP)
    near = (DISTANCE - 0.5) * HALF
    expected = (0.6 / near) * (0.4 / near)
    assert coverage(build).mean() == pytest.approx(expected, rel=0.03)


def test_turned_box_shows_its_diagonal():
    build = scene.Build()
    build.box((0.0, 1.0, 0.0), (0.5, 0.5, 0.01), LAMP, roll=45.0)
    seen = coverage(build)
    near = (DISTANCE - 0.01) * HALF
    assert seen[32].mean() == pytest.approx(0.5 * math.sqrt(2) / near, rel=0.06)
    assert seen[16].sum() < seen[24].sum() < seen[32].sum()


def test_cone_widens_evenly_from_its_tip():
    """From anywhere outside, a cone's outline is two straight lines through the tip."""
    build = scene.Build()
    build.tube((0.0, 0.2, 0.0), (0.0, 1.8, 0.0), 0.8, LAMP, taper=0.02)
    widths = coverage(build).sum(1)
    tip = 31.5 - 32 * (1.6 / 0.98 - 0.8) / DISTANCE / HALF
    slopes = [widths[row] / (row - tip) for row in (22, 28, 34, 40)]
    np.testing.assert_allclose(slopes, slopes[-1], rtol=0.06)
    # Half way up, its half width is 0.51 times that of its base.
    apparent = 0.51 * 0.8 / DISTANCE / HALF
    assert widths[31:33].mean() == pytest.approx(64 * apparent, rel=0.05)
    assert widths[: int(tip) - 1].max() == 0.0


@pytest.mark.parametrize("taper", [1.0, 1.4])
def test_tube_from_above_shows_its_upper_end(taper):
    build = scene.Build()
    build.tube((0.0, 0.0, 0.0), (0.0, 1.0, 0.0), 0.6, LAMP, taper=taper)
    view = {"eye": (0.0, 7.0, 0.01), "target": (0.0, 1.0, 0.0)}
    apparent = 0.6 * taper / (6.0 * HALF)
    seen = coverage(build, **view).mean()
    assert seen == pytest.approx(math.pi * apparent**2 / 4, rel=0.04)


def test_ring_shows_what_is_behind_its_hole():
    build = scene.Build()
    build.ball((0.0, 1.0, 0.0), (0.8, 0.1, 0.8), LAMP, pitch=90.0, hole=0.6)
    seen = coverage(build)
    assert seen[30:34, 30:34].max() == 0.0
    # Half way between hole and rim, to the right.
    column = 32 + round(32 * 0.64 / (DISTANCE * HALF))
    assert seen[32, column] == 1.0


def test_nearer_shape_hides_the_farther_whatever_their_order():
    build = scene.Build()
    build.ball((0.0, 1.0, -1.0), 0.5, LAMP)
    build.box((0.0, 1.0, 1.0), (0.9, 0.9, 0.1), LAMP.but(glow=0.0))
    assert coverage(build).max() == 0.0
    assert coverage(build[::-1]).max() == 0.0


def test_ball_casts_a_shadow_away_from_the_light():
    build = scene.Build()
    build.ball((0.0, 0.6, 0.0), 0.3, scene.Material(colour=(0.5, 0.5, 0.5)))
    white, grey, dim = (1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
    lit = dataclasses.replace(
        dark_scene(build, eye=(0.0, 6.0, 0.01), target=(0.0, 0.0, 0.0)),
        light=scene.Light(towards=(1.0, 1.0, 0.0), colour=white, above=dim, below=dim),
        ground=scene.Ground(
            kind="studio", colour=grey, second=white, third=white, fade=99.0
        ),
    )
    row = render([lit], 64)[0, 32, :, 0].astype(int)
    centre = 32 - round(32 * 0.6 / (6.0 * HALF))
    assert row[centre] < 0.75 * row[2]
    assert row[64 - centre] > 0.95 * row[-3]


def test_same_scene_gives_the_same_picture():
    scenes = example_scenes(2)
    np.testing.assert_array_equal(render(scenes, 64), render(scenes, 64))


def test_picture_does_not_depend_on_its_batch():
    scenes = example_scenes(11)
    together = render(scenes, 64)
    alone = render(scenes[3:4], 64)
    assert np.abs(together[3].astype(int) - alone[0]).max() <= 1
    assert np.abs(together[10].astype(int) - render(scenes[10:], 64)[0]).max() <= 1


@pytest.mark.parametrize("style", scene.STYLES)
def test_resolutions_agree_after_scaling_down(style):
    """Within 4 grey levels; hatching and pencil lines are as thin as a pixel of 64."""
    limit = 12.0 if style == "sketch" else 4.0
    shown = grammar.Attributes(
        noun="dog", colour="brown", context="meadow", style=style
    )
    made = [examples.scene_of(shown, (6, 0))]
    small = render(made, 64)[0].astype(float)
    large = render(made, 256)[0].astype(float)
    scaled = large.reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(small - scaled).mean() < limit


def test_pictures_left_on_the_device_are_those_of_the_host():
    made = [each.scene for each in (examples.example(0, i) for i in (5, 6))]
    drawn = np.asarray(draw(packing.stack(made), 64, rays=1 << 18), int)
    # Rounding may move the edge of a pattern or a shape.
    differs = np.abs(drawn - render(made, 64)) > 1
    assert differs.mean() < 1e-3


def test_subjects_fill_the_frame():
    """Between half and nine tenths of it, in the middle, whatever the class."""
    scenes = []
    for i, noun in enumerate(grammar.WORDS.nouns):
        made = examples.scene_of(grammar.Attributes(noun=noun), (7, i))
        shapes = [dataclasses.replace(s, material=LAMP) for s in made.shapes]
        scenes.append(dataclasses.replace(dark_scene(shapes), camera=made.camera))
    for picture in render(scenes, 64):
        rows, columns = np.nonzero(picture[:, :, 0] > 127)
        extent = max(np.ptp(rows), np.ptp(columns)) + 1
        assert 0.5 * 64 < extent < 0.9 * 64
        assert abs((rows.min() + rows.max()) / 2 - 32) < 8
        assert abs((columns.min() + columns.max()) / 2 - 32) < 8


def test_too_many_shapes_are_refused():
    build = scene.Build()
    for _ in range(MAX_SOLIDS + 1):
        build.ball((0.0, 0.0, 0.0), 0.1, LAMP)
    with pytest.raises(InputError, match=f"{MAX_SOLIDS + 1} solids"):
        render([dark_scene(build)], 64)
