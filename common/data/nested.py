"""The folder that holds a data set, if it lies below the one that --data names: archives unpack into a folder."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.config import InputError
from common.data.split_names import KEYWORDS, WORDS, file_splits, folder_splits, is_split
from common.data.table import is_image, printable_name

MAX_DEPTH = 4  # folders below the given one
# Files that only annotations have, and folders in a data set; those of splits and VOC2007 are folders in it too.
SIGNS = re.compile(
    r"data(set)?\.ya?ml|obj\.names|metadata\.(csv|jsonl)|(.*[-_ ])?(annotations|labels)\.csv|"
    r".*\.coco\.json|instances_.*\.json"
)
INNER = re.compile(r"annotations|labels|images|voc\d{4}")


def data_root(folder: Path, files: Sequence[str]) -> str:
    """The folder in which a data set lies, relative to `folder`; "" if that is `folder` itself, or if there is none.

    Only the names of its `files`, from `common.data.image_folder.list_files`, are looked at, no contents.

    Raises:
        InputError: several folders below `folder` hold a data set each.
    """
    photos = [name for name in files if is_image(name)]
    folders, beside = ({name.rpartition(mark)[0] for name in photos} for mark in "/.")
    others = set(files).difference(photos)
    roots = {_root(name) for name in others if _is_annotation(name, beside)} | roots_of_classes(folders)
    if not roots or "" in roots:
        return ""
    roots &= {"/".join(folder.split("/")[:i]) for folder in folders for i in range(1, MAX_DEPTH + 1)}
    outer = [root for root in sorted(roots) if not roots & {root[:i] for i, char in enumerate(root) if char == "/"}]
    if len(outer) > 1:
        shown = [printable_name(root) for root in outer[:5]] + ["..."] * (len(outer) > 5)
        raise InputError(
            f"{folder} holds several data sets, {', '.join(shown)}: choose one, such as {folder / outer[0]}."
        )
    return outer[0] if outer else ""


def _is_annotation(name: str, beside: set[str]) -> bool:
    """Whether the name of a file, or where it lies, says that it is one of annotations."""
    path, _, base = name.lower().rpartition("/")
    if base.endswith(".json") and (path.endswith("annotations") or file_splits(base)):
        return True
    if base.endswith(".xml"):
        return path.endswith("annotations") or bool(folder_splits(name.lower()) and name.rpartition(".")[0] in beside)
    return SIGNS.fullmatch(base) is not None


def _root(name: str) -> str:
    """The folder of the data set that a file of annotations belongs to."""
    parts = name.split("/")[:-1]
    while parts and (INNER.fullmatch(parts[-1].lower()) or is_split(parts[-1])):
        parts.pop()
    return "/".join(parts)


def roots_of_classes(folders: Iterable[str]) -> set[str]:
    """The folders above `folders`, which hold photos, that have train/CLASS/ and, if there are more, another split."""
    inside: dict[str, set[str]] = {}
    for folder in folders:
        parts = folder.split("/")
        for i in range(min(len(parts) - 1, MAX_DEPTH + 1)):
            inside.setdefault("/".join(parts[:i]), set()).add(parts[i].lower())
    train = {*KEYWORDS["train"]}
    return {root for root, names in inside.items() if names & train and (names & (WORDS - train) or len(names) == 1)}
