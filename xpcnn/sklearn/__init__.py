"""Networks as scikit-learn's estimators: in pipelines, grid searches, calibration, and whatever else takes them.

Needs scikit-learn: `pip install ".[sklearn]"`.
"""

from xpcnn.errors import ConfigError
from xpcnn.extras import install_line

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ConfigError(f"xpcnn.sklearn needs scikit-learn, which is not installed: {install_line('sklearn')}") from error

from xpcnn.sklearn.classifier import CNNClassifier

__all__ = ["CNNClassifier"]
