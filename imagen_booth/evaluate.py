"""Scores pictures by DreamBooth's protocol: DINO, CLIP-I, CLIP-T, PRES, DIV.

    python -m imagen_booth.evaluate --run=runs/dog --prompts=dreambench_living \\
        --dino=DIR --clip=DIR --lpips=FILE
    python -m imagen_booth.evaluate --photos=DIR --prompts=dreambench \\
        --system=dalle=DIR --system=ours=DIR --dino=DIR --clip=DIR

Of a run, the pictures in RUN/samples/PROMPTS are scored, and those in
RUN/samples/class, which are drawn by sample --prompt="a [N]" --name=class, give PRES.
Any folder of pictures can stand in the same table; with several subjects it has a
folder for each, named as those in --photos.  A picture's prompt is told by an
index.jsonl with file and prompt in each line, or by the number its name begins with
(07_2.png is of the eighth prompt), or by the text "prompt" inside a PNG file.

Weights are the hub's safetensors: see python -m imagen_booth.convert fetch.  'random'
in place of weights tries the protocol.  Subjects of the toybox are scored by its judge.
Leaves TO/evaluation.json and TO/evaluation.html.
"""

from absl import flags

from imagen_booth import cli

_RUN = flags.DEFINE_multi_string("run", [], "a finished run: DIR, or NAME=DIR")
_NAME = flags.DEFINE_string("name", "", "folder in each run's samples")
_IMAGES = flags.DEFINE_string("images", None, "a folder of pictures")
_SYSTEM = flags.DEFINE_multi_string("system", [], "a folder of pictures: NAME=DIR")
_CLASS = flags.DEFINE_multi_string(
    "class_images",
    [],
    "pictures of the class alone, for PRES: NAME=DIR, or DIR with --images",
)
_PHOTOS = flags.DEFINE_string(
    "photos", None, "photos of the subject or subjects; default those of the run"
)
_NOUN = flags.DEFINE_multi_string(
    "noun", [], "what [N] stands for: NOUN, or SUBJECT=NOUN; DreamBench's are known"
)
_PROMPTS = flags.DEFINE_string(
    "prompts",
    None,
    "a file of prompts, a suite, or 'dreambench' for the list that fits",
)
_DINO = flags.DEFINE_string("dino", None, "folder of facebook/dino-vits16, or random")
_CLIP = flags.DEFINE_string("clip", None, "folder of openai/clip-vit-*, or random")
_CLIP_MODEL = flags.DEFINE_enum(
    "clip_model",
    "clip_vit_b32",
    ["clip_vit_b32", "clip_vit_b16", "clip_vit_l14"],
    "which CLIP it is",
)
_LPIPS = flags.DEFINE_string("lpips", None, "lpips_alex.safetensors, or random")
_JUDGE = flags.DEFINE_string(
    "judge", None, "folder of a judge of the toybox, or shipped"
)
_TO = flags.DEFINE_string(
    "to", None, "folder of the result; default RUN/evaluation, or runs/evaluation"
)
_CACHE = flags.DEFINE_string(
    "cache", None, "folder that keeps features; default cache beside the runs"
)


def main() -> None:
    systems, classes = list(_SYSTEM.value), list(_CLASS.value)
    # Slow imports come after the flags, so that --help and bad flags answer at once.
    from etils import epath

    from imagen_booth.evaluation import evaluate_systems
    from imagen_booth.evaluation.evaluate_systems import EvaluationRequest, Locations

    if _IMAGES.value:
        name = epath.Path(_IMAGES.value).name or "pictures"
        systems.insert(0, f"{name}={_IMAGES.value}")
        classes = [each if "=" in each else f"{name}={each}" for each in classes]
    runs = [evaluate_systems.named(each)[1] for each in _RUN.value]
    alone = runs[0] if len(runs) == 1 and not systems else epath.Path("runs")
    to = epath.Path(_TO.value) if _TO.value else alone / "evaluation"
    beside = runs[0].parent if runs else epath.Path("runs")
    cache = epath.Path(_CACHE.value) if _CACHE.value else beside / "cache"
    page, warnings = evaluate_systems.evaluate_systems(
        EvaluationRequest(
            runs=_RUN.value,
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
