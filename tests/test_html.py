"""What a notebook shows, and what it still holds when it has been saved: run by a real kernel."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.small import python

CELLS = {
    "patch": """
import warnings
warnings.simplefilter("ignore")
from sbi_ignite import patch_sbi, unpatch_sbi
patch_sbi()
""",
    "undone": """
undo = patch_sbi()
unpatch_sbi()
undo
""",
    "config": """
from sbi_ignite import TrainConfig
TrainConfig(max_epochs=3, batch_size=20)
""",
    "bar": """
from tests.small import ready
trainer = ready("NPE_C", 60, show_progress_bars=True)
net = trainer.train(TrainConfig(max_epochs=3, batch_size=20), logging="stdout")
""",
    "counter": """
trainer = ready("NPE_C", 60, show_progress_bars=True)
net = trainer.train(TrainConfig(max_epochs=2, batch_size=20))
""",
    "marginal": """
marginal = ready("MarginalTrainer", 60, show_progress_bars=True)
net = marginal.train(TrainConfig(max_epochs=2, batch_size=20))
""",
    "summary": "trainer.training_summary",
    "line": "print(repr(trainer.training_summary))",
    "numbers": "print(trainer.training_summary.to_dict())",
    "plot": "trainer.training_summary.plot()",
    "saved": """
import io, pickle
from matplotlib.figure import Figure
figure = trainer.training_summary.plot()
figure.savefig(io.BytesIO(), format="pdf")
again = pickle.loads(pickle.dumps(figure))
assert type(figure) is Figure and again._repr_png_() == figure._repr_png_()
""",
    "after pyplot": """
import matplotlib.pyplot as plt
trainer.training_summary.plot()
""",
}
"""What a user writes, cell by cell."""

RUN = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, eval(sys.argv[2]))])
NotebookClient(notebook, timeout=150, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[1])
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Return what the saved file holds below every cell."""
    folder = tmp_path_factory.mktemp("notebook")
    path = folder / "saved.ipynb"
    places = ("HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR")
    # A kernel chooses pyplot's backend by itself, if nobody else does.
    variables = {**dict.fromkeys(places, str(folder)), "MPLBACKEND": ""}
    done = python("-W", "ignore", "-c", RUN, str(path), repr([*CELLS.values()]), **variables)
    assert done.returncode == 0, done.stderr
    cells = json.loads(path.read_text())["cells"]
    return {name: cell["outputs"] for name, cell in zip(CELLS, cells, strict=True)}


def _shown(outputs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the forms of a cell's last value."""
    return outputs[-1]["data"]


def _printed(outputs: list[dict[str, Any]]) -> str:
    return "".join("".join(o["text"]) for o in outputs if o["output_type"] == "stream")


def test_patching_says_in_a_sentence_what_it_did(outputs: dict[str, Any]) -> None:
    told = "".join(_shown(outputs["patch"])["text/plain"])
    assert told == "sbi's trainers are trained by sbi_ignite until unpatch_sbi() is called."
    told = "".join(_shown(outputs["undone"])["text/plain"])
    assert told == "sbi's trainers are trained by sbi again."


def test_a_configuration_is_a_table_of_its_fields(outputs: dict[str, Any]) -> None:
    html = "".join(_shown(outputs["config"])["text/html"])
    assert "<th>batch_size</th><td>20</td><td>Rows per optimizer step" in html


def test_a_summary_is_a_table_and_one_short_line(outputs: dict[str, Any]) -> None:
    shown = _shown(outputs["summary"])
    assert "<th>stopped by</th><td>max_epochs</td>" in "".join(shown["text/html"])
    text = "".join(shown["text/plain"])
    assert text == _printed(outputs["line"]).strip()
    assert len(text) < 200
    assert "\n" not in text


@pytest.mark.parametrize("cell", ["plot", "after pyplot"])
def test_a_plot_is_shown_once_as_a_picture(outputs: dict[str, Any], cell: str) -> None:
    """As a cell's last line, with and without pyplot; saving and pickling work as ever."""
    pictures = [o for o in outputs[cell] if "image/png" in o.get("data", ())]
    assert len(pictures) == 1
    assert len("".join(pictures[0]["data"]["image/png"])) > 5000
    assert outputs["saved"] == []


def test_a_saved_notebook_holds_the_last_losses_and_why_training_stopped(
    outputs: dict[str, Any],
) -> None:
    """With the bar of the stdout logger, with sbi's counter, and for the trainer of marginals."""
    summary = eval(_printed(outputs["numbers"]), {"nan": float("nan"), "inf": float("inf")})
    losses = summary["training_loss"][-1], summary["validation_loss"][-1]
    training, validation = (f"{loss:.4f}" for loss in losses)
    end = _printed(outputs["counter"]).split("\r")[-1].strip()
    assert end == (
        f"Training ended after 2 epochs (max_epochs). Last training loss {training}, validation "
        f"loss {validation}; best validation loss {summary['best_validation_loss']:.4f} at epoch "
        f"{summary['best_epoch']}."
    )
    bar = _printed(outputs["bar"]).splitlines()[-1]
    assert bar.startswith("stopped by max_epochs after epoch 3; best validation loss ")
    assert "; last training loss " in bar
    marginal = _printed(outputs["marginal"]).split("\r")[-1].strip()
    words = [
        [w for w in line.split() if not w[:-1].replace(".", "").lstrip("-").isdecimal()]
        for line in (marginal, end)
    ]
    assert words[0] == words[1]
