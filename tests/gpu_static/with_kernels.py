"""A pytest plugin (`-p tests.gpu_static.with_kernels`): the backend "fake" runs the CUDA kernels on the CPU."""


def pytest_sessionstart() -> None:
    from tests.gpu_static.shim import ShimBackend
    from xpcnn.backend import register_backend

    register_backend(ShimBackend())
