"""A drawn re-identification dataset, with which the whole method can be run and judged in minutes without a download.

The *target* is a small labelled set in the manner of Market-1501. The *pool* is unlabelled: a known share of it is
drawn in the target's domain (the same cameras, other persons); the rest comes from other domains or shows nobody.
Pre-training on the pool should therefore help on the target, and a selection of the pool can be judged against
`Synthetic.origins`. Faults may be planted in the pool, and `Synthetic.planted_images` lists them. Every image is a pure
function of the options, the seed and its key (for one version of Pillow and NumPy).
"""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from rayreid.data.store.shards import Record
from rayreid.data.synthetic import planted as faults
from rayreid.data.synthetic.pedestrians import Posture, draw_from_above, draw_pedestrian
from rayreid.data.synthetic.scenes import Camera, draw_object, draw_scene
from rayreid.data.synthetic.wardrobe import CARTOON, SKETCH, STREET, Appearance
from rayreid.errors import UserError

ORIGINS = ("target_domain", "other_domain", "background")
SUPERSAMPLING = 3  # images are drawn at this multiple of their size, then averaged down
POOL_IMAGES_PER_PERSON = 4  # on average; a crawled pool also shows a person more than once
JUNK_SHARE = 0.05  # share of the gallery: badly framed strangers with pid -1, as in Market-1501

_TARGET_KEY = re.compile(r"(train|query|gallery)/(-?\d+)_c(\d+)_(\d+)\.jpg")
_POOL_KEY = re.compile(r"pool/(\d+)\.jpg")


