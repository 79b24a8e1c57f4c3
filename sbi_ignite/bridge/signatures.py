"""The signatures of `train()`: each trainer's parameters from sbi, and those added here.

`trainers.pyi` says the same to type checkers; `python -m tests.typing.stubs` writes it.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any, Literal

from torch import Tensor, nn

from sbi_ignite.methods.table import method_of
from sbi_ignite.settings import CheckpointConfig, EarlyStopping, TrainConfig

_KEYWORD, _EITHER = Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD


def typed_first(cls: type, sbi_train: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of `train()` in the classes of this package.

    The typed form comes first. sbi's positional calls work, too, but one signature cannot express
    both.

    Args:
        cls: The trainer's class.
        sbi_train: sbi's own `train()` of it.
    """
    own, sbi = inspect.signature(sbi_train), _sbis(sbi_train)
    keywords = [p.replace(kind=_KEYWORD) for p in sbi[1:]]
    return own.replace(parameters=[sbi[0], *_typed(cls, _EITHER), *keywords, *_new()])


def sbis_first(cls: type, sbi_train: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of `train()` in sbi's own classes while they are patched.

    sbi's parameters stay as they are; new ones follow them as keywords.

    Args:
        cls: The trainer's class.
        sbi_train: sbi's own `train()` of it.
    """
    parameters = [*_sbis(sbi_train), *_typed(cls, _KEYWORD), *_new()]
    return inspect.signature(sbi_train).replace(parameters=parameters)


def _sbis(sbi_train: Callable[..., Any]) -> list[Parameter]:
    return list(inspect.signature(sbi_train).parameters.values())


def _typed(cls: type, kind: Any) -> list[Parameter]:
    loss_args = method_of(cls).loss_args
    return [
        Parameter("train_config", kind, default=None, annotation=TrainConfig | None),
        Parameter("loss_args", kind, default=None, annotation=loss_args | None),
    ]


def _new() -> list[Parameter]:
    rules = EarlyStopping | Sequence[EarlyStopping] | None
    directory = CheckpointConfig | str | os.PathLike[str] | Literal[False] | None
    source = str | os.PathLike[str] | Mapping[str, Any] | nn.Module | None
    rows = Sequence[Tensor] | Tensor | None
    return [
        Parameter("exclude_invalid_x", _KEYWORD, default=None, annotation=bool | None),
        Parameter("logging", _KEYWORD, default=None, annotation=Any),
        Parameter("early_stopping", _KEYWORD, default=None, annotation=rules),
        Parameter("checkpoint", _KEYWORD, default=None, annotation=directory),
        Parameter("callbacks", _KEYWORD, default=(), annotation=Any),
        Parameter("init_from", _KEYWORD, default=None, annotation=source),
        Parameter("validation", _KEYWORD, default=None, annotation=rows),
    ]
