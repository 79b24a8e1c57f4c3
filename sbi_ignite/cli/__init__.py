"""The command line: a page per command, on typer.

Nothing here is imported before a command is used; `run.py` does without typer.
"""
