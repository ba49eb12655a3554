"""Tables from folders of photos with annotations, whose layout is recognised by the files in the folder."""

from contextlib import suppress
from pathlib import Path

from common.config import InputError
from common.data.annotations.coco import read_coco
from common.data.annotations.csv_corners import read_csv_corners
from common.data.annotations.metadata import read_metadata
from common.data.annotations.photos import AnnotatedPhotos
from common.data.annotations.voc import read_voc
from common.data.annotations.yolo import read_yolo
from common.data.table import Table


def read_annotations(folder: Path, files: list[str], skipped: list[str]) -> dict[str, Table]:
    """A table for each split of a folder of photos with annotations, one row for each object; {} if it has none.

    In a folder with annotations in several layouts, the first of those below is read, and the others are counted.

    Args:
        folder: the folder.
        files, skipped: its files, from `common.data.image_folder.list_files`.

    Raises:
        InputError: annotations cannot be read, contradict each other, or fit none of the photos.
    """
    readers = [read_coco, read_yolo, read_voc, read_csv_corners, read_metadata]
    while readers:
        photos = AnnotatedPhotos(folder, files)
        readers.pop(0)(photos)
        if photos.splits:
            for read in readers:
                others = AnnotatedPhotos(folder, files)
                with suppress(InputError):
                    read(others)
                    if others.splits and not others.used & photos.used:
                        objects = sum(map(len, others.splits.values()))
                        photos.counts["object", f"of the {others.layout} not read"] = objects
            return photos.tables(skipped)
    return {}
