"""Data sources: the bundled sample, the Hugging Face Hub, Parquet files and image folders. Images stay encoded."""

import os
import re
from dataclasses import replace
from itertools import chain
from pathlib import Path

import huggingface_hub
import numpy as np

from common.config import ID_COLUMNS, DataConfig, InputError, count
from common.data.annotations.layouts import read_annotations
from common.data.annotations.others import refuse_other_columns, refuse_other_layouts
from common.data.boxes import are_fractions
from common.data.hub import hub_or_cache
from common.data.image_folder import METADATA, count_and_names, list_files, metadata_lines, read_image_folder
from common.data.nested import data_root
from common.data.parquet import check_complete, read_parquet
from common.data.split_names import KEYWORDS, parquet_splits
from common.data.table import SEGMENTATION, Table, clean_category, file_problem, is_image, printable_name

SAMPLE = Path(__file__).parents[2] / "data" / "sample"
HUB_ID = re.compile(r"(\w[\w.-]*/[\w.-]+)(?::([^:@]+))?(?:@([\w./-]+))?")
OWN_BOX_FORMAT = ("YOLO labels", "Pascal VOC annotations", "CSV annotations")  # layouts in which it cannot be another
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar")
PUT_PHOTOS = "if it has annotations, put their photos into the same folder (links to folders are not followed)"
TRAIN_FOLDERS = tuple(f"{word}/" for word in KEYWORDS["train"])
VAL_NAMES = ("val", "validation", "valid", "dev")


def clean_categories(rows: Table) -> list[str | None]:
    """The normalised category of each row; None for rows without one."""
    return [clean_category(value) for value in rows["category"]]


def load_tables(config: DataConfig, *extra_columns: str) -> dict[str, Table]:
    """The tables "train" and "val" or, with `--split-by`, "all", with encoded images and the columns that are used.

    Args:
        config: names the data source in `data`; `crop` makes bbox a required column.
        extra_columns: further required columns.

    Raises:
        InputError: the data cannot be read, or a split or a required column is missing.
    """
    splits = read_splits(config.data)
    if "train" not in splits:
        raise InputError(
            f"--data {config.data} has no train split, only {', '.join(splits)}. Rename one of these to train or, if "
            "they are classes, put their folders into a folder train, and use --split-by."
        )
    train = splits["train"]
    val_names = VAL_NAMES if config.val_split in ("", *VAL_NAMES) else (config.val_split,)
    found = [name for name in val_names if name in splits]
    if config.val_split and (not found or config.val_split == "train"):
        raise InputError(
            f"--val-split {config.val_split}: --data {config.data} has no split of this name that could be val; it has "
            f"{', '.join(splits)}."
        )
    if len(found) > 1:
        raise InputError(f"--data {config.data} has several val splits, {' and '.join(found)}: keep one of them.")
    val = splits[found[0]] if found else None
    if val is None and not config.split_by:
        column = "product_id" if "product_id" in train else "image_id"
        raise InputError(
            f"--data {config.data} has no val split, only {', '.join(splits)}: create one with --split-by {column}"
            f"{_other_split(splits)}."
        )
    others = [f"{name}: {len(table)} rows" for name, table in splits.items() if name not in ("train", *found)]
    train = replace(train, unread=(*train.unread, *others))
    tables = (
        {"train": train, "val": val} if val is not None and not config.split_by else {"all": _concatenate(train, val)}
    )
    tables = {split: _select_columns(split, rows, config, extra_columns) for split, rows in tables.items()}
    return with_box_format(tables, config)


def _other_split(splits: dict[str, Table]) -> str:
    """How to use a split that is neither train nor val, as the end of a sentence."""
    others = [name for name in splits if name != "train"]
    return f", or use {others[0]} for it with --val-split {others[0]}" if others else ""


