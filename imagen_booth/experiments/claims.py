"""The claims of the paper, its figures, and whether our figures support the claims.

The paper scores photographs with DINO, CLIP and LPIPS; the studies score pictures of
the toybox with its judge. Only the order of arms can be compared, not the numbers.

Source: Ruiz et al., arXiv 2208.12242, tables 1, 3, 4 and 5 of the later version, and
its supplement on super-resolution.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imagen_booth.evaluation.scores import Score, summarise
from imagen_booth.experiments import plan

SHOWN, OPEN, REVERSED = "shown", "not shown", "reversed"
PAIRED, PAIRED_REVERSED = "shown in pairs", "reversed in pairs"
# With fewer subjects, chance alone often gives differences of one sign.
ENOUGH = 5

# Figures of the paper, by study, arm and metric.
PAPER: dict[str, dict[str, dict[str, float]]] = {
    "fidelity": {
        "photos": {"subject": 0.774},
        plan.TUNED: {"subject": 0.696, "prompt": 0.306},
    },
    "baselines": {  # both on Stable Diffusion
        plan.DREAMBOOTH: {"subject": 0.668, "prompt": 0.305},
        plan.INVERTED: {"subject": 0.569, "prompt": 0.255},
    },
    "prior": {
        plan.ON: {"pres": 0.493, "div": 0.391, "subject": 0.684, "prompt": 0.308},
        plan.OFF: {"pres": 0.664, "div": 0.371, "subject": 0.712, "prompt": 0.306},
    },
    "noun": {
        plan.CORRECT: {"subject": 0.744},
        plan.NO_NOUN: {"subject": 0.303},
        plan.WRONG: {"subject": 0.454},
    },
    "photos": {
        str(count): {"subject": value}
        for count, value in enumerate((0.798, 0.851, 0.871, 0.876, 0.864), 1)
    },
}


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim that one arm has a higher score than another.

    Attributes:
        study: Name of the study that measures it.
        text: The claim in words.
        metric: A metric of the study's first table.
        above: The arm that should have the higher score.
        below: The arm that should have the lower score.
    """

    study: str
    text: str
    metric: str
    above: str
    below: str


CLAIMS = (
    Claim(
        "fidelity",
        "The fine-tuned model generates the subject and not just its class.",
        "subject",
        plan.TUNED,
        plan.UNTUNED,
    ),
    *(
        Claim(
            "baselines",
            f"DreamBooth has higher {metric} fidelity than {beside}.",
            metric,
            *sides,
        )
        for beside, metric, sides in (
            (
                "Textual Inversion",
                "subject",
                (plan.DREAMBOOTH, plan.INVERTED),
            ),
            (
                "Textual Inversion",
                "prompt",
                (plan.DREAMBOOTH, plan.INVERTED),
            ),
            (
                "a description in the prompt",
                "subject",
                (plan.DREAMBOOTH, plan.DESCRIBED),
            ),
        )
    ),
    Claim(
        "prior",
        "The prior loss keeps the class from drifting to the subject (PRES lower).",
        "pres",
        plan.OFF,
        plan.ON,
    ),
    Claim(
        "prior",
        "The prior loss keeps the subject's pictures diverse (DIV higher).",
        "div",
        plan.ON,
        plan.OFF,
    ),
    Claim(
        "prior",
        "The prior loss costs a little subject fidelity.",
        "subject",
        plan.OFF,
        plan.ON,
    ),
    *(
        claim
        for source in plan.FROZEN
        for claim in (
            Claim(
                "prior_source",
                f"With the prior term from the {source}, the class drifts less than "
                "without the term (PRES lower).",
                "pres",
                plan.NO_PRIOR,
                plan.prior_arm(source, 1.0),
            ),
            Claim(
                "prior_source",
                f"With the prior term from the {source}, the class drifts less than "
                "with class images (PRES lower).",
                "pres",
                plan.prior_arm(plan.IMAGES, 1.0),
                plan.prior_arm(source, 1.0),
            ),
        )
    ),
    *(
        Claim(
            "sampler",
            f"Class images by {better} keep the class from drifting better than those "
            f"by {worse} (PRES lower).",
            "pres",
            above,
            below,
        )
        for better, worse, above, below in (
            (
                "the ancestral sampler",
                "a solver of few steps",
                plan.SOLVER,
                plan.ANCESTRAL,
            ),
            (
                "the ancestral sampler",
                "a solver of ten named steps",
                plan.LISTED,
                plan.ANCESTRAL,
            ),
            (
                "ten times the ancestral steps",
                "the default's",
                plan.ANCESTRAL,
                plan.MORE_STEPS,
            ),
        )
    ),
    Claim(
        "noun",
        "The correct class noun gives higher subject fidelity than none, both without "
        "prior loss.",
        "subject",
        plan.CORRECT_ALONE,
        plan.NO_NOUN,
    ),
    Claim(
        "noun",
        "The correct class noun gives higher subject fidelity than a wrong one.",
        "subject",
        plan.CORRECT,
        plan.WRONG,
    ),
    Claim(
        "identifier",
        "A rare identifier gives higher subject fidelity than a common word.",
        "subject",
        plan.RARE,
        plan.COMMON,
    ),
    Claim(
        "identifier",
        "A rare identifier gives higher subject fidelity than random characters.",
        "subject",
        plan.RARE,
        plan.CHARACTERS,
    ),
    Claim(
        "photos",
        "Four photos give higher subject fidelity than one.",
        "subject",
        "4",
        "1",
    ),
    *(
        Claim(
            "sr",
            f"At {size} px, details after fine-tuning at the low level are nearer the "
            f"true ones than {words}.",
            f"error_{size}",
            arm,
            plan.LOW,
        )
        for size in (256, 1024)
        for arm, words in (
            (plan.UNTUNED, "without fine-tuning"),
            (plan.NORMAL, "at the normal level"),
        )
    ),
)


