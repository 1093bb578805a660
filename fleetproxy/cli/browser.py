"""`--browser`: show the dashboard as soon as it is there."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import webbrowser


def add_browser(options: argparse.ArgumentParser) -> None:
    options.add_argument("--browser", action="store_true", help="open the dashboard in the browser once it is there")


def show(url: str) -> None:
    """Open the address in the user's browser, without waiting for it; on a machine without a desktop, do nothing."""
    desktop = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    # Without one there are browsers that would take the terminal.
    if desktop:
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
