"""Debian's chromium, or whatever XPCNN_BROWSER names, without anything that goes to the net."""

import contextlib
import os
import shutil
import tempfile

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip


def path():
    """Return the browser's path; None where there is none."""
    return os.environ.get("XPCNN_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")


@contextlib.contextmanager
def context(playwright, **options):
    """Give a browser's context with a new folder of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        made = playwright.chromium.launch_persistent_context(
            folder, executable_path=path(), headless=True, args=FLAGS, **options
        )
        try:
            yield made
        finally:
            made.close()