def verdict(above: Score, below: Score, difference: Score) -> str:
    """Whether the intervals show that ``above`` is higher than ``below``.

    Args:
        above: Score of the arm that should be higher.
        below: Score of the arm that should be lower.
        difference: Their difference, taken subject by subject.

    Returns:
        ``SHOWN`` if the intervals are apart in that order, ``REVERSED`` if they are
        apart in the other. Where they overlap, because subjects differ more than arms,
        the difference over ``ENOUGH`` subjects decides: ``PAIRED`` if its whole
        interval is above 0, ``PAIRED_REVERSED`` if below. Otherwise ``OPEN``.
    """
    if above.low > below.high:
        return SHOWN
    if above.high < below.low:
        return REVERSED
    if difference.groups >= ENOUGH and difference.low > 0:
        return PAIRED
    if difference.groups >= ENOUGH and difference.high < 0:
        return PAIRED_REVERSED
    return OPEN


def verdicts(
    study: str, arms: Mapping[str, Mapping[str, Sequence[np.ndarray]]]
) -> list[dict[str, Any]]:
    """The verdict on every claim of a study whose arms and metric were measured.

    Args:
        study: Name of the study.
        arms: Values of each subject, by arm and metric. All arms have the same order
            of subjects.

    Returns:
        One entry per claim: the claim, both scores, the difference subject by
        subject, and ``verdict``.
    """
    found = []
    for claim in CLAIMS:
        high = arms.get(claim.above, {}).get(claim.metric)
        low = arms.get(claim.below, {}).get(claim.metric)
        if claim.study != study or high is None or low is None:
            continue
        above, below = summarise(high), summarise(low)
        difference = summarise(
            [[float(np.mean(a) - np.mean(b))] for a, b in zip(high, low, strict=True)]
        )
        entry = dataclasses.asdict(claim) | {
            "above_score": dataclasses.asdict(above),
            "below_score": dataclasses.asdict(below),
            "difference": dataclasses.asdict(difference),
            "verdict": verdict(above, below, difference),
        }
        found.append(entry)
    return found


def target(text: str, score: Score, least: float) -> dict[str, Any]:
    """The verdict on a goal: ``SHOWN`` where the mean of a score reaches ``least``."""
    return {
        "study": "vanilla",
        "text": text,
        "least": least,
        "above_score": dataclasses.asdict(score),
        "verdict": SHOWN if score.mean >= least else OPEN,
    }
