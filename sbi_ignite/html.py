"""Tables for notebooks."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def table(title: str, rows: Iterable[tuple[str, ...]]) -> str:
    """Return an HTML table.

    Args:
        title: Its caption.
        rows: Texts, the first of a row being its name; they are escaped here.

    Example:
        >>> table("T", [("a", "<1>")])
        '<table><caption>T</caption><tr><th>a</th><td>&lt;1&gt;</td></tr></table>'
    """
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(c)}</td>' for c in cells)}</tr>"
        for name, *cells in rows
    )
    return f"<table><caption>{escape(title)}</caption>{body}</table>"
