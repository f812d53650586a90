"""The T5 encoder against a float64 reference, its published sizes and its names."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_booth.models.t5 import T5_SIZES, T5Config, T5Encoder, relative_buckets

# heads * head_width differs from width, and texts reach past the last bucket.
SMALL = T5Config(40, 12, 3, 5, 20, 3, buckets=8, max_distance=16)


def init(config, key) -> Any:
    tokens = jnp.zeros((1, 4), jnp.int32)
    return T5Encoder(config).init(key, tokens)["params"]


def encode(config, params, tokens, mask=None, dtype=jnp.float32) -> Any:
    return T5Encoder(config, dtype).apply({"params": params}, tokens, mask)


def shapes(config):
    params = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in paths
    }


@pytest.fixture(scope="module")
def small():
    """Params with every part away from its initial value, and tokens with padding."""
    params = init(SMALL, jax.random.key(1))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    leaves = [
        leaf + 0.2 * jax.random.normal(key, leaf.shape)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    tokens = np.random.default_rng(0).integers(2, SMALL.vocab, (3, 21))
    tokens[0, 7:] = 0
    tokens[1, 20:] = 0
    return jax.tree.unflatten(tree, leaves), jnp.asarray(tokens, jnp.int32)


def bucket(offset, buckets, max_distance):
    """Bucket of one key minus query distance, by its definition in words."""
    half, distance = buckets // 2, abs(offset)
    exact = half // 2
    if distance >= exact:
        steps = half - exact
        ends = [exact * (max_distance / exact) ** (i / steps) for i in range(steps)]
        distance = exact - 1 + sum(distance >= round(end, 9) for end in ends)
    return distance + half * (offset > 0)


def reference(params, config, tokens):
    """The encoder in float64 numpy, one text and one head at a time."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale

    def gelu(x):
        return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    length, head = tokens.shape[1], config.head_width
    table = params["relpos_bias"]["rel_embedding"]
    out = []
    for row in np.asarray(tokens):
        x = params["token_embedder"]["embedding"][row]
        for i in range(config.layers):
            layer = params[f"layers_{i}"]
            y = norm(x, layer["pre_attention_layer_norm"]["scale"])
            kernels = {
                name: kept["kernel"] for name, kept in layer["attention"].items()
            }
            heads = []
            for n in range(config.heads):
                part = slice(n * head, (n + 1) * head)
                q, k, v = (
                    y @ kernels[name][:, part] for name in ("query", "key", "value")
                )
                logits = q @ k.T
                for i_q in range(length):
                    for i_k in range(length):
                        place = bucket(i_k - i_q, config.buckets, config.max_distance)
                        logits[i_q, i_k] += table[n, place]
                weights = np.where(row > 0, np.exp(logits - logits.max()), 0)
                heads.append(weights / weights.sum(-1, keepdims=True) @ v)
            x = x + np.concatenate(heads, -1) @ kernels["out"]
            y = norm(x, layer["pre_mlp_layer_norm"]["scale"])
            mlp = {name: kept["kernel"] for name, kept in layer["mlp"].items()}
            x = x + (gelu(y @ mlp["wi_0"]) * (y @ mlp["wi_1"])) @ mlp["wo"]
        out.append(norm(x, params["encoder_norm"]["scale"]))
    return np.stack(out)


def test_equals_the_reference(small):
    params, tokens = small
    ours = encode(SMALL, params, tokens)
    assert ours.dtype == jnp.float32
    expected = reference(params, SMALL, tokens)
    np.testing.assert_allclose(ours, expected, atol=2e-5 * np.abs(expected).max())


def test_xxl_counts_as_published():
    count = sum(np.prod(shape, dtype=int) for shape in shapes(T5_SIZES["xxl"]).values())
    assert count == 4_762_310_656


@pytest.mark.parametrize("name", T5_SIZES)
def test_names_and_shapes_are_those_of_t5x(name):
    config = T5_SIZES[name]
    width, joined = config.width, config.heads * config.head_width
    expected = {
        "token_embedder/embedding": (config.vocab, width),
        "relpos_bias/rel_embedding": (config.heads, 32),
        "encoder_norm/scale": (width,),
    }
    for i in range(config.layers):
        expected |= {
            f"layers_{i}/pre_attention_layer_norm/scale": (width,),
            f"layers_{i}/attention/query/kernel": (width, joined),
            f"layers_{i}/attention/key/kernel": (width, joined),
            f"layers_{i}/attention/value/kernel": (width, joined),
            f"layers_{i}/attention/out/kernel": (joined, width),
            f"layers_{i}/pre_mlp_layer_norm/scale": (width,),
            f"layers_{i}/mlp/wi_0/kernel": (width, config.hidden),
            f"layers_{i}/mlp/wi_1/kernel": (width, config.hidden),
            f"layers_{i}/mlp/wo/kernel": (config.hidden, width),
        }
    assert shapes(config) == expected


def test_relative_buckets():
    table = relative_buckets(200, 32, 128)
    starts = [int(np.argmax(table[:, 0] == b)) for b in range(16)]
    assert starts == [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
    assert (table[5, 6], table[0, 76], table[76, 0]) == (17, 30, 14)
    assert table[0, 199] == 31
    for query, key in ((3, 190), (50, 50), (199, 100)):
        assert table[query, key] == bucket(key - query, 32, 128)


def test_mask_hides_keys_and_padding_rows_still_read(small):
    params, tokens = small
    mask = tokens > 0
    run = jax.jit(lambda tokens, mask: encode(SMALL, params, tokens, mask))
    base = run(tokens, mask)
    np.testing.assert_array_equal(base, run(tokens, None))

    other_padding = jnp.where(mask, tokens, 5)
    real = np.asarray(mask)
    np.testing.assert_array_equal(
        np.asarray(base)[real], np.asarray(run(other_padding, mask))[real]
    )
    other_word = tokens.at[0, 0].set(tokens[0, 0] % 30 + 2)
    assert np.abs(run(other_word, mask) - base)[0, 7:].max() > 1e-3


def test_more_padding_changes_no_real_row(small):
    params, tokens = small
    longer = jnp.pad(tokens, ((0, 0), (0, 9)))
    short = encode(SMALL, params, tokens)
    long = encode(SMALL, params, longer)
    np.testing.assert_allclose(long[:, :21], short, atol=1e-5)


def test_initial_activations_keep_their_size(key):
    """The query kernel's smaller scale stands in for dividing the logits."""
    config = T5_SIZES["toybox"]
    params = init(config, key)
    std = params["layers_0"]["attention"]["query"]["kernel"].std()
    expected = (config.width * config.head_width) ** -0.5
    np.testing.assert_allclose(std, expected, rtol=0.05)


def test_bfloat16_stays_near_and_returns_f32(small):
    params, tokens = small
    exact = encode(SMALL, params, tokens)
    half = encode(SMALL, params, tokens, dtype=jnp.bfloat16)
    assert half.dtype == jnp.float32
    assert 1e-4 < np.abs(half - exact).max() / np.abs(exact).max() < 5e-2
