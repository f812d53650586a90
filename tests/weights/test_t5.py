"""T5 encoders in: Hugging Face's safetensors and T5X checkpoints, made by hand."""

import dataclasses
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
import urllib.parse

import deepfloyd_files as files
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
import tensorstore as ts
from etils import epath
from safetensors.numpy import save_file

from imagen_booth.cascade import by_name
from imagen_booth.distributed import sharding
from imagen_booth.errors import InputError
from imagen_booth.models.t5 import T5Config
from imagen_booth.weights import export, t5
from imagen_booth.weights.load import load, resolve

SHAPE = T5Config(vocab=40, width=16, heads=2, head_width=4, hidden=24, layers=2)
BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
CONFIG = {
    "d_model": 16,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-06,
    "num_heads": 2,
    "num_layers": 2,
    "relative_attention_max_distance": 128,
}


def read(place):
    cascade = by_name("if_m").having(SHAPE)
    return load(cascade, "text", str(place), sharding.make_mesh(), jnp.float32).params


def check(params, told):
    """Against Hugging Face's names and axes."""
    np.testing.assert_array_equal(
        params["token_embedder"]["embedding"], told["shared.weight"]
    )
    np.testing.assert_array_equal(params["relpos_bias"]["rel_embedding"], told[BIAS].T)
    np.testing.assert_array_equal(
        params["encoder_norm"]["scale"], told["encoder.final_layer_norm.weight"]
    )
    for i in range(2):
        layer, at = params[f"layers_{i}"], f"encoder.block.{i}.layer"
        for ours, theirs in (
            ("query", "q"),
            ("key", "k"),
            ("value", "v"),
            ("out", "o"),
        ):
            np.testing.assert_array_equal(
                layer["attention"][ours]["kernel"],
                told[f"{at}.0.SelfAttention.{theirs}.weight"].T,
            )
        for name in ("wi_0", "wi_1", "wo"):
            np.testing.assert_array_equal(
                layer["mlp"][name]["kernel"],
                told[f"{at}.1.DenseReluDense.{name}.weight"].T,
            )
        for j, name in enumerate(("pre_attention_layer_norm", "pre_mlp_layer_norm")):
            np.testing.assert_array_equal(
                layer[name]["scale"], told[f"{at}.{j}.layer_norm.weight"]
            )


@pytest.fixture
def told():
    return files.fill(files.encoder_shapes())


def test_the_shape_follows_from_the_tensors(tmp_path, told):
    save_file(told, tmp_path / "model.safetensors")
    found = t5.find(tmp_path)
    assert found is not None
    assert found.describes == SHAPE
    assert found.licence == "Apache-2.0"


@pytest.mark.parametrize("embedding", ["shared", "encoder.embed_tokens", "both"])
def test_either_name_of_the_embedding(tmp_path, told, embedding):
    stored = dict(told)
    if embedding != "shared":
        stored["encoder.embed_tokens.weight"] = stored["shared.weight"]
    if embedding == "encoder.embed_tokens":
        del stored["shared.weight"]
    save_file(stored, tmp_path / "model.safetensors")
    check(read(tmp_path), told)


def test_a_file_alone(tmp_path, told):
    save_file(told, tmp_path / "t5xxl_fp16.safetensors")
    check(read(tmp_path / "t5xxl_fp16.safetensors"), told)


def test_the_decoder_is_ignored(tmp_path, told):
    extra = {
        "decoder.block.0.layer.0.SelfAttention.q.weight": (8, 16),
        "decoder.final_layer_norm.weight": (16,),
        "lm_head.weight": (40, 16),
    }
    save_file(told | files.fill(extra), tmp_path / "model.safetensors")
    check(read(tmp_path), told)


def test_in_a_pipeline_with_mixed_shards(tmp_path, told):
    folder = tmp_path / "text_encoder"
    folder.mkdir()
    files.write_json(folder / "config.json", CONFIG)
    # wo stays in float32 in half-precision files.
    stored = {
        name: value if ".wo." in name else value.astype(np.float16)
        for name, value in told.items()
    }
    placed = {}
    for number in range(2):
        name = f"model.fp16-0000{number + 1}-of-00002.safetensors"
        part = dict(list(stored.items())[number::2])
        save_file(part, folder / name)
        placed |= dict.fromkeys(part, name)
    files.write_json(
        folder / "model.safetensors.index.fp16.json", {"weight_map": placed}
    )
    check(read(tmp_path), {name: v.astype(np.float32) for name, v in stored.items()})
    found = t5.find(tmp_path)
    assert found is not None
    assert found.licence.startswith("DeepFloyd")


