"""Write the pages that follow from the package, and make of sources what only built pages show.

Those pages are written before Sphinx reads the others, and not kept in git. A public name that is
added to `sbi_ignite/__init__.py` appears by itself, on the page of the module that it comes from.
"""

from __future__ import annotations

import inspect
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import sbi_ignite
from sbi_ignite.settings import (
    EarlyStopping,
    LoggingConfig,
    LRSchedule,
    Stage,
    TrainConfig,
    WeightAveraging,
)
from sbi_ignite.settings.base import Settings
from sbi_ignite.settings.field_types import NO_LIMIT
from sbi_ignite.settings.redaction import in_words
from sbi_ignite.settings.serialization import clock
from sbi_ignite.settings.sources import GROUPS, valid_variables

ROOMS = {
    "inference": ("trainers", "Trainers", "The trainers of sbi.inference, under the same names."),
    "settings": (
        "settings-classes",
        "Settings",
        "Frozen values, checked on construction. [All fields with their variables](settings.md) "
        "are on a page of their own.",
    ),
    "methods": ("loss-arguments", "Loss arguments", "What the loss of each method takes."),
    "training": ("running", "Training any module", "Training without sbi's trainers."),
    "bridge.learning_rate": ("learning-rate", "Learning-rate test", "A rate to begin with."),
    "runs": ("runs", "Runs", "Reading back what a run directory holds."),
    "bridge.load": ("runs", "", ""),
    "callback": ("callbacks", "Callbacks", "What user code may read from a running training."),
    "summary": ("summary", "Summary", "What a training did."),
    "bridge.patch": ("patching", "Patching sbi", "For scripts that are not to be changed."),
    "exceptions": (
        "errors",
        "Errors",
        "Each error is an `SbiIgniteError` and the built-in that a caller would expect.",
    ),
}
"""By the module of a name: its page's file, title and first sentence."""

FIRST_IN_REFERENCE = ("settings", "trainers", "settings-classes", "loss-arguments")
"""Pages of the reference that others follow by name."""

EXAMPLES = Path(__file__).parents[2] / "examples"
PAGE_ITEM = re.compile(r"^\* \[.+?\]\(([\w/-]+)\.md\)", re.MULTILINE)
SCRIPT_ITEM = re.compile(
    r"^\* \[`\w+\.py`\]\(\.\./examples/(?P<script>\w+\.py)\): (?P<shows>.+(?:\n  .+)*)\n",
    re.MULTILINE,
)
NOTEBOOK = re.compile(r"\]\(\.\./examples/(\w+)\.ipynb\)")
"""What stands in the sources, which read well by themselves: items of lists, links to notebooks."""

LITERAL = re.compile(r'(<span class="pre">)([^<]{14,})')
PART_END = re.compile(r"(_+|/|::|\.|\(|=)(?=\w)")

NESTED = {"lr_schedule": LRSchedule, "averaging": WeightAveraging}
"""Fields whose own fields have variables, too."""


def room_of(name: str) -> tuple[str, str, str]:
    """Return file, title and first sentence of the page that a public name is on.

    Args:
        name: A public name of the package.

    Returns:
        Those of its module, else of the package that the module is in, else made of its name.
    """
    module = sbi_ignite._MODULE_OF[name]
    top = module.split(".")[0]
    room = ROOMS.get(module) or ROOMS.get(top)
    return room or (top, top.replace("_", " ").capitalize(), "")


def pages() -> dict[str, str]:
    """Return the text of every generated page by its file's name without suffix."""
    names: dict[str, list[str]] = defaultdict(list)
    for name in sbi_ignite.__all__:
        if name != "__version__":
            names[room_of(name)[0]].append(name)
    return {
        "settings": settings_page(),
        **{file: "\n".join(reference_page(file, names[file])) for file in sorted(names)},
    }


