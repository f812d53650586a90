"""Objects: cars, backpacks, teapots and vases."""

import numpy as np

from imagen_booth.toybox.bodies import (
    COLOURS,
    CREAM,
    EYE,
    GOLD,
    STEEL,
    Body,
    Fit,
    Pose,
    contrast,
    pick,
    shade,
    vivid,
)
from imagen_booth.toybox.scene import Build, Material, add, moved, rotation

_SIDES = (-1.0, 1.0)
_LEATHER = Material(colour=(0.42, 0.26, 0.14), gloss=0.2)
_BRASS = Material(colour=GOLD, gloss=0.9)
_CHROME = Material(colour=STEEL, gloss=0.9)
_GLASS = Material(colour=(0.32, 0.52, 0.66), gloss=0.9)
_TYRE = Material(colour=(0.10, 0.10, 0.11), gloss=0.2)
_LAMP = Material(colour=(1.0, 0.95, 0.75), gloss=0.9, glow=0.35)
_REAR_LAMP = Material(colour=(0.85, 0.08, 0.08), gloss=0.8, glow=0.2)
_SPOUT_FORWARD = rotation(yaw=-90.0)


def car(rng: np.random.Generator, name: str, pose: Pose) -> Body:
    """A toy car: body, cabin, wheels and lamps; some carry stripes or a case."""
    paint = shade(rng, COLOURS[name])
    dark = name in ("red", "blue", "green", "black", "brown", "purple")
    trim = COLOURS["white"] if dark else shade(rng, (0.16, 0.17, 0.20))
    trim = vivid(rng, name) if rng.random() < 0.4 else trim
    tall, long_ = rng.uniform(0.85, 1.2), rng.uniform(0.9, 1.12)
    wheel, back = rng.uniform(0.17, 0.22), rng.uniform(-0.22, -0.02)
    design = pick(rng, "plain", "band", "two", "roof")
    case, hub = rng.random() < 0.35, pick(rng, STEEL, trim, CREAM)
    lamp_size, face = rng.uniform(0.075, 0.11), rng.random() < 0.7
    case_colour = vivid(rng, name)

    shell = Material(colour=paint, second=trim, gloss=0.7)
    stripe = shell.but(texture="band", axis=(1.0, 0.0, 0.0))
    lower = {
        "plain": shell,
        "band": stripe.but(scale=0.22),
        "two": shell.but(texture="split", axis=(0.0, -1.0, 0.0), offset=0.25),
        "roof": shell,
    }[design]
    roof = shell.but(colour=trim) if design == "roof" else shell
    roof = stripe.but(scale=0.30) if design == "band" else roof
    cap = Material(colour=hub, gloss=0.8)

    floor, end = wheel * 0.95, 0.82 * long_
    deck, mid = floor + 0.48, floor + 0.24
    body = Build()
    body.box((0.0, mid, 0.0), (0.46, 0.24, end), lower, round=1.42)
    cabin = (0.38, 0.24 * tall, 0.47 * long_)
    body.box((0.0, deck + 0.19 * tall, back), cabin, _GLASS, round=1.34)
    cover = (0.375, 0.10 * tall, 0.42 * long_)
    body.box((0.0, deck + 0.36 * tall, back), cover, roof, round=1.42)
    for s in _SIDES:
        for z in (0.50 * long_, -0.50 * long_):
            _add_wheel(body, s, z, wheel, cap)
        _add_lamps(body, s, mid, end, lamp_size, face)
        pillar = (s * 0.372, deck + 0.16 * tall, back - 0.02)
        body.box(pillar, (0.02, 0.19 * tall, 0.035), roof)
    for z in (end - 0.02, -end + 0.02):
        body.box((0.0, floor + 0.09, z), (0.42, 0.055, 0.07), _CHROME, round=1.3)
    top = deck + 0.45 * tall
    if case:
        at = (0.0, top + 0.10, back)
        hide = Material(colour=case_colour, gloss=0.2)
        body.box(at, (0.24, 0.10, 0.22), hide, round=1.4)
        body.box(at, (0.25, 0.11, 0.03), _LEATHER, round=1.5)
        top += 0.20
    fit = Fit(
        crown=((0.0, top - 0.03, back), 0.36),
        neck=((0.0, deck + 0.02, back), 0.50),
    )
    return Body(shapes=body, fit=fit)


def _add_wheel(body: Build, side: float, z: float, radius: float, cap: Material):
    """Adds one wheel of a car that stands on the ground, with its hub cap."""
    outer = (side * 0.52, radius, z)
    body.tube((side * 0.36, radius, z), outer, radius, _TYRE)
    body.tube(outer, add(outer, (side * 0.02, 0.0, 0.0)), radius * 0.55, cap)


def _add_lamps(body: Build, side: float, y: float, end: float, size: float, face: bool):
    """Adds the lamps of one side of a car; with `face`, the front one is an eye."""
    at = (side * 0.28, y + 0.06, end - 0.03)
    body.ball(at, (size, size, 0.06), _LAMP)
    if face:
        pupil = (size * 0.45, size * 0.45, 0.03)
        body.ball(add(at, (0.0, 0.0, 0.045)), pupil, EYE)
    body.ball((side * 0.34, y + 0.02, -end + 0.03), (0.07, 0.06, 0.04), _REAR_LAMP)


