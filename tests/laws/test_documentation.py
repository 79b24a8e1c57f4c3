"""Everything public is documented, and the examples in the documentation run."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

import sbi_ignite
from tests.small import ROOT, SBI_WARNS

PACKAGE = ROOT / "sbi_ignite"
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.name != "__main__.py"
)


@SBI_WARNS[0]
@SBI_WARNS[1]
def test_the_examples_in_docstrings_run(capsys):
    """Names of the package's front door, torch and nn are at hand in them."""
    front = {name: getattr(sbi_ignite, name) for name in sbi_ignite.__all__}
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(verbose=False)
    for module in MODULES:
        home = importlib.import_module(module)
        names = {**front, **vars(home), "torch": torch, "nn": torch.nn}
        for test in finder.find(home, module, globs=names):
            runner.run(test)
    assert runner.failures == 0, capsys.readouterr().out
    assert runner.tries >= 30


def test_a_module_says_in_one_summary_what_it_does():
    wrong = {}
    for module in MODULES:
        documentation = importlib.import_module(module).__doc__ or ""
        summary = documentation.split("\n\n")[0].rstrip()
        translated = re.search(r"\bcomes? in;|\bgo(es)? out\b", summary)
        if not summary.endswith((".", ":")) or translated:
            wrong[module] = documentation
    assert wrong == {}


def undocumented(tree: ast.AST, where: str) -> Iterator[str]:
    """Yield public functions, classes and methods without a docstring."""
    for child in ast.iter_child_nodes(tree):
        if not isinstance(child, ast.ClassDef | ast.FunctionDef) or child.name.startswith("_"):
            continue
        assigned = any(
            isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "__doc__"
            for part in child.body
        )
        overload = any("overload" in ast.unparse(d) for d in child.decorator_list)
        if not ast.get_docstring(child) and not assigned and not overload:
            yield f"{where}.{child.name}"
        if isinstance(child, ast.ClassDef):
            yield from undocumented(child, f"{where}.{child.name}")


def test_public_functions_classes_and_methods_are_documented():
    missing = []
    for module in MODULES:
        path = Path(importlib.import_module(module).__file__)
        missing += undocumented(ast.parse(path.read_text(encoding="utf-8")), module)
    assert missing == []
    assert list(undocumented(ast.parse("class A:\n    def b(self): ..."), "m")) == ["m.A", "m.A.b"]


def test_the_first_line_of_a_property_has_no_colon():
    """Sphinx would take what precedes it for a type."""
    colon = re.compile(r"(?<!:):(?!:)")
    wrong = [
        f"{cls.__name__}.{attribute}"
        for cls in (getattr(sbi_ignite, name) for name in sbi_ignite.__all__)
        if inspect.isclass(cls)
        for attribute, value in vars(cls).items()
        if isinstance(value, property) and colon.search((value.__doc__ or "").split("\n")[0])
    ]
    assert wrong == []


def test_every_public_name_is_documented():
    names = set(sbi_ignite.__all__) - {"__version__"}
    assert [name for name in sorted(names) if not inspect.getdoc(getattr(sbi_ignite, name))] == []


def without_example(names: dict[str, object]) -> list[str]:
    """Return the names whose own docstring has no example that the test above runs."""
    texts = {name: getattr(value, "__doc__", None) or "" for name, value in names.items()}
    return [n for n, text in texts.items() if ">>> " not in text or "doctest: +SKIP" in text]


def test_every_public_name_has_an_example_that_runs():
    public = {n: getattr(sbi_ignite, n) for n in sbi_ignite.__all__ if n != "__version__"}
    assert without_example(public) == []
    assert without_example({"len": len, "path": Path}) == ["len", "path"]
    homes = {sys.modules[value.__module__].__name__ for value in public.values()}
    assert homes <= {*MODULES}


SETTINGS = ("TrainConfig", "EarlyStopping", "LoggingConfig", "CheckpointConfig", "LRSchedule")


def test_every_setting_has_its_sentence():
    wrong = [
        f"{name}.{field}: {info.description}"
        for name in SETTINGS
        for field, info in getattr(sbi_ignite, name).model_fields.items()
        if not (info.description or "").endswith(".")
    ]
    assert wrong == []


def test_every_loss_argument_has_its_sentence():
    families = [name for name in sbi_ignite.__all__ if name.startswith("LossArgs")]
    wrong = [
        f"{name}.{field}"
        for name in families
        for field, info in getattr(sbi_ignite, name).model_fields.items()
        if not info.description
    ]
    assert families
    assert wrong == []
