"""Group-aware train/val splits (`--split-by`), stratified by class. A group is, for example, all rows of a product."""

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from common.config import ID_COLUMNS, InputError
from common.data.table import Table


@dataclass(frozen=True)
class Split:
    """A parsed `--split-by` option."""

    column: str  # the id column that defines the groups
    fold: int  # the fold used as val, counted from 1
    folds: int  # the number of folds


def parse_split(text: str) -> Split:
    """Parses `--split-by`: 'product_id:2/5' is the second of five folds by product, 'product_id' the first of five.

    Raises:
        InputError: the text does not have this form, or there is no such fold.
    """
    match = re.fullmatch(r"(\w+)(?::(\d+)/(\d+))?", text)
    if not match:
        raise InputError(
            f"--split-by {text}: give a column, such as product_id, or a column and a fold, such as product_id:2/5."
        )
    column, fold, folds = match[1], int(match[2] or 1), int(match[3] or 5)
    if folds < 2 or not 1 <= fold <= folds:
        raise InputError(
            f"--split-by {text}: there is no fold {fold} of {folds}. Folds are counted from 1; at least 2 are needed."
        )
    return Split(column, fold, folds)


def group_numbers(values: Iterable[str | None]) -> np.ndarray:
    """Group numbers (N,), counted from 0: rows with the same value share one, rows without a value get their own."""
    keys = [f"value {value}" if value not in (None, "") else f"row {i}" for i, value in enumerate(values)]
    return np.unique(keys, return_inverse=True)[1]


def assign_folds(rows: Table, categories: list[str | None], split: Split) -> tuple[list[str], np.ndarray]:
    """Assigns rows to folds, stratified by class. Rows of one group are in the same fold.

    Rows with the same value in the split's column form a group; a row without a value forms its own group. The folds
    depend only on the rows, not on the seed of a run.

    Args:
        rows: the table of all N rows.
        categories: (N,) the category of each row, or None.
        split: the column and the number of folds.

    Returns:
        The sorted classes that occur in at least two groups, and the fold of each row (N,), counted from 1. Rows of
        other classes have fold 0.

    Raises:
        InputError: the column does not exist, or there are too few groups for the number of folds.
    """
    if split.column not in rows or split.column not in ID_COLUMNS:
        available = [name for name in ID_COLUMNS if name in rows]
        raise InputError(f"--split-by {split.column}: no such id column. The data has {', '.join(available)}.")
    groups = group_numbers(rows[split.column])
    group_counts = {
        name: len(set(groups[[i for i, category in enumerate(categories) if category == name]]))
        for name in set(categories)
        if name is not None
    }
    classes = sorted(name for name, count in group_counts.items() if count >= 2)
    chosen = np.array([i for i, name in enumerate(categories) if name in classes], dtype=np.int64)
    folds = np.zeros(len(categories), dtype=np.int64)
    if len(set(groups[chosen])) < split.folds:
        number = len(set(groups[chosen]))
        raise InputError(
            f"--split-by {split.column}: {number} groups cannot be divided into {split.folds} folds. Use fewer folds."
        )
    from sklearn.model_selection import StratifiedGroupKFold  # slow to import, and only this option needs it

    splitter = StratifiedGroupKFold(split.folds, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes with fewer rows than folds, which are allowed here
        labels = np.array([categories[i] for i in chosen])
        for fold, (_, val) in enumerate(splitter.split(chosen, labels, groups[chosen]), 1):
            folds[chosen[val]] = fold
    for name in classes:
        if len(set(folds[[i for i, category in enumerate(categories) if category == name]])) < 2:
            raise InputError(f"--split-by {split.column}: all rows of {name} are in one fold. Use fewer folds.")
    return classes, folds
