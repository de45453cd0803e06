"""The ablation's page and docs, on systems of four images whose numbers can be added up by eye."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from distcap.report.ablation import GROUPS, NOTES, ablation_report, headline
from distcap.report.claims import OURS, Claim, Comparison, Wish, judge_claims
from distcap.report.statistics import Estimate
from distcap.report.systems import Ablation, load_ablation
from distcap.report.tables import COLUMNS
from distcap.types import UserError

RECALL = "judge_t2i_recall@1"
KEYS = (RECALL, "cider", "bleu@4", "judge_gap", "vocabulary", "train_minutes")
LEVELS = {
    # (percent found by the judge, CIDEr): the same for each image, so that intervals have no width
    "mle": (20.0, 1.0),
    "contrastive": (60.0, 0.5),
    "contrastive_discriminator": (50.0, 0.99),  # finds more than mle at 1 % less CIDEr, which is within the margin
    "contrastive_i2t": (40.0, 0.6),
    "contrastive_teacher_forcing": (45.0, 1.1),
    "contrastive_wtf": (55.0, 1.1),
    "wtf_only": (25.0, 1.0),
    "full": (54.0, 1.1),
    "distcap": (59.0, 1.09),
    "two_clips": (57.0, 1.1),
    "sharp_clip": (58.0, 1.085),
}


def write_run(run: Path, recall: float, cider: float, **more: list[Any]) -> None:
    scores = {
        RECALL: [recall] * 4,
        "t2i_recall@1": [recall + 7] * 4,
        "cider": [cider] * 4,
        # Half of the words, a quarter of the pairs, ...: per image, five words against a reference of five
        "bleu_counts": [[4, 3, 2, 1, 5, 4, 3, 2, 5, 5]] * 4,
    } | more
    run.mkdir(parents=True, exist_ok=True)
    (run / "scores_test.json").write_text(json.dumps({"image_ids": [3, 5, 7, 9], "scores": scores}))
    (run / "metrics.json").write_text(json.dumps({"test": {"cider": cider, "vocabulary": 10.0}}))
    seed = run.parent.name
    rows = [
        {"image_id": i, "file": "x", "caption": "c", "rank": 1, "ground_truth": [f"{seed} {i}"], "lookalike": None}
        for i in (3, 5, 7, 9)
    ]
    (run / "captions_test.json").write_text(json.dumps(rows))
    (run / "seconds.json").write_text(json.dumps({"train": 120.0}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The systems of the claims, two seeds."""
    runs = tmp_path / "runs"
    for name, (recall, cider) in LEVELS.items():
        for seed in (0, 1):
            write_run(runs / f"seed-{seed}" / name, recall, cider)
    recipes = [
        {"name": n, "title": f"<i>{n}</i>", "paper": "", "command": f"distcap fit --config {n}.yaml", "family": "f"}
        for n in LEVELS
    ]
    (runs / "systems.json").write_text(json.dumps(recipes))
    return runs


def rewrite(folder: Path, name: str, recall: float, cider: float) -> None:
    for seed in (0, 1):
        write_run(folder / f"seed-{seed}" / name, recall, cider)


def verdicts(folder: Path) -> dict[str, str]:
    return {claim.letter: claim.verdict for claim in judge_claims(load_ablation(folder, KEYS), RECALL)}


def load(folder: Path) -> Ablation:
    return load_ablation(folder, KEYS)


def test_a_systems_metrics_are_means_over_seeds_with_an_interval(folder: Path) -> None:
    write_run(folder / "seed-1" / "mle", 30.0, 2.0)
    mle = load(folder)["mle"]
    assert mle is not None
    assert mle.metrics["cider"] == 1.5
    assert mle.interval("cider") == (1, 2)  # both seeds drawn are the lower one, a quarter of the time, or the higher
    assert mle.metrics[RECALL] == 25
    assert mle.metrics["judge_gap"] == pytest.approx(7)


