"""Pictures of a training as figures and PNG files: curves, predictions, confusion, filters, maps. Needs matplotlib."""

from xpcnn.plot.confusion import confusion_matrix
from xpcnn.plot.curves import history
from xpcnn.plot.digits import predictions
from xpcnn.plot.features import feature_maps, filters

__all__ = ["confusion_matrix", "feature_maps", "filters", "history", "predictions"]
