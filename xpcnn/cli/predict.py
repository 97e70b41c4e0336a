"""`xpcnn predict`: what pictures show."""

from __future__ import annotations

import argparse
import json

_SHOWN = 3  # classes of each picture, the likeliest first


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each picture, or one list in JSON; nothing is printed unless all can be read."""
    from xpcnn import recipes

    predictor = recipes.load_predictor(arguments.source, backend=arguments.backend)
    predictions = predictor(arguments.images)
    if arguments.json:
        answer = [
            {
                "image": path,
                "label": each.label,
                "probability": each.probability,
                "probabilities": {str(label): share for label, share in each.top(len(each.probabilities))},
            }
            for path, each in zip(arguments.images, predictions, strict=True)
        ]
        print(json.dumps(answer, indent=1))
        return 0
    width = max(len(path) for path in arguments.images)
    for path, found in zip(arguments.images, predictions, strict=True):
        others = ", ".join(f"{label} {share:.4f}" for label, share in found.top(_SHOWN)[1:])
        print(f"{path:{width}}  {found.label}  {found.probability:.4f}" + (f"  (else {others})" if others else ""))
    return 0
