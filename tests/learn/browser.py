"""A headless Chromium, driven over its DevTools protocol: enough of it to test a page."""

import base64
import json
import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import websocket

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-dev-shm-usage",
    "--remote-debugging-port=0", "--remote-allow-origins=*", "about:blank",
)  # fmt: skip
_PATIENCE = 600  # seconds; never waited for on a machine that works, however busy it is


def find_browser() -> str | None:
    """The browser's program: `CHROMIUM` of the environment, or what is installed under a usual name."""
    named = os.environ.get("CHROMIUM")
    return named or next((found for name in _NAMES if (found := shutil.which(name))), None)


@contextmanager
def open_browser(program: str, profile: Path):
    """A page of a fresh browser; profile: an empty folder for its data."""
    arguments = [program, *_FLAGS[:-1], f"--user-data-dir={profile}", _FLAGS[-1]]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    connection = None
    try:
        port, path = _endpoint(process, profile)
        connection = websocket.create_connection(f"ws://127.0.0.1:{port}{path}", timeout=_PATIENCE)
        yield Page(connection)
    finally:
        if connection is not None:
            connection.close()
        process.terminate()
        try:
            process.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _endpoint(process, profile: Path) -> list[str]:
    """The port and the path that the browser writes down once it listens."""
    note, deadline = profile / "DevToolsActivePort", time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        lines = note.read_text().split() if note.exists() else []
        if len(lines) == 2:
            return lines
        time.sleep(0.05)
    raise RuntimeError(f"the browser did not start: exit code {process.poll()}")


class Page:
    """A tab: `evaluate` runs JavaScript in it; `complaints` are the errors and warnings of its console."""

    def __init__(self, connection):
        self._connection, self._count, self._events = connection, 0, []
        target = self._call("Target.createTarget", {"url": "about:blank"}, None)["targetId"]
        attach = {"targetId": target, "flatten": True}
        self._session = self._call("Target.attachToTarget", attach, None)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters) -> dict:
        """A method of the DevTools protocol. Raises RuntimeError with the browser's message."""
        return self._call(method, parameters, self._session)

    def _call(self, method, parameters, session) -> dict:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        self._connection.send(json.dumps(message | ({"sessionId": session} if session else {})))
        while True:
            reply = json.loads(self._connection.recv())
            if reply.get("id") == self._count:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']['message']}")
                return reply["result"]
            self._events.append(reply)

    def open(self, url: str):
        """Load a page and wait until its script has run."""
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            if self.evaluate("document.readyState === 'complete' && location.href !== 'about:blank'"):
                return
            time.sleep(0.05)
        raise RuntimeError(f"{url} did not load in {_PATIENCE} s")

    def evaluate(self, expression: str):
        """The value of a JavaScript expression, a promise's once it is kept."""
        reply = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        if "exceptionDetails" in reply:
            details = reply["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return reply["result"].get("value")

    def press(self, key: str):
        """Press and let go of a key, by its name, such as "ArrowRight"."""
        codes = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key],
                **(text if kind == "keyDown" else {}),
            )  # fmt: skip

    def resize(self, width: int, height: int, *, dark: bool = False):
        """The window's size in CSS pixels, and which colours the reader prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path):
        """Save what the window shows, as a PNG."""
        picture = self.call("Page.captureScreenshot", format="png")["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(picture))

    @property
    def complaints(self) -> list[str]:
        """What the console has shown so far: errors, warnings, exceptions, refused requests."""
        found = []
        for event in self._events:
            parameters, method = event.get("params", {}), event.get("method")
            if method == "Runtime.exceptionThrown":
                found.append(str(parameters["exceptionDetails"].get("exception", {}).get("description")))
            elif method == "Runtime.consoleAPICalled" and parameters["type"] in (
                "error",
                "warning",
                "assert",
            ):
                found.append(str([each.get("value") for each in parameters["args"]]))
            elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
                found.append(parameters["entry"]["text"])
        return found

    @property
    def requests(self) -> list[str]:
        """The address of everything that was asked for."""
        return [
            event["params"]["request"]["url"]
            for event in self._events
            if event.get("method") == "Network.requestWillBeSent"
        ]
