"""The Python source that the zoo is trained on, and the modules that are never used for training.

Knows where source is on this machine, which packages may be used and why, what is held out, and how
duplicates are found; knows nothing about tokens, models or training.
"""

from __future__ import annotations

import argparse
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

#: The four modules of the headline score.
HEADLINE = ("heapq", "textwrap", "statistics", "shutil")
#: Held out of training with their tests, copies and twins. Of different kinds on purpose:
#: algorithms, numbers, formats, text, scheduling, code generation.
HELD_OUT = (
    *HEADLINE,
    "bisect",
    "calendar",
    "colorsys",
    "configparser",
    "csv",
    "dataclasses",
    "difflib",
    "fractions",
    "graphlib",
    "queue",
    "sched",
    "shlex",
    "string",
)

#: Packages that may be trained on when they are installed: import name to (mix, licence).
#: Weak copyleft (hypothesis, certifi and pathspec are MPL-2.0) and code shipped without a clear
#: licence are absent on purpose.
PACKAGES: dict[str, tuple[str, str]] = {
    "numpy": ("science", "BSD-3-Clause"),
    "networkx": ("science", "BSD-3-Clause"),
    "sympy": ("science", "BSD-3-Clause"),
    "mpmath": ("science", "BSD-3-Clause"),
    "pandas": ("science", "BSD-3-Clause"),
    "torch": ("ml", "BSD-3-Clause"),
    "transformers": ("ml", "Apache-2.0"),
    "huggingface_hub": ("ml", "Apache-2.0"),
    "safetensors": ("ml", "Apache-2.0"),
    "tokenizers": ("ml", "Apache-2.0"),
    "plotly": ("ml", "MIT"),
    "narwhals": ("ml", "MIT"),
    "IPython": ("general", "BSD-3-Clause"),
    "anyio": ("general", "MIT"),
    "argon2": ("general", "MIT"),
    "arrow": ("general", "Apache-2.0"),
    "asttokens": ("general", "Apache-2.0"),
    "attr": ("general", "MIT"),
    "bleach": ("general", "Apache-2.0"),
    "bs4": ("general", "MIT"),
    "cffi": ("general", "MIT"),
    "click": ("general", "BSD-3-Clause"),
    "comm": ("general", "BSD-3-Clause"),
    "coverage": ("general", "Apache-2.0"),
    "dateutil": ("general", "Apache-2.0"),
    "debugpy": ("general", "MIT"),
    "defusedxml": ("general", "PSF-2.0"),
    "executing": ("general", "MIT"),
    "fastjsonschema": ("general", "BSD-3-Clause"),
    "filelock": ("general", "MIT"),
    "fsspec": ("general", "BSD-3-Clause"),
    "h11": ("general", "MIT"),
    "hatchling": ("general", "MIT"),
    "httpcore": ("general", "BSD-3-Clause"),
    "httpx": ("general", "BSD-3-Clause"),
    "ipykernel": ("general", "BSD-3-Clause"),
    "ipywidgets": ("general", "BSD-3-Clause"),
    "jedi": ("general", "MIT"),
    "jinja2": ("general", "BSD-3-Clause"),
    "json5": ("general", "Apache-2.0"),
    "jsonpointer": ("general", "BSD-3-Clause"),
    "jsonschema": ("general", "MIT"),
    "jupyter_client": ("general", "BSD-3-Clause"),
    "jupyter_core": ("general", "BSD-3-Clause"),
    "jupyter_events": ("general", "BSD-3-Clause"),
    "jupyter_lsp": ("general", "BSD-3-Clause"),
    "jupyter_server": ("general", "BSD-3-Clause"),
    "jupyterlab": ("general", "BSD-3-Clause"),
    "jupyterlab_server": ("general", "BSD-3-Clause"),
    "lark": ("general", "MIT"),
    "markdown_it": ("general", "MIT"),
    "mistune": ("general", "BSD-3-Clause"),
    "mypy": ("general", "MIT"),
    "mypyc": ("general", "MIT"),
    "nbclient": ("general", "BSD-3-Clause"),
    "nbconvert": ("general", "BSD-3-Clause"),
    "nbformat": ("general", "BSD-3-Clause"),
    "packaging": ("general", "BSD-2-Clause"),
    "parso": ("general", "MIT"),
    "pexpect": ("general", "ISC"),
    "pip": ("general", "MIT"),
    "platformdirs": ("general", "MIT"),
    "pluggy": ("general", "MIT"),
    "prometheus_client": ("general", "Apache-2.0"),
    "prompt_toolkit": ("general", "BSD-3-Clause"),
    "psutil": ("general", "BSD-3-Clause"),
    "ptyprocess": ("general", "ISC"),
    "pycparser": ("general", "BSD-3-Clause"),
    "pydantic": ("general", "MIT"),
    "pygments": ("general", "BSD-2-Clause"),
    "_pytest": ("general", "MIT"),
    "referencing": ("general", "MIT"),
    "requests": ("general", "Apache-2.0"),
    "rich": ("general", "MIT"),
    "setuptools": ("general", "MIT"),
    "terminado": ("general", "BSD-2-Clause"),
    "tornado": ("general", "Apache-2.0"),
    "traitlets": ("general", "BSD-3-Clause"),
    "typer": ("general", "MIT"),
    "urllib3": ("general", "MIT"),
    "uvicorn": ("general", "BSD-3-Clause"),
    "wcwidth": ("general", "MIT"),
    "websocket": ("general", "Apache-2.0"),
    "xdist": ("general", "MIT"),
    "yaml": ("general", "MIT"),
    "zmq": ("general", "BSD-3-Clause"),
}