def backpack(rng: np.random.Generator, name: str, pose: Pose) -> Body:
    """A backpack: pocket, flap, buckles, straps; some with side pockets or a badge."""
    cloth = shade(rng, COLOURS[name])
    trim = contrast(rng, name) if rng.random() < 0.5 else vivid(rng, name)
    design = pick(rng, "plain", "stripes", "spots", "checks", "two")
    wide, tall, deep = (
        rng.uniform(*b) for b in ((0.88, 1.12), (0.88, 1.12), (0.85, 1.15))
    )
    trimmed = pick(rng, "pocket", "flap", "none")
    side_pockets, badge = rng.random(2) < (0.6, 0.6)
    neutral = contrast(rng, name)
    badge_colour = vivid(rng, name)
    phase, pace = float(rng.uniform(0.0, 9.0)), float(rng.uniform(2.6, 4.5))

    plain = Material(colour=cloth, second=neutral, grain=0.5, gloss=0.1)
    edge = plain.but(colour=trim)
    main = {
        "plain": plain,
        "stripes": plain.but(texture="stripes", scale=pace * 0.8, offset=phase),
        "spots": plain.but(texture="spots", scale=pace, offset=phase),
        "checks": plain.but(texture="checks", scale=pace * 1.5, offset=phase),
        "two": plain.but(texture="split", axis=(0.0, -1.0, 0.0), offset=0.45),
    }[design]
    w, h, d = 0.46 * wide, 0.56 * tall, 0.27 * deep
    flap = edge if trimmed == "flap" else plain
    pocket = edge if trimmed == "pocket" else plain
    body = Build()
    body.box((0.0, h, 0.0), (w, h, d), main, round=1.36)
    body.ball((0.0, 2 * h - 0.20, 0.02), (w * 0.95, 0.30, d * 1.12), flap, low=-0.15)
    front = 0.33 * tall
    body.box((0.0, front, d + 0.05), (w * 0.72, 0.25 * tall, 0.13), pocket, round=1.30)
    body.box((0.0, front + 0.13, d + 0.16), (w * 0.52, 0.018, 0.03), _LEATHER)
    loop = (0.15, 0.05, 0.15)
    body.ball((0.0, 2 * h + 0.10, -0.10), loop, _LEATHER, pitch=90.0, hole=0.66)
    for s in _SIDES:
        x = s * w * 0.45
        body.box((x, 1.36 * h, d + 0.005), (0.045, 0.24, 0.045), _LEATHER, round=1.4)
        body.box((x, 1.14 * h, d + 0.045), (0.07, 0.055, 0.03), _BRASS, round=1.4)
        strap = (s * w * 0.52, 1.05 * h, -d - 0.10)
        body.ball(strap, (0.075, h * 0.72, 0.16), _LEATHER)
        if side_pockets:
            body.ball((s * (w + 0.01), 0.30, 0.0), (0.13, 0.26, d * 0.72), pocket)
    if badge:
        pin = Material(colour=badge_colour, gloss=0.5)
        body.ball((w * 0.30 - 0.02, 0.36 * tall, d + 0.175), (0.075, 0.075, 0.025), pin)
    fit = Fit(
        crown=((0.0, 2 * h + 0.05, 0.02), 0.34),
        neck=((0.0, 1.56 * h, 0.0), w * 0.98),
    )
    return Body(shapes=body, fit=fit)


