"""Stored programs: used again where nothing changed, and only from a private folder."""

import contextlib
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_booth.config.schema import OptimConfig
from imagen_booth.distributed import sharding
from imagen_booth.rundir import programs
from imagen_booth.rundir.programs import StoredProgram

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@contextlib.contextmanager
def setting(name, value):
    before = jax.config.values[name]
    jax.config.update(name, value)
    yield
    jax.config.update(name, before)


@pytest.fixture
def cache(tmp_path):
    with setting("jax_compilation_cache_dir", str(tmp_path / "xla")):
        yield tmp_path / "xla" / programs.FOLDER


class Counted:
    """A function that counts how often it is traced."""

    def __init__(self):
        self.traced = 0

    def __call__(self, state, *, by):
        self.traced += 1
        return {"sum": jnp.sum(state["x"].astype(by.dtype)) * by}, state["x"] * 2


def start(made_from, function, x=X):
    """What a process does that has not seen the program yet."""
    stored = StoredProgram(jax.jit(function), made_from)
    sums, scaled = stored({"x": jnp.asarray(x)}, by=jnp.float32(3))
    return float(sums["sum"]), np.asarray(scaled), stored


def test_a_second_start_traces_nothing(cache):
    first, again = Counted(), Counted()
    total, scaled, _ = start("f", first)
    assert first.traced == 1
    assert len(list(cache.iterdir())) == 1
    same, scaled_again, stored = start("f", again)
    assert again.traced == 0
    assert same == total == X.sum() * 3
    np.testing.assert_array_equal(scaled, scaled_again)
    stored({"x": jnp.asarray(X + 1)}, by=jnp.float32(2))  # from memory
    assert again.traced == 0


def test_what_is_begun_is_compiled_beside_other_programs(cache):
    """And jax's setting for its own cache is restored when the last one is done."""
    least = "jax_persistent_cache_min_compile_time_secs"
    with setting(least, 7.0):
        arguments = {"x": jnp.asarray(X)}, jnp.float32(3)
        functions = [Counted() for _ in range(3)]
        stored = [
            StoredProgram(jax.jit(function), f"f{i}")
            for i, function in enumerate(functions)
        ]
        for each in stored:
            each.begin_compiling(arguments[0], by=arguments[1])
        total, _, _ = start("g", Counted())
        for each in stored:
            program = each.compile(arguments[0], by=arguments[1])
            assert float(program(arguments[0], by=arguments[1])[0]["sum"]) == total
        assert jax.config.values[least] == 7.0
    assert [each.traced for each in functions] == [1, 1, 1]
    assert len(list(cache.iterdir())) == 4
    again = Counted()
    assert start("f2", again)[0] == total
    assert again.traced == 0


@pytest.mark.parametrize("damaged", [False, True])
def test_what_is_begun_is_read_from_disk_if_it_can_be(cache, damaged):
    start("f", Counted())
    if damaged:
        [file] = cache.iterdir()
        file.write_bytes(b"")
    stored = StoredProgram(jax.jit(function := Counted()), "f")
    x, by = {"x": jnp.asarray(X)}, jnp.float32(3)
    stored.begin_compiling(x, by=by)
    assert float(stored(x, by=by)[0]["sum"]) == X.sum() * 3
    assert function.traced == damaged


def test_values_are_remembered(cache, monkeypatch, caplog):
    """By what they are made of; a damaged file or a strange one is not taken."""
    made = []

    def remember(made_from="a"):
        def compute():
            made.append(made_from)
            return {"x": jax.ShapeDtypeStruct((2, len(made)), jnp.float32)}

        return programs.remember(compute, made_from)["x"].shape[1]

    found = [remember(), remember(), remember("b"), remember(), remember("")]
    assert found == [1, 1, 2, 1, 3]
    cache.chmod(0o777)
    assert remember() == 4
    cache.chmod(0o700)
    for file in cache.iterdir():
        file.write_bytes(b"")
    assert [remember(), remember()] == [5, 5]
    assert "cannot be read and is made again" in caplog.text
    monkeypatch.setattr(programs, "sources", lambda: "other")
    assert remember() == 6


