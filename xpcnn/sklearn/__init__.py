"""Networks as scikit-learn's estimators: in pipelines, grid searches, calibration, and whatever else takes them.

Needs scikit-learn: `pip install ".[sklearn]"`.
"""

from typing import Any

try:
    import sklearn  # noqa: F401
except ImportError:
    # `help(xpcnn)` looks at every module, whether what that needs is there or not.
    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from xpcnn.errors import ConfigError
        from xpcnn.extras import install_line

        raise ConfigError(f"xpcnn.sklearn needs scikit-learn, which is not installed: {install_line('sklearn')}")
else:
    from xpcnn.sklearn.classifier import CNNClassifier

__all__ = ["CNNClassifier"]
