"""The head: hair, hat, and the face patch with its fine features, all turned with the body's yaw."""

from __future__ import annotations

import itertools
import math

from ppreid_plugin.data.generator.canvas import Canvas, Point, scaled_color
from ppreid_plugin.data.generator.person import Color
from ppreid_plugin.data.generator.pose import Skeleton

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

FACE_VISIBLE_FROM = 0.2  # cosine of the yaw: beyond about 78 degrees from the front the face is not counted as visible
_DARK: Color = (30, 28, 30)
_CAP_STEPS = 10


class Head:
    """Geometry of one head, shared by the parts that are drawn on it.

    Shape:
        center: pixel of the middle of the skull. rx, ry: half axes of its outline in pixels.
    """

    def __init__(self, skeleton: Skeleton) -> None:
        self.skeleton = skeleton
        self.person = skeleton.person
        self.size = self.person.head_scale
        self.unit = skeleton.px(self.size)
        self.center = skeleton.at(0.0, 0.862 + 0.066 * self.size, 0.014)
        self.rx = skeleton.half_width(0.047 * self.size, 0.056 * self.size)
        self.ry = 0.066 * self.unit
        self.face_rx = 0.041 * self.unit * (0.62 + 0.38 * max(skeleton.cos, 0.0))
        self.face_ry = 0.054 * self.unit
        self.face = self.place(0.022 * skeleton.sin, -0.009)

    def place(self, right: float, up: float) -> Point:
        """Pixel at an offset from the center, in units of the head's size."""
        return self.center[0] + right * self.unit, self.center[1] - up * self.unit

    def on_skin(self, azimuth: float, up: float) -> Point | None:
        """Pixel of a point on the skull ``azimuth`` radians to the person's left of the nose; None if turned away."""
        angle = azimuth + self.skeleton.pose.yaw
        if math.cos(angle) < 0.12:
            return None
        return self.place(0.046 * math.sin(angle), up)


def draw_long_hair(canvas: Canvas, head: Head) -> None:
    """Hair that falls over the shoulders: before the head as seen from the front, after it as seen from the back."""
    if head.person["hair_length"] != "long":
        return
    back = -0.02 * head.skeleton.sin
    points = ((0.03, 0.050), (-0.02, 0.062), (-0.09, 0.064), (-0.135, 0.05))  # (up, half width)
    left = [head.place(back - half, up) for up, half in points]
    right = [head.place(back + half, up) for up, half in reversed(points)]
    canvas.polygon(left + right, head.person.hair, 104)
    middle = head.place(back + 0.02 * canvas.light, 0.0), head.place(back + 0.026 * canvas.light, -0.12)
    canvas.line(*middle, head.person.hair, 3.0, 140)


def draw_head(canvas: Canvas, head: Head, *, features: bool) -> Box | None:
    """Draw skull, face, hair and hat; return the face patch if it looks at the camera.

    Args:
        canvas: where to draw.
        head: the geometry.
        features: False leaves the face patch an empty skin tone (to test that the box points at the features).
    """
    person, skeleton = head.person, head.skeleton
    canvas.ellipse(head.center, (head.rx, head.ry), person.skin, 112)
    canvas.ellipse(head.place(0.016 * canvas.light, 0.005), (head.rx * 0.62, head.ry * 0.72), person.skin, 138)
    facing = skeleton.cos > -0.2
    if facing:
        nose = head.place(0.062 * skeleton.sin, -0.012)
        if abs(skeleton.sin) > 0.5:
            canvas.ellipse(nose, (0.011 * head.unit, 0.009 * head.unit), person.skin, 124)
        if features:
            _draw_features(canvas, head)
    if skeleton.cos < -0.2:
        draw_long_hair(canvas, head)
    _draw_hair(canvas, head)
    _draw_hat(canvas, head)
    if skeleton.cos < FACE_VISIBLE_FROM:
        return None
    x, y = head.face
    brow = 0.014 * head.unit * skeleton.sin  # seen from the side, brow and glasses stand out before the skin
    left, right = x - head.face_rx + min(brow, 0.0), x + head.face_rx + max(brow, 0.0)
    return left, y - head.face_ry, right, y + head.face_ry