class Synthetic:
    """The drawn dataset.

    Args:
        root: Ignored; there are no files.
        part: "target" (splits train, query, gallery) or "pool" (split pool).
        seed: Another seed gives other persons, cameras and images. Target and pool belong together if their seeds,
            sizes and numbers of cameras are equal.
        size: (height, width) of the images in pixels.
        cameras: Number of cameras, at least 2.
        identities: Target: number of persons in the train split.
        test_identities: Target: number of persons in query and gallery.
        images_per_camera: Target: number of images of a person per camera, at least 2; one of them is the query.
        images: Pool: number of images.
        relevant: Pool: share in (0, 1) that is drawn in the target's domain.
        planted: Pool: shares in [0, 1) of planted faults by kind (`planted.KINDS`), which replace images of any origin;
            the other images stay as they are without them.

    Raises:
        UserError: An option is out of its range.
    """

    name = "synthetic"
    version = "3"

    def __init__(
        self,
        root: str | None = None,
        *,
        part: Literal["target", "pool"] = "target",
        seed: int = 0,
        size: Sequence[int] = (96, 48),
        cameras: int = 6,
        identities: int = 60,
        test_identities: int = 60,
        images_per_camera: int = 2,
        images: int = 2400,
        relevant: float = 0.5,
        planted: Mapping[str, float] | None = None,
    ):
        if part not in ("target", "pool"):
            raise UserError(f"synthetic: part is {part!r}; give 'target' or 'pool'")
        if not isinstance(size, Sequence) or len(size) != 2:
            raise UserError(f"synthetic: size is {size!r}; give [height, width]")
        if not isinstance(relevant, float) or not 0 < relevant < 1:
            raise UserError(f"synthetic: relevant is {relevant!r}; give a share between 0 and 1, both excluded")
        self.ignored: list[tuple[str, str]] = []  # nothing is ever ignored or left out
        self.left_out: dict[str, tuple[int, str]] = {}
        self.notes: list[str] = []
        self.part = part
        self.relevant = relevant
        self.seed = _whole("seed", seed, 0)
        self.height, self.width = _whole("size", size[0], 16), _whole("size", size[1], 16)
        self.identities = _whole("identities", identities, 1)
        self.test_identities = _whole("test_identities", test_identities, 1)
        self.images_per_camera = _whole("images_per_camera", images_per_camera, 2)
        self.images = _whole("images", images, 4)
        self._canvas = (self.width * SUPERSAMPLING, self.height * SUPERSAMPLING)
        self._cameras = [
            Camera.sample(self._rng("camera", c), self.width, self._canvas)
            for c in range(1, _whole("cameras", cameras, 2) + 1)
        ]
        self._origins = self._deal_origins()
        shares = faults.check_shares(planted)
        self._planted = faults.deal(self._rng("planted", self.images, *shares.items()), self.images, shares)

    def records(self) -> list[Record]:
        """List all images of this part; camera ids count from 1, and ids of test persons follow those of train."""
        if self.part == "pool":
            keys = [_pool_key(number) for number in range(self.images)]
            return [Record(key, -1, -1, "pool", key) for key in keys]
        shots = [
            ("train" if pid <= self.identities else "query" if shot == 0 else "gallery", pid, camid, shot)
            for pid in range(1, self.identities + self.test_identities + 1)
            for camid in range(1, len(self._cameras) + 1)
            for shot in range(self.images_per_camera)
        ]
        junk = max(1, round(JUNK_SHARE * sum(split == "gallery" for split, *_ in shots)))
        shots += [("gallery", -1, 1 + i % len(self._cameras), i) for i in range(junk)]
        records = []
        for split, pid, camid, shot in shots:
            key = f"{split}/{pid:04d}_c{camid}_{shot:03d}.jpg"
            records.append(Record(key, pid, camid, split, key))
        return records

    def read(self, record: Record) -> bytes:
        """Return one drawn image.

        Returns:
            JPEG bytes of quality 90, height × width as requested.

        Raises:
            UserError: The record's key does not belong to this dataset.
        """
        target, pool = _TARGET_KEY.fullmatch(record.key), _POOL_KEY.fullmatch(record.key)
        if self.part == "target" and target and self._has(int(target[2]), int(target[3])):
            pid = int(target[2])
            person = ("junk", record.key) if pid == -1 else ("target", pid)
            rng, camera = self._rng("image", record.key), self._cameras[int(target[3]) - 1]
            image = self._street_image(rng, person, camera, badly_framed=pid == -1)
        elif self.part == "pool" and pool and int(pool[1]) < self.images:
            image = self._pool_image(int(pool[1]))
        else:
            raise UserError(f"synthetic: no image {record.key!r} in this part {self.part!r} with these options")
        data = io.BytesIO()
        image.save(data, "JPEG", quality=90)
        return data.getvalue()

    def sources(self) -> tuple[()]:
        """Return the files from which the images are read: none, they are drawn."""
        return ()

    def source_of(self, record: Record) -> str:
        """Return the key, since no file holds the image."""
        return record.key

    def origins(self) -> dict[str, str]:
        """Return the origin of each image by key, one of `ORIGINS`; for judging selections only."""
        if self.part == "target":
            return {record.key: ORIGINS[0] for record in self.records()}
        return {_pool_key(number): self._origin(number) for number in range(self.images)}

    def planted_images(self) -> dict[str, faults.Planted]:
        """Return the planted images by key, in ascending order; for judging selections only."""
        if self.part == "target":
            return {}
        sources = {number: _pool_key(source) for number, source in self._planted.sources.items()}
        kinds = sorted(self._planted.kinds.items())
        return {_pool_key(number): faults.Planted(kind, sources.get(number, "")) for number, kind in kinds}

    def _has(self, pid: int, camid: int) -> bool:
        """Return whether the target has this person (−1: any stranger) and this camera."""
        known = pid == -1 or 1 <= pid <= self.identities + self.test_identities
        return known and 1 <= camid <= len(self._cameras)

    def _deal_origins(self) -> np.ndarray:
        """Return the index into `ORIGINS` of each pool image, int64 (images,), shuffled so that no key reveals it."""
        relevant = round(self.relevant * self.images)
        other = (self.images - relevant) // 2
        dealt = np.repeat(np.arange(3), [relevant, other, self.images - relevant - other])
        return self._rng("origins", self.images, self.relevant).permutation(dealt)

    def _rng(self, *parts: object) -> np.random.Generator:
        """Return the generator that belongs to (seed, parts), whatever was drawn before."""
        name = "/".join(str(part) for part in (self.seed, *parts))
        return np.random.default_rng(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest()))

    def _origin(self, number: int) -> str:
        """Return the origin of a pool image: a duplicate has that of its source, an empty crop `background`."""
        if self._planted.kinds.get(number) in (faults.UNIFORM, faults.BACKDROP):
            return "background"
        return ORIGINS[self._origins[self._planted.sources.get(number, number)]]

    def _pool_image(self, number: int) -> Image.Image:
        """Return one unlabelled image, with the fault that is planted in it."""
        kind, shown = self._planted.kinds.get(number), self._planted.sources.get(number, number)
        rng = self._rng("planted", _pool_key(number))
        if kind == faults.UNIFORM:
            return faults.uniform(rng, self.width, self.height)
        if kind == faults.BACKDROP:
            camera = self._cameras[rng.integers(len(self._cameras))]
            return camera.expose(camera.backdrop(rng, *self._canvas), rng, self.width, self.height)
        image = self._drawn_image(self._rng("image", _pool_key(shown)), ORIGINS[self._origins[shown]])
        if kind == faults.NEAR_DUPLICATE:
            return faults.neighbouring_frame(image, rng)
        return faults.blurred(image, rng) if kind == faults.BLURRED else image

    def _drawn_image(self, rng: np.random.Generator, origin: str) -> Image.Image:
        """Return one unlabelled image without a fault."""
        if origin == "target_domain":
            persons = max(1, round(self.relevant * self.images / POOL_IMAGES_PER_PERSON))
            person = ("pool", int(rng.integers(persons)))
            return self._street_image(rng, person, self._cameras[rng.integers(len(self._cameras))])
        if origin == "background":
            camera = Camera.sample(rng, self.width, self._canvas)
            return camera.expose(draw_object(rng, *self._canvas), rng, self.width, self.height)
        return self._foreign_image(rng)

    def _street_image(
        self, rng: np.random.Generator, person: tuple[str | int, ...], camera: Camera, badly_framed: bool = False
    ) -> Image.Image:
        """Return a person of the target's domain in front of one of its cameras, framed inexactly as by a detector."""
        width, height = self._canvas
        look = Appearance.sample(self._rng("person", *person))
        image = camera.backdrop(rng, width, height)
        tall = height * camera.scale * look.stature * rng.uniform(0.93, 1.1)
        centre = width * rng.uniform(0.42, 0.58)
        top = (height - tall) * rng.uniform(0.2, 0.8) + height * rng.uniform(-0.03, 0.03)
        if badly_framed:
            centre += width * (0.4 if rng.random() < 0.5 else -0.4)
            top += height * rng.uniform(-0.35, 0.35)
        draw_pedestrian(image, look, Posture.sample(rng, camera.views), centre, top, tall)
        if rng.random() < 0.2:
            _occlude(rng, image)
        return camera.expose(image, rng, self.width, self.height)

    def _foreign_image(self, rng: np.random.Generator) -> Image.Image:
        """Return a person in another domain than the target's: cartoon, sketch, thermal or ceiling camera."""
        width, height = self._canvas
        style = rng.integers(4)
        centre, tall = width * rng.uniform(0.4, 0.6), height * rng.uniform(0.75, 1.0)
        top = (height - tall) * rng.uniform(0, 1)
        if style == 3:
            image = draw_scene(rng, width, height).rotate(90, expand=True).resize((width, height))
            draw_from_above(image, Appearance.sample(rng, CARTOON), centre, height / 2, 0.8 * width)
        elif style == 2:
            image = Image.new("RGB", (width, height), (225, 225, 225))
            draw_pedestrian(image, Appearance.sample(rng, STREET), Posture.sample(rng), centre, top, tall)
            image = ImageOps.colorize(ImageOps.invert(image.convert("L")), (20, 0, 60), (255, 230, 90), (200, 30, 90))
        else:
            wardrobe = CARTOON if style == 0 else SKETCH
            paper = tuple(int(c) for c in rng.integers(150 if style == 0 else 246, 256, 3))
            image = Image.new("RGB", (width, height), paper)
            draw_pedestrian(image, Appearance.sample(rng, wardrobe), Posture.sample(rng), centre, top, tall)
        return image.resize((self.width, self.height), Image.Resampling.BOX)


def _occlude(rng: np.random.Generator, image: Image.Image) -> None:
    """Draw something in front of the person: a post or a low wall."""
    width, height = image.size
    colour = tuple(int(c) for c in rng.integers(60, 180) + rng.integers(-30, 31, 3))
    x, y = rng.uniform(0, 1) * width, rng.uniform(0.6, 0.85) * height
    box = (x, 0, x + 0.15 * width, height) if rng.random() < 0.5 else (0, y, width, height)
    ImageDraw.Draw(image).rectangle(box, colour)


def _pool_key(number: int) -> str:
    return f"pool/{number:07d}.jpg"


def _whole(option: str, value: object, least: int) -> int:
    """Return an option that must be a whole number of at least `least`.

    Raises:
        UserError: It is not such a number.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"synthetic: {option} is {value!r}; give a whole number of at least {least}")
    return value
