"""Rebuild the trained estimator of a run directory.

Nothing here unpickles: tensors come from `torch.load(weights_only=True)`, all else is JSON.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sbi_ignite.bridge.lines import line_name
from sbi_ignite.bridge.networks import rebuild_network
from sbi_ignite.exceptions import CheckpointError, CheckpointMismatchError
from sbi_ignite.runs.directory import read_best, read_manifest
from sbi_ignite.runs.fingerprint import fingerprint_network
from sbi_ignite.runs.load import rounds_of


def load_estimator(
    path: str | os.PathLike[str], build: Callable[..., nn.Module] | None = None
) -> nn.Module:
    """Rebuild the trained estimator of a run, without pickle and without the training data.

    Args:
        path: The run directory; of several rounds the last that has weights is taken.
        build: For networks that sbi's factories did not build from plain arguments: the function
            `(theta, x) -> network` that was given to the trainer. It is called with made-up batches
            of the right shapes.

    Returns:
        The estimator on the CPU with the best weights, in evaluation mode.

    Raises:
        CheckpointError: If there are no weights, `build` is needed, or the installed sbi cannot
            build the network.
        CheckpointMismatchError: If `build`, or the installed sbi, makes a different network from
            the run's.

    Example:
        >>> theta = torch.rand(60, 2)
        >>> inference = NPE(show_progress_bars=False).append_simulations(theta, theta)
        >>> trained = inference.train(TrainConfig(max_epochs=1), checkpoint="runs/to_load")
        >>> estimator = load_estimator("runs/to_load")
        >>> x = torch.zeros(1, 2)
        >>> torch.equal(estimator.log_prob(theta[:, None], x), trained.log_prob(theta[:, None], x))
        True
    """
    folder, manifest, best = weights_of_run(Path(path))
    description = manifest.get("estimator")
    if description is None:
        raise CheckpointError(
            f"{folder / 'run.json'} does not describe the network, because the run was not trained "
            "by one of sbi's trainers. Make the module yourself and load "
            f"RunDirectory.open({str(folder)!r}).read_best()['weights'] into it."
        )
    network = rebuild_network(description, build)
    trained_by = None if build is not None else description.get("line", "0.27")
    _check_network(network, manifest, best["weights"], trained_by)
    network.load_state_dict(best["weights"])
    return network.eval()


def weights_of_run(path: Path) -> tuple[Path, Mapping[str, Any], Mapping[str, Any]]:
    """Return the folder that holds the best weights of a run, its manifest, and its best.pt.

    Args:
        path: The run directory; of several rounds the last that has weights is taken.

    Raises:
        CheckpointError: If there are none, or they are damaged.
    """
    folder = next((f for f in (*reversed(rounds_of(path)), path) if (f / "best.pt").exists()), path)
    manifest, best = read_manifest(folder), read_best(folder)
    if manifest is None or best is None:
        raise CheckpointError(f"{path} holds no weights yet: there is no best.pt in it.")
    return folder, manifest, best


def _check_network(
    network: nn.Module,
    manifest: Mapping[str, Any],
    weights: Mapping[str, Any],
    trained_by: str | None,
) -> None:
    """Refuse a network whose structure is not that of the run.

    Args:
        network: The network that was built.
        manifest: The run's.
        weights: The run's.
        trained_by: The line of sbi that built the run's network; None if a user's function has
            built this one.
    """
    here = network.state_dict()
    kinds = [
        {name: (tuple(t.shape), str(t.dtype)) for name, t in state.items() if hasattr(t, "shape")}
        for state in (weights, here)
    ]
    found, saved = fingerprint_network(network), manifest.get("network")
    if kinds[0] == kinds[1] and (saved is None or saved["digest"] == found["digest"]):
        return
    wanted = saved or {"class": "a network", "parameters": "other"}
    advice = "Pass as build= the function that was given to the trainer."
    if trained_by not in (None, line_name()):
        advice = (
            f"The run is by sbi {trained_by}, and the installed one, sbi {line_name()}, builds "
            "such networks in another way: load it with the sbi that is named in run.json."
        )
    raise CheckpointMismatchError(
        f"The network that was built ({found['class']}, {found['parameters']} parameters) is not "
        f"the one that was trained ({wanted['class']}, {wanted['parameters']} parameters). {advice}"
    )
