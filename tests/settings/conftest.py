"""An environment without our variables, and short ways to say something in it or in a file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("SBI_IGNITE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set variables by their names without the prefix."""

    def put(**variables: str) -> None:
        for name, text in variables.items():
            monkeypatch.setenv(f"SBI_IGNITE_{name}", text)

    return put


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Write a settings file and name it in the environment."""

    def write(text: str) -> Path:
        path = tmp_path / "settings.toml"
        path.write_text(text, encoding="utf-8")
        monkeypatch.setenv("SBI_IGNITE_CONFIG", str(path))
        return path

    return write
