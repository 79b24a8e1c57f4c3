"""Patch sbi on import in Python processes that a patched process has started.

`patch_sbi()` puts this folder on PYTHONPATH, which child processes inherit, and Python imports a
module of this name before anything else. It costs nothing until `sbi.inference` is imported.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import warnings

TYPE_CHECKING = False  # without an import of typing in every process
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_FOLDER = os.path.dirname(os.path.abspath(__file__))
_PACKAGE = os.path.dirname(_FOLDER)
_TARGET = "sbi.inference"


class _PatchOnImport:
    """A finder that leaves finding `sbi.inference` to others and patches it once it is imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != _TARGET:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            loader: Any = _PatchingLoader(spec.loader, self)
            spec.loader = loader
        return spec


class _PatchingLoader:
    """The loader of `sbi.inference`, which patches what it has loaded."""

    def __init__(self, loader: Any, finder: Any) -> None:
        self._loader, self._finder = loader, finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
            # As the import itself does once this returns; what is imported now may need it.
            sys.modules["sbi"].inference = module  # type: ignore[attr-defined] # a submodule
            _patch()


def _patch() -> None:
    try:
        if importlib.util.find_spec("sbi_ignite") is None:
            _load_package()
        # Before the patch is on: it checks sbi's version, and reads the signatures of sbi's own.
        import sbi_ignite.inference.trainers  # noqa: F401
        from sbi_ignite.bridge.workers import inherit_patch

        inherit_patch()
    except Exception as error:  # an environment other than the parent's, where sbi still works
        warnings.warn(
            f"sbi_ignite: process {os.getpid()} was started by a patched one, but trains with "
            f"plain sbi, since sbi_ignite cannot be used in it ({type(error).__name__}: {error}).",
            RuntimeWarning,
            stacklevel=2,
        )


def _load_package() -> None:
    """Load sbi_ignite from where the parent loaded it, which may be its current folder."""
    file = os.path.join(_PACKAGE, "__init__.py")
    spec = importlib.util.spec_from_file_location(
        "sbi_ignite", file, submodule_search_locations=[_PACKAGE]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"there is no {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["sbi_ignite"] = module
    spec.loader.exec_module(module)


def _run_hidden() -> None:
    """Take this folder off the path and run the sitecustomize that it shadowed, if any."""
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder) != _FOLDER]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


if _TARGET not in sys.modules:
    hook: Any = _PatchOnImport()
    sys.meta_path.insert(0, hook)
_run_hidden()
