"""Captions files: what a row may say, and the line that a wrong one is told by."""

from pathlib import Path

import pytest

from distcap.data.captions import Row, read_captions
from distcap.types import UserError


def rows(path: Path, text: str | bytes) -> list[Row]:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return list(read_captions(path))


def test_json_lines_say_captions_by_any_of_three_names(tmp_path):
    text = """{"file_name": "a/1.png", "text": "a dog", "captions": ["dog", "a\\tbig dog"], "width": 5}

{"file_name": "2.png", "caption": "a cat", "split": "validation"}
{"file_name": "3.png", "caption": null}
"""
    found = rows(tmp_path / "c.jsonl", text)
    assert found == [
        Row(f"{tmp_path}/c.jsonl, line 1", Path("a/1.png"), ("a dog", "dog", "a big dog"), None),
        Row(f"{tmp_path}/c.jsonl, line 3", Path("2.png"), ("a cat",), "val"),
        Row(f"{tmp_path}/c.jsonl, line 4", Path("3.png"), (), None),
    ]


def test_csv_says_the_same_whatever_program_wrote_it(tmp_path):
    """A byte order mark, carriage returns, a caption with a comma, and one of two lines."""
    text = '\ufefffile_name,text,split\r\n1.png,"a dog, asleep",train\r\n2.png,"a\r\ncat",train\r\n3.png,,test\r\n'
    found = rows(tmp_path / "c.csv", text)
    assert [(row.file.name, row.captions, row.split) for row in found] == [
        ("1.png", ("a dog, asleep",), "train"),
        ("2.png", ("a cat",), "train"),
        ("3.png", (), "test"),
    ]
    assert [row.at for row in found] == [f"{tmp_path}/c.csv, line {line}" for line in (2, 4, 5)]


GOOD = '{"file_name": "1.png", "text": "a dog"}\n'
HEADER = "file_name,text\n1.png,a dog\n"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("c.jsonl", GOOD + "{", "line 2: not JSON (Expecting property name"),
        ("c.jsonl", GOOD + "[" * 100_000, "line 2: not JSON (RecursionError)"),
        ("c.jsonl", GOOD + '["2.png"]', "line 2: expected a JSON object"),
        ("c.jsonl", GOOD + '{"text": "a dog"}', "line 2: \"file_name\" is missing; found 'text'"),
        ("c.jsonl", GOOD + '{"file_name": "2.png", "text": 3}', 'line 2: "text" should be of type str'),
        ("c.jsonl", GOOD + '{"file_name": "2.png", "captions": ["a", 3]}', "line 2: a caption should be a string"),
        ("c.jsonl", GOOD + '{"file_name": "2.png", "text": "\\ud83d"}', "line 2: half a character"),
        (
            "c.jsonl",
            GOOD + '{"file_name": "../2.png"}',
            "line 2: the file name '../2.png' leads out of the",
        ),
        ("c.jsonl", GOOD + '{"file_name": "/2.png"}', "line 2: the file name '/2.png' leads out"),
        ("c.jsonl", GOOD + '{"file_name": "a/../../2.png"}', "line 2: the file name 'a/../../2.png' leads out"),
        ("c.jsonl", GOOD + '{"file_name": ""}', "line 2: the file name '.' leads out"),
        ("c.jsonl", GOOD + '{"file_name": "2.png", "split": "dev"}', "line 2: \"split\" is 'dev'; it should be one of"),
        ("c.jsonl", GOOD.encode() + b'{"file_name": "\xff.png"}', "line 2: not text in UTF-8"),
        ("c.csv", HEADER + "2.png,a dog, asleep\n", "line 3: 3 values for 2 columns; a caption with a comma"),
        ("c.csv", HEADER + "2.png\n", "line 3: 1 values for 2 columns"),
        ("c.csv", HEADER + ",a dog\n", 'line 3: "file_name" is missing'),
        ("c.csv", HEADER + '2.png,"a dog\n', "line 3: not CSV (unexpected end of data); quotes come in pairs"),
        ("c.csv", HEADER + "2.png," + "x" * 200_000, "line 3: not CSV (field larger than"),
        ("c.csv", HEADER.encode() + b"2.png,caf\xe9\n", "line 3: not text in UTF-8"),
        ("c.csv", "image,text\n1.png,a dog\n", 'line 1: expected a header with "file_name", each column once, found'),
        ("c.csv", "file_name,text,text\n1.png,a,b\n", "line 1: expected a header"),
        ("c.txt", GOOD, "is no captions file; it should be called .jsonl or .csv"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(tmp_path, name, text, said):
    with pytest.raises(UserError) as caught:
        rows(tmp_path / name, text)
    assert said in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the captions file .*c\.jsonl: No such file"):
        list(read_captions(tmp_path / "c.jsonl"))


def test_null_and_empty_captions_are_none_and_are_counted(tmp_path):
    text = """{"file_name": "1.png", "caption": null}
{"file_name": "2.png", "captions": ["a dog", null, " "]}
"""
    with pytest.warns(
        UserWarning, match=r"left out of .*c\.jsonl: 3 captions that are empty or null, the first: .*ne 1"
    ):
        assert [row.captions for row in rows(tmp_path / "c.jsonl", text)] == [(), ("a dog",)]


def test_byte_order_marks_of_files_that_were_joined_do_no_harm(tmp_path):
    line = b'\xef\xbb\xbf{"file_name": "1.png", "text": "\xef\xbb\xbfa dog"}\n'
    assert [row.captions for row in rows(tmp_path / "c.jsonl", line * 2)] == [("a dog",), ("a dog",)]


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv"])
def test_text_in_utf_16_is_one_clear_line(tmp_path, name):
    with pytest.raises(UserError, match=r"line 1: not text in UTF-8, but text in UTF-16; save the file in that encod"):
        rows(tmp_path / name, (HEADER if name == "c.csv" else GOOD).encode("utf-16"))


@pytest.mark.parametrize(("told", "split"), [("valid", "val"), ("val2014", "val"), ("Train", "train")])
def test_splits_are_known_by_the_names_that_data_sets_give_them(tmp_path, told, split):
    assert rows(tmp_path / "c.csv", f"file_name,split\n1.png,{told}\n")[0].split == split
