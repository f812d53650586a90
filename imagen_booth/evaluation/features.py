"""Features of pictures and prompts, computed once and cached on disk.

The cache has one folder per network, preprocessing and weights, and in it one file per
picture, named by a digest of its pixels. Pictures are read one by one, so a long list
of large pictures need not fit in memory.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from etils import epath

from imagen_booth.distributed import sharding
from imagen_booth.evaluation import clip_tokenizer, preprocess
from imagen_booth.models.vit import CLIPConfig
from imagen_booth.storage import from_cache, read_array, write_array
from imagen_booth.weights import vision
from imagen_booth.weights.load import Part

ROWS = 16  # pictures or prompts in a batch, or the next multiple of the devices


def of_images(
    network: Part,
    pictures: Iterable[np.ndarray],
    *,
    cache: epath.Path,
    mesh: jax.sharding.Mesh,
) -> np.ndarray:
    """Features of pictures, not normalised.

    Args:
        network: DINO or CLIP, as ``vision.load`` returns it.
        pictures: At least one picture, uint8 [H, W, 3] in sRGB, of any size.
        cache: Folder of the cache.
        mesh: Devices of the network.

    Returns:
        f32 [N, F], in the order of the pictures.
    """
    known = ((digest(picture), lambda picture=picture: picture) for picture in pictures)
    return of_known(network, known, cache=cache, mesh=mesh)


def of_known(
    network: Part,
    pictures: Iterable[tuple[str, Callable[[], np.ndarray]]],
    *,
    cache: epath.Path,
    mesh: jax.sharding.Mesh,
) -> np.ndarray:
    """``of_images`` for pictures with known digests, which it reads only if needed.

    Args:
        network: DINO or CLIP, as ``vision.load`` returns it.
        pictures: The ``digest`` of each picture, and a function that reads it.
        cache: Folder of the cache.
        mesh: Devices of the network.
    """
    recipe = preprocess.RECIPES[network.name]
    inputs = (
        (key, lambda read=read: preprocess.prepare(read(), recipe))
        for key, read in pictures
    )
    return _rows(network, inputs, _folder(cache, network), mesh)


def of_prompts(
    clip: Part,
    prompts: Sequence[str],
    *,
    cache: epath.Path,
    mesh: jax.sharding.Mesh,
) -> np.ndarray:
    """Features of prompts, f32 [N, F].

    Args:
        clip: CLIP's text tower, as ``vision.text_tower`` returns it.
        prompts: N prompts.
        cache: Folder of the cache.
        mesh: Devices of the network.

    Raises:
        InputError: There is no tokenizer, see ``clip_tokenizer.encode``.
    """
    config = vision.SIZES[clip.name]
    assert isinstance(config, CLIPConfig)
    tokens = clip_tokenizer.encode(clip.source, prompts, config.text)
    inputs = ((f"text_{digest(row)}", lambda row=row: row) for row in tokens)
    return _rows(clip, inputs, _folder(cache, clip), mesh)


def distances(
    lpips: Part, pictures: Sequence[np.ndarray], *, cache: epath.Path
) -> np.ndarray:
    """LPIPS of all pairs of a group of pictures, f32 [N, N], zero on the diagonal.

    Args:
        lpips: LPIPS, as ``vision.load`` returns it.
        pictures: N pictures, uint8 [H, W, 3], such as those of one prompt. The group
            is computed and cached as a whole.
        cache: Folder of the cache.
    """
    keys = "".join(digest(picture) for picture in pictures)
    name = hashlib.sha256(keys.encode()).hexdigest()[:24]
    path = _folder(cache, lpips) / f"{name}.npy"
    values = from_cache(path, read_array)
    if values is None:
        recipe = preprocess.RECIPES[lpips.name]
        pixels = np.stack([preprocess.prepare(each, recipe) for each in pictures])
        values = np.asarray(lpips.apply(lpips.params, pixels))
        write_array(path, values)
    return values


def digest(array: np.ndarray) -> str:
    """A digest of the dtype, shape and content of an array, 24 hex digits."""
    hashed = hashlib.sha256(f"{array.dtype} {array.shape};".encode())
    hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()[:24]


def _rows(
    network: Part,
    inputs: Iterable[tuple[str, Callable[[], np.ndarray]]],
    folder: epath.Path,
    mesh: jax.sharding.Mesh,
) -> np.ndarray:
    """Features in the order of the keys: from disk, else computed in full batches."""
    rows = -(-ROWS // mesh.size) * mesh.size
    order: list[str] = []
    found: dict[str, np.ndarray] = {}
    waiting: dict[str, np.ndarray] = {}

    def compute() -> None:
        # The last batch is padded by repetition, so that one program is compiled.
        computed = np.stack(list(waiting.values()))
        filled = np.resize(computed, (rows, *computed.shape[1:]))
        batch = sharding.put_rows(filled, mesh)
        values = sharding.fetch(network.apply(network.params, batch))
        for key, value in zip(waiting, values, strict=False):
            write_array(folder / f"{key}.npy", value)
            found[key] = value
        waiting.clear()

    for key, make in inputs:
        order.append(key)
        if key in found or key in waiting:
            continue
        value = from_cache(folder / f"{key}.npy", read_array)
        if value is None:
            waiting[key] = make()
        else:
            found[key] = value
        if len(waiting) == rows:
            compute()
    if waiting:
        compute()
    return np.stack([found[key] for key in order])


def _folder(cache: epath.Path, network: Part) -> epath.Path:
    recipe = preprocess.RECIPES[network.name]
    about = f"{network.name} {network.fingerprint} {recipe}"
    name = hashlib.sha256(about.encode()).hexdigest()[:16]
    return cache / "features" / f"{network.name}_{name}"
