"""Drawn pedestrians: postures of a person, and the drawing of the person with Pillow.

Lengths are in units of the person's height: y runs from 0 (top of the head) to 1 (soles), x from the body's axis.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from rayreid.data.synthetic.wardrobe import Appearance, Colour

Point = tuple[float, float]

VIEWS = ("front", "back", "left", "right")


@dataclass(frozen=True)
class Posture:
    """The posture of a person in one image: the visible side, the opening of the legs and the swing of the arms."""

    view: str
    stride: float
    swing: float

    @classmethod
    def sample(cls, rng: np.random.Generator, views: Sequence[float] = (0.25, 0.25, 0.25, 0.25)) -> "Posture":
        """Return a random posture; `views` gives the probabilities of `VIEWS`."""
        view = VIEWS[min(int(np.searchsorted(np.cumsum(views), rng.random())), len(VIEWS) - 1)]
        return cls(view, float(rng.uniform(0.0, 1.0)), float(rng.uniform(-1.0, 1.0)))


class Pencil:
    """A pencil that draws shapes, given in the person's units, onto an image.

    Args:
        image: RGB image to draw on.
        centre: x of the body's axis in pixels.
        top: y of the top of the head in pixels.
        height: The person's height in pixels.
        outline: Colour of the contours, None for none.
    """

    def __init__(self, image: Image.Image, centre: float, top: float, height: float, outline: Colour | None = None):
        self.image, self.centre, self.top, self.height, self.outline = image, centre, top, height, outline
        self.draw = ImageDraw.Draw(image)
        self.line_width = max(1, round(0.012 * height))

    def at(self, x: float, y: float) -> Point:
        """Return the pixel position of a point of the person."""
        return self.centre + x * self.height, self.top + y * self.height

    def polygon(self, points: Sequence[Point], fill: Colour) -> None:
        """Draw a filled polygon."""
        self.draw.polygon([self.at(*p) for p in points], fill, self.outline, self.line_width)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        """Draw a filled ellipse with its centre at (x, y)."""
        self.draw.ellipse((self.at(x - rx, y - ry), self.at(x + rx, y + ry)), fill, self.outline, self.line_width)

    def limb(self, points: Sequence[Point], width: float, fill: Colour) -> None:
        """Draw a bent stroke with round ends: an arm or a leg."""
        pixels = [self.at(*p) for p in points]
        strokes = [(width * self.height, fill)]
        if self.outline:
            strokes.insert(0, (width * self.height + 2 * self.line_width, self.outline))
        for breadth, colour in strokes:
            self.draw.line(pixels, colour, max(1, round(breadth)))
            for x, y in pixels:
                r = max(0.0, breadth / 2 - 0.5)  # a thin limb of a small person
                self.draw.ellipse((x - r, y - r, x + r, y + r), colour)

    def garment(self, points: Sequence[Point], look: Appearance, view: str) -> None:
        """Draw the upper garment with its pattern, clipped to the polygon `points`."""
        self.polygon(points, look.upper)
        if look.pattern == "plain" or (look.pattern in ("logo", "jacket") and view == "back"):
            return
        pixels = np.array([self.at(*p) for p in points])
        left, top = np.floor(pixels.min(0)).astype(int)
        width, height = np.ceil(pixels.max(0)).astype(int) - (left, top) + 1
        mask, unit = Image.new("1", (width, height)), self.height
        ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in pixels], 1)
        cloth = Image.new("RGB", (width, height), look.upper)
        draw = ImageDraw.Draw(cloth)
        if look.pattern in ("rings", "checks"):
            for i in range(5):
                draw.rectangle((0, (0.04 + 0.08 * i) * unit, width, (0.075 + 0.08 * i) * unit), look.accent)
        if look.pattern in ("pinstripes", "checks"):
            for i in range(-2, 3):
                x = width / 2 + 0.07 * i * unit
                draw.rectangle((x - 0.014 * unit, 0, x + 0.014 * unit, height), look.accent)
        if look.pattern == "block":
            draw.rectangle((0, 0.13 * unit, width, height), look.accent)
        facing = {"left": -1, "right": 1}.get(view, 0)
        if look.pattern in ("logo", "jacket"):
            x, half = width / 2 + facing * 0.05 * unit, 0.036 * unit
            y0, y1 = (0.07 * unit, 0.16 * unit) if look.pattern == "logo" else (0, height)
            draw.rectangle((x - half, y0, x + half, y1), look.accent)
        self.image.paste(cloth, (int(left), int(top)), mask)
        if self.outline:
            self.draw.polygon([self.at(*p) for p in points], None, self.outline, self.line_width)


def draw_pedestrian(
    image: Image.Image, look: Appearance, posture: Posture, centre: float, top: float, height: float
) -> None:
    """Draw a standing or walking person.

    Args:
        image: RGB image to draw on.
        look: The person's appearance.
        posture: The person's posture.
        centre: x of the body's axis in pixels.
        top: y of the top of the head in pixels.
        height: The person's height in pixels.
    """
    pencil = Pencil(image, centre, top, height, look.outline)
    facing = {"left": -1, "right": 1}.get(posture.view, 0)
    shoulder = look.build * (0.078 if facing else 0.122)
    hip = look.build * (0.078 if facing else 0.1)
    mirrored = -1 if posture.view == "back" else 1
    if facing:
        _draw_arm(pencil, look, 0.0, 0.11 * posture.swing, 0.75)
    _draw_legs(pencil, look, posture, hip, facing)
    torso = [(-0.045, 0.15), (0.045, 0.15), (shoulder, 0.19), (hip, 0.5), (-hip, 0.5), (-shoulder, 0.19)]
    if look.bag == "backpack" and facing:
        pencil.polygon(
            [(-facing * x, y) for x, y in ((0.05, 0.2), (0.17, 0.22), (0.18, 0.42), (0.06, 0.44))],
            look.bag_colour,
        )
    pencil.garment(torso, look, posture.view)
    _draw_head(pencil, look, posture.view, facing)
    if facing:
        _draw_arm(pencil, look, 0.0, -0.11 * posture.swing, 0.9)
    else:
        for side in (-1, 1):
            _draw_arm(pencil, look, side * shoulder, side * (0.02 + 0.02 * posture.swing * side), 0.9)
    _draw_bag(pencil, look, posture.view, facing, mirrored * look.bag_side, shoulder, hip)


def draw_from_above(image: Image.Image, look: Appearance, centre: float, middle: float, size: float) -> None:
    """Draw a person as seen by a ceiling camera: `size` pixels wide, with the crown at (centre, middle)."""
    pencil = Pencil(image, centre, middle, size, look.outline)
    pencil.oval(0.06, 0.16, 0.1, 0.22, look.shoes)
    pencil.oval(-0.1, -0.12, 0.09, 0.2, look.shoes)
    pencil.oval(0, 0, 0.5 * look.build, 0.22, look.upper)
    pencil.oval(0, -0.03, 0.17, 0.19, look.hair)


def _draw_arm(pencil: Pencil, look: Appearance, x: float, reach: float, shade: float) -> None:
    """Draw one arm from the shoulder at x, with the hand `reach` further out; `shade` darkens it for depth."""
    points = [(x, 0.21), (x + 0.6 * reach, 0.35), (x + reach + 0.01 * np.sign(reach), 0.48)]
    width = 0.055 * look.build
    sleeve = _scale(look.upper, shade)
    pencil.limb(points, 0.8 * width, _scale(look.skin, shade))
    if look.sleeve == 1.0:
        end = (0.15 * points[1][0] + 0.85 * points[2][0], 0.46)
        pencil.limb([points[0], points[1], end], width, sleeve)
    elif look.sleeve > 0:
        pencil.limb([points[0], (x + 0.45 * reach, 0.31)], width, sleeve)


def _draw_legs(pencil: Pencil, look: Appearance, posture: Posture, hip: float, facing: int) -> None:
    """Draw both legs, the farther one darker, with shoes and the garment that covers them."""
    width = 0.085 * look.build
    spread = 0.13 * posture.stride if facing else 0.05 * look.build + 0.03 * posture.stride
    lift = 0.03 * posture.stride
    for side, shade in ((-1, 0.8 if facing else 0.95), (1, 1.0)):
        thigh = (0.0 if facing else side * 0.05 * look.build, 0.5)
        knee = (thigh[0] + 0.5 * side * spread + 0.25 * spread * facing, 0.73)
        if not facing:
            knee = (0.5 * (thigh[0] + side * spread), 0.73)
        raised = lift if side < 0 else 0.0
        foot = (side * spread, 0.955 - raised)
        bare = look.lower_kind != "trousers"
        pencil.limb([knee, foot], 0.6 * width, _scale(look.skin if bare else look.lower, shade))
        pencil.oval(foot[0] + 0.025 * facing, foot[1] + 0.015, 0.05 if facing else 0.034, 0.024, look.shoes)
        if not bare:
            pencil.limb([thigh, knee, (foot[0], foot[1] - 0.03)], 0.85 * width, _scale(look.lower, shade))
        else:
            pencil.limb([thigh, knee], width, _scale(look.lower, shade))
    if "skirt" in look.lower_kind:
        hem = 0.86 if look.lower_kind == "long skirt" else 0.7
        flare = hip + 0.03 + 0.03 * posture.stride
        pencil.polygon([(-hip, 0.46), (hip, 0.46), (flare, hem), (-flare, hem)], look.lower)


def _draw_head(pencil: Pencil, look: Appearance, view: str, facing: int) -> None:
    """Draw neck, face and hair; from behind, the hair hides the face."""
    pencil.limb([(0, 0.13), (0, 0.16)], 0.05, _scale(look.skin, 0.9))
    if look.haircut == "long" and facing:
        x = -0.03 * facing
        pencil.polygon([(x - 0.05, 0.06), (x + 0.05, 0.06), (x + 0.04, 0.23), (x - 0.06, 0.23)], look.hair)
    elif look.haircut == "long":
        for x in (-0.052, 0.052):
            pencil.limb([(x, 0.07), (1.15 * x, 0.22)], 0.034, look.hair)
    if look.haircut == "bun":
        pencil.oval(-0.05 * facing, 0.005 if not facing else 0.03, 0.03, 0.03, look.hair)
    pencil.oval(0, 0.072, 0.052, 0.068, look.hair if view == "back" else look.skin)
    if view == "back" and look.haircut == "long":
        pencil.polygon([(-0.06, 0.07), (0.06, 0.07), (0.068, 0.26), (-0.068, 0.26)], look.hair)
    crown = (pencil.at(-0.058 - 0.008 * facing, -0.005), pencil.at(0.058 - 0.008 * facing, 0.115))
    start, end = {0: (180, 360), 1: (90, 315), -1: (225, 450)}[facing]
    colour = look.bag_colour if look.haircut == "cap" else look.hair
    pencil.draw.pieslice(crown, 180 if look.haircut == "cap" else start, 360 if look.haircut == "cap" else end, colour)
    if look.haircut == "cap" and view != "back":
        pencil.limb([(-0.05 + 0.06 * facing, 0.055), (0.05 + 0.06 * facing, 0.055)], 0.018, colour)
    if view == "front":
        for x in (-0.02, 0.02):
            pencil.oval(x, 0.075, 0.007, 0.007, _scale(look.skin, 0.35))


def _draw_bag(pencil: Pencil, look: Appearance, view: str, facing: int, side: int, shoulder: float, hip: float) -> None:
    """Draw the visible part of the bag; from the front, a backpack shows only its straps."""
    colour, dark = look.bag_colour, _scale(look.bag_colour, 0.7)
    if look.bag == "backpack" and view == "back":
        w = 0.085
        pencil.polygon([(-w, 0.2), (w, 0.2), (1.1 * w, 0.44), (-1.1 * w, 0.44)], colour)
        pencil.polygon([(-0.7 * w, 0.33), (0.7 * w, 0.33), (0.7 * w, 0.42), (-0.7 * w, 0.42)], dark)
    elif look.bag == "backpack" and view == "front":
        for x in (-0.6 * shoulder, 0.6 * shoulder):
            pencil.limb([(x, 0.18), (1.1 * x, 0.34)], 0.024, colour)
    elif look.bag == "shoulder":
        x = side * (hip + 0.02) if not facing else -0.02 * facing
        pencil.limb([(-0.6 * side * shoulder, 0.17), (x, 0.46)], 0.018, dark)
        pencil.polygon([(x - 0.06, 0.45), (x + 0.06, 0.45), (x + 0.065, 0.56), (x - 0.065, 0.56)], colour)
    elif look.bag == "handbag":
        x = side * (shoulder + 0.03) if not facing else 0.03 * facing
        pencil.limb([(x - 0.03, 0.56), (x, 0.49), (x + 0.03, 0.56)], 0.012, dark)
        pencil.polygon([(x - 0.055, 0.55), (x + 0.055, 0.55), (x + 0.065, 0.66), (x - 0.065, 0.66)], colour)


def _scale(colour: Colour, factor: float) -> Colour:
    """Return a darker colour."""
    return int(colour[0] * factor), int(colour[1] * factor), int(colour[2] * factor)
