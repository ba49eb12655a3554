"""What a person should know of the data before believing a score: leakage, duplicates, imbalance, boxes, bad rows."""

from collections import Counter

import numpy as np

from common.data import ClassificationDataset, listed

NEAR = 6  # bits of 64 by which the look of two crops may differ; see LOG.md
MOST = 1000  # pairs and ids listed; the counts beside them are of all
FEW = 5  # val images of a class below which its score says nothing


def audit(train: ClassificationDataset, val: ClassificationDataset) -> dict:
    """The contents of data_report.json: plain numbers, texts and lists.

    rows: per split, those of the source, used, dropped with their category, bad.
    classes: per class, rows of train and val; imbalance: the largest class over the smallest, in train; rare_in_val:
    classes with fewer than five val rows; majority: the largest train class.
    products, scenes: how many each split has and how many both; val_rows, the val rows that show one of these; and
    shared, their ids. None where the data lacks the ids.
    duplicates: rows of the same image file: of one split, and of both; near_duplicates: val crops that look like a
    crop of train or like an earlier one of val (`common.pixels.look_hash`, at most six bits of 64 apart).
    boxes: deciles of width and height in pixels, and the share of crops that are enlarged to the model's input.
    """
    splits = {"train": train, "val": val}
    ids = {name: split.ids() for name, split in splits.items()}
    counts = np.stack([np.bincount(split.labels.numpy(), minlength=len(train.classes)) for split in (train, val)])
    return {
        "rows": {name: _row_counts(split) for name, split in splits.items()},
        "classes": {name: {"train": int(t), "val": int(v)} for name, t, v in zip(train.classes, *counts, strict=True)},
        "imbalance": float(counts[0].max() / max(1, counts[0].min())),
        "majority": train.classes[counts[0].argmax()],
        "rare_in_val": [name for name, count in zip(train.classes, counts[1], strict=True) if count < FEW],
        "products": _shared(ids["train"]["product_id"], ids["val"]["product_id"]),
        "scenes": _shared(ids["train"]["scene_id"], ids["val"]["scene_id"]),
        "duplicates": _duplicates(splits, ids),
        "near_duplicates": _near_duplicates(splits, ids),
        "boxes": {name: _box_sizes(split) for name, split in splits.items()},
        "bad_rows": train.problems + val.problems,
    }


def _row_counts(split: ClassificationDataset) -> dict:
    numbers = {"source": split.source_rows, "used": len(split), "dropped": split.dropped, "bad": len(split.problems)}
    return numbers | {"fingerprint": split.fingerprint}


def _shared(train: list[str], val: list[str]) -> dict | None:
    in_train, in_val = set(train) - {""}, set(val) - {""}
    if not in_train or not in_val:
        return None
    both = in_train & in_val
    return {
        "train": len(in_train),
        "val": len(in_val),
        "both": len(both),
        "val_rows": sum(value in both for value in val),
        "shared": sorted(both),
    }


def _duplicates(splits: dict, ids: dict) -> dict:
    """Groups of rows with the same image bytes."""
    hashes = np.concatenate([split.hashes[:, 0] for split in splits.values()])
    places = [(name, image_id) for name in splits for image_id in ids[name]["image_id"]]
    _, kind, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(counts[kind] > 1)
    groups: dict[int, list] = {}
    for i in repeated[np.argsort(kind[repeated], kind="stable")].tolist():
        groups.setdefault(int(kind[i]), []).append(places[i])
    spread = Counter(len({name for name, _ in group}) for group in groups.values())
    return {
        "within_a_split": spread[1],
        "across_splits": spread[2],
        "groups": [[f"{name} {image_id}" for name, image_id in group] for group in list(groups.values())[:MOST]],
    }


