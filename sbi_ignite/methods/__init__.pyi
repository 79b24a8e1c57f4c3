"""The public loss arguments; written by `python -m tests.typing.stubs`."""

from sbi_ignite.methods.base import LossArgs as LossArgs
from sbi_ignite.methods.marginal import LossArgsMarginal as LossArgsMarginal
from sbi_ignite.methods.nle import LossArgsNLE as LossArgsNLE
from sbi_ignite.methods.npe import LossArgsNPE as LossArgsNPE
from sbi_ignite.methods.nre import LossArgsBNRE as LossArgsBNRE
from sbi_ignite.methods.nre import LossArgsNRE as LossArgsNRE
from sbi_ignite.methods.nre import LossArgsNRE_A as LossArgsNRE_A
from sbi_ignite.methods.nre import LossArgsNRE_C as LossArgsNRE_C
from sbi_ignite.methods.vector_field import LossArgsVF as LossArgsVF
