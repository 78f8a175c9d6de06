"""The workflow that publishes the book: what it runs is there, and it may do only what it must."""

from __future__ import annotations

import re
from typing import Any

import pytest

from book.build import SITE
from book.records import ROOT

yaml = pytest.importorskip("yaml")
FILE = ROOT / ".github" / "workflows" / "book.yml"


@pytest.fixture(scope="module")
def workflow() -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return found


def steps(job: dict[str, Any], what: str) -> list[str]:
    return [step[what] for step in job["steps"] if what in step]


def test_each_command_is_a_target_with_a_known_setting_or_a_test_that_is_there(
    workflow: dict[Any, Any],
) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = steps(workflow["jobs"]["build"], "run")
    assert "make book TORCH=cpu" in commands
    for command in commands:
        words = command.split()
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:.*## ", makefile, re.MULTILINE), command
            for setting in words[2:]:
                assert re.search(rf"^{setting.partition('=')[0]} +\?=", makefile, re.MULTILINE)
        else:
            assert words[:3] == [".venv/bin/python", "-m", "pytest"]
            assert all((ROOT / path).exists() for path in words[3:]), command


def test_what_is_published_is_what_was_built(workflow: dict[Any, Any]) -> None:
    build, publish = workflow["jobs"]["build"], workflow["jobs"]["publish"]
    uploaded = next(s for s in build["steps"] if "upload-pages-artifact" in s.get("uses", ""))
    assert ROOT / uploaded["with"]["path"] == SITE
    assert build["steps"][-1] == uploaded
    assert publish["needs"] == "build"
    name = publish["environment"]["url"].split(".")[1]
    assert [s["id"] for s in publish["steps"]] == [name]
    assert steps(publish, "uses")[0].startswith("actions/deploy-pages@")


def test_only_publishing_may_write_and_actions_are_pinned(workflow: dict[Any, Any]) -> None:
    assert workflow["permissions"] == {"contents": "read"}
    assert "permissions" not in workflow["jobs"]["build"]
    needed = {"pages": "write", "id-token": "write"}
    assert workflow["jobs"]["publish"]["permissions"] == needed
    assert workflow["concurrency"] == {"group": "book", "cancel-in-progress": False}
    for job in workflow["jobs"].values():
        assert all(re.fullmatch(r"actions/[\w-]+@v\d+", used) for used in steps(job, "uses"))


def test_a_change_to_anything_that_the_book_is_made_of_publishes_it(
    workflow: dict[Any, Any],
) -> None:
    # YAML 1.1 reads the key `on` as true.
    paths = workflow[True]["push"]["paths"]
    for path in paths:
        assert (ROOT / path.removesuffix("/**")).exists(), path
    made_of = {"book/**", "labs/**", "widgets/**", "pyproject.toml", "constraints.txt", "Makefile"}
    assert made_of | {".github/workflows/book.yml"} == set(paths)


def test_the_python_and_the_pins_are_the_projects(workflow: dict[Any, Any]) -> None:
    setup = next(
        s for s in workflow["jobs"]["build"]["steps"] if "setup-python" in s.get("uses", "")
    )
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"Programming Language :: Python :: {setup["with"]["python-version"]}"' in project
    assert (ROOT / setup["with"]["cache-dependency-path"]).is_file()
