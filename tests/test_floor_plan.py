"""The house rule: a module imports only from lower floors, and rooms on one floor do not know each other."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import distcap

FLOORS = (
    {
        "types",
        "checks",
        "pictures",
        "files",
        "run_files",
        "writable",
        "signals",
        "functional",
        "ngrams",
        "corruptions",
        "shipped",
    },
    {"models", "data", "finding"},
    {"view", "corpus", "trained"},
    {"experience"},  # knows a corpus by its protocol alone
    {"rewards", "baselines", "objectives", "metrics", "health"},
    {"stages", "callbacks", "report", "export"},
    # Commands: they know each other, and import late what is heavy.
    {
        "cli",
        "commands",
        "lightning_cli",
        "run_folder",
        "checkpoints",
        "curves",
        "steps",
        "quickstart",
        "walk",
        "reproduce",
        "ablation",
        "records",
        "caption",
        "demo",
    },
)
FOUNDATION = "types"
"""Known to all, its neighbours too."""

ROOT = Path(distcap.__file__).parent
MODULES = sorted(file.relative_to(ROOT.parent) for file in ROOT.rglob("*.py"))


def floor(room: str) -> int:
    found = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    assert found, f"distcap.{room} is on no floor; give it one in {Path(__file__).name}"
    return found[0]


def imported_rooms(source: str) -> set[str]:
    """The rooms of distcap that a module imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    rooms = {name.split(".")[1] for name in names if name.startswith("distcap.")}
    return rooms - {"__version__"}


def allowed(room: str, other: str) -> bool:
    top = floor(room) == len(FLOORS) - 1
    return other in (room, FOUNDATION) or floor(other) < floor(room) or (top and floor(other) == floor(room))


@pytest.mark.parametrize("file", MODULES, ids=str)
def test_a_module_imports_only_from_lower_floors(file: Path):
    room = file.with_suffix("").parts[1]
    if room == "__init__":
        assert not imported_rooms((ROOT.parent / file).read_text())
        return
    rooms = imported_rooms((ROOT.parent / file).read_text())
    assert not [other for other in rooms if not allowed(room, other)]


def test_the_rule_sees_upward_and_sideways_imports():
    assert imported_rooms("def f():\n    from distcap.rewards.clip import ClipSimilarity") == {"rewards"}
    assert imported_rooms("import distcap.models.clip as c\nfrom distcap import types, __version__") == {
        "models",
        "types",
    }
    assert not allowed("experience", "rewards")
    assert not allowed("rewards", "metrics")
    assert allowed("rewards", "experience")
    assert allowed("ngrams", "types")


@pytest.mark.parametrize("file", MODULES, ids=str)
def test_every_module_can_be_imported_and_says_what_it_holds(file: Path):
    parts = file.with_suffix("").parts
    assert import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts)).__doc__


HEAVY = {"torch", "lightning", "transformers", "open_clip", "wandb", "pycocoevalcap", "matplotlib", "nltk"}
LATE = HEAVY - {"torch", "lightning"}
"""Imported where they are used. Libraries may import each other: the rooms that are heavy themselves are left out."""


def loaded_by(module: str) -> set[str]:
    code = f"import sys, {module}; print(*(name.split('.')[0] for name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(found.stdout.split())


def test_the_command_line_answers_before_anything_heavy_is_imported():
    assert not loaded_by("distcap.cli") & HEAVY


@pytest.mark.parametrize("module", ["distcap.rewards", "distcap.report"])
def test_heavy_libraries_are_imported_where_they_are_used(module: str):
    assert not loaded_by(module) & LATE
