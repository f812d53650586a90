"""Cascades by name: the architecture of a model, without training state."""

import dataclasses
from collections.abc import Collection, Mapping

from imagen_booth.diffusion.schedule import (
    CosineSchedule,
    LinearSchedule,
    Schedule,
    TableSchedule,
)
from imagen_booth.errors import InputError
from imagen_booth.models import SIZES, NetworkConfig, ResidualUNetConfig
from imagen_booth.models.t5 import T5_SIZES, T5Config
from imagen_booth.text import tokenizer

APACHE = "Apache-2.0"
DEEPFLOYD = "DeepFloyd IF License Agreement (non-commercial research only)"
NONE = "none"  # source of weights of a stage that the cascade does without
OWN = "that of the weights you bring"


@dataclasses.dataclass(frozen=True)
class Text:
    """How prompts become embeddings, for all stages of a cascade.

    Attributes:
        encoder: Shape of the T5 encoder.
        length: Tokens per prompt, L; shorter prompts are padded, longer ones truncated.
        vocabulary: ``embedded``, or ``t5`` for a ``spiece.model`` the user brings.
        rare: First and last id of the range from which identifiers are drawn.
        null: Kind of the null text, which stands for no prompt: ``zeros`` (Imagen:
            embeddings set to zero) or ``empty`` (IF: the encoding of "").
        masked: Whether the U-Net reads only real tokens; IF reads all positions.
        lower: Whether prompts are lower-cased and stripped before tokenising.
    """

    encoder: T5Config
    length: int
    vocabulary: str
    rare: tuple[int, int]
    null: str = "zeros"
    masked: bool = True
    lower: bool = True


@dataclasses.dataclass(frozen=True)
class Stage:
    """The architecture of a stage, without training state.

    Attributes:
        name: ``base``, ``sr256`` or ``sr1024``.
        resolution: Side of the output in pixels.
        model: Shape of the network.
        schedule: Noise schedule of the forward process.
        prediction: What the network predicts, ``eps``, ``v`` or ``x0``.
        low_resolution: Side in pixels of the image that a super-resolution stage
            enlarges; None for the base stage.
        learned_variance: Whether the output has 3 more channels, which interpolate
            between the two ancestral variances.
        stale_variance: Whether the stage was fine-tuned without a loss on these
            channels; sampling then uses the smaller variance.
        level_map: How the augmentation level reaches the network, ``time`` (the
            cosine time of that level, times 1000) or ``if_index`` (position on
            IF's 1000-step table).
        aligned: Whether the low-res image is enlarged with aligned corners, as in IF.
        normal_level: Augmentation level (a variance) at which the stage was pretrained
            and samples as long as it is not fine-tuned.
        crop: Side in pixels of the square crops it trains on; None for whole images.
        shipped: Folder of its weights in the package, where it is not the cascade's.
        licence: Licence of weights trained for it from nothing, where it is not the
            cascade's.
    """

    name: str
    resolution: int
    model: NetworkConfig
    schedule: Schedule
    prediction: str = "eps"
    low_resolution: int | None = None
    learned_variance: bool = False
    stale_variance: bool = False
    level_map: str = "time"
    aligned: bool = False
    normal_level: float = 1e-3
    crop: int | None = None
    shipped: str = ""
    licence: str = ""

    @property
    def train_size(self) -> int:
        """Side in pixels of the images the stage trains on."""
        return self.crop or self.resolution

    def after_finetuning(self, hybrid: bool) -> "Stage":
        """The stage after fine-tuning.

        Args:
            hybrid: Whether the loss trained the learned variance too.
        """
        stale = self.learned_variance and not hybrid
        return dataclasses.replace(self, stale_variance=stale)

    @property
    def scale(self) -> int:
        """Enlargement from the low-res image; 1 for the base stage."""
        return self.resolution // (self.low_resolution or self.resolution)


@dataclasses.dataclass(frozen=True)
class Cascade:
    """A text encoder and its stages: what a model is, without training state.

    Attributes:
        name: Name after the colon of ``--config``.
        text: How prompts become embeddings.
        stages: The stages, from low to high resolution.
        licence: Licence of the weights.
    """

    name: str
    text: Text
    stages: tuple[Stage, ...]
    licence: str

    def stage(self, name: str) -> Stage:
        """The stage called ``name``.

        Raises:
            KeyError: The cascade has no such stage.
        """
        return {stage.name: stage for stage in self.stages}[name]

    def having(self, part: Stage | T5Config) -> "Cascade":
        """The cascade with another text encoder, or with a stage replaced or added.

        A replaced stage keeps ``remat``, which affects only how its network compiles.
        """
        if isinstance(part, T5Config):
            text = dataclasses.replace(self.text, encoder=part)
            return dataclasses.replace(self, text=text)
        stages = {stage.name: stage for stage in self.stages}
        if part.name in stages:
            old = stages[part.name].model
            model = dataclasses.replace(part.model, remat=old.remat)
            part = dataclasses.replace(part, model=model)
        stages[part.name] = part
        return dataclasses.replace(self, stages=tuple(stages.values()))

    def without(self, sources: Mapping[str, str]) -> "Cascade":
        """The cascade without the upper stages whose source of weights is ``none``.

        Raises:
            InputError: A part that the others need has that source.
        """
        dropped = [stage.name for stage in self.stages if sources[stage.name] == NONE]
        kept = self.stages[: len(self.stages) - len(dropped)]
        needed = ["text", *(stage.name for stage in kept)]
        wrong = [name for name in needed if sources[name] == NONE]
        if wrong or (dropped and not kept):
            raise InputError(
                f"config.weights.{(wrong or ['base'])[0]}={NONE!r}, but the stages "
                f"above need it; only upper stages can be left out"
            )
        return dataclasses.replace(self, stages=kept)

    def rematerialised(self, names: Collection[str]) -> "Cascade":
        """The cascade with ``remat`` for the stages of these names and no others."""
        return dataclasses.replace(
            self,
            stages=tuple(
                dataclasses.replace(
                    stage,
                    model=dataclasses.replace(stage.model, remat=stage.name in names),
                )
                for stage in self.stages
            ),
        )


