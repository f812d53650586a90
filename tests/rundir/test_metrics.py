"""Rows of metrics.jsonl, and what a continued run drops of them."""

import json

import pytest

from imagen_booth.rundir.metrics import MetricWriter


def rows(path):
    return [
        json.loads(row) for row in (path / "metrics.jsonl").read_text().splitlines()
    ]


def places(path):
    return [(row["stage"], row["step"]) for row in rows(path)]


@pytest.fixture
def written(tmp_path):
    """A run killed in sr256, with a finished base before it."""
    with MetricWriter(tmp_path, active=True) as metrics:
        for stage, step in [("base", 5), ("base", 10), ("sr256", 5), ("sr256", 10)]:
            metrics.write(stage, step, {"train/loss": step / 3})
    return tmp_path


def test_a_row_is_stage_step_time_and_numbers(written):
    row = rows(written)[1]
    assert set(row) == {"stage", "step", "wall", "train/loss"}
    assert row["train/loss"] == pytest.approx(10 / 3, rel=1e-5)


def test_nan_is_null(tmp_path):
    MetricWriter(tmp_path, active=True).write("base", 1, {"loss_class": float("nan")})
    assert rows(tmp_path)[0]["loss_class"] is None


def test_rewind_drops_what_comes_after_in_that_stage(written):
    with MetricWriter(written, active=True) as metrics:
        metrics.rewind("sr256", 5)
        assert places(written) == [("base", 5), ("base", 10), ("sr256", 5)]
        metrics.write("sr256", 10, {"train/loss": 1.0})
        assert places(written)[-1] == ("sr256", 10)
        metrics.rewind("base", 0)
    assert places(written) == [("sr256", 5), ("sr256", 10)]
    assert [path.name for path in written.iterdir()] == ["metrics.jsonl"]


def test_rewind_with_nothing_after_keeps_all(written):
    before = (written / "metrics.jsonl").read_bytes()
    MetricWriter(written, active=True).rewind("sr256", 10)
    assert (written / "metrics.jsonl").read_bytes() == before


def test_a_row_cut_short_by_a_kill_is_dropped(written):
    file = written / "metrics.jsonl"
    file.write_text(file.read_text() + '{"stage": "sr256", "st')
    with MetricWriter(written, active=True) as metrics:
        metrics.rewind("sr256", 10)
        metrics.write("sr256", 15, {})
    assert places(written)[-2:] == [("sr256", 10), ("sr256", 15)]


def test_rewind_before_the_first_row(tmp_path):
    MetricWriter(tmp_path, active=True).rewind("base", 0)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_other_processes_write_nothing(written):
    before = (written / "metrics.jsonl").read_bytes()
    with MetricWriter(written, active=False) as metrics:
        metrics.write("base", 15, {})
        metrics.rewind("base", 0)
    assert (written / "metrics.jsonl").read_bytes() == before
