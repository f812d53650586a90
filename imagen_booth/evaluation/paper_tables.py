"""The figures in the tables of the DreamBooth paper, for comparison.

Source: Ruiz et al., arXiv 2208.12242, the later version: Table 1 (30 subjects, 25
prompts, 4 pictures of each) and Table 3 (Imagen, 15 subjects).
"""

TABLE_1 = {
    "Real images": {"dino": 0.774, "clip_i": 0.885},
    "DreamBooth (Imagen)": {"dino": 0.696, "clip_i": 0.812, "clip_t": 0.306},
    "DreamBooth (Stable Diffusion)": {"dino": 0.668, "clip_i": 0.803, "clip_t": 0.305},
    "Textual Inversion (Stable Diffusion)": {
        "dino": 0.569,
        "clip_i": 0.780,
        "clip_t": 0.255,
    },
}
TABLE_3 = {
    "with the prior loss": {
        "pres": 0.493,
        "div": 0.391,
        "dino": 0.684,
        "clip_i": 0.815,
        "clip_t": 0.308,
    },
    "without it": {
        "pres": 0.664,
        "div": 0.371,
        "dino": 0.712,
        "clip_i": 0.828,
        "clip_t": 0.306,
    },
}
