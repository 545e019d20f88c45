"""The street behind the people: wide pictures of walls and ground from which every shot takes its own piece."""

from __future__ import annotations

import functools
from collections.abc import Callable

import cv2
import numpy as np

SCENE_HEIGHT = 360  # px
SCENE_WIDTH = 1200  # px
SCENES_PER_CAMERA = 3
HORIZON = 200  # row where the wall meets the ground

Picture = np.ndarray
_Color = tuple[float, float, float]

_PLASTERS: tuple[_Color, ...] = ((150, 178, 196), (172, 172, 168), (120, 140, 170), (168, 156, 132), (110, 118, 122))
_SIGNS: tuple[_Color, ...] = (
    (60, 50, 170),
    (150, 90, 40),
    (70, 120, 60),
    (60, 160, 200),
    (70, 70, 70),
    (190, 190, 190),
)


@functools.lru_cache(maxsize=64)
def scene(wall: str, ground: str, seed: int) -> Picture:
    """Draw one street.

    Args:
        wall: ``bricks``, ``plaster``, ``shops``, ``hedge`` or ``park``.
        ground: ``slabs``, ``asphalt``, ``grass`` or ``setts``.
        seed: of everything random in it.
    Shape:
        Output: (360, 1200, 3) uint8, BGR; read-only, since it is shared by all shots.
    """
    rng = np.random.default_rng([seed, *wall.encode(), *ground.encode()])
    image = np.zeros((SCENE_HEIGHT, SCENE_WIDTH, 3), np.uint8)
    _GROUNDS[ground](image, rng)
    _WALLS[wall](image, rng)
    band = image[HORIZON - 4 : HORIZON + 5]
    band[:] = band * 0.7  # the foot of the wall is dirty
    _posts(image, rng)
    grain = soft_noise(rng, SCENE_HEIGHT, SCENE_WIDTH, 4, 6.5) + soft_noise(rng, SCENE_HEIGHT, SCENE_WIDTH, 90, 16.0)
    image = np.clip(image + grain[:, :, None], 0, 255).astype(np.uint8)
    image.setflags(write=False)
    return image


