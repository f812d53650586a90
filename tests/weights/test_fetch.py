"""Fetching, against a local server with the hub's interface for files."""

import hashlib
import http.server
import json
import math
import pathlib
import threading
import types
import urllib.parse

import jax
import pytest

from imagen_booth.cascade import CASCADES
from imagen_booth.errors import InputError, StorageError
from imagen_booth.weights import fetch, load

file_download = pytest.importorskip("huggingface_hub.file_download")

WEIGHTS = bytes(range(256)) * 4000
SMALL = b'{"sample_size": 64}'
REPO = "someone/model"
COMMIT = "0" * 40
ENTRY = {
    "what": "a model",
    "repo": REPO,
    "where": f"https://huggingface.co/{REPO}",
    "size": None,
    "sha256": {},
    "licence": "theirs",
    "gated": True,
    "loads": "config.weights.base",
    "files": ["unet/config.json"],
    "weights": ["unet/w.safetensors", "unet/w.safetensors.index.json"],
}


class Hub:
    """What the server has, and how it behaves."""

    def __init__(self):
        self.files = {"unet/config.json": SMALL, "unet/w.safetensors": WEIGHTS}
        self.refusal: tuple[int, str] | None = None  # status and error code
        self.hidden = False  # whether the list of files is refused too
        self.cut_after = None  # bytes of an answer, then the connection closes
        self.cuts = 0
        self.ranges = True
        self.false_content = False
        self.asked = []  # (file, Range)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def refuse(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def find(self) -> tuple[str, bytes] | None:
        prefix = f"/{REPO}/resolve/{COMMIT}/"
        name = self.path.removeprefix(prefix)
        if self.hub.refusal:
            self.refuse(*self.hub.refusal)
        elif not self.path.startswith(prefix) or name not in self.hub.files:
            self.refuse(404, "EntryNotFound")
        else:
            return name, self.hub.files[name]
        return None

    def list_files(self):
        siblings = []
        for name, data in self.hub.files.items():
            blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            entry = {"rfilename": name, "size": len(data), "blobId": blob}
            if name.endswith(".safetensors"):
                digest = hashlib.sha256(data).hexdigest()
                entry |= {
                    "blobId": "f" * 40,  # of the pointer
                    "lfs": {"sha256": digest, "size": len(data), "pointerSize": 1},
                }
            siblings.append(entry)
        body = json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if urllib.parse.urlparse(self.path).path == f"/api/models/{REPO}":
            if self.hub.hidden and self.hub.refusal:
                self.refuse(*self.hub.refusal)
            else:
                self.list_files()
            return
        if not (found := self.find()):
            return
        name, data = found
        wanted = self.headers.get("Range")
        self.hub.asked.append((name, wanted))
        if self.hub.false_content:
            data = data[::-1]
        start = 0
        if wanted and self.hub.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header(
                "Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}"
            )
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        body = data[start:]
        if self.hub.cut_after is not None and self.hub.cuts and len(body) > 1000:
            self.hub.cuts -= 1
            self.wfile.write(body[: self.hub.cut_after])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    hub = Hub()
    handler = type("OfThisTest", (Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch, "known", lambda: {"model": ENTRY})
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
    # Of an incomplete answer only whole chunks are written.
    monkeypatch.setattr(file_download.constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    yield hub
    server.shutdown()
    server.server_close()


def fetched(to) -> pathlib.Path:
    return fetch.fetch("model", str(to))["model"]


def content(folder):
    return (folder / "unet/w.safetensors").read_bytes()


def names(folder):
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    )


def test_only_what_is_needed(hub, tmp_path):
    hub.files["unet/other.bin"] = b"x" * 10
    folder = fetched(tmp_path / "to")
    assert folder == tmp_path / "to/model"
    assert names(folder) == ["unet/config.json", "unet/w.safetensors"]
    assert content(folder) == WEIGHTS
    assert (folder / "unet/config.json").read_bytes() == SMALL


def test_again_takes_nothing(hub, tmp_path):
    fetched(tmp_path)
    hub.asked.clear()
    fetched(tmp_path)
    assert hub.asked == []


def test_damage_on_the_disk_is_repaired(hub, tmp_path):
    folder = fetched(tmp_path)
    (folder / "unet/w.safetensors").write_bytes(WEIGHTS[:-1] + b"?")
    fetched(tmp_path)
    assert content(folder) == WEIGHTS


def test_a_broken_connection_resumes(hub, tmp_path):
    hub.cut_after, hub.cuts = 300_000, 2
    assert content(fetched(tmp_path)) == WEIGHTS
    ranges = [wanted for name, wanted in hub.asked if name.endswith(".safetensors")]
    assert ranges == [None, "bytes=300000-", "bytes=600000-"]


def test_another_command_resumes(hub, tmp_path, monkeypatch):
    hub.cut_after, hub.cuts = 300_000, 1

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_download.time, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetched(tmp_path)
    hub.asked.clear()
    assert content(fetched(tmp_path)) == WEIGHTS
    assert hub.asked == [("unet/w.safetensors", "bytes=300000-")]
    assert names(tmp_path / "model") == ["unet/config.json", "unet/w.safetensors"]


def test_a_server_without_ranges(hub, tmp_path):
    hub.cut_after, hub.cuts, hub.ranges = 300_000, 1, False
    assert content(fetched(tmp_path)) == WEIGHTS


def test_a_connection_that_stays_broken(hub, tmp_path):
    hub.cut_after, hub.cuts = 0, 100
    with pytest.raises(StorageError, match=r"does not answer .*continues where"):
        fetched(tmp_path)


def test_licence_and_size_come_first(hub, tmp_path, caplog):
    hub.refusal = 403, "GatedRepo"
    with caplog.at_level("INFO", fetch.log.name), pytest.raises(InputError):
        fetched(tmp_path)
    artefact, total = (
        record.getMessage()
        for record in caplog.records
        if record.name == fetch.log.name
    )
    assert artefact == "model: a model, 1.02MB; licence: theirs"
    assert total == f"1.02MB to download into {tmp_path}"


def test_a_disk_that_is_too_small(hub, tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=1_000_000)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match=r"needs 1.02MB, .* 1.00MB free; .*--to"):
        fetched(tmp_path / "not/there/yet")
    assert hub.asked == []
    folder = tmp_path / "model/unet"
    folder.mkdir(parents=True)
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    (folder / f".w.safetensors.{digest[:16]}.part").write_bytes(WEIGHTS[:500_000])
    usage.free = 600_000  # enough for the rest
    assert content(fetched(tmp_path)) == WEIGHTS


