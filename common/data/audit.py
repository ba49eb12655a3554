"""Data problems that make a score misleading: leakage, duplicates, rare classes, small boxes, bad rows."""

from collections import Counter

import numpy as np

from common.config import count, printable
from common.data.boxes import count_outside, upper_left_note
from common.data.dataset import ClassificationDataset, format_problems
from common.data.image_folder import count_and_names

NEAR_DUPLICATE_BITS = 6  # maximum distance in bits, of 64, between the hashes of near-duplicate crops; see docs/data.md
MAX_LISTED = 1000  # duplicate groups and pairs listed in the report; the counts beside them are complete
BLOCK = 2**20  # pairs of crops that are compared at once
MAX_NAMED = 10  # rare classes named at the start of a run; the report has all
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
        duplicates: groups of photos with identical image files, within a split and across splits.
        near_duplicates: val crops that look like a train crop or like an earlier val crop: their
            `common.data.pixels.difference_hash` values differ in at most six of 64 bits.
        objects: for each split, the number of photos, and the median and largest number of rows, that is objects, of a
            photo; and in_both, the number of photos with several objects of which some are in train and some in val.
        boxes: deciles of the crop's width and height in pixels, the share of crops that are smaller than the model
            input, the number of boxes that were clipped at the edge of their images, and a sentence if the boxes look
            as if they were made for other images.
        bad_rows: rows that cannot be used, with the reason.
        not_read: files in the data's folder that are not read, with their number and the first names.
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
        "objects": _objects(splits),
        "duplicates": _duplicates(splits, ids),
        "near_duplicates": _near_duplicates(splits, ids),
        "boxes": {name: _box_sizes(split) for name, split in splits.items()},
        "bad_rows": train.problems + val.problems,
        "not_read": {"files": len(train.rows.unread), "names": list(train.rows.unread[:MAX_LISTED])},
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


def _objects(splits: dict) -> dict:
    """How many objects a photo has in each split, and how many photos with several objects are in both splits."""
    result: dict = {}
    for name, split in splits.items():
        counts = np.unique(split.rows.photos, return_counts=True)[1]
        result[name] = {"photos": len(counts), "median": float(np.median(counts)), "maximum": int(counts.max())}
    train, val = (set(split.hashes[split.rows.shared, 0].tolist()) for split in splits.values())
    both = {int(value) for value in splits["train"].hashes[:, 0]} & {int(value) for value in splits["val"].hashes[:, 0]}
    return result | {"in_both": len(both & (train | val))}


