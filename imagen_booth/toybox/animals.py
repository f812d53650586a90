"""Animals: dogs, cats and ducks."""

from typing import NamedTuple

import numpy as np

from imagen_booth.toybox.bodies import (
    COLOURS,
    CREAM,
    GOLD,
    INK,
    STEEL,
    Body,
    Fit,
    Pose,
    add_eyes,
    contrast,
    pick,
    shade,
    vivid,
)
from imagen_booth.toybox.scene import Build, Material, Vec, add, apply, moved

_SIDES = (-1.0, 1.0)
_PINK = Material(colour=(0.93, 0.58, 0.60))


class _Coat(NamedTuple):
    """Fur of the parts of an animal; legs, neck and ears have `plain`."""

    plain: Material
    trunk: Material
    feet: Material
    face: Material
    snout: Material


def _coat(
    plain: Material,
    pale: Material,
    trunk: Material,
    face: Material,
    pale_feet: bool,
    pale_snout: bool,
) -> _Coat:
    """A coat whose feet and snout are pale or plain."""
    feet, snout = (pale if is_pale else plain for is_pale in (pale_feet, pale_snout))
    return _Coat(plain=plain, trunk=trunk, feet=feet, face=face, snout=snout)


class _Joints(NamedTuple):
    """Where neck and tail join the trunk; `rise` leads from the neck to the head."""

    neck: Vec
    rump: Vec
    rise: Vec


def dog(rng: np.random.Generator, name: str, pose: Pose) -> Body:
    """A dog; individuals differ in ears, muzzle, build, coat, marks and collar."""
    coat = shade(rng, COLOURS[name])
    mark = contrast(rng, name)
    ears = pick(rng, "floppy", "pointed", "folded")
    build, tall = rng.uniform(0.85, 1.2), rng.uniform(0.75, 1.2)
    head_size = rng.uniform(0.92, 1.1)
    snout_long, snout_wide = rng.uniform(0.8, 1.4), rng.uniform(0.85, 1.15)
    pattern = pick(rng, "plain", "spots", "patches", "fade", "split")
    phase = float(rng.uniform(0.0, 9.0))
    pale_snout, pale_feet, pale_chest, tail_tip = rng.random(4) < (0.6, 0.45, 0.5, 0.5)
    ears_differ, eye_patch, marked_ears = rng.random(3) < (0.35, 0.4, 0.4)
    patch_side = float(rng.choice(_SIDES))
    tail = pick(rng, "up", "curl", "long")
    collar = rng.random() < 0.7
    collar_colour, tag_colour = vivid(rng, name), pick(rng, GOLD, STEEL)
    nose_colour = (0.30, 0.16, 0.13) if rng.random() < 0.25 else INK

    plain = Material(colour=coat, second=mark, grain=1.0, gloss=0.08)
    pale = plain.but(colour=mark)
    trunk = {
        "plain": plain,
        "spots": plain.but(texture="spots", scale=4.2, offset=phase),
        "patches": plain.but(texture="patches", scale=5.0, offset=phase),
        "fade": plain.but(texture="fade", colour=mark, second=coat, offset=0.1),
        "split": plain.but(texture="split", axis=(0.0, 0.35, 1.0), offset=0.25),
    }[pattern]
    face = plain
    if eye_patch:
        spot = (0.48 * patch_side, 0.25, 0.80)
        face = plain.but(texture="blob", axis=spot, offset=0.52)
    fur = _coat(plain, pale, trunk, face, pale_feet, pale_snout)
    body, chest = Build(), pale if pale_chest else plain
    joints = _add_dog_trunk(body, pose.stance, 0.29 * build, tall, fur, chest)
    tip = pale if tail_tip else plain
    _add_dog_tail(body, joints.rump, tail, pose.wag, plain, tip)

    half = (0.345 * head_size, 0.315 * head_size, 0.31 * head_size)
    head = _dog_head(half, snout_long, snout_wide, fur, nose_colour)
    for s in _SIDES:
        ear = pale if marked_ears or (ears_differ and s == patch_side) else plain
        _add_dog_ear(head, s, half[0], ears, ear)

    neck, centre = joints.neck, add(joints.neck, joints.rise)
    throat, nape = add(neck, (0.0, -0.16, -0.06)), add(centre, (0.0, -0.06, -0.04))
    body.tube(throat, nape, 0.19, plain, taper=0.95)
    ring = add(neck, (0.0, 0.06, 0.04))
    if collar:
        strap = Material(colour=collar_colour, gloss=0.4)
        body.ball(ring, (0.235, 0.058, 0.225), strap, pitch=24.0)
        tag = Material(colour=tag_colour, gloss=0.9)
        body.ball(add(ring, (0.0, -0.14, 0.20)), (0.058, 0.062, 0.03), tag)
    body += moved(head, pose.head, centre)
    return Body(shapes=body, fit=_fit(pose, centre, half, ring, 0.25, 24.0, 0.92))


