"""Drawn scenes without persons (streets, halls, objects, textures), and the cameras that look at them."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from rayreid.data.synthetic.wardrobe import Colour

PLACE = (1.8, 1.15)  # width and height of the place that a camera looks at, in frames
HAZE = 0.65  # how far a place fades into grey, so that people stand out as near and vivid


def draw_scene(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Return a place where people walk, with a wall or hedge, a floor and some clutter; RGB, width × height pixels."""
    horizon = int(height * rng.uniform(0.25, 0.6))
    image = _gradient(rng, width, height, 70, 190)
    image.paste(_gradient(rng, width, height - horizon, 80, 180), (0, horizon))
    draw = ImageDraw.Draw(image)
    kind = rng.integers(4)
    tone = _grey(rng, 60, 200)
    if kind == 0:  # bricks or panels
        for row in range(0, horizon, max(4, height // 14)):
            draw.line((0, row, width, row), tone, 2)
        for column in range(int(rng.integers(8)), width, max(6, width // 5)):
            draw.line((column, 0, column, horizon), tone, 2)
    elif kind == 1:  # windows
        for left in range(int(rng.integers(width // 4)), width, width // 3):
            draw.rectangle((left, horizon // 6, left + width // 5, horizon * 2 // 3), tone, _grey(rng, 30, 90), 2)
    elif kind == 2:  # a hedge
        for _ in range(14):
            x, y, r = rng.uniform(0, width), rng.uniform(0, horizon), rng.uniform(0.06, 0.2) * width
            g = int(rng.integers(70, 130))
            draw.ellipse((x - r, y - r, x + r, y + r), (g * 6 // 10, g, g // 2))
    else:  # pillars
        for _ in range(3):
            x, w = rng.uniform(0, width), rng.uniform(0.05, 0.15) * width
            draw.rectangle((x, 0, x + w, horizon + 4), _grey(rng, 60, 200))
    if rng.random() < 0.6:  # floor tiles in perspective
        for x in np.linspace(-width, 2 * width, 10):
            draw.line((width / 2 + 0.3 * (x - width / 2), horizon, x, height), _grey(rng, 70, 170), 1)
        for t in (0.1, 0.25, 0.5, 0.8):
            draw.line((0, horizon + t * (height - horizon), width, horizon + t * (height - horizon)), tone, 1)
    for _ in range(int(rng.integers(0, 4))):  # bins, boxes, signs
        x, y = rng.uniform(-0.1, 1.0) * width, rng.uniform(0.3, 0.85) * height
        w, h = rng.uniform(0.08, 0.25) * width, rng.uniform(0.05, 0.2) * height
        draw.rectangle((x, y, x + w, y + h), _grey(rng, 40, 200, tint=40))
    return image


def draw_object(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Return a tree, car, texture or place, as a detector crops by mistake; RGB, width × height pixels."""
    kind = rng.integers(5)
    if kind == 0:
        return draw_scene(rng, width, height)
    if kind == 1:
        return _texture(rng, width, height)
    image = draw_scene(rng, width, height) if rng.random() < 0.5 else _gradient(rng, width, height, 110, 230)
    draw = ImageDraw.Draw(image)
    if kind == 2:  # a tree
        x, w = width * rng.uniform(0.35, 0.65), width * rng.uniform(0.05, 0.12)
        draw.rectangle((x - w, 0.4 * height, x + w, height), (92, 66, 44))
        for _ in range(22):
            cx, cy, r = (
                rng.normal(x, 0.22 * width),
                rng.normal(0.28, 0.12) * height,
                rng.uniform(0.08, 0.22) * width,
            )
            g = int(rng.integers(80, 170))
            draw.ellipse((cx - r, cy - r, cx + r, cy + r), (g // 2, g, g // 3))
    elif kind == 3:  # a car, cut by the frame
        body, y, x = _colour(rng, 20, 230), height * rng.uniform(0.45, 0.65), width * rng.uniform(-0.5, 0.1)
        length, h = width * rng.uniform(1.1, 1.7), height * 0.15
        draw.rounded_rectangle((x + 0.2 * length, y - h, x + 0.8 * length, y + h), h / 2, (70, 84, 96), body, 3)
        draw.rounded_rectangle((x, y, x + length, y + h), h / 3, body)
        for wheel in (0.22, 0.78):
            cx, r = x + wheel * length, 0.55 * h
            draw.ellipse((cx - r, y + h - r, cx + r, y + h + r), (24, 24, 26), (150, 150, 150), 2)
    else:  # a bicycle stand, a fence, a sign
        colour = _colour(rng, 20, 220)
        for x in np.linspace(0.05, 0.95, int(rng.integers(3, 9))):
            draw.line((x * width, 0.3 * height, x * width, 0.95 * height), colour, max(2, width // 25))
        for y in (0.35, 0.6, 0.85):
            draw.line((0, y * height, width, y * height), colour, max(2, width // 30))
    return image


@dataclass(frozen=True)
class Camera:
    """One camera of the network: its usual view of people, its optics and its colours.

    Attributes:
        place: The place that it looks at, larger than a frame. A part of it is the backdrop of each person, faded by
            distance. (A vivid or ever-changing backdrop distinguishes images better than the person does;
            self-supervision would then learn the backdrop and nothing about persons.)
        views: Probabilities of seeing people from the front, back, left and right.
        gain: (3,) float32, colour cast.
        contrast: Factor of the contrast; 1 leaves it unchanged.
        brightness: Value to add, out of 255.
        light: (width,) float32, factor per column: light from one side.
        blur: Standard deviation as a share of the frame's width.
        noise: Standard deviation, out of 255.
        quality: JPEG quality of the camera's own compression.
        scale: The person's usual height as a share of the frame's.
    """

    place: Image.Image
    views: tuple[float, ...]
    gain: np.ndarray
    contrast: float
    brightness: float
    light: np.ndarray
    blur: float
    noise: float
    quality: int
    scale: float

    @classmethod
    def sample(cls, rng: np.random.Generator, frame_width: int, canvas: tuple[int, int]) -> "Camera":
        """Return a random camera.

        Args:
            rng: Source of all random choices.
            frame_width: Width of the finished frame, pixels.
            canvas: Width and height of the drawing that becomes a frame, pixels.
        """
        place = draw_scene(rng, int(PLACE[0] * canvas[0]), int(PLACE[1] * canvas[1]))
        place = Image.blend(place, Image.new("RGB", place.size, (128, 128, 128)), HAZE)
        views = rng.dirichlet(np.full(4, 0.6)) * 0.8 + 0.05
        slope = rng.uniform(-0.2, 0.2)
        return cls(
            place=place,
            views=tuple(float(v) for v in views),
            gain=rng.uniform(0.95, 1.05, 3).astype(np.float32),
            contrast=float(rng.uniform(0.8, 1.1)),
            brightness=float(rng.uniform(-12, 12)),
            light=np.linspace(1 - slope, 1 + slope, frame_width, dtype=np.float32),
            blur=float(rng.uniform(0.0, 0.015)),
            noise=float(rng.uniform(2, 5)),
            quality=int(rng.integers(35, 90)),
            scale=float(rng.uniform(0.92, 1.04)),
        )

    def backdrop(self, rng: np.random.Generator, width: int, height: int) -> Image.Image:
        """Return the backdrop of one person: a part of the place, width × height pixels of the drawing."""
        x = int(rng.integers(self.place.width - width + 1))
        y = int(rng.integers(self.place.height - height + 1))
        return self.place.crop((x, y, x + width, y + height))

    def expose(self, image: Image.Image, rng: np.random.Generator, width: int, height: int) -> Image.Image:
        """Return a drawn frame at width × height pixels as this camera sees it."""
        image = image.resize((width, height), Image.Resampling.BOX)
        radius = self.blur * width * rng.uniform(0.3, 1.3)
        if radius > 0.25:
            image = image.filter(ImageFilter.GaussianBlur(radius))
        pixels = np.asarray(image, dtype=np.float32) - 128.0
        pixels *= self.contrast * rng.uniform(0.88, 1.12)
        pixels += 128.0 + self.brightness + rng.uniform(-8, 8)
        pixels *= self.gain * rng.uniform(0.97, 1.03, 3).astype(np.float32)
        pixels *= self.light[:, None]
        pixels += self.noise * rng.standard_normal(pixels.shape, dtype=np.float32)
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        compressed = io.BytesIO()
        image.save(compressed, "JPEG", quality=self.quality)
        return Image.open(compressed)


def _gradient(rng: np.random.Generator, width: int, height: int, low: int, high: int) -> Image.Image:
    """Return a surface: a vertical gradient between two greyish colours, with a grain."""
    ends = np.array([_grey(rng, low, high), _grey(rng, low, high)], dtype=np.float32)
    ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    surface = ends[0] + (ends[1] - ends[0]) * ramp + rng.normal(0, 4, (1, width, 1)).astype(np.float32)
    return Image.fromarray(np.clip(surface, 0, 255).astype(np.uint8))


def _texture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Return a regular pattern that fills the frame: waves of two colours."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / width
    angle, frequency = rng.uniform(0, np.pi), rng.uniform(8, 40)
    wave = np.sin(frequency * (np.cos(angle) * x + np.sin(angle) * y))
    if rng.random() < 0.5:
        wave = np.sign(wave * np.sin(frequency * (np.cos(angle) * y - np.sin(angle) * x)))
    ends = np.array([_colour(rng, 10, 245), _colour(rng, 10, 245)], dtype=np.float32)
    surface = ends[0] + (ends[1] - ends[0]) * (0.5 + 0.5 * wave[:, :, None])
    return Image.fromarray(surface.astype(np.uint8))


def _grey(rng: np.random.Generator, low: int, high: int, tint: int = 16) -> Colour:
    """Return a colour with a level in [low, high), whose channels differ from it by at most `tint`."""
    level, shift = int(rng.integers(low, high)), rng.integers(-tint, tint + 1, 3)
    return level + int(shift[0]), level + int(shift[1]), level + int(shift[2])


def _colour(rng: np.random.Generator, low: int, high: int) -> Colour:
    """Return any colour with channels in [low, high)."""
    r, g, b = (int(c) for c in rng.integers(low, high, 3))
    return r, g, b
