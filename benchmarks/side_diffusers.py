"""The side of diffusers in bench_diffusers.py, alone in its process."""

import contextlib
import os
import time

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch.nn import functional as F

PAGE = 1024  # f32 values to a page of memory


def write(folder, config):
    """Random weights, as diffusers starts and stores them, of a ``config.json``."""
    torch.manual_seed(0)
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")


class Side:
    """A U-Net as diffusers' own scripts use it.

    Training follows its DreamBooth script: parameters in float32, autocast for
    bfloat16, the norm of the gradient clipped, AdamW (in one kernel, which is
    faster than the default). Sampling has the parameters in ``dtype`` too, as a
    pipeline loaded with that dtype has.
    """

    def __init__(self, folder, inputs, dtype, steps, device, compiled):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.backends.cudnn.allow_tf32 = False  # nor on our side
        self._folder, self._dtype = folder, getattr(torch, dtype)
        self._device = {"cpu": "cpu", "gpu": "cuda"}[device]
        self._compiled, self._steps = compiled, steps
        self._inputs = {
            name: torch.tensor(leaf, device=self._device)
            for name, leaf in inputs.items()
        }
        for name in ("noisy", "image"):  # our channels are last
            pixels = self._inputs[name].permute(0, 3, 1, 2)
            self._inputs[name] = pixels.contiguous()
        self._scheduler = DDPMScheduler(
            beta_schedule="squaredcos_cap_v2", variance_type="learned_range"
        )

    def load(self):
        """Seconds it takes to have the weights on the device."""
        start = time.perf_counter()
        unet = UNet2DConditionModel.from_pretrained(self._folder, subfolder="unet")
        self._unet = unet.to(self._device)
        for parameter in self._unet.parameters():
            # Mapped from the file, they would be read only when first used.
            parameter.detach().flatten()[::PAGE].sum().item()
        return time.perf_counter() - start

    def output(self):
        """The network's answer to the first row, [H, W, 6]."""
        x, at, text = (self._inputs[name][:1] for name in ("noisy", "time", "text"))
        with torch.no_grad(), self._cast():
            out = self._unet(x, at, text).sample
        return out[0].permute(1, 2, 0).float().cpu().numpy()

    def prepare_train(self):
        """Starts the optimizer."""
        unet = self._unet.train()
        forward = torch.compile(unet) if self._compiled else unet
        parameters = list(unet.parameters())
        optimizer = torch.optim.AdamW(
            parameters, lr=1e-7, weight_decay=1e-2, fused=True
        )
        image, text = self._inputs["image"], self._inputs["text"]
        steps = self._scheduler.config["num_train_timesteps"]

        def run():
            noise = torch.randn_like(image)
            at = torch.randint(0, steps, (len(image),), device=self._device)
            noisy = self._scheduler.add_noise(image, noise, at)
            with self._cast():
                out = forward(noisy, at, text).sample
            loss = F.mse_loss(out[:, :3].float(), noise)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            assert torch.isfinite(loss).item()

        self._run = run

    def prepare_denoise(self):
        """Puts the network into its dtype."""
        forward = self._to_sample()
        noisy, text, null = (
            self._inputs[name].to(self._dtype) for name in ("noisy", "text", "null")
        )
        both, texts = torch.cat([noisy, noisy]), torch.cat([text, null])
        at = torch.tensor(500, device=self._device)
        signal = self._scheduler.alphas_cumprod[500].item()

        @torch.no_grad()
        def run():
            out = forward(both, at, texts).sample
            eps, variance = _guided(out)
            x0 = (noisy - (1 - signal) ** 0.5 * eps) / signal**0.5
            self._wait()
            return x0, variance

        self._run = run

    def prepare_sample(self):
        """Puts the network into its dtype, and the scheduler to its thresholds."""
        forward = self._to_sample()
        text, null = (self._inputs[name].to(self._dtype) for name in ("text", "null"))
        texts, shape = torch.cat([text, null]), self._inputs["noisy"].shape
        scheduler = DDPMScheduler.from_config(
            self._scheduler.config,
            thresholding=True,
            clip_sample=False,
            dynamic_thresholding_ratio=0.95,
            sample_max_value=1.5,
        )

        @torch.no_grad()
        def run():
            scheduler.set_timesteps(self._steps, device=self._device)
            x = torch.randn(shape, device=self._device)
            for at in scheduler.timesteps:
                both = torch.cat([x, x]).to(self._dtype)
                out = torch.cat(_guided(forward(both, at, texts).sample), dim=1)
                x = scheduler.step(out, at, x).prev_sample
            return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()

        self._run = run

    def seconds(self, runs):
        """Time of one run of what was prepared."""
        start = time.perf_counter()
        for _ in range(runs):
            self._run()
        return (time.perf_counter() - start) / runs

    def prepare_product(self, size):
        """A product of two square matrices."""
        a = torch.ones(size, size, dtype=self._dtype, device=self._device)

        def run():
            torch.mm(a, a)
            self._wait()

        self._run = run

    def device_memory(self):
        """Peak in bytes; None where the device is the host."""
        return torch.cuda.max_memory_allocated() if self._device == "cuda" else None

    def _to_sample(self):
        """The network in its dtype, as it is called to sample."""
        unet = self._unet.eval()
        if self._dtype != torch.float32:
            unet = unet.to(self._dtype)
        return torch.compile(unet) if self._compiled else unet

    def _cast(self):
        if self._dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self._device, self._dtype)

    def _wait(self):
        if self._device == "cuda":
            torch.cuda.synchronize()


def _guided(out):
    """eps by classifier-free guidance, and the variance of the rows with text."""
    eps, variance = out.float().split(3, dim=1)
    cond, uncond = eps.chunk(2)
    return uncond + 7.0 * (cond - uncond), variance[: len(cond)]