# Folders without hand-written modern code: character tables, topics of `help()`, generated classes,
# tests of packages (the standard library's own tests are a separate mix).
_SKIPPED_FOLDERS = {
    "__pycache__",
    "site-packages",
    "encodings",
    "pydoc_data",
    "lib2to3/tests/data",
    "graph_objs",
    "validators",
    "package_data",
    "tests",
    "testing_data",
    "_antlr",
    "locale-data",
    "_vendored",
    "_vendor",
    "typeshed",
    "bad_coding",
    "cjkencodings",
}
_GENERATED = re.compile(
    r"auto-?generated|automatically generated|do not (?:edit|modify)|code generated|"
    r"generated (?:by|from|with|using) ",
    re.IGNORECASE,
)
_MAX_BYTES = 160_000
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Document:
    """One source file; `mix` is its part of the training mix."""

    mix: str
    package: str
    name: str
    text: str


def standard_library() -> Path:
    """The standard library of the running Python."""
    return Path(sysconfig.get_path("stdlib"))


def held_out_path(module: str) -> Path:
    """The source file of a held-out module of the standard library."""
    return standard_library() / f"{module}.py"


def held_out_name(stem: str) -> bool:
    """Whether a file with this stem is a held-out module, its test or, by name, a twin of it."""
    bare = stem.lower().strip("_")
    if bare.startswith("test_"):
        bare = bare[len("test_") :]
    if bare.startswith("dataclass_"):
        return True
    for suffix in ("_tests", "_test", "_extended", "_expect"):
        bare = bare.removesuffix(suffix)
    return bare in HELD_OUT or (bare.startswith("py") and bare[2:].strip("_") in HELD_OUT)


def word_grams(text: str, n: int = 13) -> set[int]:
    """Hashes of the runs of `n` words and signs in `text`, whatever its spacing."""
    words = _WORD.findall(text)
    return {hash(tuple(words[i : i + n])) for i in range(len(words) - n + 1)}


def data_lines(lines: Sequence[str]) -> list[bool]:
    """Which lines are data rather than code: very long, or almost without letters."""
    flags = []
    for line in lines:
        bare = line.strip()
        letters = sum(ch.isalpha() and ch.isascii() for ch in bare)
        digits = sum(ch.isdigit() for ch in bare)
        escapes = bare.count("\\x") + bare.count("\\u") + bare.count("0x")
        flags.append(
            len(bare) > 400
            or (len(bare) > 20 and (digits > letters or escapes > 4))
            or sum(not ch.isascii() for ch in bare) > 20
        )
    return flags


