"""What may be typed: the commands, their arguments and their help."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

import xpcnn

CONTENTS = (  # of `xpcnn --help`; a command that is not named here comes last
    ("Train", ("train", "recipes")),
    ("Use what was trained", ("predict", "evaluate", "serve", "export")),
    ("Learn and look", ("guide", "gradcheck", "info")),
)


class Usage(Exception):
    """The arguments make no sense; the message is one line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Usage(f"{self.prog}: {message}; see {self.prog} --help")


def parse(argv: Sequence[str] | None) -> argparse.Namespace | None:
    """Return the arguments; None where they asked for help or the version.

    Raises
    ------
    Usage
        They make no sense.
    """
    try:
        arguments, unknown = _parser().parse_known_args(argv)
    except SystemExit:
        return None
    if unknown:
        name = f"xpcnn {arguments.command}"
        raise Usage(f"{name}: unrecognized arguments: {' '.join(unknown)}; see {name} --help")
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="xpcnn",
        usage="xpcnn [-h] [--version] COMMAND ...",
        description="Train and use convolutional networks on NumPy or a GPU.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"xpcnn {xpcnn.__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", prog="xpcnn", help=argparse.SUPPRESS
    )

    train = commands.add_parser(
        "train",
        help="train a recipe, and leave a run folder",
        epilog="Ctrl-C, SIGTERM and SIGHUP let the step end, leave a checkpoint for --resume and end with status 128 + "
        "the number of the signal.",
    )
    train.add_argument("recipe", nargs="?", metavar="RECIPE", help="see `xpcnn recipes` (lenet5)")
    _add_backend(train)
    train.add_argument(
        "--data",
        metavar="D",
        help="mnist (carried); a folder with one sub-folder of pictures a class, or with such folders train and test; "
        "one of IDX files (MNIST, EMNIST; FOLDER/emnist-digits chooses one of several sets) or of CIFAR-10; an .npz "
        "file; mnist.pkl.gz; with --resume, where the run's data lies now",
    )
    train.add_argument("--image-size", type=int, metavar="N", help="pixels a side to which pictures are brought")
    train.add_argument("--skip-broken", action="store_true", help="leave out pictures that cannot be read")
    train.add_argument(
        "--augment", metavar="A", help="change images at random: shift (digits, letters) or photo (none)"
    )
    train.add_argument("--patience", type=int, metavar="N", help="stop after N epochs without a better validation loss")
    train.add_argument(
        "--epochs", type=int, metavar="N", help="passes over the data (the recipe's; more of few pictures)"
    )
    train.add_argument(
        "--batch-size", type=int, metavar="N", help="images in a batch (the recipe's; fewer of few pictures)"
    )
    train.add_argument("--lr", type=float, metavar="R", help="learning rate, before its schedule (the recipe's)")
    train.add_argument("--seed", type=int, metavar="S", help="of initial values, order and dropout (0)")
    train.add_argument("--out", metavar="DIR", help="the run folder (runs/RECIPE-DATE-TIME)")
    train.add_argument(
        "--as-written",
        action="store_true",
        help="with the initial values and rates of the recipe's source, uncorrected",
    )
    train.add_argument("--precision", metavar="P", help="float32 or float16 (float32)")
    train.add_argument(
        "--distributed",
        action="store_true",
        help="train with the other ranks that a launcher has started: mpiexec -n 4 xpcnn train --distributed",
    )
    train.add_argument(
        "--sync-batch-norm", action="store_true", help="with --distributed: statistics of whole batches, not of parts"
    )
    train.add_argument("--resume", action="store_true", help="go on with the run in --out DIR")

    evaluate = commands.add_parser("evaluate", help="test the network of a run folder or model file")
    evaluate.add_argument("source", metavar="RUN_DIR|MODEL_FILE")
    _add_backend(evaluate)
    evaluate.add_argument(
        "--data", metavar="D", help="test on other data (the run's), such as a folder of sub-folders of pictures"
    )
    evaluate.add_argument("--json", action="store_true", help="print it as JSON")

    predict = commands.add_parser("predict", help="say what pictures show")
    predict.add_argument("source", metavar="RUN_DIR|MODEL_FILE")
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="a picture; of one digit for networks of MNIST")
    _add_backend(predict)
    predict.add_argument("--json", action="store_true", help="print it as JSON, with all probabilities")

    serve = commands.add_parser("serve", help="a page to draw on or drop a picture on, and to see inside the network")
    serve.add_argument("source", metavar="RUN_DIR|MODEL_FILE")
    _add_backend(serve)
    serve.add_argument("--port", type=int, metavar="P", help="of the page (the first free one from 8000)")
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="H",
        help="address to bind to (127.0.0.1, this machine alone); 0.0.0.0 lets in everybody who reaches this machine",
    )

    export = commands.add_parser("export", help="write a trained network to an ONNX file")
    export.add_argument("source", metavar="RUN_DIR|MODEL_FILE")
    export.add_argument("out", metavar="OUT.onnx", help="replaced where it is there")
    export.add_argument("--input-shape", metavar="C,H,W", help="of one image, where the network takes any size")
    export.add_argument("--opset", type=int, default=21, metavar="N", help="version of ONNX's operators, 18 to 21 (21)")
    export.add_argument("--fold", action="store_true", help="batch norm goes into the layers before it")

    guide = commands.add_parser("guide", help="read a guide: convolution, training, data, the GPU, files, ...")
    guide.add_argument("name", nargs="?", metavar="NAME", help="which one; without it, what there is")

    commands.add_parser("recipes", help="list the recipes")
    _add_backend(commands.add_parser("info", help="what runs here, how fast it multiplies, what would make it faster"))

    gradcheck = commands.add_parser("gradcheck", help="compare a network's gradients with difference quotients")
    gradcheck.add_argument("recipe", nargs="?", default="lenet5", metavar="RECIPE", help="see `xpcnn recipes` (lenet5)")
    _add_backend(gradcheck)
    gradcheck.add_argument("--seed", type=int, default=0, metavar="S", help="of weights, images and chosen entries (0)")
    parser.epilog = _contents({each.dest: each.help or "" for each in commands._choices_actions})
    return parser


def _contents(commands: dict[str, str]) -> str:
    """Return the commands with their one line each, in groups."""
    named = {name for _, names in CONTENTS for name in names}
    width = max(map(len, commands))
    text = ""
    for title, names in (*CONTENTS, ("More", tuple(name for name in commands if name not in named))):
        lines = [f"  {name:{width}}  {commands[name]}\n" for name in names if name in commands]
        text += f"{title}:\n{''.join(lines)}\n" if lines else ""
    return f"{text}`xpcnn COMMAND --help` says what a command takes. To begin: `xpcnn train`, a minute or less."


def _add_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", metavar="B", help="numpy, cupy, cupy:1 or auto (XPCNN_BACKEND, else numpy)")
