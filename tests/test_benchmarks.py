"""The benchmark runs; what it says is for LOG.md."""

import json
import subprocess
import sys
from pathlib import Path

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
