"""Register small programs that only use sbi's public interface, as scenarios."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

Notes = dict[str, Any]
Program = Callable[[ModuleType, Notes], Any]


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One program with what the suite needs to know about it.

    Attributes:
        name: its name, and the name of its test.
        program: the function.
        seeded_as: the name of the scenario whose seed it uses.
        patched: run through `patch_sbi()`.
        renamed: run with the trainers of `sbi_ignite.inference`.
    """

    name: str
    program: Program
    seeded_as: str
    patched: bool = False
    renamed: bool = True

    def run(self, inference: ModuleType, notes: Notes) -> list[Any]:
        """Run the program and return its trainers."""
        trainers = self.program(inference, notes)
        return list(trainers) if isinstance(trainers, list | tuple) else [trainers]


SCENARIOS: dict[str, Scenario] = {}
CONTROLS: dict[str, Scenario] = {}
"""Programs that differ from a scenario in one small thing, which the comparison must notice."""


def scenario(*, patched: bool = False, renamed: bool = True) -> Callable[[Program], Program]:
    """Register a program under its function's name."""

    def register(program: Program) -> Program:
        name = program.__name__
        SCENARIOS[name] = Scenario(name, program, name, patched, renamed)
        return program

    return register


def variants(
    *, patched: tuple[Any, ...] = (), **choices: tuple[Any, ...]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a program once for each value of its one extra keyword."""
    ((keyword, values),) = choices.items()

    def register(program: Callable[..., Any]) -> Callable[..., Any]:
        for value in values:
            name = f"{program.__name__}_{value}"
            run = functools.partial(program, **{keyword: value})
            SCENARIOS[name] = Scenario(name, run, name, patched=value in patched)
        return program

    return register


def control(of: str) -> Callable[[Program], Program]:
    """Register a disturbed version of the scenario `of`, run with the seed of the original."""

    def register(program: Program) -> Program:
        name = program.__name__
        CONTROLS[name] = Scenario(name, program, seeded_as=of)
        return program

    return register
