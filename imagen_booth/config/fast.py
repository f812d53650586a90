"""The fast form of a job: no class images, fewer previews, the few-step solver."""

import dataclasses

from imagen_booth.config.schema import FROZEN_MODEL, Job
from imagen_booth.diffusion.sampler import SamplerConfig

# Steps of the few-step solver, by stage.
FEW_STEPS = {"base": 25, "sr256": 16, "sr1024": 8}


def fast(job: Job) -> Job:
    """A job without class images, with few previews and few-step sampling.

    The frozen model's predictions take the place of class images: on the toybox they
    keep the class as well, see docs/claims.md. A prior term that is off stays off.
    """
    return dataclasses.replace(_few_steps(_seldom_shown(job)), prior=FROZEN_MODEL)


def _seldom_shown(job: Job) -> Job:
    return dataclasses.replace(
        job,
        **{
            name: dataclasses.replace(job.finetuning(name), preview_every=0)
            for name in FEW_STEPS
        },
    )


def _few_steps(job: Job) -> Job:
    def quicker(config: SamplerConfig, most: int) -> SamplerConfig:
        if isinstance(config.steps, tuple):
            return dataclasses.replace(config, method="dpmpp_2m", variance=0.0)
        steps = min(config.steps, most) if isinstance(config.steps, int) else most
        # The solver wants other times of a table, see ``SamplerConfig``.
        spacing = "trailing" if config.spacing == "leading" else config.spacing
        return dataclasses.replace(
            config, method="dpmpp_2m", steps=steps, spacing=spacing, variance=0.0
        )

    drawn = {
        name: quicker(getattr(job.pictures, name), most)
        for name, most in FEW_STEPS.items()
    }
    prior = quicker(job.class_images.sampler, FEW_STEPS["base"])
    return dataclasses.replace(
        job,
        pictures=dataclasses.replace(job.pictures, **drawn),
        class_images=dataclasses.replace(job.class_images, sampler=prior),
    )
