"""Fixtures: the bundled sample as every kind of source, and one pixel cache for the whole test run."""

import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

SAMPLE = Path(__file__).parent.parent / "data" / "sample"


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def rows():
    """60 train and 30 val rows of the sample as dicts, five and two or three of each class and two of `vase`."""
    chosen = {}
    for split, per_class in (("train", 5), ("val", 2)):
        table, seen, chosen[split] = pq.read_table(SAMPLE / f"{split}-00000-of-00001.parquet"), {}, []
        for row in table.to_pylist():
            name = "_".join(row["category"].lower().split())
            seen[name] = seen.get(name, 0) + 1
            if seen[name] <= per_class:
                chosen[split].append(row)
    return chosen


@pytest.fixture
def parquet(tmp_path):
    """A function that writes {split: rows} as a folder of Parquet files and returns its path."""

    def write(splits, name="parquet"):
        folder = tmp_path / name
        folder.mkdir()
        for split, split_rows in splits.items():
            pq.write_table(pa.Table.from_pylist(split_rows), folder / f"{split}-00000-of-00001.parquet")
        return str(folder)

    return write


@pytest.fixture
def image_folder(tmp_path, rows):
    """The rows as SPLIT/CLASS/ID.jpg with metadata.jsonl."""
    for split, split_rows in rows.items():
        lines = []
        for row in split_rows:
            name = f"{row['category']}/{row['image_id']}.jpg"
            (tmp_path / "folder" / split / row["category"]).mkdir(parents=True, exist_ok=True)
            (tmp_path / "folder" / split / name).write_bytes(row["image"]["bytes"])
            ids = {key: row[key] for key in ("image_id", "product_id", "scene_id", "bbox")}
            lines.append(json.dumps({"file_name": name, **ids}))
        (tmp_path / "folder" / split / "metadata.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "folder")


def wait_for(condition, seconds=120):
    """Until `condition()` is true; an AssertionError after `seconds`."""
    for _ in range(20 * seconds):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited in vain")
