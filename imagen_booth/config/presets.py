"""Default settings per cascade, and the way between ConfigDict and plain data.

A config file's ``get_config`` returns ``dreambooth(cascade)`` with a subject filled in.
Commands apply the flags to it, build a ``Job`` and pass that on; nothing else sees a
ConfigDict.
"""

import dataclasses
from typing import Any

import ml_collections

from imagen_booth.cascade import by_name
from imagen_booth.config import fast
from imagen_booth.config.build import with_placeholders
from imagen_booth.config.schema import (
    FROZEN_MODEL,
    LORA,
    PHOTOS,
    TOYBOX,
    Adapter,
    ClassImages,
    FineTuning,
    Job,
    OptimConfig,
    Pictures,
    Pretraining,
    Subject,
    Subjects,
    Weights,
)
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.errors import InputError

# With an adapter the small base stage learns a subject better, see docs/toybox.md.
DEFAULT = "toybox:lora"

PROMPTS = (
    "a [V] [N]",
    "a [V] [N] in the snow",
    "a [V] [N] on the beach",
    "a [V] [N] in the jungle",
    "a [V] [N] wearing a hat",
    "a [V] [N] seen from the side",
    "a green [V] [N]",
    "a painting of a [V] [N]",
)


def dreambooth(arg: str | None) -> Any:
    """Defaults for a cascade, as a locked ConfigDict.

    Args:
        arg: What follows the colon of ``--config``: a cascade, and after it any of
            ``:lora`` for adapters, ``:paper`` for the paper's own counts and ``:fast``
            for no class images, few-step samplers and few previews; None for
            ``DEFAULT``.

    Raises:
        InputError: Unknown cascade or variant.
    """
    name, *variants = (arg or DEFAULT).split(":")
    for variant in variants:
        if variant not in _VARIANTS:
            raise InputError(
                f"variant {variant!r} of cascade {name!r} is not known; "
                f"use {', '.join(f':{each}' for each in _VARIANTS)} or none"
            )
    by_name(name)
    job = {"toybox": _toybox, "tiny": _tiny, "imagen": _imagen}.get(name, _deepfloyd)(
        name
    )
    for variant in variants:
        job = _VARIANTS[variant](job)
    config = ml_collections.ConfigDict(with_placeholders(job))
    return config.lock()


TWO_PROMPTS = (
    "a [V1] [N1]",
    "a [V2] [N2]",
    "a [V1] [N1] beside a [V2] [N2]",
    "a [V1] [N1] in the snow",
    "a [V2] [N2] in the snow",
    "a [V1] [N1] beside a [V2] [N2] in the snow",
)


def two_subjects(arg: str | None) -> Any:
    """Defaults for a run of two subjects, as a locked ConfigDict.

    They share the rows of each step, so each stage has twice the steps of a run of one:
    then each photo is seen as often.

    Args:
        arg: As for ``dreambooth``.

    Raises:
        InputError: Unknown cascade or variant.
    """
    config = dreambooth(arg)
    for name in ("base", "sr256", "sr1024"):
        config[name].steps *= 2
    config.pictures.prompts = TWO_PROMPTS
    return config


def many_subjects(arg: str | None) -> Any:
    """Defaults for a job of many subjects, as a locked ConfigDict.

    Args:
        arg: As for ``dreambooth``.

    Raises:
        InputError: Unknown cascade or variant.
    """
    config = dreambooth(arg)
    with config.unlocked():
        config.update(dataclasses.asdict(Subjects()))
    return config


def textual_inversion(arg: str | None) -> Any:
    """Textual Inversion on a cascade, as a locked ConfigDict; networks stay frozen.

    Args:
        arg: As for ``dreambooth``.

    Raises:
        InputError: Unknown cascade or variant.
    """
    config = dreambooth(arg)
    _freeze_all(config)
    steps, lr = _INVERSIONS.get(config.cascade, (5000, 0.04))
    config.text.steps, config.text.optim.lr = steps, lr
    if config.cascade in _INVERSIONS:
        # Few rows at a low rate drifted at random; and text matters most where noise is
        # high, which a weight on x0 favours.
        config.text.subject_rows = 8
        config.text.weighting = "x0"
        config.text.optim.decay = "cosine"
        config.text.templates = ("a [V] [N]", "a photo of a [V] [N]")
    for name in ("log_every", "save_every", "preview_every"):
        config.text[name] = config.base[name]
    return config


