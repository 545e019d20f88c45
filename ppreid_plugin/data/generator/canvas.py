"""A transparent drawing surface with soft light: what the figure is drawn on.

Color and opacity are drawn at twice the size and averaged down, which smooths edges. Light is a second picture,
``shade`` (128 = as painted), drawn with each part and blurred once at the end: cylinders look round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from ppreid_plugin.data.generator.person import Color

HEIGHT = 256  # px, as Market-1501's usual input; the jpg files have this size
WIDTH = 128  # px
OVERSAMPLING = 2
_SHIFT = 4  # OpenCV draws with 4 fractional bits

Point = tuple[float, float]


class Canvas:
    """Layers are painted back to front; a later part hides an earlier one.

    Args:
        light: where the light comes from, -1 (left) to +1 (right).

    Shape:
        color: (512, 256, 4) uint8, BGR and opacity. shade: (256, 128) uint8, 128 = unchanged.
        All points and lengths given to methods are in pixels of the final 256 x 128 image.
    """

    def __init__(self, light: float) -> None:
        self.light = light
        self.color = np.zeros((HEIGHT * OVERSAMPLING, WIDTH * OVERSAMPLING, 4), np.uint8)
        self.shade = np.full((HEIGHT, WIDTH), 128, np.uint8)

    def polygon(self, points: Sequence[Point], color: Color, shade: int | None = 128) -> None:
        """Fill a polygon; ``shade=None`` leaves the light of what lies below."""
        array = np.array(points)
        cv2.fillPoly(self.color, [_fixed(array * OVERSAMPLING)], (*color, 255), cv2.LINE_8, _SHIFT)
        if shade is not None:
            cv2.fillPoly(self.shade, [_fixed(array)], (shade,), cv2.LINE_8, _SHIFT)

    def ellipse(
        self,
        center: Point,
        radii: Point,
        color: Color,
        shade: int | None = 128,
        *,
        tilt: float = 0.0,
        arc: Point = (0, 360),
    ) -> None:
        """Fill an ellipse, or the piece of it between the angles ``arc`` (degrees, clockwise from the right)."""
        for image, scale, value in ((self.color, OVERSAMPLING, (*color, 255)), (self.shade, 1, shade)):
            if value is None:
                continue
            middle = (round(center[0] * scale * 16), round(center[1] * scale * 16))
            axes = (max(round(radii[0] * scale * 16), 1), max(round(radii[1] * scale * 16), 1))
            filled = value if isinstance(value, tuple) else (value,)
            cv2.ellipse(image, middle, axes, tilt, arc[0], arc[1], filled, -1, cv2.LINE_8, _SHIFT)

    def line(self, a: Point, b: Point, color: Color, width: float, shade: int | None = None) -> None:
        """Draw a line of ``width`` px, at least half a pixel."""
        scale = OVERSAMPLING * 16
        start, end = (round(a[0] * scale), round(a[1] * scale)), (round(b[0] * scale), round(b[1] * scale))
        thickness = max(round(width * OVERSAMPLING), 1)
        cv2.line(self.color, start, end, (*color, 255), thickness, cv2.LINE_8, _SHIFT)
        if shade is not None:
            self._shade_line(a, b, shade, width)

    def limb(self, a: Point, b: Point, radius_a: float, radius_b: float, color: Color) -> None:
        """Draw a tapered cylinder with round ends: dark at the rims, bright toward the light."""
        dx, dy = b[0] - a[0], b[1] - a[1]
        length = math.hypot(dx, dy) or 1.0
        nx, ny = -dy / length, dx / length
        self.ellipse(a, (radius_a, radius_a), color, None)
        self.ellipse(b, (radius_b, radius_b), color, None)
        self.polygon(
            (
                (a[0] + nx * radius_a, a[1] + ny * radius_a),
                (b[0] + nx * radius_b, b[1] + ny * radius_b),
                (b[0] - nx * radius_b, b[1] - ny * radius_b),
                (a[0] - nx * radius_a, a[1] - ny * radius_a),
            ),
            color,
            100,
        )
        radius = 0.5 * (radius_a + radius_b)
        off = 0.22 * self.light * radius
        self._shade_line((a[0] + off, a[1]), (b[0] + off, b[1]), 136, 1.35 * radius)
        self._shade_line((a[0] + 2 * off, a[1]), (b[0] + 2 * off, b[1]), 150, 0.5 * radius)

    def texture(self, points: Sequence[Point], tile: np.ndarray, matrix: np.ndarray) -> None:
        """Fill a polygon with a repeating ``tile``, leaving light and opacity as they are.

        Shape:
            tile: (h, w, 4) uint8. matrix: (2, 3), from pixels of the final image to pixels of the tile.
        """
        array = np.array(points) * OVERSAMPLING
        low = np.maximum(np.floor(array.min(axis=0)).astype(int), 0)
        high = np.minimum(np.ceil(array.max(axis=0)).astype(int) + 1, (WIDTH * OVERSAMPLING, HEIGHT * OVERSAMPLING))
        if (high <= low).any():
            return
        size = (int(high[0] - low[0]), int(high[1] - low[1]))
        mask = np.zeros((size[1], size[0]), np.uint8)
        cv2.fillPoly(mask, [_fixed(array - low)], (255,), cv2.LINE_8, _SHIFT)
        moved = matrix.copy()
        moved[:, :2] /= OVERSAMPLING
        moved[:, 2] += moved[:, :2] @ low
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        patch = cv2.warpAffine(tile, moved, size, flags=flags, borderMode=cv2.BORDER_WRAP)
        view = self.color[low[1] : high[1], low[0] : high[0]]
        np.copyto(view, patch, where=mask[:, :, None] > 0)

    def over(self, background: np.ndarray, folds: np.ndarray) -> np.ndarray:
        """Lay the drawing over a background.

        Shape:
            background: (256, 128, 3) uint8, BGR. folds: (256, 128) uint8, 128 = none: cloth that is not quite smooth.
            Output: (256, 128, 3) uint8.
        """
        small = cv2.resize(self.color, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        light = cv2.GaussianBlur(self.shade, (0, 0), 1.7)
        light = cv2.multiply(light, folds, scale=1 / 128)
        painted = cv2.multiply(small[:, :, :3], cv2.merge([light, light, light]), scale=1 / 128)
        through = 255 - small[:, :, 3]
        return cv2.add(painted, cv2.multiply(background, cv2.merge([through, through, through]), scale=1 / 255))

    def opacity(self) -> np.ndarray:
        """Where something is drawn: (256, 128) uint8."""
        return cv2.resize(self.color[:, :, 3], (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)

    def _shade_line(self, a: Point, b: Point, shade: int, width: float) -> None:
        start, end = (round(a[0] * 16), round(a[1] * 16)), (round(b[0] * 16), round(b[1] * 16))
        cv2.line(self.shade, start, end, (shade,), max(round(width), 1), cv2.LINE_8, _SHIFT)


def scaled_color(color: Color, factor: float) -> Color:
    """A darker (or lighter) version of a color."""
    return (
        min(round(color[0] * factor), 255),
        min(round(color[1] * factor), 255),
        min(round(color[2] * factor), 255),
    )


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.round(points * (1 << _SHIFT)).astype(np.int32)
