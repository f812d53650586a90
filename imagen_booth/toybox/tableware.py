"""Tableware: teapots, vases, candles and mugs."""

import numpy as np

from imagen_booth.toybox.bodies import (
    COLOURS,
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
_SPOUT_FORWARD = rotation(yaw=-90.0)


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
        face=((0.0, middle + 0.15, r * 0.96), 0.22),
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
        face=((0.0, h + 0.20, r * 0.98), 0.18),
    )
    return Body(shapes=body, fit=fit)


def candle(rng: np.random.Generator, name: str, pose: Pose) -> Body:
    """A lit candle with drips, in a dish with a handle, on a stem or in the wax."""
    wax = shade(rng, COLOURS[name])
    neutral = contrast(rng, name)
    design = pick(rng, "plain", "plain", "stripes", "band", "spots")
    tall, wide = rng.uniform(0.8, 1.2), rng.uniform(0.85, 1.25)
    dish_colour = pick(rng, GOLD, STEEL, vivid(rng, name))
    drips = [float(rng.uniform(0.0, 360.0)) for _ in range(4)]
    lengths = [float(rng.uniform(0.06, 0.20)) for _ in range(4)]
    phase, stem = float(rng.uniform(0.0, 9.0)), rng.random() < 0.4

    plain = Material(colour=wax, second=neutral, gloss=0.4, glow=0.08)
    slant = plain.but(texture="stripes", scale=3.0, axis=(0.5, 1.0, 0.0))
    body_wax = {
        "plain": plain,
        "stripes": slant.but(offset=phase),
        "band": plain.but(texture="band", scale=0.2),
        "spots": plain.but(texture="spots", scale=4.0, offset=phase),
    }[design]
    dish = Material(colour=dish_colour, gloss=0.85)
    r, base = 0.21 * wide, 0.34 if stem else 0.08
    top = base + 0.78 * tall
    body = Build()
    if stem:
        body.ball((0.0, 0.0, 0.0), (0.34, 0.10, 0.34), dish, low=0.0)
        body.tube((0.0, 0.05, 0.0), (0.0, base, 0.0), 0.07, dish, taper=0.9)
        body.ball((0.0, 0.20, 0.0), (0.11, 0.06, 0.11), dish)
        body.tube(
            (0.0, base - 0.06, 0.0), (0.0, base + 0.05, 0.0), r * 0.9, dish, taper=1.5
        )
    else:
        body.tube((0.0, 0.0, 0.0), (0.0, 0.10, 0.0), 0.34, dish, taper=1.25)
        body.ball((0.48, 0.12, 0.0), (0.14, 0.04, 0.13), dish, pitch=90.0, hole=0.62)
    body.tube((0.0, base, 0.0), (0.0, top, 0.0), r, body_wax)
    body.ball((0.0, top, 0.0), (r * 1.02, 0.06, r * 1.02), plain)
    for angle, length in zip(drips, lengths, strict=True):
        drip = Build()
        drip.ball((0.0, top - length * 0.8, r), (0.05, length, 0.04), plain)
        body += moved(drip, rotation(yaw=angle))
    body.tube((0.0, top, 0.0), (0.0, top + 0.12, 0.0), 0.018, EYE)
    flame = Material(colour=(1.0, 0.62, 0.14), glow=1.2)
    core = Material(colour=(1.0, 0.92, 0.55), glow=1.4)
    body.ball((0.0, top + 0.20, 0.0), (0.095, 0.15, 0.095), flame, casts=False)
    body.tube(
        (0.0, top + 0.24, 0.0),
        (0.0, top + 0.46, 0.0),
        0.086,
        flame,
        taper=0.05,
        casts=False,
    )
    body.ball((0.0, top + 0.18, 0.03), (0.055, 0.09, 0.085), core, casts=False)
    fit = Fit(
        crown=((0.0, top + 0.08, 0.0), 0.28),
        neck=((0.0, top - 0.20, 0.0), r * 1.0),
        face=((0.0, top - 0.28, r * 1.05), 0.15),
    )
    return Body(shapes=body, fit=fit)


def mug(rng: np.random.Generator, name: str, pose: Pose) -> Body:
    """A mug of something hot, handle to one side; plain, patterned or with a heart."""
    glaze = shade(rng, COLOURS[name])
    neutral = contrast(rng, name)
    design = pick(rng, "plain", "band", "spots", "stripes", "two", "checks")
    wide, tall = rng.uniform(0.9, 1.12), rng.uniform(0.85, 1.18)
    drink = pick(rng, (0.28, 0.16, 0.09), (0.45, 0.28, 0.16), (0.70, 0.30, 0.12))
    phase, pace = float(rng.uniform(0.0, 9.0)), float(rng.uniform(2.6, 4.2))
    emblem = pick(rng, "none", "heart", "dot")
    emblem_colour = vivid(rng, name)
    taper, trim_handle, foam = rng.uniform(0.95, 1.15), *(rng.random(2) < (0.4, 0.4))

    china = Material(colour=glaze, second=neutral, gloss=0.8)
    outside = {
        "plain": china,
        "band": china.but(texture="band", scale=0.16, offset=-0.35),
        "spots": china.but(texture="spots", scale=pace, offset=phase),
        "stripes": china.but(texture="stripes", scale=pace * 0.7, offset=phase),
        "two": china.but(texture="split", axis=(0.0, -1.0, 0.0), offset=0.35),
        "checks": china.but(texture="checks", scale=pace * 1.5, offset=phase),
    }[design]
    r, h = 0.44 * wide, 1.0 * tall
    body = Build()
    body.tube((0.0, 0.0, 0.0), (0.0, h, 0.0), r, outside, taper=taper, hole=0.84)
    liquid = Material(colour=drink, gloss=0.6)
    body.tube((0.0, 0.02, 0.0), (0.0, h - 0.12, 0.0), r * 0.86, liquid)
    if foam:
        white = Material(colour=(0.97, 0.95, 0.92))
        for x, z in ((-0.12, 0.05), (0.10, -0.08), (0.05, 0.14)):
            body.box(
                (x, h - 0.07, z), (0.08, 0.07, 0.08), white, round=1.35, yaw=40.0 * x
            )
    handle = china.but(colour=neutral) if trim_handle else china
    body.ball(
        (r + 0.12, h * 0.5, 0.0),
        (0.26, 0.075, 0.32 * tall),
        handle,
        pitch=90.0,
        hole=0.70,
    )
    body.tube((0.0, -0.001, 0.0), (0.0, 0.05, 0.0), r * 0.92, handle)
    mark = Material(colour=emblem_colour, gloss=0.6)
    front = (0.0, h * 0.56, r * (1.0 + taper) / 2)
    if emblem == "heart":
        for s in _SIDES:
            at = add(front, (s * 0.08, 0.04, -0.02))
            body.ball(at, (0.10, 0.15, 0.05), mark, roll=s * -38.0)
        body.ball(add(front, (0.0, -0.05, -0.01)), (0.10, 0.12, 0.05), mark)
    elif emblem == "dot":
        body.ball(front, (0.16, 0.16, 0.03), mark)
    fit = Fit(
        crown=((0.0, h - 0.02, 0.0), r * 0.95),
        neck=((0.0, h * 0.70, 0.0), r * 0.98),
        face=((0.0, h * 0.62, r * 1.06), 0.20),
    )
    return Body(shapes=body, fit=fit)
