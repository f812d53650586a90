"""Scores pictures by DreamBooth's protocol: DINO, CLIP-I, CLIP-T, PRES, DIV.

    python -m imagen_booth.sample --run=runs/dog --prompts=dreambench --seeds=4
    python -m imagen_booth.sample --run=runs/dog --prompt="a [N]" --seeds=100 \\
        --first_seed=1000000 --name=class
    python -m imagen_booth.evaluate --run=runs/dog --prompts=dreambench \\
        --dino=DIR --clip=DIR --lpips=FILE
    python -m imagen_booth.evaluate --runs=runs/many --prompts=dreambench \\
        --dino=DIR --clip=DIR
    python -m imagen_booth.evaluate --photos=DIR --prompts=dreambench \\
        --system=dalle=DIR --system=ours=DIR --dino=DIR --clip=DIR

The pictures of a run are those in RUN/samples/PROMPTS. PRES needs pictures of the class
alone, in RUN/samples/class: the second command makes them. Their seeds start at
1000000, because they must not share noise with the class images of the training;
evaluate refuses pictures that do. --runs scores all finished runs in a folder as one
system, with means and intervals over their subjects.

Folders of pictures by any other system can be in the same table. With several
subjects, such a folder has one folder per subject, named as those in --photos. The
prompt of a picture comes from a line of index.jsonl with "file" and "prompt", or from
the number its name begins with (07_2.png belongs to the eighth prompt), or from the
text "prompt" in the metadata of the PNG file.

The weights are the safetensors files of the hub: see python -m imagen_booth.convert
fetch. 'random' in place of weights tries the protocol. The shipped judge scores toybox
subjects. The results are TO/evaluation.json and TO/evaluation.html.
"""

from absl import flags

from imagen_booth import cli

_RUN = cli.define_paths("run", "finished run: DIR, or NAME=DIR")
_RUNS = cli.define_paths("runs", "folder of finished runs: DIR, or NAME=DIR")
_NAME = flags.DEFINE_string(
    "name", "", "folder in RUN/samples; default that of --prompts"
)
_IMAGES = cli.define_path("images", None, "folder of pictures")
_SYSTEM = cli.define_paths("system", "folder of pictures: NAME=DIR")
_CLASS = cli.define_paths(
    "class_images",
    "pictures of the class alone, for PRES: NAME=DIR, or DIR with --images",
)
_PHOTOS = cli.define_path(
    "photos",
    None,
    "folder of the subject's photos, or of one folder per subject; default the "
    "photos of the run",
)
_NOUN = flags.DEFINE_multi_string(
    "noun", [], "class noun, [N]: NOUN, or SUBJECT=NOUN; those of DreamBench are known"
)
_PROMPTS = cli.define_path(
    "prompts",
    None,
    "file of prompts, suite, or 'dreambench' for the suite that fits the class",
)
_DINO = cli.define_path("dino", None, "folder of facebook/dino-vits16, or random")
_CLIP = cli.define_path("clip", None, "folder of openai/clip-vit-*, or random")
_CLIP_MODEL = flags.DEFINE_enum(
    "clip_model",
    "clip_vit_b32",
    ["clip_vit_b32", "clip_vit_b16", "clip_vit_l14"],
    "which CLIP --clip holds",
)
_LPIPS = cli.define_path("lpips", None, "lpips_alex.safetensors, or random")
_JUDGE = cli.define_path("judge", None, "folder of a toybox judge, or 'shipped'")
_TO = cli.define_path(
    "to",
    None,
    "folder of the results; default RUN/evaluation, RUNS/evaluation or runs/evaluation",
)
_CACHE = cli.define_path(
    "cache", None, "folder for computed features; default 'cache' beside the runs"
)


def main() -> None:
    systems, classes = list(_SYSTEM.value), list(_CLASS.value)
    # Slow imports come after the flags, so that --help and bad flags answer at once.
    from etils import epath

    from imagen_booth.evaluation import evaluate_systems
    from imagen_booth.evaluation.evaluate_systems import EvaluationRequest, Locations
    from imagen_booth.rundir import layout

    if _IMAGES.value:
        name = epath.Path(_IMAGES.value).name or "pictures"
        systems.insert(0, f"{name}={_IMAGES.value}")
        classes = [each if "=" in each else f"{name}={each}" for each in classes]
    given, folders = (
        list(_RUN.value),
        [evaluate_systems.parse_named(e) for e in _RUNS.value],
    )
    for label, folder in folders:
        inside = layout.finished_in("--runs", folder)
        given += [f"{label or folder.name}={run}" for run in inside]
    runs = [evaluate_systems.parse_named(each)[1] for each in given]
    alone = runs[0] if len(runs) == 1 and not systems else epath.Path("runs")
    if len(folders) == 1 and not _RUN.value and not systems:
        alone = folders[0][1]
    to = epath.Path(_TO.value) if _TO.value else alone / "evaluation"
    beside = runs[0].parent if runs else epath.Path("runs")
    cache = epath.Path(_CACHE.value) if _CACHE.value else beside / "cache"
    page, warnings = evaluate_systems.evaluate_systems(
        EvaluationRequest(
            runs=given,
            systems=systems,
            classes=classes,
            photos=_PHOTOS.value or "",
            nouns=_NOUN.value,
            prompts=_PROMPTS.value or "",
            name=_NAME.value,
        ),
        Locations(
            dino=_DINO.value or "",
            clip=_CLIP.value or "",
            clip_model=_CLIP_MODEL.value,
            lpips=_LPIPS.value or "",
            judge=_JUDGE.value or "",
        ),
        to,
        cache,
    )
    for warning in warnings:
        print(f"warning: {warning}")
    print(f"open {page}")


if __name__ == "__main__":
    cli.run(main, __doc__)
