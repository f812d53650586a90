"""Our side of bench_features.py, alone in its process."""

import time

import numpy as np

from imagen_booth.distributed import sharding
from imagen_booth.evaluation.protocol import load_network


class Side:
    """A network of the scores, compiled as scoring compiles it."""

    def __init__(self, name, place, pixels):
        mesh = sharding.make_mesh()
        self._part = load_network(name.partition("_")[0], name, place, mesh)
        self._pixels = pixels
        self.output()

    def output(self):
        """Features of the batch, [B, F]."""
        return np.asarray(self._part.apply(self._part.params, self._pixels))

    def seconds(self, runs):
        """Time of one batch."""
        start = time.perf_counter()
        for _ in range(runs):
            self.output()
        return (time.perf_counter() - start) / runs
