"""Draws pictures with a fine-tuned run.

    python -m imagen_booth.sample --run=runs/dog --prompt="a [V] dog in the snow"
    python -m imagen_booth.sample --run=runs/dog --prompts=FILE --seeds=4

A file has one prompt a line; [V] stands for the run's identifier and [N] for its
class noun.  Pictures go to RUN/samples/NAME/RESOLUTION/, each with its prompt, seed
and run in its metadata, beside a contact sheet.
"""

from absl import flags

from imagen_booth import cli
from imagen_booth.errors import InputError

_RUN = flags.DEFINE_string("run", None, "work directory of a run")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "a prompt; may be given repeatedly")
_PROMPTS = flags.DEFINE_string("prompts", None, "a file of prompts, one a line")
_SEEDS = flags.DEFINE_integer("seeds", 1, "pictures per prompt", lower_bound=1)
_FIRST_SEED = flags.DEFINE_integer("first_seed", 0, "their first seed", lower_bound=0)
_RESOLUTION = flags.DEFINE_integer("resolution", 0, "stop at this size; 0 for the last")
_NAME = flags.DEFINE_string(
    "name", None, "folder name; default from the file, or 'prompts'"
)
cli.define_hosts()


def main() -> None:
    if not _RUN.value:
        raise InputError("--run is missing; give the work directory of a run")
    # Slow imports come after the flags, so that --help and bad flags answer at once.
    from etils import epath

    prompts = list(_PROMPT.value)
    name = _NAME.value or "prompts"
    if _PROMPTS.value:
        file = epath.Path(_PROMPTS.value)
        if not file.exists():
            raise InputError(f"--prompts={file} does not exist; give a text file")
        prompts += [line.strip() for line in file.read_text().splitlines()]
        name = _NAME.value or file.stem
    prompts = [prompt for prompt in prompts if prompt]
    if not prompts:
        raise InputError("no prompts; give --prompt=TEXT or --prompts=FILE")
    from imagen_booth import gallery, hosts

    cli.start_hosts()
    hosts.check_shared("--run", _RUN.value)
    folder = gallery.draw(
        epath.Path(_RUN.value),
        prompts,
        name,
        seeds=range(_FIRST_SEED.value, _FIRST_SEED.value + _SEEDS.value),
        resolution=_RESOLUTION.value,
    )
    print(f"pictures are in {folder}")


if __name__ == "__main__":
    cli.run(main, __doc__)
