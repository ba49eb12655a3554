"""Detection data sets in every layout: the same crops and labels in each, and one sentence for damaged files."""

import numpy as np
import pytest
import torch

from tests.layouts import LAYOUTS, stem


@pytest.fixture
def many(rows):
    """The rows with two more boxes in each photo; the second has the category of the next row."""
    result = {}
    for split, split_rows in rows.items():
        result[split] = []
        for i, row in enumerate(split_rows):
            if split == "train" and row["category"] not in {r["category"] for r in rows["val"]}:
                continue
            x, y, w, h = row["bbox"]
            other = split_rows[(i + 1) % len(split_rows)]["category"]
            other = other if other in {r["category"] for r in rows["val"]} else row["category"]
            half, corner = [x, y, (w + 1) // 2, h], [0, 0, x + w, y + h]
            result[split] += [row, dict(row, bbox=half, category=other), dict(row, bbox=corner)]
    return result


@pytest.fixture
def write(tmp_path):
    """A function that writes rows in a layout and returns the folder."""

    def write(layout, rows, name="data"):
        LAYOUTS[layout](tmp_path / name, rows)
        return str(tmp_path / name)

    return write


def contents(split):
    """Pixels, crop sizes and labels of a split by photo and order in the photo, which is the same in each layout."""
    keys, counts = [], {}
    for image_id in split.ids()["image_id"]:
        counts[stem(image_id)] = counts.get(stem(image_id), 0) + 1
        keys.append((stem(image_id), counts[stem(image_id)]))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    labels = [split.classes[split.labels[i]] for i in order]
    return [keys[i] for i in order], split.pixels[split.index[order]], split.crop_sizes[order], labels


def assert_same(ours, theirs):
    for split, other in zip(ours, theirs, strict=True):
        (keys, pixels, sizes, labels), (other_keys, other_pixels, other_sizes, other_labels) = (
            contents(s) for s in (split, other)
        )
        assert keys == other_keys and labels == other_labels
        np.testing.assert_array_equal(pixels, other_pixels)
        torch.testing.assert_close(sizes, other_sizes, rtol=0, atol=1e-3)


# One row is one object -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_crops_and_labels_of_the_parquet_form(load, rows, parquet, write, layout):
    """One object in each photo, as in the sample."""
    assert_same(load(write(layout, rows)), load(parquet(rows)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_photos_with_many_objects(load, many, write, layout):
    """As decoded one by one: a photo of several boxes is decoded at full scale."""
    train, val = load(write(layout, many), image_size=24)
    expected = load(write("objects, parquet", many, "expected"), image_size=24)
    if layout != "label, parquet":  # where a photo is stored once for each box
        assert_same((train, val), expected)
    assert len(val) == 72 and len(set(val.ids()["image_id"])) == 24
