"""Small DeepFloyd IF and T5 files made by hand, from the published names and shapes."""

import json

import numpy as np
from safetensors.numpy import save_file

TEXT = 16
STAGE_1 = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.17.0.dev0",
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 2,
    "attention_head_dim": 32,
    "block_out_channels": [32, 64],
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": 32,
    "cross_attention_norm": "group_norm",
    "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": TEXT,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 6,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "scale_shift",
    "sample_size": 16,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "upcast_attention": False,
    "use_linear_projection": False,
}
STAGE_2 = STAGE_1 | {
    "class_embed_type": "timestep",
    "in_channels": 6,
    "layers_per_block": [1, 2],
    "mid_block_scale_factor": 1.4142271248762552,
    "resnet_out_scale_factor": 1.4142271248762552,
    "resnet_skip_time_act": True,
    "sample_size": 32,
    "time_embedding_act_fn": "gelu",
    "time_embedding_dim": 24,
}
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "beta_end": 0.02,
    "beta_schedule": "squaredcos_cap_v2",
    "beta_start": 0.0001,
    "clip_sample": False,
    "dynamic_thresholding_ratio": 0.95,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.5,
    "thresholding": True,
    "trained_betas": None,
    "variance_type": "learned_range",
}


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a stage's tensors, PyTorch's order of axes."""
    widths, text = config["block_out_channels"], config["encoder_hid_dim"]
    cross, first = config["cross_attention_dim"], widths[0]
    time = config["time_embedding_dim"] or 4 * first
    blocks = config["layers_per_block"]
    blocks = [blocks] * len(widths) if isinstance(blocks, int) else blocks
    attends = ["CrossAttn" in kind for kind in config["down_block_types"]]
    found = {}

    def add(name, *shape):
        found[f"{name}.weight"], found[f"{name}.bias"] = shape, shape[:1]

    def resnet(name, inner, outer):
        add(f"{name}.norm1", inner)
        add(f"{name}.conv1", outer, inner, 3, 3)
        add(f"{name}.time_emb_proj", 2 * outer, time)
        add(f"{name}.norm2", outer)
        add(f"{name}.conv2", outer, outer, 3, 3)
        if inner != outer:
            add(f"{name}.conv_shortcut", outer, inner, 1, 1)

    def attention(name, width):
        add(f"{name}.group_norm", width)
        add(f"{name}.norm_cross", cross)
        for each in ("to_q", "to_k", "to_v", "to_out.0"):
            add(f"{name}.{each}", width, width)
        for each in ("add_k_proj", "add_v_proj"):
            add(f"{name}.{each}", width, cross)

    add("conv_in", first, config["in_channels"], 3, 3)
    for name in ["time_embedding"] + ["class_embedding"] * (time == 24):
        add(f"{name}.linear_1", time, first)
        add(f"{name}.linear_2", time, time)
    add("encoder_hid_proj", cross, text)
    add("add_embedding.norm1", text)
    found["add_embedding.pool.positional_embedding"] = (1, text)
    for each in "qkv":
        add(f"add_embedding.pool.{each}_proj", text, text)
    add("add_embedding.proj", time, text)
    add("add_embedding.norm2", time)
    skips, h = [first], first
    for i, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for j in range(count):
            resnet(f"down_blocks.{i}.resnets.{j}", h, width)
            if attends[i]:
                attention(f"down_blocks.{i}.attentions.{j}", width)
            h = width
            skips.append(h)
        if i < len(widths) - 1:
            resnet(f"down_blocks.{i}.downsamplers.0", width, width)
            skips.append(h)
    for j in range(2):
        resnet(f"mid_block.resnets.{j}", h, h)
    attention("mid_block.attentions.0", h)
    for i, (width, count) in enumerate(
        zip(reversed(widths), reversed(blocks), strict=True)
    ):
        for j in range(count + 1):
            resnet(f"up_blocks.{i}.resnets.{j}", h + skips.pop(), width)
            if attends[-1 - i]:
                attention(f"up_blocks.{i}.attentions.{j}", width)
            h = width
        if i < len(widths) - 1:
            resnet(f"up_blocks.{i}.upsamplers.0", width, width)
    add("conv_norm_out", first)
    add("conv_out", config["out_channels"], first, 3, 3)
    return found


def fill(shapes: dict, seed: int = 0, dtype=np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()
    }


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_stage(folder, config=STAGE_1, scheduler=SCHEDULER, weights=None, **kind):
    """A pipeline's folder; returns its tensors."""
    weights = fill(shapes(config), **kind) if weights is None else weights
    write_json(folder / "unet/config.json", config)
    write_json(folder / "scheduler/scheduler_config.json", scheduler)
    save_file(weights, folder / "unet/diffusion_pytorch_model.safetensors")
    return weights


def encoder_shapes(vocab=40, width=TEXT, heads=2, head=4, hidden=24, layers=2):
    """Hugging Face's names of a T5 v1.1 encoder."""
    found: dict[str, tuple[int, ...]] = {"shared.weight": (vocab, width)}
    for i in range(layers):
        at = f"encoder.block.{i}.layer"
        for each in "qkv":
            found[f"{at}.0.SelfAttention.{each}.weight"] = (heads * head, width)
        found[f"{at}.0.SelfAttention.o.weight"] = (width, heads * head)
        found[f"{at}.0.layer_norm.weight"] = (width,)
        for each in ("wi_0", "wi_1"):
            found[f"{at}.1.DenseReluDense.{each}.weight"] = (hidden, width)
        found[f"{at}.1.DenseReluDense.wo.weight"] = (width, hidden)
        found[f"{at}.1.layer_norm.weight"] = (width,)
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    found[bias] = (32, heads)
    found["encoder.final_layer_norm.weight"] = (width,)
    return found
