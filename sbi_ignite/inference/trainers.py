"""sbi's trainers under the same names, trained by sbi_ignite (door a)."""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any

import sbi.inference as sbi_inference

from sbi_ignite.bridge.mixins import IgniteLoop, IgniteTrainer, PretrainedTrainer, method_behind
from sbi_ignite.bridge.signatures import typed_first

# The overrides take more than sbi's methods do; a type checker cannot know this is intended.
# pyright: reportIncompatibleMethodOverride=false
# ruff: noqa: D101 # the docstrings are sbi's


class NPE_A(IgniteLoop, sbi_inference.NPE_A):
    __doc__ = sbi_inference.NPE_A.__doc__


class NPE_B(IgniteLoop, sbi_inference.NPE_B):
    __doc__ = sbi_inference.NPE_B.__doc__


class NPE_C(IgniteLoop, sbi_inference.NPE_C):
    __doc__ = sbi_inference.NPE_C.__doc__


class MNPE(IgniteLoop, sbi_inference.MNPE):
    __doc__ = sbi_inference.MNPE.__doc__


class NLE_A(IgniteLoop, sbi_inference.NLE_A):
    __doc__ = sbi_inference.NLE_A.__doc__


class MNLE(IgniteLoop, sbi_inference.MNLE):
    __doc__ = sbi_inference.MNLE.__doc__


class NRE_A(IgniteLoop, sbi_inference.NRE_A):
    __doc__ = sbi_inference.NRE_A.__doc__


class NRE_B(IgniteLoop, sbi_inference.NRE_B):
    __doc__ = sbi_inference.NRE_B.__doc__


class NRE_C(IgniteLoop, sbi_inference.NRE_C):
    __doc__ = sbi_inference.NRE_C.__doc__


class BNRE(IgniteLoop, sbi_inference.BNRE):
    __doc__ = sbi_inference.BNRE.__doc__


class FMPE(IgniteLoop, sbi_inference.FMPE):
    __doc__ = sbi_inference.FMPE.__doc__


class NPSE(IgniteLoop, sbi_inference.NPSE):
    __doc__ = sbi_inference.NPSE.__doc__


class MarginalTrainer(IgniteTrainer, sbi_inference.MarginalTrainer):
    __doc__ = sbi_inference.MarginalTrainer.__doc__


def _show_signature(cls: Any, shared: Any, signature: inspect.Signature) -> None:
    """Give a class its own `train()`, which does what `shared` does and has the true signature."""
    train = FunctionType(
        shared.__code__, shared.__globals__, "train", shared.__defaults__, shared.__closure__
    )
    train.__kwdefaults__, train.__doc__ = shared.__kwdefaults__, shared.__doc__
    train.__module__, train.__qualname__ = __name__, f"{cls.__name__}.train"
    train.__signature__ = signature  # type: ignore[attr-defined] # inspect's
    cls.train = train


for _class in (
    *(NPE_A, NPE_B, NPE_C, MNPE, NLE_A, MNLE, NRE_A, NRE_B, NRE_C, BNRE, FMPE, NPSE),
    MarginalTrainer,
):
    _signature = typed_first(_class, method_behind(_class, "train"))
    _show_signature(_class, IgniteTrainer.train, _signature)

if hasattr(sbi_inference, "NPE_PFN"):  # from sbi 0.27 on

    class NPE_PFN(PretrainedTrainer, sbi_inference.NPE_PFN):
        __doc__ = sbi_inference.NPE_PFN.__doc__

    _show_signature(
        NPE_PFN, PretrainedTrainer.train, inspect.signature(sbi_inference.NPE_PFN.train)
    )

NPE = NPE_C
NLE = NLE_A
NRE = NRE_B
