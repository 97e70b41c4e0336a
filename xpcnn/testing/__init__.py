"""What proves a layer, an operation or a whole model right: derivatives by differences, and strict comparison."""

from xpcnn.testing.comparison import assert_close
from xpcnn.testing.gradcheck import GradcheckReport, gradcheck
from xpcnn.testing.numerical import numerical_gradient, relative_error

__all__ = ["GradcheckReport", "assert_close", "gradcheck", "numerical_gradient", "relative_error"]