def test_another_architecture_is_named(tmp_path, told):
    save_file(told, tmp_path / "model.safetensors")
    for field, value in (
        ("feed_forward_proj", "relu"),
        ("num_heads", 4),
        ("relative_attention_max_distance", 64),
    ):
        files.write_json(tmp_path / "config.json", CONFIG | {field: value})
        with pytest.raises(InputError, match=f"{field} is {value!r}"):
            t5.find(tmp_path)


def test_missing_tensors_are_named(tmp_path, told):
    name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    told[name.replace("wo", "w0")] = told.pop(name)
    save_file(told, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=f"{name} is missing .is .*w0.weight meant"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model", "pytorch_model-00001-of-00002"])
def test_pickled_weights_are_refused_with_a_way_out(tmp_path, name):
    (tmp_path / f"{name}.bin").write_bytes(b"PK")
    with pytest.raises(InputError, match=f"convert unpickle --from={tmp_path}`"):
        t5.find(tmp_path)
    with pytest.raises(InputError, match="pickled weights .* are not read; fetch"):
        export.export_folder(epath.Path(tmp_path), ())


def test_import_writes_our_layout(tmp_path, told):
    save_file(told, tmp_path / "model.safetensors")
    own = epath.Path(tmp_path / "own")
    export.write_native(own, export.export_folder(epath.Path(tmp_path), ()), None)
    check(read(own), told)
    cascade = dataclasses.replace(by_name("if_m"), stages=())
    assert resolve(cascade, {"text": str(own)}).text.encoder == SHAPE


# T5X


def t5x_tree(told):
    """The parameters as T5X nests them."""
    layers = {}
    for i in range(2):
        at = f"encoder.block.{i}.layer"
        layers[f"layers_{i}"] = {
            "pre_attention_layer_norm": {"scale": told[f"{at}.0.layer_norm.weight"]},
            "attention": {
                ours: {"kernel": told[f"{at}.0.SelfAttention.{theirs}.weight"].T}
                for ours, theirs in (
                    *(("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")),
                )
            },
            "pre_mlp_layer_norm": {"scale": told[f"{at}.1.layer_norm.weight"]},
            "mlp": {
                name: {"kernel": told[f"{at}.1.DenseReluDense.{name}.weight"].T}
                for name in ("wi_0", "wi_1", "wo")
            },
        }
    return {
        "token_embedder": {"embedding": told["shared.weight"]},
        "encoder": {
            "relpos_bias": {"rel_embedding": told[BIAS].T},
            "encoder_norm": {"scale": told["encoder.final_layer_norm.weight"]},
            **layers,
        },
        "decoder": {"decoder_norm": {"scale": told["encoder.final_layer_norm.weight"]}},
    }


def pack(value):
    """An array as Flax puts it into msgpack."""
    if isinstance(value, np.ndarray):
        inner = value.shape, value.dtype.name, value.tobytes()
        return msgpack.ExtType(1, msgpack.packb(inner, use_bin_type=True))
    raise TypeError(value)


def write_t5x(
    folder, tree, *, version=3, where="inside", small=100, dtype="<f4", compress=True
):
    """A checkpoint: arrays of more than ``small`` elements in zarr."""
    folder.mkdir(parents=True, exist_ok=True)

    def store(node, path):
        if isinstance(node, dict):
            return {key: store(each, f"{path}.{key}") for key, each in node.items()}
        if node.size <= small:
            return np.ascontiguousarray(node)
        metadata = {
            "shape": list(node.shape),
            "chunks": [max(1, size // 2 + 1) for size in node.shape],
            "dtype": dtype,
            "compressor": {"id": "gzip", "level": 1} if compress else None,
        }
        at = {"driver": "file", "path": f"{folder}/{path}/"}
        array = ts.open(
            {"driver": "zarr", "kvstore": at, "metadata": metadata}, create=True
        ).result()
        array[...] = node.view(np.uint16) if dtype == "<u2" else node
        spec = {"driver": "zarr", "dtype": "float32", "metadata": metadata}
        if where == "inside":
            written = {"driver": "gfile", "path": f"{path}/"}
            return spec | {"kvstore": written}
        written = {"driver": "gcs", "bucket": "t5x-dummy-bucket"}
        return spec | {"kvstore": written, "path": f"some/where/{path}"}

    target = store(tree, "target")
    state = {"step": 7, "param_states": {"x": {"v": np.zeros(3, np.float32)}}}
    content = {"target": target, "state": state}
    content = content if version == 0 else {"version": version, "optimizer": content}
    (folder / "checkpoint").write_bytes(
        msgpack.packb(content, default=pack, use_bin_type=True, strict_types=True)
    )


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"where": "beside"},
        {"version": 0},
        {"small": 10**6},
        {"small": 10**6, "version": 0},
        {"small": 0},
        {"compress": False},
    ],
    ids=str,
)
def test_t5x(tmp_path, told, kind):
    write_t5x(tmp_path / "checkpoint_7", t5x_tree(told), **kind)
    found = t5.find(tmp_path / "checkpoint_7")
    assert found is not None
    assert found.describes == SHAPE
    check(read(tmp_path / "checkpoint_7"), told)


