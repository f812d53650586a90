"""What a stage's network is given: at training and at sampling the same."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_booth.cascade import Stage, by_name
from imagen_booth.data import pipeline
from imagen_booth.data.examples import Embedding
from imagen_booth.denoiser import (
    Condition,
    condition,
    enlarge,
    guided_denoiser,
    predict,
)
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.diffusion.schedule import CosineSchedule, TableSchedule
from imagen_booth.distributed.sharding import AXES
from imagen_booth.models import SIZES
from imagen_booth.sampling import cascade_sampler
from imagen_booth.training import train_step
from imagen_booth.weights import load
from imagen_booth.weights.load import Part

ROWS, LENGTH, WIDTH = 2, 3, 5
MODEL = SIZES["tiny_base"]  # named by a stage, never built here
BASE = Stage("base", 8, MODEL, CosineSchedule())


@dataclasses.dataclass(frozen=True)
class CosineAt(CosineSchedule):
    """Training at one known time."""

    time: float = 1.0

    def draw(self, key, shape):
        return jnp.full(shape, self.time, jnp.float32)


@dataclasses.dataclass(frozen=True)
class TableAt(TableSchedule):
    time: float = 999.0

    def draw(self, key, shape):
        return jnp.full(shape, self.time, jnp.float32)


IMAGEN = Stage("sr256", 8, MODEL, CosineAt(), "v", low_resolution=2)
DEEPFLOYD = Stage(
    *("sr256", 8, MODEL, TableAt()),
    low_resolution=2,
    learned_variance=True,
    level_map="if_index",
    aligned=True,
)
KINDS = pytest.mark.parametrize("stage", [IMAGEN, DEEPFLOYD], ids=["imagen", "if"])


class Network:
    """Answers with a number per row from the text; remembers what it was given."""

    def __init__(self, channels=3):
        self.channels, self.calls = channels, []

    def __call__(self, params, x, time, text, mask, level, of_text=None):
        self.calls.append((x, time, text, mask, level))
        shape = (*x.shape[:3], self.channels)
        return jnp.broadcast_to(text.mean((1, 2))[:, None, None, None], shape)

    def apply(self, *inputs):
        return self({}, *inputs)

    def read_text(self, params, *inputs):
        return ()  # it makes nothing of the text that it could keep


@pytest.fixture
def noise(monkeypatch):
    """One field of noise for every draw of a picture's shape, whatever its key."""
    rng = np.random.default_rng(0)
    fields = {}

    def normal(key, shape=(), dtype=jnp.float32):
        field = fields.setdefault(shape[-3:], rng.normal(size=shape[-3:]))
        return jnp.broadcast_to(jnp.asarray(field, dtype), shape)

    monkeypatch.setattr(jax.random, "normal", normal)
    return lambda shape: normal(None, shape)


def training_batch(stage, image=None):
    """What the input pipeline makes of one pair of uint8 images, twice over."""
    rng = np.random.default_rng(1)
    size, small = stage.resolution, stage.low_resolution
    pair = {
        "image": rng.integers(0, 256, (size, size, 3), np.uint8),
        "low": rng.integers(0, 256, (small, small, 3), np.uint8),
        "text": rng.normal(size=(LENGTH, WIDTH)).astype(np.float32),
        "text_mask": np.asarray([True, True, False]),
    }
    batch = pipeline.batches([pipeline.Group([pair], ROWS, 1.0, 0)], seed=0)[0]
    assert batch is not None
    if image is not None:
        batch["image"] = np.full_like(batch["image"], image)
    return pair, batch


def at_training(stage, batch, level):
    network = Network(6 if stage.learned_variance else 3)
    config = train_step.LossConfig(level=(level, level))
    placed = jax.tree.map(jnp.asarray, batch)
    train_step.batch_loss(
        stage, network, None, config, {"unet": {}}, placed, jax.random.key(3)
    )
    (call,) = network.calls
    return call


