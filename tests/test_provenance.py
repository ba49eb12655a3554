"""Code is part of a result: a model is used only if today's code gives the outputs that the run stored."""

import hashlib
import os
import shutil
import signal
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

import common.run_folder
import common.train
import compare
import export
import predict
import train_custom_cnn
from common import provenance
from common.augment import augment
from common.compare.grid import Job, finished_run
from common.config import InputError, Interrupted, TrainConfig, fits
from common.data import crop
from common.data.dataset import load_splits
from common.deploy import formats
from common.distillation import load_teacher
from common.finished_run import read_run
from common.launch import check_model
from common.provenance import code_key
from common.run_folder import RunInfo
from tests.helpers import (
    SAMPLE,
    SCRIPTS,
    config_of,
    edit_json,
    exit_code,
    fork,
    logits_of,
    read_json,
    read_weights,
    signal_at,
)

SCRIPT = "train_custom_cnn"
VAL = str(SAMPLE / "val-00000-of-00001.parquet")


@pytest.fixture
def copy(finished_run, tmp_path):
    """A copy of a finished run, to be changed."""
    return Path(shutil.copytree(finished_run(SCRIPT), tmp_path / "copy"))


def refuse(run, words):
    """Checks that every use of the model of a run is refused."""
    for use in (
        lambda: predict.main([str(run), VAL]),
        lambda: export.main([str(run), "--to", "pt2"]),
        lambda: compare.main(["--shortcuts", str(run), "--out", str(run.parent / "shortcuts")]),
        lambda: load_as_teacher(run),
    ):
        with pytest.raises(InputError, match=words):
            use()


def load_as_teacher(run):
    config = train_custom_cnn.Config(**read_json(run, "run.json")["config"] | {"teacher": str(run)})
    return load_teacher(config, *load_splits(config), torch.device("cpu"))


# Predictions, exports, shortcuts and teachers ------------------------------------------------------------------------


def test_an_edited_script_is_refused(copy, monkeypatch):
    monkeypatch.setattr(nn, "ReLU", nn.GELU)  # as if the script had been edited
    code = read_json(copy, "run.json")["code"]
    edit_json(copy, "run.json", commit="abc123", code=code | {"train_custom_cnn.py": code["common/step.py"]})
    shutil.copy(provenance.PROJECT / "common/step.py", copy / "train_custom_cnn.py")
    refuse(copy, "builds another model today: the stored logits .* abc123: train_custom_cnn.py. Use the code")


def test_photos_that_are_cropped_otherwise_are_refused(copy, monkeypatch):
    resize = Image.Image.resize
    bicubic = Image.Resampling.BICUBIC
    monkeypatch.setattr(Image.Image, "resize", lambda image, size, _=None, **more: resize(image, size, bicubic, **more))
    with pytest.raises(InputError, match="photos are cropped differently"):
        read_run(copy).model()


def stretched(crop_size, size, padding=crop.padding):
    """Wide crops are stretched instead of padded."""
    return (0, 0) if crop_size[0] > crop_size[1] else padding(crop_size, size)


@pytest.mark.parametrize(
    ("name", "edited"),
    [
        ("padding", stretched),
        ("to_rgb", lambda image: image.convert("RGB")),
        ("grow_box", lambda bbox, margin, *size, grow=crop.grow_box: grow(bbox, 0, *size)),
    ],
)
def test_other_ways_to_crop_are_refused(copy, name, edited, monkeypatch):
    monkeypatch.setattr(crop, name, edited)
    with pytest.raises(InputError, match="photos are cropped differently"):
        read_run(copy).model()


def test_another_evaluation_is_refused(copy, monkeypatch):
    monkeypatch.setattr(provenance, "augment", lambda *args, **more: 0.5 * augment(*args, **more))
    with pytest.raises(InputError, match="stored logits"):
        read_run(copy).model()