def reference_page(file: str, names: list[str]) -> Iterator[str]:
    """Yield the lines of the page of one room.

    Args:
        file: Its file's name.
        names: The public names on it.
    """
    _, title, sentence = next(room for room in map(room_of, names) if room[1])
    yield from (f"# {title}", "", sentence, "")
    for name in names:
        value = getattr(sbi_ignite, name)
        yield f"## {name}\n"
        if getattr(value, "__name__", name) != name:  # NPE is NPE_C
            yield f"Another name of [{value.__name__}](#{value.__name__.lower()}).\n"
        else:
            yield from documented(name, value)


def documented(name: str, value: Any) -> Iterator[str]:
    """Yield the lines that document one name."""
    yield "```{eval-rst}"
    yield ".. currentmodule:: sbi_ignite"
    if not inspect.isclass(value):
        yield f".. autofunction:: {name}"
    elif issubclass(value, BaseException):
        yield f".. autoexception:: {name}"
    else:
        yield f".. autoclass:: {name}"
        members = own_members(value)
        if members:
            yield f"   :members: {', '.join(members)}"
    yield "```\n"
    if inspect.isclass(value) and issubclass(value, Settings) and "Args:" not in value.__doc__:
        yield from fields_table(value)


def own_members(cls: type) -> list[str]:
    """Return the public methods and properties that a class of ours defines itself."""
    if cls.__module__ == "sbi_ignite.inference.trainers":
        return ["train"]
    return [
        name
        for name, member in vars(cls).items()
        if (not name.startswith("_") and isinstance(member, staticmethod | classmethod | property))
        or (inspect.isfunction(member) and not name.startswith("_"))
    ]


def settings_page() -> str:
    """Return the page of all settings, with the variable and the key of each."""
    groups = list(GROUPS.items())
    lines = [
        "# All settings",
        "",
        "Made from the settings classes of this version. [How to set them](../how-to/settings.md) "
        "says which source wins. In a file, a group is a table: `[train]`, `[early_stopping]`, "
        "`[logging]`, `[checkpoint]`.",
        "",
    ]
    for group, cls in groups:
        lines += [f"## {cls.__name__}, table `[{group}]`", ""]
        lines += fields_table(cls, f"SBI_IGNITE_{group}__".upper())
        if cls.aliases:
            other = ", ".join(f"`{alias}` for `{own}`" for alias, own in cls.aliases.items())
            lines += [f"Other names: {other}.", ""]
        if cls in (EarlyStopping, LoggingConfig):
            lines += list(takes_table(cls))
        if cls is TrainConfig:
            for field, nested in NESTED.items():
                lines += [f"### {nested.__name__}, for `{field}`", ""]
                lines += fields_table(nested, f"SBI_IGNITE_{group}__{field}__".upper())
            lines += ["### Stage, for `stages`", ""]
            lines += [
                "`SBI_IGNITE_TRAIN__STAGES` takes a list of stages as JSON: "
                '`[{"patience": 5}, {"lr_factor": 0.3}]`.',
                "",
            ]
            lines += fields_table(Stage)
    return "\n".join(lines)


def fields_table(cls: type[Settings], prefix: str = "") -> Iterator[str]:
    """Yield the rows of a table of fields.

    Args:
        cls: The settings class.
        prefix: What precedes a field in its variable; "": no variables are shown.
    """
    known = valid_variables()
    yield "| field | default | meaning |"
    yield "|---|---|---|"
    for name, info in cls.model_fields.items():
        variable = f"{prefix}{name}".upper()
        field = f"`{name}`"
        if prefix:
            field += f"<br>`{variable}`" if variable in known else "<br>from Python only"
        default = "required" if info.is_required() else shown(info.default)
        meaning = (info.description or "").replace("|", "\\|")
        yield f"| {field} | {default} | {meaning} |"
    yield ""


def shown(value: Any) -> str:
    """Return a default as one writes it; a missing limit is said in words."""
    if value == NO_LIMIT:
        return in_words(value)
    return f"`{clock(value)!r}`" if isinstance(value, timedelta) else f"`{value!r}`"


