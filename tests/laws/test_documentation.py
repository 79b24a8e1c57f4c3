"""Everything public is documented, and the examples in the documentation run."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch

import sbi_ignite
from tests.small import ROOT

PACKAGE = ROOT / "sbi_ignite"
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.name != "__main__.py"
)
FILES = {module: importlib.util.find_spec(module) for module in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_docstrings_run(module):
    """Names of the package's front door, torch and nn are at hand in them."""
    home = importlib.import_module(module)
    names = {**vars(home), "torch": torch, "nn": torch.nn}
    for name in sbi_ignite.__all__:
        names.setdefault(name, getattr(sbi_ignite, name))
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(verbose=False)
    for test in finder.find(home, module, globs=names):
        runner.run(test)
    assert runner.failures == 0


def test_there_are_examples_to_run():
    """The test above would pass on a package without any."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = [importlib.import_module(module) for module in MODULES]
    examples = sum(len(test.examples) for home in modules for test in finder.find(home))
    assert examples >= 30


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_in_one_summary_what_it_does(module):
    documentation = importlib.import_module(module).__doc__
    assert documentation, f"{module} has no docstring"
    summary = documentation.split("\n\n")[0].rstrip()
    assert summary.endswith((".", ":"))
    assert not re.search(r"\bcomes? in;|\bgo(es)? out\b", summary), summary


@pytest.mark.parametrize("module", MODULES)
def test_public_functions_classes_and_methods_are_documented(module):
    spec = FILES[module]
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    missing = []

    def visit(node: ast.AST, where: str) -> None:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.ClassDef | ast.FunctionDef):
                continue
            if child.name.startswith("_"):
                continue
            assigned = any(
                isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "__doc__"
                for part in child.body
            )
            overrides = any("overload" in ast.unparse(d) for d in child.decorator_list)
            if not ast.get_docstring(child) and not assigned and not overrides:
                missing.append(f"{where}{child.name}")
            if isinstance(child, ast.ClassDef):
                visit(child, f"{where}{child.name}.")

    visit(tree, f"{module}.")
    assert missing == []


@pytest.mark.parametrize("name", sorted(set(sbi_ignite.__all__) - {"__version__"}))
def test_every_public_name_is_documented(name):
    value = getattr(sbi_ignite, name)
    assert inspect.getdoc(value)


@pytest.mark.parametrize(
    "name", ["TrainConfig", "EarlyStopping", "LoggingConfig", "CheckpointConfig", "LRSchedule"]
)
def test_every_setting_has_its_sentence(name):
    for field, info in getattr(sbi_ignite, name).model_fields.items():
        assert info.description, f"{name}.{field}"
        assert info.description.endswith("."), f"{name}.{field}"


@pytest.mark.parametrize("name", [n for n in sbi_ignite.__all__ if n.startswith("LossArgs")])
def test_every_loss_argument_has_its_sentence(name):
    for field, info in getattr(sbi_ignite, name).model_fields.items():
        assert info.description, f"{name}.{field}"
