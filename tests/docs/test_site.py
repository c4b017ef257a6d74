"""The site that `make docs` builds: without a warning, whole, and without a word to any other host. Needs the extra `docs`."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from selfcorrect.config.settings import settings
from tests.docs.shell import ROOT, pages
from tests.report.test_browser import driver

__all__ = ["driver"]
pytestmark = pytest.mark.nightly


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-b",
        "html",
        "-d",
        str(folder / "read"),
        "-c",
        "docs",
        "-W",
        "--keep-going",
        "-q",
    ]
    done = subprocess.run([*command, ".", str(folder / "site")], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def test_every_page_is_there_and_asks_nobody(site: Path) -> None:
    for page in pages():
        text = (site / page.relative_to(ROOT).with_suffix(".html")).read_text(encoding="utf-8")
        asked = re.findall(
            r"<(?:script|img|iframe)[^>]*src=\"(?:https?:)?//[^\"]*|<link[^>]*href=\"(?:https?:)?//[^\"]*", text
        )
        assert not asked
    text = (site / "docs" / "settings.html").read_text(encoding="utf-8")
    assert not [setting.key for setting in settings() if f">{setting.key}<" not in text]


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_search_in_a_browser(site: Path, driver: Any, scheme: str) -> None:
    """At the width of a phone, opened as files: it finds, nothing hangs over, and no other host is asked."""
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    driver.get((site / "index.html").as_uri())
    background = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) > 600) == (scheme == "light")
    for page in ("index.html", "docs/settings.html", "docs/from-trl.html"):
        driver.get((site / page).as_uri())
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 390, page
    driver.get(f"{(site / 'search.html').as_uri()}?q=max_new_tokens")
    for _ in range(50):
        found = driver.execute_script(
            "return [...document.querySelectorAll('#search-results li a')].map(a => a.textContent)"
        )
        if "Every setting" in found:
            break
        driver.execute_async_script("setTimeout(arguments[0], 200)")
    assert "Every setting" in found
    sent = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [entry["params"]["request"]["url"] for entry in sent if entry["method"] == "Network.requestWillBeSent"]
    assert not [url for url in urls if url.startswith("http")]
