"""CLIP's tokens of prompts, by the tokenizer file beside its weights."""

from collections.abc import Sequence

import numpy as np
from etils import epath

from imagen_booth.errors import InputError
from imagen_booth.models.vit import TextConfig

FILE = "tokenizer.json"
END = "<|endoftext|>"


def encode(source: str, prompts: Sequence[str], config: TextConfig) -> np.ndarray:
    """Token ids, int32 [N, length], with start and end, padded with end tokens.

    Longer prompts are truncated as CLIP does it, before the end token.

    Args:
        source: Folder of the weights, or a file in it. For ``random`` weights, which
            have no vocabulary, the tokens are the bytes of the prompt.
        prompts: N prompts.
        config: The text encoder, with its vocabulary and length.

    Raises:
        InputError: The tokenizers package is not installed, there is no
            ``tokenizer.json``, or it belongs to another network.
    """
    end = config.vocab - 1
    if source == "random":
        tokens = np.full((len(prompts), config.length), end, np.int32)
        for row, prompt in zip(tokens, prompts, strict=True):
            ids = list(prompt.encode())[: config.length - 1]
            row[: len(ids)] = ids
        return tokens
    try:
        import tokenizers
    except ImportError as error:
        raise InputError(
            "CLIP-T reads prompts with the tokenizers package; install it "
            "(pip install 'imagen_booth[eval]')"
        ) from error
    place = epath.Path(source)
    path = (place.parent if place.suffix == ".safetensors" else place) / FILE
    if not path.exists():
        raise InputError(
            f"{path} does not exist; CLIP-T needs CLIP's tokenizer beside its weights, "
            "download it from the hub's repository"
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_str(path.read_text())
    except Exception as error:  # the package raises no narrower one
        raise InputError(f"{path} is not a tokenizer ({error}); copy it again") from (
            error
        )
    if (tokenizer.get_vocab_size(), tokenizer.token_to_id(END)) != (config.vocab, end):
        raise InputError(
            f"{path} has {tokenizer.get_vocab_size()} tokens, and {END} has id "
            f"{tokenizer.token_to_id(END)}; this CLIP has {config.vocab}, and its last "
            "token ends a text: copy the tokenizer of the same model"
        )
    tokenizer.enable_truncation(config.length)
    tokenizer.enable_padding(pad_id=end, pad_token=END, length=config.length)
    encoded = tokenizer.encode_batch(list(prompts))
    return np.array([each.ids for each in encoded], np.int32)