def test_changes_that_keep_the_outputs_are_a_note(copy, capsys):
    edit_json(copy, "run.json", code=read_json(copy, "run.json")["code"] | {"common/step.py": "x"})
    read_run(copy).model()
    assert f"changed since {copy} was made, with the same outputs: common/step.py" in capsys.readouterr().err


def test_predictions_in_another_order_are_refused(copy, cache):
    """Rows sorted in a spreadsheet would be paired with the wrong photos."""
    header, *lines = (copy / "predictions.csv").read_text().splitlines()
    (copy / "predictions.csv").write_text("\n".join([header, *sorted(lines, key=lambda line: line.split(",")[3])]))
    rehash(copy, "predictions.csv")
    with pytest.raises(InputError, match="predictions.csv in .* does not have the val rows"):
        read_run(copy).splits(cache=cache)


def test_a_model_that_predicts_otherwise_than_its_file_is_not_exported(copy, tmp_path, monkeypatch):
    monkeypatch.setattr(formats.RawModel, "forward", lambda self, images: -self.model(images * self.scale + self.shift))
    with pytest.raises(InputError, match="predicts .* of 130 val rows otherwise"):
        export.main([str(copy), "--to", "pt2", "--output", str(tmp_path / "model.pt2")])
    assert not (tmp_path / "model.pt2").exists()


@pytest.mark.parametrize("name", ["train_custom_cnn.py", "common/step.py"])
def test_a_file_that_is_edited_while_a_run_starts_is_refused(name, options, monkeypatch):
    path = (provenance.PROJECT / name).resolve()
    monkeypatch.setitem(provenance.STATES, path, (0, 0, 0))
    with pytest.raises(InputError, match=f"{path.name} was edited while this run was starting"):
        train_custom_cnn.main(options(SCRIPT))


def test_other_packages_are_named(copy, monkeypatch):
    edit_json(copy, "run.json", versions=read_json(copy, "run.json")["versions"] | {"timm": "0.1"})
    monkeypatch.setattr(nn, "ReLU", nn.GELU)
    with pytest.raises(InputError, match="the run used timm 0.1"):
        read_run(copy).model()


def test_a_run_of_an_older_version_is_refused(copy):
    edit_json(copy, "run.json", files={}, commit="abc123")
    refuse(copy, "older version.*abc123")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_model_of_today_is_accepted(finished_run, script):
    assert not read_run(finished_run(script)).model().training


def rehash(run, name):
    """Records a changed file in run.json."""
    sha256 = hashlib.sha256((run / name).read_bytes()).hexdigest()
    edit_json(run, "run.json", files=read_json(run, "run.json")["files"] | {name: sha256})


def rewritten(change):
    """A change of the weights that also changes their hash in run.json, which only the outputs give away."""

    def apply(run):
        state = {name: change(value) for name, value in read_weights(run).items()}
        safetensors.torch.save_file(state, run / "model.safetensors")
        rehash(run, "model.safetensors")

    return apply


def flip(name, position):
    def apply(run):
        content = bytearray((run / name).read_bytes())
        content[position] ^= 1
        (run / name).write_bytes(content)

    return apply


def with_other_logits(run):
    stored = safetensors.torch.load_file(run / "reference.safetensors")
    stored["logits"][0, 0] += 1
    safetensors.torch.save_file(stored, run / "reference.safetensors")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (rewritten(lambda value: value * float("nan") if value.is_floating_point() else value), "logits"),
        (rewritten(lambda value: torch.rand(value.shape)), "logits"),
        (rewritten(lambda value: (value * 127).to(torch.int8)), "another shape or dtype"),
        (rewritten(lambda value: value[:1].clone()), "another shape or dtype"),
        (
            lambda run: rewritten(lambda value: value)(run) or (run / "reference.safetensors").unlink(),
            "reference.safetensors cannot be read: No",
        ),
        (lambda run: (run / "model.safetensors").write_bytes(b"x" * 99) and rehash(run, "model.safetensors"), "loaded"),
        (flip("model.safetensors", -1), "not the file that the run wrote"),
        (flip("reference.safetensors", 0), "reference.safetensors is damaged"),
        (with_other_logits, "logits .* packages are the same, so the run folder was changed"),
        (lambda run: (run / "model.safetensors").unlink(), "cannot be loaded: .* No such file"),
        (lambda run: (run / "model.safetensors").write_bytes(b""), "not the file that the run wrote"),
    ],
    ids="nan random int8 shape no-reference invalid flipped flipped-header flipped-logit missing empty".split(),
)
def test_wrong_weights_are_refused(copy, damage, words):
    damage(copy)
    with pytest.raises(InputError, match=words):
        read_run(copy).model()


