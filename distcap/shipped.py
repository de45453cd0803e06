"""The configs that come with distcap."""

from collections.abc import Sequence
from pathlib import Path

from distcap.types import UserError


def configs_folder() -> Path:
    """Where the shipped YAML files are: inside the installed package, or at the top of a checkout."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "configs"


def find_configs(args: Sequence[str]) -> list[str]:
    """The arguments with each YAML that is no file here replaced by the shipped one of that name.

    Those are the values of --config, and of options that take a piece of a config, such as --data data/nocaps.yaml.
    """
    found = list(args)
    for position, argument in enumerate(found):
        option, equals, value = argument.partition("=")
        if not option.startswith("-"):
            continue
        target = position if equals else position + 1
        name = value if equals else found[target] if target < len(found) else ""
        is_config = name.endswith(".yaml") or (name and option in ("--config", "-c"))
        if not is_config or name.startswith("-"):
            continue
        if Path(name).is_file():
            _require_text(Path(name))
            continue
        shipped = configs_folder() / name
        if not shipped.is_file():
            raise UserError(
                f"{name}: no such config, neither here nor among the shipped ones; `distcap configs` lists them"
            )
        found[target] = f"{option}={shipped}" if equals else str(shipped)
    return found


def _require_text(file: Path) -> None:
    """Raises UserError if a config is not in UTF-8, which YAML's reader would tell without its name."""
    try:
        file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: a config that can't be read as text in UTF-8 ({error}); save it in that encoding"
        ) from error
