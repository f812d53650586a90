"""Runs the studies behind DreamBooth's claims on the toybox, and writes one page.

    python -m imagen_booth.reproduce --quick
    python -m imagen_booth.reproduce --studies=prior,noun --workdir=runs/reproduce

Studies: vanilla, sr, fidelity, prior, baselines (DreamBooth, no prior loss, Textual
Inversion, prompts only), noun, identifier, photos, sampler (of class images). First
comes the plan with its cost. In full this takes many hours; stopped, the same command
goes on, and what a smaller extent has done counts. The result is DIR/reproduce.html
and DIR/results.json.
"""

import dataclasses

from absl import flags

from imagen_booth import cli

_WORKDIR = flags.DEFINE_string(
    "workdir", "runs/reproduce", "where all runs live, local or gs://"
)
_QUICK = flags.DEFINE_bool("quick", False, "two subjects, one seed, three counts")
_SUBJECTS = flags.DEFINE_integer("subjects", None, "how many, of 8; most studies use 3")
_SEEDS = flags.DEFINE_integer("seeds", None, "of each subject in prior; default 3")
_STUDIES = flags.DEFINE_list("studies", None, "some of the studies; default all")


def main() -> None:
    # Slow imports come after the flags, so that --help and bad flags answer at once.
    from etils import epath

    from imagen_booth.config.build import to_job
    from imagen_booth.config.presets import dreambooth, textual_inversion
    from imagen_booth.experiments import plan
    from imagen_booth.experiments.runner import run_studies

    given = {"subjects": _SUBJECTS.value, "seeds": _SEEDS.value}
    extent = dataclasses.replace(
        plan.QUICK if _QUICK.value else plan.FULL,
        **{name: value for name, value in given.items() if value is not None},
    )
    names = plan.STUDIES if _STUDIES.value is None else _STUDIES.value
    page = run_studies(
        to_job(dreambooth("toybox")),
        epath.Path(_WORKDIR.value),
        names,
        extent,
        to_job(textual_inversion("toybox")).text,
    )
    print(f"open {page}")


if __name__ == "__main__":
    cli.run(main, __doc__)