def other_probabilities(change, name="probabilities"):
    """A change of the probabilities that also changes their hash in run.json."""

    def apply(run):
        path = run / "probabilities.safetensors"
        safetensors.torch.save_file({name: change(safetensors.torch.load_file(path)["probabilities"])}, path)
        rehash(run, path.name)

    return apply


def test_the_probabilities_are_those_of_the_predictions(copy):
    run = read_run(copy)
    _, val = run.splits()
    expected = logits_of(run.model(), val).softmax(1)
    torch.testing.assert_close(torch.from_numpy(run.probabilities), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip("probabilities.safetensors", -1), "not the file that the run wrote"),
        (lambda run: (run / "probabilities.safetensors").unlink(), "No such file"),
        (lambda run: edit_json(run, "run.json", files={}), "older version"),
        (other_probabilities(lambda value: value, "p"), "'probabilities'"),
        (other_probabilities(lambda value: value.double()), "float64"),
        (other_probabilities(lambda value: value[1:]), "instead of"),
        (other_probabilities(lambda value: value.flip(1)), "contradicts predictions.csv"),
        (other_probabilities(lambda value: value.where(value == value.max(1, True).values, -1)), "contradicts"),
        (other_probabilities(lambda value: value.where(value == value.max(1, True).values, 0)), "contradicts"),
    ],
    ids="flipped missing old name float64 rows classes negative sum".split(),
)
def test_wrong_probabilities_are_refused(copy, damage, words):
    damage(copy)
    with pytest.raises(InputError, match=words):
        read_run(copy).probabilities  # noqa: B018


def train_in_bf16(argv):
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    train_custom_cnn.main(argv)


def test_mixed_precision_does_not_affect_the_stored_outputs(options, tmp_path):
    assert exit_code(fork(train_in_bf16, options(SCRIPT))) == 0
    run = read_run(tmp_path / "out")
    assert run.info.mixed_precision == "bf16" and run.model()


def test_code_in_a_run_folder_is_not_executed(copy, tmp_path):
    (copy / "train_custom_cnn.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Config: pass\n")
    sha256 = hashlib.sha256((copy / "train_custom_cnn.py").read_bytes()).hexdigest()
    edit_json(copy, "run.json", code=read_json(copy, "run.json")["code"] | {"train_custom_cnn.py": sha256})
    predict.main([str(copy), VAL])
    compare.main([str(copy), "--out", str(tmp_path / "comparison")])
    assert not (tmp_path / "executed").exists()


# Comparisons ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_seeds(copy, tmp_path):
    """Two runs that differ in the seed, and a function that edits the script of the second."""
    other = Path(shutil.copytree(copy, tmp_path / "other"))
    rewritten(lambda value: value + 1e-6 if value.is_floating_point() else value)(other)
    edit_json(other, "run.json", config=read_json(copy, "run.json")["config"] | {"seed": 1})

    def edit(old, new):
        script = other / "train_custom_cnn.py"
        text = script.read_text()
        assert old in text
        script.write_text(text.replace(old, new))
        sha256 = hashlib.sha256(script.read_bytes()).hexdigest()
        edit_json(other, "run.json", code=read_json(other, "run.json")["code"] | {script.name: sha256})

    return copy, other, edit


