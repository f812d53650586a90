"""Batches for the training step, as a grain dataset indexed by step.

A batch is a function of (seed, step) alone.  Each process computes its own rows of
it, so the batch is the same over one host or many, and a continued run goes on
with the batch that would have come next.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grain
import numpy as np

Example = dict[str, np.ndarray]
PADDING = -1


class Examples(Protocol):
    """Random access to examples; a list will do."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True)
class Group:
    """One kind of row in a batch.

    Attributes:
        examples: ``image`` [S, S, 3] uint8 and whatever else a row carries.
        rows: rows per batch.
        weight: sum of the weights of these rows: 1 for the subject, lambda for
            class images; each row gets ``weight / rows``.
        label: value of ``group`` in the batch, for the log.
    """

    examples: Examples | Sequence[Example]
    rows: int
    weight: float
    label: int


def batches(
    groups: Sequence[Group],
    *,
    seed: int,
    host: int = 0,
    hosts: int = 1,
    multiple: int = 1,
    prepare: Callable[[Example, np.random.Generator], Example] | None = None,
    shared: Example | None = None,
) -> grain.MapDataset:
    """An endless dataset whose element ``step`` is this host's part of that batch.

    Every group is shuffled anew in each pass and repeated, so all its examples come
    equally often.

    Args:
        groups: what a batch is made of, in this order.
        host, hosts: which contiguous share of the rows to compute.
        multiple: the number of rows is padded up to a multiple of this with rows
            of weight 0.
        prepare: ``(example, rng) -> example`` drawn anew at each visit, e.g. a crop.
        shared: arrays added to each batch as they are.

    Returns:
        Dataset of dicts of numpy arrays; ``image`` and ``low`` are f32 in [-1, 1].
    """
    streams = []
    for index, group in enumerate(groups):
        stream = grain.MapDataset.source(group.examples).seed(seed + 1000 * index)
        stream = stream.shuffle().repeat()
        if prepare is not None:
            stream = stream.random_map(_Prepare(prepare))
        streams.append(stream)

    places = [
        (stream, group, row)
        for stream, group in zip(streams, groups, strict=True)
        for row in range(group.rows)
    ]
    real = len(places)
    places += [places[0]] * (-real % multiple)
    share = len(places) // hosts
    if share * hosts != len(places):
        raise ValueError(f"{len(places)} rows do not divide over {hosts} hosts")
    mine = range(host * share, (host + 1) * share)

    def batch_at(step: int) -> Example:
        rows = []
        for place in mine:
            stream, group, row = places[place]
            example = dict(stream[step * group.rows + row])
            padding = place >= real
            weight = 0.0 if padding else group.weight / group.rows
            example["weight"] = np.float32(weight)
            example["group"] = np.int32(PADDING if padding else group.label)
            rows.append(example)
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        for name in ("image", "low"):
            if name in batch:
                batch[name] = to_unit(batch[name])
        return batch | (shared or {})

    # Steps beyond 2^31 are not reached; grain wants a length.
    return grain.MapDataset.range(2**31 - 1).map(batch_at)


class _Prepare(grain.transforms.RandomMap):
    def __init__(self, function: Callable[[Any, np.random.Generator], Any]):
        self._function = function

    def random_map(self, element: Any, rng: np.random.Generator) -> Any:
        return self._function(element, rng)


def to_unit(image: np.ndarray) -> np.ndarray:
    """uint8 [0, 255] to f32 [-1, 1]."""
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def to_bytes(image: np.ndarray) -> np.ndarray:
    """f32 [-1, 1] to uint8, rounded; values beyond the range are clipped."""
    return np.round((np.clip(image, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def random_crop(
    size: int, scale: int
) -> Callable[[Example, np.random.Generator], Example]:
    """Cuts the same random square out of ``image`` and its ``low`` version.

    Args:
        size: side of the crop in pixels of ``image``; a multiple of ``scale``.
        scale: ``image`` is this many times larger than ``low``.
    """

    def crop(example: Example, rng: np.random.Generator) -> Example:
        low = example["low"]
        side = size // scale
        top, left = rng.integers(0, low.shape[0] - side + 1, size=2)
        cut = low[top : top + side, left : left + side]
        top, left = top * scale, left * scale
        image = example["image"][top : top + size, left : left + size]
        return example | {"image": image, "low": cut}

    return crop
