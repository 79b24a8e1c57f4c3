"""Door (c): python -m sbi_ignite runs somebody's script, unchanged, as python would."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import forking
from tests.small import python

SHOW = """\
import json, sys
sys.path.append("the end")
import beside
print(json.dumps({"argv": sys.argv, "path": sys.path[0], "name": __name__, "file": __file__}))
import pickle
class Mine: pass
pickle.loads(pickle.dumps(Mine()))
"""

TRAIN = """\
import json, sys, torch
from sbi.inference import NPE
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform

torch.manual_seed(0)
prior = BoxUniform(-torch.ones(2), torch.ones(2))
theta = prior.sample((80,))
inference = NPE(prior, posterior_nn("maf", hidden_features=6, num_transforms=1))
inference.append_simulations(theta, theta + 0.1 * torch.randn_like(theta))
inference.train(max_num_epochs=1)
summary = getattr(inference, "training_summary", None)
print()
print(json.dumps(None if summary is None else summary.to_dict()))
"""


@pytest.fixture
def script(tmp_path: Path):
    """Write a script with a module beside it, in a folder that is not the current one."""

    def write(text: str) -> Path:
        folder = tmp_path / "elsewhere"
        folder.mkdir(exist_ok=True)
        (folder / "beside.py").write_text("")
        path = folder / "script.py"
        path.write_text(text)
        return path

    return write


def shown(*command: str, begin: Any = python) -> dict[str, object]:
    done = begin(*command)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_script_finds_what_it_would_find_under_python(script):
    """argv, sys.path[0], __name__, __file__, and classes of __main__ that can be pickled."""
    path = str(script(SHOW))
    arguments = ["one", "--two", "-m", "three"]
    expected = shown(path, *arguments)
    assert shown("-m", "sbi_ignite", path, *arguments) == expected
    assert expected["argv"] == [path, *arguments]
    assert expected["path"] == str(Path(path).parent)
    assert expected["name"] == "__main__"


@pytest.mark.slow
def test_a_module_finds_what_it_would_find_under_python(script):
    """`-m module ARG...` sees the current folder first, and its own file as argv[0]."""
    path = script(SHOW)
    path.rename(path.with_name("some_module.py"))
    import os

    os.chdir(path.parent)
    expected = shown("-m", "some_module", "one", "--two")
    found = shown("-m", "sbi_ignite", "-m", "some_module", "one", "--two")
    assert found == expected
    assert found["argv"][1:] == ["one", "--two"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("import sys; sys.exit(7)", 7),
        ("raise SystemExit('no luck')", 1),
    ],
)
def test_exit_codes_are_the_scripts(script, text, code):
    path = str(script(text))
    assert python("-m", "sbi_ignite", path).returncode == code == python(path).returncode


def test_a_traceback_names_the_scripts_line(script):
    done = forking.run("-m", "sbi_ignite", str(script("def f():\n    return 1 / 0\nf()\n")))
    assert done.returncode == 1
    assert "ZeroDivisionError: division by zero" in done.stderr
    assert 'script.py", line 2, in f' in done.stderr


@pytest.mark.parametrize("arguments", [[], ["-m"], ["--nonsense"], ["no_such_script.py"]])
def test_a_wrong_command_line_shows_the_usage(arguments):
    done = forking.run("-m", "sbi_ignite", *arguments)
    assert done.returncode == 2
    assert "usage: python -m sbi_ignite" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["nomodule", "json.nomodule", "xml", "nopackage.module"])
def test_a_module_that_cannot_be_run_is_pythons_line_and_exit_code(name):
    """No traceback, which would be of sbi_ignite."""
    done = forking.run("-m", "sbi_ignite", "-m", name)
    by_python = python("-m", name)
    assert done.returncode == by_python.returncode == 1
    said = by_python.stderr.partition(": ")[2]
    assert done.stderr.splitlines()[-1:] == [f"sbi_ignite: {said.strip()}"]
    assert "Traceback" not in done.stderr


def test_a_folder_without_a_main_module_is_one_line(tmp_path):
    done = forking.run("-m", "sbi_ignite", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("sbi_ignite: can't find '__main__' module in ")
    assert "Traceback" not in done.stderr


def test_a_module_that_a_script_lacks_is_its_own_error(script):
    path = script("import no_such_module_either\n")
    done = forking.run("-m", "sbi_ignite", str(path))
    assert done.returncode == 1
    assert 'script.py", line 1' in done.stderr
    assert done.stderr.endswith("No module named 'no_such_module_either'\n")


def test_help_goes_to_stdout():
    done = forking.run("-m", "sbi_ignite", "--help")
    assert done.returncode == 0
    assert "usage: python -m sbi_ignite" in done.stdout


def test_an_unmodified_script_is_trained_by_sbi_ignite_with_settings_from_the_environment(script):
    """The same file under python alone has no training summary."""
    path = str(script(TRAIN))
    assert shown(path, begin=forking.run) is None
    done = python(
        "-m",
        "sbi_ignite",
        path,
        SBI_IGNITE_TRAIN__LEARNING_RATE="0.004",
        SBI_IGNITE_TRAIN__SBI_COMPAT="false",
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["method"] == "NPE_C"
    assert summary["epochs_trained"] == 1
    assert summary["learning_rate"] == [0.004]
    assert summary["config"]["train"]["learning_rate"]["origin"] == "environment"


def test_a_misspelt_variable_ends_a_script_with_the_valid_names(script):
    """Before it begins: simulations may take hours."""
    path = str(script("print('simulating')"))
    done = python("-m", "sbi_ignite", path, SBI_IGNITE_TRAIN__LEARNINGRATE="1")
    assert done.returncode == 2
    assert not done.stdout
    assert done.stderr.startswith("SettingsError: unknown environment variable")
    assert "Traceback" not in done.stderr
    assert "SBI_IGNITE_TRAIN__LEARNING_RATE" in done.stderr


@pytest.mark.slow
def test_tests_run_as_a_module_with_the_patch_on(script):
    """So runs `python -m sbi_ignite -m pytest`, the way to run somebody's suite."""
    path = script("")
    test = path.with_name("test_patch_is_on.py")
    test.write_text("def test_it():\n    import sbi.training\n")
    done = python("-m", "sbi_ignite", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test))
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    assert sys.executable
