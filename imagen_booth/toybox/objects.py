"""Objects: cars, backpacks, clocks and robots."""

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
    glass = Material(colour=(0.32, 0.52, 0.66), gloss=0.9)
    tyre = Material(colour=(0.10, 0.10, 0.11), gloss=0.2)
    cap = Material(colour=hub, gloss=0.8)
    lamp = Material(colour=(1.0, 0.95, 0.75), gloss=0.9, glow=0.35)
    rear_lamp = Material(colour=(0.85, 0.08, 0.08), gloss=0.8, glow=0.2)

    floor, end = wheel * 0.95, 0.82 * long_
    deck, mid = floor + 0.48, floor + 0.24
    body = Build()
    body.box((0.0, mid, 0.0), (0.46, 0.24, end), lower, round=1.42)
    cabin = (0.38, 0.24 * tall, 0.47 * long_)
    body.box((0.0, deck + 0.19 * tall, back), cabin, glass, round=1.34)
    cover = (0.375, 0.10 * tall, 0.42 * long_)
    body.box((0.0, deck + 0.36 * tall, back), cover, roof, round=1.42)
    for s in _SIDES:
        for z in (0.50 * long_, -0.50 * long_):
            outer = (s * 0.52, wheel, z)
            body.tube((s * 0.36, wheel, z), outer, wheel, tyre)
            body.tube(outer, add(outer, (s * 0.02, 0.0, 0.0)), wheel * 0.55, cap)
        at = (s * 0.28, mid + 0.06, end - 0.03)
        body.ball(at, (lamp_size, lamp_size, 0.06), lamp)
        if face:
            pupil = (lamp_size * 0.45, lamp_size * 0.45, 0.03)
            body.ball(add(at, (0.0, 0.0, 0.045)), pupil, EYE)
        body.ball((s * 0.34, mid + 0.02, -end + 0.03), (0.07, 0.06, 0.04), rear_lamp)
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
        face=((0.0, mid + 0.10, end + 0.06), 0.26),
    )
    return Body(shapes=body, fit=fit)


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
        face=((0.0, 1.50 * h, d + 0.10), 0.24),
    )
    return Body(shapes=body, fit=fit)


def clock(rng: np.random.Generator, name: str, pose: Pose) -> Body:
    """An alarm clock: two bells, a handle, feet, and hands at the owner's hour."""
    paint = shade(rng, COLOURS[name])
    trim = contrast(rng, name) if rng.random() < 0.4 else vivid(rng, name)
    hour, minute = rng.uniform(0.0, 360.0), 30.0 * rng.integers(12)
    dial = pick(rng, CREAM, (0.98, 0.98, 0.97), (0.80, 0.90, 0.95), (0.97, 0.90, 0.62))
    bells_brass, feet_trim, smile = rng.random(3) < (0.6, 0.5, 0.35)
    bell_size, rim = rng.uniform(0.85, 1.2), rng.uniform(0.06, 0.11)

    shell = Material(colour=paint, gloss=0.7)
    edge = Material(colour=trim, gloss=0.7)
    bell = _BRASS if bells_brass else edge
    face = Material(colour=dial, second=(0.10, 0.10, 0.14), texture="dial", gloss=0.2)
    r, middle = 0.56, 0.70
    body = Build()
    body.tube((0.0, middle, -0.20), (0.0, middle, 0.20), r, shell)
    body.ball((0.0, middle, 0.20), (r, 0.08, r), shell, pitch=90.0)
    body.tube((0.0, middle, 0.20), (0.0, middle, 0.275), r - rim, face)
    hands = ((hour, 0.26, 0.036), (minute, 0.37, 0.026))
    for turn, length, thick in hands:
        hand = Build()
        hand.box((0.0, length / 2, 0.285), (thick, length / 2 + 0.03, 0.012), EYE)
        body += moved(hand, rotation(roll=-turn), (0.0, middle, 0.0))
    body.ball((0.0, middle, 0.29), (0.05, 0.05, 0.03), edge)
    if smile:
        for s in _SIDES:
            body.ball((s * 0.16, middle + 0.14, 0.275), (0.045, 0.06, 0.02), EYE)
    for s in _SIDES:
        at = (s * 0.30, middle + r + 0.02, 0.0)
        size = 0.21 * bell_size
        body.ball(at, (size, size, size), bell, roll=s * -28.0, low=-0.1)
        body.ball(add(at, (s * 0.10, size * 0.92, 0.0)), 0.045, edge)
        foot = (s * 0.40, 0.04, 0.0)
        body.tube(foot, (s * 0.28, 0.30, 0.0), 0.07, edge if feet_trim else _CHROME)
        body.ball(foot, 0.085, edge if feet_trim else _CHROME)
    body.tube(
        (0.0, middle + r - 0.05, 0.0), (0.0, middle + r + 0.20, 0.0), 0.03, _CHROME
    )
    body.ball((0.0, middle + r + 0.22, 0.0), (0.09, 0.06, 0.06), _CHROME)
    body.ball((0.0, middle, -0.21), (r * 0.9, 0.07, r * 0.9), edge, pitch=90.0)
    body.ball((0.0, middle, -0.29), (0.10, 0.10, 0.05), _BRASS)
    fit = Fit(
        crown=((0.0, middle + r + 0.16, 0.0), 0.36),
        neck=((0.0, middle + r + 0.02, 0.0), 0.22),
        face=((0.0, middle + 0.13, 0.30), 0.20),
    )
    return Body(shapes=body, fit=fit)


