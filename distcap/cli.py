"""The command line: LightningCLI for the stages, plain typed functions for the rest.

Commands are told apart before anything heavy is imported, so that `distcap --help` answers at once.
"""

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from distcap import __version__
from distcap.commands import COMMANDS
from distcap.shipped import find_configs
from distcap.signals import Interrupted, ended_by_signals
from distcap.types import UserError

STAGE_COMMANDS = ("fit", "validate", "test", "predict")

HELP = """usage: distcap COMMAND [ARGUMENTS]

Train captioners whose captions find their image among its look-alikes.

stages, configured in YAML (a path, or one of the shipped ones; see `distcap configs`):
  fit        train:                           distcap fit --config demo/mle.yaml --run demo/mle
  validate   metrics on the validation split
  test       metrics on the test split:       distcap test --config demo/mle.yaml --run demo/mle --ckpt_path last
  predict    caption images:                  distcap predict --config demo/mle.yaml --run demo/mle

plain commands:
  caption    caption any images, and see which of them each caption finds
  demo       a page: drop images, see what a run says of them and which of them each caption finds
  quickstart all of distcap on the embedded benchmark, from painting its pictures to the report
  ablation   every system on the embedded benchmark, several seeds, one table
  reproduce  COCO from an empty disk to the results table
  prepare    get ready: coco, flickr30k, nocaps, shards, the embedded benchmark, SPICE
  report     one HTML page that compares the runs of a folder
  export     a Hugging Face folder with a model card, for transformers without distcap
  configs    list the shipped configs

`distcap COMMAND --help` tells more. Any setting of a YAML can be overridden: --model.learning_rate=1e-5.
"""


def main(argv: Sequence[str] | None = None) -> Any:
    """Run a command. Mistakes of the user end in one line and exit code 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return None
    if args[0] == "--version":
        print(f"distcap {__version__}")
        return None
    # The ablation's work is done by other processes, and the page ends by itself.
    ends = nullcontext() if args[0] in ("ablation", "demo") else ended_by_signals()
    try:
        with ends:
            return _command(args)
    except UserError as error:
        print(f"distcap: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("distcap: interrupted", file=sys.stderr)
        sys.exit(130)
    except Interrupted as told:
        # One of several processes that Lightning has started speaks for all.
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        if first:
            print(f"distcap: {told}", file=sys.stderr)
        sys.exit(128 + told.number if first else 0)


def _command(args: list[str]) -> Any:
    if args[0] in STAGE_COMMANDS:
        return _stage(args)
    if args[0] == "demo" and (len(args) == 1 or args[1].partition("=")[0] in ("--run", "--seed", "--size")):
        raise UserError(
            "demo needs a trained run, e.g. distcap demo runs/demo/distcap, and opens a page; "
            "what trains one on the embedded benchmark is `distcap quickstart`"
        )
    if args[0] in COMMANDS:
        return _plain(COMMANDS[args[0]], args[0], args[1:])
    raise UserError(f"unknown command {args[0]!r}; there are {', '.join([*STAGE_COMMANDS, *COMMANDS])}")


def _stage(args: list[str]) -> Any:
    if len(args) == 1:
        raise UserError(f"{args[0]} needs a config, e.g. --config demo/mle.yaml; `distcap configs` lists them")
    found = find_configs(args)  # before the imports, which take their time
    from distcap.lightning_cli import run

    return run(found)


def _plain(command: Callable[..., Any] | dict[str, Callable[..., Any]], name: str, args: list[str]) -> Any:
    from jsonargparse import ArgumentParser

    class OneLineParser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> Any:
            raise UserError(f"{name}: {' '.join(message.split())}; see `distcap {name} --help`") from ex

    if not isinstance(command, dict):
        parser = OneLineParser(prog=f"distcap {name}", description=_summary(command))
        _add_arguments(parser, command)
        return command(**parser.parse_args(args).as_dict())
    parser = OneLineParser(prog=f"distcap {name}")
    choices = parser.add_subcommands(dest="what", title="what")
    for what, function in command.items():
        choice = OneLineParser(description=_summary(function))
        _add_arguments(choice, function)
        choices.add_subcommand(what, choice, help=_summary(function))
    parsed = parser.parse_args(args)
    return command[parsed.what](**parsed[parsed.what].as_dict())


def _summary(command: Callable[..., Any]) -> str:
    """What a command's docstring says before its arguments, which have a help of their own."""
    return (command.__doc__ or "").partition("Args:")[0].strip()


def _add_arguments(parser: Any, command: Callable[..., Any]) -> None:
    """The command's parameters, those without a default as words in their order."""
    # Words in a row: of a positional list, jsonargparse would demand brackets.
    parameters = inspect.signature(command).parameters.items()
    rows: set[str | int] = {key for key, one in parameters if one.annotation == list[str]}
    for row in rows:
        parser.add_argument(str(row), nargs="+", type=str, help="one or more")
    parser.add_function_arguments(command, as_group=False, as_positional=True, skip=rows)


def script() -> None:
    """The console script."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()


if __name__ == "__main__":
    script()
