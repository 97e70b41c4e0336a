"""`xpcnn predict`: which digit a picture shows."""

from __future__ import annotations

import argparse

from xpcnn.errors import ConfigError

_SHOWN = 3  # classes of each picture, the likeliest first


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each picture; nothing is printed unless all can be read."""
    from xpcnn import recipes
    from xpcnn.backend import use_backend
    from xpcnn.datasets import load_image

    model, recipe, _, kind = recipes.load_model(arguments.folder, backend=arguments.backend)
    if kind != "mnist":
        raise ConfigError(f"{arguments.folder}: expected a network for digits, got one for {kind}")
    digits = [load_image(path) for path in arguments.images]
    backend = model.backend
    width = max(len(path) for path in arguments.images)
    with use_backend(backend.name):
        for path, digit in zip(arguments.images, digits, strict=True):
            x = recipe.transforms[kind](backend.asarray(digit[None]))  # (1, C, H, W)
            shares = backend.to_numpy(recipes.probabilities(model, x))[0].tolist()
            best = sorted(range(len(shares)), key=lambda i: -shares[i])[:_SHOWN]
            others = ", ".join(f"{i} {shares[i]:.4f}" for i in best[1:])
            print(f"{path:{width}}  {best[0]}  {shares[best[0]]:.4f}  (else {others})")
    return 0
