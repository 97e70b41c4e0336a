"""What proves a layer, an operation or a whole model right: derivatives by differences, and strict comparison."""

from xpcnn.testing.comparison import assert_close
from xpcnn.testing.gradcheck import GradcheckReport, gradcheck
from xpcnn.testing.numerical import numerical_gradient, relative_error
from xpcnn.testing.sanity import initial_loss_check, overfit_check

__all__ = [
    "GradcheckReport",
    "assert_close",
    "gradcheck",
    "initial_loss_check",
    "numerical_gradient",
    "overfit_check",
    "relative_error",
]
