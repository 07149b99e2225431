"""A headless Chromium for tests of pages, or a reason why there is none."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

WAIT = 60  # seconds until a page on a busy machine counts as broken


class Browser:
    """One window; every method waits until the page has drawn."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, path: Path, address: str = "", *, width: int = 1280, height: int = 900) -> None:
        """Load a file from disk in a window of that size and wait until it says that it is ready."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        self.driver.get("about:blank")
        self.errors(), self.requests()
        self.driver.get(f"file://{path}{address}")
        end = time.monotonic() + WAIT
        # pages without a script have nothing to get ready
        ready = (
            "document.documentElement.dataset.ready || (!document.scripts.length && document.readyState === 'complete')"
        )
        while not self.driver.execute_script(f"return {ready}"):
            assert time.monotonic() < end, self.errors()
            time.sleep(0.02)

    def run(self, code: str) -> Any:
        """What JavaScript returns, after the next frames were drawn."""
        self.settle()
        return self.driver.execute_script(code)

    def settle(self) -> None:
        """Wait for two frames and for pictures on their way to canvases."""
        wait = (
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 30)));"
        )
        self.driver.execute_async_script(wait)

    def texts(self, selector: str) -> list[str]:
        """The text of all nodes that fit, as it is in the page."""
        return self.run(f"return [...document.querySelectorAll({json.dumps(selector)})].map(n => n.textContent)")

    def box(self, selector: str) -> dict[str, float]:
        """Where the first node that fits lies in the window."""
        return self.run(f"return document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()")

    def _place(self, selector: str, across: float, down: float) -> dict[str, float]:
        self.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        box = self.box(selector)
        return {"x": box["left"] + across * box["width"], "y": box["top"] + down * box["height"]}

    def _mouse(self, kind: str, place: dict[str, float], **more: Any) -> None:
        self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": kind, **place, **more})

    def hover(self, selector: str, *, across: float = 0.5, down: float = 0.5) -> None:
        """Move the pointer to a place of a node, in shares of its size."""
        self._mouse("mouseMoved", self._place(selector, across, down))

    def click(self, selector: str, *, across: float = 0.5, down: float = 0.5) -> None:
        """Click there."""
        place = self._place(selector, across, down)
        for kind in ("mousePressed", "mouseReleased"):
            self._mouse(kind, place, button="left", clickCount=1)

    def tap(self, selector: str, *, across: float = 0.5, down: float = 0.5) -> None:
        """Touch there, as a finger does."""
        place = self._place(selector, across, down)
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
        for kind, points in (("touchStart", [place]), ("touchEnd", [])):
            self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
        time.sleep(0.1)

    def type(self, selector: str, text: str) -> None:
        """Type into a field."""
        self.driver.find_element("css selector", selector).send_keys(text)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of the first select that fits."""
        from selenium.webdriver.support.select import Select

        Select(self.driver.find_element("css selector", selector)).select_by_value(value)

    def press(self, *keys: str) -> None:
        """Press keys one after another: letters, or names such as ENTER."""
        from selenium.webdriver.common.keys import Keys

        for key in keys:
            self.settle()
            self.driver.switch_to.active_element.send_keys(key if len(key) == 1 else getattr(Keys, key))

    def errors(self) -> list[str]:
        """What the console was told since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """All addresses asked for since the last call."""
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (extra dev)")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        assert os.environ.get("CI") != "true", "CI has no chromium: scripts/test.sh installs it"
        pytest.skip("no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(driver)
    window = webdriver.Chrome(options=options, service=service)
    window.set_script_timeout(WAIT)
    yield Browser(window)
    window.quit()
