"""The toybox as a TFDS dataset.

    tfds build imagen_booth/toybox/tfds_builder.py --config=a_64 \\
        --file_format=array_record

``train`` has the records of pretraining, ``validation`` those of its evaluation.
Pictures are PNG, so neither building nor reading the dataset needs TensorFlow.
"""

import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from imagen_booth.toybox import examples
from imagen_booth.toybox.grammar import Attributes

SEEDS = {"train": 0, "validation": 1}
TOGETHER = 64  # pictures rendered at once


@dataclasses.dataclass(eq=False, kw_only=True)
class ToyboxConfig(tfds.core.BuilderConfig):
    """The records at one size.

    Attributes:
        size: Side of the images in pixels.
        records: Records of the training split.
        held_out: Records of the validation split.
    """

    size: int
    records: int
    held_out: int = 256


class Toybox(tfds.core.GeneratorBasedBuilder):
    """Rendered scenes with their captions and attributes."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        ToyboxConfig(
            name=f"a_{size}",
            description=f"Pictures of {size} px.",
            size=size,
            records=records,
        )
        for size, records in ((64, 40960), (256, 4096), (1024, 512))
    ]

    @property
    def _config(self) -> ToyboxConfig:
        assert isinstance(self.builder_config, ToyboxConfig)
        return self.builder_config

    def _info(self) -> tfds.core.DatasetInfo:
        size = self._config.size
        attributes = {
            field.name: tfds.features.Text(doc="empty if any value fits")
            for field in dataclasses.fields(Attributes)
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(size, size, 3), encoding_format="png"
                    ),
                    "caption": tfds.features.Text(),
                    "attributes": tfds.features.FeaturesDict(attributes),
                }
            ),
            license="Apache-2.0",
            # The records are already in random order.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> Any:
        config = self._config
        lengths = {"train": config.records, "validation": config.held_out}
        return {
            split: self._generate_examples(seed, lengths[split])
            for split, seed in SEEDS.items()
        }

    def _generate_examples(
        self, seed: int, length: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self._config
        for start in range(0, length, TOGETHER):
            indices = range(start, min(start + TOGETHER, length))
            made = examples.render_examples(seed, indices, size=config.size)
            for index, image, caption, shown in zip(indices, *made, strict=True):
                picture = io.BytesIO()
                Image.fromarray(image).save(picture, "PNG")
                yield (
                    index,
                    {
                        "image": picture.getvalue(),
                        "caption": caption,
                        "attributes": {
                            name: value or ""
                            for name, value in dataclasses.asdict(shown).items()
                        },
                    },
                )