def assert_same(one, two):
    """Bit for bit."""
    assert len(one) == len(two) == 5
    for a, b in zip(one, two, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@KINDS
@pytest.mark.parametrize("level", [0.0, 1e-5, 1e-3, 0.3])
def test_training_input_is_sampling_input(stage, level, noise):
    """Drawing a whole picture by the run's own function, at its first step.

    A grey image under the noise of the first step is that noise, so both networks
    should be given the same x_t, and for the same low-res image the same condition.
    """
    pair, batch = training_batch(stage, image=0.0)
    trained = at_training(stage, batch, level)

    network = Network(6 if stage.learned_variance else 3)
    mesh = jax.make_mesh(
        (1, 1),
        AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
        devices=jax.devices()[:1],
    )
    prompt = Embedding(pair["text"], pair["text_mask"])
    with jax.disable_jit():
        cascade_sampler.sample_stage(
            stage,
            Part(network, {}, stage.name, "", "", "", True),
            {},
            SamplerConfig("ddim", 1, threshold="none"),
            [prompt] * ROWS,
            prompt,
            range(ROWS),
            mesh=mesh,
            low=np.stack([pair["low"]] * ROWS),
            level=level,
        )
    (drawn,) = network.calls
    assert_same(trained, drawn)
    # and it is what it should be: x_t, and a low-res image that is not the target
    np.testing.assert_array_equal(drawn[0][..., :3], noise((ROWS, 8, 8, 3)))
    seen = np.asarray(drawn[0][0, :, :, 3:], np.float64)
    low = pair["low"] / 127.5 - 1.0
    up = np.einsum(
        *("Hh,hwc,Ww->HWc", hat(2, 8, stage.aligned), low, hat(2, 8, stage.aligned))
    )
    eps = np.asarray(noise((8, 8, 3)), np.float64)
    expected = np.sqrt(1 - level) * up + np.sqrt(level) * eps
    np.testing.assert_allclose(seen, expected, atol=1e-6)


@KINDS
def test_training_input_is_sampling_input_at_every_time(stage, noise):
    """The same, at times in between, by the denoiser that every sampler calls."""
    for time in (0.02, 0.4, 0.97):
        if isinstance(stage.schedule, TableSchedule):
            time = float(round(999 * time))
        one = dataclasses.replace(
            stage, schedule=dataclasses.replace(stage.schedule, time=time)
        )
        pair, batch = training_batch(one)
        trained = at_training(one, batch, 1e-3)

        network = Network(6 if one.learned_variance else 3)
        eps = noise((ROWS, 8, 8, 3))
        low = jnp.asarray(pipeline.to_unit(np.stack([pair["low"]] * ROWS)))
        text, mask = (jnp.asarray(batch[name]) for name in ("text", "text_mask"))
        denoise = guided_denoiser(
            *(one, network.apply, text, mask, text, mask),
            condition(one, low, jnp.full(ROWS, 1e-3, jnp.float32), eps),
            SamplerConfig(threshold="none"),
        )
        x0 = np.asarray(pair["image"] / 127.5 - 1.0, np.float32)
        alpha, sigma = (
            scale(jnp.full((ROWS,), time, jnp.float32))[:, None, None, None]
            for scale in (one.schedule.alpha, one.schedule.sigma)
        )
        xt = alpha * jnp.stack([x0] * ROWS) + sigma * eps
        np.testing.assert_allclose(xt, trained[0][..., :3], atol=1e-6)
        denoise(trained[0][..., :3], jnp.float32(time))
        (asked,) = network.calls
        assert_same(trained, asked)


def hat(low, high, aligned):
    """[high, low] weights of linear interpolation in float64: triangles one wide."""
    at = np.arange(high, dtype=np.float64)
    if aligned:
        at = at * (low - 1) / (high - 1)
    else:
        at = np.clip((at + 0.5) * low / high - 0.5, 0, low - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(low)))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(
    ("height", "width", "scale"), [(5, 3, 4), (4, 7, 2), (1, 2, 3)]
)
def test_enlarge_is_bilinear(height, width, scale, aligned):
    low = np.random.default_rng(0).uniform(-1, 1, (2, height, width, 3))
    expected = np.einsum(
        "Hh,bhwc,Ww->bHWc",
        hat(height, height * scale, aligned),
        low,
        hat(width, width * scale, aligned),
    )
    out = enlarge(jnp.asarray(low, jnp.float32), scale, aligned)
    np.testing.assert_allclose(out, expected, atol=2e-6)


