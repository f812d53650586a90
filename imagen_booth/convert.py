"""Moves weights in and out.

    python -m imagen_booth.convert export --run=runs/dog --to=DIR

export writes the networks of a run, fine-tuned ones as tuned, as safetensors with a
manifest; the folder can be named in config.weights of another run.
"""

from absl import flags

from imagen_booth import cli

_RUN = flags.DEFINE_string("run", None, "work directory of a run")
_TO = flags.DEFINE_string("to", None, "folder to write")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of the files")
_PARTS = flags.DEFINE_list("parts", [], "parts to write; default all that were tuned")


def main() -> None:
    # Slow imports come after the flags, so that --help and bad flags answer at once.
    from etils import epath

    from imagen_booth.errors import InputError
    from imagen_booth.weights import export

    for flag in (_RUN, _TO):
        if not flag.value:
            raise InputError(f"--{flag.name} is missing; see --help")
    written = export.export(
        epath.Path(_RUN.value), epath.Path(_TO.value), _PARTS.value, _DTYPE.value
    )
    print("\n".join(f"wrote {path}" for path in written))


if __name__ == "__main__":
    cli.run(main, __doc__, verbs=("export",))
