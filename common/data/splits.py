"""Group-aware train/val splits (`--split-by`), stratified by class. A group is, for example, all rows of a product."""

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from common.config import ID_COLUMNS, InputError, count
from common.data.table import Table


@dataclass(frozen=True, order=True)
class Split:
    """A parsed `--split-by` option; `str` gives its shortest form with a fold, such as product_id:2/5."""

    column: str  # the id column that defines the groups; "" for the split that the data has
    fold: int  # the fold used as val, counted from 1
    folds: int  # the number of folds
    partition: int = 0  # which division into folds: the random state of the shuffle

    def __str__(self) -> str:
        partition = f":{self.partition}" if self.partition else ""
        return f"{self.column}:{self.fold}/{self.folds}{partition}" if self.column else ""


def parse_split(text: str) -> Split:
    """Parses `--split-by`, COLUMN[:FOLD/FOLDS[:PARTITION]].

    'product_id:2/5:1' is the second of five folds by product in partition 1, 'product_id:2/5' the second in partition
    0, and 'product_id' the first of five folds in partition 0.

    Raises:
        InputError: the text does not have this form, or there is no such fold.
    """
    match = re.fullmatch(r"(\w+)(?::(\d{1,9})/(\d{1,9})(?::(\d{1,9}))?)?", text)
    if not match:
        raise InputError(
            f"--split-by {text}: give a column, such as product_id, a column and a fold, such as product_id:2/5, or a "
            "column, a fold and a partition, such as product_id:2/5:1."
        )
    column, fold, folds = match[1], int(match[2] or 1), int(match[3] or 5)
    if folds < 2 or not 1 <= fold <= folds:
        raise InputError(
            f"--split-by {text}: there is no fold {fold} of {folds}. Folds are counted from 1; at least 2 are needed."
        )
    return Split(column, fold, folds, int(match[4] or 0))


def group_numbers(values: Iterable[str | None]) -> np.ndarray:
    """Group numbers (N,), counted from 0: rows with the same value share one, rows without a value get their own."""
    keys = [f"value {value}" if value not in (None, "") else f"row {i}" for i, value in enumerate(values)]
    return np.unique(keys, return_inverse=True)[1]


def connected_groups(*columns: Iterable[str | None]) -> np.ndarray:
    """Group numbers (N,), counted from 0, in which rows that share a value in any of the columns are in one group.

    Rows of one product form a group, for example, and so do those of one photo: if a photo shows several products, all
    of their rows do.
    """
    numbers = [group_numbers(values) for values in columns]
    firsts = [np.unique(groups, return_index=True)[1][groups] for groups in numbers]  # the first row of the group
    n = len(firsts[0])
    links = np.tile(np.arange(n), len(firsts)), np.concatenate(firsts)
    return connected_components(coo_matrix((np.ones(len(links[0])), links), (n, n)), directed=False)[1]


def assign_folds(rows: Table, categories: list[str | None], split: Split) -> tuple[list[str], np.ndarray]:
    """Assigns rows to folds, stratified by class. Rows of one group are in the same fold.

    Rows with the same value in the split's column form a group; a row without a value forms its own group. The folds
    depend only on the rows and the partition, not on the seed of a run.

    Args:
        rows: the table of all N rows.
        categories: (N,) the category of each row, or None.
        split: the column, the number of folds and the partition.

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
    classes = sorted(name for name, number in group_counts.items() if number >= 2)
    chosen = np.array([i for i, name in enumerate(categories) if name in classes], dtype=np.int64)
    folds = np.zeros(len(categories), dtype=np.int64)
    if len(set(groups[chosen])) < split.folds:
        number = len(set(groups[chosen]))
        problem = f"{count(number, 'group')} cannot be divided into {split.folds} folds. Use fewer folds"
        if not number:
            problem = f"each category occurs with only one {split.column}, so none can be in both train and val"
        raise InputError(f"--split-by {split.column}: {problem}.")
    from sklearn.model_selection import StratifiedGroupKFold  # slow to import, and only this option needs it

    splitter = StratifiedGroupKFold(split.folds, shuffle=True, random_state=split.partition)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes with fewer rows than folds, which are allowed here
        labels = np.array([categories[i] for i in chosen])
        for fold, (_, val) in enumerate(splitter.split(chosen, labels, groups[chosen]), 1):
            folds[chosen[val]] = fold
    for name in classes:
        if len(set(folds[[i for i, category in enumerate(categories) if category == name]])) < 2:
            raise InputError(
                f"--split-by {split}: all rows of {name} are in one fold. Use fewer folds or another partition."
            )
    return classes, folds