def _small(name: str) -> Cascade:
    """The embedded cascades: cosine schedules, and networks that predict x0.

    Most of their patches have as many numbers as the network is wide, so a clean patch
    is easier to predict than its noise.
    """
    text = Text(
        encoder=T5_SIZES[name],
        length=48,
        vocabulary="embedded",
        rare=tokenizer.EMBEDDED_RARE,
    )
    stages = (
        Stage("base", 64, SIZES[f"{name}_base"], CosineSchedule(), "x0"),
        Stage(
            "sr256",
            256,
            SIZES[f"{name}_sr256"],
            CosineSchedule(),
            "x0",
            low_resolution=64,
        ),
        Stage(
            "sr1024",
            1024,
            SIZES[f"{name}_sr1024"],
            CosineSchedule(),
            "x0",
            low_resolution=256,
            crop=256,
        ),
    )
    return Cascade(name, text, stages, APACHE)


def _imagen() -> Cascade:
    """Imagen's own shapes (arXiv 2205.11487, app. F); weights were never published."""
    text = Text(T5_SIZES["xxl"], 256, "t5", tokenizer.T5_RARE, lower=False)
    stages = (
        Stage("base", 64, SIZES["imagen_base"], CosineSchedule()),
        Stage(
            "sr256",
            256,
            SIZES["imagen_sr256"],
            CosineSchedule(),
            low_resolution=64,
        ),
        Stage(
            "sr1024",
            1024,
            SIZES["imagen_sr1024"],
            LinearSchedule(),
            low_resolution=256,
            crop=256,
        ),
    )
    return Cascade("imagen", text, stages, OWN)


def _photo_stage() -> Stage:
    """Ours, for cascades of photographs whose authors published no such stage."""
    model = SIZES["photo_sr1024"]
    assert isinstance(model, ResidualUNetConfig)
    return Stage(
        "sr1024",
        1024,
        model,
        CosineSchedule(shift=model.shift),
        "x0",
        low_resolution=256,
        crop=256,
        # At 1e-3, a level of its pretraining too, flat areas became grainy.
        normal_level=1e-4,
        shipped="photo",
        licence=APACHE,
    )


PHOTO_STAGE = _photo_stage()


def _if(name: str, stage_one: str, stage_two: str) -> Cascade:
    """DeepFloyd IF: the 1000-step table, learned variance, 77 unmasked tokens."""
    text = Text(
        T5_SIZES["xxl"], 77, "t5", tokenizer.T5_RARE, null="empty", masked=False
    )
    stages = (
        Stage(
            "base",
            64,
            SIZES[stage_one],
            TableSchedule(),
            learned_variance=True,
        ),
        Stage(
            "sr256",
            256,
            SIZES[stage_two],
            TableSchedule(),
            low_resolution=64,
            learned_variance=True,
            level_map="if_index",
            aligned=True,
        ),
        PHOTO_STAGE,
    )
    return Cascade(name, text, stages, DEEPFLOYD)


def notices(cascade: Cascade) -> list[str]:
    """What a user should know of a cascade before anything is trained."""
    messages = []
    if cascade.licence == DEEPFLOYD:
        messages.append(
            "the DeepFloyd IF License Agreement covers these weights and what is "
            "fine-tuned from them: non-commercial research only"
        )
    if cascade.licence == DEEPFLOYD and cascade.stages[-1].resolution < 1024:
        messages.append(
            f"pictures end at {cascade.stages[-1].resolution} px, because "
            f"config.weights is {NONE!r} for the stages above"
        )
    return messages


CASCADES = {
    "toybox": _small("toybox"),
    "tiny": _small("tiny"),
    "imagen": _imagen(),
    "if_m": _if("if_m", "if_i_m", "if_ii_m"),
    "if_l": _if("if_l", "if_i_l", "if_ii_m"),
    "if_xl": _if("if_xl", "if_i_xl", "if_ii_l"),
}


def by_name(name: str) -> Cascade:
    """The cascade called ``name``.

    Raises:
        InputError: No such cascade.
    """
    if name not in CASCADES:
        raise InputError(
            f"cascade {name!r} is not known; after the colon of --config give one of "
            f"{', '.join(CASCADES)}"
        )
    return CASCADES[name]
