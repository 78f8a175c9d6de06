"""A saved notebook keeps the words of panels; other widgets, and a running kernel's, are left."""

from __future__ import annotations

import asyncio
import copy
from types import SimpleNamespace
from typing import Any

import ipywidgets
import nbformat
import plotly.graph_objects as go
import pytest

from widgets.figures import render
from widgets.notebooks import saving
from widgets.notebooks.fallback import NO_WIDGETS, bundle
from widgets.notebooks.saving import ASIDE, MARK, PLOT, PLOT_ASIDE, VIEW


def notebook(*outputs: dict[str, Any]) -> dict[str, Any]:
    shown = [{"output_type": "display_data", "metadata": {}, "data": data} for data in outputs]
    error = {"output_type": "error", "ename": "E", "evalue": "", "traceback": []}
    cells = [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": "words"},
        {"cell_type": "code", "id": "b", "metadata": {}, "source": "", "execution_count": 1,
         "outputs": [error, {"output_type": "stream", "name": "stdout", "text": MARK}, *shown]},
    ]  # fmt: skip
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def panel() -> dict[str, Any]:
    return bundle(ipywidgets.HTML("alive"), "Compare: a <race>")


def test_a_panel_keeps_its_words_and_gets_its_address_back():
    data = panel()
    theirs = ipywidgets.Button()._repr_mimebundle_()
    before = notebook(data, theirs)
    model = {"type": "notebook", "content": copy.deepcopy(before)}
    saving.set_aside(model, path="x.ipynb", contents_manager=None)
    *_, ours, other = model["content"]["cells"][1]["outputs"]
    assert VIEW not in ours["data"] and ours["data"][ASIDE] == data[VIEW]
    assert ours["data"]["text/plain"] == f"Compare: a <race>\n{NO_WIDGETS}"
    assert "Compare: a &lt;race&gt;" in ours["data"]["text/html"]
    assert "Run All Cells" in ours["data"]["text/html"]
    assert other["data"] == theirs
    saving.set_aside(model)
    saving.put_back(model["content"], alive=False)
    assert VIEW not in ours["data"]
    saving.put_back(model["content"], alive=True)
    assert model["content"] == before


def figure() -> dict[str, Any]:
    """A figure as JupyterLab hands it over: with an image of what it drew."""
    drawn = render.mimebundle(go.Figure(go.Bar(y=list(range(100)))), "Bars", words="")
    return drawn | {"image/png": "iVBORw0KGgo="}


@pytest.mark.parametrize("image", [True, False])
def test_a_figure_is_saved_as_one_line_and_a_script(image: bool):
    data = figure()
    if not image:
        del data["image/png"]
    theirs = {PLOT: data[PLOT], "image/png": "iVBORw0KGgo="}
    content = notebook(copy.deepcopy(data), copy.deepcopy(theirs))
    saving.set_aside({"type": "notebook", "content": content})
    *_, ours, other = content["cells"][1]["outputs"]
    assert set(ours["data"]) == {"text/html", PLOT_ASIDE, "text/plain"}
    assert "Plotly.newPlot" in ours["data"]["text/html"]
    assert other["data"] == theirs
    written = nbformat.writes(nbformat.from_dict(notebook(ours["data"])))
    assert len(written.splitlines()) < 60 and len(written) < 40_000
    again = nbformat.reads(written, as_version=4)
    for alive in (True, False):
        read = copy.deepcopy(again)
        saving.put_back(read, alive=alive)
        assert read["cells"][1]["outputs"][-1]["data"][PLOT] == data[PLOT]
        saving.set_aside({"type": "notebook", "content": read})
        assert nbformat.writes(read) == written


def test_words_in_lines_as_files_have_them_are_known_too():
    data = panel()
    data["text/plain"] = data["text/plain"].splitlines(keepends=True)
    content = notebook(data)
    saving.set_aside({"type": "notebook", "content": content})
    assert VIEW not in data


@pytest.mark.parametrize(
    "model", [{"type": "file", "content": "text"}, {"type": "notebook", "content": None}, {}]
)
def test_whatever_is_no_notebook_is_left(model):
    before = copy.deepcopy(model)
    saving.set_aside(model)
    assert model == before


class Manager:
    """What the extension uses of Jupyter's contents manager."""

    def __init__(self, stored: dict[str, Any]) -> None:
        self.stored, self.hooks = stored, []

    def register_pre_save_hook(self, hook: Any) -> None:
        self.hooks.append(hook)

    async def get(self, path: str, content: bool = True, type: str | None = None) -> Any:
        kind = "notebook" if path.endswith(".ipynb") else "file"
        return {"type": kind, "content": copy.deepcopy(self.stored) if content else None}


@pytest.mark.parametrize(("running", "key"), [("work/a.ipynb", VIEW), ("work/b.ipynb", ASIDE)])
def test_only_where_its_kernel_runs_a_notebook_is_read_with_its_panels(running: str, key: str):
    async def list_sessions() -> list[dict[str, str]]:
        return [{"path": running}]

    content = notebook(panel())
    saving.set_aside({"type": "notebook", "content": content})
    manager = Manager(content)
    sessions = SimpleNamespace(list_sessions=list_sessions)
    app = SimpleNamespace(contents_manager=manager, session_manager=sessions)
    saving._load_jupyter_server_extension(app)
    assert manager.hooks == [saving.set_aside]
    model = asyncio.run(manager.get("/work/a.ipynb", content=True))
    assert key in model["content"]["cells"][1]["outputs"][-1]["data"]
    assert asyncio.run(manager.get("work/a.ipynb", content=False))["content"] is None
    asyncio.run(manager.get("work/progress.json"))


def test_a_manager_that_blocks_saves_words_all_the_same():
    class Blocking(Manager):
        def get(self, path: str) -> Any:
            return {}

    manager = Blocking({})
    saving._load_jupyter_server_extension(SimpleNamespace(contents_manager=manager))
    assert manager.hooks == [saving.set_aside] and manager.get("x") == {}


def test_jupyter_can_load_it():
    assert saving._jupyter_server_extension_points() == [{"module": "widgets.notebooks.saving"}]


@pytest.mark.parametrize(
    "content",
    [None, "words", [], {}, {"cells": None}, {"cells": ["a", None]}, {"cells": [{"outputs": None}]},
     {"cells": [{"outputs": ["a", {"data": [1]}, {"data": None}]}]},
     {"cells": [{"outputs": [{"data": {VIEW: 1, "text/plain": 5}}]}]},
     {"cells": [{"outputs": [{"data": {PLOT: None, "text/html": saving.NO_PLOTLY}}]}]}],
)  # fmt: skip
def test_what_is_no_notebook_is_saved_and_opened_as_it_is(content):
    model = {"type": "notebook", "content": copy.deepcopy(content)}
    saving.set_aside(model)
    saving.put_back(model["content"], alive=True)
    assert model["content"] == content


@pytest.mark.parametrize("damaged", ["{", "", 5, None, {"data": []}, ["{", "<<<<"], "[" * 100_000])
def test_a_notebook_whose_figure_is_damaged_opens_with_everything_else(damaged):
    data, good = {PLOT_ASIDE: damaged, "text/html": "words"}, {PLOT_ASIDE: ['{"data"', ":[]}"]}
    opened = notebook(data, good, {ASIDE: "address"})
    saving.put_back(opened, alive=True)
    *_, first, second, third = (output["data"] for output in opened["cells"][1]["outputs"][2:])
    assert first == {PLOT_ASIDE: damaged, "text/html": "words"}
    assert second[PLOT] == {"data": []} and third == {VIEW: "address"}