def comparison_of(*runs, out):
    return compare.main([*map(str, runs), "--out", str(out)])


def test_another_script_is_another_experiment(two_seeds, tmp_path):
    *runs, edit = two_seeds
    edit("layers.append(nn.ReLU())", "layers.append(nn.GELU())")
    found = comparison_of(*runs, out=tmp_path / "out")
    assert [e["name"] for e in found["experiments"]] == ["custom_cnn (script 1) crop", "custom_cnn (script 2) crop"]
    (note,) = [note for note in found["notes"] if "script 2" in note]
    assert "-layers.append(nn.ReLU())" in note.replace("- ", "-") and "GELU" in note and str(runs[1]) in note


def test_comments_docstrings_and_layout_are_not_another_experiment(two_seeds, tmp_path):
    *runs, edit = two_seeds
    edit("def convolution(", "# A comment\ndef  convolution(")
    edit("    blocks: list[Block] = []\n", "    blocks: list[Block] = [\n    ]\n")
    edit('"""The convolution of a block, ', '"""A convolution, ')
    (experiment,) = comparison_of(*runs, out=tmp_path / "out")["experiments"]
    assert experiment["seeds"] == [0, 1]


def test_other_versions_of_common_are_a_note(two_seeds, tmp_path):
    *runs, _ = two_seeds
    edit_json(
        runs[1], "run.json", commit="abc123", code=read_json(runs[0], "run.json")["code"] | {"common/step.py": "x"}
    )
    found = comparison_of(*runs, out=tmp_path / "out")
    assert len(found["experiments"]) == 1
    (note,) = [note for note in found["notes"] if "common/step.py" in note]
    assert "abc123" in note and "common/train.py" not in note


def test_a_study_does_not_keep_runs_of_an_edited_script(two_seeds):
    *runs, edit = two_seeds
    edit("layers.append(nn.ReLU())", "layers.append(nn.GELU())")
    first, second = (read_run(run).info for run in runs)
    jobs = [
        Job(SCRIPT, "crop", (), train_custom_cnn.Config(**info.config | {"out": str(run)}))
        for info, run in zip((first, second), runs, strict=True)
    ]
    assert finished_run(jobs[0], first.data_fingerprint)
    with pytest.raises(InputError, match="already holds a run with another version of train_custom_cnn.py"):
        finished_run(jobs[1], second.data_fingerprint)


def test_any_text_has_a_code_key():
    deep = b"(" * 100_000
    assert code_key(deep) == code_key(deep) != code_key(b"x = 1") == code_key(b"x = 1  # one")
    assert code_key(b"\xff") and code_key(b"-" * 50_000 + b"1")


def test_a_script_that_does_not_match_its_hash_is_damaged(copy):
    (copy / "train_custom_cnn.py").write_text("")
    with pytest.raises(InputError, match=r"train_custom_cnn.py is not the script of the run"):
        read_run(copy)


def test_one_odd_run_is_left_out(two_seeds, tmp_path):
    a, b, _ = two_seeds
    changed, again, damaged, unfinished, same = (Path(shutil.copytree(b, tmp_path / name)) for name in "vwxyz")
    for number, run in enumerate((changed, again), 2):
        rewritten(lambda value, number=number: value + number * 1e-6 if value.is_floating_point() else value)(run)
    edit_json(changed, "run.json", data_fingerprint="other")
    edit_json(same, "run.json", config=read_json(same, "run.json")["config"] | {"seed": 2})
    (damaged / "predictions.csv").write_text("image_id\n")
    (unfinished / "metrics.json").unlink()
    found = comparison_of(tmp_path, out=tmp_path / "out")
    assert [experiment["seeds"] for experiment in found["experiments"]] == [[0, 1]]
    left_out = [note for note in found["notes"] if note.startswith("left out")]
    for folder, words in (
        (changed, "data"),
        (again, "same options"),
        (damaged, "complete"),
        (unfinished, "not fin"),
        (same, "same weights"),
    ):
        assert any(str(folder) in note and words in note for note in left_out), words
    page = (tmp_path / "out" / "comparison.md").read_text()
    assert all(note in page for note in left_out)


