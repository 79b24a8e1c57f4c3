"""Every `train()` shows its true signature: to `inspect`, to pyright and to mypy."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
import sysconfig
import venv
from inspect import Parameter
from pathlib import Path

import pytest
import sbi.inference

import sbi_ignite.inference
from sbi_ignite import patch_sbi
from sbi_ignite.inference.trainers import IgniteTrainer
from sbi_ignite.methods.table import method_of
from tests.small import METHODS, ROOT
from tests.typing import stubs

NEW = [
    "exclude_invalid_x",
    "logging",
    "early_stopping",
    "checkpoint",
    "callbacks",
    "init_from",
    "validation",
]
USER = Path(__file__).with_name("user.py")


def parameters(signature: inspect.Signature) -> list[Parameter]:
    return list(signature.parameters.values())


@pytest.mark.parametrize("name", METHODS)
def test_ours_shows_the_typed_form_and_every_keyword_of_sbis(name):
    sbis = inspect.signature(getattr(sbi.inference, name).train)
    ours = inspect.signature(getattr(sbi_ignite.inference, name).train)
    shown = parameters(ours)
    assert [p.name for p in shown[:3]] == ["self", "train_config", "loss_args"]
    method = method_of(getattr(sbi_ignite.inference, name))
    assert shown[2].annotation == method.loss_args | None
    keywords = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in parameters(sbis)[1:]]
    assert shown[3 : -len(NEW)] == keywords
    assert [p.name for p in shown[-len(NEW) :]] == NEW
    assert {p.kind for p in shown[-len(NEW) :]} == {Parameter.KEYWORD_ONLY}
    assert ours.return_annotation == sbis.return_annotation


@pytest.mark.parametrize("name", METHODS)
def test_sbis_own_class_shows_its_own_and_ours_while_it_is_patched(name):
    before = inspect.signature(getattr(sbi.inference, name).train)
    with patch_sbi():
        patched = inspect.signature(getattr(sbi.inference, name).train)
    own = len(before.parameters)
    assert parameters(patched)[:own] == parameters(before)
    new = parameters(patched)[own:]
    assert [p.name for p in new] == ["train_config", "loss_args", *NEW]
    assert {p.kind for p in new} == {Parameter.KEYWORD_ONLY}
    assert inspect.signature(getattr(sbi.inference, name).train) == before


@pytest.mark.parametrize("name", METHODS)
def test_everything_that_a_signature_shows_is_taken(name):
    """The error for an unknown argument lists what is accepted: exactly that."""
    cls = getattr(sbi_ignite.inference, name)
    with pytest.raises(TypeError) as error:
        object.__new__(cls).train(nonsense=1)
    accepted = str(error.value).split("Accepted: ")[1].rstrip(".").split(", ")
    assert sorted(accepted) == sorted(list(inspect.signature(cls.train).parameters)[1:])


def test_help_names_the_class_and_pfn_takes_nothing():
    assert sbi_ignite.NPE.train.__qualname__ == "NPE_C.train"
    assert sbi_ignite.NPE.train.__doc__ == IgniteTrainer.train.__doc__
    assert list(inspect.signature(sbi_ignite.NPE_PFN.train).parameters) == ["self"]


def test_a_users_subclass_shows_what_it_defines_or_inherits():
    class Inherits(sbi_ignite.NRE):
        pass

    class Defines(sbi_ignite.NRE):
        def train(self, one=1):  # type: ignore[override]
            return super().train(max_num_epochs=one)

    assert inspect.signature(Inherits.train) == inspect.signature(sbi_ignite.NRE.train)
    assert list(inspect.signature(Defines.train).parameters) == ["self", "one"]


def forms(name: str) -> list[ast.FunctionDef]:
    """Return the overloads of one trainer's `train()` in the file that type checkers read."""
    tree = ast.parse(stubs.PATH.read_text(encoding="utf-8"))
    (cls,) = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name]
    return [node for node in cls.body if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("name", METHODS)
def test_what_type_checkers_read_has_the_parameters_of_both_signatures(name):
    typed, legacy = forms(name)
    ours = inspect.signature(getattr(sbi_ignite.inference, name).train)
    with patch_sbi():
        sbis = inspect.signature(getattr(sbi.inference, name).train)
    for form, signature in ((typed, ours), (legacy, sbis)):
        either = [p.name for p in parameters(signature) if p.kind == p.POSITIONAL_OR_KEYWORD]
        keyword = [p.name for p in parameters(signature) if p.kind == p.KEYWORD_ONLY]
        assert [a.arg for a in form.args.args] == either
        assert [a.arg for a in form.args.kwonlyargs] == keyword
    defaults = [p.default for p in parameters(sbis)[1 : len(legacy.args.args)]]
    assert [ast.literal_eval(d) for d in legacy.args.defaults] == defaults


def test_what_type_checkers_read_is_what_the_installed_sbi_has():
    """If not, `python -m tests.typing.stubs` writes it anew."""
    pytest.importorskip("ruff")
    assert stubs.PATH.read_text(encoding="utf-8") == stubs.formatted(stubs.stub())
    written = stubs.LOSS_ARGS_PATH.read_text(encoding="utf-8")
    assert written == stubs.formatted(stubs.loss_args_stub())


# --- in an environment of a user's own


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A fresh environment with an editable install, and a user's script beside it.

    The installed dependencies are lent to it by a path, for they are large.
    """
    folder = tmp_path_factory.mktemp("project")
    venv.create(folder / ".venv", with_pip=False, symlinks=True)
    place = folder / ".venv"
    python = place / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    site = sysconfig.get_path("purelib", "venv", {"base": str(place), "platbase": str(place)})
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    done = subprocess.run(
        [*command, "--no-deps", "--editable", str(ROOT)], capture_output=True, text=True
    )
    if done.returncode and "hatchling" in done.stderr:
        pytest.skip(f"hatchling cannot be had here: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    lent = [path for path in sys.path if path.endswith("site-packages")]
    (Path(site) / "lent.pth").write_text("\n".join(lent) + "\n")
    (folder / "user.py").write_text(USER.read_text(encoding="utf-8"), encoding="utf-8")
    return folder, python, Path(site)


WRONG = [i for i, line in enumerate(USER.read_text().splitlines(), 1) if line.endswith("# wrong")]


@pytest.mark.slow
def test_an_editable_install_is_a_plain_path_that_editors_follow(project):
    """Nothing that runs code is put in the way, and the package's files are found by it."""
    _, _, site = project
    (path,) = [p for p in site.glob("*.pth") if p.name not in ("lent.pth",)]
    assert path.read_text().strip() == str(ROOT)


@pytest.mark.slow
def test_pyright_finds_a_users_mistakes_and_nothing_else(project):
    pytest.importorskip("pyright", reason="pyright is not installed")
    folder, python, _ = project
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", str(python)]
    done = subprocess.run([*command, "user.py"], cwd=folder, capture_output=True, text=True)
    if "{" not in done.stdout:
        pytest.skip(f"pyright cannot run here (it needs node): {done.stderr[-200:]}")
    said = json.loads(done.stdout[done.stdout.index("{") :])["generalDiagnostics"]
    assert sorted({d["range"]["start"]["line"] + 1 for d in said}) == WRONG, said


@pytest.mark.slow
def test_mypy_finds_a_users_mistakes_and_nothing_else(project):
    pytest.importorskip("mypy", reason="mypy is not installed")
    folder, python, _ = project
    command = [sys.executable, "-m", "mypy", "--python-executable", str(python), "user.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    said = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert all(line.startswith("user.py:") for line in said), done.stdout
    assert sorted({int(line.split(":")[1]) for line in said}) == WRONG, done.stdout
