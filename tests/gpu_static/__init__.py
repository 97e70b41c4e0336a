"""Checks of the GPU code on a machine without a GPU: they need CuPy's wheel, NVRTC's and g++ (nox -s gpu_static)."""
