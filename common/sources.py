"""Where rows come from: the bundled sample, the Hub, Parquet files or an image folder. Images stay encoded."""

import glob
import json
import re
from pathlib import Path

import datasets
import pandas as pd

from common.config import DataConfig, InputError
from common.network import hub_or_cache

SAMPLE = Path(__file__).parent.parent / "data" / "sample"
ID_COLUMNS = ("image_id", "product_id", "scene_id")
VAL_NAMES = ("val", "validation", "valid", "dev")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def clean_category(name: str | None) -> str | None:
    """'Coffee Table' and 'coffee_table ' are both 'coffee_table'; None where nothing is left."""
    missing = name is None or name != name  # NaN
    return None if missing else "_".join(str(name).lower().split()) or None


def clean_categories(rows: datasets.Dataset) -> list[str | None]:
    feature, values = rows.features["category"], rows["category"]
    if isinstance(feature, datasets.ClassLabel):
        values = [feature.int2str(value) if value is not None and value >= 0 else None for value in values]  # -1: none
    return [clean_category(value) for value in values]


def load_tables(config: DataConfig, *more: str) -> dict[str, datasets.Dataset]:
    """The "train" and "val" rows with the columns that are needed, images still encoded; with `--split-by`, "all".

    `more` are further columns that must be there.
    """
    splits = read_splits(config.data)
    if "train" not in splits:
        raise InputError(f"--data {config.data} has no train split; its splits are {', '.join(splits)}.")
    train = splits["train"]
    val = next((splits[name] for name in VAL_NAMES if name in splits), None)
    if val is None and not config.split_by:
        raise InputError(
            f"--data {config.data} has no val split, only {', '.join(splits)}: make one with --split-by product_id, or "
            "--split-by image_id where images do not come in groups."
        )
    tables = {"all": _joined(train, val)} if config.split_by else {"train": train, "val": val}
    return {split: _needed_columns(split, rows, config, more) for split, rows in tables.items()}


def read_splits(data: str) -> dict[str, datasets.Dataset]:
    """All splits of the bundled sample, a Parquet file, a folder of these, an image folder or a Hub id, as they are."""
    source = Path(data)
    if data == "sample":
        return _load_parquet(data_dir=str(SAMPLE))
    if source.is_file() and source.suffix == ".parquet":
        return _load_parquet(data_files=glob.escape(data))
    if source.is_dir() and any(source.rglob("*.parquet")):
        if any(file.suffix.lower() in IMAGE_SUFFIXES for file in source.rglob("*")):
            raise InputError(f"{data} holds both Parquet files and images: name a folder of the one or the other.")
        return _load_parquet(data_dir=glob.escape(data))
    if source.is_dir():
        return _load_image_folder(source)
    if is_hub_id(data):
        return _load_from_hub(data)
    raise InputError(f"{data}: no such folder. Use 'sample', a Hub id (owner/name) or a folder.")


def is_hub_id(name: str) -> bool:
    """Whether `name` is owner/name, and no path here."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None and not Path(name).exists()


def _joined(train: datasets.Dataset, val: datasets.Dataset | None) -> datasets.Dataset:
    """The rows of both in one table, with the columns that both have."""
    if val is None:
        return train
    names = [name for name in train.column_names if name in val.column_names]
    tables = [table.select_columns(names) for table in (train, val)]
    if "image_id" in names and set(train["image_id"]) & set(val["image_id"]):  # such as a path within its split
        for i, split in enumerate(("train", "val")):
            ids = [f"{split}/{name}" for name in tables[i]["image_id"]]
            tables[i] = tables[i].remove_columns("image_id").add_column("image_id", ids)
    try:
        return datasets.concatenate_datasets(tables)
    except ValueError as error:
        raise InputError(f"train and val cannot be put together for --split-by: {error}") from error


def _needed_columns(split: str, rows: datasets.Dataset, config: DataConfig, more: tuple = ()) -> datasets.Dataset:
    """Only what is used, images left encoded, and an image_id: the row's number where the data has none."""
    columns, needed = rows.column_names, ["image", "category", *["bbox"] * config.crop, *more]
    missing = [name for name in needed if name not in columns]
    if missing:
        hint = " Train on the whole image without --crop." if missing == ["bbox"] else ""
        raise InputError(f"{split} lacks {', '.join(missing)}; its columns are {', '.join(columns)}.{hint}")
    rows = rows.select_columns([name for name in (*ID_COLUMNS, "image", "category", "bbox", *more) if name in columns])
    rows = undecoded(rows, split)
    if "image_id" not in columns:
        rows = rows.add_column("image_id", [str(i) for i in range(len(rows))])
    return rows


def undecoded(rows: datasets.Dataset, split: str) -> datasets.Dataset:
    """The rows with images as they are stored, {"bytes": ..., "path": ...}."""
    try:
        return rows.cast_column("image", datasets.Image(decode=False))
    except (NotImplementedError, TypeError, ValueError) as error:
        raise InputError(f"the column image of {split} holds no images but {rows.features['image']}.") from error


def _load_parquet(**where: str) -> dict[str, datasets.Dataset]:
    try:
        return datasets.load_dataset("parquet", **where)
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        place = " ".join(where.values())
        raise InputError(f"the Parquet files in {place} cannot be read: {error.__cause__ or error}") from error


def _load_from_hub(name: str) -> dict[str, datasets.Dataset]:
    """A data set of the Hub, from its cache where the Hub does not answer."""
    with hub_or_cache() as online:
        try:
            return datasets.load_dataset(name)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            if online:
                raise InputError(f"--data {name} cannot be loaded from the Hub: {error}") from error
            raise InputError(
                f"the Hub cannot be reached, and {name} is neither in its cache nor a folder here. "
                "Use --data sample for the bundled sample, or a folder of your own."
            ) from error


def _load_image_folder(folder: Path) -> dict[str, datasets.Dataset]:
    """SPLIT/CLASS/*.jpg and, optionally, SPLIT/metadata.jsonl or .csv with file_name, bbox and ids."""
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
            table["bbox"] = [_numbers(value) for value in table["bbox"]]
        for name in set(ID_COLUMNS) & set(table):
            table[name] = [str(value) for value in table[name]]
        kept = {name: table[name].tolist() for name in (*ID_COLUMNS, "image", "category", "bbox") if name in table}
        splits[split.name] = datasets.Dataset.from_dict(kept)
    if not splits:
        raise InputError(f"{folder} has neither Parquet files nor images in train/CLASS/ and val/CLASS/.")
    return splits


def _read_metadata(path: Path, file_names: pd.Series) -> pd.DataFrame:
    try:
        if path.suffix == ".jsonl":  # ids such as "000008" are texts
            table = pd.read_json(path, lines=True, dtype=False)
        else:
            table = pd.read_csv(path, dtype=str)
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if "file_name" not in table:
        raise InputError(f"{path} lacks the column file_name; it has {', '.join(map(str, table))}.")
    if table["file_name"].duplicated().any():
        raise InputError(f"{path} names {table['file_name'][table['file_name'].duplicated()].iloc[0]} twice.")
    if not table["file_name"].isin(file_names).any():
        raise InputError(f"{path} names none of the images beside it, such as {file_names.iloc[0]}.")
    return table


def _numbers(value) -> list[float] | None:
    """A metadata box, a list or a text such as "[10, 20, 30, 40]", as floats; None where it is neither."""
    try:
        return [float(v) for v in (json.loads(value) if isinstance(value, str) else value)]
    except (TypeError, ValueError):
        return None
