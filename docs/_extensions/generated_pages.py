"""Write the pages that follow from the package: public names, settings, examples.

Sphinx does so before it reads the pages; they are not kept in git. A public name that is added to
`sbi_ignite/__init__.py` appears by itself, on the page of the module that it comes from.
"""

from __future__ import annotations

import ast
import inspect
import shutil
from collections import defaultdict
from collections.abc import Iterator
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

HOW_TOS = (
    "settings",
    "trackers",
    "recipe",
    "callbacks",
    "own-networks",
    "from-sbi",
    "slurm",
    "many-processes",
    "gpu",
    "files",
    "ensembles",
    "tuning",
    "fine-tuning",
    "check-a-posterior",
    "command-line",
)
"""The order of the how-tos; others follow by name."""

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
        unbounded = info.default == TrainConfig.model_fields["max_epochs"].default
        shown = "2**31 - 1" if unbounded else repr(info.default)
        default = "required" if info.is_required() else f"`{shown}`"
        meaning = (info.description or "").replace("|", "\\|")
        yield f"| {field} | {default} | {meaning} |"
    yield ""


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
    for notebook in (Path(app.srcdir).parent / "examples").glob("*.ipynb"):
        shutil.copy2(notebook, notebooks)


def gallery(folder: Path) -> str:
    """Return a card for each script: what it shows, its picture and its text.

    Args:
        folder: The folder of the examples; pictures are in `pictures/` below it.
    """
    scripts = sorted(folder.glob("*.py"), key=lambda path: (path.stem != "quickstart", path.stem))
    lines = []
    for script in scripts:
        summary = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
        picture = folder / "pictures" / f"{script.stem}.png"
        lines += [f"### {script.stem.replace('_', ' ')}", "", summary.split("\n\n")[0], ""]
        lines += ["```bash", f"python examples/{script.name}", "```", ""]
        if picture.exists():
            name = f"../examples/pictures/{picture.name}"
            lines += [f"```{{image}} {name}", f":alt: What {script.name} draws", ":width: 480px"]
            lines += ["```", ""]
        lines += [
            f":::{{dropdown}} {script.name}",
            f"```{{literalinclude}} ../examples/{script.name}",
        ]
        lines += [":language: python", "```", ":::", ""]
    return "\n".join(lines)


def fill(app: Any, docname: str, source: list[str]) -> None:
    """Put the examples into their page, and the how-tos that are there into theirs."""
    examples = Path(app.srcdir).parent / "examples"
    if docname == "examples":
        source[0] = source[0].replace("GALLERY", gallery(examples))
        for script in examples.glob("*.py"):
            app.env.note_dependency(script)
    if docname != "how-to/index":
        return
    there = {path.stem for path in (Path(app.srcdir) / "how-to").glob("*.md")} - {"index"}
    known = [name for name in HOW_TOS if name in there]
    source[0] = source[0].replace("HOW-TOS", "\n".join([*known, *sorted(there - {*known})]))


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


def setup(app: Any) -> dict[str, bool]:
    """Let Sphinx write the pages before it looks for them."""
    app.connect("builder-inited", write)
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", readable, priority=100)  # before napoleon
    return {"parallel_read_safe": True}