# Steps and rate by cascade; the others take the paper's length, and the rate that its
# authors' settings come to at a batch of 4 on two devices.
_INVERSIONS = {"toybox": (250, 0.2), "tiny": (4, 1e-2)}


def prompts_only(arg: str | None) -> Any:
    """The frozen cascade, with a description of the subject in each prompt.

    Args:
        arg: As for ``dreambooth``.

    Raises:
        InputError: Unknown cascade or variant.
    """
    config = dreambooth(arg)
    _freeze_all(config)
    config.subject.description = TOYBOX
    return config


def _freeze_all(config: Any) -> None:
    config.base.steps = config.sr256.steps = config.sr1024.steps = 0


def _toybox(name: str) -> Job:
    ancestral = SamplerConfig("ancestral", 25, guidance=2.0, threshold="dynamic")
    # Bodies stay whole that a solver breaks in as many steps: docs/toybox.md.
    base = dataclasses.replace(ancestral, steps=16, guidance=3.0)
    sharpen = SamplerConfig("dpmpp_2m", 10, threshold="static")
    # With more steps to 256 px outlines became grainy, and farther from true renders.
    smooth = dataclasses.replace(sharpen, steps=4)
    sr = FineTuning(
        steps=100,
        subject_rows=2,
        class_rows=0,
        optim=OptimConfig(lr=2e-4, warmup=10),
        weighting="v_max_10",
    )
    return Job(
        cascade=name,
        subject=Subject(),
        # Shorter than with class images, and the better pictures: docs/toybox.md.
        prior=FROZEN_MODEL,
        class_images=ClassImages(100, 20, ancestral),
        base=FineTuning(
            steps=200,
            subject_rows=4,
            class_rows=2,
            # Without null text the subject showed in fewer prompts, and noise with it.
            null_text=0.125,
            optim=OptimConfig(lr=7e-4, warmup=10, decay="cosine"),
            # Much weight where noise is highest copies places and poses of the photos
            # into every prompt, and none leaves out their colours: docs/toybox.md.
            weighting="min_snr_5_floor",
        ),
        sr256=sr,
        # At 2e-4 it ended worse on photographs than it began.
        sr1024=dataclasses.replace(sr, optim=OptimConfig(lr=3e-5, warmup=10)),
        pictures=Pictures(
            PROMPTS,
            seeds=1,
            batch=8,
            base=base,
            sr256=smooth,
            sr1024=sharpen,
        ),
        weights=Weights(*("shipped",) * 5),
    )


def _tiny(name: str) -> Job:
    ancestral = SamplerConfig("ancestral", 4, guidance=2.0, threshold="static")
    sr = SamplerConfig("ddim", 2, threshold="static")
    optim = OptimConfig(lr=1e-3)
    tuning = FineTuning(
        steps=4,
        subject_rows=2,
        class_rows=2,
        optim=optim,
        weighting="v_max_10",
        log_every=1,
        save_every=2,
        preview_every=2,
    )
    sr_tuning = dataclasses.replace(tuning, class_rows=0)
    return Job(
        cascade=name,
        subject=Subject(),
        class_images=ClassImages(4, 2, ancestral),
        base=tuning,
        sr256=sr_tuning,
        sr1024=sr_tuning,
        pictures=Pictures(PROMPTS[:2], 1, 2, ancestral, sr, sr),
        weights=Weights("random", "random", "random", "random", "shipped"),
    )


def _imagen(name: str) -> Job:
    """The paper's shapes; rates and rows it leaves open are ours (design notes)."""
    base = SamplerConfig("ancestral", 256, guidance=7.0, threshold="dynamic")
    sr = SamplerConfig("ancestral", 64, guidance=4.0, threshold="dynamic")
    tuning = FineTuning(
        steps=1000,
        subject_rows=1,
        class_rows=1,
        optim=OptimConfig("adafactor", 1e-5),
    )
    sr_tuning = dataclasses.replace(
        tuning, class_rows=0, optim=OptimConfig("adam", 1e-5)
    )
    return Job(
        cascade=name,
        subject=Subject(),
        class_images=ClassImages(800, 8, base),
        base=tuning,
        sr256=sr_tuning,
        sr1024=sr_tuning,
        pictures=Pictures(PROMPTS, 1, 8, base, sr, dataclasses.replace(sr, steps=32)),
        weights=Weights("", "", "", "", ""),
    )