def with_box_format(tables: dict[str, Table], config: DataConfig) -> dict[str, Table]:
    """The tables with boxes in the format of `--box-format`, in pixels or in fractions, as their values say.

    Raises:
        InputError: the data has a layout that defines the format.
    """
    if config.box_format == "auto":
        return tables
    layout = next(iter(tables.values())).layout
    if layout in OWN_BOX_FORMAT:
        raise InputError(f"{layout} define what the numbers of a box mean: leave out --box-format {config.box_format}.")
    fractions = are_fractions(chain.from_iterable(rows["bbox"] for rows in tables.values() if "bbox" in rows))
    box_format = config.box_format + " fractions" * fractions
    remark = f"boxes read as {config.box_format} in {'fractions of the image' if fractions else 'pixels'}"
    return {
        split: replace(
            rows,
            box_format="" if box_format == "xywh" else box_format,
            layout=rows.layout or "table",
            remarks=(*rows.remarks, remark),
        )
        for split, rows in tables.items()
    }


def describe_layout(tables: dict[str, Table]) -> str:
    """Such as "COCO annotations: 364 photos, 4,900 objects, 3 categories"; empty for a plain table or image folder."""
    first = next(iter(tables.values()))
    if not first.layout and not first.remarks:
        return ""
    photos = sum(len(np.unique(rows.photos)) for rows in tables.values())
    categories = {name for rows in tables.values() for name in clean_categories(rows)} - {None}
    objects = sum(map(len, tables.values()))
    words = [
        count(photos, "photo"),
        *[count(objects, "object")] * bool(first.layout),
        count(len(categories), "category"),
    ]
    remarks = dict.fromkeys(chain.from_iterable(rows.remarks for rows in tables.values()))
    return f"{first.layout or 'image folder'}: {', '.join([*words, *remarks])}"


def read_splits(data: str) -> dict[str, Table]:
    """Reads all splits of `data`, unchanged.

    `data` is "sample" (the bundled sample), a Parquet file, a folder of Parquet files, a folder of images with their
    classes or annotations (see `common.data.annotations.layouts`), or a Hub id, owner/name[:CONFIG][@REVISION].

    Raises:
        InputError: there is no such data, or it cannot be read.
    """
    source = Path(data)  # os.path, unlike Path, finds no file under a name that is too long
    if os.path.isfile(data) and source.suffix == ".parquet":
        return read_parquet(source.parent, {"train": [source.name]}, root=None)
    if data == "sample" or os.path.isdir(data):
        source = SAMPLE if data == "sample" else source
        files, skipped = list_files(source)
        parquet = [name for name in files if name.endswith(".parquet")]
        if parquet and any(map(is_image, files)):
            raise InputError(f"{data} contains both Parquet files and images: use a folder with only one of them.")
        if parquet:
            check_complete(source, parquet)
            parts = parquet_splits(parquet)
            unread = sorted(set(parquet).difference(*parts.values()))
            unread += [name for name in skipped if name[-1] == "/" and not Path(name).name.startswith(".")]  # links
            return read_parquet(source, parts, root=source, unread=unread)
        splits = read_photos(source, files, skipped, classes=True)
        if not splits:
            found = f" It contains {count_and_names(files + skipped)}." if files or skipped else ""
            if files and not any(map(is_image, files)):
                archive = next((name for name in files if name.lower().endswith(ARCHIVES)), None)
                advice = f"unpack {printable_name(archive)}" if archive else PUT_PHOTOS
                raise InputError(f"{data} contains neither Parquet files nor images: {advice}.{found}")
            raise InputError(
                f"{data} contains neither Parquet files, nor images in train/CLASS/ and val/CLASS/, nor annotations "
                f"(COCO, YOLO, Pascal VOC, or metadata.jsonl or .csv with categories).{found}"
            )
        return splits
    if is_hub_id(data):
        return _load_from_hub(data)
    raise InputError(
        f"{data}: no such file or folder. Use 'sample', a Hub id (owner/name), a Parquet file or a folder."
    )


