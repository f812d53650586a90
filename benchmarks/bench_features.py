"""Images per second of feature extraction, beside transformers on torch.

    python benchmarks/bench_features.py
    python benchmarks/bench_features.py --only=dino --batch=16 --rounds=5

DINO ViT-S/16 and CLIP ViT-B/32's image tower, of their real sizes, float32, on this
machine's CPU; the same random weights from one file, the same prepared pictures, the
same batch. Before anything is timed their features have to agree. Preparing pictures
is not timed: both sides would leave it to Pillow.

Each side is a process of its own, which waits while the other works; a ratio is the
time of torch over ours in one round, so above 1 we are faster. On a machine that others
use, compare ratios and not rates.
"""

import argparse
import os
import pathlib
import statistics
import tempfile

import numpy as np
from bench_diffusers import SPAWN, Worker

NETWORKS = {"dino": "dino_vits16", "clip": "clip_vit_b32"}
SIDES = "features", "transformers"
TOLERANCE = 1e-4  # of max|a - b| / max|b|


def write(folder, kind):
    """A random network in the hub's layout."""
    # Not at the top: both sides import this file, and need not both of them.
    from side_transformers import write

    write(folder, kind)


def compare(kind, options):
    """Prints a table for one network."""
    with tempfile.TemporaryDirectory() as place:
        writer = SPAWN.Process(target=write, args=(pathlib.Path(place), kind))
        writer.start()
        writer.join()
        if writer.exitcode:
            raise SystemExit(writer.exitcode)
        rng = np.random.default_rng(0)
        pixels = rng.normal(size=(options.batch, 224, 224, 3)).astype(np.float32)
        workers = {}
        try:
            for name in SIDES:
                workers[name] = Worker(name, (NETWORKS[kind], place, pixels))
            ours, theirs = (workers[name]("output") for name in SIDES)
            apart = np.abs(ours - theirs).max() / np.abs(theirs).max()
            if not apart <= TOLERANCE:
                raise SystemExit(f"the sides differ by {apart:.1e}: nothing to compare")
            seconds = {name: [] for name in SIDES}
            for number in range(options.rounds):
                for name in SIDES[:: 1 if number % 2 == 0 else -1]:
                    seconds[name].append(workers[name]("seconds", options.steps))
        finally:
            for worker in workers.values():
                worker.close()
    print(f"{NETWORKS[kind]}, batch {options.batch}; features differ by {apart:.1e}")
    for name in SIDES:
        spent = statistics.median(seconds[name])
        print(f"{name:14}{spent:>9.3f} s{options.batch / spent:>9.1f} images/s")
    ratios = [b / a for a, b in zip(*(seconds[name] for name in SIDES), strict=True)]
    middle = statistics.median(ratios)
    print(f"ratio {middle:.2f} ({min(ratios):.2f}..{max(ratios):.2f})\n", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=NETWORKS)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="batches in each round")
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    print(f"float32, {len(os.sched_getaffinity(0))} cores\n", flush=True)
    for kind in [options.only] if options.only else NETWORKS:
        compare(kind, options)


if __name__ == "__main__":
    main()