def teapot(rng: np.random.Generator, name: str, pose: Pose) -> Body:
    """A teapot, spout forward; glazed plain, banded, spotted, striped or checked."""
    glaze = shade(rng, COLOURS[name])
    neutral = contrast(rng, name)
    trim = neutral if rng.random() < 0.5 else vivid(rng, name)
    design = pick(rng, "plain", "band", "spots", "stripes", "checks")
    wide, tall = rng.uniform(0.90, 1.12), rng.uniform(0.82, 1.18)
    spout_up, lid_high = rng.uniform(0.75, 1.2), rng.uniform(0.7, 1.4)
    trim_lid, trim_handle, round_knob = rng.random(3) < (0.5, 0.5, 0.6)
    phase, pace = float(rng.uniform(0.0, 9.0)), float(rng.uniform(2.6, 4.2))

    china = Material(colour=glaze, second=neutral, gloss=0.85)
    edge = china.but(colour=trim)
    across = china.but(texture="stripes", scale=pace * 0.8, axis=(1.0, 0.0, 0.0))
    belly = {
        "plain": china,
        "band": china.but(texture="band", scale=0.20, offset=0.05),
        "spots": china.but(texture="spots", scale=pace, offset=phase),
        "stripes": across.but(offset=phase),
        "checks": china.but(texture="checks", scale=pace * 1.6, offset=phase),
    }[design]
    r, h = 0.52 * wide, 0.46 * tall
    middle = h * 0.92 + 0.05
    top = middle + h * 0.86
    knob = top + 0.14 * lid_high + 0.05
    handle = edge if trim_handle else china
    # Built with the spout to the right, then turned.
    pot = Build()
    pot.tube((0.0, 0.0, 0.0), (0.0, 0.10, 0.0), r * 0.62, edge, taper=0.9)
    pot.ball((0.0, middle, 0.0), (r, h, r), belly)
    lid = (r * 0.58, 0.17 * lid_high, r * 0.58)
    pot.ball((0.0, top - 0.02, 0.0), lid, edge if trim_lid else china, low=0.0)
    pot.tube((0.0, top - 0.05, 0.0), (0.0, top, 0.0), r * 0.63, edge)
    pot.ball((0.0, knob, 0.0), (0.085, 0.085 if round_knob else 0.12, 0.085), edge)
    root, mouth = (
        (r * 0.75, middle - 0.10, 0.0),
        (r + 0.26, middle + 0.3 * spout_up, 0.0),
    )
    pot.tube(root, mouth, 0.15, china, taper=0.62)
    pot.ball(
        (r + 0.27, middle + 0.32 * spout_up, 0.0), (0.11, 0.045, 0.10), edge, roll=-35.0
    )
    pot.ball(
        (-r - 0.08, middle + 0.05, 0.0),
        (0.29, 0.07, 0.33),
        handle,
        pitch=90.0,
        hole=0.72,
    )
    fit = Fit(
        crown=((0.0, knob, 0.0), 0.30),
        neck=((0.0, top - 0.10, 0.0), r * 0.72),
    )
    return Body(shapes=moved(pot, _SPOUT_FORWARD), fit=fit)


def vase(rng: np.random.Generator, name: str, pose: Pose) -> Body:
    """A vase with three flowers; round or slim, painted in one of five designs."""
    glaze = shade(rng, COLOURS[name])
    neutral = contrast(rng, name)
    design = pick(rng, "plain", "band", "spots", "stripes", "checks")
    wide, tall = rng.uniform(0.78, 1.15), rng.uniform(0.85, 1.2)
    neck_wide = rng.uniform(0.8, 1.25)
    petals = (vivid(rng, name), vivid(rng, name))
    phase, pace = float(rng.uniform(0.0, 9.0)), float(rng.uniform(2.6, 4.2))
    handles, rim_neutral = rng.random(2) < (0.4, 0.5)

    china = Material(colour=glaze, second=neutral, gloss=0.75)
    belly = {
        "plain": china,
        "band": china.but(texture="band", scale=0.18, offset=0.1),
        "spots": china.but(texture="spots", scale=pace, offset=phase),
        "stripes": china.but(texture="stripes", scale=pace * 0.8, offset=phase),
        "checks": china.but(texture="checks", scale=pace * 1.6, offset=phase),
    }[design]
    rim = china.but(colour=neutral) if rim_neutral else china
    r, h = 0.40 * wide, 0.38 * tall
    top, neck = 2 * h + 0.22, 0.15 * neck_wide
    body = Build()
    body.tube((0.0, 0.0, 0.0), (0.0, 0.12, 0.0), r * 0.66, rim, taper=0.8)
    body.ball((0.0, h + 0.04, 0.0), (r, h, r), belly)
    body.tube((0.0, 2 * h - 0.14, 0.0), (0.0, top, 0.0), neck * 1.1, china, taper=0.9)
    body.tube((0.0, top - 0.05, 0.0), (0.0, top + 0.04, 0.0), neck, rim, taper=1.5)
    if handles:
        for s in _SIDES:
            at = (s * (neck + 0.13), 2 * h - 0.02, 0.0)
            body.ball(at, (0.15, 0.05, 0.19), china, pitch=90.0, hole=0.68)
    stalk = Material(colour=(0.22, 0.50, 0.20))
    heart = Material(colour=(0.98, 0.80, 0.22))
    tips = ((-0.22, 0.34, 0.02), (0.24, 0.30, 0.0), (0.02, 0.52, -0.06))
    for i, tip in enumerate(tips):
        head = (tip[0], top + tip[1], tip[2])
        body.tube((tip[0] * 0.2, top - 0.1, 0.0), head, 0.022, stalk)
        flower = Build()
        petal = Material(colour=petals[i % 2])
        for j in range(5):
            leaf = Build()
            leaf.ball((0.0, 0.12, 0.0), (0.075, 0.10, 0.035), petal)
            flower += moved(leaf, rotation(roll=72.0 * j))
        flower.ball((0.0, 0.0, 0.02), (0.065, 0.065, 0.05), heart)
        body += moved(flower, rotation(yaw=60.0 * tip[0], pitch=-12.0), head)
    fit = Fit(
        crown=((0.0, top + 0.30, 0.0), 0.30),
        neck=((0.0, top - 0.08, 0.0), neck * 1.35),
    )
    return Body(shapes=body, fit=fit)