@pytest.mark.parametrize("change", ["description", "shape", "dtype", "setting"])
def test_whatever_changes_a_program_is_another_one(cache, change):
    start("f", Counted())
    x = {"shape": X.T, "dtype": X.astype(jnp.bfloat16)}.get(change, X)
    precision = "high" if change == "setting" else None
    with setting("jax_default_matmul_precision", precision):
        start("g" if change == "description" else "f", function := Counted(), x)
    assert function.traced == 1
    assert len(list(cache.iterdir())) == 2


def test_other_sources_are_other_programs(cache, monkeypatch):
    start("f", Counted())
    monkeypatch.setattr(programs, "sources", lambda: "other")
    start("f", function := Counted())
    assert function.traced == 1


def test_a_program_on_a_mesh_runs_on_its_devices(cache):
    mesh = sharding.make_mesh()
    for traced in (1, 0):
        function = Counted()
        stored = StoredProgram(jax.jit(function), "f")
        x = sharding.put_rows(np.ones((4, 2), np.float32), mesh)
        sums, scaled = stored({"x": x}, by=sharding.put_copies(np.float32(3), mesh))
        assert sums["sum"] == 24.0
        assert scaled.sharding.device_set == set(jax.devices())
        assert function.traced == traced


def test_a_folder_that_others_may_write_is_not_read(cache):
    start("f", Counted())
    cache.chmod(0o777)
    function = Counted()
    start("f", function)
    assert function.traced == 1
    assert len(list(cache.iterdir())) == 1
    cache.chmod(0o700)
    [file] = cache.iterdir()
    file.chmod(0o666)
    start("f", function := Counted())
    assert function.traced == 1
    file.chmod(0o600)
    start("f", function := Counted())
    assert function.traced == 0


def test_nor_one_of_another_user_or_behind_a_link(cache, tmp_path, monkeypatch):
    start("f", Counted())
    elsewhere = tmp_path / "elsewhere"
    cache.rename(elsewhere)
    cache.symlink_to(elsewhere)
    start("f", function := Counted())
    assert function.traced == 1
    cache.unlink()
    elsewhere.rename(cache)
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    start("f", function := Counted())
    assert function.traced == 1


def test_nothing_is_read_from_a_bucket(cache):
    assert programs.folder() == cache
    for place in ("gs://bucket/cache", None):
        with setting("jax_compilation_cache_dir", place):
            assert programs.folder() is None


def test_a_damaged_file_is_compiled_again(cache, caplog):
    start("f", Counted())
    [file] = cache.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    total, _, _ = start("f", function := Counted())
    assert function.traced == 1
    assert total == X.sum() * 3
    assert f"{file} cannot be read and is compiled again" in caplog.text
    start("f", function := Counted())
    assert function.traced == 0


def test_what_has_no_text_is_not_stored(cache):
    assert programs.describe(OptimConfig(), 3) == repr((OptimConfig(), 3))
    assert programs.describe(OptimConfig(), start) == ""
    start(programs.describe(start), Counted())
    assert not cache.exists() or not list(cache.iterdir())


def test_in_a_job_that_shares_them_functions_of_one_description_trace_once(cache):
    os.makedirs(cache)
    os.chmod(cache, 0o777)  # nothing is stored
    with programs.shared():
        totals = {start("f", Counted())[0]}
        other, again, unnamed = Counted(), Counted(), Counted()
        totals.add(start("f", again)[0])
        assert again.traced == 0
        start("g", other)
        start("", unnamed)
        assert other.traced == unnamed.traced == 1
    assert totals == {X.sum() * 3}
    after = Counted()
    start("f", after)
    assert after.traced == 1
