"""Who is drawn: the attributes of one generated person, sampled once and the same in every camera.

Coarse cues (build, garments, what is carried) survive pixelation; fine ones (face, logo, pattern) do not. Colors come
from short lists on purpose: many people share them, so that a color histogram does not tell people apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Color = tuple[int, int, int]  # blue, green, red in 0..255, as OpenCV wants them

# name: (weight, color). Dark and neutral garments are the most frequent, as on a street.
GARMENT_COLORS: dict[str, tuple[float, Color]] = {
    "black": (0.17, (46, 41, 40)),
    "white": (0.14, (214, 219, 220)),
    "gray": (0.15, (134, 132, 128)),
    "navy": (0.13, (92, 55, 40)),
    "blue": (0.11, (172, 112, 66)),
    "red": (0.10, (54, 48, 168)),
    "green": (0.08, (78, 112, 66)),
    "beige": (0.12, (138, 172, 192)),
}
LOWER_COLORS: dict[str, tuple[float, Color]] = {
    "black": (0.28, (48, 44, 42)),
    "denim": (0.26, (132, 94, 66)),
    "gray": (0.18, (122, 122, 120)),
    "beige": (0.16, (128, 158, 176)),
    "brown": (0.12, (54, 76, 104)),
}
CARRIED_COLORS: dict[str, tuple[float, Color]] = {
    "black": (0.35, (42, 38, 36)),
    "brown": (0.20, (52, 84, 124)),
    "red": (0.15, (50, 44, 172)),
    "blue": (0.15, (160, 104, 54)),
    "yellow": (0.15, (66, 178, 214)),
}
HAIR_COLORS: dict[str, tuple[float, Color]] = {
    "black": (0.34, (30, 26, 26)),
    "brown": (0.34, (34, 52, 82)),
    "blond": (0.18, (112, 170, 206)),
    "red": (0.14, (38, 74, 142)),
}
GRAY_HAIR: Color = (188, 188, 188)
SKIN_TONES: tuple[Color, ...] = ((178, 205, 236), (150, 184, 222), (116, 152, 200), (80, 112, 164), (52, 74, 116))
SHOE_COLORS: tuple[Color, ...] = ((36, 34, 34), (206, 208, 210), (44, 66, 96), (110, 84, 70))

BUILDS: dict[str, float] = {"slim": 0.86, "average": 1.0, "heavy": 1.22}  # factor on all widths
AGES: tuple[str, ...] = ("child", "adult", "senior")
HATS: tuple[str, ...] = ("none", "cap", "beanie", "brimmed")
BAGS: tuple[str, ...] = ("none", "handbag", "crossbody", "suitcase")
PATTERNS: tuple[str, ...] = ("plain", "stripes", "pinstripes", "checks", "dots", "two_tone")
BEARDS: tuple[str, ...] = ("none", "moustache", "full")

ATTRIBUTE_FIELDS: tuple[str, ...] = (
    "build",
    "age",
    "hair_length",
    "hair_color",
    "hat",
    "sleeve",
    "upper_length",
    "upper_color",
    "upper_second_color",
    "pattern",
    "lower_kind",
    "lower_length",
    "lower_color",
    "bag",
    "backpack",
    "glasses",
    "beard",
    "skin_tone",
    "logo",
    "freckles",
)


@dataclass(frozen=True)
class Person:
    """One person: names of attributes as in ``attributes.csv``, and the exact colors and sizes that are drawn.

    ``logo`` and ``freckles`` are codes: 15 bits (a 5 x 5 glyph, mirrored left to right) and 24 bits (places on the
    face). ``side`` is +1 where the bag hangs on the person's left, else -1.
    """

    names: Mapping[str, str]
    width: float
    head_scale: float
    stature: float
    stoop: float
    upper: Color
    second: Color
    lower: Color
    hair: Color
    skin: Color
    shoes: Color
    hat: Color
    bag: Color
    backpack: Color
    side: int
    pattern_period: float
    eye_gap: float
    brow_tilt: float
    mouth_width: float
    logo_code: int
    freckle_code: int

    def __getitem__(self, name: str) -> str:
        return self.names[name]


def sample_person(rng: np.random.Generator) -> Person:
    """Draw one person; every attribute is drawn independently, except that the colors of a pattern differ."""
    build = _pick(rng, {"slim": 0.33, "average": 0.40, "heavy": 0.27})
    age = _pick(rng, {"child": 0.14, "adult": 0.68, "senior": 0.18})
    upper_name, upper = _pick_color(rng, GARMENT_COLORS)
    second_name, second = _pick_color(rng, {k: v for k, v in GARMENT_COLORS.items() if k != upper_name})
    lower_name, lower = _pick_color(rng, LOWER_COLORS)
    hair_name, hair = _pick_color(rng, HAIR_COLORS)
    if age == "senior":
        hair_name, hair = "gray", GRAY_HAIR
    skin_tone = int(rng.integers(len(SKIN_TONES)))
    logo_code = int(rng.integers(1, 1 << 15)) | 0b000_0010_0010_0000  # two bits always set: never an empty glyph
    freckle_code = int(rng.integers(1 << 24)) & int(rng.integers(1 << 24))
    names = {
        "build": build,
        "age": age,
        "hair_length": _pick(rng, {"short": 0.45, "long": 0.42, "bald": 0.13}),
        "hair_color": hair_name,
        "hat": _pick(rng, {"none": 0.52, "cap": 0.18, "beanie": 0.15, "brimmed": 0.15}),
        "sleeve": _pick(rng, {"long": 0.6, "short": 0.4}),
        "upper_length": _pick(rng, {"normal": 0.74, "coat": 0.26}),
        "upper_color": upper_name,
        "upper_second_color": second_name,
        "pattern": _pick(rng, dict(zip(PATTERNS, (0.36, 0.14, 0.10, 0.13, 0.11, 0.16), strict=True))),
        "lower_kind": _pick(rng, {"trousers": 0.72, "skirt": 0.28}),
        "lower_length": _pick(rng, {"long": 0.62, "short": 0.38}),
        "lower_color": lower_name,
        "bag": _pick(rng, {"none": 0.46, "handbag": 0.19, "crossbody": 0.19, "suitcase": 0.16}),
        "backpack": _pick(rng, {"no": 0.68, "yes": 0.32}),
        "glasses": _pick(rng, {"no": 0.66, "yes": 0.34}),
        "beard": "none" if age == "child" else _pick(rng, {"none": 0.6, "moustache": 0.18, "full": 0.22}),
        "skin_tone": str(skin_tone),
        "logo": f"{logo_code:015b}",
        "freckles": f"{freckle_code:024b}",
    }
    return Person(
        names=names,
        width=BUILDS[build] * float(rng.uniform(0.96, 1.04)),
        head_scale={"child": 1.36, "adult": 1.0, "senior": 1.02}[age] * float(rng.uniform(0.97, 1.03)),
        stature={"child": 0.86, "adult": 1.0, "senior": 0.96}[age] * float(rng.uniform(0.97, 1.03)),
        stoop={"child": 0.0, "adult": 0.02, "senior": 0.17}[age],
        upper=_vary(rng, upper),
        second=_vary(rng, second),
        lower=_vary(rng, lower),
        hair=_vary(rng, hair),
        skin=_vary(rng, SKIN_TONES[skin_tone]),
        shoes=_vary(rng, SHOE_COLORS[int(rng.integers(len(SHOE_COLORS)))]),
        hat=_vary(rng, _pick_color(rng, CARRIED_COLORS)[1]),
        bag=_vary(rng, _pick_color(rng, CARRIED_COLORS)[1]),
        backpack=_vary(rng, _pick_color(rng, CARRIED_COLORS)[1]),
        side=int(rng.choice((-1, 1))),
        pattern_period=float(rng.uniform(0.85, 1.25)),
        eye_gap=float(rng.uniform(0.85, 1.2)),
        brow_tilt=float(rng.uniform(-0.25, 0.25)),
        mouth_width=float(rng.uniform(0.7, 1.3)),
        logo_code=logo_code,
        freckle_code=freckle_code,
    )


def _pick(rng: np.random.Generator, weights: Mapping[str, float]) -> str:
    names = list(weights)
    total = sum(weights.values())
    return names[int(rng.choice(len(names), p=[weights[name] / total for name in names]))]


def _pick_color(rng: np.random.Generator, colors: Mapping[str, tuple[float, Color]]) -> tuple[str, Color]:
    name = _pick(rng, {key: weight for key, (weight, _) in colors.items()})
    return name, colors[name][1]


def _vary(rng: np.random.Generator, color: Color, spread: int = 7) -> Color:
    blue, green, red = (
        int(np.clip(c + d, 8, 246)) for c, d in zip(color, rng.integers(-spread, spread + 1, 3), strict=True)
    )
    return blue, green, red