def _add_dog_trunk(
    body: Build, stance: str, wide: float, tall: float, fur: _Coat, chest: Material
) -> _Joints:
    """Adds the trunk and the legs of a dog that sits, lies or stands."""
    if stance == "sit":
        body.ball((0.0, 0.50, -0.10), (wide + 0.02, 0.46, 0.34), fur.trunk, pitch=-14.0)
        for s in _SIDES:
            body.ball((s * wide * 0.85, 0.25, -0.10), (0.17, 0.25, 0.30), fur.trunk)
            body.ball((s * wide * 0.95, 0.08, 0.18), (0.12, 0.085, 0.18), fur.feet)
            shoulder = (s * 0.13, 0.56, 0.16)
            body.tube((s * 0.14, 0.06, 0.30), shoulder, 0.095, fur.plain, taper=1.1)
            body.ball((s * 0.14, 0.54, 0.13), (0.12, 0.16, 0.13), fur.plain)
            body.ball((s * 0.14, 0.075, 0.35), (0.11, 0.08, 0.14), fur.feet)
        return _Joints((0.0, 0.86, 0.06), (0.0, 0.18, -0.42), rise=(0.0, 0.30, 0.16))
    if stance == "lie":
        body.ball((0.0, 0.27, -0.18), (wide + 0.05, 0.27, 0.58), fur.trunk)
        for s in _SIDES:
            body.ball((s * (wide + 0.02), 0.17, -0.48), (0.15, 0.18, 0.26), fur.trunk)
            elbow = (s * 0.20, 0.16, 0.10)
            body.tube((s * 0.20, 0.10, 0.50), elbow, 0.085, fur.plain, taper=1.2)
            body.ball((s * 0.20, 0.085, 0.55), (0.11, 0.085, 0.14), fur.feet)
        return _Joints((0.0, 0.44, 0.22), (0.0, 0.24, -0.72), rise=(0.0, 0.16, 0.24))
    spine = 0.40 * tall + 0.24
    body.ball((0.0, spine, -0.12), (wide, 0.27, 0.50), fur.trunk)
    body.ball((0.0, spine + 0.02, 0.14), (wide * 1.02, 0.30, 0.28), chest)
    for s in _SIDES:
        for z in (0.22, -0.42):
            x = s * wide * 0.62
            body.tube((x, 0.05, z), (x, spine, z), 0.10, fur.plain, taper=1.2)
            body.ball((x, 0.075, z + 0.05), (0.115, 0.08, 0.15), fur.feet)
    neck, rump = (0.0, spine + 0.20, 0.26), (0.0, spine + 0.10, -0.56)
    return _Joints(neck, rump, rise=(0.0, 0.30, 0.16))


def _dog_head(half: Vec, long_: float, wide: float, fur: _Coat, nose: Vec) -> Build:
    """A dog's head without ears; `long_` and `wide` are factors for the snout."""
    head = Build()
    head.ball((0.0, 0.0, 0.0), half, fur.face)
    length = 0.17 * long_
    tip = half[2] * 0.72 + length
    snout = (0.165 * wide, 0.13, length + 0.06)
    head.ball((0.0, -0.10, half[2] * 0.75), snout, fur.snout)
    shiny = Material(colour=nose, gloss=0.8)
    head.ball((0.0, -0.035, tip + 0.03), (0.072, 0.055, 0.05), shiny)
    add_eyes(head, half, (0.42, 0.24), 0.062)
    return head


def _add_dog_ear(head: Build, side: float, edge: float, kind: str, skin: Material):
    """Adds the ear of one side; `edge` is half the width of the head."""
    if kind == "floppy":
        flap = (0.085, 0.27, 0.17)
        head.ball((side * (edge + 0.03), 0.0, 0.0), flap, skin, roll=side * 14.0)
    elif kind == "pointed":
        base, top = (side * 0.19, 0.18, 0.0), (side * 0.29, 0.52, -0.02)
        _add_pointed_ear(head, base, top, 0.15, skin, 0.085)
    else:
        fold = (0.20, 0.075, 0.13)
        head.ball((side * 0.31, 0.20, 0.05), fold, skin, roll=side * -38.0)


