"""The model card of an exported stage: what it is, how to use it, its licences."""

import string
from collections.abc import Mapping
from typing import Any

from imagen_booth.cascade import Stage

CARD = string.Template("""\
---
license: other
license_name: see-below
library_name: diffusers
pipeline_tag: $task
---
# $what that $purpose

$made.

## Use

```python
$use
```

$scheduler $variance $cleaning

## Licence

- The weights this was made from: $licence.
- Derived weights are under the same terms. They bind everyone who uses, changes or
  redistributes this folder.
- Made from: $source (fingerprint $fingerprint).
- Photos of the subject: the photographer and the people in them keep their rights.

The safety checker and the watermarker of the original pipeline are not part of this
folder. Load them from the original: its terms require that they stay in use.
""")
USE = string.Template("""\
from diffusers import $pipeline, UNet2DConditionModel

unet = UNet2DConditionModel.from_pretrained("THIS FOLDER", subfolder="unet")
pipeline = $pipeline.from_pretrained("YOUR COPY OF THE ORIGINAL", unet=unet)""")
USE_ADAPTER = string.Template("""\
from diffusers import $pipeline

pipeline = $pipeline.from_pretrained("YOUR COPY OF THE ORIGINAL")
pipeline.load_lora_weights("THIS FOLDER")""")
VARIANCE = {
    True: "The network's variance output was trained, and the scheduler uses it "
    "(`variance_type: learned_range`).",
    False: "Only the noise estimate was trained. The network's variance output is out "
    "of date, and the scheduler ignores it (`variance_type: fixed_small`).",
}
SCHEDULER = {False: "Use the scheduler of this folder too.", True: ""}
CLEANING = {
    "simple": "Prompts were lower-cased and not cleaned further during fine-tuning: "
    "call the pipeline with `clean_caption=False`.",
    "caption": "Prompts were cleaned as captions during fine-tuning: call the pipeline "
    "with `clean_caption=True`, and install ftfy and beautifulsoup4.",
}


def write(
    stage: Stage,
    licence: str,
    entries: Mapping[str, Any],
    learned_variance: bool,
    *,
    adapter: bool = False,
) -> str:
    """Writes the card as Markdown with the front matter that the hub reads.

    Args:
        stage: The exported stage.
        licence: Licence of the weights it was made from.
        entries: ``steps``, ``subject``, ``run``, ``seed``, ``cleaning`` and
            ``made_from``, as far as they are known.
        learned_variance: Whether the network's variance output is up to date.
        adapter: Whether the export is an adapter.
    """
    origin = entries.get("made_from") or {}
    if stage.low_resolution is None:
        task, pipeline = "text-to-image", "IFPipeline"
        purpose = f"samples images of {stage.resolution} px"
    else:
        task, pipeline = "image-to-image", "IFSuperResolutionPipeline"
        purpose = f"upsamples {stage.low_resolution} px to {stage.resolution} px"
    return CARD.substitute(
        task=task,
        purpose=purpose,
        made=_history(entries),
        what="Adapter (LoRA) of a U-Net" if adapter else "U-Net",
        use=(USE_ADAPTER if adapter else USE).substitute(pipeline=pipeline),
        scheduler=SCHEDULER[adapter],
        variance=VARIANCE[learned_variance],
        cleaning=CLEANING.get(entries.get("cleaning") or "", ""),
        licence=licence,
        source=origin.get("source") or "not recorded",
        fingerprint=origin.get("fingerprint") or "not recorded",
    )


def _history(entries: Mapping[str, Any]) -> str:
    """States how the weights were made."""
    if not entries.get("steps"):
        made = "Converted by imagen_booth, not fine-tuned"
    else:
        made = f"Fine-tuned for {entries['steps']} steps with imagen_booth"
        if entries.get("subject"):
            made += f" on photos of the subject `{entries['subject']}`"
    if entries.get("run"):
        made += f" (run `{entries['run']}`, seed {entries.get('seed')})"
    return made