# The stage for photographs that ships with the cascades of DeepFloyd IF.
PHOTO_SAMPLER = SamplerConfig("dpmpp_2m", 8, threshold="static")
PHOTO_TUNING = FineTuning(
    steps=200,
    subject_rows=4,
    class_rows=0,
    optim=OptimConfig(lr=5e-5, warmup=10),
    weighting="residual",
)


def _deepfloyd(name: str) -> Job:
    """Rates and lengths of diffusers' guide for IF."""
    base = SamplerConfig(
        "ancestral",
        100,
        spacing="leading",
        variance="learned",
        guidance=7.0,
        threshold="dynamic",
        ratio=0.95,
        cap=1.5,
    )
    sr = dataclasses.replace(base, steps=50, guidance=4.0, cap=1.0)
    tuning = FineTuning(
        steps=1000,
        subject_rows=4,
        class_rows=4,
        optim=OptimConfig("adamw", 1e-7, weight_decay=1e-2),
        hybrid=True,
    )
    return Job(
        cascade=name,
        subject=Subject(),
        class_images=ClassImages(200, 8, base),
        base=tuning,
        sr256=dataclasses.replace(
            tuning,
            class_rows=0,
            remat=True,  # to fit one v5e chip
            optim=OptimConfig("adamw", 5e-6, weight_decay=1e-2),
        ),
        sr1024=PHOTO_TUNING,
        pictures=Pictures(PROMPTS, 1, 4, base, sr, PHOTO_SAMPLER),
        weights=Weights("", "", "", "shipped", ""),
    )


def _paper(job: Job) -> Job:
    """The later version's counts: 1000 steps and 1000 class images."""
    return dataclasses.replace(
        job,
        class_images=dataclasses.replace(job.class_images, count=1000),
        base=dataclasses.replace(job.base, steps=1000),
        sr256=dataclasses.replace(job.sr256, steps=1000),
        sr1024=dataclasses.replace(job.sr1024, steps=1000 if job.sr1024.steps else 0),
    )


# Rates of adapters by cascade, of each stage. Those of IF move a kernel about as far as
# the 1200 steps at 5e-6 (times 4 rows) of diffusers' guide, whose A starts 20 times
# larger than peft's; they are not measured. Those of toybox are five to ten times those
# of whole stages, the usual ratio; docs/toybox.md has what the base stage's gives.
_LORA_RATES = {"toybox": (7e-3, 1e-3, 3e-4), "tiny": (1e-2, 1e-2, 1e-2)}
_LORA_RATES |= dict.fromkeys(("imagen", "if_m", "if_l", "if_xl"), (3e-4, 1e-4, 1e-4))


def _lora(job: Job) -> Job:
    """Adapters on the stages that are fine-tuned, in place of all parameters."""
    adapter = Adapter(LORA)
    if job.cascade == "tiny":
        # With random weights the last layer is zero and has to train too.
        adapter = Adapter(LORA, 4, 4.0, "all")
    elif job.cascade == "toybox":
        # Attention alone does not learn these subjects, see docs/claims.md.
        adapter = Adapter(LORA, kernels="all")
    base, low, high = _LORA_RATES[job.cascade]
    small = job.cascade in ("toybox", "tiny")

    def adapted(tuning: FineTuning, lr: float) -> FineTuning:
        optim = dataclasses.replace(
            tuning.optim, name="adam" if small else "adamw", lr=lr
        )
        # Large stages are recomputed, to fit one v5e chip.
        remat = tuning.remat or not small
        return dataclasses.replace(tuning, adapter=adapter, optim=optim, remat=remat)

    sr256, sr1024 = adapted(job.sr256, low), adapted(job.sr1024, high)
    if job.cascade.startswith("if_"):
        # Beside the base stage of if_xl, one v5e chip has room for two rows of 256 px.
        sr256 = dataclasses.replace(sr256, accumulate=2)
        sr1024 = job.sr1024  # small, and without attention
    return dataclasses.replace(
        job,
        base=adapted(job.base, base),
        sr256=sr256,
        sr1024=sr1024,
    )


