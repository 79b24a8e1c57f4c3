"""Graph capture: record the computation of a step once, and repeat it without Python."""

from sbi_ignite.capture.compiler import Compiler

__all__ = ["Compiler"]
