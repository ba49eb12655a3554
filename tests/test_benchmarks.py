"""Each benchmark runs, in a short form of its command line."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import prediction_sets, sweep, wrong_labels
from common.compare.experiments import group_runs
from common.config import DataConfig, InputError
from common.data.dataset import load_splits
from common.data.sources import clean_category
from common.finished_run import read_run

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
    short = "--parts training predict batches start load study --rounds 1 --rows 16 --seconds 0 --sizes 40 --epochs 1"
    found = table_rows(run_benchmark("speed", *short.split(), "--models", "custom CNN, 64 px"))
    assert all(float(cell.split()[0]) > 0 for name in ("python", "accelerate launch") for cell in found[name])
    for name in ("custom CNN, 64 px", "jpeg", "jpeg --augment", "png", "png --augment", "40 rows", "1 epochs"):
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
    rows = "one seed | score", "similar models, 3 and 10 seeds", "12 questions, 6 seeds", "5 folds, 3 partitions"
    for row in (*rows, "similar models, spreads 5 and 5 points, 24 seeds", "12 questions, ordinary, 0 to 16 points"):
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


def test_prediction_sets(finished_run, capsys):
    run = str(finished_run("train_custom_cnn", "--crop --split-by product_id"))
    prediction_sets.main([run, "--divisions", "3", "--scores", "LAC", "APS", "RAPS", "--risks", "0.1", "0.5"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| custom_cnn crop (")]
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    assert [row[2:4] for row in rows] == [[asked, name] for asked in ("0.9", "0.5") for name in ("LAC", "APS", "RAPS")]
    for _, _, asked, _, covered, _, size, answered, wrong, products, _ in rows:
        assert float(asked) - 0.15 < float(covered.split()[0]) <= 1 and products == "19"
        assert 1 <= float(size) <= 13 and float(wrong) <= float(answered)


def test_parts_of_products_share_no_product():
    clusters = np.repeat(np.arange(24), 5)
    parts = list(prediction_sets.parts(clusters, np.random.default_rng(0)))
    assert np.sum(parts, axis=0).tolist() == [1] * 120
    assert all(not set(clusters[part]) & set(clusters[~part]) for part in parts)


def test_conformity_scores():
    probabilities = np.array([[0.2, 0.5, 0.3]])
    assert prediction_sets.lac(probabilities).tolist() == [[-0.2, -0.5, -0.3]]
    assert prediction_sets.aps(probabilities) == pytest.approx(np.array([[1, 0.5, 0.8]]))
    assert prediction_sets.raps(probabilities) == pytest.approx(np.array([[1.2, 0.5, 0.9]]))


@pytest.mark.slow
def test_unknown_classes(tmp_path, cache):
    options = f"custom_cnn --groups 2 --epochs 1 --image-size 32 --blocks 8k3p2 --out {tmp_path} --cache {cache}"
    done = run_benchmark("unknown_classes", *options.split())
    found = table_rows(done)
    for name in ("maximum probability", "energy", "nearest train photo", "Mahalanobis distance"):
        assert 0.2 < float(found[name][0].split()[0]) < 0.8, "AUROC of a model that knows nothing"
    known, wrong, unknown = (float(cell.split()[0]) for cell in found["risk 0.2"])
    assert 0 <= wrong <= known <= 1 and 0 <= unknown <= 1
    first, second = (
        set(line.split(":")[0].removeprefix("without ").split(", ")) for line in done.stdout.splitlines()[:2]
    )
    assert not first & second and len(first | second) == 13, "each class is left out once"


@pytest.mark.slow
def test_wrong_labels(tmp_path, cache):
    options = f"custom_cnn --draws 1 --folds 2 --epochs 1 --image-size 32 --out {tmp_path} --cache {cache}"
    done = run_benchmark("wrong_labels", *options.split())
    assert "32 of 638 labels swapped" in done.stdout
    assert all(
        0 <= float(share) <= 1 for shares in table_rows(done).values() for share in shares[:1] if share[0] == "0"
    )


def test_labels_are_swapped_for_other_classes():
    names = ["a", "b", "c", None] * 25
    swapped = wrong_labels.swap_labels(names, np.random.default_rng(0))
    changed = [(old, new) for old, new in zip(names, swapped, strict=True) if old != new]
    assert len(changed) == 4 and {new for _, new in changed} <= {"a", "b", "c"}


def test_probabilities_of_folds_are_in_the_order_of_the_rows(finished_run):
    runs = [read_run(finished_run("train_custom_cnn", f"--crop --split-by product_id:{fold}/3")) for fold in (1, 2, 3)]
    (experiment,) = group_runs(runs)
    probabilities, classes = wrong_labels.mean_probabilities(runs), np.array(runs[0].info.classes, dtype=object)
    assert probabilities.shape == (len(experiment.ids), len(classes))
    assert (probabilities.max(1) == experiment.probabilities[0].astype("f4")).all()
    assert (classes[probabilities.argmax(1)] == experiment.predictions[0]).all()


def test_suspicion_of_a_label():
    labels, probabilities = np.array([0, 0, 1]), np.array([[0.2, 0.7, 0.1], [0.3, 0.3, 0.4], [0.0, 1.0, 0.0]])
    assert wrong_labels.self_confidence(None, labels, probabilities) == pytest.approx([-0.2, -0.3, -1.0])
    assert wrong_labels.margin(None, labels, probabilities) == pytest.approx([0.5, 0.1, -1.0])
