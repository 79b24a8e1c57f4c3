"""Check that the internals of the installed sbi are known here."""

from __future__ import annotations

from importlib.metadata import version

from sbi_ignite.exceptions import UnsupportedSbiError

SUPPORTED_SBI = "0.27"
"""The release series in which the private names used in this package were read."""


def check_sbi_version() -> None:
    """Refuse to work with a version of sbi that this package does not know.

    Raises:
        UnsupportedSbiError: If the installed sbi belongs to another release series.
    """
    import sbi

    found = getattr(sbi, "__version__", None) or version("sbi")
    if not f"{found}.".startswith(f"{SUPPORTED_SBI}."):
        raise UnsupportedSbiError(
            f"sbi {found} is installed, but this version of sbi_ignite knows sbi {SUPPORTED_SBI}.* "
            f'only. Install one it knows: pip install "sbi=={SUPPORTED_SBI}.*"'
        )
