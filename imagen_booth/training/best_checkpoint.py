"""Which parameters a stage keeps: the last, or those of its best preview.

Every preview is sampled from the same noise and scored, and its file holds the scores.
From these, ``score`` computes how good a step is:

    base stage         S(step) - max(0, C(step) - C(0))
    super-resolution   PSNR of enlarged photos against the photos, in dB

S is the similarity of the subject's previews to the photos, and C that of the class's
previews: the mean of colour and layout similarity over all pairs of a preview and a
photo (``data.similarity``). The subtraction takes off what the class has moved
towards the subject since step 0, so a model that samples the subject for every prompt
gains nothing. The highest score wins, and the earliest step of equal ones. Step 0, the
stage before fine-tuning, does not take part.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from imagen_booth.distributed import processes
from imagen_booth.errors import InputError
from imagen_booth.rundir import checkpoints
from imagen_booth.rundir.checkpoints import Checkpoints
from imagen_booth.train_state import Params
from imagen_booth.training.previews import PreviewScores, preview_file, read_scores

RULE = {
    False: "similarity of the subject's previews to the photos, minus the growth of "
    "that of the class's previews since step 0",
    True: "PSNR of enlarged photos against the photos, dB",
}


def score(measured: PreviewScores, first: PreviewScores) -> float:
    """How good a step's preview is.

    Args:
        measured: Scores of the step's preview.
        first: Scores of the preview at step 0.
    """
    if "colour" not in measured.subject:
        return next(iter(measured.subject.values()))
    drift = _likeness(measured.class_scores) - _likeness(first.class_scores)
    return _likeness(measured.subject) - max(0.0, drift)


def _likeness(measures: Mapping[str, float]) -> float:
    return float(np.mean([measures["colour"], measures["layout"]]))


class BestCheckpoint:
    """Keeps the parameters of the best preview so far, one set of them.

    They are in ``best/`` beside a stage's checkpoints until the stage is finished;
    then the last checkpoint holds them as its inference parameters.

    Args:
        folder: Folder of the stage's checkpoints.
        previews: Folder of the stage's preview grids.
        latest: Step of the stage's newest checkpoint; None where there is none.
        steps: Length of the stage.

    Raises:
        InputError: There are checkpoints, and the preview of step 0 or of the best
            step so far is gone; or the stage is finished, and that of the last step
            is gone.
    """

    def __init__(
        self,
        folder: epath.Path,
        previews: epath.Path,
        latest: int | None,
        steps: int,
    ):
        self._folder, self._best = folder, folder / "best"
        self._seen = _scores_of_first(previews)
        unfinished = latest is not None and latest < steps
        if latest is not None:
            needed = {0, self._held(latest)} if unfinished else {0, latest}
            missing = [
                preview_file(previews, n).name for n in needed - self._seen.keys()
            ]
            if missing:
                raise InputError(
                    f"keep='best' chooses by the previews in {previews}, which lacks "
                    f"{' and '.join(sorted(missing))}, though {folder.name} is at "
                    f"step {latest}: restore the folder's files, or redo the stage "
                    f"with --overwrite={folder.name}"
                )
        if unfinished and self._candidates() and not self._exists():
            # The stage was finished before and continues with more steps.
            self._write(self.step, checkpoints.read_params(folder)[0])

    def _held(self, latest: int) -> int:
        """The step whose parameters lie in ``best/`` if its preview must exist, or 0.

        Parameters are written before their preview. A run killed between the two
        samples it again, but not a preview from before the newest checkpoint.
        """
        if not self._exists():
            return 0
        with Checkpoints(self._best, keep=1) as best:
            step = best.latest() or 0
        return step if step < latest else 0

    def _exists(self) -> bool:
        return processes.decide(self._best.exists)

    @property
    def step(self) -> int:
        """The best step so far; there has to have been a preview after step 0."""
        scores = self._candidates()
        return max(scores, key=lambda step: (scores[step], -step))

    def _candidates(self) -> dict[int, float]:
        return {
            step: score(measured, self._seen[0])
            for step, measured in self._seen.items()
            if step > 0
        }

    def has_stalled(self, step: int, patience: int) -> bool:
        """Whether the last ``patience`` previews up to a step were not the best."""
        scores = {at: each for at, each in self._candidates().items() if at <= step}
        if not scores:
            return False
        best = max(scores, key=lambda at: (scores[at], -at))
        return sum(at > best for at in scores) >= patience

    def consider(self, step: int, measured: PreviewScores, params: Params) -> None:
        """Takes a preview into account, before its file is written.

        Raises:
            StorageError: The parameters cannot be written.
        """
        self._seen[step] = measured
        if step > 0 and self.step == step:
            self._write(step, params)

    def _write(self, step: int, params: Params) -> None:
        with Checkpoints(self._best, keep=1) as best:
            best.save_params(step, params)

    def params(self) -> Params:
        """The best parameters, as numpy."""
        return checkpoints.read_params(self._best)[0]

    def summary(self) -> dict[str, Any]:
        """The entry for the manifest: step, scores and rule."""
        enlarging = "colour" not in self._seen[self.step].subject
        scores = self._candidates()
        return {
            "step": self.step,
            "score": scores[self.step],
            "scores": {str(step): each for step, each in scores.items()},
            "rule": RULE[enlarging],
        }

    def finish(self) -> None:
        """The last checkpoint has the parameters; theirs in ``best/`` go."""
        processes.wait(f"best {self._folder.name}")
        if processes.is_first() and self._best.exists():
            self._best.rmtree()


def _scores_of_first(previews: epath.Path) -> dict[int, PreviewScores]:
    """The scores of the previews that process 0 finds, by step."""
    found = processes.decide(
        lambda: [
            (step, dataclasses.asdict(each))
            for step, each in sorted(read_scores(previews).items())
        ]
    )
    return {step: PreviewScores(**each) for step, each in found}


def remove_previews(previews: epath.Path) -> None:
    """Removes the previews of earlier fine-tuning, which starts again."""
    if processes.is_first() and previews.exists():
        for step in read_scores(previews):
            preview_file(previews, step).unlink()
    processes.wait(f"previews {previews.name}")