def test_a_wrong_checksum(hub, tmp_path):
    hub.false_content = True
    with pytest.raises(StorageError, match=r"config.json .* is damaged"):
        fetched(tmp_path)
    assert names(tmp_path) == []


def test_our_own_checksum_goes_first(hub, tmp_path, monkeypatch):
    entry = ENTRY | {"sha256": {"unet/w.safetensors": "0" * 64}}
    monkeypatch.setattr(fetch, "known", lambda: {"model": entry})
    with pytest.raises(StorageError, match=f"w.safetensors .*not {'0' * 64}"):
        fetched(tmp_path)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(
    "refusal",
    [(401, "GatedRepo"), (403, "GatedRepo"), (401, "RepoNotFound"), (403, "")],
)
def test_a_gated_repository(hub, tmp_path, refusal, hidden):
    hub.refusal, hub.hidden = refusal, hidden
    with pytest.raises(InputError) as error:
        fetched(tmp_path)
    assert "https://huggingface.co/someone/model requires that you" in str(error.value)
    assert "accept it on that page" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_form_that_is_there(hub, tmp_path):
    hub.files.pop("unet/w.safetensors")
    shards = {f"w-{i}.safetensors": WEIGHTS[i:] for i in (1, 2)}
    hub.files |= {f"unet/{name}": data for name, data in shards.items()}
    index = {"weight_map": dict(zip("ab", shards, strict=True))}
    hub.files["unet/w.safetensors.index.json"] = json.dumps(index).encode()
    folder = fetched(tmp_path)
    assert names(folder) == [
        "unet/config.json",
        *(f"unet/{name}" for name in shards),
        "unet/w.safetensors.index.json",
    ]


def test_no_form_is_there(hub, tmp_path):
    hub.files.pop("unet/w.safetensors")
    with pytest.raises(InputError, match="has none of unet/w.safetensors"):
        fetched(tmp_path)
    hub.files.pop("unet/config.json")
    hub.files["unet/w.safetensors"] = WEIGHTS
    with pytest.raises(InputError, match="has no unet/config.json"):
        fetched(tmp_path)


def test_nobody_answers(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="http://127.0.0.1:9 does not answer"):
        fetched(tmp_path)


def test_the_manifest():
    artefacts = fetch.known()
    assert {"if_i_m", "if_i_l", "if_i_xl", "if_ii_m", "if_ii_l"} <= artefacts.keys()
    for name, entry in artefacts.items():
        assert entry["licence"], name
        assert entry["where"].startswith(("https://", "gs://")), name
        assert set(entry["sha256"]) <= set(entry.get("files", ())), name
        if "repo" in entry:
            assert entry["files"] or entry["weights"], name
            assert entry["where"].endswith(entry["repo"]), name
        assert entry["what"] in fetch.listing()
    assert len(artefacts["t5_vocabulary"]["sha256"]["spiece.model"]) == 64


def test_names_that_cannot_be_fetched(tmp_path):
    with pytest.raises(InputError, match="did you mean if_ii_"):
        fetch.fetch("if_ii_n", str(tmp_path))
    with pytest.raises(InputError, match="gs://t5-data"):
        fetch.fetch("t5_xxl_t5x", str(tmp_path))


@pytest.mark.parametrize("name", fetch.CASCADES)
def test_a_cascade_has_all_its_parts(name):
    """Its stages are those of ``cascade.CASCADES``, and each setting is complete."""
    cascade = CASCADES[name]
    artefacts = fetch.known()
    loads = [artefacts[part]["loads"] for part in fetch.CASCADES[name]]
    stages = [f"config.weights.{stage.name}" for stage in cascade.stages]
    assert loads == [*stages, "config.weights.text", "config.weights.vocabulary"]
    for part, stage in zip(fetch.CASCADES[name], cascade.stages, strict=False):
        shapes = jax.tree.leaves(load.shapes(cascade, stage.name))
        count = sum(math.prod(leaf.shape) for leaf in shapes)
        assert f"{count:,} parameters" in artefacts[part]["what"]


def test_a_cascade_in_one_command(hub, tmp_path, monkeypatch):
    monkeypatch.setitem(fetch.CASCADES, "both", ("model", "second"))
    second = ENTRY | {"files": [], "weights": ["unet/w.safetensors"]}
    monkeypatch.setattr(fetch, "known", lambda: {"model": ENTRY, "second": second})
    folders = fetch.fetch("both", str(tmp_path))
    assert folders == {name: tmp_path / name for name in ("model", "second")}
    assert names(folders["second"]) == ["unet/w.safetensors"]
    assert fetch.setting("model", tmp_path) == f"--config.weights.base={tmp_path}"
    assert fetch.setting("second", tmp_path) == (
        f"--config.weights.base={tmp_path}/unet/w.safetensors"
    )
