"""Tables from Parquet files, and what the files of a split must have in common."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from common.config import ID_COLUMNS, InputError, count
from common.data.table import (
    ParquetFiles,
    Table,
    as_text,
    file_problem,
    file_state,
    open_parquet,
    parse_box,
    printable_name,
)

TEXTS = (*ID_COLUMNS, "category")
IN_MEMORY = (*TEXTS, "bbox", "objects")
CATEGORY_COLUMNS = ("category", "label", "labels", "class")  # the first of these that a table has is the category
OBJECT_CATEGORIES = ("category", "categories", "category_id", "labels", "label")
IMAGES = ("image", "mask")


def read_parquet(
    folder: Path, splits: dict[str, list[str]], *, root: Path | None, unread: list[str] | None = None
) -> dict[str, Table]:
    """A table for each split of {split: names of Parquet files in `folder`}.

    Args:
        folder: the folder of the files.
        splits: the names of the files of each split.
        root: links to files outside of this folder are refused; None accepts all links.
        unread: names of further files, which are not read.

    Raises:
        InputError: a file cannot be read, is not in `root`, belongs to two splits or differs from the others in its
            columns.
    """
    split_of: dict[str, str] = {}
    for split, names in splits.items():
        for name in names:
            path = folder / name
            problem = file_problem(str(path), str(root) if root else None)
            if problem:
                raise InputError(f"{path} cannot be read: {problem}.")
            if split_of.setdefault(name, split) != split:
                raise InputError(f"{path} would be part of {split_of[name]} and of {split}: each file needs one split.")
    others = tuple(map(printable_name, unread or []))
    return {split: _read_files([str(folder / name) for name in names], others) for split, names in splits.items()}


def check_complete(folder: Path, names: list[str]) -> None:
    """Raises an InputError if one of the files NAME-00000-of-00002.parquet, NAME-00001-of-00002.parquet is missing."""
    for match in filter(None, (re.fullmatch(r"(.*)-\d{5}-of-(\d{5})[^/]*\.parquet", name) for name in names)):
        series = [name for name in names if re.match(rf"{re.escape(match[1])}-\d{{5}}-of-{match[2]}", name)]
        if len(series) < int(match[2]):
            raise InputError(
                f"{folder} has only {len(series)} of the {int(match[2])} files {match[1]}-*-of-{match[2]}: add the "
                "others, or rename the files if these are all you want."
            )


def _read_files(paths: list[str], unread: tuple[str, ...]) -> Table:
    tables: list[pa.Table] = []
    types: dict[str, str] = {}
    states = [file_state(path) for path in paths]
    photo_of: list[np.ndarray] = []
    number_of_photos = 0
    for path in paths:
        with open_parquet(path) as file:
            schema = file.schema_arrow
            file_types = {field.name: _type_name(field) for field in schema}
            category = _category_column(schema)
            class_names = _class_names(schema, category)
            twice = [name for name in (*IN_MEMORY, *IMAGES, category) if schema.names.count(name) > 1]
            if twice:
                raise InputError(f"{path} has several columns {twice[0]}: keep one of them.")
            if category in file_types:
                file_types["category"] = "class label" if class_names else file_types.pop(category)
            types = types or file_types
            for name in (*IN_MEMORY, *IMAGES):
                if file_types.get(name) != types.get(name):
                    raise InputError(
                        f"{path} differs from {paths[0]}: its column {name} is {file_types.get(name, 'missing')}, not "
                        f"{types.get(name, 'missing')}. The files of a split must have the same columns."
                    )
            boxes_in_objects = _has_objects(schema)
            names = [name for name in IN_MEMORY if name in file_types and (name != "objects" or boxes_in_objects)]
            stored = [category if name == "category" else name for name in names]
            try:
                table = file.read(columns=stored).select(stored).rename_columns(names)
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{path} cannot be read: {error}") from error
            file_rows = file.metadata.num_rows
        photos = np.arange(file_rows)  # the table has no columns if the file has only images
        if boxes_in_objects:
            table, photos = _one_row_per_object(table, _class_names(schema, "objects"), path)
            names, class_names = table.column_names, []
        photo_of.append(photos + number_of_photos)
        number_of_photos += file_rows
        if class_names:
            named = _named(table["category"].to_pylist(), class_names, path)
            table = table.set_column(names.index("category"), "category", pa.array(named, pa.string()))
        for i, name in enumerate(names):
            table = table.set_column(i, name, _plain(name, table[name], path))
        tables.append(table.cast(tables[0].schema) if tables else table)
    rows, files = pa.concat_tables(tables), ParquetFiles(paths, states)
    if boxes_in_objects:
        types = {name: kind for name, kind in types.items() if name not in ("objects", "category")}
        types |= {"category": "string", "bbox": "list of double"}
    return Table(
        columns={name: rows[name] for name in rows.column_names},
        types=types,
        files=files,
        numbers=np.arange(sum(map(len, photo_of))),
        photo_of=np.concatenate(photo_of),
        layout="Hugging Face objects" if boxes_in_objects else "",
        unread=unread,
    )


def _category_column(schema: pa.Schema) -> str:
    """The name of the column with the categories of a table, "category" if there is none."""
    plain = [field.name for field in schema if not pa.types.is_nested(field.type) or field.name == "category"]
    return next((name for name in CATEGORY_COLUMNS if name in plain), "category")


def _has_objects(schema: pa.Schema) -> bool:
    """Whether a table has a column `objects` with the boxes of each photo, and no column bbox."""
    if schema.names.count("objects") != 1 or "bbox" in schema.names:
        return False
    kind = schema.field("objects").type
    kind = kind.value_type if _is_list(kind) else kind
    return pa.types.is_struct(kind) and kind.get_field_index("bbox") >= 0


def objects_of(value: Any) -> list[tuple[Any, Any]]:
    """The box and the category of each object in a value of a column `objects`: a dict of lists, or a list of dicts.

    The category is the first of `OBJECT_CATEGORIES`.

    Raises:
        ValueError: the value is something else, has no boxes or no categories, or differs in their number.
    """
    if value is None:
        return []
    if isinstance(value, dict):
        key = next((name for name in OBJECT_CATEGORIES if name in value), None)
        boxes, categories = value.get("bbox"), value.get(key) if key else None
        if not isinstance(boxes, list) or not isinstance(categories, list):
            raise ValueError(f"objects must have lists bbox and category; it has {', '.join(map(str, value))}.")
        if len(boxes) != len(categories):
            raise ValueError(f"objects has {count(len(boxes), 'box')}, but {count(len(categories), 'category')}.")
        return list(zip(boxes, categories, strict=True))
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError("objects must be a dict of lists or a list of dicts, with bbox and category.")
    pairs = []
    for item in value:
        key = next((name for name in OBJECT_CATEGORIES if name in item), None)
        if key is None or "bbox" not in item:
            raise ValueError(f"each of objects must have bbox and category; one has {', '.join(map(str, item))}.")
        pairs.append((item["bbox"], item[key]))
    return pairs


def _one_row_per_object(table: pa.Table, class_names: list[str], path: str) -> tuple[pa.Table, np.ndarray]:
    """The table with category and bbox of each object instead of `objects`, and the row that each comes from."""
    photos, boxes, categories = [], [], []
    for row, value in enumerate(table["objects"].to_pylist()):
        try:
            pairs = objects_of(value)
        except ValueError as error:
            raise InputError(f"{path}, row {row}: {error}") from error
        photos += [row] * len(pairs)
        boxes += [parse_box(bbox) for bbox, _ in pairs]
        categories += [category for _, category in pairs]
    if class_names:
        categories = _named(categories, class_names, path)
    kept = [name for name in table.column_names if name not in ("objects", "category")]
    columns = {name: table[name].take(pa.array(photos, pa.int64())) for name in kept}
    columns["category"] = pa.array([as_text(category) for category in categories], pa.string())
    columns["bbox"] = pa.array(boxes, pa.list_(pa.float64()))
    return pa.table(columns), np.array(photos, np.int64)


def _plain(name: str, values: pa.ChunkedArray, path: str) -> pa.ChunkedArray:
    """The values of a column in the type that stands for all similar ones: ids and categories as texts, boxes as lists.

    Raises:
        InputError: a value cannot be read, or an id or a category is a list or anything else that is no text.
    """
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if name in TEXTS and pa.types.is_nested(kind):
        raise InputError(f"{path}: the column {name} must contain texts or numbers; it contains {kind}.")
    try:
        values.validate(full=True)  # text may not be UTF-8
        if _is_list(kind):
            return values.cast(pa.list_(kind.value_type))
        if name == "bbox" or pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return values.cast(pa.string() if name in TEXTS else kind)
        return pa.chunked_array([pa.array([as_text(value) for value in values.to_pylist()], pa.string())])
    except (ArithmeticError, ValueError, pa.ArrowException) as error:  # such as a date after the year 9999
        raise InputError(f"{path}: the column {name} of type {kind} cannot be read: {error}") from error


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _class_names(schema: pa.Schema, column: str) -> list[str]:
    """The names of a ClassLabel column, which stores numbers, or of that of the categories in the column `objects`.

    Empty if it is of another type.
    """
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        if column == "objects":  # {"feature": {...}}, [{...}] or {"bbox": ..., "category": {"feature": {...}}}
            feature = feature[0] if isinstance(feature, list) else feature
            feature = feature["feature"] if isinstance(feature.get("feature"), dict) else feature
            feature = feature[next(name for name in OBJECT_CATEGORIES if name in feature)]
            feature = feature[0] if isinstance(feature, list) else feature
            feature = feature["feature"] if isinstance(feature.get("feature"), dict) else feature
        return [str(name) for name in feature["names"]] if feature["_type"] == "ClassLabel" else []
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError):
        return []


def _named(numbers: list, names: list[str], path: str) -> list[str | None]:
    """The names of class numbers; None for None and for negative numbers, which mean that there is no label."""
    unknown = next((n for n in numbers if n is not None and not (isinstance(n, int) and n < len(names))), None)
    if unknown is not None:
        raise InputError(f"{path}: category {unknown} has no name; the file names {len(names)} categories.")
    return [names[number] if number is not None and number >= 0 else None for number in numbers]


def _type_name(field: pa.Field) -> str:
    """A column's type in words; "image" for an image column of any type in which encoded images are stored."""
    kind = field.type
    has_bytes = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    stored = kind.field("bytes").type if has_bytes else kind
    image_types = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string, pa.types.is_null)
    if field.name in IMAGES and any(is_type(stored) for is_type in image_types):
        return "image"
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if _is_list(kind):
        return f"list of {kind.value_type}"
    return "string" if pa.types.is_large_string(kind) else str(kind)
