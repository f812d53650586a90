"""T5 encoders saved by transformers, read by us."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.test_t5_parity import reference_encoder

from imagen_booth.cascade import by_name
from imagen_booth.distributed import sharding
from imagen_booth.models.t5 import T5Config
from imagen_booth.weights.load import load, resolve

pytestmark = [
    pytest.mark.parity,
    # The reference packages warn of their own and each other's deprecations.
    pytest.mark.filterwarnings("ignore"),
]

SHAPES = {
    "small": T5Config(97, 24, 3, 10, 40, 2),
    "as deep as XXL": T5Config(211, 64, 2, 16, 96, 24),
}


@pytest.mark.parametrize("shards", ["1GB", "100KB"])
@pytest.mark.parametrize("name", SHAPES)
def test_an_encoder_saved_by_transformers(tmp_path, name, shards):
    torch = pytest.importorskip("torch")
    shape = SHAPES[name]
    model = reference_encoder(shape)
    model.save_pretrained(tmp_path, max_shard_size=shards)
    cascade = dataclasses.replace(by_name("if_m"), stages=())
    cascade = resolve(cascade, {"text": str(tmp_path)})
    assert cascade.text.encoder == shape
    part = load(cascade, "text", str(tmp_path), sharding.make_mesh(), jnp.float32)
    tokens = np.random.default_rng(0).integers(2, shape.vocab, (3, 77))
    for row, length in enumerate((77, 9, 1)):
        tokens[row, length - 1 :] = 0
        tokens[row, length - 1] = 1
    mask = tokens > 0
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask).long()
        ).last_hidden_state.numpy()
    ours = jax.jit(part.apply)(
        part.params, jnp.asarray(tokens, jnp.int32), jnp.asarray(mask)
    )
    error = np.abs(ours - expected).max() / np.abs(expected).max()
    print(f"T5 {name}, shards of {shards}: relative error {error:.1e}")
    assert error <= 1e-4


def test_a_whole_model_and_half_precision(tmp_path):
    """Decoder and head are passed over; wo is in float32, as transformers keeps it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    shape = SHAPES["small"]
    torch.manual_seed(1)
    config = reference_encoder(shape).config
    model = transformers.T5ForConditionalGeneration(config).half()
    for layer in model.encoder.block:
        layer.layer[1].DenseReluDense.wo.float()
    model.save_pretrained(tmp_path)
    cascade = by_name("if_m").having(shape)
    params = load(
        cascade, "text", str(tmp_path), sharding.make_mesh(), jnp.float32
    ).params
    for i, layer in enumerate(model.encoder.block):
        wo = layer.layer[1].DenseReluDense.wo.weight
        assert wo.dtype == torch.float32
        np.testing.assert_array_equal(
            params[f"layers_{i}"]["mlp"]["wo"]["kernel"], wo.detach().numpy().T
        )
    np.testing.assert_array_equal(
        params["token_embedder"]["embedding"],
        model.shared.weight.detach().float().numpy(),
    )
