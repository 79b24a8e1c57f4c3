"""Patch sbi's own trainers to train by sbi_ignite until the patch is undone (door b)."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any

import sbi
import sbi.inference as sbi_inference

from sbi_ignite.bridge import marginal, train
from sbi_ignite.bridge.lines import LOOP, check_sbi, trainers_without_training
from sbi_ignite.bridge.options import refuse_arguments
from sbi_ignite.bridge.signatures import sbis_first
from sbi_ignite.bridge.stored import append_simulations_from
from sbi_ignite.bridge.workers import pass_on_patch
from sbi_ignite.methods.table import TRAINERS

_ABSENT = object()
_lock = threading.RLock()
_undo: list[Callable[[], None]] = []
_holders = 0
_permanent = False


class Patch:
    """Undoes `patch_sbi()` as a context manager; using it as one is optional."""

    def __init__(self, first: bool) -> None:
        self._first = first

    def __repr__(self) -> str:
        return (
            "sbi's trainers are trained by sbi_ignite until unpatch_sbi() is called."
            if _undo
            else "sbi's trainers are trained by sbi again."
        )

    def __enter__(self) -> Patch:
        global _holders, _permanent
        with _lock:
            _holders += 1
            if self._first:
                _permanent = False
            if not _undo:  # another thread left its block since the call
                _apply()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        global _holders
        with _lock:
            _holders -= 1
            if not _holders and not _permanent:
                _restore()


def patch_sbi() -> Patch:
    """Make sbi's own trainers, even if already imported or subclassed, train by sbi_ignite.

    Takes effect at once, in all threads, until `unpatch_sbi()`. As a context manager it is undone
    at the end of the block, unless the patch was already on. A second call has no further effect.

    Python processes that are started while the patch is on are patched as well, and stay so:
    workers of joblib, multiprocessing, Ray and Dask on this machine, and plain subprocesses, if
    they inherit the environment (PYTHONPATH names a start-up hook there).

    Warns:
        SbiIgniteWarning: If there are workers that it cannot reach, such as ones already running.

    Returns:
        A context manager.

    Raises:
        UnsupportedSbiError: If the installed sbi lacks what is needed here.

    Example:
        >>> with patch_sbi():
        ...     pass  # a script that uses sbi
    """
    global _permanent
    check_sbi()
    with _lock:
        first = not _undo
        if first:
            _apply()
            _permanent = True
        return Patch(first)


def unpatch_sbi() -> None:
    """Restore sbi exactly as it was; without a patch, do nothing.

    Example:
        >>> import sbi.inference
        >>> before = sbi.inference.NPE_C.train
        >>> undo = patch_sbi()
        >>> unpatch_sbi()
        >>> sbi.inference.NPE_C.train is before
        True
    """
    global _permanent
    with _lock:
        _permanent = False
        _restore()


def is_patched() -> bool:
    """Return whether the patch is on."""
    return bool(_undo)


def _apply() -> None:
    _undo.append(pass_on_patch())
    for cls in _sharing_the_loop():
        if "train" in vars(cls):
            _replace(cls, "train", _training(cls, train.train))
    marginals = sbi_inference.MarginalTrainer
    _replace(marginals, "train", _training(marginals, marginal.train))
    for cls in trainers_without_training():
        _replace(cls, "train", _refusing(vars(cls)["train"]))
    base = sbi_inference.NeuralInference
    _replace(base, "get_dataloaders", _loading(base.get_dataloaders))
    _replace(base, LOOP, _looping(getattr(base, LOOP)))
    for cls in (base, sbi_inference.MarginalTrainer):
        _replace(cls, "training_summary", None)
        _replace(cls, "append_simulations_from", append_simulations_from)
    _offer_training_module()


def _sharing_the_loop() -> tuple[type, ...]:
    """Return the trainers that share sbi's loop, and their bases."""
    known = [getattr(sbi_inference, name) for name in TRAINERS if hasattr(sbi_inference, name)]
    ancestors = dict.fromkeys(ancestor for cls in known for ancestor in cls.__mro__)
    base = sbi_inference.NeuralInference
    return tuple(cls for cls in ancestors if issubclass(cls, base) and cls is not base)


def _restore() -> None:
    while _undo:
        _undo.pop()()


def _replace(owner: Any, name: str, value: Any) -> None:
    """Set an attribute and remember how to undo it."""
    before = vars(owner).get(name, _ABSENT)
    setattr(owner, name, value)
    if before is _ABSENT:
        _undo.append(lambda: delattr(owner, name))
    else:
        _undo.append(lambda: setattr(owner, name, before))


def _training(cls: type, carry_out: Callable[..., Any]) -> Callable[..., Any]:
    sbi_train = vars(cls)["train"]

    @functools.wraps(sbi_train)
    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        return carry_out(self, sbi_train, args, kwargs)

    train.__signature__ = sbis_first(cls, sbi_train)  # type: ignore[attr-defined] # inspect's
    return train


def _refusing(sbi_train: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(sbi_train)
    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        refuse_arguments(self, args, kwargs)
        return sbi_train(self)

    return train


def _loading(sbi_get_dataloaders: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(sbi_get_dataloaders)
    def get_dataloaders(self: Any, *args: Any, **kwargs: Any) -> Any:
        return train.get_dataloaders(self, sbi_get_dataloaders, *args, **kwargs)

    return get_dataloaders


def _looping(sbi_loop: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(sbi_loop)
    def loop(self: Any, *args: Any, **kwargs: Any) -> Any:
        return train.run_training_loop(self, *args, **kwargs)

    return loop


def _offer_training_module() -> None:
    """Make `sbi.training` importable, with the names of EP-01."""
    import sbi_ignite

    module = ModuleType("sbi.training", "The names of EP-01, from sbi_ignite.")
    for name in sbi_ignite.EP01_NAMES:
        setattr(module, name, getattr(sbi_ignite, name))
    module.__dict__["__all__"] = list(sbi_ignite.EP01_NAMES)
    _replace(sbi, "training", module)
    sys.modules["sbi.training"] = module
    _undo.append(lambda: _forget_module("sbi.training"))


def _forget_module(name: str) -> None:
    """Remove a module from the import system again."""
    sys.modules.pop(name, None)
