"""The settings of every kind of job, as frozen dataclasses.

The type of a field declares its range too, such as ``Annotated[float, Gt(0)]``;
``config.build`` enforces it and the configuration page shows it.
"""

import dataclasses
import re
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval, MinLen, MultipleOf

from imagen_booth.cascade import NONE
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.errors import InputError
from imagen_booth.models.lora import KERNELS
from imagen_booth.toybox.records import BLOCK

TOYBOX = "toybox"  # the source of rendered records
PHOTOS = "photos"  # the source of crops of large photographs

IS_PATH = "a path"  # marks text that names a file or folder; ``~`` is expanded

PathText = Annotated[str, IS_PATH]
Texts = Annotated[tuple[str, ...], MinLen(1)]
Count = Annotated[int, Ge(0)]
Positive = Annotated[int, Ge(1)]
Shift = Annotated[float, Interval(ge=-1, le=1)]
Level = Annotated[int, Interval(ge=0, le=255)]  # of a colour
Share = Annotated[float, Interval(ge=0, lt=1)]
# The number of an image is added to a seed, and the sum has to fit 32 bits.
Seed = Annotated[int, Interval(ge=0, le=4_000_000_000)]
ImageCount = Annotated[int, Interval(ge=0, le=1_000_000)]


@dataclasses.dataclass(frozen=True)
class Subject:
    """The subject, its photos, and the words for it.

    Attributes:
        photos: Folder of the photos, local or ``gs://``, or ``toybox:CLASS/SEED`` for
            rendered photos of a toy.
        class_noun: Noun for the class of the subject, e.g. ``dog``; required.
        identifier: Text that stands for [V]; empty to draw rare tokens.
        tokens: Number of rare tokens to draw for the identifier.
        crop: How photos become square: ``centre`` cuts the largest square, ``pad`` adds
            background.
        shift: Shift (right, down) of the crop from the centre towards an edge; 1
            reaches the edge.
        background: RGB colour shown through transparent pixels and in padding.
        consent: Whether a subject who is a person has agreed, or a parent if the person
            is a child.
        description: Words that stand for "[V] [N]" in runs without fine-tuning, such as
            ``small brown dog with a white chest``; ``toybox`` for the toybox's own
            description of one of its subjects; empty otherwise.
    """

    photos: PathText = ""
    class_noun: str = ""
    identifier: str = ""
    tokens: Annotated[int, Interval(ge=1, le=3)] = 1
    crop: Literal["centre", "pad"] = "centre"
    shift: tuple[Shift, Shift] = (0.0, 0.0)
    background: tuple[Level, Level, Level] = (255, 255, 255)
    consent: bool = False
    description: str = ""


@dataclasses.dataclass(frozen=True)
class ClassImages:
    """The class images of prior preservation.

    Attributes:
        count: Number of class images, a multiple of ``group``.
        group: Number of class images sampled together; part of what identifies them, so
            that a resumed run never changes a batch shape.
        sampler: Sampler of the frozen base stage for class images.
    """

    count: ImageCount
    group: Positive
    sampler: SamplerConfig

    def __post_init__(self):
        if self.group and self.count % self.group:
            raise InputError(
                f"config.class_images.count={self.count} is not a multiple of "
                f"config.class_images.group={self.group}; change one of them"
            )