def test_corpus_bleu_comes_of_the_counts_of_all_images(folder: Path) -> None:
    mle = load(folder)["mle"]
    assert mle is not None
    assert mle.metrics["bleu@4"] == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_vocabulary_and_time_are_told_with_the_lowest_and_the_highest_seed(folder: Path) -> None:
    (folder / "seed-1" / "mle" / "metrics.json").write_text(json.dumps({"test": {"vocabulary": 30.0}}))
    (folder / "seed-1" / "mle" / "seconds.json").write_text(json.dumps({"train": 60.0}))
    mle = load(folder)["mle"]
    assert mle is not None
    assert (mle.metrics["vocabulary"], mle.interval("vocabulary")) == (20, (10, 30))
    assert (mle.metrics["train_minutes"], mle.interval("train_minutes")) == (1.5, (1, 2))


def test_a_difference_is_taken_over_the_seeds_that_both_systems_have(folder: Path) -> None:
    write_run(folder / "seed-1" / "mle", 90.0, 1.0)
    (folder / "seed-1" / "contrastive" / "scores_test.json").unlink()
    estimate = load(folder).difference("contrastive", "mle", RECALL)
    assert estimate is not None
    assert estimate.seeds == (40,)


def test_seeds_with_the_same_human_captions_have_the_same_images(folder: Path) -> None:
    assert not load(folder).crossed  # the same ids, but other captions: another benchmark
    for name in LEVELS:
        path = Path(name) / "captions_test.json"
        (folder / "seed-1" / path).write_text((folder / "seed-0" / path).read_text())
    assert load(folder).crossed


def test_what_is_missing_is_named_and_done_without(folder: Path) -> None:
    (folder / "seed-1" / "contrastive_wtf" / "metrics.json").unlink()
    for seed in (0, 1):
        (folder / f"seed-{seed}" / "wtf_only" / "scores_test.json").unlink()
    assert load(folder).missing == ["contrastive_wtf: no run of seed 1", "wtf_only: no run"]
    page = ablation_report(folder, docs=folder / "docs").read_text()
    for text in (page, (folder / "docs" / "results.md").read_text()):
        assert "contrastive_wtf: no run of seed 1; wtf_only: no run" in text
    assert verdicts(folder)["b"] == "not shown"


def test_a_metric_that_a_seed_did_not_measure_is_left_out_and_not_averaged(folder: Path) -> None:
    write_run(folder / "seed-0" / "mle", 20.0, 1.0, spice=[0.5] * 4)
    write_run(folder / "seed-1" / "mle", 20.0, 1.0, spice=[0.5, 0.5, 0.5, float("nan")])
    mle = load_ablation(folder, ["spice"])["mle"]
    assert mle is not None
    assert mle.value("spice") is None


def test_all_claims_hold_of_systems_made_to_hold_them(folder: Path) -> None:
    assert verdicts(folder) == {"a": "holds", "b": "holds", "c": "holds", "d": "holds"}
    assert "All of the paper’s 3 claims hold here" in ablation_report(folder).read_text()  # noqa: RUF001


@pytest.mark.parametrize(
    ("name", "recall", "cider", "claim"),
    [
        ("contrastive_discriminator", 19.0, 1.0, "a"),  # finds less than teacher forcing
        ("contrastive_discriminator", 50.0, 0.97, "a"),  # 3 % less CIDEr than teacher forcing
        ("wtf_only", 19.0, 1.0, "b"),
        ("wtf_only", 25.0, 0.97, "b"),
        ("contrastive_wtf", 55.0, 0.4, "b"),  # less CIDEr than without
        ("contrastive_wtf", 44.0, 1.1, "b"),  # finds less than plain teacher forcing
        ("contrastive_i2t", 61.0, 0.6, "c"),
        ("distcap", 53.0, 1.1, "d"),
        ("distcap", 59.0, 1.07, "d"),  # 3 % of teacher forcing's CIDEr less than the whole method
    ],
)
def test_a_claim_fails_where_the_contrary_is_shown(
    folder: Path, name: str, recall: float, cider: float, claim: str
) -> None:
    rewrite(folder, name, recall, cider)
    found = verdicts(folder)
    assert found.pop(claim) == "fails"
    assert "fails" not in found.values()
    assert re.search(rf"\({claim}\).*\*\*Fails\.\*\*", docs_of(folder))


