"""Short ways to say something in the environment or in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


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
