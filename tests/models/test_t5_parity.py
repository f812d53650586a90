"""The text side against transformers and diffusers, with random weights."""

import random
import re
import string

import jax.numpy as jnp
import numpy as np
import pytest
from paths import SHARED

from imagen_booth.models.t5 import T5Config, T5Encoder
from imagen_booth.text import caption_cleaning
from imagen_booth.text.tokenizer import Tokenizer

pytestmark = [
    pytest.mark.parity,
    # The reference packages warn of their own and each other's deprecations.
    pytest.mark.filterwarnings("ignore"),
]

SHARED = SHARED / "data"


def reference_encoder(config):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=config.vocab,
            d_model=config.width,
            d_kv=config.head_width,
            d_ff=config.hidden,
            num_layers=config.layers,
            num_heads=config.heads,
            feed_forward_proj="gated-gelu",
        )
    ).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def params_of(model, layers):
    """Our params from the reference's; kernels and the bias table are transposed."""
    weights = {name: value.numpy() for name, value in model.state_dict().items()}

    def leaf(kind, name):
        value = weights[f"{name}.weight"]
        return {kind: jnp.asarray(value if kind != "kernel" else value.T)}

    def layer(i):
        first, second = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        attention = zip(("query", "key", "value", "out"), "qkvo", strict=True)
        return {
            "pre_attention_layer_norm": leaf("scale", f"{first}.layer_norm"),
            "attention": {
                ours: leaf("kernel", f"{first}.SelfAttention.{theirs}")
                for ours, theirs in attention
            },
            "pre_mlp_layer_norm": leaf("scale", f"{second}.layer_norm"),
            "mlp": {
                name: leaf("kernel", f"{second}.DenseReluDense.{name}")
                for name in ("wi_0", "wi_1", "wo")
            },
        }

    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return {
        "token_embedder": leaf("embedding", "shared"),
        "relpos_bias": {"rel_embedding": jnp.asarray(weights[bias].T)},
        "encoder_norm": leaf("scale", "encoder.final_layer_norm"),
        **{f"layers_{i}": layer(i) for i in range(layers)},
    }


@pytest.mark.parametrize(
    "config",
    [
        T5Config(97, 24, 3, 10, 40, 2),
        T5Config(211, 64, 2, 16, 96, 24),  # XXL's depth
    ],
    ids=["small", "full depth"],
)
def test_encoder(config):
    torch = pytest.importorskip("torch")
    model = reference_encoder(config)
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, config.vocab, (4, 150))
    for row, length in enumerate((150, 77, 9, 1)):
        tokens[row, length - 1 :] = 0
        tokens[row, length - 1] = 1
    mask = tokens > 0
    mask[1, 3:6] = False  # a mask need not be that of the padding
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask).long()
        ).last_hidden_state.numpy()
    params = params_of(model, config.layers)
    ours = T5Encoder(config).apply(
        {"params": params}, jnp.asarray(tokens, jnp.int32), jnp.asarray(mask)
    )
    error = np.abs(ours - expected).max() / np.abs(expected).max()
    print(f"T5 encoder, {config.layers} layers: relative error {error:.1e}")
    assert error <= 1e-4


def test_tokens_of_the_dreambench_prompts():
    transformers = pytest.importorskip("transformers")
    listed = SHARED / "dreambooth/prompts_and_classes.txt"
    if not listed.exists() or not (SHARED / "t5/spiece.model").exists():
        pytest.skip("no DreamBench prompts or T5 vocabulary in ../shared/data")
    templates = re.findall(r"^'(.+)'\.format", listed.read_text(), re.MULTILINE)
    assert len(templates) == 50
    texts = [template.format("sks", "stuffed animal") for template in templates]
    texts += [text.upper() for text in texts] + ["", "a" * 400, "word " * 90]

    reference = transformers.T5Tokenizer.from_pretrained(SHARED / "t5")
    expected = reference(texts, padding="max_length", max_length=77, truncation=True)
    tokens = Tokenizer(SHARED / "t5/spiece.model", 77).encode(texts)
    np.testing.assert_array_equal(tokens, expected["input_ids"])
    np.testing.assert_array_equal(tokens > 0, expected["attention_mask"])


