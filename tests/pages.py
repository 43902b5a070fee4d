"""Open every page of a built site in headless Chromium, and say what is wrong with it.

    python -m jaxnn.learn.site --out out/site
    python tests/pages.py out/site [WORD ...] [--screenshots DIR]

Each page, or each with one of the words in its name, is opened from disk without the network at
two widths, light and dark: errors of the console, what is wider than its box, formulas without a
size, drawings without a name or with small text, faint text (`tests/pages.js`), links to what is
not there. And the search is asked. The browser is driven through its debugging pipe.
"""

import argparse
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

PROBE = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")
FLAGS += ("--disable-sync", "--no-first-run", "--remote-debugging-pipe")
WIDTHS = {"desktop": 1280, "phone": 390}
THEMES = ("light", "dark")
# Made by Sphinx alone.
LISTS = ("genindex.html", "py-modindex.html")
ASKED = "layer norm"


class Browser:
    """Chromium with one page, spoken to by its DevTools protocol: JSON, ended by a zero byte."""

    def __init__(self, folder: str) -> None:
        """Start it, with a profile of its own in a folder."""
        name = next((found for each in BROWSERS if (found := shutil.which(each))), None)
        if name is None:
            raise SystemExit(f"there is none of {', '.join(BROWSERS)} on the path")
        theirs, self._to = os.pipe()
        self._from, ours = os.pipe()
        command = [name, *FLAGS, f"--user-data-dir={folder}"]
        self._process = subprocess.Popen(
            ["sh", "-c", f'exec "$@" 3<&{theirs} 4>&{ours}', "sh", *command],
            pass_fds=(theirs, ours),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(ours)
        self._rest, self._count, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events before it are kept."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])
            self.events.append(answer)

    def open(self, url: str) -> None:
        """Open a page and wait until it is loaded."""
        self.events.clear()
        self.ask("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def value(self, script: str) -> Any:
        """Run a script in the page and return its value, once it has one."""
        answer = self.ask(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def look(self, width: int, theme: str) -> None:
        """Show the page at a width, to someone who likes it light or dark."""
        phone = width < 600
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=844 if phone else 900,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        wanted = [{"name": "prefers-color-scheme", "value": theme}]
        self.ask("Emulation.setEmulatedMedia", features=wanted)

    def said(self) -> Iterator[str]:
        """Give errors and warnings that the console has had."""
        for event in self.events:
            about = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                details = about["exceptionDetails"]
                yield details.get("exception", {}).get("description", details["text"])
            if event["method"] == "Runtime.consoleAPICalled" and about["type"] in (
                "error",
                "warning",
                "assert",
            ):
                yield " ".join(str(arg.get("value", "")) for arg in about["args"])
            if event["method"] == "Log.entryAdded" and about["entry"]["level"] != "info":
                yield f"{about['entry']['text']} {about['entry'].get('url', '')}"

    def close(self) -> None:
        """End it."""
        self._session = ""
        self.ask("Browser.close")
        self._process.wait(20)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._from, 1 << 20)
            if not more:
                raise RuntimeError("the browser has ended")
            self._rest += more
        text, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(text))


def faults(browser: Browser, page: Path, screenshots: Path | None) -> list[str]:
    """Return what is wrong with a page: each fault once, with where it shows."""
    where: dict[str, list[str]] = {}
    for screen, width in WIDTHS.items():
        browser.look(width, "light")
        if screen == next(iter(WIDTHS)):
            browser.open(page.as_uri())
        for theme in THEMES:
            browser.look(width, theme)
            for fault in browser.value(PROBE):
                where.setdefault(fault, []).append(f"{screen} {theme}")
            if screenshots is not None:
                _photograph(browser, screenshots / f"{page.stem}_{screen}_{theme}.png")
    told = [f"console: {text}" for text in browser.said()]
    everywhere = len(WIDTHS) * len(THEMES)
    return told + [
        fault if len(on) == everywhere else f"{fault} ({', '.join(on)})"
        for fault, on in where.items()
    ]


def _photograph(browser: Browser, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = browser.ask("Page.getLayoutMetrics")["cssContentSize"]
    clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 9000), "scale": 1}
    taken = browser.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
    path.write_bytes(base64.b64decode(taken["data"]))


def broken_links(page: Path) -> list[str]:
    """Return the links of a page that lead to no file, or to no place in one."""
    bad = []
    text = page.read_text(encoding="utf-8")
    for link in dict.fromkeys(
        re.findall(r'<(?:a|link|script|img)\b[^>]*?(?:href|src)="([^"]+)"', text)
    ):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = page.parent / unquote(parts.path) if parts.path else page
        if not target.is_file():
            bad.append(f"a link leads to no file: {link}")
        elif parts.fragment and target.suffix == ".html":
            ids = _ids(target)
            if unquote(parts.fragment) not in ids:
                bad.append(f"a link leads to no place: {link}")
    return bad


_known: dict[Path, set[str]] = {}


def _ids(page: Path) -> set[str]:
    page = page.resolve()
    if page not in _known:
        found = re.findall(r'\bid="([^"]+)"', page.read_text(encoding="utf-8"))
        _known[page] = {*found, ""}
    return _known[page]


def search(browser: Browser, site: Path) -> list[str]:
    """Ask the search from disk; return what is wrong with its answer."""
    browser.open(f"{(site / 'search.html').as_uri()}?q={ASKED.replace(' ', '+')}")
    found = browser.value(
        """new Promise((done) => {
          const until = Date.now() + 5000;
          const look = () => {
            const links = document.querySelectorAll("#search-results li a");
            if (links.length || Date.now() > until) done([...links].map((a) => a.href));
            else setTimeout(look, 50);
          };
          look();
        })"""
    )
    told = [f"console: {text}" for text in browser.said()]
    return told + ([] if found else [f"the search for {ASKED!r} finds nothing"])


def main(argv: list[str] | None = None) -> int:
    """Open the pages; return 1 if anything is wrong."""
    parser = argparse.ArgumentParser("pages.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("site", type=Path)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--screenshots", type=Path)
    given = parser.parse_args(argv)
    site = given.site.resolve()
    pages = [
        page
        for page in sorted(site.rglob("*.html"))
        if "_static" not in page.parts
        and page.name not in LISTS
        and (not given.words or any(w in str(page.relative_to(site)) for w in given.words))
    ]
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as folder:
        browser = Browser(folder)
        for page in pages:
            name = page.relative_to(site)
            found = faults(browser, page, given.screenshots) + broken_links(page)
            wrong += len(found)
            for fault in found:
                print(f"{name}: {fault}", flush=True)
        searched = search(browser, site)
        browser.close()
    for fault in searched:
        print(f"search.html: {fault}")
    print(f"{len(pages)} pages, {wrong + len(searched)} faults")
    return int(bool(wrong or searched or not pages))


if __name__ == "__main__":
    sys.exit(main())
