"""What a notebook keeps of panels and figures when it is saved. An extension of Jupyter's server.

A saved panel is the address of something in a kernel. Once that kernel has ended, JupyterLab and
Notebook write "Error displaying widget: model not found" there, whatever else the output holds. So
the address is set aside under a name that no front end shows, and put back when the notebook is
opened again while its kernel still runs; without one its words are shown.

A saved figure is an image of 0.2 MB, which JupyterLab makes, and thousands of lines of numbers. The
image is dropped; the numbers become one line, which is put back when the notebook is opened, and a
script for exports, which fetches plotly. What others display is left as it is.
"""

from __future__ import annotations

import inspect
import json
import zlib
from collections.abc import Iterator
from typing import Any

from plotly.io import to_html

VIEW = "application/vnd.jupyter.widget-view+json"
ASIDE = "application/vnd.minserve.widget-view+json"
MARK = "A panel of the lab."
"""In the words of every panel: `fallback` writes it, and no other widget has it."""

PLOT, IMAGE = "application/vnd.plotly.v1+json", "image/png"
PLOT_ASIDE = "application/vnd.minserve.plotly"
NO_PLOTLY = "The figure is drawn where plotly is installed (JupyterLab, VS Code, Colab)"
"""What stands in place of a figure of the lab where there is no plotly."""


def set_aside(model: dict[str, Any], **_: Any) -> None:
    """Jupyter's hook before a file is saved."""
    if model.get("type") != "notebook":
        return
    for data in _bundles(model.get("content")):
        if VIEW in data and MARK in _text(data, "text/plain"):
            data[ASIDE] = data.pop(VIEW)
        if isinstance(data.get(PLOT), dict) and NO_PLOTLY in _text(data, "text/html"):
            plot = data.pop(PLOT)
            data.pop(IMAGE, None)
            line = data[PLOT_ASIDE] = json.dumps(plot, separators=(",", ":"))
            # Saved twice, a figure that did not change is the same text.
            name = f"plot-{zlib.crc32(line.encode()):08x}"
            data["text/html"] = to_html(
                plot, config=plot.get("config"), include_plotlyjs="cdn", full_html=False,
                auto_play=False, validate=False, div_id=name,
            )  # fmt: skip


def put_back(notebook: dict[str, Any], *, alive: bool) -> None:
    """Undo `set_aside`, for panels if their kernel is `alive`. A figure that was
    damaged in between stays as it is: the notebook has to open."""
    for data in _bundles(notebook):
        if alive and ASIDE in data:
            data[VIEW] = data.pop(ASIDE)
        if PLOT_ASIDE in data:
            try:
                plot = json.loads(_text(data, PLOT_ASIDE))
            except (ValueError, RecursionError):
                continue
            if not isinstance(plot, dict):
                continue
            del data[PLOT_ASIDE]
            data[PLOT] = plot
            data["text/html"] = f"<p><em>{NO_PLOTLY}.</em></p>"


def _bundles(notebook: Any) -> Iterator[dict[str, Any]]:
    """What the outputs of a notebook show. Skips what has another form than a notebook's."""
    for cell in _listed(notebook, "cells"):
        for output in _listed(cell, "outputs"):
            data = output.get("data") if isinstance(output, dict) else None
            if isinstance(data, dict):
                yield data


def _listed(held: Any, name: str) -> list[Any]:
    found = held.get(name) if isinstance(held, dict) else None
    return found if isinstance(found, list) else []


def _text(data: dict[str, Any], kind: str) -> str:
    found = data.get(kind, "")
    return "".join(map(str, found)) if isinstance(found, list) else str(found)


def _load_jupyter_server_extension(app: Any) -> None:
    manager = app.contents_manager
    manager.register_pre_save_hook(set_aside)
    read = manager.get
    if not inspect.iscoroutinefunction(read):
        return  # Which kernels run can only be asked without blocking.

    async def get(path: str, *args: Any, **options: Any) -> dict[str, Any]:
        model: dict[str, Any] = await read(path, *args, **options)
        if model["type"] == "notebook" and model["content"]:
            running = await app.session_manager.list_sessions()
            alive = any(each["path"].strip("/") == path.strip("/") for each in running)
            put_back(model["content"], alive=alive)
        return model

    manager.get = get


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "widgets.notebooks.saving"}]
