"""The structure of the project: imports between modules, and the command lines of the scripts."""

import ast
import importlib
import sys
from dataclasses import fields
from functools import cache, partial
from pathlib import Path

import pytest

from common.config import InputError, TrainConfig, flag_of, parse
from tests.helpers import ROOT, SCRIPTS, assert_usage_error, launch

TOOLS = ["study", "compare", "predict", "export", "audit"]
SLOW_IMPORTS = {"torch", "numpy", "datasets", "accelerate", "sklearn", "matplotlib"}
# Limits that make a change of the structure or a new option a decision: raise one where that is worth it.
MAX_FILES = 44  # modules of common that a training script reaches
MAX_LEVELS = 15
MAX_SHARED_OPTIONS = 32
MAX_OWN_OPTIONS = 10


# Imports -------------------------------------------------------------------------------------------------------------


def read_modules(root: Path) -> dict[str, ast.Module]:
    """The non-empty modules in `common` and the scripts, by name, such as `common.data.crop`."""
    paths = [path for path in [*root.glob("*.py"), *root.glob("common/**/*.py")] if path.read_text().strip()]
    names = [".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return {name: ast.parse(path.read_text()) for name, path in zip(names, paths, strict=True)}


def imported(tree: ast.AST) -> set[str]:
    """The names of all imports in `tree`, including those in functions; `from a import b` may be a module `a.b`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute, which the tests below rely on"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


MODULES = read_modules(ROOT)
IMPORTS = {name: imported(tree) & MODULES.keys() for name, tree in MODULES.items()}


def package_of(module: str) -> str:
    """The package of a module: "common.data", "common" for the core, "" for the scripts."""
    return module.rpartition(".")[0]


@cache
def level(module: str) -> int:
    return 1 + max((level(name) for name in IMPORTS[module]), default=0)


@cache
def reached(module: str) -> frozenset[str]:
    return IMPORTS[module].union(*(reached(name) for name in IMPORTS[module]))


def test_no_import_cycles():
    left = dict(IMPORTS)
    while left:
        leaves = [module for module, names in left.items() if not names & left.keys()]
        assert leaves, f"an import cycle among {sorted(left)}"
        for module in leaves:
            del left[module]


@pytest.mark.parametrize("module", [name for name in MODULES if package_of(name)])
def test_imports_go_one_way(module):
    """data <- core <- compare, deploy; nothing imports a script."""
    allowed = {
        "common.data.annotations": {"common.data", "common.data.annotations"},
        "common.data": {"common.data", "common.data.annotations"},
        "common": {"common", "common.data"},
        "common.compare": {"common", "common.data", "common.compare"},
        "common.deploy": {"common", "common.data", "common.data.annotations", "common.deploy"},
    }[package_of(module)]
    shared = {"common.config", "common.files", "common.processes"}
    wrong = {name for name in IMPORTS[module] if package_of(name) not in allowed and name not in shared}
    assert not wrong, f"{module} imports {sorted(wrong)}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_training_script_imports_common_alone(script):
    assert all(name.startswith("common.") for name in IMPORTS[script])
    packages = {package_of(name) for name in reached(script)}
    assert packages <= {"common", "common.data", "common.data.annotations"}, (
        "training needs neither the comparison nor the deployment"
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_training_script_reaches_few_files(script):
    files = sorted(reached(script))
    assert len(files) <= MAX_FILES, f"{script} reaches {len(files)} files: {', '.join(files)}"


def test_few_levels():
    """A module is one level above the highest module that it imports."""
    levels = {n: sorted(name for name in MODULES if level(name) == n) for n in map(level, MODULES)}
    shown = "\n".join(f"{n}: {', '.join(levels[n])}" for n in sorted(levels))
    assert len(levels) <= MAX_LEVELS, f"{len(levels)} levels\n{shown}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_training_script_imports_at_the_top(script):
    tree = MODULES[script]
    everywhere = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)}
    top = [isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body[1:]]  # the docstring comes first
    assert sum(top) == len(everywhere) and top == sorted(top, reverse=True)


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("test_*.py")), ids=lambda path: path.stem)
def test_no_test_imports_another_or_the_fixtures(path):
    """Code shared by several test files belongs in tests/helpers.py, the layouts of data in tests/layouts.py."""
    names = {name for name in imported(ast.parse(path.read_text())) if name.startswith("tests.")}
    assert all(name.split(".")[1] in ("helpers", "layouts") for name in names), names


def test_the_rules_see_what_they_forbid(tmp_path):
    (tmp_path / "common" / "data").mkdir(parents=True)
    (tmp_path / "common" / "data" / "__init__.py").write_text("")
    (tmp_path / "common" / "data" / "a.py").write_text("def late():\n    from common import b\n")
    (tmp_path / "common" / "b.py").write_text("import common.data.a, os")
    modules = read_modules(tmp_path)
    assert modules.keys() == {"common.data.a", "common.b"}, "empty files do not count"
    assert "common.b" in imported(modules["common.data.a"]), "lazy imports count"
    assert "common.data.a" in imported(modules["common.b"])


# Options and command lines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_is_read(script):
    """Each field of the Config is used as `config.name` in the script or in common."""
    trees = [MODULES[script], *(tree for name, tree in MODULES.items() if package_of(name))]
    read = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    config = importlib.import_module(script).Config
    assert {field.name for field in fields(config)} - read == set()
    shared, own = len(fields(TrainConfig)), len(fields(config)) - len(fields(TrainConfig))
    assert shared <= MAX_SHARED_OPTIONS and own <= MAX_OWN_OPTIONS, "raise the limit if somebody needs the new option"


@pytest.mark.parametrize("script", SCRIPTS)
def test_command_line(script, capsys):
    config_class = importlib.import_module(script).Config
    assert parse(config_class, []) == config_class()
    config = parse(config_class, "--crop --augment --lr 0.5 --batch-size 8 --data sample".split())
    assert (config.crop, config.augment, config.lr, config.batch_size) == (True, "lab", 0.5, 8)
    assert config.variant == "crop-augment" and parse(config_class, []).variant == "full"
    for wrong in ("--learning-rate 0.5", "--batch 8", "--augment heavy", "--fit stretch", "--epochs many"):
        assert_usage_error(partial(parse, config_class), wrong, wrong.split()[0], capsys)
    with pytest.raises(SystemExit) as stop:
        parse(config_class, ["--help"])
    shown = capsys.readouterr().out
    assert not stop.value.code and all(flag_of(field.name) in shown for field in fields(config_class))
    assert importlib.import_module(script).__doc__.splitlines()[0] in shown


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_wrong_command_line_ends_before_the_data_is_read(script, monkeypatch, capsys):
    module = importlib.import_module(script)
    monkeypatch.setattr(module, "start", lambda *_: pytest.fail("started"))
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--learning-rate", "1"])
    with pytest.raises(SystemExit) as stop:
        module.run(module.main)
    assert stop.value.code == 2 and "--learning-rate" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--epochs", "0"])
    with pytest.raises(SystemExit, match="error: --epochs is 0"):
        module.run(module.main)


@pytest.mark.parametrize("script", TOOLS)
def test_help_needs_no_slow_import(script):
    done = launch([sys.executable, "-X", "importtime", f"{script}.py", "--help"])
    names = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == 0 and "usage:" in done.stdout
    assert "argparse" in names and not {name.split(".")[0] for name in names} & SLOW_IMPORTS


def test_a_run_needs_few_slow_imports(cache):
    """Each takes a third of a second or more, in every run of a study."""
    line = f"train_custom_cnn.py --data sample --crop --limit 16 --batch-size 8 --dry-run --cache {cache}"
    done = launch([sys.executable, "-X", "importtime", *line.split()])
    names = [line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert done.returncode == 0, done.stderr
    assert not {"pandas", "sklearn", "scipy.stats", "datasets", "timm", "torchvision"} & {*names}
    assert names.index("matplotlib") > names.index("torch._dynamo"), "the optimizer needs this, the figures come later"


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_labs_recipe(script):
    config = parse(importlib.import_module(script).Config, ["--recipe", "lab"])
    assert (config.lr, config.batch_size, config.epochs, config.image_size) == (1e-3, 16, 3, 224)
    assert config.weight_decay == config.clip_norm == config.warmup == 0
    assert parse(type(config), ["--recipe", "lab", "--epochs", "5"]).epochs == 5, "options override the recipe"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (dict(epochs=0), "--epochs is 0: .*at least 1"),
        (dict(lr=float("nan")), "--lr is nan"),
        (dict(batch_size=-1), "--batch-size is -1"),
        (dict(warmup=1.5), "--warmup is 1.5"),
        (dict(augment="heavy"), "--augment is 'heavy': .*none, lab, strong"),
    ],
)
def test_values_out_of_range(option, words):
    with pytest.raises(InputError, match=words):
        TrainConfig(**option)
