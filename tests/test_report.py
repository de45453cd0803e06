"""The report, on three synthetic runs of ten images. Every test names one thing a reader of the page relies on."""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from distcap.report.page import extremes, report
from distcap.report.plots import _overlap, _places
from distcap.report.runs import Run, load_runs
from distcap.report.tables import COLUMNS, cells, table
from distcap.types import UserError

METRICS = {
    "mle": {"judge_t2i_recall@1": 40.0, "cider": 1.60, "length": 12.0, "repetition": 0.0, "bad_endings": 0.0},
    "clip_only": {"judge_t2i_recall@1": 70.0, "cider": 0.90, "length": 18.0, "repetition": 0.2, "bad_endings": 0.3},
    "distcap": {"judge_t2i_recall@1": 61.0, "cider": 1.55, "length": 14.0, "repetition": 0.0, "bad_endings": 0.0},
}


def write_run(
    folder: Path, name: str, metrics: dict[str, Any], rows: list[dict[str, Any]], split: str = "test"
) -> Path:
    run = folder / name
    run.mkdir(parents=True)
    (run / "metrics.json").write_text(json.dumps({split: metrics}))
    (run / f"captions_{split}.json").write_text(json.dumps(rows))
    return run


def make_rows(folder: Path, name: str) -> list[dict[str, Any]]:
    files = []
    for i in range(10):
        files.append(str(folder / f"{i}.png"))
        Image.new("RGB", (8, 8), (25 * i, 90, 120)).save(files[-1])
    return [
        {
            "image_id": 100 + i,
            "file": files[i],
            "caption": f"{name} says {i}",
            "rank": float(1 + i),
            "ground_truth": [f"human {i}", f"another human {i}"],
            "lookalike": {"image_id": 100 + (i ^ 1), "file": files[i ^ 1]},
        }
        for i in range(10)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three evaluated runs, and the folder of a CLIP, which has no metrics.json."""
    runs = tmp_path / "runs"
    for name, metrics in METRICS.items():
        write_run(runs, name, metrics, make_rows(tmp_path, name))
    (runs / "clip" / "checkpoints").mkdir(parents=True)
    return runs


def edit(path: Path, image_id: int, **values: Any) -> None:
    rows = json.loads(path.read_text())
    for row in rows:
        if row["image_id"] == image_id:
            row.update(values)
    path.write_text(json.dumps(rows))


class Tags(HTMLParser):
    """Every tag of a page, with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def gallery(page: str) -> list[str]:
    """The image ids of the gallery, in order."""
    return re.findall(r"<figcaption>№ (\d+)", page.split("<h2>Gallery</h2>")[1].split("<h2>")[0])


def test_the_page_loads_nothing_from_elsewhere(folder: Path) -> None:
    page = report(folder).read_text()
    tags = Tags(page).tags
    links = [attrs[key] or "" for _, attrs in tags for key in ("src", "href", "xlink:href", "srcset") if key in attrs]
    links += re.findall(r"url\(([^)]*)\)", page)
    assert any(link.startswith("data:image/png;base64,") for link in links)
    assert [link for link in links if not link.startswith(("data:", "#"))] == []
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tags}
    assert "://" not in page
    assert "@import" not in page


def test_the_page_begins_with_its_doctype(folder: Path) -> None:
    assert report(folder).read_text().startswith("<!DOCTYPE html>")


def test_markup_in_a_caption_is_shown_and_not_run(folder: Path) -> None:
    edit(
        folder / "mle" / "captions_test.json", 103, caption="<script>alert(1)</script>", ground_truth=['"><img src=x>']
    )
    page = report(folder).read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page
    assert "<img src=x" not in page


def test_markup_in_the_name_of_a_run_is_shown_and_not_run(folder: Path) -> None:
    (folder / "mle").rename(folder / "<b>$a_1$")
    page = report(folder).read_text()
    assert page.count("&lt;b&gt;$a_1$</text>") == 1  # in the plot, where matplotlib would read it as a formula
    assert "<b>$" not in page


def test_the_same_seed_gives_the_same_page(folder: Path) -> None:
    assert report(folder, seed=3).read_bytes() == report(folder, seed=3).read_bytes()


def test_the_seed_draws_the_gallery(folder: Path) -> None:
    draws = [gallery(report(folder, images=5, seed=seed).read_text()) for seed in (0, 1)]
    assert [len(set(draw)) for draw in draws] == [5, 5]
    assert draws[0] != draws[1]


def test_the_page_says_how_its_images_were_drawn(folder: Path) -> None:
    assert "4 of 10 images, drawn at random with seed 7" in report(folder, images=4, seed=7).read_text()


def test_a_gallery_asked_for_more_images_than_there_are_shows_all(folder: Path) -> None:
    assert sorted(gallery(report(folder, images=99).read_text())) == [str(i) for i in range(100, 110)]


def test_each_caption_shows_its_rank_and_a_shared_rank_its_half(folder: Path) -> None:
    edit(folder / "distcap" / "captions_test.json", 109, rank=2.5)
    page = report(folder).read_text()
    assert 'class="rank near" title="rank 2.5 of 10 by the judge"' in page
    assert 'class="rank first" title="rank 1 of 10 by the judge"' in page
    assert 'class="rank middle" title="rank 10 of 10 by the judge"' in page


