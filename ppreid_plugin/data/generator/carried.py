"""What a person carries: backpack, handbag, crossbody bag, suitcase."""

from __future__ import annotations

from ppreid_plugin.data.generator.canvas import Canvas, scaled_color
from ppreid_plugin.data.generator.pose import Skeleton


def draw_backpack(canvas: Canvas, skeleton: Skeleton) -> None:
    """Draw the sack; the caller draws it before the torso when the person faces the camera, else after."""
    color = skeleton.person.backpack
    deep = -0.115
    top, bottom = skeleton.at(0.0, 0.835, deep), skeleton.at(0.0, 0.585, deep)
    half = skeleton.half_width(0.098, 0.056)
    mid = (0.5 * (top[0] + bottom[0]), 0.5 * (top[1] + bottom[1]))
    tall = 0.5 * (bottom[1] - top[1])
    canvas.ellipse((mid[0], top[1] + 0.45 * tall), (half, 0.45 * tall), color, 108)
    corners = [(top[0] - half, top[1] + 0.45 * tall), (top[0] + half, top[1] + 0.45 * tall)]
    corners += [(bottom[0] + half, bottom[1]), (bottom[0] - half, bottom[1])]
    canvas.polygon(corners, color, 108)
    canvas.ellipse((mid[0] + 0.25 * half * canvas.light, mid[1]), (0.6 * half, 0.75 * tall), color, 136)
    if skeleton.cos < 0.3:  # pocket and its zip
        low = (mid[0], mid[1] + 0.55 * tall)
        canvas.ellipse(low, (0.72 * half, 0.34 * tall), scaled_color(color, 0.78), 122)
        canvas.line(
            (low[0] - 0.5 * half, low[1] - 0.1 * tall), (low[0] + 0.5 * half, low[1] - 0.1 * tall), (190, 190, 190), 0.8
        )


def draw_backpack_straps(canvas: Canvas, skeleton: Skeleton) -> None:
    """The two straps on the chest, seen from the front."""
    if skeleton.cos < 0.15:
        return
    width = skeleton.person.width
    for side in (-1, 1):
        a = skeleton.at(side * 0.070 * width, 0.845, 0.03)
        b = skeleton.at(side * 0.078 * width, 0.66, 0.07)
        canvas.line(a, b, skeleton.person.backpack, skeleton.px(0.022), 118)


def draw_hand_luggage(canvas: Canvas, skeleton: Skeleton, side: int) -> None:
    """Handbag or suitcase in the hand of ``side`` (+1 the left hand), drawn just before that arm."""
    person = skeleton.person
    kind = person["bag"]
    if kind not in ("handbag", "suitcase") or person.side != side:
        return
    left, y, z = skeleton.joints["left_hand" if side == 1 else "right_hand"]
    hand = skeleton.at(left, y, z)
    if kind == "handbag":
        half, tall, gap = skeleton.half_width(0.045, 0.095), skeleton.px(0.125), skeleton.px(0.055)
        top, bottom = 0.8, 1.0
    else:
        half, tall, gap = skeleton.half_width(0.055, 0.105), skeleton.px(0.27), skeleton.px(0.19)
        top, bottom = 1.0, 1.0
    x, y_top = hand[0], hand[1] + gap
    canvas.line(hand, (x - 0.6 * half * top, y_top), scaled_color(person.bag, 0.6), 1.5)
    canvas.line(hand, (x + 0.6 * half * top, y_top), scaled_color(person.bag, 0.6), 1.5)
    corners = [
        (x - half * top, y_top),
        (x + half * top, y_top),
        (x + half * bottom, y_top + tall),
        (x - half * bottom, y_top + tall),
    ]
    canvas.polygon(corners, person.bag, 112)
    canvas.ellipse((x + 0.2 * half * canvas.light, y_top + 0.5 * tall), (0.55 * half, 0.4 * tall), person.bag, 138)
    if kind == "suitcase":
        for part in (0.3, 0.7):
            level = y_top + part * tall
            canvas.line((x - half, level), (x + half, level), scaled_color(person.bag, 0.55), 1.2)
    else:
        canvas.line(
            (x - 0.85 * half, y_top + 0.35 * tall),
            (x + 0.85 * half, y_top + 0.35 * tall),
            scaled_color(person.bag, 0.6),
            1.5,
        )


def draw_crossbody(canvas: Canvas, skeleton: Skeleton, *, front: bool) -> None:
    """Strap from the other shoulder to a bag on the hip; ``front`` is True when called after the torso."""
    person = skeleton.person
    if person["bag"] != "crossbody":
        return
    side, width = person.side, person.width
    hip = (side * 0.105 * width, 0.515, 0.03)
    near = -hip[0] * skeleton.sin + hip[2] * skeleton.cos > -0.06
    face = 0.075 if skeleton.cos > 0 else -0.075
    if front and abs(skeleton.cos) > 0.1:
        a = skeleton.at(-side * 0.065 * width, 0.848, 0.0)
        middle = skeleton.at(0.01 * side, 0.70, face)
        b = skeleton.at(side * 0.095 * width, 0.55, 0.4 * face)
        canvas.line(a, middle, scaled_color(person.bag, 0.7), skeleton.px(0.016), 124)
        canvas.line(middle, b, scaled_color(person.bag, 0.7), skeleton.px(0.016), 124)
    if front == near:
        x, y = skeleton.at(*hip)
        half, tall = skeleton.half_width(0.038, 0.085), skeleton.px(0.055)
        canvas.polygon(
            [(x - half, y - tall), (x + half, y - tall), (x + half, y + tall), (x - half, y + tall)], person.bag, 112
        )
        canvas.ellipse((x + 0.2 * half * canvas.light, y), (0.55 * half, 0.6 * tall), person.bag, 136)
        canvas.line((x - half, y), (x + half, y), scaled_color(person.bag, 0.6), 1.2)
