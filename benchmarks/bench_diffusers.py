"""IF's first stage here and in diffusers, side by side; needs the parity extra.

    python benchmarks/bench_diffusers.py --size=if_i_m --batch=4
    python benchmarks/bench_diffusers.py --size=if_i_m --batch=4 --compile
    python benchmarks/bench_diffusers.py --size=if_i_l --batch=16 \
        --dtype=bfloat16 --device=gpu
    python benchmarks/bench_diffusers.py --only=load --size=if_i_m

``train`` is forward, eps loss, backward, gradient clip and AdamW update; ``denoise``
is one guided prediction of x0, the network seeing the batch twice; ``sample`` draws
whole pictures from noise by the ancestral sampler in SAMPLING_STEPS steps, guided, with
learned variance and dynamic thresholds, from embeddings to uint8, as ``generate`` and a
pipeline do; ``load`` reads the weights from a folder in diffusers' layout. The two
sides have the same network, the same random weights from that folder, batch, precision
and cores. Before anything is timed their outputs for the same inputs have to agree.

Each side is a process of its own, which waits while the other works. A round times
both, and begins with the one that the round before ended with; a ratio is the time of
diffusers over ours in one round, so above 1 we are faster, and load that comes and
goes hits both. Printed are the medians, and the ratio's smallest and largest value.

Peak memory is of the whole process with its libraries and the loading (on a GPU: of
what was allocated on it). Operations are those of matrix products and convolutions in
our step, and stand for both. diffusers' are more, and are not counted: after an
upsampling it convolves the enlarged pictures (``if_i_m`` 5 %, ``reduced`` 8 %), and in
``sample`` it reads the text in each step (3 %). Their rate is compared with the largest
of square matrix products on either side. ``load`` starts fresh processes for each
round; the file is in the page cache.
"""

import argparse
import contextlib
import dataclasses
import importlib
import itertools
import json
import multiprocessing
import os
import pathlib
import statistics
import tempfile

import numpy as np

SECTIONS = "train", "denoise", "sample", "load"
SAMPLING_STEPS = 10
SIDES = "ours", "diffusers"
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}  # of max|a - b| / max|b|
PRODUCTS = {"cpu": (1024, 2048), "gpu": (4096, 8192)}  # sides of the matrices
GIB = 2**30
SPAWN = multiprocessing.get_context("spawn")


def write(folder, size):
    """A random network into a folder; ``reduced`` is a small one of IF-I-M's kind."""
    # Not at the top: processes that start import this file, and memory is measured.
    from side_diffusers import write

    from imagen_booth.models.unet import SIZES
    from imagen_booth.weights.deepfloyd import write_network

    config = SIZES["if_i_m" if size == "reduced" else size]
    if size == "reduced":
        config = dataclasses.replace(
            config,
            widths=(64, 128, 192, 256),
            blocks=(1, 1, 1, 1),
            text_width=1024,
            cross_width=256,
            time_width=256,
            pool_heads=16,
        )
    write(folder, write_network(config, 64))


