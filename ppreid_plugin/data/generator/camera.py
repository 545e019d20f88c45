"""Six cameras: what each sees, from where, in which light, and how its lens and sensor spoil the picture."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from ppreid_plugin.data.generator.canvas import HEIGHT, WIDTH
from ppreid_plugin.data.generator.scene import HORIZON, SCENE_WIDTH, SCENES_PER_CAMERA, scene, soft_noise

_BANK = 640  # px, side of the stored noise that shots take pieces of


@dataclass(frozen=True)
class Camera:
    """One place. Gains, gamma and the ranges are ours, chosen so that colors alone do not match across cameras.

    Args:
        gains: factors on blue, green and red: the color cast.
        gamma: above 1 darkens.
        contrast: factor around middle gray.
        light: direction of the sun, -1 left to +1 right.
        pitch: radians the camera looks down.
        stature_px: smallest and largest height of an adult in pixels.
        yaw, yaw_spread: mean and standard deviation in radians of the direction people walk.
        blur_px: smallest and largest standard deviation of the blur.
        noise: standard deviation of the sensor's noise, gray levels.
        quality: smallest and largest JPEG quality.
        places: (wall, ground) of its scenes.
        occluders: what may stand before people, with ``occlusion`` its probability.
    """

    gains: tuple[float, float, float]
    gamma: float
    contrast: float
    light: float
    pitch: float
    stature_px: tuple[float, float]
    yaw: float
    yaw_spread: float
    blur_px: tuple[float, float]
    noise: float
    quality: tuple[int, int]
    places: tuple[tuple[str, str], ...]
    occluders: tuple[str, ...]
    occlusion: float


# fmt: off
CAMERAS: tuple[Camera, ...] = (
    Camera((1.00, 1.00, 1.00), 1.00, 1.05, 0.7, 0.12, (216, 240), 0.0, 1.1, (0.2, 0.6), 3.0, (82, 94),
           (("bricks", "slabs"), ("shops", "slabs"), ("plaster", "asphalt")), ("post", "bush"), 0.15),
    Camera((0.80, 0.96, 1.12), 1.05, 0.96, -0.6, 0.18, (206, 236), 3.1, 1.0, (0.3, 0.9), 4.0, (76, 90),
           (("plaster", "setts"), ("shops", "setts"), ("bricks", "asphalt")), ("post", "sign"), 0.20),
    Camera((0.92, 1.08, 0.90), 0.95, 0.92, 0.3, 0.06, (212, 240), 1.3, 1.0, (0.4, 1.0), 5.0, (70, 88),
           (("hedge", "grass"), ("park", "grass"), ("hedge", "slabs")), ("bush", "railing"), 0.25),
    Camera((1.18, 1.00, 0.84), 1.20, 1.00, -0.8, 0.22, (202, 232), -1.3, 1.0, (0.4, 1.1), 7.0, (66, 86),
           (("plaster", "asphalt"), ("park", "slabs"), ("shops", "asphalt")), ("post", "railing"), 0.20),
    Camera((1.06, 1.02, 0.98), 0.78, 0.84, 0.9, 0.15, (208, 238), 0.8, 1.1, (0.3, 0.8), 4.0, (74, 92),
           (("park", "grass"), ("shops", "slabs"), ("plaster", "slabs")), ("sign", "bush"), 0.20),
    Camera((1.07, 0.90, 1.06), 1.10, 0.90, -0.2, 0.26, (198, 230), -2.6, 1.1, (0.5, 1.2), 6.0, (64, 84),
           (("bricks", "setts"), ("hedge", "asphalt"), ("bricks", "asphalt")), ("railing", "sign"), 0.25),
)
# fmt: on


def background(camera: Camera, rng: np.random.Generator, seed: int) -> np.ndarray:
    """Cut a random piece, at a random size, out of one of the camera's scenes: (256, 128, 3) uint8, BGR."""
    wall, ground = camera.places[int(rng.integers(SCENES_PER_CAMERA))]
    street = scene(wall, ground, seed)
    zoom = float(rng.uniform(0.8, 1.5))  # scene pixels per image pixel
    flip = -1.0 if rng.random() < 0.5 else 1.0
    x = float(rng.uniform(0.5 * WIDTH * zoom, SCENE_WIDTH - 0.5 * WIDTH * zoom))
    # The horizon climbs as the camera looks down.
    row = HEIGHT * float(rng.uniform(0.50, 0.66) - 0.7 * camera.pitch)
    matrix = np.array([[flip * zoom, 0.0, x - flip * zoom * WIDTH / 2], [0.0, zoom, HORIZON - zoom * row]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(street, matrix, (WIDTH, HEIGHT), flags=flags, borderMode=cv2.BORDER_REFLECT)


def occlude(image: np.ndarray, camera: Camera, rng: np.random.Generator) -> tuple[int, int, int, int] | None:
    """Draw what stands before the person, now and then; return its box (left, top, right, bottom) in pixels."""
    if rng.random() >= camera.occlusion:
        return None
    kind = camera.occluders[int(rng.integers(len(camera.occluders)))]
    x, tone = int(rng.integers(0, WIDTH)), float(rng.uniform(50, 120))
    color = tuple(tone * float(f) for f in rng.uniform(0.8, 1.2, 3))
    if kind == "post":
        wide = int(rng.integers(7, 18))
        cv2.rectangle(image, (x, 0), (x + wide, HEIGHT), color, -1)
        cv2.rectangle(image, (x + wide // 4, 0), (x + wide // 2, HEIGHT), tuple(1.3 * v for v in color), -1)
        return x, 0, x + wide, HEIGHT
    if kind == "sign":
        top, wide, tall = int(rng.integers(30, 190)), int(rng.integers(24, 52)), int(rng.integers(26, 50))
        cv2.rectangle(image, (x - 2, top), (x + 2, HEIGHT), (120, 120, 120), -1)
        cv2.rectangle(image, (x - wide // 2, top), (x + wide // 2, top + tall), (210, 212, 214), -1)
        cv2.rectangle(image, (x - wide // 2 + 3, top + 3), (x + wide // 2 - 3, top + tall - 3), color, -1)
        return x - wide // 2, top, x + wide // 2, top + tall
    if kind == "railing":
        top = int(rng.integers(150, 205))
        for bar in range(x % 14, WIDTH, 14):
            cv2.line(image, (bar, top), (bar, HEIGHT), color, 2)
        cv2.line(image, (0, top), (WIDTH, top), color, 5)
        return 0, top, WIDTH, HEIGHT
    top = int(rng.integers(150, 215))
    spots = rng.integers(-26, 27, (40, 2))
    for index, (dx, dy) in enumerate(spots.tolist()):
        green = 60.0 + (index * 37) % 70
        cv2.circle(image, (x + dx, top + 36 + int(1.3 * dy)), 8, (0.5 * green, green, 0.7 * green), -1, cv2.LINE_AA)
    return x - 34, top, x + 34, HEIGHT


def cast_shadow(image: np.ndarray, foot: tuple[float, float], reach: float, light: float) -> np.ndarray:
    """Darken the ground beside the feet, away from the light; returns a new image."""
    mask: np.ndarray = np.full((HEIGHT, WIDTH), 255, np.uint8)
    center = (round(foot[0] - 0.5 * reach * light), round(foot[1] - 0.03 * reach))
    cv2.ellipse(
        mask, center, (max(round(0.62 * reach), 1), max(round(0.13 * reach), 1)), -8.0 * light, 0, 360, (150,), -1
    )
    mask = cv2.blur(mask, (9, 5))
    return cv2.multiply(image, cv2.merge([mask, mask, mask]), scale=1 / 255)


def expose(image: np.ndarray, camera: Camera, rng: np.random.Generator, seed: int) -> np.ndarray:
    """Light, color cast, a building's shadow, blur and noise; each differs a little from shot to shot.

    Shape:
        image: (256, 128, 3) uint8, BGR. Output: same.
    """
    gains = np.array(camera.gains) * rng.uniform(0.94, 1.06, 3) * rng.uniform(0.88, 1.12)
    gamma = camera.gamma * float(rng.uniform(0.9, 1.12))
    contrast = camera.contrast * float(rng.uniform(0.9, 1.1))
    levels = (np.arange(256) / 255.0) ** gamma
    table = np.clip(((levels - 0.45) * contrast + 0.45)[:, None] * gains * 255.0, 0, 255).astype(np.uint8)
    image = cv2.LUT(image, table[:, None, :])
    edges = rng.uniform(-0.3, 1.3, 2) * WIDTH
    if rng.random() < 0.35:
        mask: np.ndarray = np.full((HEIGHT, WIDTH), 255, np.uint8)
        far = 3 * WIDTH if camera.light < 0 else -2 * WIDTH
        corners = np.array([[edges[0], 0], [edges[1], HEIGHT], [far, HEIGHT], [far, 0]]).astype(np.int32)
        cv2.fillPoly(mask, [corners], (int(rng.integers(130, 190)),))
        mask = cv2.blur(mask, (7, 7))
        image = cv2.multiply(image, cv2.merge([mask, mask, mask]), scale=1 / 255)
    blur = float(rng.uniform(*camera.blur_px))
    if blur > 0.35:
        image = cv2.GaussianBlur(image, (5, 5), blur)
    x, y = rng.integers(0, _BANK - WIDTH), rng.integers(0, _BANK - HEIGHT)
    noise = _sensor_noise(seed)[y : y + HEIGHT, x : x + WIDTH]
    return cv2.addWeighted(image, 1.0, noise, camera.noise / 16.0, -128.0 * camera.noise / 16.0)


def cloth_folds(rng: np.random.Generator, seed: int) -> np.ndarray:
    """A piece of the stored uneven light of cloth: (256, 128) uint8, 128 = even."""
    x, y = rng.integers(0, _BANK - WIDTH), rng.integers(0, _BANK - HEIGHT)
    return np.ascontiguousarray(_folds(seed)[y : y + HEIGHT, x : x + WIDTH])


@functools.lru_cache(maxsize=4)
def _sensor_noise(seed: int) -> np.ndarray:
    noise = np.random.default_rng([seed, 101]).normal(128.0, 16.0, (_BANK, _BANK, 3))
    return np.clip(noise, 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=4)
def _folds(seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, 102])
    hills = soft_noise(rng, _BANK, _BANK, 14, 7.0) + soft_noise(rng, _BANK, _BANK, 6, 4.0)
    return np.clip(128.0 + hills, 0, 255).astype(np.uint8)
