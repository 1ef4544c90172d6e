"""A headless Chromium that opens pages from the disk, and notes what they ask for and complain of.

As a program it takes a picture: ``python tests/browser.py site/index.html --shot page.png``.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "google-chrome")
DESKTOP, PHONE = (1280, 900), (375, 740)


def executable() -> str | None:
    """Chromium, if there is one on the path."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@dataclass
class Opened:
    """A page, the addresses that it asked for, and its errors."""

    page: Any
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A running browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable())
        yield running
        running.close()


def opened(running: Any, file: Path, size: tuple[int, int] = DESKTOP, **context: Any) -> Opened:
    """Open a file in a window of that size; ``context`` is playwright's."""
    width, height = size
    where = running.new_context(viewport={"width": width, "height": height}, **context)
    found = Opened(where.new_page())
    found.page.on("request", lambda request: found.requests.append(request.url))
    found.page.on("pageerror", lambda error: found.errors.append(str(error)))
    found.page.on(
        "console",
        lambda said: found.errors.append(said.text) if said.type in ("error", "warning") else None,
    )
    found.page.goto(file.absolute().as_uri())
    return found


def picture(
    running: Any,
    file: Path,
    shot: Path,
    *,
    dark: bool = False,
    phone: bool = False,
    whole: bool = False,
    details: bool = False,
) -> None:
    """Take a picture of a page, or of its first window; with ``details``, of the last defense's."""
    found = opened(
        running,
        file,
        PHONE if phone else DESKTOP,
        color_scheme="dark" if dark else "light",
        device_scale_factor=2 if phone else 1.5,
    )
    if details:
        found.page.locator("a.open").last.click()
        found.page.locator("details[open] .figure svg").last.wait_for()
    found.page.screenshot(path=shot, full_page=whole)
    found.page.context.close()


def main() -> None:
    """Take a picture of a page."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("--shot", type=Path, required=True, help="the PNG file to write")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--phone", action="store_true")
    parser.add_argument("--whole", action="store_true", help="all of the page, not one window")
    parser.add_argument("--details", action="store_true", help="open the last defense")
    given = vars(parser.parse_args())
    with browser() as running:
        picture(running, given.pop("page"), given.pop("shot"), **given)


if __name__ == "__main__":
    main()
