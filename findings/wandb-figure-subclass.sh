#!/usr/bin/env bash
# wandb.Image() does not take a subclass of matplotlib's Figure for a figure.
#
# wandb decides by the name of the object's module ("matplotlib..."), not by isinstance. A Figure of a
# class of one's own (say, one with a `_repr_png_` for notebooks) is taken for an array of pixels, and
# fails far from its cause. MLflow's log_figure() takes such a figure. What works with both: a plain
# Figure with `_repr_png_` set on the object, which IPython finds as well.
#
# Seen with wandb 0.31.0, matplotlib 3.11.2, numpy 2.x, Pillow 12.x, Python 3.11:
#   plain Figure: Image
#   subclass of Figure: AttributeError: 'Shown' object has no attribute 'ndim'
#   plain Figure with an attribute: Image
#
# Exits with 0 if that is still so, with 1 if wandb behaves otherwise, with 2 if it cannot be installed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet wandb==0.31.0 matplotlib==3.11.2 numpy pillow || {
    echo "The packages could not be installed." >&2
    exit 2
}
cd "$folder"
WANDB_MODE=offline WANDB_SILENT=true MPLBACKEND=Agg venv/bin/python - <<'PYTHON'
import sys

import matplotlib.pyplot  # wandb uses it for figures without importing it
import wandb
from matplotlib.figure import Figure


class Shown(Figure):
    """A figure that says how a notebook shows it."""


def drawn(figure):
    figure.add_subplot().plot([1, 2])
    return figure


def outcome(figure):
    try:
        return type(wandb.Image(figure)).__name__
    except Exception as error:
        return f"{type(error).__name__}: {error}"


with_attribute = drawn(Figure())
with_attribute._repr_png_ = lambda: b""
found = {
    "plain Figure": outcome(drawn(Figure())),
    "subclass of Figure": outcome(drawn(Shown())),
    "plain Figure with an attribute": outcome(with_attribute),
}
for name, what in found.items():
    print(f"{name}: {what}")
as_seen = ["Image", "AttributeError: 'Shown' object has no attribute 'ndim'", "Image"]
sys.exit(list(found.values()) != as_seen)
PYTHON
