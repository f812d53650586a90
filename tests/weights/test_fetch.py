"""Fetching, against a local server with the hub's interface for files."""

import dataclasses
import hashlib
import json
import math
import pathlib
import types

import jax
import pytest
from hub import serve

from imagen_booth.cascade import CASCADES
from imagen_booth.config.build import to_job
from imagen_booth.config.presets import dreambooth as defaults
from imagen_booth.errors import InputError, StorageError
from imagen_booth.weights import fetch, load

file_download = pytest.importorskip("huggingface_hub.file_download")

WEIGHTS = bytes(range(256)) * 4000
SMALL = b'{"sample_size": 64}'
REPO = "someone/model"
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


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serve() as (hub, address):
        hub.repos[REPO] = {"unet/config.json": SMALL, "unet/w.safetensors": WEIGHTS}
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(fetch, "known", lambda: {"model": ENTRY})
        monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
        # Of an incomplete answer only whole chunks are written.
        monkeypatch.setattr(file_download.constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
        yield hub


def fetched(to) -> pathlib.Path:
    return fetch.fetch("model", str(to))["model"]


def content(folder):
    return (folder / "unet/w.safetensors").read_bytes()


def names(folder):
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    )


def test_only_what_is_needed(hub, tmp_path):
    hub.repos[REPO]["unet/other.bin"] = b"x" * 10
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
    hub.repos[REPO].pop("unet/w.safetensors")
    shards = {f"w-{i}.safetensors": WEIGHTS[i:] for i in (1, 2)}
    hub.repos[REPO] |= {f"unet/{name}": data for name, data in shards.items()}
    index = {"weight_map": dict(zip("ab", shards, strict=True))}
    hub.repos[REPO]["unet/w.safetensors.index.json"] = json.dumps(index).encode()
    folder = fetched(tmp_path)
    assert names(folder) == [
        "unet/config.json",
        *(f"unet/{name}" for name in shards),
        "unet/w.safetensors.index.json",
    ]


def test_no_form_is_there(hub, tmp_path):
    hub.repos[REPO].pop("unet/w.safetensors")
    with pytest.raises(InputError, match="has none of unet/w.safetensors"):
        fetched(tmp_path)
    hub.repos[REPO].pop("unet/config.json")
    hub.repos[REPO]["unet/w.safetensors"] = WEIGHTS
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
    stages = [f"config.weights.{stage.name}" for stage in cascade.stages[:2]]
    assert loads == [*stages, "config.weights.text", "config.weights.vocabulary"]
    for part, stage in zip(fetch.CASCADES[name], cascade.stages[:2], strict=False):
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


@pytest.fixture
def brought(tmp_path, monkeypatch):
    """Files of if_m as a whole download leaves them, less their content."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def bring(root):
        for name in fetch.CASCADES["if_m"]:
            entry = fetch.known()[name]
            for file in [*entry["files"], *entry["weights"][:1]]:
                path = root / name / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("{}")
        return root

    return bring


def job_of(**weights):
    job = to_job(defaults("if_m"))
    return dataclasses.replace(job, weights=dataclasses.replace(job.weights, **weights))


@pytest.mark.parametrize("place", ["weights", "cache/imagen_booth", "elsewhere"])
def test_fetched_weights_are_found(brought, tmp_path, monkeypatch, place):
    root = brought(tmp_path / place)
    if place == "elsewhere":
        assert fetch.with_fetched(job_of()) == job_of()
        monkeypatch.setenv(fetch.VARIABLE, str(root))
    found = fetch.with_fetched(job_of(sr256="random")).weights
    assert found.base == str(root / "if_i_m")
    assert found.sr256 == "random"  # what is given stays
    assert found.text == str(root / "t5_xxl" / "t5xxl_fp16.safetensors")
    assert found.vocabulary == str(root / "t5_vocabulary")


def test_half_a_download_is_not_found(brought, tmp_path):
    root = brought(tmp_path / "weights")
    (root / "if_i_m" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    index = root / "if_i_m" / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    assert fetch.with_fetched(job_of()).weights.base == ""
    (index.parent / "one.safetensors").write_text("")
    assert fetch.with_fetched(job_of()).weights.base == str(root / "if_i_m")


def test_missing_weights_name_the_command_that_brings_them():
    with pytest.raises(InputError, match="convert fetch if_m, or give a folder"):
        load.find(CASCADES["if_m"], "base", "")