_VARIANTS = {"lora": _lora, "paper": _paper, "fast": fast.fast}


def pretraining(arg: str) -> Any:
    """Defaults for pretraining a stage, as a locked ConfigDict.

    Args:
        arg: ``toybox_base``, ``toybox_sr256``, ``toybox_sr1024``, or the same with
            ``tiny``; ``sr1024_div2k`` for that stage on the photographs of DIV2K;
            ``photo_sr1024`` for the stage of the cascades of photographs;
            ``toybox_judge`` for the network that scores pictures.

    Raises:
        InputError: Unknown stage.
    """
    if arg == "toybox_judge":
        return _judge()
    name, _, stage = arg.partition("_")
    makers = {"base": _pretrain_base, "sr256": _pretrain_sr, "sr1024": _pretrain_sr}
    if arg == "sr1024_div2k":
        job = _pretrain_div2k()
    elif arg == "photo_sr1024":
        job = _pretrain_photos()
    elif name not in ("toybox", "tiny") or stage not in makers:
        raise InputError(
            f"nothing to pretrain is called {arg!r}; use one of "
            f"{', '.join(f'toybox_{each}' for each in (*makers, 'judge'))}, "
            "sr1024_div2k, photo_sr1024"
        )
    else:
        job = makers[stage](name, stage)
    config = ml_collections.ConfigDict(with_placeholders(job))
    return config.lock()


CAPTIONS = (
    "a dog",
    "a white dog in the snow",
    "a brown dog on the beach",
    "a black cat in a meadow",
    "an orange cat wearing a hat",
    "a yellow duck on the street",
    "a red car in the jungle",
    "a blue car on the beach",
    "a green teapot in a room",
    "a red teapot",
    "a blue backpack in the snow",
    "a painting of a dog",
    "a painting of a car on the street",
    "a cat seen from the side",
    "a dog wearing a scarf",
    "a duck seen from behind",
)


def _pretrain_base(name: str, stage: str) -> Pretraining:
    return Pretraining(
        cascade=name,
        stage=stage,
        records=40960,
        steps=10000,
        batch=16,
        optim=OptimConfig(lr=6e-4, warmup=200, b2=0.99, ema=0.998),
        prompts=CAPTIONS,
        sampler=SamplerConfig("dpmpp_2m", 20, guidance=3.0, threshold="dynamic"),
    )


def _pretrain_sr(name: str, stage: str) -> Pretraining:
    return dataclasses.replace(
        _pretrain_base(name, stage),
        records=4096 if stage == "sr256" else 512,
        steps=4000,
        batch=8,
        crop=128 if stage == "sr256" else 256,
        prompts=CAPTIONS[:4],
        sampler=SamplerConfig("dpmpp_2m", 10, threshold="static"),
    )


def _judge() -> Any:
    # Here, because it brings the training loop along.
    from imagen_booth.config.schema import JudgeTraining

    return ml_collections.ConfigDict(dataclasses.asdict(JudgeTraining())).lock()


def _pretrain_div2k() -> Pretraining:
    """Photographs of 2K without captions: no text is read, and no encoder needed."""
    return dataclasses.replace(
        _pretrain_sr("toybox", "sr1024"),
        source="div2k/bicubic_x4",
        image_feature="hr",
        caption_feature="",
        prompts=("",) * 4,
        steps=100_000,
    )


def _pretrain_photos() -> Pretraining:
    """The 256 -> 1024 stage for photographs, from crops and without text.

    The rate and the average suit a few thousand steps of 16 crops of 128 px.
    """
    return Pretraining(
        cascade="if_m",
        stage="sr1024",
        records=4096,  # of the toybox alone
        steps=20_000,
        batch=16,
        optim=OptimConfig(lr=5e-4, warmup=100, b2=0.99, ema=0.998),
        prompts=("",) * 8,
        sampler=PHOTO_SAMPLER,
        crop=128,
        level=(1e-5, 3e-3),
        weighting="residual",
        null_text=0.0,
        source=PHOTOS,
        data_dir="photos",
        held_out="held_out",
        caption_feature="",
        preview_every=500,
    )