@dataclasses.dataclass(frozen=True)
class FrozenModel:
    """Prior preservation without class images, by the frozen model's predictions.

    The target of a class row is what the frozen model predicts for the same noisy image
    and the class prompt. The noisy images are the photos with noise, or images that the
    frozen model brings from pure noise to the row's noise level.

    Attributes:
        from_noise: Share of steps in which the noisy images of the class rows come
            from pure noise; in the others they are photos with noise.
        steps: Steps of the frozen model from pure noise to a row's noise level.
    """

    from_noise: Annotated[float, Interval(ge=0, le=1)] = 0.5
    steps: Positive = 4

    @property
    def calls(self) -> float:
        """Forward passes of the frozen model for each class row, the mean of steps."""
        return 1 + self.from_noise * self.steps


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimizer of one stage.

    Attributes:
        name: Name of the optimizer: ``adam``, ``adamw``, ``adafactor`` (optax defaults,
            which scale each step by the parameter's own size) or
            ``adafactor_unscaled``.
        lr: Peak learning rate.
        warmup: Steps of linear warm-up from rate 0.
        decay: Course of the rate after warm-up: ``constant``, or ``cosine`` to 0 over
            the stage's steps.
        b1: Decay of Adam's first moment.
        b2: Decay of Adam's second moment.
        eps: Number added to Adam's denominator.
        weight_decay: Decoupled weight decay; ``adamw`` only.
        clip: Largest global gradient norm; 0 turns clipping off.
        ema: Decay of the moving average of the parameters; 0 turns the average off.
    """

    name: str = "adam"
    lr: Annotated[float, Gt(0)] = 1e-4
    warmup: Count = 0
    decay: str = "constant"
    b1: Share = 0.9
    b2: Share = 0.999
    eps: Annotated[float, Gt(0)] = 1e-8
    weight_decay: Annotated[float, Ge(0)] = 0.0
    clip: Annotated[float, Ge(0)] = 1.0
    ema: Share = 0.0


NO_ADAPTER, LORA = "none", "lora"  # values of ``Adapter.kind``


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Low-rank weights that are trained in place of a stage's own.

    Attributes:
        kind: Kind of the adapter: ``none`` to train all parameters of the stage, or
            ``lora`` to add alpha / rank A B to kernels and train A and B alone. The
            stage's own parameters are then held in the dtype of the activations.
        rank: Rank of A B.
        alpha: Factor of A B, times ``rank``.
        kernels: Kernels with an adapter: ``attention`` for the projections of the
            attention blocks, or ``all`` for every kernel whose own rank is not below
            ``rank``.
        start: Adapter to start from, a folder with ``pytorch_lora_weights.safetensors``
            or such a file; empty for a new one, which changes nothing yet.
    """

    kind: str = NO_ADAPTER
    rank: Positive = 16
    alpha: Annotated[float, Gt(0)] = 16.0
    kernels: str = "attention"
    start: PathText = ""

    def __post_init__(self):
        for name, known in (("kind", (NO_ADAPTER, LORA)), ("kernels", KERNELS)):
            if getattr(self, name) not in known:
                raise InputError(
                    f"adapter.{name}={getattr(self, name)!r} of a stage is not known; "
                    f"use {' or '.join(map(repr, known))}"
                )

    @property
    def scale(self) -> float:
        """Factor of A B."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """Fine-tuning of one stage.

    Attributes:
        steps: Number of optimizer steps; 0 leaves the part as it is.
        subject_rows: Rows of the subject in a batch.
        class_rows: Rows of the class in a batch; 0 turns the prior term off.
        optim: Optimizer and learning rate.
        prior_weight: Weight lambda of the prior term in Eq. 2.
        null_text: Share of the class rows that train with the null text. Fine-tuning
            changes the unconditional prediction too, and guidance multiplies that
            change.
        accumulate: Micro-batches in a step.
        remat: Whether to recompute the inside of each block in the backward pass
            instead of storing it; this takes far less memory and up to a third more
            arithmetic.
        weighting: Name of the loss weighting in ``diffusion.loss``, such as ``eps``.
        hybrid: Whether to train a learned variance with the variational bound.
        level: Augmentation level (a variance) of the low-res input in fine-tuning and
            in sampling; super-resolution only.
        log_every: Steps between rows of metrics.
        save_every: Steps between checkpoints.
        preview_every: Steps between previews; 0 makes only the first and the last.
        adapter: Low-rank weights that are trained in place of the stage's own.
    """

    steps: Count
    subject_rows: Positive
    class_rows: Count
    optim: OptimConfig
    prior_weight: Annotated[float, Ge(0)] = 1.0
    null_text: Share = 0.0
    accumulate: Positive = 1
    remat: bool = False
    weighting: str = "eps"
    hybrid: bool = False
    level: Share = 1e-5
    log_every: Positive = 10
    save_every: Positive = 100
    preview_every: Count = 100
    adapter: Adapter = Adapter()

    @property
    def adapts(self) -> bool:
        """Whether an adapter is trained in place of the stage's own parameters."""
        return self.steps > 0 and self.adapter.kind == LORA


# Neutral sentences about the subject.
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
    """Textual Inversion: learns the identifier's embedding and nothing else.

    The rows of the text encoder's input embedding that belong to the identifier's
    tokens are fitted to the photos through the frozen encoder and the frozen base
    stage. The identifier stands for the class noun too. ``class_rows`` is 0. Source:
    Gal et al., arXiv 2208.01618.

    Attributes:
        initializer: Words whose mean embedding is the start of the rows; empty for the
            class noun.
        templates: Prompts of the photos, each with [V]; one is drawn for each row of a
            batch.
    """

    initializer: str = ""
    templates: Texts = TEMPLATES

    def __post_init__(self):
        if self.class_rows:
            raise InputError(
                f"config.text.class_rows={self.class_rows}, but Textual Inversion has "
                "no prior term; use 0"
            )
        if self.adapter.kind != NO_ADAPTER:
            raise InputError(
                f"config.text.adapter.kind={self.adapter.kind!r}, but Textual "
                "Inversion trains embeddings alone; use 'none'"
            )
        for template in self.templates:
            if "[v]" not in template.lower():
                raise InputError(
                    f"config.text.templates holds {template!r}, which lacks [V]"
                )


SUBJECT, SECOND = "subject", "second"  # settings of a job that are subjects
NO_TEXTUAL_INVERSION = TextualInversion(0, 4, 0, OptimConfig())
LAST, BEST = "last", "best"  # values of ``keep``
CLASS_IMAGES, FROZEN_MODEL = "class_images", "frozen_model"  # values of ``prior``


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The pictures sampled at the end of a run.

    Attributes:
        prompts: Templates in which [V] stands for the identifier and [N] for the class
            noun, and [V2] and [N2] for those of a second subject.
        seeds: Number of pictures per prompt.
        batch: Number of pictures sampled together at 64 px.
        base: Sampler of the base stage, 64 px.
        sr256: Sampler of the stage from 64 to 256 px.
        sr1024: Sampler of the stage from 256 to 1024 px.
    """

    prompts: Texts
    seeds: ImageCount
    batch: Positive
    base: SamplerConfig
    sr256: SamplerConfig
    sr1024: SamplerConfig


@dataclasses.dataclass(frozen=True)
class Weights:
    """Where the weights of each part come from.

    Attributes:
        text: Weights of the text encoder: ``shipped``, ``random``, or a folder of
            weights.
        base: Weights of the base stage: ``shipped``, ``random``, or a folder of
            weights.
        sr256: Weights of the stage from 64 to 256 px: ``shipped``, ``random``, or a
            folder of weights.
        sr1024: Weights of the stage from 256 to 1024 px: ``shipped``, ``random``, or a
            folder of weights. ``none`` ends the cascade before a stage; only upper
            stages can be left out.
        vocabulary: The tokenizer: ``shipped``, or the path of a ``spiece.model`` or of
            a folder with one.
    """

    text: PathText
    base: PathText
    sr256: PathText
    sr1024: PathText
    vocabulary: PathText


@dataclasses.dataclass(frozen=True)
class Mesh:
    """The devices and how parameters are sharded over them.

    Attributes:
        data: Number of copies of the parameters; -1 for the devices that ``fsdp``
            leaves.
        fsdp: Number of devices that share one copy; -1 for the devices that ``data``
            leaves, 0 for the fewest whose memory holds the largest stage in training.
        rules: Sharding of parameters for which the general rule does not suit, as
            ``(pattern, axes)``: a pattern of whole paths such as ``unet/.*/kernel``,
            and ``data``, ``fsdp`` or None for each dimension.
    """

    data: Annotated[int, Ge(-1)] = -1
    fsdp: Annotated[int, Ge(-1)] = 0
    rules: tuple[tuple[str, tuple[str | None, ...]], ...] = ()

    def __post_init__(self):
        for number, (pattern, axes) in enumerate(self.rules):
            where = f"config.mesh.rules[{number}]={(pattern, axes)!r}"
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(
                    f"{where} has a pattern that is not a regular expression: {error}"
                ) from error
            named = [axis for axis in axes if axis is not None]
            if set(named) - {"data", "fsdp"}:
                raise InputError(
                    f"{where} names an axis that the mesh does not have; use 'data', "
                    "'fsdp' or None for each dimension"
                )
            if len(set(named)) < len(named):
                raise InputError(
                    f"{where} shards two dimensions over one axis; use one"
                )


@dataclasses.dataclass(frozen=True)
class Job:
    """One subject, or two together, fine-tuned on one cascade.

    Attributes:
        cascade: Name of the cascade, such as ``toybox``.
        subject: The subject, its photos, and the words for it.
        class_images: The class images of prior preservation.
        base: Fine-tuning of the base stage, 64 px.
        sr256: Fine-tuning of the stage from 64 to 256 px.
        sr1024: Fine-tuning of the stage from 256 to 1024 px.
        pictures: The pictures sampled at the end of a run.
        weights: Where the weights of each part come from.
        mesh: The devices and how parameters are sharded over them.
        seed: Seed of all random numbers of the run.
        cache: Folder shared by runs for class images, text embeddings and the photos of
            toys; empty for ``cache`` beside the run directory.
        dtype: Dtype of the activations, ``float32`` or ``bfloat16``; empty for bfloat16
            on an accelerator and float32 on a CPU.
        cleaning: Caption cleaning before tokenization, a name of
            ``text.caption_cleaning.CLEANERS``; empty for the one that the cascade was
            trained with.
        tensorboard: Whether to write TensorBoard files too.
        text: Textual Inversion before the stages are fine-tuned; off at 0 steps.
        keep: Which parameters of a stage are kept: ``last``, or ``best`` for those of
            the preview with the highest ``training.best_checkpoint.score``.
        patience: With ``keep='best'``, number of previews in a row without a better
            score that ends a stage; 0 never ends it early.
        prior: Targets of the prior term: ``class_images``, or ``frozen_model`` for the
            frozen model's predictions, which need no class images.
        frozen_model: The class rows where ``prior`` is ``frozen_model``.
        second: A second subject that the same run is fine-tuned on, with an identifier
            and class images of its own; none where its ``photos`` are empty.
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
    seed: Seed = 0
    cache: PathText = ""
    dtype: str = ""
    cleaning: str = ""
    tensorboard: bool = False
    text: TextualInversion = NO_TEXTUAL_INVERSION
    keep: str = LAST
    patience: Count = 0
    prior: str = CLASS_IMAGES
    frozen_model: FrozenModel = FrozenModel()
    second: Subject = Subject()

    def __post_init__(self):
        self._check_second()
        for name, choices in (
            ("keep", (LAST, BEST)),
            ("prior", (CLASS_IMAGES, FROZEN_MODEL)),
        ):
            if getattr(self, name) not in choices:
                raise InputError(
                    f"config.{name}={getattr(self, name)!r} is not known; use "
                    f"{choices[0]!r} or {choices[1]!r}"
                )
        if not self.class_images.count:
            for name in self.finetuned_parts:
                if self.uses_class_images(name):
                    raise InputError(
                        f"config.class_images.count=0, but config.{name}.class_rows="
                        f"{self.finetuning(name).class_rows} uses class images; give a "
                        "count, or class_rows=0"
                    )
        if self.patience and self.keep != BEST:
            raise InputError(
                f"config.patience={self.patience}, but config.keep={self.keep!r} does "
                f"not compare previews; use config.keep={BEST!r} or patience=0"
            )
        if self.subject.description and self.finetuned_parts:
            parts = ", ".join(self.finetuned_parts)
            raise InputError(
                f"config.subject.description={self.subject.description!r} is for runs "
                f"without fine-tuning, but this one fine-tunes {parts}; leave it "
                "empty, or set their steps to 0"
            )

    def _check_second(self) -> None:
        """Refuses settings of a second subject that cannot be trained."""
        second, where = self.second, f"config.second.photos={self.second.photos!r}"
        if not second.photos:
            for name, value in dataclasses.asdict(second).items():
                if value != getattr(Subject(), name):
                    raise InputError(
                        f"config.second.{name}={value!r} is of a second subject, but "
                        "config.second.photos is empty; give its photos"
                    )
            return
        if second.photos == self.subject.photos:
            raise InputError(
                f"{where} is config.subject.photos too; give the photos of another "
                "subject, or leave it empty"
            )
        if self.text.steps:
            raise InputError(
                f"config.text.steps={self.text.steps}, but Textual Inversion learns "
                f"one subject and {where} is another; set the steps to 0"
            )
        for name, subject in self.subjects.items():
            if subject.description:
                raise InputError(
                    f"config.{name}.description={subject.description!r} is for runs of "
                    f"one subject, and {where} is another; leave one of them empty"
                )

    @property
    def subjects(self) -> dict[str, Subject]:
        """The subject, and the second one if there is one, by name of the setting."""
        named = {SUBJECT: self.subject, SECOND: self.second}
        return {
            name: each for name, each in named.items() if name == SUBJECT or each.photos
        }

    @property
    def class_nouns(self) -> tuple[str, ...]:
        """The class nouns of all subjects, each once."""
        return tuple(dict.fromkeys(each.class_noun for each in self.subjects.values()))

    def finetuning(self, stage: str) -> FineTuning:
        """The fine-tuning settings of ``stage``, or of ``text``."""
        return getattr(self, stage)

    def uses_class_images(self, stage: str) -> bool:
        """Whether a stage is fine-tuned with class images."""
        return self._has_prior_term(stage) and self.prior == CLASS_IMAGES

    def frozen_prior(self, stage: str) -> FrozenModel | None:
        """How the frozen model gives the prior term of a stage; None if it does not."""
        frozen = self._has_prior_term(stage) and self.prior == FROZEN_MODEL
        return self.frozen_model if frozen else None

    def _has_prior_term(self, stage: str) -> bool:
        return (
            self.finetuning(stage).steps > 0 and self.finetuning(stage).class_rows > 0
        )

    @property
    def finetuned_parts(self) -> tuple[str, ...]:
        """Names of the parts that the job fine-tunes, ``text`` or stages."""
        names = ("text", "base", "sr256", "sr1024")
        return tuple(
            name
            for name in names
            if self.finetuning(name).steps > 0 and getattr(self.weights, name) != NONE
        )

    @property
    def identifier_replaces_noun(self) -> bool:
        """Whether the identifier stands for the class noun too."""
        return bool(self.subject.description) or self.text.steps > 0

    def uses_identifier(self, stage: str, steps: int) -> bool:
        """Whether the prompts of a stage name the subject by its identifier.

        A stage that was not fine-tuned does not know the identifier, unless it is a
        description, or its embedding was learned through that stage.

        Args:
            stage: Name of the stage.
            steps: Steps that the stage was fine-tuned for.
        """
        learned = self.text.steps > 0 and stage == "base"
        return steps > 0 or learned or bool(self.subject.description)

    def rematerialised(self) -> frozenset[str]:
        """Names of the stages that are fine-tuned with ``remat``."""
        names = ("base", "sr256", "sr1024")
        return frozenset(name for name in names if self.finetuning(name).remat)


REFUSE, SKIP = "refuse", "skip"  # values of ``bad_subjects``


@dataclasses.dataclass(frozen=True)
class Subjects:
    """The subjects of a job of many, each fine-tuned by itself.

    Attributes:
        subjects: Folder with a folder of photos for each subject, or a ``.csv`` or
            ``.jsonl`` table with a row for each.
        bad_subjects: What happens where some subjects cannot be trained: ``refuse``
            ends the job before any work, ``skip`` trains the others.
        price: Dollars for an hour of one chip, for the cost of each subject; 0 for
            seconds and chip-hours alone.
    """

    subjects: PathText = ""
    bad_subjects: str = REFUSE
    price: Annotated[float, Ge(0)] = 0.0

    def __post_init__(self):
        if self.bad_subjects not in (REFUSE, SKIP):
            raise InputError(
                f"config.bad_subjects={self.bad_subjects!r} is not known; use "
                f"{REFUSE!r} or {SKIP!r}"
            )


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """Pretraining of one stage.

    Attributes:
        cascade: Name of the cascade.
        stage: Name of the stage that is trained.
        records: Number of distinct rendered scenes, a multiple of the number that is
            rendered together.
        steps: Number of optimizer steps.
        batch: Rows per step.
        optim: Optimizer and learning rate.
        prompts: Prompts of the preview grid.
        sampler: Sampler of the preview grid.
        accumulate: Micro-batches in a step.
        crop: Side of the training crops in pixels; 0 for whole images.
        level: Least and greatest augmentation level (a variance) of super-resolution
            rows.
        weighting: Name of the loss weighting in ``diffusion.loss``, such as
            ``v_max_10``.
        null_text: Share of rows that train with the null text.
        text: Weights of a frozen text encoder, a folder or ``shipped``; empty to train
            the encoder with the base stage, from ``init``.
        init: Weights to start from: a folder, ``random``, or ``shipped``.
        seed: Seed of all random numbers of the run.
        log_every: Steps between rows of metrics.
        save_every: Steps between checkpoints.
        preview_every: Steps between previews; 0 makes only the first and the last.
        cache: Folder for rendered scenes; empty for one in the run directory.
        source: Source of the images: ``toybox``, ``photos`` for a folder of large
            photographs, or a TFDS data set as ``SET`` or ``SET/CONFIG``.
        data_dir: Folder of the photographs, or of prepared TFDS data sets; empty for
            the default of TFDS.
        split: TFDS split to train on, which may be a part such as ``train[:90%]``.
        held_out: TFDS split to measure on, which may be a part.
        image_feature: Feature of a TFDS data set with the image, ``/`` between levels.
        caption_feature: Feature of a TFDS data set with the caption, ``/`` between
            levels; empty to train without text.
        vocabulary: The tokenizer: ``shipped``, or the path of a ``spiece.model`` for
            cascades that use the T5 vocabulary.
        dtype: Dtype of the activations, ``float32`` or ``bfloat16``; empty for bfloat16
            on an accelerator and float32 on a CPU.
        mesh: The devices and how parameters are sharded over them.
    """

    cascade: str
    stage: str
    records: Positive
    steps: Positive
    batch: Positive
    optim: OptimConfig
    prompts: tuple[str, ...]
    sampler: SamplerConfig
    accumulate: Positive = 1
    crop: Count = 0
    level: tuple[Share, Share] = (1e-4, 1e-2)
    weighting: str = "v_max_10"
    null_text: Annotated[float, Interval(ge=0, le=1)] = 0.1
    text: PathText = ""
    init: PathText = "random"
    seed: Seed = 0
    log_every: Positive = 20
    save_every: Positive = 200
    preview_every: Count = 400
    cache: PathText = ""
    source: str = TOYBOX
    data_dir: PathText = ""
    split: str = "train"
    held_out: str = "validation"
    image_feature: str = "image"
    caption_feature: str = "caption"
    vocabulary: PathText = "shipped"
    dtype: str = ""
    mesh: Mesh = Mesh()


@dataclasses.dataclass(frozen=True)
class JudgeTraining:
    """Training of the judge.

    Attributes:
        records: Number of rendered scenes, shared with pretraining; a multiple of the
            number that is rendered together.
        pairs: Number of pairs of renders of one individual, a multiple of the number of
            scenes rendered together.
        held_out: Number of records to measure on, with a quarter as many pairs; a
            multiple of four times the number rendered together.
        steps: Number of optimizer steps.
        record_rows: Rows of two different individuals in a step.
        pair_rows: Rows of one individual shown twice in a step.
        optim: Optimizer and learning rate.
        temperature: Divisor of the cosines in the loss over pairs.
        seed: Seed of all random numbers of the run.
        log_every: Steps between rows of metrics.
        save_every: Steps between checkpoints.
        preview_every: Steps between previews; 0 makes only the first and the last.
        cache: Folder for rendered scenes; empty for one in the run directory.
        mesh: The devices and how parameters are sharded over them.
    """

    records: Annotated[int, Ge(BLOCK), MultipleOf(BLOCK)] = 40960
    pairs: Annotated[int, Ge(BLOCK), MultipleOf(BLOCK)] = 4096
    held_out: Annotated[int, Ge(4 * BLOCK), MultipleOf(4 * BLOCK)] = 2048
    steps: Positive = 5000
    record_rows: Positive = 16
    pair_rows: Positive = 24
    optim: OptimConfig = OptimConfig(lr=2e-3, warmup=100, decay="cosine", ema=0.99)
    temperature: Annotated[float, Gt(0)] = 0.1
    seed: Seed = 0
    log_every: Positive = 50
    save_every: Positive = 500
    preview_every: Count = 500
    cache: PathText = ""
    mesh: Mesh = Mesh()
