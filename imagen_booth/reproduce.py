"""Tests the claims of DreamBooth on the toybox, and writes one page of results.

    python -m imagen_booth.reproduce --quick
    python -m imagen_booth.reproduce --studies=prior,noun --workdir=runs/reproduce

Studies: vanilla, sr, fidelity, prior, prior_source (class images or the frozen model),
adapters (LoRA or all parameters), baselines (DreamBooth, no prior loss, Textual
Inversion, prompts only), noun, identifier, photos, sampler (of class images). The
command first logs the runs and their estimated cost. All studies take many hours. After
a stop, the same command resumes; finished runs of --quick are used again. The results
are DIR/reproduce.html and DIR/results.json.
"""

import dataclasses

from absl import flags

from imagen_booth import cli

_WORKDIR = cli.define_path(
    "workdir", "runs/reproduce", "folder of all runs and results, local or gs://"
)
_QUICK = flags.DEFINE_bool(
    "quick", False, "two subjects, one seed, three numbers of photos"
)
_SUBJECTS = flags.DEFINE_integer(
    "subjects", None, "number of subjects, 1 to 8; most studies use at most 3"
)
_SEEDS = flags.DEFINE_integer(
    "seeds", None, "seeds of each subject in prior and prior_source; default 3"
)
_STUDIES = flags.DEFINE_list("studies", None, "names of studies; default all")


def main() -> None:
    # Slow imports come after the flags, so that --help and bad flags answer at once.
    from etils import epath

    from imagen_booth.config.build import to_job
    from imagen_booth.config.presets import DEFAULT, dreambooth, textual_inversion
    from imagen_booth.experiments import plan
    from imagen_booth.experiments.runner import run_studies

    given = {"subjects": _SUBJECTS.value, "seeds": _SEEDS.value}
    size = dataclasses.replace(
        plan.QUICK if _QUICK.value else plan.FULL,
        **{name: value for name, value in given.items() if value is not None},
    )
    names = plan.STUDIES if _STUDIES.value is None else _STUDIES.value
    page = run_studies(
        to_job(dreambooth(DEFAULT)),
        epath.Path(_WORKDIR.value),
        names,
        size,
        to_job(textual_inversion("toybox")).text,
        to_job(dreambooth("toybox")).base,
    )
    print(f"open {page}")


if __name__ == "__main__":
    cli.run(main, __doc__)