def draw_inputs(batch, text_width):
    """Rows of noise for every section, f32, channels last."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=(batch, *shape)).astype(np.float32)

    return {
        "image": np.tanh(draw(64, 64, 3)),
        "noisy": draw(64, 64, 3),
        "text": draw(77, text_width),
        "null": draw(77, text_width),
        "time": rng.integers(0, 1000, batch).astype(np.float32),
    }


def serve(connection, name, arguments):
    """Does what the other end asks for, in order, until it closes."""
    side = importlib.import_module(f"side_{name}").Side(*arguments)
    with contextlib.suppress(EOFError):
        while True:
            method, *given = connection.recv()
            connection.send(getattr(side, method)(*given))


class Worker:
    """One side in its own process; it does nothing between calls."""

    def __init__(self, name, arguments):
        self._end, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=serve, args=(theirs, name, arguments))
        self._process.start()
        theirs.close()  # so that a side that fails ends the wait for it

    def __call__(self, method, *given):
        self._end.send((method, *given))
        return self._end.recv()

    def memory(self):
        """Peak in bytes, of the device where it has memory of its own."""
        on_device = self("device_memory")
        if on_device is not None:
            return on_device
        status = pathlib.Path(f"/proc/{self._process.pid}/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])

    def close(self):
        self._end.close()
        self._process.join()


@contextlib.contextmanager
def both(folder, options):
    """The two sides, started and idle."""
    described = json.loads((folder / "unet/config.json").read_text())
    inputs = draw_inputs(options.batch, described["encoder_hid_dim"])
    common = str(folder), inputs, options.dtype, SAMPLING_STEPS
    workers = {}
    try:
        workers["ours"] = Worker("ours", common)
        more = options.device, options.compile
        workers["diffusers"] = Worker("diffusers", (*common, *more))
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def order(number):
    """The sides in one round; every other round the other way about."""
    return SIDES[:: 1 if number % 2 == 0 else -1]


def product_rate(workers, sizes):
    """Largest rate of a matrix product on either side, operations per second."""
    rates = []
    for worker, size in itertools.product(workers.values(), sizes):
        worker("prepare_product", size)
        worker("seconds", 1)
        rates += [2 * size**3 / worker("seconds", 1) for _ in range(5)]
    return max(rates)


def show_ratios(seconds):
    """The time of diffusers over ours, round by round."""
    pairs = zip(seconds["diffusers"], seconds["ours"], strict=True)
    ratios = [theirs / ours for theirs, ours in pairs]
    middle = statistics.median(ratios)
    print(f"ratio {middle:.2f} ({min(ratios):.2f}..{max(ratios):.2f})\n", flush=True)


def steps(section, folder, options):
    """Prints a table of training or denoising steps, or of pictures."""
    with both(folder, options) as workers:
        for worker in workers.values():
            worker("load")
        ours, theirs = (workers[name]("output") for name in SIDES)
        apart = np.abs(ours - theirs).max() / np.abs(theirs).max()
        if not apart <= TOLERANCE[options.dtype]:
            raise SystemExit(f"the sides differ by {apart:.1e}: nothing to compare")
        peak = product_rate(workers, PRODUCTS[options.device])
        work, _ = (workers[name](f"prepare_{section}") for name in SIDES)
        seconds = {name: [] for name in SIDES}
        for worker in workers.values():
            worker("seconds", 1)  # what only a first step has to do
        for number in range(options.rounds):
            for name in order(number):
                seconds[name].append(workers[name]("seconds", options.steps))
        memory = {name: worker.memory() for name, worker in workers.items()}
        # Again, because other work on the machine hides the peak now and then.
        peak = max(peak, product_rate(workers, PRODUCTS[options.device]))
    print(f"{section}: {work / 1e9:.0f} GFLOP a batch, outputs differ by {apart:.1e}")
    print(f"{'':12}{'s/batch':>9}{'images/s':>10}{'GFLOP/s':>9}{'of peak':>9}", end="")
    print(f"{'peak GiB':>10}")
    for name in SIDES:
        spent = statistics.median(seconds[name])
        print(f"{name:12}{spent:>9.3f}{options.batch / spent:>10.2f}", end="")
        print(f"{work / spent / 1e9:>9.0f}{work / spent / peak:>9.0%}", end="")
        print(f"{memory[name] / GIB:>10.2f}")
    print(f"matmul peak {peak / 1e9:.0f} GFLOP/s; ", end="")
    show_ratios(seconds)


def loading(folder, options):
    """Prints a table of loading."""
    size = sum(file.stat().st_size for file in folder.glob("unet/*.safetensors"))
    seconds, peaks = ({name: [] for name in SIDES} for _ in range(2))
    for number in range(options.rounds):
        with both(folder, options) as workers:
            for name in order(number):
                before = workers[name].memory()
                seconds[name].append(workers[name]("load"))
                peaks[name].append((before, workers[name].memory()))
    print(f"load: {size / GIB:.2f} GiB of weights")
    print(f"{'':12}{'s':>9}{'GiB/s':>10}{'before':>9}{'peak GiB':>10}{'of size':>9}")
    for name in SIDES:
        spent = statistics.median(seconds[name])
        before, peak = (
            statistics.median(each) for each in zip(*peaks[name], strict=True)
        )
        print(f"{name:12}{spent:>9.3f}{size / GIB / spent:>10.2f}", end="")
        print(f"{before / GIB:>9.2f}{peak / GIB:>10.2f}{(peak - before) / size:>9.2f}")
    show_ratios(seconds)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--size", choices=("reduced", "if_i_m", "if_i_l"), default="reduced"
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", choices=TOLERANCE, default="float32")
    parser.add_argument("--device", choices=PRODUCTS, default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--only", default=",".join(SECTIONS), help="of %(default)s")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="timed in each round")
    options = parser.parse_args()
    wanted = options.only.split(",")
    if not set(wanted) <= set(SECTIONS):
        parser.error(f"--only takes some of {','.join(SECTIONS)}")
    os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[options.device]
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    cores = len(os.sched_getaffinity(0))
    kind = "torch.compile" if options.compile else "eager"
    print(f"{options.size}, batch {options.batch}, {options.dtype}, ", end="")
    print(f"{options.device}, {cores} cores; diffusers {kind}\n", flush=True)
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        writer = SPAWN.Process(target=write, args=(folder, options.size))
        writer.start()
        writer.join()
        if writer.exitcode:
            raise SystemExit(writer.exitcode)
        for section in wanted:
            if section == "load":
                loading(folder, options)
            else:
                steps(section, folder, options)


if __name__ == "__main__":
    main()