def soft_noise(rng: np.random.Generator, height: int, width: int, grain_px: int, sigma: float) -> np.ndarray:
    """Smooth random hills: (height, width) float32 of standard deviation about ``sigma``."""
    small = rng.normal(0.0, sigma, (height // grain_px + 2, width // grain_px + 2)).astype(np.float32)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def _posts(image: Picture, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(2, 6))):
        x, wide = int(rng.integers(0, SCENE_WIDTH)), int(rng.integers(4, 11))
        tone = float(rng.uniform(50, 130))
        top, foot = int(rng.choice((0, 0, 130))), int(rng.integers(HORIZON + 10, HORIZON + 50))
        cv2.rectangle(image, (x, top), (x + wide, foot), (tone, tone, tone), -1)
        cv2.line(
            image, (x + wide // 4, top), (x + wide // 4, foot), (tone + 50, tone + 50, tone + 50), max(wide // 4, 1)
        )
        cv2.ellipse(image, (x + wide // 2, foot), (wide, 3), 0, 0, 360, (tone * 0.6,) * 3, -1)


def _slabs(image: Picture, rng: np.random.Generator) -> None:
    base = rng.uniform(120, 175)
    image[HORIZON:] = (base * 0.98, base, base * 1.02)
    _perspective_grid(image, rng, rows=9, step=70, tone=base * 0.78)


def _setts(image: Picture, rng: np.random.Generator) -> None:
    base = rng.uniform(90, 130)
    image[HORIZON:] = (base * 0.8, base * 0.92, base * 1.1)
    _perspective_grid(image, rng, rows=18, step=30, tone=base * 0.7)


def _perspective_grid(image: Picture, rng: np.random.Generator, rows: int, step: int, tone: float) -> None:
    deep = SCENE_HEIGHT - HORIZON
    color = (tone, tone, tone)
    for row in range(rows):
        y = HORIZON + round(deep * (row / rows) ** 1.7)
        cv2.line(image, (0, y), (SCENE_WIDTH, y), color, 1, cv2.LINE_AA)
    vanish = int(rng.integers(0, SCENE_WIDTH))
    for x in range(-3 * SCENE_WIDTH, 4 * SCENE_WIDTH, step):
        top = vanish + (x - vanish) // 4
        cv2.line(image, (top, HORIZON), (x, SCENE_HEIGHT), color, 1, cv2.LINE_AA)


def _asphalt(image: Picture, rng: np.random.Generator) -> None:
    base = rng.uniform(70, 110)
    image[HORIZON:] = (base * 1.05, base, base * 0.98)
    y = HORIZON + int(rng.integers(30, 100))
    for x in range(int(rng.integers(0, 120)), SCENE_WIDTH, 170):
        mark = np.array([[x, y], [x + 90, y], [x + 80, y + 12], [x - 14, y + 12]], np.int32)
        cv2.fillPoly(image, [mark], (205, 212, 214), cv2.LINE_AA)
    cv2.rectangle(image, (0, HORIZON), (SCENE_WIDTH, HORIZON + 14), (base * 1.5, base * 1.5, base * 1.5), -1)


def _grass(image: Picture, rng: np.random.Generator) -> None:
    image[HORIZON:] = (60, rng.uniform(105, 140), rng.uniform(80, 100))
    for x, y, d in zip(
        rng.integers(0, SCENE_WIDTH, 2500),
        rng.integers(HORIZON, SCENE_HEIGHT, 2500),
        rng.integers(-3, 4, 2500),
        strict=True,
    ):
        green = float(80 + (x * 7 + y * 13) % 80)
        cv2.line(image, (int(x), int(y)), (int(x + d), int(y) - 6), (green * 0.45, green, green * 0.75), 1)
    path = HORIZON + int(rng.integers(60, 110))
    cv2.rectangle(image, (0, path), (SCENE_WIDTH, path + 50), (130, 158, 172), -1)


def _bricks(image: Picture, rng: np.random.Generator) -> None:
    base = np.array([62, 78, 140]) * rng.uniform(0.8, 1.15) + rng.uniform(0, 30)
    image[:HORIZON] = np.clip(base * 1.25 + 20, 0, 255)
    for row, y in enumerate(range(0, HORIZON, 9)):
        for x in range(-20 + 11 * (row % 2), SCENE_WIDTH, 22):
            tone = np.clip(base * rng.uniform(0.82, 1.12), 0, 255)
            cv2.rectangle(image, (x, y), (x + 20, y + 7), tuple(float(v) for v in tone), -1)
    _windows(image, rng, low=40, high=150, every=230)


def _plaster(image: Picture, rng: np.random.Generator) -> None:
    x = 0
    while x < SCENE_WIDTH:
        wide = int(rng.integers(160, 420))
        color = _PLASTERS[int(rng.integers(len(_PLASTERS)))]
        cv2.rectangle(image, (x, 0), (x + wide, HORIZON), color, -1)
        cv2.rectangle(image, (x, HORIZON - 26), (x + wide, HORIZON), tuple(0.75 * v for v in color), -1)
        x += wide
    _windows(image, rng, low=30, high=135, every=130)


def _windows(image: Picture, rng: np.random.Generator, low: int, high: int, every: int) -> None:
    for x in range(int(rng.integers(0, every)), SCENE_WIDTH, every):
        left, wide = x + int(rng.integers(-20, 20)), int(rng.integers(44, 80))
        door = rng.random() < 0.3
        bottom = HORIZON if door else high
        cv2.rectangle(image, (left - 5, low - 5), (left + wide + 5, bottom + 5 * (not door)), (190, 195, 200), -1)
        glass = (110, 92, 80) if not door else _SIGNS[int(rng.integers(len(_SIGNS)))]
        cv2.rectangle(image, (left, low), (left + wide, bottom), glass, -1)
        if not door:
            shine = np.array([[left + 6, high], [left + 26, low], [left + 38, low], [left + 18, high]], np.int32)
            cv2.fillPoly(image, [shine], (150, 134, 122))
            cv2.line(image, (left + wide // 2, low), (left + wide // 2, high), (190, 195, 200), 3)


def _shops(image: Picture, rng: np.random.Generator) -> None:
    x = 0
    while x < SCENE_WIDTH:
        wide = int(rng.integers(130, 280))
        sign = _SIGNS[int(rng.integers(len(_SIGNS)))]
        wall = _PLASTERS[int(rng.integers(len(_PLASTERS)))]
        cv2.rectangle(image, (x, 0), (x + wide, HORIZON), wall, -1)
        cv2.rectangle(image, (x + 8, 12), (x + wide - 8, 48), sign, -1)
        for letter in range(int(rng.integers(3, 9))):  # strokes that look like writing from afar
            place = x + 22 + 15 * letter
            if place < x + wide - 22:
                cv2.rectangle(image, (place, 22), (place + int(rng.integers(3, 10)), 40), (225, 228, 228), -1)
        cv2.rectangle(image, (x + 12, 60), (x + wide - 12, HORIZON - 22), (120, 104, 92), -1)
        for _ in range(6):
            a, b = int(rng.integers(x + 14, x + wide - 30)), int(rng.integers(90, 150))
            goods = tuple(float(v) for v in rng.integers(40, 215, 3))
            cv2.rectangle(image, (a, b), (a + int(rng.integers(8, 24)), HORIZON - 24), goods, -1)
        x += wide


def _hedge(image: Picture, rng: np.random.Generator) -> None:
    image[:90] = (214, 200, 186)
    image[80:HORIZON] = (38, 72, 48)
    for x, y, r in zip(
        rng.integers(0, SCENE_WIDTH, 2200), rng.integers(70, HORIZON, 2200), rng.integers(3, 9, 2200), strict=True
    ):
        green = float(52 + (int(x) * 31 + int(y) * 17) % 75)
        cv2.ellipse(
            image,
            (int(x), int(y)),
            (int(r), int(r) // 2 + 1),
            int(x) % 180,
            0,
            360,
            (green * 0.5, green, green * 0.72),
            -1,
        )


def _park(image: Picture, rng: np.random.Generator) -> None:
    for y in range(HORIZON):
        image[y] = (216 - y // 8, 198 - y // 8, 178 - y // 6)
    cv2.rectangle(image, (0, HORIZON - 60), (SCENE_WIDTH, HORIZON), (66, 104, 82), -1)
    for x in range(30, SCENE_WIDTH, 95):
        trunk = x + int(rng.integers(-30, 30))
        cv2.rectangle(image, (trunk, 60), (trunk + int(rng.integers(8, 18)), HORIZON + 6), (48, 62, 82), -1)
        for _ in range(26):
            center = (trunk + int(rng.integers(-55, 60)), int(rng.integers(0, 100)))
            green = float(rng.uniform(70, 140))
            cv2.circle(image, center, int(rng.integers(8, 24)), (green * 0.5, green, green * 0.7), -1)


_GROUNDS: dict[str, Callable[[Picture, np.random.Generator], None]] = {
    "slabs": _slabs,
    "asphalt": _asphalt,
    "grass": _grass,
    "setts": _setts,
}
_WALLS: dict[str, Callable[[Picture, np.random.Generator], None]] = {
    "bricks": _bricks,
    "plaster": _plaster,
    "shops": _shops,
    "hedge": _hedge,
    "park": _park,
}
