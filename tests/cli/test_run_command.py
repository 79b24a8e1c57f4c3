"""`sbi-ignite run` runs a script as python does, and the bare form stays what it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import forking
from tests.cli.terminal import INSTALLED, in_terminal, piped
from tests.small import environment, python_path

SHOW = """\
import json, sys
print(json.dumps({"argv": sys.argv, "path": sys.path[0], "name": __name__}))
import sbi.training  # which the patch offers
import pickle
class Mine: pass
pickle.loads(pickle.dumps(Mine()))
"""
ARGUMENTS = ("one", "--two", "-m", "three", "--help", "--", "--json", "--", "-h")
WITHOUT_TYPER = """
import sys
for name in ("typer", "rich", "tomlkit"):
    sys.modules[name] = None
from sbi_ignite.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere" / "some_script.py"
    path.parent.mkdir()
    path.write_text(SHOW)
    return path


def told(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[0])


def test_a_script_gets_all_its_arguments_untouched_and_its_own_folder_first(script):
    found = told(piped("run", str(script), *ARGUMENTS))
    assert found == {
        "argv": [str(script), *ARGUMENTS],
        "path": str(script.parent),
        "name": "__main__",
    }


def test_a_module_gets_all_its_arguments_untouched_and_the_current_folder_first(script):
    os.chdir(script.parent)
    found = told(piped("run", "-m", "some_script", *ARGUMENTS))
    assert found["argv"] == [str(script), *ARGUMENTS]
    assert found["path"] == str(script.parent)


@pytest.mark.parametrize(
    ("text", "code"), [("import sys; sys.exit(7)", 7), ("raise SystemExit('no luck')", 1)]
)
def test_the_exit_code_is_the_scripts(script, text, code):
    script.write_text(text)
    assert piped("run", str(script)).returncode == code


def test_an_error_is_the_traceback_of_python_without_typers(script):
    script.write_text("def f():\n    return 1 / 0\nf()\n")
    done = piped("run", str(script))
    assert done.returncode == 1
    assert 'some_script.py", line 2, in f' in done.stderr
    assert done.stderr.rstrip().endswith("ZeroDivisionError: division by zero")
    assert "typer" not in done.stderr
    assert "click" not in done.stderr


def test_ctrl_c_ends_a_script_as_under_python(script):
    """By the signal itself, with python's own traceback, not as "Aborted!".

    A python of its own: torch._dynamo, once imported, makes python exit with 1 instead.
    """
    script.write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-c", INSTALLED, "run", str(script)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert "Aborted" not in err


@pytest.mark.parametrize(
    "arguments", [("run",), ("run", "no_such_script.py"), ("run", "--nonsense", "a.py"), ("nope",)]
)
def test_a_wrong_command_line_is_code_2_without_a_traceback(arguments):
    done = piped(*arguments)
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_the_bare_form_works_without_typer_and_commands_say_what_they_need(script):
    found = told(forking.run("-c", WITHOUT_TYPER, str(script), *ARGUMENTS))
    assert found["argv"] == [str(script), *ARGUMENTS]
    done = forking.run("-c", WITHOUT_TYPER, "show")
    assert done.returncode == 1
    assert "pip install typer rich tomlkit" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_wins_over_a_script_of_its_name_and_says_so(script):
    """What a command does does not depend on the files in the current folder."""
    os.chdir(script.parent)
    Path("show").write_text("print('the script')")
    done = forking.run("-m", "sbi_ignite", "show")
    assert done.returncode == 1
    assert "for the script, say ./show" in done.stderr
    assert "no runs in" in done.stderr
    assert forking.run("-m", "sbi_ignite", "./show").stdout == "the script\n"
    assert forking.run("-m", "sbi_ignite", "run", "show").stdout == "the script\n"


def test_help_and_version():
    done = piped("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("run", "settings", "show", "doctor"))
    assert piped("-h").stdout == done.stdout
    assert "--plot" in piped("show", "-h").stdout
    assert piped("--version").stdout.strip() == python_version_of_package()
    assert piped().returncode == 2


def python_version_of_package() -> str:
    from sbi_ignite import __version__

    return __version__


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_made_for_the_shell(shell):
    done = piped(_SBI_IGNITE_COMPLETE=f"source_{shell}")
    assert done.returncode == 0, done.stderr
    assert "_SBI_IGNITE_COMPLETE" in done.stdout
    assert "sbi-ignite" in done.stdout


def test_commands_and_options_are_completed():
    """By the words that bash hands over."""

    def completed(words: str, number: int) -> list[str]:
        done = piped(_SBI_IGNITE_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(number))
        return done.stdout.split()

    assert completed("sbi-ignite s", 1) == ["settings", "show"]
    assert "--watch" in completed("sbi-ignite show --w", 2)


def test_bash_completes_with_the_script(tmp_path):
    """As a user's shell does: source the script, then ask for completions of `sbi-ignite do`."""
    command = tmp_path / "sbi-ignite"
    command.write_text(f"#!{sys.executable}\n{INSTALLED.replace('; ', chr(10))}\n")
    command.chmod(0o755)
    source = piped(_SBI_IGNITE_COMPLETE="source_bash").stdout
    test = f"""{source}
COMP_WORDS=(sbi-ignite do); COMP_CWORD=1
_sbi_ignite_completion sbi-ignite; echo "${{COMPREPLY[@]}}"
"""
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", test],
        env={**os.environ, "PYTHONPATH": python_path(), "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == "doctor", done.stderr


def test_help_in_a_terminal_fits_it():
    shown = in_terminal("show", "--help", columns=64)
    assert shown.code == 0
    assert max(map(len, shown.text.splitlines())) <= 64
    assert "--plot" in shown.text
    assert "Exit code 1" in " ".join(shown.text.split())


def test_the_installed_script_is_the_function_that_these_tests_call():
    import importlib

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    from tests.small import ROOT

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["sbi-ignite"].partition(":")
    assert f"from {module} import {name} as c" in INSTALLED
    assert callable(getattr(importlib.import_module(module), name))