def test_every_image_has_an_alternative_text(folder: Path) -> None:
    images = [attrs for tag, attrs in Tags(report(folder).read_text()).tags if tag == "img"]
    assert len(images) >= 20
    assert all(attrs.get("alt") for attrs in images)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("judge_t2i_recall@1", [False, True, False]),
        ("cider", [True, False, False]),
        ("bad_endings", [True, False, True]),  # lower is better, and two runs share the lowest
        ("length", [False, False, False]),  # neither long nor short is better
        ("bleu@4", [False, False, False]),  # nobody measured it
    ],
)
def test_the_best_of_a_column_is_marked(key: str, expected: list[bool]) -> None:
    runs = [Run(name, metrics=metrics) for name, metrics in METRICS.items()]
    assert [best for _, best in cells(runs, COLUMNS[key])] == expected


def test_a_number_that_is_not_finite_is_missing_and_never_the_best() -> None:
    runs = [
        Run("a", metrics={"cider": float("nan")}),
        Run("b", metrics={"cider": 1.0}),
        Run("c", metrics={"cider": 2.0}),
    ]
    assert cells(runs, COLUMNS["cider"]) == [("—", False), ("1.00", False), ("2.00", True)]


def test_the_page_sets_the_best_in_bold(folder: Path) -> None:
    page = report(folder).read_text()
    assert re.search(r'<td class="[^"]*best">70\.0</td>', page)
    assert not re.search(r'<td class="[^"]*best">40\.0</td>', page)
    assert re.search(r"\.best \{[^}]*font-weight: 700", page)


def test_the_terminal_sets_the_best_in_bold(folder: Path) -> None:
    console = Console(width=100, force_terminal=True, color_system="standard", legacy_windows=False)
    with console.capture() as capture:
        console.print(table(load_runs(folder)[0]))
    assert re.search(r"\x1b\[1m\s*70\.0", capture.get())
    assert not re.search(r"\x1b\[1m\s*40\.0", capture.get())


def test_the_table_of_six_runs_fits_a_hundred_columns() -> None:
    metrics = dict.fromkeys(COLUMNS, 99.9) | {"cider": 1.234, "bleu@4": 0.345, "rouge_l": 0.567, "bad_endings": 0.111}
    names = ["mle", "clip_only", "distcap", "contrastive_i2t", "scst_cider", "group_reward"]
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table([Run(name, metrics=metrics) for name in names]))
    lines = capture.get().splitlines()
    assert all(any(line.split()[:1] == [name] for line in lines) for name in names)  # no name is cut or folded
    assert sum("1.23" in line for line in lines) == len(names)  # one line a run
    assert "…" not in capture.get()


def test_a_column_that_no_run_measured_is_left_out(folder: Path) -> None:
    page = report(folder).read_text()
    assert "METEOR" not in page
    assert "reward CLIP, caption" not in page
    metrics = METRICS["mle"] | {"meteor": 0.25}
    (folder / "mle" / "metrics.json").write_text(json.dumps({"test": metrics}))
    assert "METEOR" in report(folder).read_text()


def test_folders_without_metrics_are_not_listed(folder: Path) -> None:
    assert [run.name for run in load_runs(folder)[0]] == ["mle", "clip_only", "distcap"]


def test_known_runs_come_first_and_the_others_by_time(folder: Path, tmp_path: Path) -> None:
    for name, time in (("a_later", 2_000_000_000), ("b_sooner", 1_000_000_000)):
        run = write_run(folder, name, {"cider": 1.0}, [])
        os.utime(run / "metrics.json", (time, time))
    assert [run.name for run in load_runs(folder)[0]] == ["mle", "clip_only", "distcap", "b_sooner", "a_later"]


def test_the_validation_split_stands_in_where_no_run_was_tested(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "mle", METRICS["mle"], make_rows(tmp_path, "mle"), split="val")
    runs, split = load_runs(tmp_path / "runs")
    assert split == "val"
    assert len(runs[0].captions) == 10
    assert "val split" in report(tmp_path / "runs").read_text()


def test_without_a_judge_the_page_goes_by_the_reward_clip_and_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "mle", {"t2i_recall@1": 33.3, "cider": 1.0}, make_rows(tmp_path, "mle"))
    page = report(tmp_path / "runs").read_text()
    assert "distinctiveness (reward CLIP t2i R@1, %)" in page
    assert "by the reward CLIP" in page
    assert "by the judge" not in page


def test_a_run_without_captions_is_in_the_table_alone(folder: Path) -> None:
    (folder / "clip_only" / "captions_test.json").unlink()
    page = report(folder).read_text()
    assert "70.0" in page
    assert "clip_only says" not in page
    assert "distcap says" in page


