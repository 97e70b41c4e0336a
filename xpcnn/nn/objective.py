"""The loss of a whole network and its gradients, as the exercise notebook's `loss(X, y)` gives them."""

from __future__ import annotations

from typing import Any

from xpcnn.backend import Array, backend_of
from xpcnn.nn.loss import CrossEntropyLoss
from xpcnn.nn.module import Module


def loss_and_gradients(
    model: Module, x: Array, labels: Array, *, reg: float = 0.0, criterion: Any = None
) -> tuple[Array, dict[str, Array]]:
    """Return the loss of a batch, with L2 decay of the weights, and its gradients.

    loss = criterion(model(x), labels) + reg / 2 * sum of W^2 over all weights. Biases and the parameters of batch norm
    (one axis) do not decay.

    Parameters
    ----------
    model : Module
        Its parameters stay as they are; gradients that it held are lost.
    x, labels : array
        A batch, as model and criterion take it.
    reg : float
        The decay; as `weight_decay` of an optimiser would have it.
    criterion : loss object, optional
        Softmax cross-entropy, averaged, by default.

    Returns
    -------
    loss : 0-d array
    gradients : dict of str to array
        By the names of `model.named_parameters()`; the caller's own copies.

    Examples
    --------
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    >>> loss, gradients = nn.loss_and_gradients(model, np.ones((2, 3, 8, 8), "float32"), np.array([3, 7]))
    >>> {name: gradient.shape for name, gradient in gradients.items()}
    {'1.weight': (10, 192), '1.bias': (10,)}
    """
    criterion = CrossEntropyLoss() if criterion is None else criterion
    model.zero_grad()
    loss = criterion(model(x), labels)
    model.backward(criterion.backward(), input_gradient=False)
    gradients = {}
    for name, parameter in model.named_parameters():
        backend = backend_of(parameter.data)
        gradient = backend.copy(parameter.grad)
        if reg and len(parameter.shape) > 1:
            loss = loss + 0.5 * reg * backend.xp.sum(parameter.data * parameter.data)
            gradient += reg * parameter.data
        gradients[name] = gradient
    model.zero_grad()
    return loss, gradients