def _add_dog_tail(
    body: Build, at: Vec, kind: str, wag: float, hair: Material, tip: Material
):
    bends = {
        "curl": ((0.0, 0.14, -0.10), (0.10, 0.26, -0.06), (0.13, 0.28, 0.06)),
        "up": ((0.0, 0.14, -0.12), (0.0, 0.30, -0.18), (0.0, 0.44, -0.18)),
        "long": ((0.0, 0.03, -0.14), (0.0, 0.06, -0.28), (0.0, 0.14, -0.40)),
    }[kind]
    for i, (bend, size) in enumerate(zip(bends, (0.095, 0.085, 0.08), strict=True)):
        swing = (0.11 * (i + 1) * wag, 0.0, 0.0)
        half = (size, size * 1.3, size * 1.3)
        body.ball(add(add(at, bend), swing), half, tip if i == 2 else hair)


def _add_pointed_ear(
    head: Build, base: Vec, top: Vec, radius: float, skin: Material, inner: float
):
    head.tube(base, top, radius, skin, taper=0.07, flat=0.45)
    start, end = add(base, (0.0, 0.02, 0.047)), add(top, (0.0, -0.08, 0.02))
    head.tube(start, end, inner, _PINK, taper=0.1, flat=0.4)


def _fit(
    pose: Pose,
    centre: Vec,
    half: Vec,
    neck: Vec,
    neck_radius: float,
    lean: float,
    hat: float,
) -> Fit:
    """Fit of an animal whose head is the ellipsoid `half` around `centre`."""
    turn = pose.head
    return Fit(
        crown=(add(centre, apply(turn, (0.0, half[1] * 0.86, 0.0))), half[0] * hat),
        neck=(neck, neck_radius),
        turn=turn,
        lean=lean,
    )


def cat(rng: np.random.Generator, name: str, pose: Pose) -> Body:
    """A cat: pointed ears, slit pupils, whiskers; tabby, patched or plain."""
    coat = shade(rng, COLOURS[name])
    mark = contrast(rng, name)
    pattern = pick(rng, "stripes", "stripes", "plain", "patches", "split")
    phase, pace = float(rng.uniform(0.0, 9.0)), float(rng.uniform(3.2, 5.0))
    head_size, slim = rng.uniform(0.95, 1.12), rng.uniform(0.85, 1.15)
    green, amber = (0.45, 0.75, 0.25), (0.95, 0.72, 0.15)
    iris = pick(rng, green, amber, (0.25, 0.62, 0.90), (0.80, 0.45, 0.15))
    pale_snout, pale_feet, pale_chest, tail_tip = rng.random(4) < (0.7, 0.5, 0.6, 0.5)
    ear_tall = rng.uniform(0.85, 1.25)
    collar, collar_colour = rng.random() < 0.5, vivid(rng, name)
    eye_patch, patch_side = rng.random() < 0.35, float(rng.choice(_SIDES))

    plain = Material(colour=coat, second=mark, grain=0.8, gloss=0.08)
    pale = plain.but(colour=mark)
    tabby = plain.but(texture="stripes", scale=pace, axis=(0.0, 0.35, 1.0))
    trunk = {
        "plain": plain,
        "stripes": tabby.but(offset=phase),
        "patches": plain.but(texture="patches", scale=5.5, offset=phase),
        "split": plain.but(texture="split", axis=(0.3, -1.0, 0.4), offset=0.2),
    }[pattern]
    face = plain
    if eye_patch:
        spot = (0.5 * patch_side, 0.35, 0.7)
        face = plain.but(texture="blob", axis=spot, offset=0.6)
    elif pattern == "stripes":
        face = plain.but(texture="band", axis=(1.0, 0.0, 0.0), scale=0.11)
    fur = _coat(plain, pale, trunk, face, pale_feet, pale_snout)
    body = Build()
    joints = _add_cat_trunk(body, pose.stance, 0.25 * slim, fur)
    neck, centre = joints.neck, add(joints.neck, joints.rise)
    if pale_chest:
        body.ball(add(neck, (0.0, -0.20, 0.13)), (0.15, 0.22, 0.12), pale)
    _add_cat_tail(body, joints.rump, pose, trunk, pale if tail_tip else trunk)

    half = (0.37 * head_size, 0.30 * head_size, 0.29 * head_size)
    head = _cat_head(half, ear_tall, fur, iris)
    throat, nape = add(neck, (0.0, -0.14, -0.04)), add(centre, (0.0, -0.06, -0.03))
    body.tube(throat, nape, 0.155, plain)
    ring = add(neck, (0.0, 0.05, 0.03))
    if collar:
        strap = Material(colour=collar_colour, gloss=0.4)
        body.ball(ring, (0.195, 0.05, 0.19), strap, pitch=20.0)
        bell = Material(colour=GOLD, gloss=0.9)
        body.ball(add(ring, (0.0, -0.10, 0.18)), 0.05, bell)
    body += moved(head, pose.head, centre)
    return Body(shapes=body, fit=_fit(pose, centre, half, ring, 0.22, 20.0, 0.86))