def clean(text: str) -> str | None:
    """`text` without long runs of data, or None if little else would remain."""
    lines = text.replace("\r\n", "\n").split("\n")
    if _GENERATED.search("\n".join(lines[:12])):
        return None
    flags = data_lines(lines)
    if sum(flags) > 0.25 * len(lines):
        return None
    kept: list[str] = []
    run = 0
    for line, is_data in zip(lines, flags, strict=True):
        run = run + 1 if is_data else 0
        if run <= 4 and len(line) <= 1000:
            kept.append(line.rstrip())
    return "\n".join(kept).strip("\n") + "\n"


def _source_files(root: Path) -> Iterator[Path]:
    files = [root] if root.is_file() else sorted(root.rglob("*.py"))
    for path in files:
        folders = set(path.relative_to(root).parts[:-1]) if path != root else set()
        if not folders & _SKIPPED_FOLDERS:
            yield path


def _candidates() -> Iterator[tuple[str, str, str, Path]]:
    """(mix, package, name, path) of every file that may be used, preferred ones first: of two
    duplicates the earlier is kept."""
    root = standard_library()
    for path in _source_files(root):
        name = path.relative_to(root).as_posix()
        top = name.split("/", maxsplit=1)[0]
        is_test = top == "test" or "/test/" in name or "_test" in top
        mix = "stdlib_tests" if is_test else "stdlib"
        yield mix, "python", name, path
    seen: set[Path] = set()
    for place in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        for package, (mix, _licence) in PACKAGES.items():
            folder = Path(place) / package
            if folder in seen or not folder.is_dir():
                continue
            seen.add(folder)
            for path in _source_files(folder):
                yield mix, package, f"{package}/{path.relative_to(folder).as_posix()}", path


def collect() -> list[Document]:
    """The training corpus: clean, without duplicates, without any held-out text."""
    forbidden: set[int] = set()
    for module in HELD_OUT:
        forbidden |= word_grams(held_out_path(module).read_text(encoding="utf-8"))
    shingles: set[int] = set()
    documents: list[Document] = []
    for mix, package, name, path in _candidates():
        if held_out_name(path.stem) or path.stat().st_size > _MAX_BYTES + 90_000 * (
            mix == "stdlib"
        ):
            continue
        try:
            text = clean(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, OSError):
            continue
        if text is None or len(text) < 200:
            continue
        if len(word_grams(text) & forbidden) > 20:
            continue  # a copy of a held-out text, under another name
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        own = {hash(tuple(lines[i : i + 3])) for i in range(len(lines) - 2)}
        if len(own & shingles) > 0.4 * len(own):
            continue  # a near duplicate of an earlier document
        shingles |= own
        documents.append(Document(mix, package, name, text))
    return documents


def main(argv: Sequence[str] | None = None) -> int:
    """Print the contents of the corpus on this machine."""
    parser = argparse.ArgumentParser(prog="minserve.zoo.corpus.source", description=main.__doc__)
    parser.add_argument("--files", action="store_true", help="list every file")
    args = parser.parse_args(argv)
    documents = collect()
    sizes: dict[tuple[str, str], tuple[int, int]] = {}
    for document in documents:
        files, size = sizes.get((document.mix, document.package), (0, 0))
        sizes[document.mix, document.package] = files + 1, size + len(document.text.encode())
        if args.files:
            print(document.mix, document.name)
    for (mix, package), (files, size) in sorted(sizes.items()):
        licence = PACKAGES[package][1] if package in PACKAGES else "PSF-2.0"
        print(f"{mix:13} {package:20} {licence:13} {files:5} files {size / 1e6:7.2f} MB")
    total = sum(size for _, size in sizes.values())
    print(f"{len(documents)} files, {total / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