def test_the_curves_skip_the_steps_that_did_not_log_them(folder: Path) -> None:
    log = "step,policy/length,val/cider\n0,12.0,\n1,,0.5\n2,14.0,\n"
    (folder / "distcap" / "metrics.csv").write_text(log)
    runs, _ = load_runs(folder)
    assert runs[2].curves == {"policy/length": [(0.0, 12.0), (2.0, 14.0)]}
    page = report(folder).read_text()
    assert "Length over the training steps of distcap" in page
    assert "Entropy over the training steps" not in page


def test_without_logs_and_warnings_there_is_no_section_of_health(folder: Path) -> None:
    assert "<h2>Health</h2>" not in report(folder).read_text()


def test_curves_stand_under_the_question_that_they_answer(folder: Path) -> None:
    (folder / "distcap" / "metrics.csv").write_text("step,policy/kl,reward/gap\n0,0.0,-0.1\n1,0.1,-0.2\n")
    page = report(folder).read_text()
    places = [page.index(f"{text}<") for text in ("Is it learning?", "less greedy reward", "Is it collapsing?")]
    assert places == sorted(places)
    assert page.index("KL to the captioner before RL<") > places[-1]
    assert "Does it still say what people say?" not in page  # no curve answers


def test_the_warnings_of_a_run_are_counted_at_the_run_and_told_in_full(folder: Path) -> None:
    rows = [{"step": 3, "symptom": "entropy", "sentence": f"Step {i}: a <b> & b."} for i in (3, 4)]
    (folder / "clip_only" / "health.json").write_text(json.dumps(rows))
    (folder / "distcap" / "health.json").write_text("[]")
    page = report(folder).read_text()
    assert page.count("2 warnings in training") == 1
    assert page.count("watched in training: no warning") == 1  # of the mle run, which nobody watched, nothing is said
    assert page.count('aria-label="Warnings about') == 1
    assert "Step 3: a &lt;b&gt; &amp; b." in page.split('aria-label="Warnings about clip_only"')[1]
    assert "Step 4: a &lt;b&gt; &amp; b." in page


def test_a_list_of_warnings_that_is_none_is_named(folder: Path) -> None:
    (folder / "distcap" / "health.json").write_text('{"step": 1}')
    with pytest.raises(UserError, match=re.escape(str(folder / "distcap" / "health.json"))):
        report(folder)


def test_gains_and_losses_are_the_ranks_that_moved_furthest() -> None:
    base = Run("base", captions={i: {"rank": rank} for i, rank in enumerate([9.0, 5.0, 2.0, 1.0])})
    other = Run("other", captions={i: {"rank": rank} for i, rank in enumerate([1.0, 4.0, 2.0, 7.0])})
    assert extremes(base, other, count=2) == ([0, 1], [3])  # gains of 8 and 1, a loss of 6, one unmoved


def test_names_in_the_plot_keep_clear_of_points_and_of_each_other() -> None:
    # The second name finds the right edge too near, and fits only once the first has moved from left to right.
    spots = [(200.0, 100.0), (219.0, 109.0), (40.0, 180.0)]
    names = ["mle", "scst_cider", "contrastive_i2t"]
    boxes = _places(names, spots, 30.0, 260.0)
    points = [(x, y, 14.0, 14.0) for x, y in spots]
    assert not any(_overlap(box, other) for box in boxes for other in [*points, *boxes] if box is not other)


def test_an_image_that_is_gone_leaves_a_placeholder_and_is_counted(folder: Path, capsys: pytest.CaptureFixture) -> None:
    for name in METRICS:
        edit(folder / name / "captions_test.json", 104, file="gone/104.png")
    page = report(folder).read_text()
    assert "image file gone" in page
    assert "1 image file could not be opened" in page
    assert "gone/104.png" in capsys.readouterr().out


def test_an_image_that_is_damaged_leaves_a_placeholder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "4.png").write_bytes((tmp_path / "4.png").read_bytes()[:40])
    assert "image file gone" in report(folder).read_text()


def test_the_page_goes_where_it_is_asked_to(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "elsewhere" / "page.html"
    assert report(folder, output=output) == output
    assert output.exists()
    assert not (folder / "report.html").exists()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*nowhere.*make demo"):
        report(tmp_path / "nowhere")


def test_a_folder_without_an_evaluated_run_says_what_it_found_and_what_to_run(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    with pytest.raises(UserError, match=r"metrics\.json; found clip\..*distcap fit.*make demo"):
        report(tmp_path)


def test_the_folder_of_one_run_points_to_its_parent(folder: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"distcap report {folder}`")):
        report(folder / "mle")


@pytest.mark.parametrize("name", ["metrics.json", "captions_test.json"])
@pytest.mark.parametrize("text", ['{"test": ', "[1]", '{"test": 3}', "null"])
def test_a_file_that_cannot_be_read_is_named(folder: Path, name: str, text: str) -> None:
    (folder / "distcap" / name).write_text(text)
    with pytest.raises(UserError, match=re.escape(str(folder / "distcap" / name))):
        report(folder)


def test_a_log_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "distcap" / "metrics.csv").write_text("step,policy/length\n0,twelve\n")
    with pytest.raises(UserError, match=r"distcap/metrics\.csv"):
        report(folder)
