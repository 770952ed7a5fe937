"""Takes the picture of TensorBoard that README shows: ``python scripts/screenshot.py RUN`` (``make screenshot``).

Starts TensorBoard on the folder of a finished run, opens the TIME SERIES page in a headless browser with the curves of ``TAGS`` only,
and writes ``docs/tensorboard.png``. It needs, beside the project, a browser and what drives it: Debian's ``chromium``
(``apt-get install chromium``) or another one that the variable ``BROWSER`` names, and ``pip install playwright``, whose own
browsers are not needed.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

PICTURE = Path(__file__).parents[1] / "docs" / "tensorboard.png"
TAGS = ("judge/win_rate", "judge/score", "kl/reference", "reward/mean", "response/length", "weights/effective_sample_size")
SIZE = {"width": 1500, "height": 850}
SECONDS = 120


@contextmanager
def tensorboard(run: Path) -> Iterator[str]:
    """The address where TensorBoard shows ``run``, until the context ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(run), "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(SECONDS):
            try:
                with urlopen(f"{address}/data/plugin/timeseries/tags") as answer:
                    if TAGS[0] in answer.read().decode():
                        break
            except URLError:
                pass
            time.sleep(1)
        else:
            raise TimeoutError(f"TensorBoard shows no {TAGS[0]} of {run} after {SECONDS} s: is it a finished run of the quickstart?")
        yield address
    finally:
        server.terminate()
        server.wait()


def take(address: str, browser: str, picture: Path) -> None:
    """Wait until every curve is drawn, then write the picture."""
    from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]  (not a dependency of the project)

    only = quote("^(" + "|".join(TAGS) + ")$")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport=SIZE)  # type: ignore[arg-type]
        page.goto(f"{address}/?darkMode=false&tagFilter={only}&smoothing=0#timeseries")
        page.set_default_timeout(1000 * SECONDS)
        page.locator("scalar-card").first.wait_for(state="attached")
        for switch in ("Ignore outliers in chart scaling", "Enable step selection and data table"):
            page.get_by_text(switch).click()
        page.get_by_role("button", name="Settings").last.click()  # the pane makes way for the curves
        page.locator("scalar-card").nth(len(TAGS) - 1).wait_for(state="attached")  # a card is made when it comes into view
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(3000)  # curves are drawn with an animation
        page.screenshot(path=picture)
        chromium.close()


def main(arguments: list[str]) -> int:
    """Take the picture of the run that is named."""
    browser = os.environ.get("BROWSER") or shutil.which("chromium")
    if len(arguments) != 1 or browser is None:
        print(__doc__, file=sys.stderr)
        return 2
    with tensorboard(Path(arguments[0])) as address:
        take(address, browser, PICTURE)
    print(f"{PICTURE}: {PICTURE.stat().st_size // 1000} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
