"""Draws pictures with a fine-tuned run.

    python -m imagen_booth.sample --run=runs/dog --prompt="a [V] dog in the snow"
    python -m imagen_booth.sample --run=runs/dog --prompts=FILE --seeds=4
    python -m imagen_booth.sample --run=runs/dog --prompts=dreambench_living --seeds=4

[V] stands for the run's identifier and [N] for its class noun.  Pictures go to
RUN/samples/NAME/RESOLUTION/, each with its prompt, seed and run in its metadata.

A file has one prompt a line; a .csv file names its columns, and a .jsonl file the
entries of its lines: prompt, and where wanted seed, negative_prompt, guidance.  Suites
come with the package: applications, or one of its families recontextualisation, art,
expression, view, accessories, properties; dreambench_objects; dreambench_living;
and dreambench for the one of these two that fits the class.  Stopped anywhere, the
same command goes on; index.html shows the pictures.
"""

from absl import flags

from imagen_booth import cli
from imagen_booth.errors import InputError

_RUN = flags.DEFINE_string("run", None, "work directory of a run")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "a prompt; may be given repeatedly")
_PROMPTS = flags.DEFINE_string("prompts", None, "a file of prompts, or a suite")
_SEEDS = flags.DEFINE_integer("seeds", 1, "pictures per prompt", lower_bound=1)
_FIRST_SEED = flags.DEFINE_integer("first_seed", 0, "their first seed", lower_bound=0)
_RESOLUTION = flags.DEFINE_integer("resolution", 0, "stop at this size; 0 for the last")
_BATCH = flags.DEFINE_integer(
    "batch",
    0,
    "with --prompts: pictures drawn together at 64 px; 0 for what fits",
    lower_bound=0,
)
_NAME = flags.DEFINE_string(
    "name", None, "folder name; default from the file or suite, or 'prompts'"
)
cli.define_hosts()


def main() -> None:
    if not _RUN.value:
        raise InputError("--run is missing; give the work directory of a run")
    prompts = [prompt for prompt in _PROMPT.value if prompt]
    source = _PROMPTS.value or ""
    if not prompts and not source:
        raise InputError("no prompts; give --prompt=TEXT or --prompts=FILE")
    if prompts and source:
        raise InputError("--prompt and --prompts are given; put all into the file")
    cli.start_hosts()
    # Slow imports come after the flags, so that --help and bad flags answer at once.
    from etils import epath

    from imagen_booth.distributed import processes
    from imagen_booth.sampling import batch_job, finished_run

    processes.check_shared("--run", _RUN.value)
    run = epath.Path(_RUN.value)
    if prompts:
        folder = finished_run.sample_prompts(
            run,
            prompts,
            _NAME.value or "prompts",
            seeds=range(_FIRST_SEED.value, _FIRST_SEED.value + _SEEDS.value),
            resolution=_RESOLUTION.value,
        )
    else:
        folder = batch_job.run_batch(
            run,
            source,
            _NAME.value or "",
            seeds=_SEEDS.value,
            first_seed=_FIRST_SEED.value,
            resolution=_RESOLUTION.value,
            batch=_BATCH.value,
        )
    print(f"pictures are in {folder}")


if __name__ == "__main__":
    cli.run(main, __doc__)
