"""Images, boxes and categories as the world really has them."""

import io
import math
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common.config import InputError, TrainConfig
from common.crop import box_problem, crop_image, grow_box
from common.data import load_splits
from common.sources import clean_category


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width=40, height=30):
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def bomb():
    """A PNG of 60,000 x 60,000 pixels in a hundred bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return encoded(photo(), "JPEG", exif=tags)


GOOD = {
    "cmyk.jpg": lambda: encoded(photo().convert("CMYK"), "JPEG"),
    "grey.jpg": lambda: encoded(photo().convert("L"), "JPEG"),
    "16bit.png": lambda: encoded(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50), "PNG"),
    "palette.png": lambda: encoded(photo().convert("P"), "PNG", transparency=3),
    "alpha.png": lambda: encoded(photo().convert("RGBA"), "PNG"),
    "animated.gif": lambda: encoded(photo(), "GIF", save_all=True, append_images=[photo().rotate(90)]),
    "photo.webp": lambda: encoded(photo(), "WEBP"),
    "a_png_named.jpg": lambda: encoded(photo(), "PNG"),
    "1x1.png": lambda: encoded(photo(1, 1), "PNG"),
    "1x5000.png": lambda: encoded(photo(1, 5000), "PNG"),
    "5000x1.jpg": lambda: encoded(photo(5000, 1), "JPEG"),
    **{f"exif{i}.jpg": lambda i=i: exif(i) for i in range(1, 9)},
}
BAD = {
    "truncated.jpg": lambda: encoded(photo(), "JPEG")[:700],
    "truncated.png": lambda: encoded(photo(), "PNG")[:1000],
    "empty.jpg": lambda: b"",
    "text.jpg": lambda: b"this is no image\n",
    "bomb.png": bomb,
}


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_hostile_images(tmp_path, fit):
    for split in ("train", "val"):
        (tmp_path / split / "thing").mkdir(parents=True)
        for name, make in {**GOOD, **BAD}.items():
            (tmp_path / split / "thing" / name).write_bytes(make())
    options = dict(data=str(tmp_path), cache=str(tmp_path / "cache"), image_size=16, fit=fit)
    with pytest.raises(InputError, match=f"{len(BAD)} of {len(GOOD) + len(BAD)} train rows cannot be used"):
        load_splits(TrainConfig(**options))
    train, val = load_splits(TrainConfig(**options, bad_rows="skip"))
    assert {problem["id"] for problem in train.problems} == {f"thing/{name}" for name in BAD}
    assert train.ids()["image_id"] == sorted(f"thing/{name}" for name in GOOD) and len(val) == len(GOOD)
    assert all(math.isfinite(value) for value in train[0][0].flatten().tolist())


numbers = st.one_of(
    st.integers(-50, 150),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0, -1, 10**12, 1e-300, None]),
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.none(), st.lists(numbers, max_size=6)), st.integers(1, 60), st.integers(1, 60))
def test_a_box_is_refused_or_gives_a_crop(bbox, width, height):
    """Whatever the box: it is named as wrong, or its crop lies in the image and has the size asked for."""
    if box_problem(bbox, width, height) is None:
        left, top, right, bottom = grow_box(bbox, 0.1, width, height)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        for fit in ("squash", "pad"):
            assert crop_image(photo(width, height), bbox, size=8, margin=0.1, fit=fit)[0].size == (8, 8)
    elif bbox is not None:
        with pytest.raises(ValueError):
            crop_image(photo(width, height), bbox, size=8)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.none(), st.text(), st.integers()))
def test_a_clean_category_stays_clean(name):
    clean = clean_category(name)
    if clean is not None:
        assert clean and not any(letter.isspace() for letter in clean)
        assert clean_category(clean) == clean, "cleaning twice is cleaning once"
        assert clean_category(f"  {clean.replace('_', ' ')} ") in (clean, clean_category(clean.replace("_", " ")))


@pytest.mark.parametrize("name", ["Стул", "椅子", "كرسي", "Café Stuhl"])
def test_categories_of_any_script(name):
    assert clean_category(name) == name.lower().replace(" ", "_")


def test_one_class_only(rows, parquet, cache):
    one = {
        split: [row for row in split_rows if row["category"].lower() == "chair"] for split, split_rows in rows.items()
    }
    train, val = load_splits(TrainConfig(data=parquet(one), cache=cache, image_size=16))
    assert train.classes == ["chair"] and set(val.labels.tolist()) == {0}
