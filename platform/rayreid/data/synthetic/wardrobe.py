"""Clothing of drawn persons: the palettes of a domain, and an identity as a combination of attributes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Colour = tuple[int, int, int]

PATTERNS = ("plain", "plain", "rings", "pinstripes", "checks", "logo", "block", "jacket")
SLEEVES = (0.0, 0.5, 1.0, 1.0)  # share of the arm that is covered
LOWERS = ("trousers", "trousers", "shorts", "skirt", "long skirt")
HAIRCUTS = ("short", "short", "long", "bun", "cap")
BAGS = ("none", "none", "backpack", "shoulder", "handbag")


@dataclass(frozen=True)
class Wardrobe:
    """The palettes from which persons of one drawing domain choose."""

    upper: tuple[Colour, ...]
    lower: tuple[Colour, ...]
    skin: tuple[Colour, ...]
    hair: tuple[Colour, ...]
    outline: Colour | None = None  # colour of the contours, None for none


STREET = Wardrobe(
    upper=(
        (38, 38, 44),
        (222, 220, 214),
        (122, 124, 128),
        (160, 44, 48),
        (48, 72, 138),
        (66, 104, 70),
        (188, 160, 116),
    ),
    lower=((36, 36, 42), (62, 78, 118), (116, 116, 120), (150, 130, 96), (204, 202, 196)),
    skin=((236, 196, 168), (206, 156, 122), (150, 102, 74), (92, 62, 46)),
    hair=((30, 26, 26), (84, 56, 38), (176, 138, 82), (150, 146, 144)),
)
CARTOON = Wardrobe(
    upper=((255, 0, 190), (0, 235, 255), (255, 240, 0), (140, 255, 0), (255, 120, 0), (150, 60, 255)),
    lower=((0, 255, 160), (255, 60, 90), (70, 90, 255), (255, 200, 0)),
    skin=((255, 220, 90), (150, 255, 210), (255, 170, 220)),
    hair=((255, 0, 90), (0, 120, 255), (120, 0, 200), (0, 200, 60)),
    outline=(10, 10, 20),
)
SKETCH = Wardrobe(((250, 250, 246),), ((246, 246, 242),), ((254, 254, 250),), ((236, 236, 232),), outline=(40, 40, 46))


@dataclass(frozen=True)
class Appearance:
    """The features of a person that stay the same from camera to camera."""

    upper: Colour
    accent: Colour  # second colour of the upper garment's pattern
    pattern: str
    sleeve: float
    lower: Colour
    lower_kind: str
    skin: Colour
    hair: Colour
    haircut: str
    shoes: Colour
    bag: str
    bag_colour: Colour
    bag_side: int
    build: float  # breadth, 1 for the average
    stature: float  # height, 1 for the tallest
    outline: Colour | None

    @classmethod
    def sample(cls, rng: np.random.Generator, wardrobe: Wardrobe = STREET) -> "Appearance":
        """Return a new person; two persons of one wardrobe differ more by the combination than by any colour."""

        def colour(palette: Sequence[Colour]) -> Colour:
            return _shift(palette[int(rng.integers(len(palette)))], rng.integers(-9, 10, 3))

        def one(values: Sequence[str]) -> str:
            return values[int(rng.integers(len(values)))]

        index = int(rng.integers(len(wardrobe.upper)))
        other = (index + 1 + int(rng.integers(max(1, len(wardrobe.upper) - 1)))) % len(wardrobe.upper)
        return cls(
            upper=_shift(wardrobe.upper[index], rng.integers(-9, 10, 3)),
            accent=_shift(wardrobe.upper[other], rng.integers(-9, 10, 3)),
            pattern=one(PATTERNS),
            sleeve=SLEEVES[rng.integers(len(SLEEVES))],
            lower=colour(wardrobe.lower),
            lower_kind=one(LOWERS),
            skin=colour(wardrobe.skin),
            hair=colour(wardrobe.hair),
            haircut=one(HAIRCUTS),
            shoes=colour(wardrobe.lower),
            bag=one(BAGS),
            bag_colour=colour(wardrobe.upper),
            bag_side=1 if rng.random() < 0.5 else -1,
            build=float(rng.uniform(0.85, 1.25)),
            stature=float(rng.uniform(0.86, 1.0)),
            outline=wardrobe.outline,
        )


def _shift(colour: Colour, by: np.ndarray) -> Colour:
    """Return a colour shifted by an integer vector, clipped to 0..255."""
    r, g, b = (int(min(255, max(0, c + d))) for c, d in zip(colour, by, strict=True))
    return r, g, b
