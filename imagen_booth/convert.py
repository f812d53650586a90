"""Downloads, imports and exports weights.

    python -m imagen_booth.convert fetch if_m [--to=DIR]
    python -m imagen_booth.convert import --from=DIR --to=DIR
    python -m imagen_booth.convert export --run=runs/dog --to=DIR [--layout=diffusers]
    python -m imagen_booth.convert merge --run=runs/dog --to=DIR [--layout=diffusers]
    python -m imagen_booth.convert merge --from=DIR --adapter=DIR --to=DIR
    python -m imagen_booth.convert unpickle --from=DIR

fetch downloads the files that are needed of public weights: of a whole cascade (if_m,
if_l, if_xl) or of one artefact; without a name it lists them. import rewrites weights
in our layout: DeepFloyd IF in diffusers' layout, T5 encoders as safetensors or T5X
checkpoint. export writes the fine-tuned networks of a run (or, with --from, those of a
folder) in our layout, which config.weights of another run can name, or in diffusers'.
An adapter is written as pytorch_lora_weights.safetensors, which diffusers, peft and
config.base.adapter.start read. merge writes whole networks with their adapters added.
unpickle rewrites torch's .bin files as safetensors beside them, and needs torch.
"""

from typing import Any

from absl import flags

from imagen_booth import cli

# Commands, and how many words may follow each.
VERBS = {"export": 0, "fetch": 1, "import": 0, "merge": 0, "unpickle": 0}

_RUN = cli.define_path("run", None, "export, merge: run directory of a run")
_FROM = cli.define_path("from", None, "weights to read: a folder, or a file")
_ADAPTER = cli.define_path(
    "adapter", None, "merge: folder or file of the adapters for the weights of --from"
)
_TO = cli.define_path("to", None, "folder to write; fetch: default is a cache")
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16", "float16"],
    "dtype of the files; default is that of the source",
)
_PARTS = flags.DEFINE_list("parts", [], "parts to write; default is all")
_LAYOUT = flags.DEFINE_enum(
    "layout", "own", ["own", "diffusers"], "export, merge: layout of the files"
)


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
            if name in fetch.CASCADES and fetch.is_found(_TO.value):
                print(f"train --config=configs/subject.py:{name} finds them")
            elif name in fetch.CASCADES:
                print(f"set {fetch.VARIABLE}={_TO.value}, and train finds them")
        return
    if verb == "unpickle":
        if not _FROM.value:
            raise InputError("--from is missing; give the folder of the .bin files")
        files = unpickle.rewrite(epath.Path(_FROM.value))
        print("\n".join(f"wrote {path}" for path in files))
        return
    if not _TO.value:
        raise InputError("--to is missing; give the folder to write")
    parts = _collect(verb)
    to = epath.Path(_TO.value)
    dtype = jnp.dtype(_DTYPE.value) if _DTYPE.value else None
    own = verb == "import" or _LAYOUT.value == "own"
    write = export.write_native if own else export.write_diffusers
    print("\n".join(f"wrote {path}" for path in write(to, parts, dtype)))


def _collect(verb: str) -> list[Any]:
    """The parts to write, as the flags choose them."""
    from etils import epath

    from imagen_booth.errors import InputError
    from imagen_booth.weights import export

    if _ADAPTER.value and (verb != "merge" or _RUN.value):
        raise InputError("--adapter goes with merge and --from; leave out --run")
    if _RUN.value and verb in ("export", "merge"):
        read = {"export": export.export_run, "merge": export.merge_run}[verb]
        return read(epath.Path(_RUN.value), _PARTS.value)
    if not _FROM.value:
        one = "--from" if verb == "import" else "--run or --from"
        raise InputError(f"{one} is missing; give the place of the weights")
    folder = epath.Path(_FROM.value)
    if verb != "merge":
        return export.export_folder(folder, _PARTS.value)
    if not _ADAPTER.value:
        raise InputError("--adapter is missing; give the folder of the adapters")
    return export.merge_folder(epath.Path(_ADAPTER.value), folder, _PARTS.value)


if __name__ == "__main__":
    cli.run(main, __doc__, verbs=VERBS)
