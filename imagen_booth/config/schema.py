"""A fine-tuning job as plain frozen data: the whole of what a config says."""

import dataclasses
import re

from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.errors import InputError
from imagen_booth.toybox.grammar import TIERS
from imagen_booth.toybox.records import BLOCK

TOYBOX = "toybox"  # the source of records that is rendered


@dataclasses.dataclass(frozen=True)
class Subject:
    """The subject, its photos, and the words for it.

    Attributes:
        photos: a folder, local or ``gs://``, or ``toybox:CLASS/SEED`` for photos
            that are rendered.
        class_noun: what the subject is, e.g. ``dog``.
        identifier: the text that stands for [V]; empty to draw rare tokens.
        tokens: rare tokens to draw, 1 to 3.
        crop: ``centre`` cuts the largest square, ``pad`` adds background.
        shift: (right, down) in [-1, 1], moves the crop from the centre towards an
            edge.
        background: RGB 0..255 shown through transparent pixels and in padding.
        consent: a person who is the subject has agreed to it, or one of the parents
            of a child.
        description: words that stand for "[V] [N]" where nothing is tuned, such as
            ``small brown dog with a white chest``; ``toybox`` for what the toybox
            itself says of one of its subjects.
    """

    photos: str = ""
    class_noun: str = ""
    identifier: str = ""
    tokens: int = 1
    crop: str = "centre"
    shift: tuple[float, float] = (0.0, 0.0)
    background: tuple[int, int, int] = (255, 255, 255)
    consent: bool = False
    description: str = ""