# Untrusted run folders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", 10**9), ("image_size", "32"), ("image_size", 32.5), ("image_size", True), ("image_size", None),
        ("crop", "yes"), ("crop", 1), ("margin", float("nan")), ("margin", [0.1]), ("fit", {}), ("fit", "tile"),
        ("seed", "0"), ("seed", None), ("seed", True), ("seed", 10**400), ("lr", float("nan")), ("lr", 10**400),
        ("limit", -1), ("split_by", None), ("split_by", "product id"), ("augment", None), ("hidden", [1]),
        ("blocks", {}), ("augment", []), ("blocks", 5), ("blocks", "999999,999999"), ("blocks", "8," * 2000 + "8"),
        ("hidden", 10**12), ("hidden", -1), ("split_by", 3), ("data", None), ("cache", 1), ("unknown", 1),
    ],
)  # fmt: skip
def test_values_of_a_run_folder_are_checked(copy, name, value):
    edit_json(copy, "run.json", config=read_json(copy, "run.json")["config"] | {name: value})
    with pytest.raises(InputError):
        read_run(copy).model()
    if name in TrainConfig.__dataclass_fields__ or not isinstance(value, int | str):
        with pytest.raises(InputError):
            compare.main([str(copy), "--out", str(copy.parent / "comparison")])


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("run.json", {"classes": 5}), ("run.json", {"classes": []}), ("run.json", {"classes": ["b", "a"]}),
        ("run.json", {"script": "../evil"}), ("run.json", {"script": ["train_vit"]}), ("run.json", {"config": None}),
        ("run.json", {"rows": {"val": "130"}}), ("run.json", {"rows": {}}), ("run.json", {"code": []}),
        ("run.json", {"seconds": "long"}), ("run.json", {"parameters": None}), ("run.json", {"resumed": {}}),
        ("data_report.json", {"majority": 1}), ("data_report.json", {"products": []}),
        ("data_report.json", {"products": {"shared": "abc"}}), ("data_report.json", {"majority": "nowhere"}),
        ("metrics.json", {"accuracy": 0.99}), ("metrics.json", {"f1": None}), ("metrics.json", {"n": 7}),
        ("run.json", {"parameters": 10**400}), ("metrics.json", {"accuracy": 10**400}),
        ("data_report.json", {"products": {"shared": ["\ud800"]}}), 
        ("metrics.json", {"loss": float("nan")}), ("metrics.json", {"loss": 3}), ("metrics.json", {"macro_f1": "1"}),
    ],
)  # fmt: skip
def test_files_that_do_not_make_sense_are_refused(copy, file, change):
    edit_json(copy, file, **change)
    with pytest.raises(InputError, match=r"is not a complete run folder"):
        read_run(copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: [*row[:3], row[4], row[4], *row[5:]] if row[3] != row[4] else row, "accuracy"),
        (lambda row: [*row[:4], "unicorn", *row[5:]], "unicorn"),
        (lambda row: [*row[:4], "", *row[5:]], "''"),
        (lambda row: [*row[:6], "-0.5"], "loss"),
        (lambda row: [*row[:6], "0.5"], "loss is"),
        (lambda row: [*row[:5], "1.5", row[6]], "probability"),
    ],
)
def test_predictions_that_contradict_the_metrics_are_refused(copy, change, words):
    header, *lines = (copy / "predictions.csv").read_text().splitlines()
    changed = [",".join(change(line.split(","))) for line in lines]
    (copy / "predictions.csv").write_text("\n".join([header, *changed]))
    with pytest.raises(InputError, match="predictions.csv is not the file that the run wrote"):
        read_run(copy)
    rehash(copy, "predictions.csv")
    with pytest.raises(InputError, match=words):
        read_run(copy)


