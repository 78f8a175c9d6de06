"""What a stored chapter must be, rule by rule. Every rule returns sentences; none is good news.

Reads notebooks as JSON and runs nothing.
"""

from __future__ import annotations

import ast
import difflib
import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LABS = ROOT / "labs"

HEADER = ("Question", "Minutes", "Difficulty", "Machine", "Know first", "You will be able to")
TAGS = {"action", "nbval-check-output", "nbval-ignore-output", "nbval-skip", "raises-exception"}
TAGS |= {"shown"}
"""`action`: here the reader does something (runs, guesses, drags, changes and runs again). `shown`:
long code that is shown, because the chapter is about it or the reader changes it. Other
tags are names that a chapter's tests find its cells by, too unlike these to be a slip."""
MAX_WORDS, MAX_WORDS_BETWEEN, MAX_CELLS_BETWEEN = 1200, 150, 3
MAX_LINES_ASKING = 8
MAX_SHOWN_LINES = 12
MAX_BYTES = 500_000

_PATHS = re.compile(r"(/home/|/root/|/tmp/|/work/|/Users/|/usr/|/opt/|[A-Z]:\\\\)[\w.-]+")
_GIVEN_AWAY = re.compile(r"\b(Reason|Answer|Choice|Ledger)\(|\b(correct|feedback|explain)\s*=(?!=)")
_MEASURED = re.compile(r"\d[\d.,]*\s?(ms|µs|seconds|[kMG]?FLOPs?|[kMG]B|tokens/s|x|times)\b")

Notebook = dict[str, Any]


PLAYGROUND = "02_playground"
"""No chapter: it teaches no switch, so it has no question, no signature figure, no recap, and no
notes for a class. What it compares is the reader's choice."""


def notebooks() -> list[Path]:
    """The stored notebooks, in reading order."""
    return sorted(LABS.glob("[0-9][0-9]*_*.ipynb"))


def chapters() -> list[Path]:
    """Those that teach."""
    return [path for path in notebooks() if path.stem != PLAYGROUND]


def read(path: Path) -> Notebook:
    """A notebook as JSON."""
    notebook: Notebook = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def source(cell: Notebook) -> str:
    """A cell's text."""
    return "".join(cell["source"])


def tags(cell: Notebook) -> list[str]:
    """A cell's tags."""
    return list(cell["metadata"].get("tags", []))


def words(cell: Notebook) -> int:
    """Words of prose in a cell, as a reader sees them."""
    if cell["cell_type"] != "markdown":
        return 0
    text = re.sub(r"<[^>]*>|\]\([^)]*\)|^\|[-| ]+\|$", " ", source(cell), flags=re.MULTILINE)
    return len(re.findall(r"[^\W_][\w'’.-]*", text))


