"""Batches as a function of (seed, step): order, shares of hosts, resume, crops."""

import time
from collections import Counter

import numpy as np
import pytest

from imagen_booth.data import pipeline
from imagen_booth.data.pipeline import Group


def examples(count, first=0):
    """Pictures of one grey each; `name` tells them apart."""
    return [
        {"image": np.full((2, 2, 3), 10 * i, np.uint8), "name": np.int32(first + i)}
        for i in range(count)
    ]


GROUPS = (Group(examples(5), 3, 1.0, 0), Group(examples(7, first=100), 2, 0.5, 1))


def at(dataset, step):
    """The batch of a step."""
    batch = dataset[step]
    assert batch is not None
    return batch


def names(dataset, steps, start=0):
    return [list(at(dataset, step)["name"]) for step in range(start, start + steps)]


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def test_weights_are_equation_twos():
    batch = at(pipeline.batches(GROUPS, seed=0), 0)
    np.testing.assert_allclose(batch["weight"], [1 / 3] * 3 + [0.25] * 2, rtol=1e-6)
    np.testing.assert_array_equal(batch["group"], [0, 0, 0, 1, 1])
    assert (batch["name"][:3] < 100).all()
    assert (batch["name"][3:] >= 100).all()
    assert batch["weight"].dtype == np.float32
    assert batch["group"].dtype == np.int32


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_two_subjects_share_the_rows_equally(rows):
    """Whatever the number of rows and of photos, and as often as each alone."""
    one, other = examples(3), examples(5, first=100)
    data = pipeline.batches([Group(one, rows, 1.0, 0, [other])], seed=4)
    order = np.concatenate(names(data, 30))
    assert (order[::2] < 100).all()
    assert (order[1::2] >= 100).all()
    counts = Counter(order.tolist())
    assert {counts[i] for i in range(3)} == {5 * rows}
    assert {counts[100 + i] for i in range(5)} == {3 * rows}
    np.testing.assert_allclose(at(data, 1)["weight"], [1 / rows] * rows, rtol=1e-6)
    # The first subject comes in the order that it has alone.
    alone = pipeline.batches([Group(one, 1, 1.0, 0)], seed=4)
    assert list(order[::2]) == np.concatenate(names(alone, len(order[::2]))).tolist()


def test_padding_has_weight_zero_and_no_group():
    batch = at(pipeline.batches(GROUPS, seed=0, multiple=4), 3)
    real = at(pipeline.batches(GROUPS, seed=0), 3)
    for name in batch:
        assert len(batch[name]) == 8
        if name in ("image", "name"):
            np.testing.assert_array_equal(batch[name][:5], real[name])
    np.testing.assert_allclose(batch["weight"].sum(), 1.5, rtol=1e-6)
    np.testing.assert_array_equal(batch["weight"][5:], 0)
    np.testing.assert_array_equal(batch["group"][5:], pipeline.PADDING)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_one_batch(hosts):
    shared = {"null": np.ones((2, 3), np.float32)}
    whole = pipeline.batches(GROUPS, seed=1, multiple=4, shared=shared)
    parts = [
        pipeline.batches(
            GROUPS, seed=1, multiple=4, host=host, hosts=hosts, shared=shared
        )
        for host in range(hosts)
    ]
    for step in (0, 1, 17):
        shares = [at(part, step) for part in parts]
        rows = [{k: v for k, v in share.items() if k != "null"} for share in shares]
        joined = {name: np.concatenate([r[name] for r in rows]) for name in rows[0]}
        assert_equal(joined | shared, at(whole, step))


def test_rows_that_hosts_cannot_share_are_refused():
    with pytest.raises(ValueError, match="5 rows do not divide over 2 hosts"):
        pipeline.batches(GROUPS, seed=0, hosts=2)


