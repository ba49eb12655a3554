"""Data problems that make a score misleading: leakage, duplicates, rare classes, small boxes, bad rows."""

from collections import Counter

import numpy as np

from common.data.dataset import ClassificationDataset, format_problems

NEAR_DUPLICATE_BITS = 6  # maximum distance in bits, of 64, between the hashes of near-duplicate crops; see docs/data.md
MAX_LISTED = 1000  # duplicate groups and pairs listed in the report; the counts beside them are complete
MIN_VAL_ROWS = 5  # classes with fewer val rows are reported as rare: their scores are too noisy to be useful


def audit(train: ClassificationDataset, val: ClassificationDataset) -> dict:
    """Checks both splits and returns the contents of data_report.json, a dict of JSON values.

    Keys of the report:
        rows: for each split, the number of rows in the source, used, dropped (unused category) and bad, and the
            fingerprint of the rows.
        classes: for each class, the number of train and val rows.
        imbalance: train rows of the largest class divided by those of the smallest.
        majority: the largest class of train.
        rare_in_val: classes with fewer than five val rows.
        products, scenes: the number of distinct ids in train, in val and in both, the number of val rows with an id
            that also occurs in train (val_rows), and those ids (shared). None if a split has no such ids.
        duplicates: groups of rows with identical image files, within a split and across splits.
        near_duplicates: val crops that look like a train crop or like an earlier val crop: their
            `common.data.pixels.difference_hash` values differ in at most six of 64 bits.
        boxes: deciles of the crop's width and height in pixels, and the share of crops that are enlarged to the model
            input.
        bad_rows: rows that cannot be used, with the reason.
    """
    splits = {"train": train, "val": val}
    ids = {name: split.ids() for name, split in splits.items()}
    counts = np.stack([np.bincount(split.labels.numpy(), minlength=len(train.classes)) for split in (train, val)])
    return {
        "rows": {name: _row_counts(split) for name, split in splits.items()},
        "classes": {name: {"train": int(t), "val": int(v)} for name, t, v in zip(train.classes, *counts, strict=True)},
        "imbalance": float(counts[0].max() / max(1, counts[0].min())),
        "majority": train.classes[counts[0].argmax()],
        "rare_in_val": [name for name, count in zip(train.classes, counts[1], strict=True) if count < MIN_VAL_ROWS],
        "products": _overlap(ids["train"]["product_id"], ids["val"]["product_id"]),
        "scenes": _overlap(ids["train"]["scene_id"], ids["val"]["scene_id"]),
        "duplicates": _duplicates(splits, ids),
        "near_duplicates": _near_duplicates(splits, ids),
        "boxes": {name: _box_sizes(split) for name, split in splits.items()},
        "bad_rows": train.problems + val.problems,
    }


def _row_counts(split: ClassificationDataset) -> dict:
    return {
        "source": split.source_rows,
        "used": len(split),
        "dropped": split.dropped,
        "bad": len(split.problems),
        "fingerprint": split.fingerprint,
    }


def _overlap(train_ids: list[str], val_ids: list[str]) -> dict | None:
    """Ids that occur in both splits; None if a split has no ids."""
    in_train, in_val = set(train_ids) - {""}, set(val_ids) - {""}
    if not in_train or not in_val:
        return None
    shared = in_train & in_val
    return {
        "train": len(in_train),
        "val": len(in_val),
        "both": len(shared),
        "val_rows": sum(value in shared for value in val_ids),
        "shared": sorted(shared),
    }


def _duplicates(splits: dict, ids: dict) -> dict:
    """Groups of rows with identical image bytes."""
    hashes = np.concatenate([split.hashes[:, 0] for split in splits.values()])
    rows = [(name, image_id) for name in splits for image_id in ids[name]["image_id"]]
    _, group_of_row, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(counts[group_of_row] > 1)
    groups: dict[int, list] = {}
    for i in repeated[np.argsort(group_of_row[repeated], kind="stable")].tolist():
        groups.setdefault(int(group_of_row[i]), []).append(rows[i])
    groups_by_split_count = Counter(len({name for name, _ in group}) for group in groups.values())
    return {
        "within_a_split": groups_by_split_count[1],
        "across_splits": groups_by_split_count[2],
        "groups": [[f"{name} {image_id}" for name, image_id in group] for group in list(groups.values())[:MAX_LISTED]],
    }


