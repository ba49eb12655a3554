"""Data sources: the bundled sample, the Hugging Face Hub, Parquet files and image folders. Images stay encoded."""

import glob
import json
import re
from pathlib import Path

import datasets
import pandas as pd

from common.config import ID_COLUMNS, DataConfig, InputError
from common.data.hub import hub_or_cache

SAMPLE = Path(__file__).parents[2] / "data" / "sample"
VAL_NAMES = ("val", "validation", "valid", "dev")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def clean_category(name: str | None) -> str | None:
    """Normalises a category name: 'Coffee Table' and 'coffee_table ' become 'coffee_table'. None if it is empty."""
    missing = name is None or name != name  # None or NaN
    return None if missing else "_".join(str(name).lower().split()) or None


def clean_categories(rows: datasets.Dataset) -> list[str | None]:
    """The normalised category of each row; None for rows without one."""
    feature, values = rows.features["category"], rows["category"]
    if isinstance(feature, datasets.ClassLabel):  # class numbers, where -1 means no label
        values = [feature.int2str(value) if value is not None and value >= 0 else None for value in values]
    return [clean_category(value) for value in values]


def load_tables(config: DataConfig, *extra_columns: str) -> dict[str, datasets.Dataset]:
    """The tables "train" and "val" or, with `--split-by`, "all", with encoded images and the columns that are used.

    Args:
        config: names the data source in `data`; `crop` makes bbox a required column.
        extra_columns: further required columns.

    Raises:
        InputError: the data cannot be read, or a split or a required column is missing.
    """
    splits = read_splits(config.data)
    if "train" not in splits:
        raise InputError(f"--data {config.data} has no train split, only {', '.join(splits)}: rename a split to train.")
    train = splits["train"]
    val = next((splits[name] for name in VAL_NAMES if name in splits), None)
    if val is None and not config.split_by:
        raise InputError(
            f"--data {config.data} has no val split, only {', '.join(splits)}: create one with --split-by product_id, "
            "or with --split-by image_id if the images are not grouped."
        )
    tables = {"all": _concatenate(train, val)} if config.split_by else {"train": train, "val": val}
    return {split: _select_columns(split, rows, config, extra_columns) for split, rows in tables.items()}


def read_splits(data: str) -> dict[str, datasets.Dataset]:
    """Reads all splits of `data`, unchanged.

    `data` is "sample" (the bundled sample), a Parquet file, a folder of Parquet files, an image folder or a Hub id.

    Raises:
        InputError: there is no such data, or it cannot be read.
    """
    source = Path(data)
    if data == "sample":
        return _load_parquet(data_dir=str(SAMPLE))
    if source.is_file() and source.suffix == ".parquet":
        return _load_parquet(data_files=glob.escape(data))
    if source.is_dir() and any(source.rglob("*.parquet")):
        if any(file.suffix.lower() in IMAGE_SUFFIXES for file in source.rglob("*")):
            raise InputError(f"{data} contains both Parquet files and images: use a folder with only one of them.")
        return _load_parquet(data_dir=glob.escape(data))
    if source.is_dir():
        return _load_image_folder(source)
    if is_hub_id(data):
        return _load_from_hub(data)
    raise InputError(
        f"{data}: no such file or folder. Use 'sample', a Hub id (owner/name), a Parquet file or a folder."
    )


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form owner/name and is not an existing path."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None and not Path(name).exists()


def _concatenate(train: datasets.Dataset, val: datasets.Dataset | None) -> datasets.Dataset:
    """The rows of both splits in one table, with the columns that they have in common."""
    if val is None:
        return train
    names = [name for name in train.column_names if name in val.column_names]
    tables = [table.select_columns(names) for table in (train, val)]
    if "image_id" in names and set(train["image_id"]) & set(val["image_id"]):  # such as paths relative to the split
        for i, split in enumerate(("train", "val")):
            ids = [f"{split}/{name}" for name in tables[i]["image_id"]]
            tables[i] = tables[i].remove_columns("image_id").add_column("image_id", ids)
    try:
        return datasets.concatenate_datasets(tables)
    except ValueError as error:
        raise InputError(f"train and val cannot be combined for --split-by: {error}") from error


