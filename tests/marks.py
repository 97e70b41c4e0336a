"""Marks of tests that ask for what a switch of the environment takes away."""

import pytest

from xpcnn.backend import is_portable
from xpcnn.backend.graph import compiled

needs_speed = pytest.mark.skipif(is_portable(), reason="XPCNN_PORTABLE=1 leaves away what is there for speed alone")
needs_recording = pytest.mark.skipif(not compiled.is_enabled(), reason="XPCNN_COMPILE or XPCNN_PORTABLE forbids it")