def _add_cat_trunk(body: Build, stance: str, wide: float, fur: _Coat) -> _Joints:
    """Adds the trunk and the legs of a cat that stands, lies or sits."""
    if stance == "stand":
        body.ball((0.0, 0.58, -0.12), (wide, 0.23, 0.46), fur.trunk)
        for s in _SIDES:
            for z in (0.20, -0.42):
                x = s * wide * 0.6
                body.tube((x, 0.05, z), (x, 0.58, z), 0.075, fur.plain, taper=1.25)
                body.ball((x, 0.06, z + 0.04), (0.09, 0.065, 0.12), fur.feet)
        return _Joints((0.0, 0.72, 0.24), (0.0, 0.66, -0.52), rise=(0.0, 0.27, 0.12))
    if stance == "lie":
        body.ball((0.0, 0.25, -0.14), (wide + 0.09, 0.25, 0.52), fur.trunk)
        for s in _SIDES:
            body.ball((s * 0.16, 0.07, 0.38), (0.09, 0.07, 0.18), fur.feet)
        return _Joints((0.0, 0.38, 0.22), (0.0, 0.15, -0.60), rise=(0.0, 0.20, 0.18))
    body.ball((0.0, 0.46, -0.10), (wide + 0.05, 0.44, 0.33), fur.trunk, pitch=-10.0)
    for s in _SIDES:
        body.ball((s * (wide + 0.02), 0.20, -0.08), (0.14, 0.21, 0.27), fur.trunk)
        shoulder = (s * 0.10, 0.50, 0.13)
        body.tube((s * 0.11, 0.05, 0.24), shoulder, 0.075, fur.plain, taper=1.15)
        body.ball((s * 0.105, 0.49, 0.11), (0.095, 0.14, 0.105), fur.plain)
        body.ball((s * 0.11, 0.062, 0.28), (0.09, 0.066, 0.12), fur.feet)
    return _Joints((0.0, 0.78, 0.03), (0.0, 0.12, -0.38), rise=(0.0, 0.27, 0.12))


def _add_cat_tail(body: Build, at: Vec, pose: Pose, hair: Material, tip: Material):
    """Adds a tail that is up if the cat stands, and curls round it otherwise."""
    if pose.stance == "stand":
        sway, thick = 0.25 * pose.wag, 0.125
        bends = (
            (0.0, 0.10, -0.10),
            (0.4 * sway, 0.28, -0.16),
            (0.8 * sway, 0.46, -0.15),
            (sway, 0.62, -0.08),
        )
    else:
        thick = 0.075
        bends = (
            (0.20, -0.03, -0.04),
            (0.38, -0.02, 0.08),
            (0.47, -0.01, 0.26),
            (0.44, 0.0, 0.44),
        )
    for i, bend in enumerate(bends):
        half = (0.075, thick, 0.12)
        body.ball(add(at, bend), half, tip if i == 3 else hair)