def test_a_model_of_more_elements_than_can_be_counted_is_refused(copy):
    config = read_json(copy, "run.json")["config"]
    huge = {"blocks": "999999", "hidden": 1_000_000, "image_size": 8192}
    edit_json(copy, "run.json", config=config | huge)
    with pytest.raises(InputError, match="cannot be built"):
        read_run(copy).model()


def test_deep_json_is_refused(copy):
    text = (copy / "metrics.json").read_text()
    (copy / "metrics.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="complete run folder"):
        read_run(copy)
    (copy / "metrics.json").write_text(text)


def make_sparse(path):
    path.write_bytes(b"")
    os.truncate(path, 10**11)


@pytest.mark.parametrize(
    "name",
    ["labels.json", "predictions.csv", "train_custom_cnn.py", "model.safetensors"]
    + ["reference.safetensors", "probabilities.safetensors"],
)
@pytest.mark.parametrize(
    ("replace", "words"),
    [
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.symlink_to(SAMPLE / "README.md"), "not a regular file"),
        (make_sparse, "more than it can be"),
    ],
    ids="fifo endless link sparse".split(),
)
def test_only_regular_files_of_a_run_folder_are_read(copy, name, replace, words):
    (copy / name).unlink()
    replace(copy / name)
    with pytest.raises(InputError, match=f"{name} .*{words}"):
        run = read_run(copy)
        run.model(), run.probabilities


