"""The command `xpcnn`: it returns a status, and answers a user's mistake with one line and status 2.

Each command is a module of this package with `run(arguments) -> status`, imported when it is called.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

from xpcnn.cli.arguments import Usage, parse
from xpcnn.cli.streams import Stream, standard_streams
from xpcnn.errors import NonFiniteError, OutOfMemoryError, XpcnnError

FAILED, MISTAKE, SIGNALLED = 1, 2, 128  # SIGNALLED + number of the signal, as shells report it
_LEAVES_FILES = ("train",)  # what it says is said by its folder too


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments, by default those of the process.

    Returns
    -------
    int
        0, or 1 where the command found something wrong or could not say what it found, 2 for a user's mistake, 130
        after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP. A reader that stops early, such as `head`, is no error.
    """
    with standard_streams() as (out, _):
        name, status = _run(argv)
        out.flush()
        status = _said(name, status, out)
        ending = _ranks(argv)
        if ending is not None:
            ending.end_job(status)
        return status


def _run(argv: Sequence[str] | None) -> tuple[str, int]:
    """Return what the command is called, and its status."""
    name = "xpcnn"
    try:
        arguments = parse(argv)
        if arguments is None:  # help or version, which are printed
            return name, 0
        name = f"xpcnn {arguments.command}"
        return name, int(importlib.import_module(f"xpcnn.cli.{arguments.command}").run(arguments))
    except KeyboardInterrupt as error:
        _tell(argv, f"{name}: ", "interrupted")
        return name, SIGNALLED + getattr(error, "signum", 2)
    except Usage as error:
        _tell(argv, "", str(error))
        return name, MISTAKE
    except XpcnnError as error:
        _tell(argv, f"{name}: ", " ".join(str(error).split()))
        return name, FAILED if isinstance(error, (NonFiniteError, OutOfMemoryError)) else MISTAKE


def _ranks(argv: Sequence[str] | None) -> Any:
    """Return what ends a job of several ranks; None where there is no such job."""
    if "--distributed" not in (sys.argv[1:] if argv is None else argv):
        return None
    from xpcnn.distributed import ending

    return ending


def _tell(argv: Sequence[str] | None, name: str, text: str) -> None:
    """Print why a command ends; of several ranks one does, and says which it is."""
    ending = _ranks(argv)
    rank = "" if ending is None else ending.may_speak()
    if rank is not None:
        print(f"{name}{rank}{text}", file=sys.stderr, flush=True)


def _said(name: str, status: int, out: Stream) -> int:
    """Return the status where standard output may not have taken what was printed."""
    if out.error is None or isinstance(out.error, BrokenPipeError):
        return status
    print(f"{name}: standard output cannot be written: {out.error.strerror}", file=sys.stderr)
    return status if status or name.removeprefix("xpcnn ") in _LEAVES_FILES else FAILED
