"""The built pages are whole: they need no network, and everything public stands in them."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import sbi_ignite
from sbi_ignite.settings.sources import GROUPS, valid_variables
from tests import forking
from tests.docs.pages import DOCS, PAGES
from tests.small import ROOT

pytest.importorskip("sphinx_book_theme", reason="the documentation needs the extra docs")
pytest.importorskip("myst_nb", reason="the documentation needs the extra docs")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the built pages: those in the folder that BUILT_DOCS names, or new ones."""
    if "BUILT_DOCS" in os.environ:
        return ROOT / os.environ["BUILT_DOCS"]
    folder = tmp_path_factory.mktemp("html")
    done = forking.run(
        *("-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"),
        *("-d", str(folder / "doctrees"), str(DOCS), str(folder / "html")),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "html"


class Page(HTMLParser):
    """What a page loads, links to and offers as targets."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []
        self.targets: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note addresses and targets."""
        has = {name: value or "" for name, value in attrs}
        self.targets.update(has[name] for name in ("id", "name") if has.get(name))
        if tag == "a":
            self.linked.append(has.get("href", ""))
        elif tag == "link" and has.get("rel") not in ("canonical", "search", "index", "next"):
            self.loaded.append(has.get("href", ""))
        self.loaded += [has[name] for name in ("src", "data", "poster") if has.get(name)]


@pytest.fixture(scope="module")
def pages(built: Path) -> dict[Path, Page]:
    """Return every built page."""
    return {path: Page(path) for path in built.rglob("*.html") if "_static" not in path.parts}


def test_every_page_of_the_documentation_is_built(built: Path) -> None:
    written = [page.relative_to(DOCS) for page in PAGES if DOCS in page.parents]
    assert [page for page in written if not (built / page).with_suffix(".html").exists()] == []


def test_nothing_is_loaded_from_a_network(built: Path, pages: dict[Path, Page]) -> None:
    remote = re.compile(r"^(https?:)?//")
    assert {a for page in pages.values() for a in page.loaded if remote.match(a)} == set()
    sheets = [path.read_text(encoding="utf-8") for path in (built / "_static").rglob("*.css")]
    assert [s for s in sheets if re.search(r"(url\(|@import )['\"]?(https?:)?//", s)] == []
    assert sheets


def test_what_pages_load_and_link_to_is_there(pages: dict[Path, Page]) -> None:
    gone = []
    for path, page in pages.items():
        for address in (*page.loaded, *page.linked):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or not address.strip("#"):
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = file in pages and parts.fragment
            if not file.exists() or (known and parts.fragment not in pages[file].targets):
                gone.append(f"{path.name}: {address}")
    assert gone == []


def text_of(folder: Path) -> str:
    """Return the text of the pages of a folder, without tags."""
    html = "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.html")))
    return re.sub(r"<[^>]*>", "", html)


def test_every_public_name_is_in_the_reference(built: Path) -> None:
    targets = "".join(p.read_text(encoding="utf-8") for p in (built / "reference").glob("*.html"))
    names = set(sbi_ignite.__all__) - {"__version__"}
    aliases = {n for n in names if getattr(sbi_ignite, n).__name__ != n}
    assert {n for n in names - aliases if f'id="sbi_ignite.{n}"' not in targets} == set()
    assert aliases == {"NLE", "NPE", "NRE"}


def test_every_setting_stands_in_the_documentation_with_its_variable(built: Path) -> None:
    page = (built / "reference/settings.html").read_text(encoding="utf-8").replace("<wbr>", "")
    text = re.sub(r"<[^>]*>", " ", page)
    words = set(re.findall(r"\w+", text))
    fields = {name for cls in GROUPS.values() for name in cls.model_fields}
    for name in ("LRSchedule", "WeightAveraging", "Stage"):
        fields |= {*getattr(sbi_ignite, name).model_fields}
    assert fields - words == set()
    other_names = {alias.upper() for cls in GROUPS.values() for alias in cls.aliases}
    variables = {v for v in valid_variables() if v.split("__")[-1] not in other_names}
    assert variables - words == {"SBI_IGNITE_CONFIG"}


def test_every_loss_argument_stands_in_the_documentation(built: Path) -> None:
    text = text_of(built / "reference")
    families = [name for name in sbi_ignite.__all__ if name.startswith("LossArgs")]
    fields = {f for name in families for f in getattr(sbi_ignite, name).model_fields}
    assert {field for field in fields if field not in text} == set()
