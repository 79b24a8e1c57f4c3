"""Imports run one way, each foreign library has an address, and importing does nothing else."""

from __future__ import annotations

import ast
import json
from collections.abc import Container, Iterator
from pathlib import Path

import pytest
import sbi

from tests.small import ROOT, python

PACKAGE = ROOT / "sbi_ignite"
FILES = sorted(PACKAGE.rglob("*.py"))

FLOORS = {
    "words": (
        "callback",
        "summary",
        "html",
        "pictures",
        "exceptions",
        "settings",
        "tuning",
        "_version",
    ),
    "ground": ("random_state", "concurrency", "world"),
    "data": ("data",),
    "arithmetic": ("optim", "kernels"),
    "capture": ("capture",),
    "works": ("methods", "handlers", "loggers", "runs"),
    "training": ("training",),
    "bridge": ("bridge",),
    "diagnostics": ("diagnostics",),
    "ensembles": ("ensembles",),
    "inference": ("inference",),
    "cli": ("cli",),
}
FLOOR = {room: i for i, rooms in enumerate(FLOORS.values()) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, top_level_only: bool = False):
    """Yield the modules that a file imports, without those for type checkers."""

    def visit(node: ast.AST):
        for child in ast.iter_child_nodes(node):
            guard = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            if guard or (inner and top_level_only):
                continue
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                yield str(child.module)
            yield from visit(child)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")))


def imported(rooms: Container[str], top_level_only: bool = False) -> Iterator[tuple[str, str]]:
    """Yield each file of the rooms with each module that it imports."""
    for path in FILES:
        if room_of(path) in rooms:
            name = path.relative_to(PACKAGE).as_posix()
            yield from ((name, module) for module in imports(path, top_level_only))


def test_imports_run_one_way():
    """From the command line down to words, in the order of `FLOORS`."""
    inside = [
        (name, module)
        for name, module in imported(FLOOR)
        if module.startswith("sbi_ignite.") and module.split(".")[1] in FLOOR
    ]
    assert len(inside) > len(FLOOR)
    upwards = [
        f"{name} imports {module}"
        for name, module in inside
        if FLOOR[module.split(".")[1]] > FLOOR[name.split("/")[0].removesuffix(".py")]
    ]
    assert upwards == []


def test_words_know_neither_sbi_nor_ignite_nor_torch():
    words = list(imported(FLOORS["words"]))
    assert {name.split("/")[0].removesuffix(".py") for name, _ in words} >= {"settings", "callback"}
    foreign = ("sbi", "ignite", "torch")
    assert [f"{n} imports {m}" for n, m in words if m.split(".")[0] in foreign] == []


