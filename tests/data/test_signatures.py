import io
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from rayreid.data.images import FORMATS
from rayreid.data.signatures import HEAD_BYTES, is_image, other_kind


def encoded(format: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((20, 10, 3), np.uint8)).save(stream, format)
    return stream.getvalue()


def archive() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    return stream.getvalue()


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_that_is_read_is_recognised(format):
    head = encoded(format)[:HEAD_BYTES]
    assert is_image(head)
    assert other_kind(head) is None


def test_an_avif_whose_main_brand_is_that_of_all_its_kind_is_recognised():
    head = b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf"
    assert is_image(head) and other_kind(head) is None


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\n <!-- moved --> <HTML><body>", "HTML page"),
        (b"\xef\xbb\xbf<!doctype html>", "HTML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML document"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"/annex/objects/SHA256E-s1--0.jpg\n", "git-annex pointer"),
        (b"\0\5\x16\7\0\2\0\0Mac OS X", "AppleDouble file"),
        (b"PK\3\4", "zip archive"),
        (b"\x1f\x8b\x08", "gzip archive"),
        (archive(), "tar archive"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC image (no reader)"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", "video"),
        (b"BMW is a make of cars.", None),
        (b"P1 is the name of a player", None),
        (b"", None),
    ],
)
def test_other_files_are_no_images_and_named_if_they_are_known(head, kind):
    assert other_kind(head) == kind
    assert is_image(head) is (head[:2] == b"P1")  # the text could be a PBM: only decoding can tell


def test_many_comments_take_no_longer_than_few():
    comments = b"<!---->" * (HEAD_BYTES // 7)
    started = time.monotonic()
    assert other_kind(comments) is None  # 73 comments: an exponential search would not end
    assert other_kind(b"<!---->" * 60 + b" <html>") == "HTML page"
    assert other_kind(b"<!-- never closed <html>") is None
    assert time.monotonic() - started < 1
