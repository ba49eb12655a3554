"""What people see: names from data in the terminal, Markdown and CSV; encodings; the first and last lines of a run."""

import ast
import io
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

import compare
import predict
from common.config import InputError, Interrupted, count, parse, printable, run
from common.files import csv_text, markdown_table, markdown_text, write_csv
from common.finished_run import read_run
from common.run_folder import RunFolder
from tests.helpers import ROOT, SAMPLE, SCRIPTS, SMALL, launch, main, read_json
from train_custom_cnn import Config

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
HOSTILE = [  # names of categories; clean_category makes lower case of them
    "\x1b[31mred\x07",
    "<img_src=x_onerror=alert(1)>",
    "![photo](http://example.com/x.png)",
    "=hyperlink(1)",
    "'=1+1",
    "a|b`c\\<d",
    "left\u202eright",
    "стул",
]


# Text ----------------------------------------------------------------------------------------------------------------


@given(st.text(st.characters()))
def test_printable_text_has_no_control_characters(text):
    shown = printable(text)
    assert not CONTROL.search(shown) and "\n" not in shown
    assert shown == text or any(CONTROL.search(c) or c in "\n\u2028\u2029\u061c\u200e\u200f" for c in text)


def test_other_text_is_as_it_was():
    assert printable("Стул, 椅子, كرسي, Café \U0001f600 <b>`x`\\") == "Стул, 椅子, كرسي, Café \U0001f600 <b>`x`\\"
    assert printable("a\x1b[31m\n\u202e\udcff") == r"a\x1b[31m\n\u202e\udcff"


def test_counts_have_singular_and_plural():
    words = [count(1, "row"), count(2100, "row"), count(0, "box"), count(2, "class"), count(3, "category")]
    assert words == ["1 row", "2,100 rows", "0 boxes", "2 classes", "3 categories"]


@given(st.text(st.sampled_from("\\<>`|[](:!a\n")))
def test_markdown_of_a_text_has_no_live_syntax(text):
    """Each character that could begin HTML, code, a link or a cell is behind an odd number of backslashes."""
    [line] = markdown_table([text], [])[:1]
    cell = line[2:-2].rstrip(" ")
    for match in re.finditer(r"(\\*)([<`|]|\][(:\[])", cell):
        assert len(match[1]) % 2 == 1, cell


def test_markdown_of_our_own_text_is_unchanged():
    for text in ("0.672 [0.499, 0.808]", "value [95 % confidence interval]", "coffee_table (lr 0.001)", "p > 0.1!"):
        assert markdown_text(text) == text


@settings(deadline=None, max_examples=300)
@given(st.lists(st.text("'=+-@\t\r\n\uff1d5.e, \"aя", max_size=6), min_size=1))
def test_csv_cells_are_not_formulas_and_come_back(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("csv", numbered=True) / "table.csv"
    write_csv(path, [{"text": text, "number": -1.5} for text in texts])
    table = pd.read_csv(path, dtype=str, na_filter=False)
    assert table["text"].map(csv_text).tolist() == texts and set(table["number"]) == {"-1.5"}
    for cell in table["text"]:
        plain_number = re.fullmatch(r"[+-][\d.e+-]+", cell) and isinstance(float(cell), float)
        assert plain_number or not re.match("[=+@\t\r\n\uff1d-]", cell), cell


# The streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_output_appears_line_by_line_in_any_encoding(monkeypatch, name):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding="ascii"))
    run(lambda: print("стул", file=getattr(sys, name)))
    assert raw.getvalue() == b"\\u0441\\u0442\\u0443\\u043b\n", "before the stream is flushed or closed"


@pytest.mark.parametrize("kind", [InputError, Interrupted, lambda text: OSError(28, text, text)])
def test_errors_are_printable(kind, capsys):
    def fail():
        raise kind("bad name \x1b[2J\nerror: forged\n  row 1: kept as a line")

    with pytest.raises(SystemExit) as stop:
        run(fail)
    shown = stop.value.code if isinstance(stop.value.code, str) else capsys.readouterr().err
    assert r"bad name \x1b[2J\nerror: forged" in shown and not CONTROL.search(shown)
    assert "\n  row 1" in shown


def test_the_end_of_a_script_collects_no_garbage():
    """With PyTorch imported, that takes a second."""
    code = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 0)); import common.config as c; "
    assert launch([sys.executable, "-c", f"{code} c.run(lambda: None)"]).stdout == "True\n"
    assert launch([sys.executable, "-c", code]).stdout == "False\n"


