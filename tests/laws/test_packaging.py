"""What is declared is what is imported, and what is built can be installed and used."""

from __future__ import annotations

import re
import shutil
import sys
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

from tests.laws.test_imports import FILES, imports
from tests.runs.test_disks import on_disk
from tests.small import ROOT, python

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BROUGHT_ALONG = {
    "annotated_types": "pydantic",
    "pydantic_core": "pydantic",
    "nflows": "sbi",
    "PIL": "matplotlib",
    "scipy": "sbi",
    "requests": "mlflow",
}
"""Packages that a declared one cannot do without."""

OPTIONAL_IF_LOADED = {"pandas"}
"""Packages that are looked at only where the user has loaded them already."""

IMPORT_NAMES = {"ignite": "pytorch-ignite"}
"""Import names that are not those of the distribution."""


def declared() -> set[str]:
    """Return the distributions named in pyproject.toml, those of the extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    loaded = ("wandb", "mlflow", "tensorboard", "tune", "h5", "zarr", "arrow")
    lines = [*project["dependencies"], *(line for name in loaded for line in extras[name])]
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


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build wheel and source distribution from a copy of this tree, as a release does."""
    for module in ("build", "hatchling", "hatch_fancy_pypi_readme", "twine"):
        pytest.importorskip(module)
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("sbi_ignite", "tests", "docs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    # Without an environment of its own, which would need a network.
    done = python("-m", "build", "--no-isolation", "--outdir", str(out), str(tree))
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def metadata_of(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(archive.read(name))


def test_what_is_built_passes_the_check_of_the_index(built):
    done = python("-m", "twine", "check", "--strict", *map(str, built.iterdir()))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


def test_wheel_and_source_distribution_hold_the_package_and_no_tests(built):
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "sbi_ignite").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(only(built, "*.whl")) as archive:
        wheel = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert wheel == package
    with tarfile.open(only(built, "*.tar.gz")) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    beside = {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "PKG-INFO", ".gitignore"}
    assert package <= source
    assert source - package <= beside
    assert beside - source <= {".gitignore"}


def test_the_description_on_the_index_has_no_link_that_leads_nowhere(built):
    """README links to files of the repository, which are not there."""
    links = re.compile(r"\]\((?!https?://)([^)]*)\)")
    assert len(links.findall((ROOT / "README.md").read_text(encoding="utf-8"))) > 3
    text = metadata_of(only(built, "*.whl")).get_payload()
    assert "# sbi_ignite" in text
    assert links.findall(text) == []
    assert "`benchmarks/RESULTS.md`" in text


def test_every_python_that_is_claimed_is_allowed(built):
    found = metadata_of(only(built, "*.whl"))
    start = "Programming Language :: Python :: 3."
    claimed = [c.removeprefix(start) for c in found.get_all("Classifier") if c.startswith(start)]
    assert found["Requires-Python"] == f">=3.{min(map(int, claimed))}"


TRAIN_FROM_A_READ_ONLY_PLACE = """
    import os, shutil, subprocess, sys

    disk, installed, program, place = sys.argv[1:]
    shutil.copytree(installed, f"{disk}/installed")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    variables = {**os.environ, "PYTHONPATH": f"{disk}/installed"}
    command = [sys.executable, "-W", "ignore", "-c", program, place]
    subprocess.run(command, env=variables, check=True)
"""
PROGRAM = """
import os, sys
os.chdir(sys.argv[1])
import torch
from sbi.utils import BoxUniform
import sbi_ignite
from sbi_ignite import NPE, TrainConfig, load_estimator

folder = os.path.dirname(sbi_ignite.__file__)
try:
    open(os.path.join(folder, "file"), "w")
except OSError as error:
    print(error.strerror)
prior = BoxUniform(-torch.ones(2), torch.ones(2))
theta = prior.sample((100,))
trainer = NPE(prior, show_progress_bars=False)
trainer.append_simulations(theta, theta + 0.1 * torch.randn_like(theta))
trained = trainer.train(TrainConfig(max_epochs=2), checkpoint="run")
loaded = load_estimator("run").state_dict()
print(all(torch.equal(value, loaded[name]) for name, value in trained.state_dict().items()))
"""


@pytest.mark.slow
def test_a_wheel_that_is_installed_where_nothing_can_be_written_trains(built, tmp_path):
    target, place = tmp_path / "target", tmp_path / "place"
    place.mkdir()
    wheel = str(only(built, "*.whl"))
    install = ("install", "--quiet", "--no-deps", "--no-index", "--target", str(target), wheel)
    done = python("-m", "pip", *install)
    assert done.returncode == 0, done.stderr
    arguments = (str(target), PROGRAM, str(place))
    told = on_disk(tmp_path / "disk", "size=50m", TRAIN_FROM_A_READ_ONLY_PLACE, *arguments)
    assert told.splitlines() == ["Read-only file system", "True"]