@dataclasses.dataclass(frozen=True)
class ClassImages:
    """The prior set.

    Attributes:
        count: number of class images.
        group: images drawn together; part of what identifies them, so that a
            continued run never changes a batch shape.
        sampler: how the frozen base stage draws them.
    """

    count: int
    group: int
    sampler: SamplerConfig

    def __post_init__(self):
        if self.group < 1 or self.count % self.group:
            raise InputError(
                f"config.class_images.count={self.count} is not a multiple of "
                f"config.class_images.group={self.group}; change one of them"
            )


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimizer of one stage.

    Attributes:
        name: ``adam``, ``adamw``, ``adafactor`` (optax defaults, which scale each
            step by the parameter's own size) or ``adafactor_unscaled``.
        lr: peak learning rate.
        warmup: steps of linear warm-up from 0.
        decay: ``constant``, or ``cosine`` to 0 over the stage's steps.
        b1, b2, eps: Adam's moments and floor.
        weight_decay: decoupled decay, ``adamw`` only.
        clip: largest global gradient norm; 0 turns clipping off.
        ema: decay of the parameter average; 0 turns it off.
    """

    name: str = "adam"
    lr: float = 1e-4
    warmup: int = 0
    decay: str = "constant"
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.0


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """Fine-tuning of one stage.

    Attributes:
        steps: optimizer steps; 0 leaves the stage as it came.
        subject_rows: rows per batch with the subject.
        class_rows: rows per batch with class images; 0 turns the prior term off.
        prior_weight: lambda of Eq. 2.
        null_text: share of the class images that come with the null text. Tuning moves
            the unconditional answer too, and guidance multiplies how far it has moved.
        accumulate: micro-batches per step.
        remat: compute the inside of each block again on the way back, instead of
            keeping it: far less memory for up to a third more arithmetic.
        optim: optimizer and learning rate.
        weighting: loss weighting by name.
        hybrid: train a learned variance along.
        level: augmentation level of the low-res input, in tuning and in sampling;
            super-resolution only.
        log_every, save_every, preview_every: in steps.
    """

    steps: int
    subject_rows: int
    class_rows: int
    optim: OptimConfig
    prior_weight: float = 1.0
    null_text: float = 0.0
    accumulate: int = 1
    remat: bool = False
    weighting: str = "eps"
    hybrid: bool = False
    level: float = 1e-5
    log_every: int = 10
    save_every: int = 100
    preview_every: int = 100

    def __post_init__(self):
        for name, least in (
            ("steps", 0),
            ("subject_rows", 1),
            ("class_rows", 0),
            ("accumulate", 1),
            ("log_every", 1),
            ("save_every", 1),
            ("preview_every", 0),
        ):
            if getattr(self, name) < least:
                raise InputError(
                    f"{name}={getattr(self, name)} of a stage should be {least} or more"
                )
        if not 0.0 <= self.null_text < 1.0:
            raise InputError(
                f"null_text={self.null_text} of a stage is a share of the class "
                "images; use 0 to below 1, such as 0.125"
            )
        if not 0.0 <= self.level < 1.0:
            raise InputError(
                f"level={self.level} of a stage is a variance; use 0 to below 1, "
                "such as 1e-5"
            )


# Neutral sentences about the subject, in words that every T5 knows.
TEMPLATES = (
    "a photo of a [V] [N]",
    "a picture of a [V] [N]",
    "a photo of the [V] [N]",
    "a close-up photo of a [V] [N]",
    "a cropped photo of the [V] [N]",
    "a bright photo of a [V] [N]",
    "a dark photo of the [V] [N]",
    "a good photo of a [V] [N]",
    "a photo of one [V] [N]",
    "a rendering of a [V] [N]",
    "a depiction of the [V] [N]",
    "an image of a [V] [N]",
)


@dataclasses.dataclass(frozen=True)
class TextualInversion(FineTuning):
    """Textual Inversion: what the identifier's tokens mean is learnt, and no more.

    The rows of the text encoder's input embedding that belong to these tokens are
    fitted to the photos through the frozen encoder and the frozen base stage. The
    identifier stands for the class noun too. Source: Gal et al., arXiv 2208.01618.

    Attributes:
        initializer: words whose embedding, in the mean, the rows start from; empty
            for the class noun.
        templates: prompts of the photos, drawn anew for each row of a batch.
    """

    initializer: str = ""
    templates: tuple[str, ...] = TEMPLATES

    def __post_init__(self):
        super().__post_init__()
        if self.class_rows:
            raise InputError(
                f"config.text.class_rows={self.class_rows}, but nothing that draws the "
                "class changes in Textual Inversion; use 0"
            )
        if not self.templates:
            raise InputError("config.text.templates is empty; give one or more")
        for template in self.templates:
            if "[v]" not in template.lower():
                raise InputError(
                    f"config.text.templates holds {template!r}, which does not speak "
                    "of [V]"
                )


NO_TEXTUAL_INVERSION = TextualInversion(0, 4, 0, OptimConfig())
LAST, BEST = "last", "best"  # values of ``keep``


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The pictures drawn at the end.

    Attributes:
        prompts: templates in which [V] stands for the identifier and [N] for the
            class noun.
        seeds: pictures per prompt.
        batch: pictures drawn together at 64 px.
        base, sr256, sr1024: sampler of each stage.
    """

    prompts: tuple[str, ...]
    seeds: int
    batch: int
    base: SamplerConfig
    sr256: SamplerConfig
    sr1024: SamplerConfig


@dataclasses.dataclass(frozen=True)
class Weights:
    """Where each part's weights come from.

    Each is ``shipped``, ``random``, or a folder of weights; ``vocabulary`` is
    ``shipped``, or the path of a ``spiece.model`` or of a folder that has it.
    """

    text: str
    base: str
    sr256: str
    sr1024: str
    vocabulary: str


@dataclasses.dataclass(frozen=True)
class Mesh:
    """The devices and how parameters lie on them.

    Attributes:
        data: copies of the parameters; -1 for whatever ``fsdp`` leaves.
        fsdp: devices that share one copy; -1 for whatever ``data`` leaves, 0 for the
            fewest whose memory holds the largest stage in training.
        rules: how parameters are cut where the general rule does not suit:
            ``(pattern, axes)``, the pattern of whole paths such as
            ``unet/.*/kernel``, and per dimension ``data``, ``fsdp`` or None.
    """

    data: int = -1
    fsdp: int = 0
    rules: tuple[tuple[str, tuple[str | None, ...]], ...] = ()

    def __post_init__(self):
        for number, (pattern, axes) in enumerate(self.rules):
            where = f"config.mesh.rules[{number}]={(pattern, axes)!r}"
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(
                    f"{where} begins with no regular expression: {error}"
                ) from error
            named = [axis for axis in axes if axis is not None]
            if set(named) - {"data", "fsdp"}:
                raise InputError(
                    f"{where} names an axis that the mesh does not have; use 'data', "
                    "'fsdp' or None for each dimension"
                )
            if len(set(named)) < len(named):
                raise InputError(f"{where} cuts two dimensions over one axis; take one")


@dataclasses.dataclass(frozen=True)
class Job:
    """One subject fine-tuned on one cascade.

    Attributes:
        cascade: name of the cascade.
        seed: root of all randomness.
        cache: folder shared by runs for class images and text embeddings; empty
            for ``cache`` beside the work directory.
        dtype: activations, ``float32`` or ``bfloat16``; empty for bfloat16 on an
            accelerator and float32 on a CPU.
        cleaning: what prompts go through before they become tokens, a name of
            ``text.prompts.CLEANERS``; empty for what the cascade was trained with.
        tensorboard: also write tensorboard files.
        text: Textual Inversion before all else; off at 0 steps.
        keep: which parameters a stage ends with: ``last``, or ``best`` for those of
            the preview that scored highest (see ``keep.score``).
    """

    cascade: str
    subject: Subject
    class_images: ClassImages
    base: FineTuning
    sr256: FineTuning
    sr1024: FineTuning
    pictures: Pictures
    weights: Weights
    mesh: Mesh = Mesh()
    seed: int = 0
    cache: str = ""
    dtype: str = ""
    cleaning: str = ""
    tensorboard: bool = False
    text: TextualInversion = NO_TEXTUAL_INVERSION
    keep: str = LAST

    def __post_init__(self):
        if self.keep not in (LAST, BEST):
            raise InputError(
                f"config.keep={self.keep!r} is not known; use {LAST!r} or {BEST!r}"
            )
        if self.subject.description and self.tuned_parts:
            raise InputError(
                f"config.subject.description={self.subject.description!r} is for runs "
                f"that tune nothing, but {', '.join(self.tuned_parts)} would be tuned; "
                "leave it empty, or set their steps to 0"
            )

    def tuning(self, stage: str) -> FineTuning:
        """Tuning of the stage called ``stage``."""
        return getattr(self, stage)

    @property
    def tuned_parts(self) -> tuple[str, ...]:
        """Names of what the job tunes, ``text`` or stages."""
        names = ("text", "base", "sr256", "sr1024")
        return tuple(name for name in names if self.tuning(name).steps > 0)

    @property
    def alone(self) -> bool:
        """Whether the identifier stands for the class noun too."""
        return bool(self.subject.description) or self.text.steps > 0

    def names(self, stage: str, steps: int) -> bool:
        """Whether a stage is told of the subject by its identifier.

        A stage that was not tuned does not know it, unless it is a description, or its
        embedding was learnt through that stage.

        Args:
            stage: its name.
            steps: it was tuned for.
        """
        learnt = self.text.steps > 0 and stage == "base"
        return steps > 0 or learnt or bool(self.subject.description)

    def rematerialised(self) -> frozenset[str]:
        """Names of the stages that are tuned with ``remat``."""
        names = ("base", "sr256", "sr1024")
        return frozenset(name for name in names if self.tuning(name).remat)


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """Pretraining of one stage.

    Attributes:
        cascade, stage: what is trained.
        tier: part of the toybox grammar, ``A`` or ``B``.
        records: distinct rendered scenes.
        source: ``toybox``, to render it; or a TFDS set, ``SET`` or ``SET/CONFIG``.
        data_dir: folder of prepared TFDS sets; empty for TFDS's own.
        split, held_out: splits of a TFDS set to train on and to measure on; parts of
            them such as ``train[:90%]`` will do.
        image_feature, caption_feature: where a TFDS set has its pictures and texts,
            ``/`` between levels; no caption feature, no text.
        vocabulary: path of a ``spiece.model``, where the cascade reads T5's.
        steps, batch, accumulate: length and rows per step.
        crop: side in pixels of the training crops; 0 for whole images.
        level: (low, high) augmentation level of super-resolution rows.
        null_text: share of rows that train without text.
        text: weights of a text encoder that stays as it is; empty to train one
            along with the base stage, from ``init`` on.
        init: start from these weights; ``random`` for none, ``shipped`` for those of
            the package.
        prompts: of the preview grid.
        sampler: of the preview grid.
        cache: folder that keeps rendered scenes.
    """

    cascade: str
    stage: str
    tier: str
    records: int
    steps: int
    batch: int
    optim: OptimConfig
    prompts: tuple[str, ...]
    sampler: SamplerConfig
    accumulate: int = 1
    crop: int = 0
    level: tuple[float, float] = (1e-4, 1e-2)
    weighting: str = "v_max_10"
    null_text: float = 0.1
    text: str = ""
    init: str = "random"
    seed: int = 0
    log_every: int = 20
    save_every: int = 200
    preview_every: int = 400
    cache: str = ""
    source: str = TOYBOX
    data_dir: str = ""
    split: str = "train"
    held_out: str = "validation"
    image_feature: str = "image"
    caption_feature: str = "caption"
    vocabulary: str = "shipped"
    dtype: str = ""
    mesh: Mesh = Mesh()


@dataclasses.dataclass(frozen=True)
class JudgeTraining:
    """Training of the judge.

    Attributes:
        tier: part of the toybox grammar, ``A`` or ``B``.
        records: rendered scenes, those that pretraining uses too.
        pairs: of renders of one individual.
        held_out: records that it is measured on, and a quarter as many pairs.
        steps: length.
        record_rows, pair_rows: rows of two pictures per step.
        temperature: that divides cosines in the loss over pairs.
        cache: folder that keeps rendered scenes; empty for one in the work directory.
    """

    tier: str = "A"
    records: int = 40960
    pairs: int = 4096
    held_out: int = 2048
    steps: int = 5000
    record_rows: int = 16
    pair_rows: int = 24
    optim: OptimConfig = OptimConfig(lr=2e-3, warmup=100, decay="cosine", ema=0.99)
    temperature: float = 0.1
    seed: int = 0
    log_every: int = 50
    save_every: int = 500
    preview_every: int = 500
    cache: str = ""
    mesh: Mesh = Mesh()

    def __post_init__(self):
        if self.tier not in TIERS:
            raise InputError(
                f"config.tier={self.tier!r} is not one of {', '.join(TIERS)}"
            )
        for name, multiple in (
            ("records", BLOCK),
            ("pairs", BLOCK),
            ("held_out", 4 * BLOCK),
        ):
            value = getattr(self, name)
            if value < multiple or value % multiple:
                raise InputError(
                    f"config.{name}={value} should be a multiple of {multiple}"
                )