def test_equal_systems_show_nothing(folder: Path) -> None:
    rewrite(folder, "wtf_only", *LEVELS["mle"])
    assert verdicts(folder)["b"] == "not shown"


@pytest.mark.parametrize(
    ("wish", "low", "high", "bound", "verdict"),
    [
        ("higher", 0.1, 0.3, 0.0, "yes"),
        ("higher", -0.1, 0.3, 0.0, "unclear"),
        ("higher", -0.3, -0.1, 0.0, "no"),
        ("not lower", -0.01, 0.3, -0.02, "yes"),
        ("not lower", -0.03, 0.3, -0.02, "unclear"),
        ("not lower", -0.04, -0.03, -0.02, "no"),
        ("not lower", -0.01, 0.3, None, "missing"),  # without teacher forcing there is no margin
        ("", -0.3, -0.1, 0.0, ""),
    ],
)
def test_the_verdict_of_an_interval(wish: Wish, low: float, high: float, bound: float | None, verdict: str) -> None:
    estimate = Estimate((low + high) / 2, low, high, (), 0.5)
    assert Comparison("a", "b", "cider", wish, estimate, bound).verdict == verdict


def claim(verdict: str) -> Claim:
    interval = {"holds": (1.0, 2.0), "fails": (-2.0, -1.0), "not shown": (-1.0, 1.0)}[verdict]
    return Claim("x", "", "", (Comparison("a", "b", "cider", "higher", Estimate(0, *interval, (), 1), 0.0),))


@pytest.mark.parametrize(
    ("found", "start"),
    [
        (("holds", "holds", "holds"), "All of the 3 claims hold"),
        (("holds", "fails", "holds"), "2 of the 3 claims hold "),
        (("holds", "fails", "not shown"), "1 of the 3 claims holds"),
        (("fails", "fails", "not shown"), "None of the 3 claims holds"),
    ],
)
def test_the_headline_counts_what_holds_of_the_papers_claims(found: tuple[str, ...], start: str) -> None:
    ours = Claim(OURS, "", "", ())
    assert headline([*(claim(verdict) for verdict in found), ours]).replace("paper’s ", "").startswith(start)  # noqa: RUF001


def docs_of(folder: Path) -> str:
    ablation_report(folder, docs=folder / "docs")
    return (folder / "docs" / "results.md").read_text()


def test_every_row_of_the_docs_has_its_command_and_interval(folder: Path) -> None:
    rows = [line for line in docs_of(folder).splitlines() if line.startswith("| **")]
    assert len(rows) == len(LEVELS) * len(GROUPS)
    for row, name in zip(rows, [*LEVELS, *LEVELS], strict=True):
        assert row.startswith(f"| **{name}**")
        assert row.endswith(f"| `distcap fit --config {name}.yaml` |")
    assert "20.0<br><sub>20.0–20.0</sub>" in rows[0]  # noqa: RUF001


def test_the_front_is_told_from_the_best_retrieval_to_the_best_cider(folder: Path) -> None:
    front = "contrastive", "distcap", "two_clips"  # contrastive_wtf has the last one's CIDEr and finds less
    assert ", ".join(f"`{name}`" for name in front) + "." in docs_of(folder)
    assert f"best CIDEr: {', '.join(front)}." in (folder / "report.html").read_text()


def test_notes_in_the_docs_survive_when_they_are_rewritten(folder: Path) -> None:
    file = folder / "docs" / "results.md"
    written = docs_of(folder)
    assert written.count(NOTES[0]) == written.count(NOTES[1]) == 1
    notes = "\n\n- A bad idea | 3 seeds.\n\n"
    file.write_text(written.replace(NOTES[0] + "\n\n", NOTES[0] + notes).replace("# Results", "# Old"))
    again = docs_of(folder)
    assert NOTES[0] + notes + NOTES[1] in again
    assert "# Old" not in again
    assert docs_of(folder) == again


