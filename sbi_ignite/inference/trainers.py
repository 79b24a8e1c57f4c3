"""sbi's trainers under the same names, trained by sbi_ignite (door a)."""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any

import sbi.inference as sbi_inference

from sbi_ignite.bridge.mixins import (
    IgniteLoop,
    IgniteMarginal,
    IgniteTrainer,
    PretrainedTrainer,
    method_behind,
)
from sbi_ignite.bridge.signatures import typed_first
from sbi_ignite.methods.table import TRAINERS


def _trained_by_ignite(name: str) -> type:
    """Return the trainer of that name in `sbi.inference` with our `train()` in front of it."""
    theirs: Any = getattr(sbi_inference, name)
    front = IgniteLoop if issubclass(theirs, sbi_inference.NeuralInference) else IgniteMarginal
    cls = _with(front, theirs)
    _show_signature(cls, IgniteTrainer.train, typed_first(cls, method_behind(cls, "train")))
    return cls


def _pretrained(name: str) -> type:
    """Return the trainer of that name, whose network is trained already."""
    theirs: Any = getattr(sbi_inference, name)
    cls = _with(PretrainedTrainer, theirs)
    _show_signature(cls, PretrainedTrainer.train, inspect.signature(theirs.train))
    return cls


def _with(front: type, theirs: type) -> Any:
    documentation = f"{inspect.cleandoc(theirs.__doc__ or '')}\n\n{_example(theirs.__name__)}"
    namespace = {"__module__": __name__, "__doc__": documentation}
    return type(theirs.__name__, (front, theirs), namespace)


def _example(name: str) -> str:
    """Return the part of a trainer's docstring that shows how sbi_ignite trains it."""
    if name == "NPE_PFN":
        lines = [
            ">>> inference = NPE_PFN().append_simulations(torch.rand(60, 2), torch.rand(60, 2))",
            ">>> inference.train() is None  # there is nothing to train",
            "True",
        ]
    else:
        append = (
            "append_samples(x)" if name == "MarginalTrainer" else "append_simulations(theta, x)"
        )
        discrete = {"MNPE": "theta", "MNLE": "x"}.get(name)
        lines = [
            ">>> theta = torch.rand(60, 2)",
            ">>> x = theta + 0.1 * torch.randn(60, 2)",
            *([f">>> {discrete}[:, 1] = ({discrete}[:, 1] > 0.5).float()"] if discrete else []),
            f">>> inference = {name}(show_progress_bars=False).{append}",
            ">>> estimator = inference.train(TrainConfig(max_epochs=1))",
            ">>> inference.training_summary.stop_reason",
            "'max_epochs'",
        ]
    return "\n    ".join(["Trained by sbi_ignite:", *lines])


def _show_signature(cls: Any, shared: Any, signature: inspect.Signature) -> None:
    """Give a class its own `train()`, which does what `shared` does and has the true signature."""
    train = FunctionType(
        shared.__code__, shared.__globals__, "train", shared.__defaults__, shared.__closure__
    )
    train.__kwdefaults__, train.__doc__ = shared.__kwdefaults__, shared.__doc__
    train.__module__, train.__qualname__ = __name__, f"{cls.__name__}.train"
    train.__signature__ = signature  # type: ignore[attr-defined] # inspect's
    cls.train = train


# A release of sbi may not have all of them yet, or any more.
_trainers = {name: _trained_by_ignite(name) for name in TRAINERS if hasattr(sbi_inference, name)}
_trainers |= {name: _pretrained(name) for name in ("NPE_PFN",) if hasattr(sbi_inference, name)}
globals().update(_trainers)

NPE = _trainers["NPE_C"]
NLE = _trainers["NLE_A"]
NRE = _trainers["NRE_B"]

# pyright cannot see through the names of the table.
__all__ = ["NLE", "NPE", "NRE", *_trainers]  # pyright: ignore[reportUnsupportedDunderAll]
