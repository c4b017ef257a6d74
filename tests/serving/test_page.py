"""The page in a real browser: attempts as they come, by hand and by key, on a phone, with text that means harm."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from selfcorrect.serving.engine import Ended, Events, Piece, Post
from selfcorrect.serving.protocol import ApiError, Plan
from selfcorrect.tasks.countdown import Countdown
from tests.support.browser import driver

from .helpers import serving, until

__all__ = ["driver"]
pytestmark = pytest.mark.browser

RIGHT, WRONG = "30 + 7 = 37\n37 + 2 = 39", "30 + 7 = 37\n37 - 2 = 35"
HARM = f"<img src=x onerror=alert(1)></pre><script>alert(2)</script>\n{RIGHT}"
POSED = "countdown-30-7-2-to-39"


class Scripted:
    """An engine that says what stands in `texts`, word by word. hold: it does not go on after the first word."""

    def __init__(self, texts: Mapping[tuple[str, int], str]) -> None:
        self.texts, self.hold = dict(texts), False
        self.plans: list[Plan] = []
        self.closed = 0

    async def start(self, plan: Plan) -> Events:
        if plan.ask.temperature == 2:
            raise ApiError(400, "too hot <b>for</b> this model", "temperature")
        self.plans.append(plan)
        queue = asyncio.Queue[Post]()
        task = asyncio.create_task(self._say(plan, queue))

        def close() -> None:
            self.closed += 1
            task.cancel()

        return Events(queue, 1, close)

    async def _say(self, plan: Plan, queue: "asyncio.Queue[Post]") -> None:
        for attempt in range(1, plan.attempts + 1):
            for word in self.texts[plan.model, attempt].split(" "):
                queue.put_nowait(Piece(0, attempt, f"{word} "))
                await asyncio.sleep(3600 if self.hold else 0.001)
            queue.put_nowait(Ended(0, attempt, "stop", 5, 7, 0))
        queue.put_nowait(None)

    def stop(self) -> None:
        pass

    async def close(self) -> None:
        pass


def _texts(driver: Any, css: str) -> list[str]:
    return [node.text.strip() for node in driver.find_elements("css selector", css)]


def _set(driver: Any, name: str, value: str) -> None:
    box = driver.find_element("id", name)
    box.clear()
    box.send_keys(value)


def _told(driver: Any, text: str) -> None:
    until(lambda: text in driver.find_element("id", "told").text)


def _check_both_models(driver: Any, engine: Scripted) -> None:
    driver.find_element("id", "go").click()
    _told(driver, "Base: right, then wrong. Trained: wrong, then right.")
    assert _texts(driver, ".played h2") == ["Base old", "Trained new"]
    assert _texts(driver, ".verdict") == ["Right, then wrong", "Wrong, then right"]
    assert [
        kind.rpartition(" ")[2]
        for kind in driver.execute_script("return [...document.querySelectorAll('.played')].map(n => n.className)")
    ] == ["broken", "fixed"]
    assert _texts(driver, ".attempt h3 span:first-child") == ["correct", "wrong", "wrong", "correct"]
    trained = "[data-model=trained] .attempt"
    assert _texts(driver, f"{trained} :is(del, ins)") == ["-", "35", "+", "39"]
    assert {plan.correction for plan in engine.plans} == {Countdown().correction_prompt(Countdown().parse(POSED))}
    shown = driver.execute_script("return document.querySelectorAll('.attempt pre')[1].textContent")
    assert shown.replace(" \n", "\n").strip() == HARM
    assert not driver.find_elements("css selector", "#results :is(img, script, b)")
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 390


def _check_keys(driver: Any, engine: Scripted) -> None:
    """Ctrl+Enter asks, Escape stops, and the server hears of it."""
    engine.hold, before = True, engine.closed
    driver.find_element("id", "text").send_keys("\ue009\ue007")
    until(lambda: _texts(driver, ".attempt pre") == ["30", "30"])
    assert driver.find_element("id", "go").get_attribute("disabled")
    driver.find_element("tag name", "body").send_keys("\ue00c")
    _told(driver, "Stopped.")
    until(lambda: engine.closed == before + 2)
    assert _texts(driver, ".verdict") == ["Stopped", "Stopped"]
    engine.hold = False


def _check_own_problem(driver: Any, engine: Scripted) -> None:
    driver.execute_script(
        "const s = document.getElementById('problem'); s.value = ''; s.dispatchEvent(new Event('change'))"
    )
    driver.execute_script("document.getElementById('with-base').click()")
    _set(driver, "text", "gibberish")
    driver.find_element("id", "go").click()
    _told(driver, "expected two or more whole numbers")
    _set(driver, "text", "30 7 2 = 39")
    _set(driver, "attempts", "1")
    driver.find_element("id", "go").click()
    _told(driver, "Trained: wrong.")
    assert engine.plans[-1].attempts == 1
    for name, value, why in [
        ("attempts", "0", "whole number from 1"),
        ("temperature", "3", "from 0 to 2"),
        ("temperature", "2", "too hot <b>for</b>"),
    ]:
        _set(driver, "attempts", "1")
        _set(driver, name, value)
        driver.execute_script("document.getElementById('ask').noValidate = true")
        driver.find_element("id", "go").click()
        _told(driver, why)


def test_the_page_shows_attempts_as_they_come(driver: Any) -> None:
    engine = Scripted({("new", 1): WRONG, ("new", 2): RIGHT, ("old", 1): RIGHT, ("old", 2): HARM})
    task = Countdown()
    running, _ = serving(
        engine, names=["new", "old"], task=task, problems=[task.parse(POSED)], base="old", key="the key"
    )
    driver.get(f"{running.url}/")
    until(lambda: driver.find_element("id", "key").is_displayed())
    _set(driver, "key", "wrong")
    driver.find_element("css selector", "#key-form button").click()
    until(lambda: "not its key" in driver.find_element("id", "key-told").text)
    driver.get_log("browser")  # the two refusals, which Chromium notes
    _set(driver, "key", "the key")
    driver.find_element("css selector", "#key-form button").click()
    until(lambda: driver.find_element("id", "ask").is_displayed())
    _check_both_models(driver, engine)
    _check_keys(driver, engine)
    assert driver.get_log("browser") == []
    _check_own_problem(driver, engine)
    live = driver.execute_script("return document.getElementById('told').getAttribute('aria-live')")
    assert live == "polite"
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert {url for url in asked if url.startswith("http") and not url.startswith(running.url)} == set()
    running.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.nightly
def test_the_page_follows_the_system_and_the_button(driver: Any, scheme: str) -> None:
    running, _ = serving(Scripted({}), names=["new"])
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    driver.get(f"{running.url}/")
    until(lambda: driver.find_element("id", "ask").is_displayed())
    colour = "return getComputedStyle(document.body).backgroundColor"
    before = driver.execute_script(colour)
    assert before == {"light": "rgb(250, 248, 244)", "dark": "rgb(20, 22, 27)"}[scheme]
    driver.find_element("id", "theme").click()
    assert driver.execute_script(colour) != before
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
    running.close()
