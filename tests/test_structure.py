"""The shape of the project, kept true."""

import ast
import importlib
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from common.config import InputError, TrainConfig, flag_of, parse

ROOT = Path(__file__).parent.parent
SCRIPTS = ["train_resnet", "train_vit", "train_custom_cnn", "train_custom_vit"]


def imports(path):
    """The project's own modules that a file imports, as `common.x` or `train_x`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if (ROOT / (name.replace(".", "/") + ".py")).exists()}


def test_imports_go_one_way():
    for script in SCRIPTS:
        assert all(name.startswith("common.") for name in imports(ROOT / f"{script}.py")), script
    graph = {f"common.{path.stem}": imports(path) for path in ROOT.glob("common/*.py")}
    assert all(name.startswith("common.") for names in graph.values() for name in names)
    while graph:
        leaves = [module for module, names in graph.items() if not names & graph.keys()]
        assert leaves, f"an import circle among {sorted(graph)}"
        for module in leaves:
            del graph[module]


def test_files_stay_short():
    for path in ROOT.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 120, path
    for path in ROOT.glob("common/*.py"):
        assert len(path.read_text().splitlines()) <= 220, path


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_is_read(script):
    """Each field of the Config is used as `config.name` (or by the loop of build_model) in the script or in common/."""
    code = [path.read_text() for path in [ROOT / f"{script}.py", *ROOT.glob("common/*.py")]]
    read = {node.attr for text in code for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
    read |= {c.value for c in ast.walk(ast.parse(code[0])) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
    config = importlib.import_module(script).Config
    assert {field.name for field in fields(config)} - read == set()
    assert len(fields(TrainConfig)) <= 28 and len(fields(config)) - len(fields(TrainConfig)) <= 10


@pytest.mark.parametrize("script", SCRIPTS)
def test_command_line(script, capsys):
    config_class = importlib.import_module(script).Config
    assert parse(config_class, []) == config_class()
    config = parse(config_class, "--crop --augment --lr 0.5 --batch-size 8 --data sample".split())
    assert (config.crop, config.augment, config.lr, config.batch_size) == (True, "lab", 0.5, 8)
    assert config.variant == "crop-augment" and parse(config_class, []).variant == "full"
    for wrong in ("--learning-rate 0.5", "--batch 8", "--augment heavy", "--fit stretch", "--epochs many"):
        with pytest.raises(SystemExit) as stop:
            parse(config_class, wrong.split())
        assert stop.value.code == 2 and wrong.split()[0] in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(config_class, ["--help"])
    shown = capsys.readouterr().out
    assert all(flag_of(field.name) in shown for field in fields(config_class))
    assert importlib.import_module(script).__doc__.splitlines()[0] in shown


@pytest.mark.parametrize(
    ("script", "argument"),
    [
        *((script, argument) for script in SCRIPTS for argument in ("--help", "--learning-rate 1", "--epochs 0")),
        *((script, "--help") for script in ("study", "compare", "audit")),
    ],
)
def test_the_command_line_is_answered_before_the_imports_that_take_seconds(script, argument):
    command = [sys.executable, "-X", "importtime", f"{script}.py", *argument.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "argparse" in imported and not imported & {"torch", "numpy", "datasets", "accelerate", "sklearn"}
    assert done.returncode == {"--help": 0, "--learning-rate 1": 2, "--epochs 0": 1}[argument]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_labs_recipe(script):
    config = parse(importlib.import_module(script).Config, ["--recipe", "lab"])
    assert (config.lr, config.batch_size, config.epochs, config.image_size) == (1e-3, 16, 3, 224)
    assert config.weight_decay == config.clip_norm == config.warmup == 0
    assert parse(type(config), ["--recipe", "lab", "--epochs", "5"]).epochs == 5, "what is typed goes before the recipe"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (dict(epochs=0), "--epochs is 0: it must be at least 1"),
        (dict(lr=float("nan")), "--lr is nan"),
        (dict(batch_size=-1), "--batch-size is -1"),
        (dict(warmup=1.5), "--warmup is 1.5"),
        (dict(augment="heavy"), "--augment is 'heavy': choose from none, lab"),
    ],
)
def test_values_out_of_range(option, words):
    with pytest.raises(InputError, match=words):
        TrainConfig(**option)