def read_photos(folder: Path, files: list[str], skipped: list[str], *, classes: bool) -> dict[str, Table]:
    """The splits of photos with annotations or, with `classes`, in folders of classes; {} if there are none.

    They may lie in a folder below this one, see `common.data.nested`.

    Args:
        folder: the folder.
        files, skipped: its files, from `common.data.image_folder.list_files`.
        classes: whether an image folder is read too, and annotations that cannot be read are an error.
    """
    root = data_root(folder, files)
    start = f"{root}/" if root else ""
    inside, left_out = ([n.removeprefix(start) for n in names if n.startswith(start)] for names in (files, skipped))
    splits = read_annotations(folder / root, inside, left_out)
    if classes and not splits:
        if not any(is_image(n) and n.lower().startswith(TRAIN_FOLDERS) and n.count("/") > 1 for n in inside):
            refuse_other_layouts(folder / root, inside)
        splits = read_image_folder(folder / root, inside, left_out)
    if classes and not splits:
        for name in [name for name in METADATA if name in inside]:
            metadata_lines(folder / root, name)  # or an error says why they were not read
        refuse_other_columns(folder / root, inside)
    if not root:
        return splits
    outside = [printable_name(name) for name in [*files, *skipped] if not name.startswith(start)]
    return {
        split: replace(
            table,
            remarks=(*table.remarks, f"in the folder {printable_name(root)}"),
            unread=(*(f"{printable_name(start)}{name}" for name in table.unread), *outside),
        )
        for split, table in splits.items()
    }


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form owner/name[:CONFIG][@REVISION] and is not an existing path."""
    return HUB_ID.fullmatch(name) is not None and not os.path.exists(name)


def _concatenate(train: Table, val: Table | None) -> Table:
    """The rows of both splits in one table, with the columns that they have in common."""
    if val is None:
        return train
    names = [name for name in train.types if name in val]
    train, val = train.keep(names), val.keep(names)
    for name in names:
        if train.types[name] != val.types[name]:
            raise InputError(
                f"train and val cannot be combined for --split-by: the column {name} is {train.types[name]} in train "
                f"and {val.types[name]} in val."
            )
    shared = set(train["image_id"]) & set(val["image_id"]) if "image_id" in names else set()
    # Such as paths relative to the split; a missing id stays missing. Ids of annotations are those of the whole folder.
    if shared - {None, ""} and not (train.layout and val.layout):
        train = train.with_column("image_id", [name and f"train/{name}" for name in train["image_id"]])
        val = val.with_column("image_id", [name and f"val/{name}" for name in val["image_id"]])
    return train.append(val)


def _select_columns(split: str, rows: Table, config: DataConfig, extra_columns: tuple = ()) -> Table:
    """The columns that are used. The numbers of the photos serve as image_id if the data has no such column."""
    required = ["image", "category", *["bbox"] * config.crop, *extra_columns]
    missing = [name for name in required if name not in rows]
    if missing:
        hint = " To train on whole images, leave out --crop." if missing == ["bbox"] else ""
        raise InputError(
            f"the {split} split has no column {', '.join(missing)}; its columns are {', '.join(rows.types)}.{hint}"
        )
    check_images(rows, split)
    in_memory = ["mask"] * (rows.types.get("mask") == SEGMENTATION)  # a column in memory, unlike masks that are images
    rows = rows.keep((*ID_COLUMNS, "image", "category", "bbox", *dict.fromkeys([*extra_columns, *in_memory])))
    return rows if "image_id" in rows else rows.with_column("image_id", [str(i) for i in rows.photos])


def check_images(rows: Table, split: str) -> None:
    """Raises an InputError if a column of images contains something else."""
    for name in ("image", "mask"):
        if rows.types.get(name, "image") not in ("image", *[SEGMENTATION] * (name == "mask")):
            raise InputError(f"the column {name} of {split} must contain images; it contains {rows.types[name]}.")


def _load_from_hub(data: str) -> dict[str, Table]:
    """A data set from the Hub, or from the local cache if the Hub is unreachable."""
    match = HUB_ID.fullmatch(data)
    assert match, "read_splits has checked it"
    name, config, revision = match.groups()
    with hub_or_cache() as online:
        try:
            folder = huggingface_hub.snapshot_download(
                name,
                repo_type="dataset",
                revision=revision,
                allow_patterns=["*.parquet", "README.md"],
                local_files_only=not online,
            )
        except Exception as error:  # depending on its version and the network, the library raises errors of many kinds
            if online:
                raise InputError(f"--data {data} cannot be loaded from the Hub: {error}") from error
            raise InputError(
                f"the Hub cannot be reached, and {data} is neither in the local cache nor a local folder. "
                "Use --data sample for the bundled sample, or a folder with your own data."
            ) from error
    return _read_snapshot(name, Path(folder), config)


def _read_snapshot(name: str, folder: Path, config_name: str | None = None) -> dict[str, Table]:
    """The tables of a Hub data set in the local cache, in the splits of a configuration, by default the default one."""
    root = folder.parents[1]  # the files in a snapshot are links to others in the data set's folder of the cache
    names = [file for file in list_files(folder)[0] if file.endswith(".parquet")]
    if not names:
        raise InputError(f"--data {name} has no Parquet files: download it and convert it to Parquet files.")
    check_complete(folder, names)
    readme = folder / "README.md"
    try:
        card = {} if file_problem(str(readme), str(root)) else huggingface_hub.metadata_load(readme) or {}
        splits, sizes = _configured_splits(card, names, config_name)
    except Exception as error:  # anything may be written there
        raise InputError(f"--data {name}: the configuration in its README.md cannot be used: {error}") from error
    tables = read_parquet(folder, splits, root=root)
    for split, table in tables.items():
        if sizes.get(split, len(table)) != len(table):
            raise InputError(
                f"--data {name}: {split} has {len(table)} of the {sizes[split]} rows that its README.md states. If the "
                "download was interrupted, repeat it while the Hub can be reached."
            )
    return tables


def _configured_splits(
    card: dict, names: list[str], chosen_name: str | None = None
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """The Parquet files of each split, as `card`, the YAML part of README.md, assigns them, and the stated rows.

    A configuration `chosen_name` that the card does not have may be a folder, as in the branch refs/convert/parquet.
    """
    configs = [config for config in card.get("configs") or [] if {"data_files", "data_dir"} & config.keys()]
    if chosen_name:
        available = [str(config.get("config_name", "default")) for config in configs]
        folders = sorted({name.split("/")[0] for name in names if "/" in name})
        if chosen_name in available:
            configs = [config for config in configs if str(config.get("config_name", "default")) == chosen_name]
        elif chosen_name in folders:
            configs = [{"config_name": chosen_name, "data_dir": chosen_name}]
        else:
            raise ValueError(f"it has no configuration {chosen_name}, only {', '.join(available or folders) or 'one'}.")
    marked = [config for config in configs if config.get("default") is True]
    default = marked or [c for c in configs if c.get("config_name", "default") == "default"] or configs
    if len(default) > 1:
        options = ", ".join(str(config.get("config_name")) for config in default)
        raise ValueError(f"it has no default, only {options}. Choose one with --data owner/name:CONFIG.")
    config = default[0] if default else {}
    infos = card.get("dataset_info") or []
    infos = [infos] if isinstance(infos, dict) else infos
    chosen = config.get("config_name", "default")
    info: dict = next((info for info in infos if len(infos) == 1 or info.get("config_name", "default") == chosen), {})
    sizes = {split["name"]: split["num_examples"] for split in info.get("splits") or []}

    folder = f"{config['data_dir'].strip('./')}/" if config.get("data_dir") else ""
    inside = [name.removeprefix(folder) for name in names if name.startswith(folder)]
    patterns = config.get("data_files")
    if patterns is None:
        splits = parquet_splits(inside)
    else:
        patterns = [patterns] if isinstance(patterns, str) else patterns
        pairs = [(p["split"], p["path"]) if isinstance(p, dict) else ("train", p) for p in patterns]
        splits = {str(split): [] for split, _ in pairs}
        for split, paths in pairs:
            for pattern in map(_glob_regex, [paths] if isinstance(paths, str) else paths):
                splits[str(split)] += [n for n in inside if pattern.fullmatch(n) and n not in splits[str(split)]]
    found = {split: [folder + name for name in names] for split, names in splits.items() if names}
    if not found:
        raise ValueError("it names no Parquet files.")
    return found, sizes


def _glob_regex(pattern: str) -> re.Pattern:
    """A regular expression for names that a glob pattern such as data/train-* or **/*.parquet matches."""
    wildcards = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern.removeprefix("./"))
    return re.compile("".join(part if part[:1] == "[" else wildcards.get(part, re.escape(part)) for part in parts))
