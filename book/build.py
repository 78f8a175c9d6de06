"""Build the site: pages from chapters and records, Sphinx over them, nothing left over.

No kernel runs, and nothing is loaded from a network: plotly's script comes from its Python package,
once for the whole site. That package ships only the full bundle (4.8 MB, 1.4 MB compressed). The
cartesian bundle, which would do, is published on npm alone, and a build from a fresh clone should
not need a second registry.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from importlib import resources
from pathlib import Path

import nbformat

from book import records
from book.pages import missing, page
from widgets import theme

HERE = Path(__file__).resolve().parent
SITE = records.ROOT / "build" / "book"
MOST_BYTES = 15_000_000
_MAP = re.compile(r"^\s*(?://|/\*)# sourceMappingURL=.*$", re.MULTILINE)
_FUNCTION, _END = '() => {\n"use strict";var Plotly=', "}));"
"""How the function that is all of plotly's script begins, and how the script ends."""
_LEFT_OVER = ("*.map", ".buildinfo", "objects.inv", "*.txt")


class BookError(Exception):
    """The site could not be built; says why."""


def build(site: Path = SITE, *, solutions: bool = True) -> list[str]:
    """Write the site to `site`, in place of an earlier one; returns notes on the build.

    Raises BookError where Sphinx complains, and where `site` holds anything else than a site, which
    is left as it is; RecordError where a chapter has no record that can be read; OSError where the
    site cannot be written.
    """
    if site.exists() and not _is_site(site):
        raise BookError(
            f"{site} holds something else than an earlier site, which would be lost: "
            "name a new or an empty directory"
        )
    with tempfile.TemporaryDirectory(prefix="minserve-book-") as work:
        source, made = Path(work) / "source", Path(work) / "site"
        notes = write_pages(source, solutions=solutions)
        _run_sphinx(source, made)
        strip(made)
        if (size := bytes_of(made)) > MOST_BYTES:
            raise BookError(
                f"the site has {size / 1e6:.1f} MB, expected at most {MOST_BYTES / 1e6:.0f}"
            )
        if site.exists():
            shutil.rmtree(site)
        shutil.copytree(made, site)
    return notes


def _is_site(folder: Path) -> bool:
    """True for an empty directory too."""
    return folder.is_dir() and (
        (folder / "_static" / "book.js").is_file() or not any(folder.iterdir())
    )


def write_pages(source: Path, *, solutions: bool = True) -> list[str]:
    """Everything that Sphinx reads; returns a note for each record of an older chapter."""
    notes = []
    shutil.copytree(HERE / "static", source / "static")
    for name in ("conf.py", "index.md", "glossary.md", "404.md"):
        shutil.copy(HERE / name, source)
    (source / "static" / "lab.css").write_text(
        theme.STYLE.removeprefix("<style>").removesuffix("</style>"), encoding="utf-8"
    )
    script = resources.files("plotly") / "package_data/plotly.min.js"
    (source / "static/plotly.min.js").write_text(
        compiled_once(script.read_text(encoding="utf-8")), encoding="utf-8"
    )
    for path in records.chapters():
        notebook, record = nbformat.read(path, as_version=4), records.load(path.stem)
        nbformat.write(page(notebook, record, solutions=solutions), source / path.name)
        if left := missing(notebook, record):
            notes.append(f"{path.name}: no recording of {len(left)} outputs, shown as text")
        if record.of_older_chapter(notebook):
            notes.append(
                f"{path.name}: its code has changed since {record.date}; to record it again: "
                f".venv/bin/python -m book.record {path.stem.partition('_')[0]}"
            )
    return notes


def compiled_once(script: str) -> str:
    """plotly's script, with parentheses around the function that is all of it.

    V8 compiles a function in parentheses at once, since it is most likely called at once. Without
    them it only skims these megabytes in the background, and compiles them again, in the page's own
    thread, when the function is called: 400 ms of processor time became 225 ms (Chromium). A script
    that is wrapped in another way is returned as it is.
    """
    before, function, body = script.partition(_FUNCTION)
    body, end, after = body.rpartition(_END)
    if not function or not end or after.strip():
        return script
    return f"{before}({function}{body}{_END.replace('}', '})')}{after}"


def _run_sphinx(source: Path, site: Path) -> None:
    try:
        from sphinx.cmd.build import main as sphinx
    except ModuleNotFoundError as error:
        raise BookError(f"{error.name} is not installed: `make book` installs it") from None
    doctrees = source / ".doctrees"
    code = sphinx(
        ["-q", "-W", "--keep-going", "-b", "html", "-d", str(doctrees), str(source), str(site)]
    )
    if code:
        raise BookError("Sphinx has complained: see above")


def strip(site: Path) -> None:
    """Take away what only developers of the theme need: maps of its sources, inventories."""
    shutil.rmtree(site / "_sources", ignore_errors=True)
    for pattern in _LEFT_OVER:
        for path in site.rglob(pattern):
            path.unlink()
    for path in [*site.rglob("*.js"), *site.rglob("*.css")]:
        text = path.read_text(encoding="utf-8")
        if "sourceMappingURL" in text:
            path.write_text(_MAP.sub("", text), encoding="utf-8")


def bytes_of(site: Path) -> int:
    """Of all files together."""
    return sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