def test_a_crop_is_enlarged_as_in_the_whole():
    """Away from the crop's own edges, half a low-res pixel wide."""
    low = jnp.asarray(np.random.default_rng(0).uniform(size=(1, 9, 9, 3)), jnp.float32)
    whole = enlarge(low, 4, aligned=False)[:, 8:28, 12:32]
    crop = enlarge(low[:, 2:7, 3:8], 4, aligned=False)
    np.testing.assert_allclose(crop[:, 2:-2, 2:-2], whole[:, 2:-2, 2:-2], atol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("aligned", [False, True])
def test_enlarge_is_torchs(aligned):
    torch = pytest.importorskip("torch")
    low = np.random.default_rng(0).uniform(-1, 1, (2, 16, 12, 3)).astype(np.float32)
    out = torch.nn.functional.interpolate(
        torch.from_numpy(low.transpose(0, 3, 1, 2)),
        scale_factor=4,
        mode="bilinear",
        align_corners=aligned,
    )
    ours = enlarge(jnp.asarray(low), 4, aligned)
    np.testing.assert_allclose(ours, out.numpy().transpose(0, 2, 3, 1), atol=1e-6)


@pytest.mark.parametrize("level", [0.0, 1e-5, 1e-3, 0.5])
def test_the_level_as_imagen_sees_it(level, key):
    low = jnp.zeros((1, 2, 2, 3))
    out = condition(
        IMAGEN, low, jnp.full(1, level), jax.random.normal(key, (1, 8, 8, 3))
    )
    # a thousand times the time at which the cosine law has this variance
    expected = 1000 * 2 / np.pi * np.arcsin(np.sqrt(level))
    np.testing.assert_allclose(out.level, [expected], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("index", [0, 1, 250, 700])
def test_the_level_as_if_sees_it(index):
    u = np.arange(1001) / 1000
    law = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    abar = np.cumprod(1 - np.minimum(1 - law[1:] / law[:-1], 0.999))
    low, eps = jnp.zeros((1, 2, 2, 3)), jnp.ones((1, 8, 8, 3))
    level = 1 - abar[index]
    out = condition(DEEPFLOYD, low, jnp.full(1, level, jnp.float32), eps)
    np.testing.assert_allclose(out.level, [index], atol=2e-3)
    np.testing.assert_allclose(out.image, np.sqrt(level) * np.ones_like(eps), rtol=1e-5)


def test_levels_below_ifs_table_are_told_as_its_cleanest():
    low, eps = jnp.zeros((1, 2, 2, 3)), jnp.ones((1, 8, 8, 3))
    out = condition(DEEPFLOYD, low, jnp.full(1, 1e-5, jnp.float32), eps)
    assert out.level == 0
    np.testing.assert_allclose(out.image, np.sqrt(1e-5) * np.ones_like(eps), rtol=1e-5)


def test_an_unknown_level_map_is_refused():
    stage = dataclasses.replace(IMAGEN, level_map="steps")
    with pytest.raises(ValueError, match="level_map='steps'"):
        condition(stage, jnp.zeros((1, 2, 2, 3)), jnp.zeros(1), jnp.zeros((1, 8, 8, 3)))


def test_a_base_stage_is_given_xt_alone(key):
    network = Network()
    xt = jax.random.normal(key, (ROWS, 8, 8, 3))
    text, mask = jnp.ones((ROWS, LENGTH, WIDTH)), jnp.ones((ROWS, LENGTH), bool)
    t = jnp.asarray([0.25, 0.5])
    out = predict(BASE, network.apply, xt, t, text, mask, None)
    x, time, _, _, level = network.calls[0]
    np.testing.assert_array_equal(x, xt)
    np.testing.assert_array_equal(time, [250, 500])
    assert level is None
    assert out.frac is None


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_both_readings_of_an_answer_agree_with_the_input(prediction, key):
    stage = dataclasses.replace(BASE, prediction=prediction)
    xt = jax.random.normal(key, (ROWS, 8, 8, 3))
    text, mask = jnp.ones((ROWS, LENGTH, WIDTH)), jnp.ones((ROWS, LENGTH), bool)
    t = np.asarray([0.25, 0.5])
    out = predict(
        *(stage, Network().apply, xt, jnp.asarray(t, jnp.float32), text, mask, None)
    )
    alpha, sigma = (f(np.pi / 2 * t)[:, None, None, None] for f in (np.cos, np.sin))
    answer = {"eps": out.eps, "x0": out.x0, "v": alpha * out.eps - sigma * out.x0}
    np.testing.assert_allclose(answer[prediction], np.ones_like(xt), atol=1e-5)
    np.testing.assert_allclose(alpha * out.x0 + sigma * out.eps, xt, atol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("threshold", ["none", "static"])
def test_guidance_is_one_call(guidance, threshold, key):
    """Network: eps = mean of the text. Text of 0.2 and of 0.6, null of -0.1."""
    stage = dataclasses.replace(DEEPFLOYD, schedule=CosineSchedule())
    network = Network(6)
    xt = jax.random.normal(key, (ROWS, 8, 8, 3))
    text = jnp.stack([jnp.full((LENGTH, WIDTH), value) for value in (0.2, 0.6)])
    mask = jnp.asarray([[True, True, False], [True, True, True]])
    null, null_mask = jnp.full_like(text, -0.1), jnp.asarray([[True, False, False]] * 2)
    cond = Condition(jnp.full((ROWS, 8, 8, 3), 0.3), jnp.asarray([4.0, 5.0]))
    config = SamplerConfig(guidance=guidance, threshold=threshold)
    denoise = guided_denoiser(
        stage, network.apply, text, mask, null, null_mask, cond, config
    )
    x0, frac = denoise(xt, jnp.float32(0.6))

    ((x, time, seen, seen_mask, level),) = network.calls
    twice = 1 if guidance == 1.0 else 2
    given = jnp.concatenate([xt, cond.image], -1)
    np.testing.assert_array_equal(x, jnp.concatenate([given] * twice))
    np.testing.assert_array_equal(time, np.full(ROWS * twice, 600, np.float32))
    np.testing.assert_array_equal(level, [4.0, 5.0] * twice)
    np.testing.assert_array_equal(seen, jnp.concatenate([text, null][:twice]))
    np.testing.assert_array_equal(seen_mask, jnp.concatenate([mask, null_mask][:twice]))

    network.calls.clear()
    alone, _ = denoise(xt, jnp.float32(0.6), guided=False)
    (asked,) = network.calls
    assert len(asked[0]) == ROWS
    if guidance == 1.0:
        np.testing.assert_array_equal(alone, x0)
    else:
        assert np.abs(np.asarray(alone - x0)).max() > 0.1

    # in float64: eps = w cond + (1 - w) null, then x0, then the threshold
    eps = guidance * np.asarray([0.2, 0.6]) + (1 - guidance) * -0.1
    alpha, sigma = np.cos(0.3 * np.pi), np.sin(0.3 * np.pi)
    expected = (np.asarray(xt, np.float64) - sigma * eps[:, None, None, None]) / alpha
    if threshold == "static":
        expected = expected.clip(-1, 1)
    np.testing.assert_allclose(x0, expected, atol=1e-5)
    # the variance is the conditional branch's: (0.2 + 1) / 2 and (0.6 + 1) / 2
    assert frac is not None
    np.testing.assert_allclose(frac[0], np.full((8, 8, 3), 0.6), rtol=1e-6)
    np.testing.assert_allclose(frac[1], np.full((8, 8, 3), 0.8), rtol=1e-6)


@pytest.mark.parametrize("name", ["base", "sr256"])
@pytest.mark.parametrize("guided", [True, False])
def test_the_text_is_read_once_for_all_calls(name, guided, key):
    cascade = by_name("tiny")
    stage, (init, apply) = (
        cascade.stage(name),
        load.network(cascade, name, jnp.float32),
    )
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(key, leaf.shape), init(key)
    )
    shape = (ROWS, stage.resolution, stage.resolution, 3)
    texts = jax.random.normal(key, (2, ROWS, LENGTH, stage.model.text_width))
    mask = jnp.asarray([[True, True, False], [True, True, True]])
    text = texts[0], mask, texts[1], mask[::-1]
    cond = Condition(jnp.full(shape, 0.3), jnp.asarray([4.0, 5.0]))
    given = None if stage.low_resolution is None else cond
    config = SamplerConfig(guidance=3.0, threshold="none")
    unet, read = (functools.partial(f, params) for f in (apply, apply.read_text))
    xt = jax.random.normal(key, shape)

    def denoise(*more):
        denoiser = guided_denoiser(stage, unet, *text, given, config, *more)
        return jax.jit(lambda: denoiser(xt, jnp.float32(0.6), guided))()[0]

    expected = denoise()
    np.testing.assert_allclose(denoise(read), expected, atol=1e-4)
    # and what was read is used: another text gives another picture
    other = functools.partial(apply.read_text, jax.tree.map(lambda p: 2 * p, params))
    assert np.abs(np.asarray(denoise(other) - expected)).max() > 1e-3


def test_a_stale_variance_is_the_smaller_one(key):
    stage = dataclasses.replace(
        BASE, schedule=TableSchedule(), learned_variance=True, stale_variance=True
    )
    text, mask = jnp.ones((ROWS, LENGTH, WIDTH)), jnp.ones((ROWS, LENGTH), bool)
    denoise = guided_denoiser(
        *(stage, Network(6).apply, text, mask, text, mask, None, SamplerConfig())
    )
    _, frac = denoise(jax.random.normal(key, (ROWS, 8, 8, 3)), jnp.float32(500))
    np.testing.assert_array_equal(frac, np.zeros((ROWS, 8, 8, 3)))


def test_sizes_of_a_stage():
    assert BASE.scale == 1
    assert BASE.train_size == 8
    assert IMAGEN.scale == 4
    assert dataclasses.replace(IMAGEN, crop=4).train_size == 4
