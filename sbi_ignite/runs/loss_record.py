"""Record what a loss function computes, and tell whether another one computes something else."""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

from sbi_ignite.settings.redaction import redact
from sbi_ignite.settings.serialization import plain, qualified_name

_INSTALLED = {"site-packages", "dist-packages"}
_STANDARD = Path(dis.__file__).parent
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d+)?$")
"""Where a loss is computed may change between two starts of a run."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_STORES = ("STORE_GLOBAL", "STORE_DEREF", "STORE_ATTR", "DELETE_ATTR")
_AT_ANY_TIME = ("training",)
_ASIDE = ("__init__", "__post_init__", "__repr__", "extra_repr")
"""Methods whose code is not what is computed."""


def describe_loss(loss_fn: Any) -> dict[str, Any]:
    """Return the name of a loss function, a digest of its code, and the plain values that it uses.

    The code is that of the function, of functions that it wraps or refers to in its own module, and
    of the methods of an object that is called; that of installed packages is left out. Values are
    numbers, texts, None and tuples of these, but for names of devices and for what the code itself
    changes. Arguments are those bound by `functools.partial`, defaults, and variables of enclosing
    functions; other variables are globals and attributes.

    Args:
        loss_fn: Any callable.

    Returns:
        Plain data: "name", "code" (None where there is no python code), "python", "arguments" and
        "variables".

    Example:
        >>> def weighted(model, batch, weight=2.0):
        ...     return weight * model(batch)
        >>> describe_loss(functools.partial(weighted, weight=3.0))["arguments"]
        {'weight': 3.0}
    """
    reader = _Reader()
    reader.read(loss_fn, "")
    return {
        "name": _name(loss_fn),
        **reader.code,
        "arguments": dict(sorted(reader.arguments.items())),
        "variables": dict(sorted(reader.variables.items())),
    }


def describe_modules(network: nn.Module) -> dict[str, Any] | None:
    """Return the same for the code of a network's modules that no installed package brings.

    What modules hold is left out: their options and weights are compared by themselves.

    Args:
        network: Any module.

    Returns:
        What `describe_loss` returns; None if all modules are those of packages.
    """
    reader, names = _Reader(), []
    for kind in sorted({type(module) for module in network.modules()}, key=qualified_name):
        if kind.__module__.split(".")[0] != __name__.split(".")[0] and reader.read_class(kind):
            names.append(qualified_name(kind))
    if not names:
        return None
    return {"name": ", ".join(names), **reader.code, "arguments": {}, "variables": {}}


def loss_differences(
    saved: Mapping[str, Any], now: Mapping[str, Any], what: str = "loss function"
) -> Iterator[str]:
    """Say how a loss function differs from the one of an earlier run: in code and arguments.

    Args:
        saved: What `describe_loss` returned for the run.
        now: What it returns now.
        what: What the function is.
    """
    before, after = saved["code"], now["code"]
    comparable = saved["python"] == now["python"]
    if before is None or after is None:
        if saved["name"] != now["name"]:
            names = f"the run has {saved['name']}, now it is {now['name']}"
            yield f"The {what} differs: {names}."
            return
    elif comparable and before != after:
        names = f"the run has {saved['name']}, now it is {now['name']}"
        if saved["name"] == now["name"]:
            names = f"{now['name']} has other code than in the run"
        yield f"The {what} differs: {names}."
        return
    changed = _changed(saved["arguments"], now["arguments"])
    if changed:
        yield f"The {what} differs: {now['name']} had {changed}."


def changed_variables(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say which variables of a loss function differ from those of an earlier run; "" if none.

    They may be meant to change on the way, unlike code and arguments.

    Args:
        saved: What `describe_loss` returned for the run.
        now: What it returns now.
    """
    return _changed(saved["variables"], now["variables"])


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}={before[name]!r} (now {after[name]!r})"
        for name in before
        if name in after and before[name] != after[name]
    )


def _name(called: Any) -> str:
    while isinstance(called, functools.partial):
        called = called.func
    return qualified_name(called)


def describe_dataset(maker: Any) -> dict[str, Any] | None:
    """Return what `describe_loss` returns, for data that are made as they are asked for.

    Args:
        maker: A dataset or loader; None where data are held.

    Returns:
        None without code of the user's own or values that it reads.
    """
    if maker is None:
        return None
    found = {**describe_loss(maker), "name": qualified_name(type(maker))}
    return found if found["code"] or found["variables"] else None