def robot(rng: np.random.Generator, name: str, pose: Pose) -> Body:
    """A tin robot: box head with lamps for eyes, antennae, a panel, round hands."""
    paint = shade(rng, COLOURS[name])
    trim = contrast(rng, name) if rng.random() < 0.4 else vivid(rng, name)
    lamp = pick(rng, (0.55, 0.95, 1.0), (1.0, 0.85, 0.35), (0.65, 1.0, 0.55))
    antennae, mouth = pick(rng, 1, 2), pick(rng, "grille", "bar", "none")
    panel = pick(rng, "buttons", "gauge", "heart")
    wide, tall = rng.uniform(0.85, 1.15), rng.uniform(0.85, 1.15)
    head_wide = rng.uniform(0.9, 1.2)
    wheels = rng.random() < 0.3
    colours = [vivid(rng, name) for _ in range(3)]

    shell = Material(colour=paint, gloss=0.65)
    edge = Material(colour=trim, gloss=0.65)
    glow = Material(colour=lamp, glow=0.55, gloss=0.9)
    w, h = 0.34 * wide, 0.31 * tall
    hip = 0.32
    body = Build()
    body.box((0.0, hip + h, 0.0), (w, h, 0.24), shell, round=1.5)
    board = Material(colour=CREAM, gloss=0.3)
    chest = (0.0, hip + h + 0.04, 0.235)
    body.box(chest, (w * 0.66, h * 0.52, 0.02), board, round=1.6)
    if panel == "buttons":
        for i, colour in enumerate(colours):
            at = add(chest, ((i - 1.0) * w * 0.38, 0.0, 0.03))
            body.ball(at, 0.05, Material(colour=colour, gloss=0.6))
    elif panel == "gauge":
        body.ball(add(chest, (0.0, 0.0, 0.02)), (0.11, 0.11, 0.02), edge)
        body.box(add(chest, (0.02, 0.03, 0.045)), (0.012, 0.06, 0.01), EYE, roll=-35.0)
    else:
        heart = Material(colour=(0.90, 0.20, 0.30), gloss=0.5)
        for s in _SIDES:
            at = add(chest, (s * 0.045, 0.03, 0.02))
            body.ball(at, (0.06, 0.085, 0.03), heart, roll=s * -38.0)
        body.ball(add(chest, (0.0, -0.02, 0.02)), (0.055, 0.07, 0.03), heart)
    for s in _SIDES:
        if wheels:
            body.tube((s * 0.10, 0.17, 0.0), (s * 0.28, 0.17, 0.0), 0.17, EYE)
            body.tube((s * 0.28, 0.17, 0.0), (s * 0.30, 0.17, 0.0), 0.09, edge)
        else:
            body.tube(
                (s * w * 0.5, 0.08, 0.0), (s * w * 0.5, hip + 0.1, 0.0), 0.09, _CHROME
            )
            body.box((s * w * 0.55, 0.075, 0.05), (0.15, 0.075, 0.20), edge, round=1.5)
        lift = 0.10 * pose.wag * s
        shoulder = (s * (w + 0.03), hip + 2 * h - 0.12, 0.0)
        hand = (s * (w + 0.20), hip + h - 0.12 + lift, 0.14)
        body.ball(shoulder, 0.10, edge)
        body.tube(shoulder, hand, 0.055, _CHROME)
        body.ball(hand, 0.10, edge)
    head = Build()
    hw, hh = 0.30 * head_wide, 0.24
    head.box((0.0, 0.0, 0.0), (hw, hh, 0.24), shell, round=1.5)
    for s in _SIDES:
        head.tube(
            (s * hw * 0.46, 0.05, 0.20), (s * hw * 0.46, 0.05, 0.26), 0.092, _CHROME
        )
        head.ball((s * hw * 0.46, 0.05, 0.26), (0.07, 0.07, 0.03), glow)
        head.ball((s * hw * 0.46, 0.05, 0.285), (0.03, 0.03, 0.012), EYE)
        head.tube((s * hw, 0.0, 0.0), (s * (hw + 0.06), 0.0, 0.0), 0.09, edge)
        if antennae == 2:
            tip = (s * 0.20, hh + 0.22, 0.0)
            head.tube((s * 0.14, hh - 0.02, 0.0), tip, 0.02, _CHROME)
            head.ball(tip, 0.055, glow)
    if antennae == 1:
        head.tube((0.0, hh - 0.02, 0.0), (0.0, hh + 0.22, 0.0), 0.022, _CHROME)
        head.ball((0.0, hh + 0.24, 0.0), 0.065, glow)
    if mouth == "grille":
        lines = Material(
            colour=(0.12, 0.12, 0.14), second=STEEL, texture="stripes",
            scale=9.0, axis=(1.0, 0.0, 0.0),
        )  # fmt: skip
        head.box((0.0, -0.12, 0.235), (hw * 0.55, 0.05, 0.02), lines)
    elif mouth == "bar":
        head.box((0.0, -0.12, 0.235), (hw * 0.5, 0.025, 0.02), EYE)
    neck = hip + 2 * h
    body.tube((0.0, neck - 0.04, 0.0), (0.0, neck + 0.10, 0.0), 0.12, _CHROME)
    centre = (0.0, neck + 0.08 + hh, 0.0)
    body += moved(head, pose.head, centre)
    fit = Fit(
        crown=(add(centre, (0.0, hh - 0.02, 0.0)), hw * 1.0),
        neck=((0.0, neck + 0.05, 0.0), 0.26),
        face=(add(centre, (0.0, 0.05, 0.27)), hw * 0.46),
    )
    return Body(shapes=body, fit=fit)
