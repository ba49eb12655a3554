"""Each benchmark runs, in a short form of its command line."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks import sweep
from common.config import DataConfig, InputError
from common.data.dataset import load_splits
from common.data.sources import clean_category

ROOT = Path(__file__).parent.parent


def run_benchmark(name, *options, **env):
    """Runs `python -m benchmarks.NAME OPTIONS` on one thread, as other tests may run in parallel."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def table_rows(done):
    """The rows of the Markdown tables that a benchmark printed: the remaining cells by first cell."""
    assert done.returncode == 0, done.stderr
    lines = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    return {name.strip(): [cell.strip() for cell in cells] for name, *cells in lines}


@pytest.mark.slow
def test_speed():
    short = "--parts training predict batches start --rounds 1 --rows 16 --seconds 0 --sizes 40 --models".split()
    found = table_rows(run_benchmark("speed", *short, "custom CNN, 64 px"))
    for name in ("custom CNN, 64 px", "jpeg", "jpeg --augment", "png", "png --augment", "40 rows"):
        assert len(found[name]) >= 3 and all(float(cell.split()[0].replace(",", "")) >= 0 for cell in found[name])


@pytest.mark.slow
def test_objects():
    found = table_rows(run_benchmark("objects", "--photos", "2", "--width", "400", "--rounds", "1"))
    decode, prepare, each, *_ = found["4 photos of 400 x 300, 10 boxes each, crops of 64 px"]
    assert min(map(float, (decode, prepare, each))) > 0


@pytest.mark.slow
def test_choices():
    short = "--only memory --rounds 2 --seconds 0 --models".split()
    kept, freed, ratio = table_rows(run_benchmark("choices", *short, "custom ViT, 64 px"))["custom ViT, 64 px"]
    assert float(kept) > 0 and float(freed) > 0
    middle, low, _, high = ratio.replace("(", "").replace(")", "").split()
    assert float(low) <= float(middle) <= float(high)


@pytest.mark.slow
def test_coverage():
    done = run_benchmark("coverage", "--trials", "3")
    assert done.returncode == 0, done.stderr
    for row in ("one seed | score", "similar models, 3 and 10 seeds", "12 questions, 6 seeds", "5 folds, 3 partitions"):
        assert f"| {row}" in done.stdout
    assert "| nan" not in done.stdout


@pytest.mark.slow
def test_sweep_keeps_its_runs_and_no_others(tmp_path, cache, capsys):
    line = f"custom_cnn --folds 2 --out {tmp_path} --limit 90 --epochs 1 --image-size 16 --cache {cache} --trials"
    options = [*line.split(), "--lr 3e-3", "--blocks", "8s2-bn"]
    done = run_benchmark("sweep", *options)
    rows = table_rows(done)
    assert {"base crop-strong", "--lr 3e-3 crop-strong", "--lr 3e-3 vs. base, crop-strong"} <= rows.keys()
    runs = [
        f"{tmp_path}/custom_cnn/{trial}/train_custom_cnn-crop-strong-f{k}-s0"
        for trial in ("base", "lr-3e-3")
        for k in (1, 2)
    ]
    assert done.stdout.splitlines()[:4] == runs
    sweep.main(options)
    assert capsys.readouterr().out == "".join(done.stdout.splitlines(keepends=True)[4:]), "no run is repeated"
    with pytest.raises(InputError, match="holds a run with --blocks 8s2-bn"):
        sweep.main([*options[:-1], "16s2-bn"])


def test_sweep_sees_no_val_row(tmp_path):
    """Nor any class that does not occur in val."""
    sweep.write_train_split("sample", tmp_path)

    def columns(path):
        rows = pq.read_table(path, columns=["image_id", "category"]).to_pydict()
        return rows["image_id"], [clean_category(name) for name in rows["category"]]

    sample = ROOT / "data" / "sample"
    (_, train), (val_ids, val) = (columns(sample / f"{split}-00000-of-00001.parquet") for split in ("train", "val"))
    ids, names = columns(tmp_path / "train.parquet")
    assert not set(ids) & set(val_ids) and names == [name for name in train if name in set(val)] != train
    with pytest.raises(InputError, match="no val split"):
        load_splits(DataConfig(data=str(tmp_path), cache=str(tmp_path / "cache")))
