"""Write small run directories by the installed sbi, which every other line of sbi is to load.

    python -m tests.bridge.write_runs

They stand in `runs/` beside this file, one folder per line of sbi and one run per kind of network,
with the values that each network gives in `expected.json`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sbi.neural_nets as nets
import torch
from sbi.neural_nets.factory import ZukoFlowType, marginal_nn

from sbi_ignite import TrainConfig
from sbi_ignite.bridge.lines import line_name
from sbi_ignite.runs.directory import read_manifest
from sbi_ignite.runs.files import write_json
from tests.small import empty

MAF = ZukoFlowType.MAF
RUNS = Path(__file__).parent / "runs"
KEPT = ("run", "kind", "method", "estimator", "network", "best_digest", "status")
ROWS = 64
POINTS = 5


def batches(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return theta and x, neither centred nor scaled, shape (ROWS, 2)."""
    generator = torch.Generator().manual_seed(3)
    theta = 2 * torch.rand(ROWS, 2, generator=generator) - 1
    x = 3 * theta + 5 + torch.randn(ROWS, 2, generator=generator)
    if kind.startswith("mnle"):
        x[:, 1] = torch.arange(ROWS) % 3
    return theta, x


def kinds() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return trainers, and the network of each: by a factory, and by a configuration if sbi can."""
    flow = {"hidden_features": 4, "num_transforms": 2}
    field = {"hidden_features": 6, "num_layers": 1}
    ada = nets.posterior_flow_nn("ada_mlp", t_embedding_dim=4, **field)
    found: dict[str, tuple[str, dict[str, Any]]] = {
        "npe-maf": ("NPE_C", {"density_estimator": nets.posterior_nn("maf", **flow)}),
        "npe-zuko-nsf": ("NPE_C", {"density_estimator": nets.posterior_nn("zuko_nsf", **flow)}),
        "npe-a": ("NPE_A", {"num_components": 2}),
        "nle-nsf": ("NLE_A", {"density_estimator": nets.likelihood_nn("nsf", **flow)}),
        "nre-mlp": ("NRE_B", {"classifier": nets.classifier_nn("mlp", hidden_features=4)}),
        "fmpe-mlp": ("FMPE", {"vf_estimator": nets.posterior_flow_nn("mlp", **field)}),
        "fmpe-ada": ("FMPE", {"vf_estimator": ada}),
        "npse-vp": ("NPSE", {"vf_estimator": nets.posterior_score_nn("mlp", "vp", **field)}),
        "mnle": ("MNLE", {"density_estimator": nets.likelihood_nn("mnle", **flow)}),
        "marginal": ("MarginalTrainer", {"density_estimator": marginal_nn(MAF, **flow)}),
    }
    if hasattr(nets, "MAFConfig"):
        nsf = nets.NSFConfig(hidden_features=4, num_transforms=2, tail_bound=7.0)
        vector_field = nets.VectorFieldEstimatorBuilder(**field)
        found |= {
            "npe-maf-config": ("NPE_C", {"density_estimator": nets.MAFConfig(**flow)}),
            "nre-mlp-config": (
                "NRE_B",
                {"classifier": nets.MLPClassifierConfig(hidden_features=4)},
            ),
            "fmpe-config": ("FMPE", {"vf_estimator": vector_field}),
            "mnle-config": ("MNLE", {"density_estimator": nets.MixedConfig(continuous=nsf)}),
            "marginal-config": (
                "MarginalTrainer",
                {"density_estimator": nets.MarginalMAFConfig(hidden_features=4, num_transforms=2)},
            ),
        }
    return found


def values(network: Any, kind: str) -> list[float]:
    """Return what a network gives at a few points."""
    theta, x = (batch[:POINTS] for batch in batches(kind))
    with torch.no_grad():
        if kind.startswith("marginal"):
            found = network.log_prob(x[None])
        elif kind.startswith("nre"):
            found = network(theta, x)
        elif kind.startswith(("nle", "mnle")):
            found = network.log_prob(x[None], condition=theta)
        elif kind.startswith(("fmpe", "npse")):
            found = network(theta, x, torch.full((POINTS,), 0.3))
        else:
            found = network.log_prob(theta[None], condition=x)
    return [round(value, 6) for value in found.reshape(-1).tolist()]


def write(folder: Path) -> None:
    """Train every kind for two epochs and keep what `load_estimator` reads."""
    expected = {}
    for kind, (method, network) in kinds().items():
        torch.manual_seed(5)
        trainer: Callable[..., Any] = empty(method, **network)
        add(trainer, *batches(kind))
        path = folder / kind
        estimator = trainer.train(
            TrainConfig(max_epochs=2, batch_size=20, validation_fraction=0.3), checkpoint=str(path)
        )
        expected[kind] = values(estimator.eval(), kind)
        for file in path.iterdir():
            if file.name not in ("run.json", "best.pt"):
                shutil.rmtree(file) if file.is_dir() else file.unlink()
        keep_what_is_read(path / "run.json")
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def add(trainer: Any, theta: torch.Tensor, x: torch.Tensor) -> None:
    """Append simulations."""
    if hasattr(trainer, "append_samples"):
        trainer.append_samples(x)
    else:
        trainer.append_simulations(theta, x)


def keep_what_is_read(path: Path) -> None:
    """Leave out of a manifest what names the machine."""
    manifest = read_manifest(path.parent) or {}
    write_json(path, {name: manifest[name] for name in KEPT if name in manifest})


def main() -> None:
    """Write the runs of the installed line of sbi anew."""
    folder = RUNS / line_name()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write(folder)
    print(f"{folder}: {sum(f.stat().st_size for f in folder.rglob('*') if f.is_file())} bytes")


if __name__ == "__main__":
    main()
