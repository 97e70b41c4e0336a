"""Pictures of a training as figures and PNG files: curves, predictions, confusion, filters, maps. Needs matplotlib."""

from xpcnn.plot.confusion import confusion_matrix
from xpcnn.plot.curves import history
from xpcnn.plot.digits import predictions
from xpcnn.plot.features import feature_maps, filters
from xpcnn.plot.heat import grad_cam, saliency
from xpcnn.plot.rates import learning_rates

__all__ = [
    "confusion_matrix",
    "feature_maps",
    "filters",
    "grad_cam",
    "history",
    "learning_rates",
    "predictions",
    "saliency",
]
