"""What the paper claims, its figures, and whether ours bear a claim out.

The paper's scores are of photographs, by DINO, CLIP and LPIPS; ours are of the toybox,
by the judge. Only the order of arms can be compared, never the numbers.

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
ENOUGH = 5  # subjects, below which chance alone often gives differences of one sign

# By study, arm and metric: the paper's figures where it has them.
PAPER: dict[str, dict[str, dict[str, float]]] = {
    "fidelity": {
        "photos": {"subject": 0.774},
        plan.TUNED: {"subject": 0.696, "prompt": 0.306},
    },
    "baselines": {  # on Stable Diffusion, which both were run on
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
    """One arm is above another in a metric.

    Attributes:
        study: where it is measured.
        text: the claim in words.
        metric: of the study's first table.
        above, below: arms.
    """

    study: str
    text: str
    metric: str
    above: str
    below: str


CLAIMS = (
    Claim(
        "fidelity",
        "Tuned, the model draws the subject and not just its class.",
        "subject",
        plan.TUNED,
        plan.UNTUNED,
    ),
    *(
        Claim("baselines", f"DreamBooth {does} than {beside}.", metric, *sides)
        for does, beside, metric, sides in (
            (
                "serves the subject better",
                "Textual Inversion",
                "subject",
                (plan.DREAMBOOTH, plan.INVERTED),
            ),
            (
                "serves the prompt better",
                "Textual Inversion",
                "prompt",
                (plan.DREAMBOOTH, plan.INVERTED),
            ),
            (
                "serves the subject better",
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
        Claim(
            "sampler",
            f"Class images by {words} keep the class from drifting (PRES lower).",
            "pres",
            above,
            below,
        )
        for words, above, below in (
            (
                "the ancestral sampler better than by a solver of few steps",
                plan.SOLVER,
                plan.ANCESTRAL,
            ),
            (
                "ten times the ancestral steps better than by the default's",
                plan.ANCESTRAL,
                plan.MORE_STEPS,
            ),
        )
    ),
    Claim(
        "noun",
        "The correct class noun serves the subject better than none, both without "
        "prior loss.",
        "subject",
        plan.CORRECT_ALONE,
        plan.NO_NOUN,
    ),
    Claim(
        "noun",
        "The correct class noun serves the subject better than a wrong one.",
        "subject",
        plan.CORRECT,
        plan.WRONG,
    ),
    Claim(
        "identifier",
        "A rare identifier serves the subject better than a common word.",
        "subject",
        plan.RARE,
        plan.COMMON,
    ),
    Claim(
        "identifier",
        "A rare identifier serves the subject better than random characters.",
        "subject",
        plan.RARE,
        plan.CHARACTERS,
    ),
    Claim(
        "photos",
        "Four photos serve the subject better than one.",
        "subject",
        "4",
        "1",
    ),
    *(
        Claim(
            "sr",
            f"At {size} px, tuned at the low level, details are nearer the truth "
            f"than {words}.",
            f"error_{size}",
            arm,
            plan.LOW,
        )
        for size in (256, 1024)
        for arm, words in (
            (plan.UNTUNED, "untuned"),
            (plan.NORMAL, "tuned at the normal level"),
        )
    ),
)


def verdict(above: Score, below: Score, difference: Score) -> str:
    """What the intervals say of ``above`` being above ``below``.

    Args:
        difference: of the two, taken subject by subject.

    Returns:
        ``SHOWN`` if they are apart in that order, ``REVERSED`` if they are apart in
        the other. If they overlap, because subjects differ more than arms, the
        difference decides where it is of ``ENOUGH`` subjects: ``PAIRED`` if all of its
        interval is above 0, ``PAIRED_REVERSED`` if below. Else ``OPEN``.
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


def judged(
    study: str, arms: Mapping[str, Mapping[str, Sequence[np.ndarray]]]
) -> list[dict[str, Any]]:
    """The verdict on every claim of a study.

    Args:
        arms: values of each subject, by arm and metric; the subjects of every arm in
            the same order. Claims on what was not measured are left out.

    Returns:
        Entries with the claim, both scores, the difference subject by subject, and
        ``verdict``.
    """
    found = []
    for claim in CLAIMS:
        sides = [arms.get(arm, {}).get(claim.metric) for arm in _sides(claim)]
        if claim.study != study or None in sides:
            continue
        above, below = (summarise(side) for side in sides if side is not None)
        one, other = ([float(np.mean(v)) for v in side or ()] for side in sides)
        apart = summarise([[a - b] for a, b in zip(one, other, strict=True)])
        entry = dataclasses.asdict(claim) | {
            "above_score": dataclasses.asdict(above),
            "below_score": dataclasses.asdict(below),
            "difference": dataclasses.asdict(apart),
            "verdict": verdict(above, below, apart),
        }
        found.append(entry)
    return found


def target(text: str, score: Score, least: float) -> dict[str, Any]:
    """The verdict on a figure that was set as a goal: its mean reaches it, or not."""
    return {
        "study": "vanilla",
        "text": text,
        "least": least,
        "above_score": dataclasses.asdict(score),
        "verdict": SHOWN if score.mean >= least else OPEN,
    }


def _sides(claim: Claim) -> tuple[str, str]:
    return claim.above, claim.below
