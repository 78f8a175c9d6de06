"""The image that Binder would build: repo2docker's recipe for this checkout, written, not built."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
REPO2DOCKER = shutil.which("jupyter-repo2docker")


@pytest.fixture(scope="module")
def recipe() -> str:
    if REPO2DOCKER is None:
        pytest.skip("needs jupyter-repo2docker on the path: see CONTRIBUTING.md")
    done = subprocess.run(
        [REPO2DOCKER, "--no-build", "--debug", str(ROOT)],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return done.stdout


def test_the_recipe_installs_our_environment_on_our_python(recipe: str) -> None:
    environment = yaml.safe_load((ROOT / "binder/environment.yml").read_text(encoding="utf-8"))
    (python,) = (d for d in environment["dependencies"] if str(d).startswith("python="))
    version = python.removeprefix("python=").replace(".", "-2e")
    # repo2docker's base environment is of the Python that we name, not of its old default.
    assert re.search(rf"environment-2epy-2d{version}-2d\S*lock", recipe)
    assert 'env update -p ${NB_PYTHON_PREFIX} --file "binder/environment.yml"' in recipe
    order = [
        recipe.index(step)
        for step in ("binder/environment.yml", "COPY --chown=0:0 src/ ", "RUN ./binder/postBuild")
    ]
    assert order == sorted(order)


def test_the_recipe_starts_through_our_script_as_an_ordinary_user(recipe: str) -> None:
    assert 'ENV R2D_ENTRYPOINT="${REPO_DIR}/binder/start"' in recipe
    assert recipe.rindex("USER ${NB_USER}") < recipe.index("RUN ./binder/postBuild")
    assert recipe.rindex("USER root") < recipe.rindex("USER ${NB_USER}")


def test_nothing_else_in_the_checkout_is_taken_for_a_recipe(recipe: str) -> None:
    # With a binder/ folder repo2docker reads nothing beside it; a Dockerfile there would win.
    inside = {path.name for path in (ROOT / "binder").iterdir()}
    assert inside == {"environment.yml", "postBuild", "start"}
    assert "requirements.txt" not in recipe
