"""Types are part of the product: pyright reads tests/typing/api.py without a complaint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import sbi_ignite
from tests.small import ROOT

API = Path(__file__).with_name("api.py")


def pyright(path: Path, tmp_path: Path) -> list[str]:
    """Return pyright's errors about a file."""
    pytest.importorskip("pyright", reason="pyright is not installed")
    (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    settings = tmp_path / "pyrightconfig.json"
    settings.write_text(
        json.dumps(
            {
                "include": [path.name],
                "extraPaths": [str(ROOT)],
                "pythonVersion": "3.10",
                "typeCheckingMode": "standard",
                "reportUnnecessaryTypeIgnoreComment": "error",
            }
        )
    )
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(
        [*command, "-p", str(settings)], capture_output=True, text=True, timeout=280
    )
    try:
        report = json.loads(done.stdout[done.stdout.index("{") :])
    except ValueError:
        pytest.skip(f"pyright cannot run here (it needs node): {done.stderr[-200:]}")
    assert report["summary"]["filesAnalyzed"] >= 1
    return [
        f"{d['range']['start']['line'] + 1}: {d['message']}"
        for d in report["generalDiagnostics"]
        if d["severity"] == "error"
    ]


def test_a_type_checker_understands_the_public_interface(tmp_path):
    """Right calls pass, wrong ones are errors, and results have the types they are said to have."""
    assert pyright(API, tmp_path) == []


def test_the_package_says_that_it_is_typed():
    assert (Path(sbi_ignite.__file__).parent / "py.typed").exists()