def code_cells(notebook: Notebook) -> list[Notebook]:
    """The code cells, in order."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def has_a_header(notebook: Notebook, path: Path) -> Iterator[str]:
    """The first cell says what to expect."""
    first = source(notebook["cells"][0])
    for name in HEADER:
        if f"**{name}" not in first:
            yield f"the header has no “{name}”"
    if "*Run All Cells*" not in first:
        yield "the header does not say to begin with *Run All Cells*"
    if not first.startswith(f"# {path.name.split('_')[0]} · "):
        yield "the title does not begin with the chapter's number"


def is_short(notebook: Notebook, path: Path) -> Iterator[str]:
    """Few words in all, few words and open code cells between two things the reader does."""
    total = sum(words(cell) for cell in notebook["cells"])
    if total > MAX_WORDS:
        yield f"{total} words, more than {MAX_WORDS}"
    since_words = since_cells = 0
    # The header is read before one begins.
    for number, cell in enumerate(notebook["cells"][1:], start=1):
        since_words += words(cell)
        acts = "action" in tags(cell)
        folded = cell["metadata"].get("jupyter", {}).get("source_hidden", False)
        since_cells += cell["cell_type"] == "code" and not (acts or folded)
        if since_words > MAX_WORDS_BETWEEN:
            yield f"cell {number}: {since_words} words since the reader last did something"
        if since_cells > MAX_CELLS_BETWEEN:
            yield f"cell {number}: {since_cells} code cells since the reader last did something"
        if acts or since_words > MAX_WORDS_BETWEEN or since_cells > MAX_CELLS_BETWEEN:
            since_words = since_cells = 0


def is_executed(notebook: Notebook, path: Path) -> Iterator[str]:
    """From a fresh kernel, top to bottom, without an error: a null count is not compared."""
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are {counts}: store it with labs/tools/store.py"
    for cell in code_cells(notebook):
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                yield f"[{cell['execution_count']}] ended in {output['ename']}"
            if output.get("name") == "stderr":
                yield f"[{cell['execution_count']}] wrote to stderr"


def has_compared_facts(notebook: Notebook, path: Path) -> Iterator[str]:
    """Some cells print facts, are tagged for it, and have them stored."""
    compared = [cell for cell in code_cells(notebook) if "nbval-check-output" in tags(cell)]
    if not compared:
        yield "no cell is tagged nbval-check-output"
    for cell in compared:
        if not cell["outputs"]:
            yield f"[{cell['execution_count']}] is compared and has no output"
    for number, cell in enumerate(notebook["cells"]):
        for tag in set(tags(cell)) - TAGS:
            if not tag.isidentifier() or difflib.get_close_matches(tag, TAGS, cutoff=0.7):
                yield f"cell {number} has an unknown tag {tag!r}"


def carries_no_state(notebook: Notebook, path: Path) -> Iterator[str]:
    """No widgets, no timings, no paths of the machine it was stored on."""
    if "widgets" in notebook["metadata"]:
        yield "metadata.widgets is stored: megabytes for every figure"
    for number, cell in enumerate(notebook["cells"]):
        if set(cell["metadata"]) - {"tags", "jupyter"}:
            yield f"cell {number} keeps metadata {sorted(cell['metadata'])}"
        for output in cell.get("outputs", ()):
            if any("widget" in kind for kind in output.get("data", {})):
                yield f"cell {number} stores a widget that nobody can show"
    text = json.dumps(notebook, ensure_ascii=False)
    for found in {match.group(0) for match in _PATHS.finditer(text)}:
        yield f"a path of the machine is stored: {found}"
    host = socket.gethostname()
    if len(host) > 3 and host.lower() != "localhost" and host in text:
        yield "the machine's name is stored"


def is_small(notebook: Notebook, path: Path) -> Iterator[str]:
    """GitHub shows it, and git keeps every version."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        yield f"{size:,} bytes, more than {MAX_BYTES:,}"


def raises_panel_errors_last(notebook: Notebook, path: Path) -> Iterator[str]:
    """nbval cannot see what fails in a thread; the last cell raises it again."""
    last = notebook["cells"][-1]
    if last["cell_type"] != "code" or not re.search(r"^raise_panel_errors\(", source(last), re.M):
        yield "the last cell does not call raise_panel_errors()"


