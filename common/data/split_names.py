"""The split that a file belongs to, as its name or those of its folders say."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

KEYWORDS = {  # words in the names of files and folders, as in the library datasets
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
WORDS = {word for words in KEYWORDS.values() for word in words}
SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")


def parquet_splits(names: Iterable[str]) -> dict[str, list[str]]:
    """The Parquet files of each split, by their names relative to the data's folder, as `datasets` assigns them.

    Files data/SPLIT-00000-of-00001.parquet come first. Otherwise folders named after a split count, then files named
    after one; if there is none of these, all files are train. Other files belong to no split.
    """
    names = [name for name in names if not any(part.startswith("__") for part in name.split("/")[:-1])]
    splits: dict[str, list[str]] = {}
    for find in (_shard_splits, folder_splits, file_splits):
        for name in names:
            for split in find(name):
                splits.setdefault(split, []).append(name)
        if splits:
            return {split: splits[split] for split in sorted(splits, key=[*KEYWORDS, *sorted(splits)].index)}
    return {"train": names} if names else {}


def _shard_splits(name: str) -> list[str]:
    shard = SHARD.fullmatch(name)
    return [shard[1]] if shard else []


def folder_splits(name: str) -> list[str]:
    """The splits that the folders in the name of a file are named after."""
    return [split for split in KEYWORDS if any(_names(split, part) for part in name.split("/")[:-1])]


def is_split(folder: str) -> bool:
    """Whether a folder is named after a split, in upper or lower case."""
    return bool(folder_splits(f"{folder.lower()}/"))


def file_splits(name: str) -> list[str]:
    """The splits that a file is named after."""
    return [split for split in KEYWORDS if _names(split, PurePosixPath(name).name)]


def _names(split: str, text: str) -> bool:
    return re.fullmatch(rf"(.*[-._ 0-9])?({'|'.join(KEYWORDS[split])})([-._ 0-9].*)?", text, re.DOTALL) is not None