def test_without_docs_only_the_page_is_written(folder: Path, tmp_path: Path) -> None:
    before = set(folder.rglob("*"))
    page = ablation_report(folder, tmp_path / "elsewhere" / "page.html")
    assert page == tmp_path / "elsewhere" / "page.html"
    assert page.exists()
    assert set(folder.rglob("*")) == before


def test_the_plot_of_the_docs_has_a_background_and_letters_of_its_own(folder: Path) -> None:
    docs_of(folder)
    svg = (folder / "docs" / "tradeoff.svg").read_text()
    assert "xmlns" in svg
    assert "fill: #ffffff" in svg
    assert "<text" not in svg  # shapes: no font is needed
    assert "#012345" not in svg


def test_the_page_loads_nothing_from_elsewhere_and_shows_markup(folder: Path) -> None:
    page = ablation_report(folder).read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "://" not in page
    assert "<script" not in page
    assert "&lt;i&gt;mle&lt;/i&gt;" in page


def test_the_page_names_every_system_in_the_plot(folder: Path) -> None:
    page = ablation_report(folder).read_text()
    assert all(page.count(f">{name}</text>") == 1 for name in LEVELS)


def test_the_same_runs_give_the_same_page_and_docs(folder: Path) -> None:
    first, second = [(docs_of(folder), (folder / "docs" / "tradeoff.svg").read_text()) for _ in range(2)]
    assert first == second


def test_every_metric_of_the_issue_has_a_column() -> None:
    keys = {column.key for groups in GROUPS.values() for group in groups for column in group.columns}
    recalls = {f"{who}{way}_recall@{k}" for who in ("", "judge_") for way in ("t2i", "i2t") for k in (1, 5, 10)}
    texts = {"cider", "bleu@4", "rouge_l", "meteor", "spice", "length", "vocabulary", "train_minutes"}
    assert recalls | texts <= keys
    assert keys - {"train_minutes"} <= set(COLUMNS)


def test_other_images_on_the_same_seed_are_refused(folder: Path) -> None:
    file = folder / "seed-1" / "wtf_only" / "scores_test.json"
    file.write_text(file.read_text().replace("[3, 5, 7, 9]", "[3, 5, 7, 8]"))
    with pytest.raises(UserError, match=r"seed-1/wtf_only was tested on 4 images that are not the 4 of the other"):
        load(folder)


@pytest.mark.parametrize("text", ["[]", '{"image_ids": [1]}', '{"image_ids": [1, 2], "scores": {"cider": [1.0]}}', "{"])
def test_scores_that_cannot_be_read_are_named(folder: Path, text: str) -> None:
    file = folder / "seed-0" / "mle" / "scores_test.json"
    file.write_text(text)
    with pytest.raises(UserError, match=re.escape(str(file))):
        load(folder)


def test_a_folder_without_systems_or_runs_says_what_makes_them(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no systems\.json.*make ablation"):
        ablation_report(tmp_path)
    (tmp_path / "systems.json").write_text((folder / "systems.json").read_text())
    with pytest.raises(UserError, match=r"no evaluated run of the 11 systems.*make ablation"):
        ablation_report(tmp_path)


def test_the_table_goes_into_the_readme_beside_the_docs_and_nothing_else_of_it_changes(folder: Path) -> None:
    readme = folder / "README.md"
    readme.write_text("before\n\n<!-- ablation -->\n\nold\n\n<!-- end of ablation -->\n\nafter\n")
    ablation_report(folder, docs=folder / "docs")
    text = readme.read_text()
    assert text.startswith("before\n\n<!-- ablation -->\n")
    assert text.endswith("<!-- end of ablation -->\n\nafter\n")
    assert "old" not in text
    assert text.count("\n| ") == 2 + len(json.loads((folder / "systems.json").read_text()))


def test_a_readme_without_a_place_for_the_table_is_left_alone(folder: Path) -> None:
    (folder / "README.md").write_text("nothing to see")
    ablation_report(folder, docs=folder / "docs")
    assert (folder / "README.md").read_text() == "nothing to see"
