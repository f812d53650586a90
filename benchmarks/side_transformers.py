"""The side of transformers on torch of bench_features.py, alone in its process."""

import time

import torch
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

KINDS = {"dino": ViTModel, "clip": CLIPModel}
OPTIONS = {"dino": {"add_pooling_layer": False}, "clip": {}}


def write(folder, kind):
    """A random network of the real size as the hub has it."""
    torch.manual_seed(0)
    if kind == "dino":
        config = ViTConfig(
            hidden_size=384,
            num_attention_heads=6,
            intermediate_size=1536,
            layer_norm_eps=1e-12,  # as facebook/dino-vits16 has it
        )
        model = ViTModel(config, **OPTIONS[kind])
    else:
        model = CLIPModel(CLIPConfig())
    model.save_pretrained(folder)


class Side:
    """A network from a folder, in eager mode, as evaluators run it."""

    def __init__(self, name, place, pixels):
        self._kind = name.partition("_")[0]
        kind, options = KINDS[self._kind], OPTIONS[self._kind]
        self._model = kind.from_pretrained(place, **options).eval()
        # Theirs are channels first.
        self._pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        self.output()

    @torch.inference_mode()
    def output(self):
        """Features of the batch, [B, F]."""
        if self._kind == "dino":
            return self._model(self._pixels).last_hidden_state[:, 0].numpy()
        seen = self._model.vision_model(pixel_values=self._pixels).pooler_output
        return self._model.visual_projection(seen).numpy()

    def seconds(self, runs):
        """Time of one batch."""
        start = time.perf_counter()
        for _ in range(runs):
            self.output()
        return (time.perf_counter() - start) / runs
