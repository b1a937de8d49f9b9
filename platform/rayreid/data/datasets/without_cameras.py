"""A dataset whose cameras are not told apart."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from rayreid.data.store.shards import Record
from rayreid.data.store.witness import SourceFile

if TYPE_CHECKING:
    from rayreid.data.datasets import Dataset


class WithoutCameras:
    """The images of a dataset, all of them by an unknown camera, so that any two of an identity are a match.

    The Market-1501 protocol leaves out matches by the query's own camera, hence all matches of a set with one camera.

    Args:
        dataset: The dataset, with its cameras.

    Attributes:
        name, version, ignored, left_out, notes: Those of the dataset.
    """

    def __init__(self, dataset: "Dataset"):
        self._dataset = dataset
        self.name, self.version = dataset.name, dataset.version
        self.ignored: list[tuple[str, str]] = []
        self.left_out: dict[str, tuple[int, str]] = {}
        self.notes: list[str] = []

    def records(self) -> Iterator[Record]:
        """List the images in the dataset's order."""
        for record in self._dataset.records():
            yield replace(record, camid=-1)
        self.ignored, self.left_out, self.notes = self._dataset.ignored, self._dataset.left_out, self._dataset.notes

    def read(self, record: Record) -> bytes:
        """Return an image's encoded bytes; raise the dataset's OSError if it cannot read them."""
        return self._dataset.read(record)

    def sources(self) -> Iterable[SourceFile]:
        """List the files from which the dataset is read."""
        return self._dataset.sources()

    def source_of(self, record: Record) -> str:
        """Return the name in `sources` of the file that holds an image's bytes."""
        return self._dataset.source_of(record)
