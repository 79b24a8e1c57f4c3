"""Every example is run by a test, has its picture, and stands in the documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from tests.small import ROOT, python

EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
PICTURES = EXAMPLES / "pictures"


def name(path: Path) -> str:
    """Return what a path goes by in test reports."""
    return path.stem


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_a_script_is_run_by_a_test(script: Path) -> None:
    tests = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    assert any(script.name in text for text in tests)


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_a_script_says_in_one_sentence_what_it_shows_and_how_to_run_it(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    documentation = text.split('"""')[1]
    assert documentation.split("\n\n")[0].rstrip().endswith((".", ":"))
    assert f"python examples/{script.name}" in documentation


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_the_picture_of_a_script_is_beside_it(script: Path) -> None:
    """Small enough for a repository, and not blank."""
    picture = PICTURES / f"{script.stem}.png"
    pixels = imread(picture)
    assert pixels[..., :3].std() > 0.01
    assert picture.stat().st_size < 300_000


def test_no_picture_is_left_over() -> None:
    stems = {path.stem for path in SCRIPTS}
    assert {path.stem for path in PICTURES.iterdir()} <= stems


def cells(notebook: Path) -> list[dict[str, Any]]:
    """Return the code cells of a notebook."""
    every = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in every if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_a_notebook_holds_the_outputs_of_one_run_from_top_to_bottom(notebook: Path) -> None:
    counts = [cell["execution_count"] for cell in cells(notebook)]
    assert counts == [*range(1, len(counts) + 1)]
    outputs = [output for cell in cells(notebook) for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", ()) for output in outputs)
    text = notebook.read_text(encoding="utf-8")
    assert str(ROOT) not in text
    assert "Warning" not in text
    assert len(text) < 500_000


RUN = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=150, kernel_name="python3").execute()
nbformat.write(notebook, "executed.ipynb")
"""
BUDGET = {"NUM_SIMULATIONS": "300", "MAX_EPOCHS": "2"}


@pytest.mark.parametrize(
    "notebook",
    [NOTEBOOKS[0], *(pytest.param(n, marks=pytest.mark.slow) for n in NOTEBOOKS[1:])],
    ids=name,
)
def test_a_notebook_runs_with_a_small_budget(notebook: Path, tmp_path: Path) -> None:
    """By a real kernel; only its two constants are changed."""
    text = notebook.read_text(encoding="utf-8")
    for constant, value in BUDGET.items():
        text, number = re.subn(rf"{constant} = [\d_]+", f"{constant} = {value}", text)
        assert number == 1
    (tmp_path / "small.ipynb").write_text(text, encoding="utf-8")
    places = ("HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR")
    variables = {**dict.fromkeys(places, str(tmp_path)), "MPLBACKEND": ""}
    done = python("-W", "ignore", "-c", RUN, "small.ipynb", **variables)
    assert done.returncode == 0, done.stderr[-3000:]
    executed = cells(tmp_path / "executed.ipynb")
    assert all(cell["execution_count"] for cell in executed)
