"""Draws one person in one pose: body and garments, back to front; head and carried things come from their modules."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np

from ppreid_plugin.data.generator import carried
from ppreid_plugin.data.generator.canvas import OVERSAMPLING, Canvas, Point, scaled_color
from ppreid_plugin.data.generator.head import Box, Head, draw_head, draw_long_hair
from ppreid_plugin.data.generator.person import Color, Person
from ppreid_plugin.data.generator.pose import Skeleton

LOGO_VISIBLE_FROM = 0.5  # cosine of the yaw
_TILE = 32  # px of the picture that repeats in a pattern
_LOGO_CELL = 0.0128  # side of one of the 5 x 5 cells of a glyph, units of stature
# Height, half width and half depth of the trunk's outline, units of stature.
_TRUNK = (
    (0.868, 0.030, 0.032),
    (0.848, 0.066, 0.045),
    (0.828, 0.106, 0.056),
    (0.760, 0.110, 0.070),
    (0.640, 0.090, 0.066),
    (0.540, 0.096, 0.074),
    (0.500, 0.097, 0.075),
)
_COAT_HEM = ((0.43, 0.108, 0.088), (0.355, 0.118, 0.102))
_SKIRT = {"short": ((0.56, 0.086, 0.070), (0.50, 0.104, 0.088), (0.33, 0.128, 0.118)),
          "long": ((0.56, 0.086, 0.070), (0.50, 0.100, 0.086), (0.12, 0.140, 0.130))}  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """Where the fine cues of a figure are, in pixels; None where they are turned away or hidden by the figure."""

    face: Box | None
    logo: Box | None


def draw_figure(canvas: Canvas, skeleton: Skeleton, *, face: bool = True, logo: bool = True) -> Drawn:
    """Draw the person of ``skeleton`` on ``canvas``.

    Args:
        canvas: an empty canvas.
        skeleton: who, in which pose and view.
        face: False leaves out the face's features; all the rest stays the same (for tests of the boxes).
        logo: False leaves out the badge on the chest, likewise.
    """
    person = skeleton.person
    head = Head(skeleton)
    arms = sorted((_arm_depth(skeleton, name), name) for name in ("left", "right"))
    behind = [name for depth, name in arms if depth < -0.012]
    before = [name for _, name in arms if name not in behind]

    if person["backpack"] == "yes" and skeleton.cos >= 0:
        carried.draw_backpack(canvas, skeleton)
    carried.draw_crossbody(canvas, skeleton, front=False)
    for name in behind:
        _draw_arm(canvas, skeleton, name)
    _draw_legs(canvas, skeleton)
    _draw_trunk(canvas, skeleton)
    logo_box = _draw_logo(canvas, skeleton, drawn=logo)
    logo_before = _crop(canvas, logo_box).copy() if logo_box else None
    if person["backpack"] == "yes":
        carried.draw_backpack_straps(canvas, skeleton)
    carried.draw_crossbody(canvas, skeleton, front=True)
    if person["backpack"] == "yes" and skeleton.cos < 0:
        carried.draw_backpack(canvas, skeleton)
    if skeleton.cos >= -0.2:
        draw_long_hair(canvas, head)
    if skeleton.cos > -0.5:
        neck = skeleton.at(0.0, 0.835, 0.012), skeleton.at(0.0, 0.885, 0.018)
        canvas.limb(*neck, skeleton.px(0.031), skeleton.px(0.029), person.skin)
    face_box = draw_head(canvas, head, features=face)
    face_before = _crop(canvas, face_box).copy() if face_box else None
    for name in before:
        _draw_arm(canvas, skeleton, name)
    return Drawn(
        face=face_box if face_box and _unchanged(canvas, face_box, face_before) else None,
        logo=logo_box if logo_box and _unchanged(canvas, logo_box, logo_before) else None,
    )


def _crop(canvas: Canvas, box: Box) -> np.ndarray:
    left, top, right, bottom = (max(round(v * OVERSAMPLING), 0) for v in box)
    return canvas.color[top:bottom, left:right]


def _unchanged(canvas: Canvas, box: Box, before: np.ndarray | None) -> bool:
    """Whether at least 70 % of a box still show what was drawn there."""
    now = _crop(canvas, box)
    return before is not None and now.size > 0 and float((now == before).all(axis=2).mean()) >= 0.7


def _arm_depth(skeleton: Skeleton, name: str) -> float:
    return 0.5 * (skeleton.depth(f"{name}_elbow") + skeleton.depth(f"{name}_hand"))


def _draw_arm(canvas: Canvas, skeleton: Skeleton, name: str) -> None:
    person, px = skeleton.person, skeleton.px
    shoulder, elbow, hand = (skeleton.joint(f"{name}_{part}") for part in ("shoulder", "elbow", "hand"))
    carried.draw_hand_luggage(canvas, skeleton, 1 if name == "left" else -1)
    thick = 0.5 * (1.0 + person.width)
    is_long = person["sleeve"] == "long"
    cloth = person.second if person["pattern"] == "two_tone" else person.upper
    canvas.limb(elbow, hand, px(0.027) * thick, px(0.020) * thick, cloth if is_long else person.skin)
    canvas.ellipse(hand, (px(0.020), px(0.022)), person.skin, 128)
    canvas.limb(shoulder, elbow, px(0.037) * thick, px(0.030) * thick, cloth)
    if person["pattern"] in ("plain", "two_tone"):
        return
    _pattern_on_limb(canvas, skeleton, shoulder, elbow, px(0.033) * thick)
    if is_long:
        _pattern_on_limb(canvas, skeleton, elbow, hand, px(0.023) * thick)


def _pattern_on_limb(canvas: Canvas, skeleton: Skeleton, a: Point, b: Point, radius: float) -> None:
    dx, dy = b[0] - a[0], b[1] - a[1]
    length = math.hypot(dx, dy)
    if length < 3:
        return
    dx, dy = dx / length, dy / length
    corners = [(p[0] + s * dy * radius, p[1] - s * dx * radius) for p, s in ((a, 1), (b, 1), (b, -1), (a, -1))]
    canvas.texture(corners, _tile(skeleton.person), _tile_matrix(skeleton, a, (dx, dy)))


def _draw_legs(canvas: Canvas, skeleton: Skeleton) -> None:
    person, px = skeleton.person, skeleton.px
    skirt = person["lower_kind"] == "skirt"
    bare = person["lower_length"] == "short" or skirt
    thick = 0.35 + 0.65 * person.width
    names = sorted(("left", "right"), key=lambda n: skeleton.depth(f"{n}_hip") + 0.3 * skeleton.depth(f"{n}_knee"))
    for name in names:
        hip, knee, ankle, toe = (skeleton.joint(f"{name}_{part}") for part in ("hip", "knee", "ankle", "toe"))
        heel = (ankle[0] - 0.18 * (toe[0] - ankle[0]), ankle[1] + px(0.012))
        canvas.limb(heel, toe, px(0.026), px(0.021), person.shoes)
        canvas.limb(knee, ankle, px(0.037) * thick, px(0.025) * thick, person.skin if bare else person.lower)
        canvas.limb(hip, knee, px(0.056) * thick, px(0.041) * thick, person.skin if skirt else person.lower)
        if person["lower_length"] == "short" and not skirt:
            hem = (0.75 * knee[0] + 0.25 * hip[0], 0.75 * knee[1] + 0.25 * hip[1])
            canvas.limb(hip, hem, px(0.060) * thick, px(0.058) * thick, person.lower)
    if skirt:
        sway = 0.04 * math.sin(skeleton.pose.phase) * skeleton.pose.stride
        levels = _SKIRT[person["lower_length"]]
        _draw_tube(canvas, skeleton, levels, person.lower, sway)
        for offset in (-0.5, 0.1, 0.6):  # folds
            top, low = levels[1], levels[-1]
            a = skeleton.at(offset * top[1], top[0], 0.0)
            b = skeleton.at(offset * low[1], low[0] + 0.01, 0.0)
            canvas.line(a, b, scaled_color(person.lower, 0.82), 0.8)


def _draw_tube(
    canvas: Canvas, skeleton: Skeleton, levels: tuple[tuple[float, float, float], ...], color: Color, sway: float = 0.0
) -> list[Point]:
    """Draw a body of elliptic sections (height, half width, half depth) and return its outline."""
    left, right, inner_left, inner_right = [], [], [], []
    width = skeleton.person.width
    for y, half, deep in levels:
        x, row = skeleton.at(0.0, y, sway * (0.6 - y))
        reach = skeleton.half_width(half * width, deep * (2 * width - 1 if width > 1 else width))
        left.append((x - reach, row))
        right.append((x + reach, row))
        shift = 0.18 * reach * canvas.light
        inner_left.append((x - 0.62 * reach + shift, row))
        inner_right.append((x + 0.62 * reach + shift, row))
    outline = left + right[::-1]
    canvas.polygon(outline, color, 102)
    canvas.polygon(inner_left + inner_right[::-1], color, 134)
    return outline


def _draw_trunk(canvas: Canvas, skeleton: Skeleton) -> None:
    person = skeleton.person
    levels = _TRUNK + (_COAT_HEM if person["upper_length"] == "coat" else ())
    outline = _draw_tube(canvas, skeleton, levels, person.upper)
    if person["pattern"] == "two_tone":
        yoke = len([level for level in levels if level[0] > 0.7])
        count = len(levels)
        canvas.polygon(outline[:yoke] + outline[2 * count - yoke :], person.second, None)
    elif person["pattern"] != "plain":
        matrix = _tile_matrix(skeleton, skeleton.at(0.0, 0.76, 0.0), (0.0, 1.0))
        canvas.texture(outline, _tile(person), matrix)
    if skeleton.cos > 0.25:
        if person["upper_length"] == "coat":  # buttons down the front
            top, hem = skeleton.at(0.0, 0.84, 0.07), skeleton.at(0.0, 0.36, 0.09)
            canvas.line(top, hem, scaled_color(person.upper, 0.6), 1.2)
        collar = skeleton.at(0.0, 0.850, 0.045)
        canvas.ellipse(collar, (skeleton.px(0.036), skeleton.px(0.018)), person.skin, 112)


def _draw_logo(canvas: Canvas, skeleton: Skeleton, *, drawn: bool) -> Box | None:
    """A badge on the left of the chest with a 5 x 5 glyph, mirrored left to right."""
    if skeleton.cos < LOGO_VISIBLE_FROM:
        return None
    person = skeleton.person
    x, y = skeleton.at(0.047 * person.width, 0.755, 0.068)
    cell_x, cell_y = skeleton.px(_LOGO_CELL) * skeleton.cos, skeleton.px(_LOGO_CELL)
    box = (x - 3.1 * cell_x, y - 3.1 * cell_y, x + 3.1 * cell_x, y + 3.1 * cell_y)
    if not drawn:
        return box
    light = sum(person.upper) > 330
    badge, ink = ((44, 40, 40), (222, 226, 228)) if light else ((222, 226, 228), (44, 40, 40))
    canvas.polygon([(box[0], box[1]), (box[2], box[1]), (box[2], box[3]), (box[0], box[3])], badge, None)
    for row in range(5):
        for column in range(5):
            if person.logo_code >> (3 * row + min(column, 4 - column)) & 1:
                left, top = x + (column - 2.5) * cell_x, y + (row - 2.5) * cell_y
                right, low = left + cell_x, top + cell_y
                canvas.polygon([(left, top), (right, top), (right, low), (left, low)], ink, None)
    return box


def _tile_matrix(skeleton: Skeleton, origin: Point, down: Point) -> np.ndarray:
    """Matrix from image pixels to pixels of the pattern's tile, whose rows run along ``down``."""
    period = {"stripes": 0.056, "pinstripes": 0.036, "checks": 0.062, "dots": 0.048}[skeleton.person["pattern"]]
    scale = _TILE / skeleton.px(period * skeleton.person.pattern_period)
    matrix = np.array([[down[1], -down[0], 0.0], [down[0], down[1], 0.0]]) * scale
    matrix[:, 2] = -matrix[:, :2] @ np.array(origin)
    return matrix


@functools.lru_cache(maxsize=64)
def _tile_of(pattern: str, first: Color, second: Color) -> np.ndarray:
    tile = np.full((_TILE, _TILE, 4), (*first, 255), np.uint8)
    mixed = tuple((a + b) // 2 for a, b in zip(first, second, strict=True))
    if pattern == "stripes":
        tile[: _TILE // 2, :, :3] = second
    elif pattern == "pinstripes":
        tile[:, : _TILE // 3, :3] = second
    elif pattern == "checks":
        tile[: _TILE // 2, :, :3] = mixed
        tile[:, : _TILE // 2, :3] = mixed
        tile[: _TILE // 2, : _TILE // 2, :3] = second
    elif pattern == "dots":
        cv2.circle(tile, (_TILE // 2, _TILE // 2), _TILE * 3 // 10, (*second, 255), -1, cv2.LINE_AA)
    return tile


def _tile(person: Person) -> np.ndarray:
    return _tile_of(person["pattern"], person.upper, person.second)