def _near_duplicates(splits: dict, ids: dict) -> dict:
    """Val rows whose crop looks like one of train or like an earlier one of val, without the same image file."""
    train, val = splits["train"].hashes, splits["val"].hashes
    found = {"train": [], "val": []}
    for i, (file, look) in enumerate(val):
        if look in (0, 2**64 - 1):  # a plain surface looks like any other
            continue
        for name, others in (("train", train), ("val", val[:i])):
            distances = np.bitwise_count(others[:, 1] ^ look)
            for j in np.flatnonzero((distances <= NEAR) & (others[:, 0] != file)).tolist():
                pair = [f"val {ids['val']['image_id'][i]}", f"{name} {ids[name]['image_id'][j]}"]
                found[name].append({"rows": pair, "bits": int(distances[j])})
    return {
        "across_splits": len(found["train"]),
        "within_val": len(found["val"]),
        "val_rows": len({pair["rows"][0] for pair in found["train"]}),
        "pairs": sorted(found["train"] + found["val"], key=lambda pair: pair["bits"])[:MOST],
    }


def _box_sizes(split: ClassificationDataset) -> dict:
    """Of the crops (with their margin) or, without --crop, of the whole images."""
    sizes = split.crop_sizes.numpy()
    deciles = np.quantile(sizes, np.linspace(0, 1, 11), axis=0).round(1)
    enlarged = float((sizes.min(axis=1) < split.pixels.shape[-1]).mean())
    return {"width_deciles": deciles[:, 0].tolist(), "height_deciles": deciles[:, 1].tolist(), "enlarged": enlarged}


def describe(train: ClassificationDataset, val: ClassificationDataset, report: dict) -> str:
    """The split sizes, columns, classes and what `audit` found, as a text for the start of a run."""
    width = max(map(len, train.classes))
    lines = []
    for name, split in (("train", train), ("val", val)):
        kept = split.source_rows - split.dropped
        dropped = f" -> {kept:,}: {split.dropped} of categories left out" if split.dropped else ""
        used = f", {len(split):,} used" if len(split) < kept else ""
        lines.append(f"{name:5}  {split.source_rows:,} rows{dropped}{used}")
        if split.problems:
            lines.append(f"       {len(split.problems)} bad rows left out:\n{listed(split.problems)}")
    lines += [
        f"image  3 x {train.pixels.shape[2]} x {train.pixels.shape[3]} uint8",
        f"column {', '.join(f'{name} ({_type_name(t)})' for name, t in train.rows.features.items())}",
        f"{'class':<{width}}  train  val",
        *(f"{name:<{width}}  {n['train']:5}  {n['val']:3}" for name, n in report["classes"].items()),
    ]
    return "\n".join(lines + [f"note   {sentence}" for sentence in findings(report)])


def findings(report: dict) -> list[str]:
    """What of a report a person should act on, a sentence each."""
    n, found = report["rows"]["val"]["used"], []
    for what, column in (("product", "product_id"), ("scene", "scene_id")):
        shared = report[f"{what}s"]
        if shared and shared["val_rows"]:
            found.append(
                f"{shared['val_rows']} of {n} val rows show a {what} that train shows too "
                f"({shared['both']} of {shared['val']} {what}s): --split-by {column} makes a split without them."
            )
    duplicates, near = report["duplicates"], report["near_duplicates"]
    if duplicates["across_splits"]:
        found.append(f"{duplicates['across_splits']} images are in train and in val, byte for byte.")
    if duplicates["within_a_split"]:
        found.append(f"{duplicates['within_a_split']} images occur several times within a split, byte for byte.")
    if near["val_rows"]:
        found.append(f"{near['val_rows']} val rows look nearly like a train row; see near_duplicates in the report.")
    if report["imbalance"] > 3:
        found.append(f"the largest class has {report['imbalance']:.1f} times the train rows of the smallest.")
    if report["rare_in_val"]:
        found.append(f"fewer than {FEW} val rows: {', '.join(report['rare_in_val'])}.")
    return found


def _type_name(feature) -> str:
    return getattr(feature, "dtype", None) or type(feature).__name__.lower()
