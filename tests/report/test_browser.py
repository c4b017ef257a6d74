"""The page in a real browser: it works by hand and by key, makes no request, and fits a phone."""

import json
from pathlib import Path
from typing import Any

import pytest

from selfcorrect.report import write_report
from tests.support.browser import driver

from .helpers import COUNTS, make_run

__all__ = ["driver"]
pytestmark = pytest.mark.browser


def _shown(driver: Any) -> list[str]:
    script = (
        "return [...document.querySelectorAll('.rollout')].filter(n => n.offsetHeight).map(n => n.dataset.category)"
    )
    return list(driver.execute_script(script))


def _click(driver: Any, css: str) -> None:
    driver.execute_script("document.querySelector(arguments[0]).click()", css)


def _check_filters(driver: Any) -> None:
    for category, total in COUNTS.items():
        chip = f"#chips [data-category={category}]"
        _click(driver, chip)
        assert driver.find_element("css selector", chip).get_attribute("aria-pressed") == "true"
        assert driver.find_element("css selector", f"{chip} b").text == str(total)
        assert _shown(driver) == [category] * min(6, total)
    _click(driver, "#chips [data-category=kept_right]")
    _click(driver, "#next")
    assert _shown(driver) == ["kept_right"] * 4
    assert driver.find_element("id", "where").text == "7\N{EN DASH}10 of 10"
    chip = driver.find_element("css selector", "#chips [data-category=fixed]")
    chip.send_keys("\ue007")  # Enter
    assert _shown(driver) == ["fixed"] * 3
    driver.find_element("id", "query").send_keys("problem 1")
    assert len(_shown(driver)) == 1
    assert "1 match" in driver.find_element("id", "count").text


def _check_difference(driver: Any) -> None:
    """The attempts of a rollout differ in their last word alone: it and nothing else is marked."""
    marks = [(mark.tag_name, mark.text) for mark in driver.find_elements("css selector", ".rollout :is(del, ins)")]
    assert marks == [("del", "1"), ("ins", "2")]


def _check_theme(driver: Any) -> None:
    colour = "return getComputedStyle(document.body).backgroundColor"
    before = driver.execute_script(colour)
    _click(driver, "#theme")
    assert driver.execute_script(colour) != before
    _click(driver, "#theme")
    assert driver.execute_script(colour) == before


def test_the_page_works_in_a_browser(driver: Any, tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path)).as_uri()
    driver.get(page)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
    _check_filters(driver)
    _check_difference(driver)
    _check_theme(driver)
    driver.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
    assert driver.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    requests = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    ours = [r["request"]["url"] for r in requests if r["documentURL"] == page]  # the start page has its own
    assert [url for url in ours if not url.startswith("data:")] == [page]
