"""The benchmark runs; what it says is for LOG.md."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks import sweep
from common.config import DataConfig, InputError
from common.data import load_splits
from common.sources import clean_category
from tests.conftest import SAMPLE

ROOT = Path(__file__).parent.parent


def test_the_benchmark_runs(tmp_path):
    command = [sys.executable, "benchmarks/speed.py", "--quick", "--parts", "growth", "--out", tmp_path / "speed.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "speed.json").read_text())
    assert {"command", "rounds", "machine", "growth"} <= results.keys()
    assert results["growth"][0]["case"] == "500 rows" and "500 rows" in done.stdout
    assert all(value > 0 for name, value in results["growth"][0].items() if name != "case")


def test_the_comparison_of_choices_runs():
    command = [sys.executable, "benchmarks/choices.py", "--only", "seeding", "decode", "--rounds", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "one device's" in done.stdout and "1/8" in done.stdout


def test_a_sweep_keeps_its_runs_and_no_others(tmp_path, cache, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "TRIALS", ("", "--lr 3e-3"))
    monkeypatch.setattr(sweep, "NETS", {})
    line = (
        f"custom_cnn --folds 2 --out {tmp_path} --limit 90 --epochs 1 --image-size 16 --cache {cache} --blocks 8s2-bn"
    )
    sweep.main(line.split())
    first = capsys.readouterr().out
    assert "base, fold 2" in first and "--lr 3e-3, fold 1" in first and "accuracy, n = 180" in first
    sweep.main(line.split())
    again = capsys.readouterr().out
    assert "fold" not in again and again in first
    with pytest.raises(InputError, match="holds a run with --blocks 8s2-bn"):
        sweep.main([*line.split()[:-1], "16s2-bn"])


def test_a_sweep_sees_no_val_row(tmp_path):
    """Nor a class that val lacks."""
    sweep.train_alone("sample", tmp_path)

    def columns(path):
        rows = pq.read_table(path, columns=["image_id", "category"]).to_pydict()
        return rows["image_id"], [clean_category(name) for name in rows["category"]]

    (_, train), (val_ids, val) = (columns(SAMPLE / f"{split}-00000-of-00001.parquet") for split in ("train", "val"))
    ids, names = columns(tmp_path / "train.parquet")
    assert not set(ids) & set(val_ids) and names == [name for name in train if name in set(val)] != train
    with pytest.raises(InputError, match="no val split"):
        load_splits(DataConfig(data=str(tmp_path), cache=str(tmp_path / "cache")))
