"""Our side of bench_diffusers.py, alone in its process."""

import dataclasses
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from imagen_booth.cascade import by_name
from imagen_booth.config.build import to_job
from imagen_booth.config.presets import dreambooth
from imagen_booth.data.examples import Embedding
from imagen_booth.denoiser import guided_denoiser
from imagen_booth.diffusion.sampler import SamplerConfig
from imagen_booth.distributed import cpu_flags, sharding
from imagen_booth.preflight import jaxpr_cost
from imagen_booth.sampling import cascade_sampler
from imagen_booth.training import finetune, optimizers, train_step
from imagen_booth.weights.load import find, load


class Side:
    """The base stage of if_m, with the network and the weights of a folder.

    Training and the denoiser are the package's own, compiled as its loop and its
    sampler compile them. Parameters are float32; activations are of ``dtype``.
    """

    def __init__(self, folder, inputs, dtype, steps):
        cpu_flags.prefer_speed(os.environ)
        if dtype == "float32":  # and not TF32, nor on the other side
            jax.config.update("jax_default_matmul_precision", "highest")
        self._folder, self._inputs, self._dtype = folder, inputs, jnp.dtype(dtype)
        self._mesh, self._steps = sharding.make_mesh(), steps

    def load(self):
        """Seconds it takes to have the weights on the device."""
        start = time.perf_counter()
        known = by_name("if_m")
        found = find(known, "base", self._folder)
        assert found is not None
        cascade = known.having(found.describes)
        self._stage = cascade.stage("base")
        self._part = load(cascade, "base", self._folder, self._mesh, self._dtype)
        jax.block_until_ready(self._part.params)
        return time.perf_counter() - start

    def output(self):
        """The network's answer to the first row, [H, W, 6]."""
        x, at, text = (self._inputs[name][:1] for name in ("noisy", "time", "text"))
        out = jax.jit(self._part.apply)(self._part.params, x, at, text, None, None)
        return np.asarray(out)[0]

    def prepare_train(self):
        """Compiles a training step; floating-point operations of one."""
        tuning = to_job(dreambooth("if_m")).base
        optimizer = optimizers.build(tuning.optim, tuning.steps)
        stage, apply = self._stage, self._part.apply
        text = self._inputs["text"]
        rows = len(text)
        batch = {
            "image": self._inputs["image"],
            "text": text,
            "text_mask": np.ones(text.shape[:2], bool),
            "weight": np.full(rows, 1 / rows, np.float32),
            "group": np.full(rows, train_step.SUBJECT, np.int32),
        }
        batch = sharding.put_rows(batch, self._mesh)

        def loss(params, batch, key):
            config = train_step.LossConfig()
            return train_step.batch_loss(stage, apply, None, config, params, batch, key)

        step = train_step.make_step(loss, optimizer, seed=0)
        params = {"unet": self._part.params}
        start = finetune.initial_state(params, optimizer, False, self._mesh)
        del self._part  # its arrays, which training gives to the state
        state = start.make()
        program = jax.jit(step, donate_argnums=0).lower(state, batch).compile()

        def run():
            nonlocal state
            state, metrics = program(state, batch)
            assert bool(metrics["finite"])

        self._run = run
        return jaxpr_cost.count_flops(step, start.abstract, batch)

    def prepare_denoise(self):
        """Compiles a guided call of the denoiser; operations of one."""
        names = "noisy", "text", "null"
        inputs = [jnp.asarray(self._inputs[name]) for name in names]
        mask = jnp.ones(inputs[1].shape[:2], bool)
        config = SamplerConfig(guidance=7.0, threshold="none")
        stage, apply = self._stage, self._part.apply

        def step(params, noisy, text, null):
            denoise = guided_denoiser(
                stage,
                lambda *inputs: apply(params, *inputs),
                *(text, mask, null, mask),
                None,
                config,
            )
            return denoise(noisy, jnp.float32(500))

        params = self._part.params
        program = jax.jit(step).lower(params, *inputs).compile()
        self._run = lambda: jax.block_until_ready(program(params, *inputs))
        return jaxpr_cost.count_flops(step, params, *inputs)

    def prepare_sample(self):
        """Compiles the sampler by sampling a batch; counts the operations of one."""
        config = dataclasses.replace(
            to_job(dreambooth("if_m")).pictures.base, steps=self._steps
        )
        text, null = self._inputs["text"], self._inputs["null"]
        mask = np.ones(text.shape[1], bool)
        prompts, nulls = (
            [Embedding(row, mask) for row in rows] for rows in (text, null)
        )
        self._run = lambda: cascade_sampler.sample_stage(
            *(self._stage, self._part, self._part.params, config),
            *(prompts, nulls, range(len(text))),
            mesh=self._mesh,
        )
        parameters = self._part.params
        inputs = cascade_sampler.sampler_inputs(
            prompts, nulls, range(len(text)), None, 0.0, rows=None, devices=1
        )
        program = cascade_sampler.sampler_program(self._stage, self._part.apply, config)
        return jaxpr_cost.count_flops(
            lambda params: program(params, **inputs), parameters
        )

    def seconds(self, runs):
        """Time of one run of what was prepared."""
        start = time.perf_counter()
        for _ in range(runs):
            self._run()
        return (time.perf_counter() - start) / runs

    def prepare_product(self, size):
        """A product of two square matrices; operations of one."""
        a = jnp.ones((size, size), self._dtype)
        product = jax.jit(jnp.matmul)
        self._run = lambda: product(a, a).block_until_ready()
        return 2 * size**3

    def device_memory(self):
        """Peak in bytes; None where the device is the host."""
        stats = jax.local_devices()[0].memory_stats() or {}
        return stats.get("peak_bytes_in_use")
