"""Every kernel compiles with NVRTC for each architecture and dtype, without warnings."""

import re

import pytest

from xpcnn.backend.cupy.kernels import OPTIONS, TYPES, source

from .shim import signatures

pytestmark = pytest.mark.gpu_static
ARCHITECTURES = ["sm_75", "sm_80", "sm_90", "sm_120"]


def compile_for(architecture, kind, text, defines=()):
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(text, "kernels.cu", (), ())
    try:
        nvrtc.compileProgram(program, (*OPTIONS, f"-DREAL={kind}", *defines, f"--gpu-architecture={architecture}"))
        assert not nvrtc.getProgramLog(program).strip("\0 \n")
        return nvrtc.getCUBIN(program)
    finally:
        nvrtc.destroyProgram(program)


@pytest.mark.parametrize("kind", TYPES.values())
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compile(architecture, kind):
    binary = compile_for(architecture, kind, source())
    for name in signatures(source()):
        assert name.encode() in binary


def test_every_kernel_has_a_signature_that_the_shim_reads():
    assert len(signatures(source())) == len(re.findall(r"__global__", source()))


def test_a_broken_kernel_does_not_compile():
    from cupy.cuda import nvrtc

    with pytest.raises(nvrtc.NVRTCError):
        compile_for("sm_80", "float", source().replace("dx[i] = sum;", "dx[i] = sum"))


def test_no_atomics():
    assert "atomic" not in re.sub(r"//.*", "", source())
