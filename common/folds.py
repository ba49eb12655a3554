"""A split of one's own (`--split-by`): no group, such as a product, on both sides; classes shared out evenly."""

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import datasets
import numpy as np

from common.config import InputError
from common.sources import ID_COLUMNS


@dataclass(frozen=True)
class Split:
    column: str
    fold: int  # which of the folds is val, from 1
    folds: int


def parse_split(text: str) -> Split:
    """'product_id:2/5' is the second of five folds of the products; 'product_id' alone is the first of five."""
    match = re.fullmatch(r"(\w+)(?::(\d+)/(\d+))?", text)
    if not match:
        raise InputError(f"--split-by {text}: write a column, such as product_id, or with a fold: product_id:2/5.")
    column, fold, folds = match[1], int(match[2] or 1), int(match[3] or 5)
    if folds < 2 or not 1 <= fold <= folds:
        raise InputError(f"--split-by {text}: there is no fold {fold} of {folds}; the first of five is 1/5.")
    return Split(column, fold, folds)


def group_numbers(values: Iterable[str | None]) -> np.ndarray:
    """Numbers (N,) from 0: the same for rows of one value; a row without a value is a group of its own."""
    keys = [f"value {value}" if value not in (None, "") else f"row {i}" for i, value in enumerate(values)]
    return np.unique(keys, return_inverse=True)[1]


def assign_folds(rows: datasets.Dataset, names: list[str | None], split: Split) -> tuple[list[str], np.ndarray]:
    """The classes, sorted, that occur in two groups or more, and each row's fold (N,), from 1; 0 for other rows.

    Rows with the same value in the split's column are a group and share a fold; a row without a value is its own.
    The same rows give the same folds, whatever the seed of a run.
    """
    if split.column not in rows.column_names or split.column not in ID_COLUMNS:
        there = [name for name in ID_COLUMNS if name in rows.column_names]
        raise InputError(f"--split-by {split.column}: the data has no such id column, but {', '.join(there)}.")
    groups = group_numbers(rows[split.column])
    counts = {name: len(set(groups[[i for i, n in enumerate(names) if n == name]])) for name in set(names) - {None}}
    classes = sorted(name for name, count in counts.items() if count >= 2)
    chosen = np.array([i for i, name in enumerate(names) if name in classes], dtype=np.int64)
    folds = np.zeros(len(names), dtype=np.int64)
    if len(set(groups[chosen])) < split.folds:
        number = len(set(groups[chosen]))
        raise InputError(f"--split-by {split.column}: {number} groups cannot be cut into {split.folds} folds.")
    from sklearn.model_selection import StratifiedGroupKFold  # takes seconds

    cutter = StratifiedGroupKFold(split.folds, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class with fewer rows than folds: some folds lack it
        labels = np.array([names[i] for i in chosen])
        for fold, (_, val) in enumerate(cutter.split(chosen, labels, groups[chosen]), 1):
            folds[chosen[val]] = fold
    for name in classes:
        if len(set(folds[[i for i, n in enumerate(names) if n == name]])) < 2:
            raise InputError(f"--split-by {split.column}: all rows of {name} fall into one fold; choose fewer folds.")
    return classes, folds
