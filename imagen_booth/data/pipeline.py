"""Batches for the training step, as a grain dataset indexed by step.

A batch is a function of (seed, step) alone. Each process computes its own rows of it,
so the batch does not depend on the number of hosts, and a resumed run continues with
the batch that would have come next.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np

Example = dict[str, np.ndarray]
PADDING = -1
READ_AHEAD = 4  # batches in the host's memory before they are needed


class Examples(Protocol):
    """Random access to examples, such as a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True)
class Group:
    """One kind of row in a batch.

    Attributes:
        examples: Examples with ``image`` [S, S, 3] uint8 and the row's other entries.
        rows: Rows per batch.
        weight: Sum of the weights of these rows: 1 for the subject, lambda for class
            images; each row gets ``weight / rows``.
        label: Value of ``group`` in the batch, for the metrics.
        others: Further examples of the kind, such as those of a second subject. All
            take turns row by row, over batches too, so each gets an equal share of
            the rows.
    """

    examples: Examples | Sequence[Example]
    rows: int
    weight: float
    label: int
    others: Sequence[Examples | Sequence[Example]] = ()


class _Row(NamedTuple):
    """One row of every batch.

    Attributes:
        streams: The shuffled examples of its group, which take turns.
        group: Its group.
        number: Its number in the group.
        padding: Whether it has weight 0 and only completes the batch.
    """

    streams: Sequence[Any]
    group: Group
    number: int
    padding: bool = False

    def example(self, step: int) -> Example:
        """The row in the batch of a step, with its weight and its group's label."""
        position = step * self.group.rows + self.number
        visit, turn = divmod(position, len(self.streams))
        example = dict(self.streams[turn][visit])
        weight = 0.0 if self.padding else self.group.weight / self.group.rows
        example["weight"] = np.float32(weight)
        example["group"] = np.int32(PADDING if self.padding else self.group.label)
        return example


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
    """An endless dataset whose element ``step`` is this host's share of that batch.

    Every group is repeated and shuffled in each pass, so all its examples occur equally
    often.

    Args:
        groups: The groups of rows, in the order of the batch.
        seed: Seed of shuffling and of ``prepare``.
        host, hosts: Index of this host and number of hosts; a host computes a
            contiguous share of the rows.
        multiple: The number of rows is padded to a multiple of this with rows of
            weight 0.
        prepare: ``(example, rng) -> example``, applied at each visit, such as a random
            crop.
        shared: Arrays added to each batch.

    Returns:
        Dataset of dicts of numpy arrays; ``image`` and ``low`` are f32 in [-1, 1].

    Raises:
        ValueError: The rows do not divide over the hosts.
    """
    streams = [
        [
            _stream(examples, seed + 1000 * index + 100 * turn, prepare)
            for turn, examples in enumerate((group.examples, *group.others))
        ]
        for index, group in enumerate(groups)
    ]
    rows = [
        _Row(turns, group, number)
        for turns, group in zip(streams, groups, strict=True)
        for number in range(group.rows)
    ]
    rows += [rows[0]._replace(padding=True)] * (-len(rows) % multiple)
    share = len(rows) // hosts
    if share * hosts != len(rows):
        raise ValueError(f"{len(rows)} rows do not divide over {hosts} hosts")
    mine = rows[host * share : (host + 1) * share]

    def batch_at(step: int) -> Example:
        made = [row.example(step) for row in mine]
        batch = {name: np.stack([each[name] for each in made]) for name in made[0]}
        for name in ("image", "low"):
            if name in batch:
                batch[name] = to_unit(batch[name])
        return batch | (shared or {})

    # grain needs a length; no run reaches step 2^31.
    return grain.MapDataset.range(2**31 - 1).map(batch_at)


def iterate(dataset: grain.MapDataset) -> Any:
    """Grain's iterator over batches, ``READ_AHEAD`` of them made before their step.

    grain's own default is 500 batches, which takes gigabytes at high resolutions.
    """
    options = grain.ReadOptions(num_threads=READ_AHEAD, prefetch_buffer_size=READ_AHEAD)
    return iter(dataset.to_iter_dataset(options))


def _stream(
    examples: Examples | Sequence[Example],
    seed: int,
    prepare: Callable[[Example, np.random.Generator], Example] | None,
) -> Any:
    stream = grain.MapDataset.source(examples).seed(seed).shuffle().repeat()
    return stream if prepare is None else stream.random_map(_Prepare(prepare))


class _Prepare(grain.transforms.RandomMap):
    def __init__(self, function: Callable[[Any, np.random.Generator], Any]):
        self._function = function

    def random_map(self, element: Any, rng: np.random.Generator) -> Any:
        return self._function(element, rng)


def to_unit(image: np.ndarray) -> np.ndarray:
    """uint8 [0, 255] to f32 [-1, 1]."""
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def to_bytes(image: np.ndarray) -> np.ndarray:
    """f32 [-1, 1] to uint8, rounded; values outside the range are clipped."""
    return np.round((np.clip(image, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def random_crop(
    size: int, scale: int
) -> Callable[[Example, np.random.Generator], Example]:
    """A function that cuts the same random square out of ``image`` and ``low``.

    Args:
        size: Side of the crop in pixels of ``image``; a multiple of ``scale``.
        scale: Ratio of the sides of ``image`` and ``low``.
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
