"""A fine-tuning job as plain frozen data: the whole of what a config says."""

import dataclasses

from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.errors import InputError
from imagen_booth.optim import OptimConfig

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
    """

    photos: str = ""
    class_noun: str = ""
    identifier: str = ""
    tokens: int = 1
    crop: str = "centre"
    shift: tuple[float, float] = (0.0, 0.0)
    background: tuple[int, int, int] = (255, 255, 255)
    consent: bool = False


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
class Tuning:
    """Fine-tuning of one stage.

    Attributes:
        steps: optimizer steps; 0 leaves the stage as it came.
        subject_rows: rows per batch with the subject.
        class_rows: rows per batch with class images; 0 turns the prior term off.
        prior_weight: lambda of Eq. 2.
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
        if not 0.0 <= self.level < 1.0:
            raise InputError(
                f"level={self.level} of a stage is a variance; use 0 to below 1, "
                "such as 1e-5"
            )


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
    """Devices per axis; -1 for what the other leaves."""

    data: int = -1
    fsdp: int = 1


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
    """

    cascade: str
    subject: Subject
    class_images: ClassImages
    base: Tuning
    sr256: Tuning
    sr1024: Tuning
    pictures: Pictures
    weights: Weights
    mesh: Mesh = Mesh()
    seed: int = 0
    cache: str = ""
    dtype: str = ""
    cleaning: str = ""
    tensorboard: bool = False

    def tuning(self, stage: str) -> Tuning:
        """Tuning of the stage called ``stage``."""
        return getattr(self, stage)

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