def private_names_of_sbi() -> frozenset[str]:
    """Return what sbi's trainers call themselves by: methods, and attributes of self and cls."""
    folder = Path(str(sbi.__file__)).parent / "inference" / "trainers"
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found |= {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls"):
                found.add(node.attr)
    return frozenset(n for n in found if n.startswith("_") and not n.startswith("__"))


BY_NAME = ("getattr", "hasattr", "setattr", "delattr", "is_sbis_own")
"""Functions that take the name of an attribute as text."""


def spoken(tree: ast.AST, names: frozenset[str]) -> list[str]:
    """Return where a file reads, writes, names or defines one of sbi's private names."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in names:
            if ast.unparse(node.value) not in ("self", "cls"):
                found.append(f"{node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in BY_NAME:
            words = [a.value for a in node.args if isinstance(a, ast.Constant)]
            found += [f"{node.lineno}: {ast.unparse(node)}" for word in words if word in names]
        elif isinstance(node, ast.ClassDef):
            own = [item for item in node.body if isinstance(item, ast.FunctionDef)]
            overridden = [f"{item.lineno}: def {item.name}" for item in own if item.name in names]
            found += overridden if node.bases else []
    return found


PRIVATE = private_names_of_sbi()
SPEAKERS = ("bridge/probe.py", "bridge/lines/")
"""Where sbi's private names stand."""


def test_private_names_of_sbi_are_spoken_in_one_room():
    """In `bridge/lines/`, and by what asks whether the installed sbi has them."""
    offenders = []
    for path in FILES:
        if path.relative_to(PACKAGE).as_posix().startswith(SPEAKERS):
            continue
        knows_trainers = room_of(path) in (
            "bridge",
            "diagnostics",
            "ensembles",
            "inference",
            "cli",
            "__main__",
        )
        for module in imports(path):
            private = any(part.startswith("_") for part in module.split("."))
            trainers = module.startswith("sbi.inference") and not knows_trainers
            if module.split(".")[0] == "sbi" and (private or trainers):
                offenders.append(f"{path} imports {module}")
        touched = spoken(ast.parse(path.read_text(encoding="utf-8")), PRIVATE)
        offenders += [f"{path} reaches into a trainer, line {place}" for place in touched]
    assert not offenders, "\n".join(offenders)


@pytest.mark.parametrize(
    "line",
    [
        "anything._neural_net = 1",
        "self.trainer._best_val_loss",
        "held[0]._summary['x']",
        "getattr(net_owner, '_device')",
        "class Mine(Trainer):\n    def _converged(self): ...",
    ],
)
def test_the_law_sees_a_private_name_whatever_it_is_asked_of(line):
    assert len(PRIVATE) > 40
    assert spoken(ast.parse(line), PRIVATE)
    assert not spoken(ast.parse("self._device = other._something_else"), PRIVATE)


def test_optional_libraries_are_imported_where_they_are_used():
    """Never when a module is imported, only inside functions."""
    optional = ("wandb", "mlflow", "tensorboard", "torch.utils.tensorboard", "optuna")

    def used(top_level_only: bool) -> list[str]:
        every_room = {room_of(path) for path in FILES}
        return [
            f"{name} imports {module}"
            for name, module in imported(every_room, top_level_only)
            if module.startswith(optional)
        ]

    assert used(top_level_only=True) == []
    assert used(top_level_only=False)


def loaded(statement: str) -> set[str]:
    """Return the top-level packages that a statement loads in a fresh python."""
    script = f"import sys\n{statement}\nprint(' '.join({{m.split('.')[0] for m in sys.modules}}))"
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_the_package_alone_costs_next_to_nothing():
    heavy = {"torch", "sbi", "ignite", "pydantic", "pydantic_settings", "matplotlib", "numpy"}
    assert not loaded("import sbi_ignite") & heavy


def test_settings_cost_neither_torch_nor_sbi():
    assert not loaded("from sbi_ignite import TrainConfig, EarlyStopping") & {
        "torch",
        "sbi",
        "ignite",
    }


IN_A_FRESH_PROCESS = """
import json, logging, os, random, signal, sys, warnings
import sbi.inference
of_sbi = set(sys.modules)
import numpy, torch, ignite.engine

def picture():
    return {
        "handlers": [str(h) for h in logging.getLogger().handlers],
        "level": logging.getLogger().level,
        "environment": sorted(os.environ.items()),
        "python": hash(random.getstate()),
        "numpy": numpy.random.get_state()[1].tolist(),
        "torch": torch.get_rng_state().tolist(),
        "dtype": str(torch.get_default_dtype()),
        "threads": torch.get_num_threads(),
        "filters": [str(f) for f in warnings.filters],
        "interrupt": str(signal.getsignal(signal.SIGINT)),
        "terminate": str(signal.getsignal(signal.SIGTERM)),
        "folder": sorted(os.listdir(".")),
    }

before = picture()
import sbi_ignite, sbi_ignite.inference
loaded = {name.split(".")[0] for name in set(sys.modules) - of_sbi}
for name in sbi_ignite.__all__:
    getattr(sbi_ignite, name)
after = picture()
changed = [name for name in before if before[name] != after[name]]
print(json.dumps({"changed": changed, "loaded": sorted(loaded)}))
"""


@pytest.fixture(scope="module")
def importing() -> dict[str, list[str]]:
    """Return what changes, and what is loaded beyond sbi's imports, when trainers are imported."""
    done = python("-c", IN_A_FRESH_PROCESS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_trainers_load_no_optional_library(importing):
    """With sbi comes tensorboard's writer; with ours nothing more may come."""
    assert "sbi_ignite" in importing["loaded"]
    assert not {*importing["loaded"]} & {"wandb", "mlflow", "tensorboard", "tensorflow"}


def test_importing_changes_nothing_of_the_process(importing):
    """No logging configuration, no environment, no seed, no warning filter, no default dtype."""
    assert importing["changed"] == []
