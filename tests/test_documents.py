"""Every command in the documents works, in a short form: with additional options that make it quick."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import train_custom_cnn
from common.config import flag_of, parse

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
OTHER_TOOLS = {  # options of accelerate and torchrun, as the pattern cuts them, of Slurm and of TensorBoard
    "--config",
    "--nproc",
    "--num",
    "--mixed",
    "--dynamo",
    "--multi",
    "--machine",
    "--main",
    "--cpu",
    "--nodes",
    "--ntasks-per-node",
    "--gpus-per-node",
    "--cpus-per-task",
    "--time",
    "--signal",
    "--logdir",
}
# .ci/run runs these unchanged
RUN_BY_CI = ("-m pytest", "pip install -e '.[test,onnx,dev,browser,cluster]'", "ruff check")
TRAINING = "--limit 16 --epochs 1 --image-size 32 --batch-size 8"
SHORT = {  # added to the command of a script or a benchmark
    "study.py": f"--models custom_cnn resnet --variants crop --weights none --seeds 1 {TRAINING} --data sample",
    "audit.py": "--limit 16",
    "benchmarks.speed": "--parts training --models 'custom CNN, 64 px' --rounds 1 --rows 16 --seconds 0",
    "benchmarks.choices": "--only memory --models 'custom CNN, 64 px' --rounds 1 --seconds 0",
    "benchmarks.coverage": "--trials 3",
}


def blocks(document: Path) -> list[list[str]]:
    """The commands of each bash block in a document, without set-up and without those that .ci/run runs unchanged."""
    found = re.findall(r"```bash\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [[line for line in block.splitlines() if not any(words in line for words in RUN_BY_CI)] for block in found]
    return [[line.rpartition("&& ")[2].replace(".venv/bin/python", "python") for line in block] for block in lines]


BLOCKS = {tuple(block): document.name for document in reversed(DOCUMENTS) for block in blocks(document) if block}


def shortened(command: str) -> str:
    """The command with options that make it quick and independent of the network."""
    name = next(word for word in shlex.split(command) if word.endswith(".py") or word.startswith("benchmarks."))
    if not name.startswith("train_"):
        folds = " --folds 2" if "--folds" in command else ""
        return f"{command} {SHORT.get(name, '')}{folds}".strip()
    more = "" if "--data" in command else " --data sample"
    more += " --weights none" if name in ("train_resnet.py", "train_vit.py", "train_timm.py") else ""
    return f"{command} {TRAINING}{more} --out runs/{name}-{abs(hash(command))}"


@pytest.mark.parametrize("block", BLOCKS, ids=BLOCKS.values())
def test_options_of_training_commands_exist(block):
    for command in block:
        words = shlex.split(command)
        name = next((Path(word).stem for word in words if word.startswith("train_")), None)
        if name:
            flags = words[words.index(f"{name}.py") + 1 :]
            parse(importlib.import_module(name).Config, flags)


def test_option_names_in_the_text_exist():
    """Each `--option` in the documents is an option of some script; results.md also quotes commands of old commits."""
    known = {"--help", "--slow", "--check"}
    for script in ("train_resnet", "train_vit", "train_timm", "train_custom_cnn", "train_custom_vit", "audit"):
        known |= {flag_of(name) for name in importlib.import_module(script).Config.__dataclass_fields__}
    known |= {flag_of(f"no_{name}") for name in ("norm_first",)}
    text_of_others = "".join(
        path.read_text()
        for path in [*ROOT.glob("*.py"), *ROOT.glob("benchmarks/*.py"), ROOT / "accelerate_config.yaml"]
    )
    for document in [document for document in DOCUMENTS if document.name != "results.md"]:
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", document.read_text(encoding="utf-8")):
            assert option in known or f'"{option}"' in text_of_others or option in OTHER_TOOLS, (
                f"{document.name}: {option}"
            )


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with a finished run, photos and boxes, in which the commands are run."""
    copy = tmp_path_factory.mktemp("documents") / "project"
    names = (".git", ".venv", ".cache", "runs", ".mypy_cache", ".ruff_cache", ".pytest_cache", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*names))
    rows = pq.read_table(ROOT / "data" / "sample" / "val-00000-of-00001.parquet").slice(0, 2).to_pylist()
    (copy / "photos").mkdir()
    (copy / "photo.jpg").write_bytes(rows[0]["image"]["bytes"])
    lines = ["file,x,y,width,height"]
    for row in rows:
        (copy / "photos" / f"{row['image_id']}.jpg").write_bytes(row["image"]["bytes"])
        lines.append(f"{row['image_id']}.jpg,{','.join(map(str, row['bbox']))}")
    (copy / "boxes.csv").write_text("\n".join(lines) + "\n")
    objects = [{"image_id": row["image_id"], "bbox": row["bbox"], "score": 0.9} for row in rows]
    (copy / "detections.json").write_text(json.dumps(objects))
    options = f"--data sample --crop {TRAINING} --limit 64 --out {copy / 'RUN'} --cache {copy / '.cache'}"
    train_custom_cnn.main(options.split())
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=BLOCKS.values())
def test_commands_run(block, project, request):
    if any("--cluster" in command for command in block):
        request.getfixturevalue("slurm")
        block = [f"{command} --out runs/on-slurm" for command in block]  # other studies are trained on this machine
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # finds python, accelerate and torchrun
    for command in block:
        done = subprocess.run(
            ["bash", "-c", shortened(command)],
            cwd=project,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_contributing_names_what_exists():
    """Each name in a table of CONTRIBUTING.md stands in the file that it is said to be in."""
    rows = re.findall(r"^\|.*\|$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    places = [
        (names, path)
        for row in rows
        for names, path in re.findall(r"((?:`[\w.]+`(?:, | and )?)+) in `([\w/]+\.py)`", row)
    ]
    assert len(places) > 8
    for names, path in places:
        for name in re.findall(r"`([\w.]+)`", names):
            assert re.search(rf"\b{name.rpartition('.')[2]}\b", (ROOT / path).read_text()), f"{name} is not in {path}"


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "LOG.md"], ids=lambda path: path.name)
def test_links_in_documents_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", text):
        file = document.parent / target if target else document
        assert file.exists(), f"{document.name}: {target}"
        headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings], anchor