def takes_table(cls: type[EarlyStopping] | type[LoggingConfig]) -> Iterator[str]:
    """Yield the rows of a table of what each kind of a settings class takes."""
    yield f"| {next(iter(cls.model_fields))} | takes |"
    yield "|---|---|"
    for kind, fields in cls.takes.items():
        yield f"| `{kind}` | {', '.join(f'`{field}`' for field in fields)} |"
    yield ""


def write(app: Any) -> None:
    """Write the pages that have changed, and remove those that are no longer made."""
    folder = Path(app.srcdir) / "reference"
    made = pages()
    for old in folder.glob("*.md"):
        if old.stem not in {"index", *made}:
            old.unlink()
    for name, text in made.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    notebooks = Path(app.srcdir) / "notebooks"
    notebooks.mkdir(exist_ok=True)
    for notebook in EXAMPLES.glob("*.ipynb"):
        shutil.copy2(notebook, notebooks)


def section(item: re.Match[str]) -> str:
    """Return the section of an example in the built gallery: its picture and its text.

    Args:
        item: The item of a list in `examples.md` that links to the script and says what it shows.
    """
    script, shows = Path(item["script"]), " ".join(item["shows"].split())
    lines = [f"### {script.stem.replace('_', ' ')}", "", shows, ""]
    lines += ["```bash", f"python examples/{script.name}", "```", ""]
    if (EXAMPLES / "pictures" / f"{script.stem}.png").exists():
        lines += [f"```{{image}} ../examples/pictures/{script.stem}.png"]
        lines += [f":alt: What {script.name} draws", ":width: 480px", "```", ""]
    lines += [f":::{{dropdown}} {script.name}", f"```{{literalinclude}} ../examples/{script.name}"]
    lines += [":language: python", "```", ":::", "", ""]
    return "\n".join(lines)


def contents(*pages: str) -> str:
    """Return what puts pages into the side bar, in this order."""
    return "\n".join(["", "```{toctree}", ":hidden:", ":glob:", "", *pages, "```", ""])


def fill(app: Any, docname: str, source: list[str]) -> None:
    """Make of the lists of links in the sources what only a built page can show.

    Lists of pages become entries of the side bar, scripts become sections with pictures.
    """
    if docname in ("index", "how-to/index"):
        source[0] += contents(*PAGE_ITEM.findall(source[0]))
    elif docname == "reference/index":
        source[0] += "\n```{toctree}\n:glob:\n:maxdepth: 2\n\n"
        source[0] += "\n".join([*FIRST_IN_REFERENCE, "*", "```", ""])
    elif docname == "examples":
        text, _ = SCRIPT_ITEM.subn(section, source[0])
        notebooks = NOTEBOOK.findall(text)
        source[0] = NOTEBOOK.sub(r"](notebooks/\1.ipynb)", text)
        source[0] += contents(*(f"notebooks/{name}" for name in notebooks))
        for script in EXAMPLES.glob("*.py"):
            app.env.note_dependency(script)


def readable(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:  # Sphinx passes them by position
    """Take the marks of Markdown in sbi's own docstrings for what they are.

    Lines of a paragraph that are indented, as in a list of references, follow the first.
    """
    if getattr(obj, "__module__", "") != "sbi_ignite.inference.trainers" or what != "class":
        return
    before = ""
    for number, line in enumerate(lines):
        if line.startswith("Example"):
            break
        if before and not before.endswith(":") and not before.startswith(" "):
            line = line.strip()
        lines[number] = line.replace("*", "\\*")
        before = line


def breakable(app: Any, pagename: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Let long names of files, tests and variables break where their parts end, not in a word."""
    if "body" in context:
        context["body"] = LITERAL.sub(
            lambda found: found[1] + PART_END.sub(r"\g<0><wbr>", found[2]), context["body"]
        )


def setup(app: Any) -> dict[str, bool]:
    """Let Sphinx write the pages before it looks for them."""
    app.connect("builder-inited", write)
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", readable, priority=100)  # before napoleon
    app.connect("html-page-context", breakable)
    return {"parallel_read_safe": True}
