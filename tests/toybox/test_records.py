"""Rendered records on disk: drawn once, the same as drawn anew, damage named."""

import numpy as np
import pytest
from etils import epath

from imagen_booth.toybox import examples, records
from imagen_booth.toybox.records import RenderedRecords

ARGS = {"seed": 0, "length": 16, "size": 64}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(records, "BLOCK", 8)


def test_a_record_is_what_the_source_draws(tmp_path):
    record = RenderedRecords(epath.Path(tmp_path), **ARGS)[9]
    # With the pictures of its block: others would move a float's last digits.
    pixels, captions, _ = examples.render_examples(0, range(8, 16), size=64)
    np.testing.assert_array_equal(record["image"], pixels[1])
    assert record["caption"] == captions[1]


def test_only_what_is_read_is_rendered_and_only_once(tmp_path, monkeypatch):
    folder = epath.Path(tmp_path)
    first = np.array(RenderedRecords(folder, **ARGS)[9]["image"])
    assert [path.name for path in tmp_path.rglob("*.npy")] == ["00001.npy"]
    monkeypatch.setattr(examples, "render_examples", None)
    again = RenderedRecords(folder, **ARGS)[9]["image"]
    np.testing.assert_array_equal(again, first)


def test_blocks_of_large_pictures_are_short():
    assert [records.block_length(size) for size in (64, 256)] == [8, 8]
    assert records.block_length(1024) == 1


def test_a_torn_block_is_rendered_again(tmp_path, caplog):
    folder = epath.Path(tmp_path)
    whole = np.array(RenderedRecords(folder, **ARGS)[0]["image"])
    (file,) = tmp_path.rglob("*.npy")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    again = RenderedRecords(folder, **ARGS)[0]["image"]
    np.testing.assert_array_equal(again, whole)
    assert "00000.npy is damaged" in caplog.text
