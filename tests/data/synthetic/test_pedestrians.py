"""Drawing pedestrians: persons that are few pixels high."""

from PIL import Image

from rayreid.data.synthetic.pedestrians import Pencil


def test_a_thin_limb_of_a_small_person_is_drawn():
    image = Image.new("RGB", (16, 32))
    pencil = Pencil(image, centre=8, top=2, height=20)
    pencil.limb([(-0.03, 0.5), (0.0, 0.4)], 0.012, (255, 0, 0))
    assert image.getcolors() != [(16 * 32, (0, 0, 0))]
