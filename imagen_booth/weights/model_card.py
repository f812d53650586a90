"""The model card of an exported stage: what it is, how to use it, its licences."""

from collections.abc import Mapping
from typing import Any

from imagen_booth.cascade import Stage

PIPELINES = {False: "IFPipeline", True: "IFSuperResolutionPipeline"}


def write(
    stage: Stage, licence: str, story: Mapping[str, Any], learned_variance: bool
) -> str:
    """Markdown with the front matter that the Hugging Face hub reads.

    Args:
        licence: of the weights it was made from.
        story: ``steps``, ``subject``, ``run``, ``seed``, ``cleaning`` and
            ``made_from``, as far as known.
        learned_variance: the network's variance is up to date.
    """
    enlarging = stage.low_resolution is not None
    pipeline = PIPELINES[enlarging]
    origin = story.get("made_from") or {}
    steps, subject = story.get("steps", 0), story.get("subject")
    task = (
        f"enlarges pictures from {stage.low_resolution} to {stage.resolution} px"
        if enlarging
        else f"draws pictures of {stage.resolution} px"
    )
    made = (
        f"Fine-tuned for {steps} steps with imagen_booth"
        + (f" on photos of the subject that it knows as `{subject}`" if subject else "")
        if steps
        else "Converted by imagen_booth, not fine-tuned"
    )
    if story.get("run"):
        made += f" (run `{story['run']}`, seed {story.get('seed')})"
    variance = (
        "The variance that the network puts out is up to date, and the scheduler uses "
        "it (`variance_type: learned_range`)."
        if learned_variance
        else "Only the noise estimate was trained; the variance that the network puts "
        "out is out of date, and the scheduler passes it over "
        "(`variance_type: fixed_small`)."
    )
    cleaning = {
        "simple": "Prompts were lower-cased and not cleaned further when this was "
        "tuned: call the pipeline with `clean_caption=False`.",
        "caption": "Prompts were cleaned as captions when this was tuned: call the "
        "pipeline with `clean_caption=True`, and install ftfy and beautifulsoup4.",
    }.get(story.get("cleaning") or "", "")
    return f"""---
license: other
license_name: see-below
library_name: diffusers
pipeline_tag: {"image-to-image" if enlarging else "text-to-image"}
---
# U-Net that {task}

{made}.

## Use

```python
from diffusers import {pipeline}, UNet2DConditionModel

unet = UNet2DConditionModel.from_pretrained("THIS FOLDER", subfolder="unet")
pipeline = {pipeline}.from_pretrained("YOUR COPY OF THE ORIGINAL", unet=unet)
```

Take the scheduler from this folder too. {variance} {cleaning}

## Licence

- The weights this was made from: {licence}.
- What is derived from them is under the same terms: they bind whoever uses, changes or
  passes on this folder.
- Made from: {origin.get("source") or "not recorded"} (fingerprint {
        origin.get("sha256") or "not recorded"
    }).
- Photos of the subject: the rights of whoever took them, and of who is seen in them.

The safety checker and the watermarker of the original pipeline are not part of this
folder. Load them from the original: its terms ask that they stay in use.
"""
