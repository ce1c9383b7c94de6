"""The browser in which pages are opened, one for the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import browser


@pytest.fixture(scope="module")
def window() -> Iterator[browser.Browser]:
    if not browser.IS_THERE:
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    with browser.open_browser() as window:
        yield window
