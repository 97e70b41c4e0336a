"""The shim's own: kernels that are kept are those that were asked for."""

import subprocess

import pytest

from . import shim

pytestmark = pytest.mark.gpu_static
KERNEL = 'extern "C" __global__ void nothing(int n)\n{\n}\n'


def test_kept_kernels_are_found_by_all_that_they_are_made_of(tmp_path, monkeypatch):
    monkeypatch.setenv("XPCNN_SHIM_FOLDER", str(tmp_path))
    make = shim.library.__wrapped__  # what another process would do
    make("f", KERNEL)
    (first,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", None)
        make("f", KERNEL)
    for changed in (("d", KERNEL), ("f", KERNEL + "\n"), ("f", KERNEL, ("-DOTHER=1",))):
        make(*changed)
    monkeypatch.setattr(shim, "compiler", lambda: "another")
    make("f", KERNEL)
    kept = set(tmp_path.iterdir())
    assert first in kept
    assert len(kept) == 5
    assert {path.suffix for path in kept} == {".so"}
