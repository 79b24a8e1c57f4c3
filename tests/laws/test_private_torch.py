"""Private names of torch have an address, and each is listed there with its reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from sbi_ignite.capture import private_torch as capture_names
from sbi_ignite.optim import private_torch as optim_names
from tests.small import ROOT

PACKAGE = ROOT / "sbi_ignite"
ADDRESSES = ("capture/private_torch.py", "optim/private_torch.py")
"""Where private names of torch are found, guarded and replaced."""
INTERPRETER = "capture/executors/torchscript.py"
"""Uses names of `TORCHSCRIPT` alone, after all of them have been probed."""

LISTED = {
    *capture_names.RECORDING,
    *capture_names.TORCHSCRIPT,
    *capture_names.REPLACED,
    *optim_names.NAMES,
}
OF_OBJECTS = {
    *(name.rpartition(".")[2] for name in LISTED if not name.startswith("torch.utils.")),
    *capture_names.HOOKS,
    "_cdata",
    "_opt_called",
    "_optimizer_step_post_hooks",
    "_optimizer_step_pre_hooks",
    "_version",
}
"""Private attributes of torch's objects."""


def is_private(part: str) -> bool:
    return part.startswith("_") and not part.startswith("__")


def spoken(path: Path) -> Iterator[str]:
    """Yield the private names of torch that a file uses, as far as they can be told."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "torch":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in names if any(map(is_private, name.split("."))))
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "torch"]
            yield from (name for name in names if any(map(is_private, name.split("."))))
        elif isinstance(node, ast.Attribute):
            words = ast.unparse(node)
            parts = words.split(".") if all(map(str.isidentifier, words.split("."))) else []
            # Operations' own names, such as `torch.ops.aten._softmax`, are what is recorded.
            of_torch = parts[:1] == ["torch"] and parts[1:2] != ["ops"]
            of_an_object = is_private(node.attr) and node.attr in OF_OBJECTS
            if of_an_object or (of_torch and any(map(is_private, parts))):
                yield words


def test_private_names_of_torch_are_spoken_at_two_addresses():
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name not in (*ADDRESSES, INTERPRETER):
            found[name] = sorted(set(spoken(path)))
    assert {name: names for name, names in found.items() if names} == {}


def test_the_interpreter_is_spoken_to_by_listed_names_only():
    used = set(spoken(PACKAGE / INTERPRETER))
    longest = {name for name in used if not any(n.startswith(f"{name}.") for n in used)}
    methods = {name for name in longest if name.removesuffix(".get") in capture_names.TORCHSCRIPT}
    assert longest - methods - {*capture_names.TORCHSCRIPT} == set()
    assert used


def test_both_addresses_would_be_found_out():
    """The search sees names where there are some."""
    assert all(set(spoken(PACKAGE / address)) for address in ADDRESSES)
