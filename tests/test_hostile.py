"""Unusual images, boxes and categories that occur in real data."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import InputError, TrainConfig
from common.data.boxes import convention_problem, upper_left_note
from common.data.crop import box_problem, box_row, crop_image, grow_box
from common.data.dataset import load_splits
from common.data.sources import clean_category
from tests.helpers import READABLE, UNREADABLE, photo


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image folder of one class, with readable and unreadable files of all kinds in both splits."""
    folder = tmp_path_factory.mktemp("hostile")
    for split in ("train", "val"):
        (folder / split / "thing").mkdir(parents=True)
        for name, make in {**READABLE, **UNREADABLE}.items():
            (folder / split / "thing" / name).write_bytes(make())
    return str(folder)


def test_unreadable_images_are_counted(folder, cache):
    with pytest.raises(InputError, match=f"{len(UNREADABLE)} of {len(READABLE) + len(UNREADABLE)} train rows"):
        load_splits(TrainConfig(data=folder, cache=cache, image_size=16))


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_readable_images_are_read_and_the_others_left_out(folder, cache, fit):
    train, val = load_splits(TrainConfig(data=folder, cache=cache, image_size=16, fit=fit, bad_rows="skip"))
    assert {problem["id"] for problem in train.problems} == {f"thing/{name}" for name in UNREADABLE}
    assert train.ids()["image_id"] == sorted(f"thing/{name}" for name in READABLE) and len(val) == len(READABLE)
    assert all(math.isfinite(value) for value in train[0][0].flatten().tolist())


numbers = st.one_of(
    st.integers(-50, 150),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0, -1, 10**12, 1e-300, None]),
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.none(), st.lists(numbers, max_size=6)), st.integers(1, 60), st.integers(1, 60))
def test_a_box_is_refused_or_gives_a_crop(bbox, width, height):
    """Any box is either reported as invalid, or its crop lies within the image and has the requested size."""
    if box_problem(bbox, width, height) is None:
        left, top, right, bottom = grow_box(bbox, 0.1, width, height)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        for fit in ("squash", "pad"):
            assert crop_image(photo(width, height), bbox, size=8, margin=0.1, fit=fit)[0].size == (8, 8)
    elif bbox is not None:
        with pytest.raises(ValueError):
            crop_image(photo(width, height), bbox, size=8)


any_box = st.one_of(
    st.none(), st.lists(numbers, max_size=6), st.lists(st.one_of(numbers, st.just("1"), st.just([1])), min_size=4)
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(any_box, st.integers(1, 60), st.integers(1, 60)), max_size=30))
@pytest.mark.filterwarnings("error")
def test_any_table_of_boxes_can_be_checked(boxes):
    rows = np.array([box_row(bbox, photo(width, height)) for bbox, width, height in boxes]).reshape(-1, 7)
    for sentence in (convention_problem(rows), upper_left_note(rows)):
        assert sentence is None or sentence.endswith(".")


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
    chairs = {split: [row for row in rows[split] if row["category"].lower() == "chair"] for split in rows}
    train, val = load_splits(TrainConfig(data=parquet(chairs), cache=cache, image_size=16))
    assert train.classes == ["chair"] and set(val.labels.tolist()) == {0}
