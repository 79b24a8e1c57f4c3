"""What is installed with the package is what it imports."""

from __future__ import annotations

import re
import sys

from tests.laws.test_imports import FILES, imports
from tests.small import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BROUGHT_ALONG = {
    "annotated_types": "pydantic",
    "pydantic_core": "pydantic",
    "nflows": "sbi",
    "requests": "mlflow",
}
"""Packages that a declared one cannot do without."""

OPTIONAL_IF_LOADED = {"pandas"}
"""Packages that are looked at only where the user has loaded them already."""

IMPORT_NAMES = {"ignite": "pytorch-ignite"}
"""Import names that are not those of the distribution."""


def declared() -> set[str]:
    """Return the distributions named in pyproject.toml, those of the backends' extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["wandb"], *extras["mlflow"], *extras["tensorboard"]]
    return {re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0].lower() for line in lines}


def test_every_imported_package_is_declared():
    missing, known_names = {}, declared()
    for path in FILES:
        for module in imports(path):
            top = module.split(".")[0]
            known = top in sys.stdlib_module_names or top in ("sbi_ignite", *OPTIONAL_IF_LOADED)
            name = BROUGHT_ALONG.get(top) or IMPORT_NAMES.get(top, top).replace("_", "-")
            if not known and name not in known_names:
                missing.setdefault(top, str(path))
    assert not missing


def test_what_sbi_imports_without_declaring_it_is_declared():
    """Without it, the first import of sbi 0.27 fails beside python-dateutil 4."""
    assert "six" in declared()