def _near_duplicates(splits: dict, ids: dict) -> dict:
    """Val crops that look like a train crop or an earlier val crop although the image files differ."""
    train, val = splits["train"].hashes, splits["val"].hashes
    pairs: dict[str, list[dict]] = {"train": [], "val": []}
    for i, (file_hash, crop_hash) in enumerate(val):
        if crop_hash in (0, 2**64 - 1):  # a uniform crop, which would match every other uniform crop
            continue
        for name, others in (("train", train), ("val", val[:i])):
            distances = np.bitwise_count(others[:, 1] ^ crop_hash)
            for j in np.flatnonzero((distances <= NEAR_DUPLICATE_BITS) & (others[:, 0] != file_hash)).tolist():
                rows = [f"val {ids['val']['image_id'][i]}", f"{name} {ids[name]['image_id'][j]}"]
                pairs[name].append({"rows": rows, "bits": int(distances[j])})
    return {
        "across_splits": len(pairs["train"]),
        "within_val": len(pairs["val"]),
        "val_rows": len({pair["rows"][0] for pair in pairs["train"]}),
        "pairs": sorted(pairs["train"] + pairs["val"], key=lambda pair: pair["bits"])[:MAX_LISTED],
    }


def _box_sizes(split: ClassificationDataset) -> dict:
    """Deciles of the sizes of the crops, margin included, or of the whole images without --crop."""
    sizes = split.crop_sizes.numpy()
    deciles = np.quantile(sizes, np.linspace(0, 1, 11), axis=0).round(1)
    enlarged = float((sizes.min(axis=1) < split.pixels.shape[-1]).mean())
    return {"width_deciles": deciles[:, 0].tolist(), "height_deciles": deciles[:, 1].tolist(), "enlarged": enlarged}


def describe(train: ClassificationDataset, val: ClassificationDataset, report: dict) -> str:
    """Split sizes, columns, class counts and the `findings` of a report, as text to print at the start of a run."""
    width = max(map(len, train.classes))
    lines = []
    for name, split in (("train", train), ("val", val)):
        kept = split.source_rows - split.dropped
        dropped = f", {kept:,} after dropping {split.dropped} in unused categories" if split.dropped else ""
        used = f", {len(split):,} used" if len(split) < kept else ""
        lines.append(f"{name:5}  {split.source_rows:,} rows{dropped}{used}")
        if split.problems:
            lines.append(f"       {len(split.problems)} bad rows skipped:\n{format_problems(split.problems)}")
    lines += [
        f"image  3 x {train.pixels.shape[2]} x {train.pixels.shape[3]} uint8",
        f"column {', '.join(f'{name} ({_type_name(feature)})' for name, feature in train.rows.features.items())}",
        f"{'class':<{width}}  train  val",
        *(f"{name:<{width}}  {n['train']:5}  {n['val']:3}" for name, n in report["classes"].items()),
    ]
    return "\n".join(lines + [f"note   {sentence}" for sentence in findings(report)])


def findings(report: dict) -> list[str]:
    """One sentence for each problem in a report that should be fixed or kept in mind."""
    val_rows = report["rows"]["val"]["used"]
    sentences = []
    for kind, column in (("product", "product_id"), ("scene", "scene_id")):
        overlap = report[f"{kind}s"]
        if overlap and overlap["val_rows"]:
            sentences.append(
                f"{overlap['val_rows']} of {val_rows} val rows show a {kind} that also occurs in train "
                f"({overlap['both']} of {overlap['val']} {kind}s): use --split-by {column} to separate them."
            )
    duplicates, near = report["duplicates"], report["near_duplicates"]
    if duplicates["across_splits"]:
        sentences.append(f"{duplicates['across_splits']} images occur in both train and val (identical files).")
    if duplicates["within_a_split"]:
        sentences.append(f"{duplicates['within_a_split']} images occur more than once in a split (identical files).")
    if near["val_rows"]:
        sentences.append(
            f"{near['val_rows']} val rows look almost the same as a train row: see near_duplicates in the report."
        )
    if report["imbalance"] > 3:
        sentences.append(f"the largest class has {report['imbalance']:.1f} times as many train rows as the smallest.")
    if report["rare_in_val"]:
        sentences.append(f"classes with fewer than {MIN_VAL_ROWS} val rows: {', '.join(report['rare_in_val'])}.")
    return sentences


def _type_name(feature) -> str:
    return getattr(feature, "dtype", None) or type(feature).__name__.lower()
