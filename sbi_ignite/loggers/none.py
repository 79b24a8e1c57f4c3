"""Numbers come in; nothing goes out."""

from __future__ import annotations

from sbi_ignite.loggers.base import Backend


class Nothing(Backend):
    """Takes everything and keeps nothing: logging is asked for and switched off."""

    name: str = "none"