def _cat_head(half: Vec, ear_tall: float, fur: _Coat, iris: Vec) -> Build:
    """A cat's head with whiskers; `ear_tall` is a factor for the ears' height."""
    head = Build()
    head.ball((0.0, 0.0, 0.0), half, fur.face)
    whisker = Material(colour=CREAM)
    for s in _SIDES:
        cheek = (s * 0.07, -0.115, half[2] * 0.86)
        head.ball(cheek, (0.095, 0.075, 0.085), fur.snout)
        for lift in (-1.0, 1.0):
            root = (s * 0.10, -0.10 + 0.009 * lift, half[2] * 0.95)
            end = (s * 0.44, -0.09 + 0.066 * lift, half[2] * 0.92)
            head.tube(root, end, 0.008, whisker, casts=False)
        base, top = (s * 0.22, 0.16, 0.0), (s * 0.30, 0.16 + 0.32 * ear_tall, 0.0)
        _add_pointed_ear(head, base, top, 0.15, fur.plain, 0.10)
    nose = _PINK.but(gloss=0.5)
    head.ball((0.0, -0.065, half[2] + 0.04), (0.042, 0.032, 0.03), nose)
    add_eyes(head, half, (0.45, 0.16), 0.075, iris=iris)
    return head


def duck(rng: np.random.Generator, name: str, pose: Pose) -> Body:
    """A duck: beak, wings and a turned-up tail; ringed, capped, crested or plain."""
    coat = shade(rng, COLOURS[name])
    mark = contrast(rng, name)
    beak = pick(rng, (0.96, 0.55, 0.12), (0.98, 0.75, 0.15), (0.85, 0.32, 0.18))
    beak = shade(rng, beak, 0.04)
    head_size, plump = rng.uniform(0.9, 1.15), rng.uniform(0.9, 1.15)
    long_ = rng.uniform(0.75, 1.35)
    capped, ringed, wing_marked, crest = rng.random(4) < (0.35, 0.45, 0.55, 0.35)
    wing_striped = rng.random() < 0.4
    phase = float(rng.uniform(0.0, 9.0))
    ring_colour = vivid(rng, name) if rng.random() < 0.5 else mark
    wing_colour = mark if wing_marked else shade(rng, coat, 0.10)

    plain = Material(colour=coat, second=mark, gloss=0.3, grain=0.25)
    wing = plain.but(colour=wing_colour)
    if wing_striped:
        along = (0.0, 0.0, 1.0)
        wing = plain.but(texture="stripes", scale=5.0, axis=along, offset=phase)
    bill = Material(colour=beak, gloss=0.35)
    body = Build()
    body.ball((0.0, 0.52, -0.08), (0.37 * plump, 0.34, 0.50), plain)
    body.ball((0.0, 0.68, -0.54), (0.16, 0.12, 0.22), wing, pitch=32.0)
    for s in _SIDES:
        tilt = {"pitch": 14.0, "roll": s * (12.0 + 14.0 * abs(pose.wag))}
        body.ball((s * 0.35 * plump, 0.58, -0.14), (0.085, 0.20, 0.36), wing, **tilt)
        body.ball((s * 0.16, 0.045, 0.14), (0.13, 0.045, 0.19), bill)
        body.tube((s * 0.16, 0.05, 0.06), (s * 0.16, 0.26, 0.02), 0.05, bill)

    r = 0.315 * head_size
    half = (r, r * 0.98, r)
    head = Build()
    cap = plain.but(texture="split", axis=(0.0, 1.0, -0.25), offset=0.35)
    head.ball((0.0, 0.0, 0.0), half, cap if capped else plain)
    head.ball((0.0, -0.08, r + 0.07 * long_), (0.17, 0.045, 0.16 * long_), bill)
    jaw = (0.0, -0.125, r + 0.04 * long_)
    head.ball(jaw, (0.14, 0.04, 0.13 * long_), bill)
    place = (0.50, 0.26)
    add_eyes(head, half, place, 0.062)
    if crest:
        head.ball((0.0, r * 1.0, -0.08), (0.05, 0.13, 0.09), wing, pitch=-35.0)
        head.ball((0.0, r * 0.93, -0.17), (0.045, 0.10, 0.08), wing, pitch=-60.0)
    centre = (0.0, 1.14, 0.24)
    body.tube((0.0, 0.66, 0.16), (0.0, 1.04, 0.23), 0.19, plain, taper=0.85)
    if ringed:
        ring = Material(colour=ring_colour, gloss=0.3)
        body.ball((0.0, 0.87, 0.205), (0.205, 0.05, 0.205), ring)
    body += moved(head, pose.head, centre)
    neck = (0.0, 0.86, 0.20)
    return Body(shapes=body, fit=_fit(pose, centre, half, neck, 0.22, 0.0, 0.92))