ODD = r"""
A Dog on the BEACH|  led and trailed  |dog%20on%20the%20beach|cats+and+dogs|50%25 wool
<person> with a dog|photo by <Person>|<PERSON>'s dog|<person >dog|100% cotton|%zz dog
see https://example.com/a/b?c=d now|http://foo.bar/baz dog|https:/x.org/path dog|dog.com
www.example.com dog|www:example dog|visit example.co.uk today|mail joe@example.com now
a.b-c.ru/path/to-x/ cat|it is nice.it is good|see pets.org/dogs, please|x.net
<b>bold</b> dog|<p>one</p><p>two</p>|<script>alert(1)</script>dog|<style>b{}</style>cat
<template>t</template>cat|<!-- hidden --> dog|a <br/> b|1 < 2 and 3 > 2|<unclosed dog
<a href="http://x.com">link</a>|<img src=x.png alt='dog'>|</b> closing|<a@b.com> dog
<![CDATA[data]]> dog|<!DOCTYPE html> dog|<?php echo ?> dog|<scripted>dog</scripted>|<3
<title>in title</title> dog|<textarea>in area</textarea> dog|<script>never closed dog
a &lt;b&gt; c|a &amp;amp; b|a & b|a &amp b|&quot;dog&quot;|&quot dog|caf&eacute; dog
&#100;og &#x64;og|&nbsp;dog&nbsp;|&unknown; dog|dog&amp;amp;cat|&lt;b&gt;dog&lt;/b&gt;
@user a dog|a dog by @user_name!|@ dog|@@twice dog|server 192.168.0.1 down|1.2.3.4.5
1.2.3 version|999.999.999.999|dog 1:30 |dog 1:30|dog 12:45   |time 10:30 am|line\none
#1 dog|#12 dog #123 cat|#1234 dog|#12345 dog|#dog tag|dog#1|123456 dog|12345 dog
dog.jpg|a photo dog.PNG here|file.name.with.dots.pdf end|x/y/z.webp|.mp4 dog|dog.jpgcat
""quoted""|''quoted''|"'mixed'"|"a dog"|'a dog'|"one" and "two"|'a' b 'c'|"a" b
dog... cat|dog.. cat....|... dog|~tilde~|(paren) [brack] {brace}|)( ][ }{ dog|a * b**c
50% off|5 . 6|a . b . c|a .b|a-b-c|a-b-c-d|a-b-c-d-e|a_b_c_d_e|a_b-c_d-e|a - b - c - d
jc6640 dog|jc6640vc dog|6640vc231 dog|abc12 def123|abcd1234 dog|a1b2c3 dog|xxy5syt00 dog
3d dog|dog2 cat2|4k hd dog|r2d2|mp3 player|b2b|x1|free shipping dog|worldwide shipping
worldwide free shipping|free download dog|download free dog|click for details|click here
click on image|png image|png images|jpg photo|jpeg|an eps file|page 1|page 12 of book
pages 12|5x6|10x15 cm|10.5x15.2|5 x 6|a : b|a :b|a: b|a  :  b :c|1,000 dogs|cats,dogs
end.start|a/b|v1.5 dog|dog ,cat|dog , cat|'leading|_leading|,leading|-leading|:leading
;leading|trailing'|trailing_|trailing,|trailing-|trailing:|trailing+|trailing;|.hidden
.|..|-|--|----|'|"|-dog-|--dog--|dog!!!|what?? dog|a dog, (very) cute!|10$ dog|a 3, dog
a olis dog|a [V] dog|a kgfil dog|a zuj dog|a sks dog|shipping|download|pdf|a|
"""

ODD_UNICODE = [
    "\u72d7 dog \u732b",
    "\u337f \u3231 dog",
    "\u31c0\u31c1 stroke",
    "\u31f0\u31f1 kana",
    "\u3400\u3401 ext",
    "\u4dc0\u4dc1 hex",
    "\u3044\u306c dog",
    "a \u2013 b \u2014 c",
    "a\u2010b\u2011c\u2012d",
    "\u2015bar\u2015",
    "\u2e3a\u2e3b",
    "\u30a0 \u3030 \u301c",
    "\uff0dfull\uff0d",
    "\u2212minus\u2212",
    "\u058a \u05be \u1400 \u1806 \u2e17 \u2e1a \u2e40",
    "\ufe31 \ufe32 \ufe58 \ufe63",
    "`back` \u00b4acute\u00b4",
    "\u00abguillemets\u00bb",
    "\u201ccurly\u201d \u2018single\u2019",
    "\u00a8dots\u00a8",
    "it\u2019s a dog\u2019s life",
    "a\u00aeb \u00a92020 dog\u2122",
    "\u2022 bullet \u00b7 dot",
    "\u00ba\u00aa \u00bd \u00be \u00bf \u00a1 \u00a7",
    "\u00c3\u00a9t\u00c3\u00a9 dog",
    "sch\u00c3\u00b6n",
    "\ufb01sh \ufb02ower",
    "\uff46\uff55\uff4c\uff4c \uff57\uff49\uff44\uff54\uff48",
    "10\u044515",
    "10\u00d715",
    "emoji \U0001f436 dog",
    "na\u00efve caf\u00e9 dog",
    "nai\u0308ve",
    "\u2116 5",
    "\u0130stanbul DOG",
    "\u01c5 \u01c6",
    "\u00df STRASSE",
    "zero\u200bwidth",
    "soft\u00adhyphen",
    "non\u00a0breaking",
    "%E7%8B%97 dog",
    "a\nb",
    "tab\tdog",
    "cr\rdog",
    "\x00nul",
    "\x1b[31mred\x1b[0m dog",
    "line\u2028sep",
    "bom\ufeffdog",
]


def test_cleaner():
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("ftfy")
    pytest.importorskip("bs4")
    reference = diffusers.IFPipeline._clean_caption
    corpus = ODD.strip("\n").replace("\n", "|").split("|") + ODD_UNICODE
    assert len(corpus) == len(set(corpus)) >= 200
    rng = random.Random(0)
    characters = (
        string.printable + "\u00e9\u72d7\u2013\u201c\u2019\u00ae" + 4 * " .-'\""
    )
    for _ in range(1000):
        corpus.append(rng.choice(("", " ", ",", " . ")).join(rng.sample(corpus, 2)))
        corpus.append("".join(rng.choices(characters, k=rng.randrange(1, 30))))
    for text in corpus:
        expected = reference(diffusers.IFPipeline, text)
        assert caption_cleaning.clean_once(text) == expected, text
        expected = reference(diffusers.IFPipeline, expected)
        assert caption_cleaning.clean_caption(text) == expected, text
