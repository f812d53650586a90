"""Checks whether the class noun names what the photos show."""

import tempfile
from typing import Protocol

from etils import epath

from imagen_booth.cascade import Cascade
from imagen_booth.config.schema import Job
from imagen_booth.data import photos
from imagen_booth.distributed import sharding
from imagen_booth.evaluation import class_noun, protocol
from imagen_booth.evaluation import toybox_judge as judges
from imagen_booth.toybox import subjects as toys
from imagen_booth.training import subject_photos

CLIP = "clip_vit_b32"
SIZE = 64  # pixels of the rendered photos of a toy subject


class Findings(Protocol):
    """Receives the result."""

    def ok(self, text: str) -> None:
        """Adds a finding without a fault."""

    def warn(self, text: str) -> None:
        """Adds a warning."""


def check_class_noun(
    found: Findings, job: Job, cascade: Cascade, clip: str, judge: str
) -> None:
    """Reports what the photos seem to show, and warns if the noun is far from it.

    Without a classifier (CLIP's weights, or a judge for a subject of the toybox) it
    reports nothing. A second subject is checked alike.

    Args:
        clip: Folder of CLIP ViT-B/32 in the hub's layout, or "".
        judge: Folder of a toybox judge; "" for the shipped one, if there is one.

    Raises:
        InputError: Weights are missing or damaged, or there are no photos.
    """
    for name in job.subjects:
        _check_one(found, job, cascade, clip, judge, name)


def _check_one(
    found: Findings, job: Job, cascade: Cascade, clip: str, judge: str, name: str
) -> None:
    """As ``check_class_noun``, for the subject of one setting."""
    setting = job.subjects[name]
    given = setting.class_noun.strip()
    toy = setting.photos.startswith(subject_photos.TOYBOX_PREFIX)
    reader = None
    if toy:
        reader = judges.load(judge) if judge else judges.shipped()
    if not clip and reader is None:
        return
    if toy:
        subject = subject_photos.toybox_subject(setting.photos, name)
        images = list(toys.photos(subject, subject_photos.TOYBOX_PHOTOS, size=SIZE))
    else:
        intake = subject_photos.inspect_photos(job, cascade, setting.photos, name)
        images = [photos.load(each.path, setting.background) for each in intake.photos]
    if reader is not None:
        seen = class_noun.guess_by_judge(images, given, reader)
    else:
        mesh = sharding.make_mesh()
        part = protocol.load_network("clip", CLIP, clip, mesh)
        with tempfile.TemporaryDirectory() as folder:  # the doctor writes nothing
            cache = epath.Path(folder)
            seen = class_noun.guess_by_clip(images, given, part, cache=cache, mesh=mesh)
        if not part.pretrained:
            found.warn("--clip=random: its answer is meaningless")
    if seen.far or not given:
        found.warn(seen.sentence(given, name))
    else:
        found.ok(seen.sentence(given, name))