def _select_columns(
    split: str, rows: datasets.Dataset, config: DataConfig, extra_columns: tuple = ()
) -> datasets.Dataset:
    """The columns that are used, with encoded images. Row numbers serve as image_id if the data has no such column."""
    columns = rows.column_names
    required = ["image", "category", *["bbox"] * config.crop, *extra_columns]
    missing = [name for name in required if name not in columns]
    if missing:
        hint = " To train on whole images, leave out --crop." if missing == ["bbox"] else ""
        raise InputError(
            f"the {split} split has no column {', '.join(missing)}; its columns are {', '.join(columns)}.{hint}"
        )
    used = (*ID_COLUMNS, "image", "category", "bbox", *extra_columns)
    rows = rows.select_columns([name for name in used if name in columns])
    rows = undecoded(rows, split)
    if "image_id" not in columns:
        rows = rows.add_column("image_id", [str(i) for i in range(len(rows))])
    return rows


def undecoded(rows: datasets.Dataset, split: str) -> datasets.Dataset:
    """Disables image decoding: the column image then holds dicts {"bytes": ..., "path": ...}."""
    try:
        return rows.cast_column("image", datasets.Image(decode=False))
    except (NotImplementedError, TypeError, ValueError) as error:
        raise InputError(
            f"the column image of {split} must contain images; it contains {rows.features['image']}."
        ) from error


def _load_parquet(**location: str) -> dict[str, datasets.Dataset]:
    try:
        return datasets.load_dataset("parquet", **location)
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        path = " ".join(location.values())
        raise InputError(f"the Parquet files in {path} cannot be read: {error.__cause__ or error}") from error


def _load_from_hub(name: str) -> dict[str, datasets.Dataset]:
    """A data set from the Hub, or from the local cache if the Hub is unreachable."""
    with hub_or_cache() as online:
        try:
            return datasets.load_dataset(name)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            if online:
                raise InputError(f"--data {name} cannot be loaded from the Hub: {error}") from error
            raise InputError(
                f"the Hub cannot be reached, and {name} is neither in the local cache nor a local folder. "
                "Use --data sample for the bundled sample, or a folder with your own data."
            ) from error


def _load_image_folder(folder: Path) -> dict[str, datasets.Dataset]:
    """Reads SPLIT/CLASS/*.jpg and, if present, SPLIT/metadata.jsonl or .csv with columns file_name, bbox and ids."""
    splits = {}
    for split in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = sorted(path for path in split.glob("*/*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            continue
        table = pd.DataFrame({"file_name": [path.relative_to(split).as_posix() for path in files]})
        table["image"] = [str(path) for path in files]
        table["category"] = [path.parent.name for path in files]
        for metadata in (split / "metadata.jsonl", split / "metadata.csv"):
            if metadata.exists():
                extra = _read_metadata(metadata, table["file_name"])
                table = table.merge(extra.drop(columns=["image", "category"], errors="ignore"), "left", "file_name")
                break
        table = table.rename(columns={"file_name": "image_id"}) if "image_id" not in table else table
        if "bbox" in table:
            table["bbox"] = [_parse_box(value) for value in table["bbox"]]
        for name in set(ID_COLUMNS) & set(table):
            table[name] = [str(value) for value in table[name]]
        columns = {name: table[name].tolist() for name in (*ID_COLUMNS, "image", "category", "bbox") if name in table}
        splits[split.name] = datasets.Dataset.from_dict(columns)
    if not splits:
        raise InputError(f"{folder} contains neither Parquet files nor images in train/CLASS/ and val/CLASS/.")
    return splits


def _read_metadata(path: Path, file_names: pd.Series) -> pd.DataFrame:
    try:
        if path.suffix == ".jsonl":  # dtype=False keeps ids such as "000008" as strings
            table = pd.read_json(path, lines=True, dtype=False)
        else:
            table = pd.read_csv(path, dtype=str)
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if "file_name" not in table:
        raise InputError(f"{path} has no column file_name; its columns are {', '.join(map(str, table))}.")
    if table["file_name"].duplicated().any():
        duplicate = table["file_name"][table["file_name"].duplicated()].iloc[0]
        raise InputError(f"{path} lists {duplicate} more than once: keep one line per image.")
    if not table["file_name"].isin(file_names).any():
        raise InputError(
            f"{path} lists none of the images in its folder: file_name must be a path such as {file_names.iloc[0]}."
        )
    return table


def _parse_box(value) -> list[float] | None:
    """A box from metadata, a list or a string such as "[10, 20, 30, 40]", as floats; None for anything else."""
    try:
        return [float(v) for v in (json.loads(value) if isinstance(value, str) else value)]
    except (TypeError, ValueError):
        return None
