"""The package, its pins, the make targets, Binder, the import contracts, and `labs/open_lab.py`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from widgets.panels.exercises.exercise import load_module
from widgets.scoring.progress import Progress
from widgets.scoring.scores import Commit

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
CORE: list[str] = PROJECT["project"]["dependencies"]
JUPYTER = {"jupyterlab", "ipykernel", "ipywidgets", "anywidget", "plotly", "notebook", "ipython"}


def pins(lines: list[str], separator: str = "==") -> dict[str, str]:
    found = {}
    for line in lines:
        text = line.split("#")[0].strip()
        if text:
            name, _, version = text.partition(separator)
            assert version, f"{line!r} is not an exact pin"
            assert canonicalize_name(name) not in found, f"{name} is pinned twice"
            found[canonicalize_name(name)] = version
    return found


CONSTRAINTS = pins((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())


def closure(*extras: str, without: frozenset[str] = frozenset()) -> set[str]:
    """Every package that minserve with these extras brings, as the installed metadata says."""
    todo = [("minserve", extra) for extra in ("", *extras)]
    seen = set(todo)
    while todo:
        name, extra = todo.pop()
        for text in importlib.metadata.distribution(name).requires or []:
            wanted = Requirement(text)
            if wanted.marker and not wanted.marker.evaluate({"extra": extra}):
                continue
            key = canonicalize_name(wanted.name)
            for nested in ("", *wanted.extras):
                if key not in without and (key, nested) not in seen:
                    seen.add((key, nested))
                    todo.append((key, nested))
    return {name for name, _ in seen} - {"minserve"}


def direct(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def test_the_version_is_the_same_everywhere() -> None:
    import minserve

    version = PROJECT["project"]["version"]
    assert minserve.__version__ == version
    assert importlib.metadata.version("minserve") == version
    command = [sys.executable, "-m", "minserve", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.strip() == f"minserve {version}"


def test_every_requirement_is_pinned_to_a_version_it_allows() -> None:
    for text in [
        *CORE,
        *(line for name, lines in EXTRAS.items() if name != "dev" for line in lines),
    ]:
        wanted = Requirement(text)
        if wanted.name == PROJECT["project"]["name"]:
            continue  # an extra that brings another one
        version = CONSTRAINTS[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(Version(version)), f"{text} against {version}"
        assert Version(version).local is None, f"{wanted.name} names one machine's build"


def test_everything_that_dev_brings_is_pinned() -> None:
    assert closure("dev") - CONSTRAINTS.keys() == set()


def test_extras_are_cut_by_use() -> None:
    assert direct(EXTRAS["dev"]) == {"minserve"}
    assert Requirement(EXTRAS["dev"][0]).extras == {"lab", "server", "test"}
    assert closure("server") & JUPYTER == set(), "a server must need no JupyterLab"
    assert {"fastapi", "uvicorn", "prometheus-client"} <= closure("server")
    assert {"fastapi", "uvicorn", "openai"} <= closure("lab"), "chapter 01 starts a server"
    assert closure() & (JUPYTER | {"pandas", "fastapi", "pytest"}) == set()
    assert {"jupyterlab", "ipywidgets", "plotly", "pandas"} <= closure("lab")


def test_binder_pins_the_whole_lab_at_the_same_versions() -> None:
    environment = yaml.safe_load((ROOT / "binder/environment.yml").read_text(encoding="utf-8"))
    by_pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    by_conda = pins([d for d in environment["dependencies"] if "=" in d], separator="=")

    python = Version(by_conda.pop("python"))
    assert f"Programming Language :: Python :: {python}" in PROJECT["project"]["classifiers"]
    by_conda["torch"] = by_conda.pop("pytorch-cpu")
    for name, version in {**by_conda, **pins(by_pip)}.items():
        assert CONSTRAINTS[name] == version, name

    from_conda = frozenset(by_conda)
    expected = closure("lab", without=from_conda | {"triton"}) - from_conda
    assert pins(by_pip).keys() == expected


@pytest.mark.parametrize("name", ["binder/postBuild", "binder/start", ".ci/run"])
def test_scripts_run_as_they_are(name: str) -> None:
    script = ROOT / name
    assert script.stat().st_mode & 0o111, f"{name} is not executable"
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_make_alone_lists_every_target() -> None:
    listing = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.M))
    phony = set(re.findall(r"^\.PHONY: (.*)", makefile, re.M)[0].split())
    assert targets == phony
    assert set(re.findall(r"^  ([a-z][a-z-]*)  ", listing, re.M)) == targets
    for target in targets:
        assert f"\n{target}:" in makefile, f"{target} has no rule"


def test_the_wheel_carries_both_packages_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("minserve-*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())

    expected = {
        path.relative_to(ROOT).as_posix()
        for package in ("minserve", "widgets")
        for suffix in ("py", "js", "json", "safetensors", "md", "cpp", "h")
        for path in (ROOT / package).rglob(f"*.{suffix}")
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    }
    assert expected - inside == set()
    others = {name for name in inside if name.split("/")[0] not in ("minserve", "widgets")}
    version = PROJECT["project"]["version"]
    assert {name for name in others if ".dist-info/" not in name} == {
        f"minserve-{version}.data/data/etc/jupyter/jupyter_server_config.d/minserve.json"
    }


def test_jupyter_is_told_of_the_extension_under_the_name_it_has() -> None:
    settings = json.loads((ROOT / "labs/tools/jupyter_server_config.json").read_text())
    extensions = settings["ServerApp"]["jpserver_extensions"]
    assert extensions == {"widgets.notebooks.saving": True}
    assert all(hasattr(importlib.import_module(name), "set_aside") for name in extensions)


def test_the_list_of_chapters_has_every_chapter() -> None:
    listed = (ROOT / "docs" / "chapters.md").read_text(encoding="utf-8")
    for chapter in (ROOT / "labs").glob("[0-9]*.ipynb"):
        number = chapter.name.split("_")[0]
        assert re.search(rf"^\| {number} \|", listed, re.M), f"chapter {number} is not in the table"


PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "labs").glob("*.md")),
    *sorted((ROOT / "labs" / "teaching").glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_link_of_a_page_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{target} is not there"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.M)
            names = [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads]
            assert anchor in names, f"{target}: no such heading"


def test_the_front_page_is_one_screen() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 500
    before_commands = text[: text.index("make lab")]
    assert len(before_commands.split()) <= 120, "the two commands are seen without scrolling"


# The import contracts -----------------------------------------------------------------------------


def floors(contract: dict[str, Any]) -> dict[str, int]:
    return {
        room: -number
        for number, layer in enumerate(contract["layers"])
        for room in re.findall(r"\w+", layer)
    }


ORDERS = [floors(c) for c in PROJECT["tool"]["importlinter"]["contracts"] if c["type"] == "layers"]


def may_import(importer: str, imported: str) -> bool:
    return all(order[importer] >= order[imported] for order in ORDERS)


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("config", "spec"),
        ("kernels", "batch"),
        ("layers", "attention"),
        ("attention", "kernels"),
        ("quantization", "layers"),
        ("models", "lora"),
        ("sampling", "kernels"),
        ("memory", "kernels"),
        ("scheduling", "memory"),
        ("decoding", "models"),
        ("decoding", "memory"),
        ("decoding", "sampling"),
        ("execution", "decoding"),
        ("execution", "memory"),
        ("tokenizer", "request"),
        ("engine", "tokenizer"),
        ("engine", "sampling"),
        ("engine", "scheduling"),
        ("engine", "execution"),
        ("virtual", "engine"),
        ("loading", "tokenizer"),
        ("build", "virtual"),
        ("build", "loading"),
        ("frontend", "engine"),
        ("llm", "build"),
        ("llm", "frontend"),
        ("async_llm", "engine"),
        ("trace", "files"),
        ("files", "process"),
        ("cluster", "llm"),
        ("bench", "server"),
        ("cli", "bench"),
        ("__main__", "cli"),
    ],
)
def test_an_import_down_the_house_is_allowed_and_its_reverse_is_not_unless_they_share_a_floor(
    importer: str, imported: str
) -> None:
    assert may_import(importer, imported)
    shared = all(order[importer] == order[imported] for order in ORDERS)
    assert may_import(imported, importer) == shared


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("models", "memory"),
        ("models", "sampling"),
        ("attention", "memory"),
        ("layers", "scheduling"),
        ("lora", "memory"),
        ("scheduling", "decoding"),
        ("scheduling", "execution"),
        ("scheduling", "models"),
        ("scheduling", "sampling"),
        ("tokenizer", "models"),
        ("tokenizer", "kernels"),
        ("tokenizer", "execution"),
    ],
)
def test_rooms_on_different_sides_do_not_know_each_other(one: str, other: str) -> None:
    assert not may_import(one, other)
    assert not may_import(other, one)


@pytest.mark.parametrize(
    ("source", "importing", "broken"),
    [
        ("memory", "minserve.models", True),
        ("models", "minserve.memory", True),
        ("engine", "minserve.scheduling", False),
        ("engine", "minserve.models", True),
        ("engine", "minserve.llm", True),
        ("engine", "widgets", True),
    ],
)
def test_import_linter_sees_an_import_that_breaks_the_contract(
    tmp_path: Path, source: str, importing: str, broken: bool
) -> None:
    for package in ("minserve", "widgets"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    rooms = ("memory", "kernels", "attention", "layers", "models", "scheduling", "engine", "llm")
    for room in rooms:
        text = f"import {importing}\n" if room == source else ""
        (tmp_path / "minserve" / f"{room}.py").write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
    program += "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", program, "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == int(broken), done.stdout + done.stderr
    assert ("BROKEN" in done.stdout) == broken


# The reader's copies ------------------------------------------------------------------------------


open_lab = load_module(ROOT / "labs" / "open_lab.py")


def notebook(source: str) -> str:
    cell = {
        "cell_type": "code",
        "id": "one",
        "source": [source],
        "execution_count": 3,
        "outputs": [{"output_type": "stream", "name": "stdout", "text": ["the answer\n"]}],
        "metadata": {"tags": ["nbval-check-output"], "execution": {"iopub.execute_input": "now"}},
    }
    prose = {"cell_type": "markdown", "id": "two", "source": ["TTFT µs"], "metadata": {}}
    metadata = {"widgets": {"state": "x" * 100}, "kernelspec": {"name": "python3"}}
    whole = {"cells": [cell, prose], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "labs").mkdir()
    for name in ("45a_batching.ipynb", "00_start_here.ipynb", "11_speculative.ipynb"):
        (tmp_path / "labs" / name).write_text(notebook("1 + 1"), encoding="utf-8")
    return tmp_path


@pytest.fixture
def run(checkout: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*arguments: str) -> str:
        assert open_lab.main(list(arguments), checkout=checkout) == 0
        return capsys.readouterr().out

    return call


def test_copies_carry_no_outputs_and_keep_everything_else(
    checkout: Path, run: Callable[..., str]
) -> None:
    run("--copy-only")
    copy = json.loads((checkout / "work/00_start_here.ipynb").read_text(encoding="utf-8"))
    code, prose = copy["cells"]
    assert code["outputs"] == [] and code["execution_count"] is None
    assert code["metadata"] == {"tags": ["nbval-check-output"]}
    assert code["source"] == ["1 + 1"] and prose["source"] == ["TTFT µs"]
    assert copy["metadata"] == {"kernelspec": {"name": "python3"}}
    assert len(list((checkout / "work").glob("*.ipynb"))) == 3


def test_a_second_opening_changes_and_says_nothing(checkout: Path, run: Callable[..., str]) -> None:
    run("--copy-only")
    before = {p: p.read_bytes() for p in (checkout / "work").iterdir()}
    assert run("--copy-only") == ""
    assert {p: p.read_bytes() for p in (checkout / "work").iterdir()} == before


def test_an_update_leaves_an_edited_copy_alone_and_says_so(
    checkout: Path, run: Callable[..., str]
) -> None:
    run("--copy-only")
    mine = checkout / "work/11_speculative.ipynb"
    mine.write_text(notebook("my notes"), encoding="utf-8")
    (checkout / "labs/11_speculative.ipynb").write_text(notebook("2 + 2"), encoding="utf-8")
    said = run("--copy-only")
    assert "my notes" in mine.read_text(encoding="utf-8")
    assert "11_speculative" in said and "make reset CHAPTER=11" in said
    assert "00_start_here" not in said


def test_an_update_reaches_a_copy_that_was_never_opened(
    checkout: Path, run: Callable[..., str]
) -> None:
    run("--copy-only")
    (checkout / "labs/11_speculative.ipynb").write_text(notebook("2 + 2"), encoding="utf-8")
    run("--copy-only")
    assert "2 + 2" in (checkout / "work/11_speculative.ipynb").read_text(encoding="utf-8")
    assert not (checkout / "work/backups").exists()


def test_a_lost_record_makes_every_copy_the_readers_own(
    checkout: Path, run: Callable[..., str]
) -> None:
    run("--copy-only")
    (checkout / "work" / open_lab.RECORD).unlink()
    (checkout / "labs/11_speculative.ipynb").write_text(notebook("2 + 2"), encoding="utf-8")
    run("--copy-only")
    assert "1 + 1" in (checkout / "work/11_speculative.ipynb").read_text(encoding="utf-8")


def test_reset_takes_a_fresh_copy_and_keeps_a_backup_each_time(
    checkout: Path, run: Callable[..., str]
) -> None:
    run("--copy-only")
    mine = checkout / "work/11_speculative.ipynb"
    for note in ("first notes", "second notes"):
        mine.write_text(notebook(note), encoding="utf-8")
        run("--copy-only", "--reset", "11")
        assert "1 + 1" in mine.read_text(encoding="utf-8")
    kept = sorted(p.read_text(encoding="utf-8") for p in (checkout / "work/backups").iterdir())
    assert len(kept) == 2 and "first notes" in kept[0] and "second notes" in kept[1]


def test_reset_opens_the_chapters_questions_again_and_keeps_the_scores(
    checkout: Path, run: Callable[..., str]
) -> None:
    run("--copy-only")
    progress = Progress(checkout / "work/progress.json")
    for key in ("11.flip", "00.recap"):
        progress.keep(Commit(key, "asked", (), shown=True))
    progress.record("11.flip", "predict", 2, 6)
    run("--copy-only", "--reset", "11")
    assert list(progress.scores().commits) == ["00.recap"]
    assert list(progress.entries()) == ["11.flip"]


def test_a_dry_run_names_the_start_chapter_and_writes_nothing(
    checkout: Path, run: Callable[..., str]
) -> None:
    said = run("--dry-run", "--no-browser", "--", "--port", "9999").splitlines()[-1]
    assert said.endswith(
        "--LabApp.default_url=/lab/tree/work/00_start_here.ipynb "
        "--ServerApp.jpserver_extensions=widgets.notebooks.saving=True --no-browser --port 9999"
    )
    assert f"root_dir={checkout}" in said
    assert not (checkout / "work").exists()


def test_jupyter_is_started_with_that_command(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(open_lab, "launch", lambda command, work: started.append(command) or 7)
    work, labs = checkout / "work", checkout / "labs"
    expected = open_lab.jupyter_command(checkout, work / "00_start_here.ipynb", True, [])
    open_lab.carry_out(open_lab.plan(labs, work, []), work)
    assert open_lab.main([], checkout=checkout) == 7
    assert started == [expected]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["--reset", "99"], "There is no chapter '99'; there are 00, 11, 45a."), ([], None)],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    checkout: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str | None
) -> None:
    if sentence is None:
        shutil.rmtree(checkout / "labs")
        sentence = f"There are no chapters in {checkout / 'labs'}: is this a whole checkout?"
    assert open_lab.main(["--copy-only", *arguments], checkout=checkout) == 1
    assert capsys.readouterr().err.strip() == sentence
    assert not (checkout / "work").exists()
