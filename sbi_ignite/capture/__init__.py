"""Graph capture: record the computation of a step once, and repeat it without Python."""

from sbi_ignite.capture.compiler import Compiler
from sbi_ignite.capture.report import Report

__all__ = ["Compiler", "Report"]
