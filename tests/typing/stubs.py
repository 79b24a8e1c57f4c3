"""Write what type checkers see of the table of methods: the trainers and the loss arguments.

`inference/trainers.pyi` follows from the signatures of the installed sbi too.

python -m tests.typing.stubs
"""

from __future__ import annotations

import collections.abc
import inspect
import subprocess
import sys
import types
import typing
from typing import Any

import sbi.inference

import sbi_ignite.inference
from sbi_ignite.methods.table import LOSS_ARGS, TRAINERS, method_of
from tests.small import ROOT

PATH = ROOT / "sbi_ignite" / "inference" / "trainers.pyi"
LOSS_ARGS_PATH = ROOT / "sbi_ignite" / "methods" / "__init__.pyi"

HEAD = '''\
"""Signatures of every trainer's `train()`; written by `python -m tests.typing.stubs`."""

# The overrides take more than sbi's methods do, which a type checker cannot know is meant.
# pyright: reportIncompatibleMethodOverride=false

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, overload

import sbi.inference as sbi_inference
{imports}

class IgniteTrainer:
    training_summary: TrainingSummary | None
    def append_simulations_from(
        self,
        dataset: Any,
        proposal: Any = None,
        exclude_invalid_x: bool | None = None,
        from_round: int | None = None,
        transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> Self: ...

class IgniteLoop(IgniteTrainer): ...

class IgniteMarginal(IgniteTrainer):
    def append_samples(self, x: Tensor | NDArray[Any]) -> Self: ...
'''
TAIL = """\
class NPE_PFN(sbi_inference.NPE_PFN):
    def train(self) -> None: ...

NPE = NPE_C
NLE = NLE_A
NRE = NRE_B

__all__ = [{names}]
"""
NEW = (
    "exclude_invalid_x: bool | None = None",
    "logging: Any = None",
    "early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None",
    "checkpoint: CheckpointConfig | str | os.PathLike[str] | Literal[False] | None = None",
    "callbacks: Any = ()",
    "init_from: str | os.PathLike[str] | Mapping[str, Any] | nn.Module | None = None",
    "validation: Sequence[Tensor] | Tensor | None = None",
)


def text_of(annotation: Any) -> str:
    """Return a type of sbi's in today's spelling, Any where it says less than that."""
    if annotation is type(None):
        return "None"
    if annotation is dict or typing.get_origin(annotation) is dict:
        return "dict[str, Any]"
    if annotation is typing.Callable or annotation is collections.abc.Callable:
        return "Callable[..., Any]"
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " | ".join(map(text_of, typing.get_args(annotation)))
    if annotation.__module__ == "builtins" or annotation.__name__ == "Tensor":
        return annotation.__name__
    return "Any"


def method(name: str) -> str:
    """Return the class of one trainer with the two forms of its `train()`."""
    signature = inspect.signature(getattr(sbi.inference, name).train)
    sbis = list(signature.parameters.values())[1:]
    loss_args = method_of(getattr(sbi_ignite.inference, name)).loss_args.__name__
    typed = ("train_config: TrainConfig | None = None", f"loss_args: {loss_args} | None = None")
    unset = [f"{p.name}: {text_of(p.annotation)} = ..." for p in sbis]
    own = [f"{p.name}: {text_of(p.annotation)} = {p.default!r}" for p in sbis]
    base = "IgniteMarginal" if name == "MarginalTrainer" else "IgniteLoop"
    lines = [f"class {name}({base}, sbi_inference.{name}):"]
    for form in (["self", *typed, "*", *unset, *NEW], ["self", *own, "*", *typed, *NEW]):
        lines += ["    @overload", "    def train("]
        lines += [f"        {parameter}," for parameter in form]
        lines += [f"    ) -> {signature.return_annotation.__name__}: ..."]
    return "\n".join(lines) + "\n"


def stub() -> str:
    """Return the whole file."""
    classes = "\n".join(map(method, TRAINERS))
    returned = {
        inspect.signature(getattr(sbi.inference, n).train).return_annotation for n in TRAINERS
    }
    losses = {method_of(getattr(sbi_ignite.inference, n)).loss_args for n in TRAINERS}
    names = {
        "sbi.neural_nets.estimators": {r.__name__ for r in returned} - {"RatioEstimator"},
        "sbi.neural_nets.ratio_estimators": {"RatioEstimator"},
        "numpy.typing": {"NDArray"},
        "torch": {"Tensor", "nn"},
        "typing_extensions": {"Self"},
    }
    ours = {
        **{
            home: {c.__name__ for c in losses if c.__module__ == home}
            for home in sorted({c.__module__ for c in losses})
        },
        "sbi_ignite.settings": {"CheckpointConfig", "EarlyStopping", "TrainConfig"},
        "sbi_ignite.summary": {"TrainingSummary"},
    }
    blocks = [
        "\n".join(f"from {home} import {', '.join(sorted(found))}" for home, found in block.items())
        for block in (names, ours)
    ]
    exported = ", ".join(f'"{name}"' for name in ("NLE", "NPE", "NPE_PFN", "NRE", *TRAINERS))
    tail = TAIL.format(names=exported)
    return "\n".join([HEAD.format(imports="\n\n".join(blocks)), classes, tail])


def loss_args_stub() -> str:
    """Return the file that names the public loss arguments."""
    lines = ['"""The public loss arguments; written by `python -m tests.typing.stubs`."""', ""]
    homes = sorted((page, name) for name, page in LOSS_ARGS.items())
    lines += [f"from sbi_ignite.methods.{page} import {name} as {name}" for page, name in homes]
    return "\n".join(lines) + "\n"


def formatted(text: str) -> str:
    """Return a stub as ruff formats it."""
    for command in (["check", "--fix", "--quiet", "--select", "I,RUF022"], ["format", "--quiet"]):
        text = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(PATH), "-"],
            input=text,
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        ).stdout
    return text


if __name__ == "__main__":
    PATH.write_text(formatted(stub()), encoding="utf-8")
    LOSS_ARGS_PATH.write_text(formatted(loss_args_stub()), encoding="utf-8")