def test_every_example_comes_equally_often():
    batches = pipeline.batches(GROUPS, seed=2)
    seen = [name for batch in names(batches, 35) for name in batch]
    subject = [name for name in seen if name < 100]
    klass = [name for name in seen if name >= 100]
    assert set(Counter(subject).values()) == {35 * 3 // 5}
    assert set(Counter(klass).values()) == {35 * 2 // 7}
    # in every pass, not just in the end, and not always in the same order
    passes = [tuple(subject[i : i + 5]) for i in range(0, len(subject), 5)]
    assert all(sorted(one) == list(range(5)) for one in passes)
    assert len(set(passes)) > 1


def test_order_is_the_seeds():
    straight = names(pipeline.batches(GROUPS, seed=3), 6)
    assert names(pipeline.batches(GROUPS, seed=3), 6) == straight
    assert names(pipeline.batches(GROUPS, seed=3), 3, start=3) == straight[3:]
    assert names(pipeline.batches(GROUPS, seed=4), 6) != straight


def test_groups_of_equal_length_are_not_shuffled_alike():
    groups = (Group(examples(9), 1, 1.0, 0), Group(examples(9), 1, 1.0, 1))
    rows = np.asarray(names(pipeline.batches(groups, seed=0), 18))
    assert (rows[:, 0] != rows[:, 1]).any()


def test_a_stored_iterator_goes_on():
    prepare = pipeline.random_crop(4, 2)
    group = Group(coordinates(3, 8, 2), 2, 1.0, 0)
    dataset = pipeline.batches([group], seed=5, prepare=prepare)
    iterator = pipeline.iterate(dataset)
    for _ in range(3):
        next(iterator)
    stored = iterator.get_state()
    expected = [next(iterator) for _ in range(4)]

    again = pipeline.iterate(pipeline.batches([group], seed=5, prepare=prepare))
    again.set_state(stored)
    for batch in expected:
        assert_equal(next(again), batch)
    assert_equal(expected[0], at(dataset, 3))


def test_few_batches_are_made_ahead():
    """grain's defaults make 500."""
    made = []

    class Counted(list):
        def __getitem__(self, index):
            made.append(index)
            return super().__getitem__(index)

    dataset = pipeline.batches([Group(Counted(examples(4)), 1, 1.0, 0)], seed=0)
    iterator = pipeline.iterate(dataset)
    for taken in range(1, 4):
        next(iterator)
        time.sleep(0.3)  # time to make all that it would
        assert len(made) <= taken + 2 * pipeline.READ_AHEAD


def coordinates(count, side, scale):
    """Pairs in which each low-res pixel has its own colour, and so has its square."""
    place = np.stack(np.meshgrid(*[np.arange(side)] * 2, indexing="ij"), -1)
    found = []
    for number in range(count):
        low = np.concatenate([place, np.full((side, side, 1), number)], -1)
        low = low.astype(np.uint8)
        found.append({"image": low.repeat(scale, 0).repeat(scale, 1), "low": low})
    return found


@pytest.mark.parametrize(("size", "scale"), [(8, 4), (12, 2)])
def test_crops_of_both_sizes_show_the_same_place(size, scale):
    (pair,) = coordinates(1, 8, scale)
    crop = pipeline.random_crop(size, scale)
    rng = np.random.default_rng(0)
    corners = set()
    for _ in range(300):
        cut = crop(pair | {"text": 5}, rng)
        assert cut["image"].shape == (size, size, 3)
        assert cut["text"] == 5
        np.testing.assert_array_equal(
            cut["image"], cut["low"].repeat(scale, 0).repeat(scale, 1)
        )
        corners.add(tuple(cut["low"][0, 0, :2].tolist()))
    # every place is reached, the last row and column too
    last = 8 - size // scale
    assert corners == {(y, x) for y in range(last + 1) for x in range(last + 1)}


def test_a_crop_of_the_whole_is_the_whole():
    (pair,) = coordinates(1, 4, 2)
    cut = pipeline.random_crop(8, 2)(pair, np.random.default_rng(0))
    assert_equal(cut, pair)


def test_a_crop_is_drawn_anew_at_each_visit():
    group = Group(coordinates(1, 16, 1), 2, 1.0, 0)
    batches = pipeline.batches([group], seed=0, prepare=pipeline.random_crop(2, 1))
    corners = {
        tuple(corner)
        for step in range(8)
        for corner in at(batches, step)["low"][:, 0, 0].tolist()
    }
    assert len(corners) > 8


def test_pictures_become_numbers_and_back():
    grey = np.arange(256, dtype=np.uint8)
    unit = pipeline.to_unit(grey)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, np.arange(256) / 127.5 - 1, atol=1e-6)
    assert (unit.min(), unit.max()) == (-1.0, 1.0)
    np.testing.assert_array_equal(pipeline.to_bytes(unit), grey)
    beyond = np.asarray([-7.0, 7.0, 0.0], np.float32)
    np.testing.assert_array_equal(pipeline.to_bytes(beyond), [0, 255, 128])


def test_pictures_in_a_batch_are_unit_and_the_rest_untouched():
    rows = coordinates(1, 4, 2)
    tokens = np.asarray([5, 1, 0], np.int32)
    group = Group([rows[0] | {"tokens": tokens}], 1, 1.0, 0)
    batch = at(pipeline.batches([group], seed=0), 0)
    for name in ("image", "low"):
        np.testing.assert_array_equal(batch[name][0], pipeline.to_unit(rows[0][name]))
    np.testing.assert_array_equal(batch["tokens"], [tokens])
    assert batch["tokens"].dtype == np.int32
