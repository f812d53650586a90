"""Moves weights in and out.

    python -m imagen_booth.convert fetch if_i_m [--to=DIR]
    python -m imagen_booth.convert import --from=DIR --to=DIR
    python -m imagen_booth.convert export --run=runs/dog --to=DIR [--layout=diffusers]
    python -m imagen_booth.convert unpickle --from=DIR

fetch downloads public weights, no more files of them than are needed; without a name
it lists what there is. import rewrites weights as a folder of ours: DeepFloyd IF in
diffusers' layout, T5 encoders as safetensors or T5X checkpoint. export writes the
networks of a run (or, with --from, of a folder), fine-tuned ones as tuned, as a folder
of ours that config.weights of another run can name, or as diffusers reads it.
unpickle rewrites torch's .bin files as safetensors beside them, and needs torch.
"""

from absl import flags

from imagen_booth import cli

# And how many words may follow.
VERBS = {"export": 0, "fetch": 1, "import": 0, "unpickle": 0}

_RUN = flags.DEFINE_string("run", None, "export: work directory of a run")
_FROM = flags.DEFINE_string("from", None, "weights to read: a folder, or a file")
_TO = flags.DEFINE_string("to", None, "folder to write; fetch: default is a cache")
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16", "float16"], "of the files; default as it is"
)
_PARTS = flags.DEFINE_list("parts", [], "parts to write; default all there are")
_LAYOUT = flags.DEFINE_enum("layout", "own", ["own", "diffusers"], "export: for whom")


def main(verb: str, name: str | None = None) -> None:
    # Slow imports come after the flags, so that --help and bad flags answer at once.
    import jax.numpy as jnp
    from etils import epath

    from imagen_booth.errors import InputError
    from imagen_booth.weights import export, fetch, unpickle

    if verb == "fetch":
        if name is None:
            print(fetch.listing())
        else:
            folders = fetch.fetch(name, _TO.value)
            print("\n".join(f"{each} is in {at}" for each, at in folders.items()))
            if name in fetch.CASCADES:
                flags_ = [fetch.setting(each, at) for each, at in folders.items()]
                print(f"load it with {' '.join(flags_)}")
        return
    if verb == "unpickle":
        if not _FROM.value:
            raise InputError("--from is missing; give the folder of the .bin files")
        files = unpickle.rewrite(epath.Path(_FROM.value))
        print("\n".join(f"wrote {path}" for path in files))
        return
    if not _TO.value:
        raise InputError("--to is missing; give the folder to write")
    if verb == "export" and _RUN.value:
        parcels = export.export_run(epath.Path(_RUN.value), _PARTS.value)
    elif _FROM.value:
        parcels = export.export_folder(epath.Path(_FROM.value), _PARTS.value)
    else:
        one = "--run or --from" if verb == "export" else "--from"
        raise InputError(f"{one} is missing; say where the weights are")
    to = epath.Path(_TO.value)
    dtype = jnp.dtype(_DTYPE.value) if _DTYPE.value else None
    own = verb == "import" or _LAYOUT.value == "own"
    write = export.write_native if own else export.write_diffusers
    print("\n".join(f"wrote {path}" for path in write(to, parcels, dtype)))


if __name__ == "__main__":
    cli.run(main, __doc__, verbs=VERBS)