def _duplicates(splits: dict, ids: dict) -> dict:
    """Groups of photos with identical image bytes. A photo with many objects is not a duplicate of itself."""
    firsts = {name: np.unique(split.rows.photos, return_index=True)[1] for name, split in splits.items()}
    firsts = {name: np.sort(rows) for name, rows in firsts.items()}  # one row of each photo
    hashes = np.concatenate([splits[name].hashes[rows, 0] for name, rows in firsts.items()])
    rows = [(name, ids[name]["image_id"][i]) for name in splits for i in firsts[name]]
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
    """Val crops that look like a train crop or an earlier val crop although the image files differ.

    The distances are computed in blocks of `BLOCK`, and only the pairs to be listed are kept: copies of one photo make
    a number of pairs that grows with its square.
    """
    val = splits["val"].hashes
    uniform = np.isin(val[:, 1], np.array([0, 2**64 - 1], np.uint64))  # would match every other uniform crop
    counts, in_train = dict.fromkeys(splits, 0), np.zeros(len(val), bool)
    kept: list[tuple[int, str, int, int]] = []  # distance in bits, split, val row and row of the split
    for name, split in splits.items():
        others, step = split.hashes, max(1, BLOCK // max(1, len(split.hashes)))
        for first in range(0, len(val), step):
            block = val[first : first + step, None]
            bits = np.bitwise_count(block[..., 1] ^ others[:, 1])
            near = (bits <= NEAR_DUPLICATE_BITS) & (block[..., 0] != others[:, 0])
            near &= ~uniform[first : first + step, None]
            if name == "val":
                near &= np.tri(len(block), len(others), first - 1, dtype=bool)  # earlier rows only
            else:
                in_train[first : first + step] |= near.any(axis=1)
            counts[name] += int(near.sum())
            if len(kept) == MAX_LISTED:
                near &= bits < kept[-1][0]
            found = np.stack([bits[near], *np.nonzero(near)], axis=1)
            found = found[np.argsort(found[:, 0], kind="stable")[:MAX_LISTED]]
            kept += [(distance, name, first + i, j) for distance, i, j in found.tolist()]
            kept = sorted(kept, key=lambda pair: pair[0])[:MAX_LISTED]
    return {
        "across_splits": counts["train"],
        "within_val": counts["val"],
        "val_rows": int(in_train.sum()),
        "pairs": [
            {"rows": [f"val {ids['val']['image_id'][i]}", f"{name} {ids[name]['image_id'][j]}"], "bits": distance}
            for distance, name, i, j in kept
        ],
    }


def _box_sizes(split: ClassificationDataset) -> dict:
    """Deciles of the sizes of the crops, margin included, or of the whole images without --crop."""
    sizes = split.crop_sizes.numpy()
    deciles = np.quantile(sizes, np.linspace(0, 1, 11), axis=0).round(1)
    enlarged = float((sizes.min(axis=1) < split.pixels.shape[-1]).mean())
    return {
        "width_deciles": deciles[:, 0].tolist(),
        "height_deciles": deciles[:, 1].tolist(),
        "enlarged": enlarged,
        "clipped": count_outside(split.boxes) if split.boxes is not None else 0,
        "note": upper_left_note(split.boxes) if split.boxes is not None else None,
    }


def describe(train: ClassificationDataset, val: ClassificationDataset, report: dict) -> str:
    """Split sizes, columns, class counts and the `findings` of a report, as text to print at the start of a run."""
    width = max(len(printable(name)) for name in train.classes)
    lines = []
    for name, split in (("train", train), ("val", val)):
        kept = split.source_rows - split.dropped
        dropped = f", {kept:,} after dropping {split.dropped:,} in unused categories" if split.dropped else ""
        used = f", {len(split):,} used" if len(split) < kept else ""
        lines.append(f"{name:5}  {split.source_rows:,} rows{dropped}{used}")
        objects = report["objects"][name]
        if objects["maximum"] > 1:
            median = f"median {objects['median']:g}, maximum {objects['maximum']:,}"
            lines.append(f"       {count(objects['photos'], 'photo')}; objects per photo: {median}")
        if split.boxes is not None:
            lines.append(f"       {_crop_sizes(report['boxes'][name])}")
        if split.problems:
            lines.append(f"       {count(len(split.problems), 'bad row')} skipped:")
            lines += format_problems(split.problems).splitlines()
    lines += [
        f"image  3 x {train.pixels.shape[2]} x {train.pixels.shape[3]} uint8",
        f"column {', '.join(f'{name} ({kind})' for name, kind in train.rows.types.items())}",
        f"{'class':<{width}}  train  val",
        *(f"{printable(name):<{width}}  {n['train']:5}  {n['val']:3}" for name, n in report["classes"].items()),
    ]
    return "\n".join(map(printable, lines + [f"note   {sentence}" for sentence in findings(report)]))


def _crop_sizes(boxes: dict) -> str:
    """The entry of a split in `boxes` of the report as one line."""
    sides = []
    for name, word in (("width", "wide"), ("height", "high")):
        least, *_, median, _, _, _, _, most = boxes[f"{name}_deciles"]
        sides.append(f"{least:,.0f} to {most:,.0f} pixels {word} (median {median:,.0f})")
    return f"crops {', '.join(sides)}; {100 * boxes['enlarged']:.0f} % are smaller than the model input"


def findings(report: dict) -> list[str]:
    """One sentence for each problem in a report that should be fixed or kept in mind."""
    val_rows = report["rows"]["val"]["used"]
    sentences = []
    if report["not_read"]["files"]:
        sentences.append(f"not read: {count_and_names(report['not_read']['names'], report['not_read']['files'])}.")
    for kind, column in (("product", "product_id"), ("scene", "scene_id")):
        overlap = report[f"{kind}s"]
        if overlap and overlap["val_rows"]:
            sentences.append(
                f"{overlap['val_rows']} of {val_rows} val rows show a {kind} that also occurs in train "
                f"({overlap['both']} of {overlap['val']} {kind}s): use --split-by {column} to separate them."
            )
    duplicates, near = report["duplicates"], report["near_duplicates"]
    objects = report["objects"]
    if objects["in_both"]:
        sentences.append(
            f"{count(objects['in_both'], 'photo')} with objects in both train and val: use --split-by image_id to "
            "separate them."
        )
    if duplicates["across_splits"] > objects["in_both"]:
        sentences.append(f"{count(duplicates['across_splits'], 'image')} in both train and val (identical files).")
    if duplicates["within_a_split"]:
        sentences.append(f"{count(duplicates['within_a_split'], 'image')} repeated within a split (identical files).")
    if near["val_rows"]:
        sentences.append(
            f"{count(near['val_rows'], 'val row')} almost equal to a train row by a hash of 64 bits, but possibly of "
            "another object: see near_duplicates in the report."
        )
    for name, boxes in report["boxes"].items():
        if boxes["clipped"]:
            sentences.append(
                f"{name}: {boxes['clipped']} of {count(report['rows'][name]['used'], 'box')} clipped, because they "
                "extend past the edge of their images by at most 1 pixel or 1 %."
            )
        if boxes["note"]:
            sentences.append(f"{name}: {boxes['note']}")
    if report["imbalance"] > 3:
        sentences.append(f"the largest class has {report['imbalance']:.1f} times as many train rows as the smallest.")
    if report["rare_in_val"]:
        first, more = report["rare_in_val"][:MAX_NAMED], len(report["rare_in_val"]) - MAX_NAMED
        others = f" and {more} more" if more > 0 else ""
        sentences.append(f"classes with fewer than {MIN_VAL_ROWS} val rows: {', '.join(first)}{others}.")
    return sentences
