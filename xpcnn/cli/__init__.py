"""The command `xpcnn`: it returns a status, and answers a user's mistake with one line and status 2.

Each command is a module of this package with `run(arguments) -> status`, imported when it is called.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from xpcnn.cli.arguments import Usage, parse
from xpcnn.errors import NonFiniteError, OutOfMemoryError, XpcnnError

FAILED, MISTAKE, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments, by default those of the process.

    Returns
    -------
    int
        0, or 1 where the command found something wrong, 2 for a user's mistake, 130 after Ctrl-C.
    """
    name = "xpcnn"
    try:
        arguments = parse(argv)
        if arguments is None:  # help or version, which are printed
            return 0
        name = f"xpcnn {arguments.command}"
        status = importlib.import_module(f"xpcnn.cli.{arguments.command}").run(arguments)
        sys.stdout.flush()
        return int(status)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Usage as error:
        print(error, file=sys.stderr)
        return MISTAKE
    except XpcnnError as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED if isinstance(error, (NonFiniteError, OutOfMemoryError)) else MISTAKE