def _draw_features(canvas: Canvas, head: Head) -> None:
    person, px = head.person, head.unit
    darker = scaled_color(person.skin, 0.62)
    if person["beard"] == "full":
        canvas.ellipse(head.face, (head.face_rx, head.face_ry), person.hair, 112, arc=(18, 162))
    for index in range(24):  # 2 cheeks of 3 x 3 places, then 6 on the forehead
        if person.freckle_code >> index & 1:
            row, column = divmod(index % 9, 3)
            azimuth = (-0.72 if index < 9 else 0.38) + 0.17 * column
            up = -0.010 - 0.010 * row
            if index >= 18:
                azimuth, up = -0.45 + 0.18 * (index - 18), 0.030 + 0.006 * (index % 2)
            spot = head.on_skin(azimuth, up)
            if spot:
                canvas.ellipse(spot, (0.0036 * px, 0.0036 * px), scaled_color(person.skin, 0.5), None)
    for side in (-1, 1):
        eye = head.on_skin(side * 0.46 * person.eye_gap, 0.003)
        if eye:
            canvas.ellipse(eye, (0.0098 * px, 0.0066 * px), (226, 230, 232), 132)
            canvas.ellipse(eye, (0.0048 * px, 0.0056 * px), _DARK, 128)
            tilt = side * person.brow_tilt * 0.02 * px
            lift = 0.017 * px
            canvas.line(
                (eye[0] - 0.012 * px, eye[1] - lift + tilt),
                (eye[0] + 0.012 * px, eye[1] - lift - tilt),
                scaled_color(person.hair, 0.8),
                0.006 * px,
            )
            if person["glasses"] == "yes":
                for thick in (-1, 1):
                    edge = 0.014 * px * thick
                    canvas.line((eye[0] - 0.017 * px, eye[1] + edge), (eye[0] + 0.017 * px, eye[1] + edge), _DARK, 1.0)
                    canvas.line(
                        (eye[0] + edge * 1.2, eye[1] - 0.014 * px),
                        (eye[0] + edge * 1.2, eye[1] + 0.014 * px),
                        _DARK,
                        1.0,
                    )
    top, tip = head.on_skin(0.0, 0.004), head.on_skin(0.06, -0.017)
    if top and tip:
        canvas.line(top, tip, darker, 0.006 * px)
    if person["beard"] == "moustache":
        _across(canvas, head, 0.40, -0.027, person.hair, 0.012 * px)
    _across(canvas, head, 0.24 * person.mouth_width, -0.037, (70, 66, 150), 0.007 * px)


def _across(canvas: Canvas, head: Head, azimuth: float, up: float, color: Color, width: float) -> None:
    points = [p for p in (head.on_skin(a * azimuth, up) for a in (-1.0, 0.0, 1.0)) if p]
    for a, b in itertools.pairwise(points):
        canvas.line(a, b, color, width)


def _draw_hair(canvas: Canvas, head: Head) -> None:
    """Short and long hair: a cap above the hair line, which falls to the nape at the back."""
    if head.person["hair_length"] == "bald":
        return
    sin, cos = head.skeleton.sin, head.skeleton.cos
    ends = []
    for side in (-1, 1):
        base = 0.012 + 0.060 * min(cos, 0.0)
        toward = side * sin * min(1.0 + cos, 1.0)
        ends.append(base + (0.034 - base) * toward if toward > 0 else base + (-0.04 - base) * -toward)
    rx, ry = head.rx * 1.06, head.ry * 1.05
    points: list[Point] = []
    start, stop = (math.asin(max(min(up * head.unit / ry, 1), -1)) for up in ends)
    for step in range(_CAP_STEPS + 1):  # over the top, from the left end to the right one
        angle = (math.pi - start) + (start + stop - math.pi) * step / _CAP_STEPS
        points.append((head.center[0] + rx * math.cos(angle), head.center[1] - ry * math.sin(angle)))
    if cos > -0.3:
        middle, half = 0.022 * sin, 0.72 * head.face_rx / head.unit
        points += [head.place(middle + half, 0.031), head.place(middle, 0.037), head.place(middle - half, 0.031)]
    else:  # from behind the cap hangs down between its ends
        points += [
            head.place(right, up) for right, up in sorted(((0.028 * sin, -0.030), (-0.020 * sin, -0.052)), reverse=True)
        ]
    canvas.polygon(points, head.person.hair, 118)
    shine = head.place(0.02 * canvas.light, 0.047)
    canvas.ellipse(shine, (0.02 * head.unit, 0.010 * head.unit), head.person.hair, 150)


def _draw_hat(canvas: Canvas, head: Head) -> None:
    kind, color, sin, cos = head.person["hat"], head.person.hat, head.skeleton.sin, head.skeleton.cos
    if kind == "none":
        return
    crown = head.place(0.0, 0.027)
    tall = {"cap": 0.050, "beanie": 0.060, "brimmed": 0.058}[kind] * head.unit
    canvas.ellipse(crown, (head.rx * 1.12, tall), color, 112, arc=(180, 360))
    canvas.ellipse(
        (crown[0] + 0.2 * head.rx * canvas.light, crown[1] - 0.3 * tall), (head.rx * 0.5, tall * 0.5), color, 140
    )
    if kind == "cap" and cos > -0.45:
        brim = head.place(0.050 * sin, 0.028)
        canvas.ellipse(
            brim, (head.skeleton.half_width(0.042, 0.036) * head.size, 0.011 * head.unit), scaled_color(color, 0.8), 116
        )
    elif kind == "brimmed":
        canvas.ellipse(crown, (0.092 * head.unit, 0.017 * head.unit), color, 104)
        canvas.line(
            (crown[0] - head.rx, crown[1] - 0.010 * head.unit),
            (crown[0] + head.rx, crown[1] - 0.010 * head.unit),
            scaled_color(color, 0.5),
            0.012 * head.unit,
        )
    elif kind == "beanie":
        band = scaled_color(color, 0.75)
        canvas.line(
            (crown[0] - head.rx * 1.05, crown[1]), (crown[0] + head.rx * 1.05, crown[1]), band, 0.020 * head.unit, 120
        )
        canvas.ellipse(head.place(0.0, 0.086), (0.014 * head.unit, 0.014 * head.unit), band, 136)
