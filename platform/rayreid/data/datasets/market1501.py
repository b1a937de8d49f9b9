"""Market-1501 (Zheng et al., ICCV 2015), and datasets with its layout.

    bounding_box_train/  query/  bounding_box_test/       0002_c1s1_000451_03.jpg

A file name contains identity, camera, sequence, frame and detection. Identity −1 (badly detected: junk) and 0000
(distractors) occur in `bounding_box_test` and keep these numbers.
"""

from rayreid.data.datasets.named_files import NamedFiles

FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}


class Market1501(NamedFiles):
    """Market-1501: splits train, query and gallery; keys such as "query/0001_c1s1_001051_00.jpg".

    Args:
        root: The folder that contains `bounding_box_train`, `query` and `bounding_box_test`.

    Raises:
        UserError: The folder is missing or has another layout.
    """

    name = "market1501"
    folders = FOLDERS
    deep = False


class DukeMTMC(Market1501):
    """DukeMTMC-reID (Zheng et al., ICCV 2017), in Market-1501's folders with names such as "0001_c2_f0046182.jpg".

    Its authors withdrew DukeMTMC in 2019, because the persons in it had not given their consent. Read it only to repeat
    results that were published before; do not start new work on it.
    """

    name = "dukemtmc"
