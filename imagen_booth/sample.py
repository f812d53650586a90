"""Samples images with a fine-tuned run.

    python -m imagen_booth.sample --run=runs/dog --prompt="a [V] dog in the snow"
    python -m imagen_booth.sample --run=runs/dog --prompts=FILE --seeds=4
    python -m imagen_booth.sample --run=runs/dog --prompts=dreambench_living --seeds=4
    python -m imagen_booth.sample --runs=runs/many --prompts=dreambench --seeds=4

[V] stands for the run's identifier and [N] for its class noun; in a run of two
subjects [V2] and [N2] stand for those of the second. Images go to
RUN/samples/NAME/RESOLUTION/WORDS_SEED_KEY.png with prompt, seed and run in their
metadata; KEY is a digest of prompt, seed and settings. An image that exists is not
sampled again, so an interrupted command resumes when it is run again.

--prompts takes a file or a suite. A .txt file has one prompt per line; lines that start
with # are comments. The columns of a .csv file, and the entries of a .jsonl or .json
file, are prompt and optionally seed, negative_prompt and guidance. Suites of the
package: applications, or one of its families recontextualisation, art, expression,
view, accessories, properties; dreambench_objects; dreambench_living; and dreambench for
the one of these two that fits the class. RUN/samples/NAME/index.html shows the images.

--runs samples with every finished run in a folder, in one job.
"""

import contextlib
from typing import TYPE_CHECKING

from absl import flags

from imagen_booth import cli
from imagen_booth.errors import InputError

if TYPE_CHECKING:
    from etils import epath

_RUN = cli.define_path("run", None, "run directory of a finished run")
_RUNS = cli.define_path("runs", None, "in place of --run: folder of finished runs")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "a prompt; repeat the flag for more")
_PROMPTS = cli.define_path("prompts", None, "file of prompts, or a suite")
_SEEDS = flags.DEFINE_integer("seeds", 1, "images per prompt", lower_bound=1)
_FIRST_SEED = flags.DEFINE_integer(
    "first_seed", 0, "first seed of each prompt", lower_bound=0, upper_bound=2**32 - 1
)
_GUIDANCE = flags.DEFINE_float(
    "guidance",
    None,
    "with --prompt: guidance weight of the base stage; default is the run's",
    lower_bound=0.0,
)
_RESOLUTION = flags.DEFINE_integer(
    "resolution", 0, "stop at this resolution in pixels; 0 for the last stage"
)
_BATCH = flags.DEFINE_integer(
    "batch",
    0,
    "with --prompts: images per batch at 64 px; 0 for the largest batch that fits",
    lower_bound=0,
)
_NAME = flags.DEFINE_string(
    "name", None, "name of the folder in RUN/samples; default: the file's or 'prompts'"
)
cli.define_hosts()


def main() -> None:
    if not _RUN.value and not _RUNS.value:
        raise InputError("--run is missing; give the run directory of a run")
    if _RUN.value and _RUNS.value:
        raise InputError("give --run for one run or --runs for a folder of them")
    prompts = [prompt for prompt in _PROMPT.value if prompt]
    source = _PROMPTS.value or ""
    if not prompts and not source:
        raise InputError("no prompts are given; use --prompt=TEXT or --prompts=FILE")
    if prompts and source:
        raise InputError(
            "give --prompt or --prompts, not both; put all prompts into the file"
        )
    if source and _GUIDANCE.value is not None:
        raise InputError(
            f"--guidance={_GUIDANCE.value} is for --prompt; in a file of prompts "
            "guidance is a column"
        )
    cli.start_hosts()
    # Slow imports come after the flags, so that --help and bad flags answer at once.
    from etils import epath

    from imagen_booth.distributed import processes
    from imagen_booth.rundir import layout, programs
    from imagen_booth.weights import host_copies

    flag, path = ("--run", _RUN.value) if _RUN.value else ("--runs", _RUNS.value)
    processes.check_shared(flag, path)
    runs = [epath.Path(path)]
    if _RUNS.value:
        runs = layout.finished_in(flag, path)
    # One run needs no copies of its weights.
    copies = host_copies.shared() if len(runs) > 1 else contextlib.nullcontext()
    with programs.shared(), copies:
        for run in runs:
            folder = _sample(run, prompts, source)
            print(f"images are in {folder}")


def _sample(run: "epath.Path", prompts: list[str], source: str) -> "epath.Path":
    """Samples with one run; returns the folder of the images."""
    from imagen_booth.sampling import batch_job

    name = ("prompts" if prompts else "") if _NAME.value is None else _NAME.value
    if prompts:
        return batch_job.sample_prompts(
            run,
            prompts,
            name,
            seeds=_SEEDS.value,
            first_seed=_FIRST_SEED.value,
            guidance=_GUIDANCE.value,
            resolution=_RESOLUTION.value,
        )
    return batch_job.run_batch(
        run,
        source,
        name,
        seeds=_SEEDS.value,
        first_seed=_FIRST_SEED.value,
        resolution=_RESOLUTION.value,
        batch=_BATCH.value,
    )


if __name__ == "__main__":
    cli.run(main, __doc__)