class _Reader:
    """Collects code and values of a callable and of what belongs to it."""

    def __init__(self) -> None:
        self.codes: list[str] = []
        self.arguments: dict[str, Any] = {}
        self.variables: dict[str, Any] = {}
        self._seen: set[int] = set()

    @property
    def code(self) -> dict[str, str | None]:
        """A digest of the code, None if there is none, and the python that it is of."""
        digest = hashlib.sha256("\n".join(self.codes).encode()).hexdigest()[:32]
        # Versions of python compile the same text to different code.
        python = f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor}"
        return {"code": digest if self.codes else None, "python": python}

    def read_class(self, kind: type) -> bool:
        """Look at a class's methods; return whether any of their code is the user's own."""
        before = len(self.codes)
        for name, function in sorted(dict(_own_methods(kind)).items()):
            if name not in _ASIDE:
                self._function(function, "")
        return len(self.codes) > before

    def read(self, called: Any, prefix: str) -> None:
        """Look at a callable.

        Args:
            called: The callable.
            prefix: What its values are named after.
        """
        if id(called) in self._seen:
            return
        self._seen.add(id(called))
        if isinstance(called, functools.partial):
            _note(self.arguments, prefix, dict(enumerate(called.args)))
            _note(self.arguments, prefix, called.keywords)
            self.read(called.func, prefix)
        elif isinstance(called, MethodType):
            self._function(called.__func__, prefix)
            self._object(called.__self__, prefix)
        elif isinstance(called, FunctionType):
            self._function(called, prefix)
        elif not inspect.isbuiltin(called) and not inspect.isclass(called):
            self._object(called, prefix)

    def _function(self, function: FunctionType, prefix: str) -> None:
        code = function.__code__
        if _is_installed(code):
            return
        self.codes.append(_text_of(code))
        changed = set(_names_in(code, _STORES))
        defaults = inspect.signature(function, follow_wrapped=False).parameters.values()
        given = {p.name: p.default for p in defaults if p.default is not inspect.Parameter.empty}
        cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
        closure = {name: _content(cell) for name, cell in cells if name not in changed}
        used = [name for name in _names_in(code, ("LOAD_GLOBAL",)) if name not in changed]
        space = function.__globals__
        own = {name: space[name] for name in used if name in space}
        _note(self.arguments, prefix, {**given, **closure})
        _note(self.variables, prefix, own)
        for name, value in closure.items():
            self.read_python(value, f"{prefix}{name}.")
        for name, value in own.items():
            if getattr(value, "__globals__", None) is space:
                self.read_python(value, f"{prefix}{name}.")

    def read_python(self, value: Any, prefix: str) -> None:
        """Look at a value if it is a function written in python."""
        if isinstance(value, FunctionType | MethodType | functools.partial):
            self.read(value, prefix)

    def _object(self, called: Any, prefix: str) -> None:
        """Look at the methods of an object's own classes and at its attributes."""
        methods = dict(_own_methods(type(called)))
        changed = {
            name
            for method, function in methods.items()
            if method not in ("__init__", "__post_init__")
            for name in _names_in(function.__code__, _STORES)
        }
        for name, function in sorted(methods.items()):
            if name not in _ASIDE:
                self._function(function, prefix)
        attributes = getattr(called, "__dict__", {})
        kept = {n: v for n, v in attributes.items() if n not in changed | {*_AT_ANY_TIME}}
        public = {name: value for name, value in kept.items() if name[:1] != "_"}
        _note(self.variables, prefix, public)


def _note(into: dict[str, Any], prefix: str, values: Mapping[Any, Any]) -> None:
    for name, value in values.items():
        if _is_plain(value) and not (isinstance(value, str) and _DEVICE.match(value)):
            # An outer one wins: an argument bound by partial replaces a default.
            into.setdefault(f"{prefix}{name}", _as_saved(value, str(name)))


def _is_installed(code: CodeType) -> bool:
    """Say whether code belongs to python or a package, whose version is recorded by itself."""
    return not _INSTALLED.isdisjoint(Path(code.co_filename).parts) or _STANDARD in (
        Path(code.co_filename).parents
    )


def _own_methods(kind: type) -> Iterator[tuple[str, FunctionType]]:
    """Yield the python methods of a class and its bases, but those of torch and of python."""
    for base in reversed(kind.__mro__):
        if base.__module__.split(".")[0] not in ("builtins", "torch", "abc", "typing"):
            yield from ((n, f) for n, f in vars(base).items() if isinstance(f, FunctionType))


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return type(value) in _PLAIN


def _as_saved(value: Any, name: str) -> Any:
    """Return a value as a file gives it back."""
    if isinstance(value, complex | bytes):
        return redact(repr(value))
    if isinstance(value, tuple):
        return [_as_saved(item, name) for item in value]
    # JSON has numbers for neither NaN nor infinity.
    finite = not isinstance(value, float) or abs(value) < float("inf")
    return plain(value, name) if finite else repr(value)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return cell


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _names_in(code: CodeType, operations: tuple[str, ...]) -> list[str]:
    """Return the names that code, and functions inside it, use in some operations."""
    return [
        step.argval
        for part in _codes(code)
        for step in dis.get_instructions(part)
        if step.opname in operations
    ]


def _text_of(code: CodeType) -> str:
    """Return what code does, whatever its lines, file, name and docstring."""
    steps = (f"{step.opname} {_argument(step)}" for step in dis.get_instructions(code))
    return f"{code.co_argcount} {code.co_kwonlyargcount} " + "; ".join(steps)


def _argument(step: dis.Instruction) -> str:
    if step.opcode in dis.hasconst:
        return _constant(step.argval)
    named = step.opcode in dis.hasname or step.opcode in dis.haslocal or step.opcode in dis.hasfree
    return str(step.argval if named else step.arg)


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return f"<{_text_of(value)}>"
    if isinstance(value, frozenset):  # whose order differs between processes
        return f"{{{' '.join(sorted(map(_constant, value)))}}}"
    if isinstance(value, tuple):
        return f"({' '.join(map(_constant, value))})"
    return f"{type(value).__name__} {value!r}"
