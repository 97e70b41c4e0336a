"""Training: the trainer, what it measures and tells, and checkpoints to go on from."""

from xpcnn.training.arrays import load_parameters, save_parameters
from xpcnn.training.averaging import ModelAverage
from xpcnn.training.callbacks import Callback
from xpcnn.training.checkpoint import Checkpointer
from xpcnn.training.early_stopping import EarlyStopping
from xpcnn.training.history import History
from xpcnn.training.lock import FolderLock
from xpcnn.training.lr_finder import LearningRateFinder
from xpcnn.training.metrics import Metrics, RunningAverage
from xpcnn.training.model_file import load_model, save_model
from xpcnn.training.per_class import ClassMetrics, class_metrics
from xpcnn.training.predictor import Prediction, Predictor
from xpcnn.training.progress import Progress
from xpcnn.training.tensorboard import TensorBoard
from xpcnn.training.torch_state import to_torch_state_dict
from xpcnn.training.trainer import Trainer

__all__ = [
    "Callback",
    "Checkpointer",
    "ClassMetrics",
    "EarlyStopping",
    "FolderLock",
    "History",
    "LearningRateFinder",
    "Metrics",
    "ModelAverage",
    "Prediction",
    "Predictor",
    "Progress",
    "RunningAverage",
    "TensorBoard",
    "Trainer",
    "class_metrics",
    "load_model",
    "load_parameters",
    "save_model",
    "save_parameters",
    "to_torch_state_dict",
]
