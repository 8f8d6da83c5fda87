"""A real browser without a window, for tests of pages; those marked `needs_browser` are skipped where there is none."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_BROWSER = next((found for name in _NAMES if (found := shutil.which(name))), None)

needs_browser = pytest.mark.skipif(
    _BROWSER is None, reason=f"needs a browser ({', '.join(_NAMES)}): install the package chromium"
)


def measure(page: Path, width: int, dark: bool, script: str, folder: Path) -> Any:
    """Open a page and return what a JavaScript expression gives there, through JSON.

    Args:
        page: an HTML file; a copy of it is opened, in a frame, since a window of its own is at least 500 pixels wide.
        width: of the frame, in pixels.
        dark: whether the system prefers dark pages.
        script: the expression.
        folder: an empty one, for the copy and the browser's profile.
    """
    copy = folder / "page.html"
    inner = (
        page.read_text() + "<script>addEventListener('load', () => { parent.document.documentElement.dataset.measured ="
        f" encodeURIComponent(JSON.stringify({script})); }});</script>"
    )
    copy.write_text(
        f'<!doctype html><iframe style="border: 0" width={width} height=900 srcdoc="{html.escape(inner)}"></iframe>'
    )
    preferred = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    shown = _run(copy.as_uri(), folder, preferred)
    found = re.search('data-measured="([^"]*)"', shown)
    assert found is not None
    return json.loads(unquote(found[1]))


def dump(url: str, folder: Path) -> str:
    """Open an address and return the page as it is once all that it shows is loaded.

    Args:
        url: the address.
        folder: an empty one, for the browser's profile.
    """
    return _run(url, folder)


def _run(url: str, folder: Path, *options: str) -> str:
    assert _BROWSER is not None, "mark the test with `needs_browser`"
    command = [
        *(_BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1400,1000"),
        *(f"--user-data-dir={folder / 'profile'}", *options, "--dump-dom", url),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
