"""Runs the studies behind DreamBooth's claims on the toybox, and writes one page.

    python -m imagen_booth.reproduce --quick
    python -m imagen_booth.reproduce --studies=prior,noun --workdir=runs/reproduce

Studies: vanilla, fidelity, baselines (DreamBooth, no prior loss, Textual Inversion,
prompts only), prior, sampler (of class images), noun, identifier, photos, sr. First
comes the plan with its cost. In full this takes many hours; stopped, the same command
goes on, and what --quick has done counts. The result is DIR/reproduce.html and
DIR/results.json.
"""

from absl import flags

from imagen_booth import cli

_WORKDIR = flags.DEFINE_string(
    "workdir", "runs/reproduce", "where all runs live, local or gs://"
)
_QUICK = flags.DEFINE_bool("quick", False, "two subjects and one seed for each study")
_STUDIES = flags.DEFINE_list("studies", None, "some of the studies; default all")


def main() -> None:
    # Slow imports come after the flags, so that --help and bad flags answer at once.
    from etils import epath

    from imagen_booth.config import booth, inversion, to_job
    from imagen_booth.studies import plan
    from imagen_booth.studies.conduct import conduct

    names = plan.STUDIES if _STUDIES.value is None else _STUDIES.value
    page = conduct(
        to_job(booth("toybox")),
        epath.Path(_WORKDIR.value),
        names,
        _QUICK.value,
        to_job(inversion("toybox")).text,
    )
    print(f"open {page}")


if __name__ == "__main__":
    cli.run(main, __doc__)
