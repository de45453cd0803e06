"""What a run left, damaged or hostile: one line that names the file, at once."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from distcap.run_files import (
    check_yaml,
    read_captions,
    read_json,
    read_metrics,
    read_scores,
    read_warnings,
    read_yaml,
)
from distcap.types import UserError

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
"""A few lines that stand for 9 to the 29th things."""
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 60))
ITSELF = "a: &a [*a]"
DEEP = "a: " + "[" * 50_000
DEEPER = "".join(f"{' ' * n}a:\n" for n in range(500))
HOSTILE = {"laughs": LAUGHS, "merges": MERGES, "itself": ITSELF, "deep": DEEP, "deeper": DEEPER}

ROW = {"image_id": 3, "file": "a.png", "caption": "a dog", "rank": 1.5, "ground_truth": ["a dog"], "lookalike": None}
SCORES = {"image_ids": [1, 2], "scores": {"cider": [0.5, 1.0]}, "signature": {"decoder": "greedy", "data": "x"}}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_yaml_without_bounds_is_one_line_at_once(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    begin = time.perf_counter()
    with pytest.raises(UserError, match=r"config\.yaml: (a YAML|not a run's config)") as error:
        read_yaml(tmp_path / "config.yaml")
    assert "\n" not in str(error.value)
    assert time.perf_counter() - begin < 2


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_the_command_line_does_not_hang_on_one_either(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    begin = time.perf_counter()
    with pytest.raises(SystemExit) as end:
        tiny.run(tmp_path, "fit", "--config", "mine.yaml")
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("distcap: ")
    assert time.perf_counter() - begin < 20


def test_a_config_that_is_larger_than_any_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: 1\n" * 300_000)
    with pytest.raises(UserError, match="more than 1048576 bytes"):
        read_yaml(tmp_path / "config.yaml")


def test_aliases_that_a_config_may_have_are_read_as_ever(tmp_path: Path) -> None:
    text = "a: &a {x: 1}\nb: *a\nc: {<<: *a, y: &y [1, 2]}\nd: [*y, *y]\n"
    (tmp_path / "config.yaml").write_text(text)
    assert read_yaml(tmp_path / "config.yaml") == yaml.safe_load(text)


def test_a_configs_size_counts_its_aliases_written_out() -> None:
    """Ten lists of ten aliases of a list of ten: a thousand, and what holds them."""
    text = "a: &a [1,2,3,4,5,6,7,8,9,10]\nb: [{}]".format(", ".join(["[" + ", ".join(["*a"] * 10) + "]"] * 10))
    check_yaml(text)
    with pytest.raises(UserError, match="more than 100000 parts"):
        check_yaml("a: &a [1,2,3,4,5,6,7,8,9,10]\nb: [{}]".format(", ".join(["*a"] * 10_000)))


DAMAGED = ["", "{", "\x00", "[" * 100_000, '{"test": ', "1" * 10_000, "\ufeff{}"]


@pytest.mark.parametrize("text", DAMAGED)
@pytest.mark.parametrize("read", [read_json, read_metrics, read_scores, read_captions, read_warnings])
def test_a_damaged_json_is_one_line(read: Callable[[Path], Any], text: str, tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"file\.json can't be read as JSON") as error:
        read(file)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match=r"metrics\.json can't be read as JSON"):
        read_metrics(tmp_path / "metrics.json")


@pytest.mark.parametrize(
    "found",
    [[], 3, None, "x", {"test": []}, {"test": {"cider": "1"}}, {"test": {"cider": True}}, {"test": {"cider": []}}],
)
def test_metrics_of_another_kind_are_one_line(found: Any, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"metrics\.json should map each split to its metrics"):
        read_metrics(tmp_path / "metrics.json")


def test_a_split_is_no_path(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps({"../../etc/x": {}}))
    with pytest.raises(UserError, match=r"a split '../../etc/x', which is no name of one"):
        read_metrics(tmp_path / "metrics.json")


def test_metrics_that_are_not_finite_were_not_measured(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    file.write_text('{"test": {"a": NaN, "b": Infinity, "c": null, "d": 1.5, "e": 2, "f": 1%s}}' % ("0" * 400))
    assert read_metrics(file) == {"test": {"d": 1.5, "e": 2}}


@pytest.mark.parametrize(
    "change",
    [
        {"image_ids": []},
        {"image_ids": 3},
        {"scores": []},
        {"scores": {"cider": [1.0]}},
        {"scores": {"cider": ["a", "b"]}},
        {"scores": {"cider": 3}},
        {"scores": {"bleu_counts": [[1, 2], [3]]}},
        {"scores": {"bleu_counts": [[1, 2], 3]}},
        {"scores": {"bleu_counts": [[1, 2], [3, "x"]]}},
        {"signature": []},
        {"signature": {"decoder": 3}},
        {"signature": {}},
    ],
)
def test_scores_of_another_kind_are_one_line(change: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "scores_test.json"
    file.write_text(json.dumps({**SCORES, **change}))
    with pytest.raises(UserError, match=r"scores_test\.json (should|has)"):
        read_scores(file)


def test_scores_are_read_with_a_signature_and_without(tmp_path: Path) -> None:
    file = tmp_path / "scores_test.json"
    for table in (
        SCORES,
        {**SCORES, "scores": {"bleu_counts": [[1, 2], [3, 4]]}},
        {key: value for key, value in SCORES.items() if key != "signature"},
    ):
        file.write_text(json.dumps(table))
        assert read_scores(file) == table


@pytest.mark.parametrize(
    "change",
    [
        {"image_id": "3"},
        {"image_id": []},
        {"file": 3},
        {"caption": None},
        {"rank": "first"},
        {"rank": float("nan")},
        {"ground_truth": "a dog"},
        {"ground_truth": [3]},
        {"lookalike": 3},
        {"lookalike": {"image_id": 4}},
    ],
)
def test_a_row_of_another_kind_is_one_line(change: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "captions_test.json"
    file.write_text(json.dumps([ROW, {**ROW, **change}]))
    [key] = change
    with pytest.raises(UserError, match=rf"captions_test\.json: row 1 has a {key} that is none"):
        read_captions(file)


def test_captions_and_warnings_of_a_run_without_them_are_none(tmp_path: Path) -> None:
    assert read_captions(tmp_path / "captions_test.json") == {}
    assert read_warnings(tmp_path / "health.json") is None


@pytest.mark.parametrize("found", [{}, [3], [{}], [{"sentence": 3}], 3])
def test_warnings_of_another_kind_are_one_line(found: Any, tmp_path: Path) -> None:
    (tmp_path / "health.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"health\.json should be a list of warnings, each with a sentence"):
        read_warnings(tmp_path / "health.json")