def imports_the_lab_only(notebook: Notebook, path: Path) -> Iterator[str]:
    """Of our own code `minserve` and `widgets`, which a reader has installed."""
    ours = {each.stem for each in (*ROOT.iterdir(), *LABS.rglob("*.py"))} - {"minserve", "widgets"}
    for cell in code_cells(notebook):
        for node in ast.walk(ast.parse(source(cell))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = ["." * node.level + (node.module or "")]
            for name in names:
                if name.startswith(".") or name.split(".")[0] in ours:
                    yield f"[{cell['execution_count']}] imports {name}"


def has_its_figures(notebook: Notebook, path: Path) -> Iterator[str]:
    """Signature figures are declared, exported, and found from `labs/` and from `work/` alike."""
    declared = notebook["metadata"].get("minserve", {}).get("figures", {})
    if not declared:
        yield "no signature figure is declared in metadata.minserve.figures"
    for name in declared:
        if not (LABS / "figures" / f"{name}.svg").is_file():
            yield f"labs/figures/{name}.svg is missing: make figures"
    for cell in notebook["cells"]:
        if cell["cell_type"] != "markdown":
            continue
        for target in re.findall(r'src="([^"]+)"|!\[[^]]*\]\(([^)]+)\)', source(cell)):
            link = next(filter(None, target))
            if not link.startswith("../labs/") or not (LABS / link).resolve().is_file():
                yield f"the picture {link} is not found from both labs/ and work/"


def types_no_measurement(notebook: Notebook, path: Path) -> Iterator[str]:
    """Measured and counted numbers come from the run, never from the keyboard."""
    for number, cell in enumerate(notebook["cells"][1:], start=1):
        if cell["cell_type"] == "markdown":
            for match in _MEASURED.finditer(source(cell)):
                yield f"cell {number} has a typed number: {match.group(0)!r}"


def gives_no_answer_away(notebook: Notebook, path: Path) -> Iterator[str]:
    """Questions, answers and explanations are in labs/questions/, not in front of the reader."""
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code":
            continue
        for match in _GIVEN_AWAY.finditer(source(cell)):
            yield f"cell {number} has {match.group(0)!r}: move it to labs/questions/"
        asks = re.search(r"^(\w+ = )?(Predict|Estimate|Recap)\(", source(cell), re.MULTILINE)
        lines = len(source(cell).strip().splitlines())
        if asks and (lines > MAX_LINES_ASKING or cell["metadata"].get("jupyter")):
            yield (
                f"cell {number} asks something in {lines} lines, or folded: at most "
                f"{MAX_LINES_ASKING}, with what it asks about in a cell before it"
            )


def folds_plumbing(notebook: Notebook, path: Path) -> Iterator[str]:
    """Long code is folded, unless it is there to be read."""
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code":
            continue
        lines, folded = len(source(cell).splitlines()), is_folded(cell)
        if lines > MAX_SHOWN_LINES and not folded and "shown" not in tags(cell):
            yield (
                f"cell {number} shows {lines} lines of code: labs/tools/store.py folds it; tag it "
                "`shown` if the chapter is about this code"
            )
        if folded and "shown" in tags(cell):
            yield f"cell {number} is tagged `shown`, and is folded"


def is_folded(cell: Notebook) -> bool:
    """True where JupyterLab shows the first line of a cell's code only."""
    return bool(cell["metadata"].get("jupyter", {}).get("source_hidden"))


def opens_plainly(notebook: Notebook, path: Path) -> Iterator[str]:
    """Of the playground, in place of a header: what it is, in a sentence, and how to begin."""
    title, *paragraphs = source(notebook["cells"][0]).split("\n\n")
    if not title.startswith(f"# {path.name.split('_')[0]} · "):
        yield "the title does not begin with the notebook's number"
    if not paragraphs or paragraphs[0].count(".") != 1:
        yield "what it is does not stand below the title in one sentence"
    if "Run All Cells" not in " ".join(paragraphs[:2]):
        yield "the top does not say *Run All Cells*"


Rule = Callable[[Notebook, Path], Iterator[str]]
RULES: tuple[Rule, ...] = (
    has_a_header, is_short, is_executed, has_compared_facts, carries_no_state, is_small,
    raises_panel_errors_last, imports_the_lab_only, has_its_figures, types_no_measurement,
    gives_no_answer_away,
    folds_plumbing,
)  # fmt: skip

OF_A_LESSON = (has_a_header, has_its_figures)
"""Rules that only a chapter can keep."""


def rules_for(path: Path) -> tuple[Rule, ...]:
    """The rules of a chapter, or of the playground."""
    if path.stem != PLAYGROUND:
        return RULES
    return (opens_plainly, *(rule for rule in RULES if rule not in OF_A_LESSON))
