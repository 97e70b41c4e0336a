"""`python -m xpcnn` is the command `xpcnn`; so is `python FOLDER/xpcnn`."""

import os
import sys

if not __package__:
    # The folder itself was named: Python put it first on the path, where its modules hide those of the same names.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from xpcnn.cli import main

sys.exit(main())
