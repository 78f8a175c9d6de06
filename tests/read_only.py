"""A folder that the system itself refuses to write to, for root as well."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_MOUNT = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && ! touch "$0/x" 2>/dev/null && '


@contextmanager
def read_only(folder: Path) -> Iterator[list[str]]:
    """The words to put before a command for which `folder` is read-only.

    Root writes to folders without w, so for root it is a mount in a name space of its own. Skips
    the test where root may not mount.
    """
    if os.geteuid() != 0:
        folder.chmod(0o555)
        try:
            yield []
        finally:
            folder.chmod(0o755)
        return
    space = ["unshare", "--mount", "sh", "-c"]
    able = shutil.which("unshare") and not subprocess.call(
        [*space, _MOUNT + "true", str(folder)], stderr=subprocess.DEVNULL
    )
    if not able:
        pytest.skip("root may not mount anything here")
    yield [*space, _MOUNT + 'cd "$0" && exec "$@"', str(folder)]