def test_a_run_folder_does_not_decide_what_is_read_and_written(copy, tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    config = read_json(copy, "run.json")["config"]
    edit_json(copy, "run.json", config=config | {"cache": str(tmp_path / "elsewhere")})
    compare.main([str(copy), "--out", str(tmp_path / "out"), "--cache", cache])
    assert not (tmp_path / "elsewhere").exists()
    private = tmp_path / "private"
    shutil.copytree(SAMPLE, private)
    edit_json(copy, "run.json", config=config | {"data": str(private)})
    run = read_run(copy)
    with pytest.raises(InputError, match=f"add --data {private}"):
        run.splits(cache=cache)
    assert len(run.splits(str(private), cache)[1]) == 130, "the same data in another place"
    with pytest.raises(InputError, match=f"add --data {private}"):
        compare.main(["--shortcuts", str(copy), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("script", "more"),
    [
        ("train_custom_cnn", "--blocks 999999,999999"),
        ("train_custom_cnn", "--blocks 999999 --hidden 1000000 --image-size 8192"),
        ("train_custom_vit", "--dim 1000000"),
        ("train_custom_vit", "--depth 1000 --dim 100000"),
    ],
)
def test_a_model_larger_than_the_memory_is_refused_before_it_is_built(script, more):
    config = config_of(script, more.split())
    with pytest.raises(InputError, match="GB .* smaller model"):
        check_model(config, __import__(script).build_model)


@pytest.mark.parametrize("script", SCRIPTS)
def test_incompatible_options_end_before_the_data_is_read(script, options, monkeypatch):
    wrong = {name: "--image-size 33" for name in ("train_vit", "train_timm", "train_custom_vit")}
    wrong |= {"train_resnet": "--model alexnet"}
    module = __import__(script)
    monkeypatch.setattr(module, "load_splits", lambda config: pytest.fail("read the data"))
    with pytest.raises(InputError):
        module.main(options(script, more=wrong.get(script, "--blocks 8p99")))


def test_types_of_json_values():
    assert fits(1, float) and fits(1.5, float) and not fits(1.5, int) and not fits(True, int) and not fits(True, float)
    assert (
        fits(None, float | None) and not fits("", float | None) and fits(["a"], list[str]) and not fits([1], list[str])
    )
    assert fits({"a": 1}, dict[str, int]) and not fits({"a": "1"}, dict[str, int]) and not fits([], dict[str, int])
    assert RunInfo.__annotations__, "types are read from the annotations"


# Checkpoints and logs ------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(options, empty_figures, monkeypatch, tmp_path):
    """A run that stopped after step 2, and the command line that continues it."""
    argv = options(SCRIPT, more="--checkpoint-every 1")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(common.train, "train_step", signal_at(2, signal.SIGTERM))
        train_custom_cnn.main(argv)
    return tmp_path / "out", [*argv, "--resume"]


@pytest.mark.parametrize("record", range(3))
def test_a_flipped_byte_in_a_checkpoint_is_one_message(stopped, record):
    folder, argv = stopped
    with zipfile.ZipFile(folder / "checkpoint" / "last.pt") as file:
        records = sorted(file.infolist(), key=lambda info: -info.file_size)
    flip("checkpoint/last.pt", records[record].header_offset + records[record].file_size // 2)(folder)
    with pytest.raises(InputError, match="last.pt is damaged"):
        train_custom_cnn.main(argv)


@pytest.mark.parametrize(
    "change",
    [
        {"step": -5}, {"step": 10**9}, {"step": "x"}, {"seconds": 5}, {"seconds": {}}, {"origin": {}}, {"model": None},
        {"origin": {"foreign": 1}}, {"identity": 5}, {"losses": torch.zeros(7)}, {"losses": None}, {"optimizer": 1},
        None,
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_form_is_one_message(stopped, change):
    folder, argv = stopped
    path = folder / "checkpoint" / "last.pt"
    state = torch.load(path, weights_only=True)
    torch.save([state] if change is None else state | change, path)
    with pytest.raises(InputError, match="does not fit|another version|another run"):
        train_custom_cnn.main(argv)


def test_a_checkpoint_that_is_a_fifo_does_not_hang(stopped):
    folder, argv = stopped
    (folder / "checkpoint" / "last.pt").unlink()
    os.mkfifo(folder / "checkpoint" / "last.pt")
    with pytest.raises(InputError, match="damaged"):
        train_custom_cnn.main(argv)


def test_a_checkpoint_of_an_edited_script_is_refused(stopped, monkeypatch):
    folder, argv = stopped
    edited = (folder / "train_custom_cnn.py").read_bytes().replace(b"nn.ReLU()", b"nn.GELU()")
    monkeypatch.setattr(
        Path, "read_bytes", lambda path, read=Path.read_bytes: edited if path.stem == SCRIPT else read(path)
    )
    with pytest.raises(InputError, match="another version of the script"):
        train_custom_cnn.main(argv)


@pytest.mark.parametrize("line", ["{\n", "[]\n", "\n", "{}\n", '{"step": "x"}\n', "\xff\n"])
def test_a_damaged_log_is_one_message(stopped, line):
    folder, argv = stopped
    text = (folder / "log.jsonl").read_text()
    (folder / "log.jsonl").write_text(line + text, encoding="latin1")
    with pytest.raises(InputError, match="line 1 of .*log.jsonl is damaged"):
        train_custom_cnn.main(argv)


def test_a_resumed_run_keeps_the_commit_and_command_of_its_start(stopped, monkeypatch, capsys):
    folder, argv = stopped
    first = read_json(folder, "run.json")
    hashes = common.run_folder.code_hashes
    monkeypatch.setattr(common.run_folder, "code_hashes", lambda path: hashes(path) | {"common/step.py": "x"})
    monkeypatch.setattr("sys.argv", ["train_custom_cnn.py", "again"])
    train_custom_cnn.main(argv)
    run = read_json(folder, "run.json")
    assert [run[name] for name in ("command", "commit", "code")] == [
        first[name] for name in ("command", "commit", "code")
    ]
    assert run["resumed"] == [
        {"step": 2, "command": "train_custom_cnn.py again", "commit": first["commit"], "changed": ["common/step.py"]}
    ]
    assert "common/step.py" in capsys.readouterr().out