def test_another_encoding_of_file_names_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")
    with pytest.raises(SystemExit, match="error: .*iso8859-1.*PYTHONUTF8=1"):
        run(lambda: pytest.fail("started"))


def test_every_text_file_is_opened_as_utf_8():
    """Otherwise the encoding is that of the locale."""
    for path in [*ROOT.glob("*.py"), *ROOT.glob("common/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            owner = getattr(getattr(node.func, "value", None), "id", "")
            binary = any(isinstance(a, ast.Constant) and "b" in str(a.value) for a in node.args[1:2])
            if name in ("read_text", "write_text") or (name == "open" and owner not in ("Image", "os") and not binary):
                named = {keyword.arg for keyword in node.keywords}
                assert "encoding" in named, f"{path.name}, line {node.lineno}"


# Names from data -----------------------------------------------------------------------------------------------------


@pytest.fixture
def hostile(rows, parquet):
    """A table of a few rows for each hostile name, which is also in its ids."""
    named = {}
    for split, split_rows in rows.items():
        copies = (split_rows * 4)[: len(HOSTILE) * 4]
        names = [HOSTILE[i % len(HOSTILE)] for i in range(len(copies))]
        named[split] = [
            dict(row, category=name, image_id=f"{name} {i}", product_id=f"{name} {i // 9}")
            for i, (row, name) in enumerate(zip(copies, names, strict=True))
        ]
    return parquet(named, "hostile")


def test_names_from_data_are_shown_and_kept(hostile, cache, tmp_path, capsys, recwarn):
    line = f"--data {hostile} --crop --epochs 1 --batch-size 16 {SMALL['train_custom_cnn']} --cache {cache}"
    folder = main("train_custom_cnn", [*line.split(), "--out", str(tmp_path / "run")])
    predict.main([str(folder), hostile, "--output", str(tmp_path / "a.csv"), "--gallery", str(tmp_path / "a.png")])
    compare.main([str(folder), "--out", str(tmp_path / "comparison")])
    printed = capsys.readouterr()
    assert not CONTROL.search(printed.out) and r"\x1b[31mred\x07" in printed.out

    names = sorted(HOSTILE)
    assert read_json(folder, "labels.json") == names and read_run(folder).info.classes == names
    run = read_run(folder)
    assert not [warning for warning in recwarn if "missing from font" in str(warning.message)], "figures show escapes"
    assert set(run.rows["label"]) == set(names) >= set(run.rows["prediction"])
    assert all(row.image_id.startswith(row.label) for row in run.rows.itertuples()), "read as they were"
    for path in (folder / "predictions.csv", tmp_path / "a.csv"):
        cells = pd.read_csv(path, dtype=str, na_filter=False).to_numpy().ravel()
        assert any(cell.startswith("'=hyperlink") for cell in cells)
        assert not [cell for cell in cells if cell.startswith("=")]

    card = folder / "README.md"
    assert ModelCard.load(card).data.library_name == "pytorch"
    for text in (card.read_text(encoding="utf-8"), (tmp_path / "comparison" / "comparison.md").read_text("utf-8")):
        assert not CONTROL.search(text) and "<img" in text and not re.search(r"(?<!\\)<img", text)
        assert r"![photo\](http" in text and "![photo](http" not in text


@pytest.mark.slow
@pytest.mark.parametrize("env", [{"LC_ALL": "C"}, {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"}])
def test_cyrillic_names_in_any_locale(rows, cache, tmp_path, env):
    data = cyrillic_folder(rows, tmp_path / "данные")
    line = f"--data {data} --epochs 1 --batch-size 2 {SMALL['train_custom_cnn']} --cache {cache} --out {tmp_path}/итог"
    done = launch([sys.executable, "train_custom_cnn.py", *line.split()], **env)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "итог" / "labels.json").read_text("utf-8")) == ["диван", "стул"]
    assert "стул" in (tmp_path / "итог" / "predictions.csv").read_text("utf-8")
    assert ("стул" if env["LC_ALL"] == "C" else r"\u0441\u0442\u0443\u043b") in done.stdout
    done = launch([sys.executable, "predict.py", f"{tmp_path}/итог", data], **env)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train_custom_cnn.py", "compare.py", "audit.py"])
def test_a_locale_without_utf_8_is_one_sentence(script, tmp_path):
    done = launch([sys.executable, script, *["x"] * (script == "compare.py")], LC_ALL="C", PYTHONUTF8="0")
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: file names are read as ascii")


def cyrillic_folder(rows, folder):
    """An image folder with two Cyrillic classes and Cyrillic file names."""
    for split in ("train", "val"):
        for i, row in enumerate(rows[split][:8]):
            path = folder / split / ("стул", "диван")[i % 2] / f"фото{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row["image"]["bytes"])
    return str(folder)


# The first and the last lines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_first_import_of_a_training_script_prints_a_line(script):
    """Before torch, whose import takes seconds; and it imports nothing that is slow."""
    imports = [node for node in ast.parse((ROOT / f"{script}.py").read_text("utf-8")).body if hasattr(node, "names")]
    assert [alias.name for alias in imports[0].names] == ["common.announce"]
    tree = ast.parse((ROOT / "common" / "announce.py").read_text("utf-8"))
    names = {getattr(node, "module", None) or node.names[0].name for node in tree.body if hasattr(node, "names")}
    assert names <= sys.stdlib_module_names
    assert not (ROOT / "common" / "__init__.py").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(("more", "rank"), [("--margin -1", "0"), ("--margin -1", "1"), ("--help", "0")])
def test_the_first_line_comes_before_torch(more, rank):
    done = launch([sys.executable, "-X", "importtime", "train_custom_cnn.py", *more.split()], RANK=rank)
    lines = done.stderr.splitlines()
    torch = next(i for i, line in enumerate(lines) if line.split("|")[-1].strip().startswith("torch"))
    first = [i for i, line in enumerate(lines) if line == "train_custom_cnn: loading PyTorch ..."]
    assert (first[0] < torch and len(first) == 1) if (more, rank) == ("--margin -1", "0") else not first


@pytest.mark.parametrize("data", ["sample", "its own"])
def test_a_run_ends_with_its_score_and_commands_that_work(data, options, empty_figures, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SAMPLE, "its own")
    argv = [*options("train_custom_cnn"), "--crop", "--out", "with space/it's", "--data", data]
    monkeypatch.setattr(sys, "argv", ["my project/train_custom_cnn.py", *argv])
    folder = main("train_custom_cnn", argv)
    finished, results, following, last = capsys.readouterr().out.splitlines()[-4:]
    metrics, card = read_json(folder, "metrics.json"), (folder / "README.md").read_text("utf-8")
    score = re.search(r"\| accuracy +\| (0\.\d+ \[.*?\]) +\|", card)[1]
    assert score.startswith(f"{metrics['accuracy']:.3f}")
    assert finished == f"finished: {folder}: accuracy {score} (95 % confidence interval) on 48 val rows"
    assert str(folder / "README.md") in results
    assert f"python train_custom_cnn.py {shlex.join(argv)}\n" in card
    for line, script in ((following.removeprefix("next:"), predict), (last, compare)):
        python, path, *argv = shlex.split(line)
        assert os.path.realpath(path) == script.__file__ and "python" in python
        assert script.main(argv), "as pasted"
    assert "add --data" not in capsys.readouterr().out, "compare.py reads the data for its baseline"


def next_commands(path, data):
    run = SimpleNamespace(path=Path(path), config=SimpleNamespace(data=data, dry_run=False))
    return [shlex.split(line)[-2:] for line in RunFolder._closing_lines(run, {"accuracy": 1, "n": 1}, {})[2:]]


def test_commands_for_names_that_look_like_options():
    predict_line, compare_line = next_commands("-x", "-d")
    assert predict_line == ["./-x", "./-d"] and compare_line == ["--data", "./-d"]
    assert next_commands("x", "sample")[0] == ["x", "sample"]


@pytest.mark.parametrize(("path", "data"), [("a\x1bb", "sample"), ("a", "b\nc")])
def test_commands_that_could_not_be_pasted_are_left_out(path, data):
    assert next_commands(path, data) == []


def test_the_help_of_summary_says_that_training_follows(capsys):
    with pytest.raises(SystemExit):
        parse(Config, ["--help"])
    assert re.search(r"--summary\s+print the layer table, then train", capsys.readouterr().out)
