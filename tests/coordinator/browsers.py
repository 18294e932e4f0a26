"""Debian's chromium, driven as a person would: by its keys, in light and dark, on a desk and on a phone."""

import base64
import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains

MISSING = next((f"no {name} here: apt install {name if name == 'chromium' else 'chromium-driver'}"
                for name in ("chromium", "chromedriver") if shutil.which(name) is None), "")  # fmt: skip
"""Why there is no browser; empty: there is one."""

_WATCH = """
window.longest = 0; window.tasks = [];
new PerformanceObserver((list) => list.getEntries().forEach((one) => window.tasks.push(one.duration)))
  .observe({type: 'longtask', buffered: true});
"""


@dataclass(frozen=True)
class Browser:
    """A browser and the address of the dashboard that it is at."""

    driver: Chrome
    address: str

    def open(self, path: str) -> None:
        """Go to a page, and wait until it is whole."""
        self.run("window.left = true")
        self.driver.get(self.address + path)  # which on a busy machine may come back too early
        self.until(lambda: self.run("return !window.left && document.readyState === 'complete'"))

    def run(self, script: str) -> Any:
        """Let a script run in the page, and give what it returns."""
        return self.driver.execute_script(script)

    def text(self) -> str:
        """Give all that the page says."""
        return str(self.run("return document.body.innerText"))

    def keys(self, *keys: str) -> None:
        """Press keys."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def tab_to(self, words: str, key: str) -> None:
        """Press a key until what has the focus says these words."""
        for _ in range(80):
            self.keys(key)
            if words in self.focused():
                return
        raise AssertionError(f"{words!r} cannot be reached by the keyboard")

    def focused(self) -> str:
        """Give the words of the link or button that has the focus; empty: none has."""
        script = "const a = document.activeElement; return a.matches('a, button, summary') ? a.innerText : ''"
        return str(self.run(script))

    def until(self, what: Callable[[], Any], patience_s: float = 60.0) -> Any:
        """Wait until something is so."""
        end = time.monotonic() + patience_s
        while not (found := what()):
            assert time.monotonic() < end, self.text()[:2000]
            time.sleep(0.1)
        return found

    def figures(self) -> dict[str, float]:
        """Give the numbers on the page by where they stand in the report."""
        script = "return [...document.querySelectorAll('data')].map((one) => [one.dataset.figure, one.value])"
        return {path: float(value) for path, value in self.run(script)}

    def looked(self) -> int:
        """Count how often the page has brought itself up to date."""
        return int(self.run("return Number(document.documentElement.dataset.looked || 0)"))

    def device(self, name: str, value: Any) -> None:
        """Ask chromium's developer tools for something."""
        self.driver.execute_cdp_cmd(name, value)

    def busy_s(self) -> float:
        """Give the processor time that the page's main thread has taken so far."""
        found = self.driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
        return float(next(one["value"] for one in found if one["name"] == "TaskDuration"))

    def size(self, width: int, height: int, phone: bool = False) -> None:
        """Be a screen of this size."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.device("Emulation.setDeviceMetricsOverride", screen)

    def dark(self, dark: bool) -> None:
        """Be a person who likes it dark, or light."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.device("Emulation.setEmulatedMedia", {"features": [scheme]})

    def asked(self) -> list[str]:
        """List the addresses that pages have asked for since the last call."""
        entries = [json.loads(one["message"])["message"] for one in self.driver.get_log("performance")]
        return [one["params"]["request"]["url"] for one in entries if one["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """List what the browser has complained of: scripts that failed, what the page's policy forbade."""
        return [one["message"] for one in self.driver.get_log("browser") if one["level"] == "SEVERE"]

    def picture(self, path: Path, height: int = 0) -> None:
        """Save what is to be seen as a PNG of few colours, `height` pixels high (0: the screen's)."""
        clip = {"captureBeyondViewport": False}
        if height:
            width = self.run("return window.innerWidth")
            clip = {
                "captureBeyondViewport": True,
                "clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1},
            }
        data = self.driver.execute_cdp_cmd("Page.captureScreenshot", clip)["data"]
        _save(base64.b64decode(data), path)


def _save(data: bytes, path: Path) -> None:
    import io

    from PIL import Image

    picture = Image.open(io.BytesIO(data)).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


@contextlib.contextmanager
def browser(address: str, profile: Path) -> Iterator[Browser]:
    """Start a browser with a profile of its own; and end it."""
    options = ChromeOptions()
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium") or ""
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = Chrome(options, Service(shutil.which("chromedriver")))
    try:
        driver.set_page_load_timeout(60)
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": _WATCH})
        driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
        yield Browser(driver, address.partition("?")[0].rstrip("/"))
    finally:
        driver.quit()