def test_t5x_by_its_file(tmp_path, told):
    write_t5x(tmp_path / "checkpoint_7", t5x_tree(told))
    check(read(tmp_path / "checkpoint_7/checkpoint"), told)


def test_t5x_in_bfloat16_stored_as_integers(tmp_path, told):
    halves = {name: value.astype(jnp.bfloat16) for name, value in told.items()}
    tree = t5x_tree(halves)
    write_t5x(tmp_path, tree, dtype="<u2", small=0)
    check(read(tmp_path), {k: v.astype(np.float32) for k, v in halves.items()})


def test_t5x_array_in_pieces(tmp_path, told):
    """Flax cuts arrays over a gigabyte."""
    tree = t5x_tree(told)
    whole = tree["token_embedder"]["embedding"]
    flat = whole.reshape(-1)
    tree["token_embedder"]["embedding"] = {
        "__msgpack_chunked_array__": True,
        "shape": {"0": 40, "1": 16},
        "chunks": {"0": flat[:300], "1": flat[300:]},
    }
    content = {"version": 3, "optimizer": {"target": tree}}
    (tmp_path / "checkpoint").write_bytes(
        msgpack.packb(
            content,
            default=lambda v: pack(np.ascontiguousarray(v)),
            use_bin_type=True,
            strict_types=True,
        )
    )
    check(read(tmp_path), told)


def test_damaged_t5x_is_named(tmp_path, told):
    write_t5x(tmp_path, t5x_tree(told))
    array = tmp_path / "target.encoder.layers_0.mlp.wo.kernel"
    (array / "0.1").rename(array / "away")
    (array / "away").rename(tmp_path / "away")
    with pytest.raises(InputError, match=f"{array} has 3 of its 4 chunks"):
        read(tmp_path)
    (array / "0.1").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=f"{array} is damaged"):
        read(tmp_path)
    (array / ".zarray").unlink()
    with pytest.raises(InputError, match=f"{array} is missing or damaged"):
        read(tmp_path)
    file = tmp_path / "checkpoint"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(InputError, match=f"{file} is not a whole T5X checkpoint"):
        read(tmp_path)


class _Bucket(http.server.BaseHTTPRequestHandler):
    """As much of Google's storage as reading takes, over a folder."""

    root: pathlib.Path

    def do_GET(self):
        url = urllib.parse.urlparse(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        _, _, found = url.path.partition("/o/")
        if not found:
            names = [
                str(path.relative_to(self.root))
                for path in sorted(self.root.rglob("*"))
                if path.is_file()
            ]
            start, end = query.get("startOffset", ""), query.get("endOffset", "~")
            body = json.dumps(
                {"items": [{"name": n} for n in names if start <= n < end]}
            ).encode()
        else:
            path = self.root / urllib.parse.unquote(found)
            if not path.is_file():
                self.send_error(404)
                return
            body = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("x-goog-generation", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_t5x_from_google_storage(tmp_path, told):
    """In a process of its own: the address is read once, from the environment."""
    write_t5x(tmp_path / "models/xxl", t5x_tree(told))
    handler = type("Handler", (_Bucket,), {"root": tmp_path})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = """
import numpy as np
from imagen_booth.weights import t5
found = t5.find("gs://bucket/models/xxl")
print(found.describes.layers, found.tensors[
    "target/encoder/layers_1/attention/query/kernel"].whole().sum())
"""
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ
            | {
                "TENSORSTORE_GCS_HTTP_URL": address,
                "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
                "GCE_METADATA_ROOT": "127.0.0.1:1",
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    layers, total = done.stdout.split()
    assert layers == "2"
    query = told["encoder.block.1.layer.0.SelfAttention.q.weight"]
    assert float(total) == pytest.approx(float(query.sum()), rel=1e-5)
