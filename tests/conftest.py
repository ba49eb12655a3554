"""Fixtures: the bundled sample as every kind of source, and one pixel cache for the whole test run."""

import json
import os
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side; set before torch is imported

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from matplotlib.figure import Figure

import common.figures
from common.config import DataConfig
from common.data.dataset import load_splits
from tests import helpers
from tests.helpers import SAMPLE, SMALL
from tests.slurm import local_slurm


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the slow tests: killed runs, studies, benchmarks")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="slow: run with --slow")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def shared(tmp_path_factory, worker_id):
    """A folder shared by all workers of a test run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def cache(shared):
    """The pixel cache of the whole test run."""
    return str(shared / "cache")


@pytest.fixture(scope="session", autouse=True)
def no_pretrained_weights(shared):
    """Weights that this machine has downloaded must not change what the tests see."""
    os.environ["TORCH_HOME"] = str(shared / "torch")


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    """An empty folder in which torch.hub stores its files."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def load(cache):
    """`load_splits` on small crops, in the cache of the test run."""

    def load(data="sample", **options):
        return load_splits(DataConfig(**dict(data=data, cache=cache, image_size=32, crop=True) | options))

    return load


@pytest.fixture(scope="session")
def finished_run(shared, cache):
    """A function that returns the folder of a small finished run on the sample: one epoch, 130 val rows.

    Each run is trained once per test run and then moved, as if it came from another machine. Tests must not modify it.
    """

    def finished_run(script, options="--crop"):
        name = "".join([script, *options.split()]).replace("/", "_")
        before, folder = shared / "before" / name, shared / "runs" / name
        folder.parent.mkdir(exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                line = f"--data sample --epochs 1 --batch-size 64 --margin 0.1 --cache {cache} --out {before}"
                helpers.main(script, f"{line} {SMALL[script]} {options}".split())
                before.rename(folder)
        return folder

    return finished_run


@pytest.fixture
def options(cache, tmp_path):
    """A function that returns the command line of a small run of a script that writes to tmp_path / name."""

    def options(script, name="out", more=""):
        return helpers.options(script, tmp_path / name, cache, more)

    return options


@pytest.fixture
def empty_figures(monkeypatch):
    """Replaces the figures of runs in this process, which would take as long as everything else."""
    for name in ("curves", "confusion", "mistakes"):
        monkeypatch.setattr(common.figures, name, lambda *_: Figure(figsize=(1, 1)))


@pytest.fixture
def train(options, empty_figures):
    """A function that executes a small run of a script in this process and returns the run folder."""

    def train(script, name="out", more=""):
        return helpers.main(script, options(script, name, more))

    return train


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A Slurm cluster that consists of this machine, with two CPUs; without Slurm or root, the test is skipped."""
    pytest.importorskip("submitit", reason="submitit is not installed")
    if os.geteuid() or not all(shutil.which(name) for name in ("slurmctld", "slurmd", "munged")):
        pytest.skip("Slurm is not installed, or the user may not start it: see .ci/run")
    with pytest.MonkeyPatch.context() as patch, local_slurm(tmp_path_factory.mktemp("slurm")) as config:
        patch.setenv("SLURM_CONF", str(config))
        yield


@pytest.fixture(scope="session")
def rows():
    """Rows of the sample as dicts: at most five of each class in train and two in val."""
    chosen = {}
    for split, per_class in (("train", 5), ("val", 2)):
        table, seen, chosen[split] = pq.read_table(SAMPLE / f"{split}-00000-of-00001.parquet"), {}, []
        for row in table.to_pylist():
            name = "_".join(row["category"].lower().split())
            seen[name] = seen.get(name, 0) + 1
            if seen[name] <= per_class:
                chosen[split].append(row)
    return chosen


@pytest.fixture
def parquet(tmp_path):
    """A function that writes {split: rows} as a folder of Parquet files and returns its path."""

    def write(splits, name="parquet"):
        folder = tmp_path / name
        folder.mkdir()
        for split, split_rows in splits.items():
            pq.write_table(pa.Table.from_pylist(split_rows), folder / f"{split}-00000-of-00001.parquet")
        return str(folder)

    return write


@pytest.fixture
def image_folder(tmp_path, rows):
    """The rows as SPLIT/CLASS/ID.jpg with metadata.jsonl."""
    for split, split_rows in rows.items():
        lines = []
        for row in split_rows:
            name = f"{row['category']}/{row['image_id']}.jpg"
            (tmp_path / "folder" / split / row["category"]).mkdir(parents=True, exist_ok=True)
            (tmp_path / "folder" / split / name).write_bytes(row["image"]["bytes"])
            ids = {key: row[key] for key in ("image_id", "product_id", "scene_id", "bbox")}
            lines.append(json.dumps({"file_name": name, **ids}))
        (tmp_path / "folder" / split / "metadata.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "folder")
