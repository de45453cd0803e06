"""Run folders in use: moved to another disk, used twice, left unfinished, begun by another stage or of another size."""

import json
import os
import shutil
from pathlib import Path

import families
import pytest
import tiny
import torch
from lives import EPOCHS, STEPS, Life, assert_equal, lay_yard, moved, shell


@pytest.fixture
def life(tmp_path: Path, trained: Life) -> Life:
    """A trained captioner, in a yard that a test may change."""
    shutil.copytree(trained.yard, tmp_path / "yard", symlinks=True)
    return Life(tmp_path / "yard", "vision_encoder_decoder")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Life:
    folder = tmp_path_factory.mktemp("trained")
    lay_yard(folder)
    (folder / "photos" / "more").unlink()
    (folder / "elsewhere").rename(folder / "photos" / "more")
    life = Life(folder, "vision_encoder_decoder")
    assert life.mle
    return life


def step(file: Path) -> int:
    return torch.load(file, weights_only=True)["global_step"]


def refused(life: Life, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line that a command ends in."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        tiny.run(life.yard, *args)
    assert stop.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("distcap: ")]
    assert len(said) == 1
    return said[0]


def test_of_a_folder_that_is_used_twice_last_is_the_second_run_or_the_second_is_refused(life: Life) -> None:
    steps, code = len(life.trace("mle")), 0
    try:
        life.fit("mle", "mle", "--test_after_fit", "true", max_epochs=EPOCHS + 1, check_val_every_n_epoch=1)
    except SystemExit as stop:
        code = stop.code
    assert code in (0, 2)
    steps = steps if code else STEPS * (EPOCHS + 1)
    assert sorted(file.name for file in (life.folder("mle") / "checkpoints").glob("last*")) == ["last.ckpt"]
    assert step(life.folder("mle") / "checkpoints" / "last.ckpt") == steps
    said = life.said_by_test("mle")
    tiny.run(life.yard, "test", "--config", life.config("mle"), "--run", f"{life.name}/mle", "--ckpt_path", "last")
    assert life.said_by_test("mle") == said


def test_a_moved_run_is_tested_captioned_and_exported(life: Life) -> None:
    said = life.said_by_test("mle")
    moved(life.yard, f"runs/{life.name}/mle", "runs/disk/mine")
    tiny.run(life.yard, "test", "--config", life.config("mle"), "--run", "disk/mine", "--ckpt_path", "last")
    rows = json.loads((life.yard / "runs" / "disk" / "mine" / "captions_test.json").read_text())
    assert {Path(row["file"]).name: row["caption"] for row in rows} == said
    captions = life.said_by_caption("runs/disk/mine")
    assert {name: captions[name] for name in said} == said
    tiny.run(life.yard, "export", "runs/disk/mine")
    assert (life.yard / "runs" / "disk" / "mine" / "export" / "README.md").is_file()


def test_last_of_a_moved_run_that_goes_on_is_its_last_step(life: Life) -> None:
    done = len(life.trace("mle"))
    moved(life.yard, f"runs/{life.name}/mle", "runs/disk/mine")
    config = life.config("mle", max_epochs=EPOCHS + 1)
    tiny.run(life.yard, "fit", "--config", config, "--run", "disk/mine", "--ckpt_path", "last")
    checkpoints = life.yard / "runs" / "disk" / "mine" / "checkpoints"
    assert [file.name for file in checkpoints.glob("last*")] == ["last.ckpt"]
    assert step(checkpoints / "last.ckpt") == done // EPOCHS * (EPOCHS + 1)


def test_a_run_that_was_killed_after_its_last_step_is_finished_by_resuming_it(life: Life) -> None:
    before = life.weights("mle")
    shutil.rmtree(life.folder("mle") / "captioner")
    life.fit("mle", "mle", "--ckpt_path", "last")
    assert_equal(life.weights("mle"), before)


def test_rl_does_not_go_on_from_a_checkpoint_of_teacher_forcing(life: Life, capsys: pytest.CaptureFixture[str]) -> None:
    last = str(life.folder("mle") / "checkpoints" / "last.ckpt")
    line = refused(life, capsys, "fit", "--config", life.config("rl"), "--run", f"{life.name}/rl", "--ckpt_path", last)
    assert "init_from" in line
    assert not (life.folder("rl") / "captioner").exists()


def test_last_of_a_run_that_has_none_is_one_line(life: Life, capsys: pytest.CaptureFixture[str]) -> None:
    config = life.config("mle")
    assert "last" in refused(
        life, capsys, "fit", "--config", config, "--run", f"{life.name}/new", "--ckpt_path", "last"
    )


def without_size(life: Life, stage: str = "mle") -> str:
    file = Path(life.config(stage))
    config = json.loads(file.read_text())
    del config["data"]["init_args"]["image_size"]
    file.write_text(json.dumps(config))
    return str(file)


@pytest.fixture(params=[pytest.param("vision_encoder_decoder", marks=pytest.mark.slow), "blip"])
def large(request: pytest.FixtureRequest, life: Life) -> Life:
    """A captioner that sees 48 pixels."""
    found = Life(life.yard, request.param, name=f"large-{request.param}".replace("_", "-"))
    families.WRITERS[found.family](found.base.with_name("large"), side=48)
    shutil.rmtree(found.base)
    found.base.with_name("large").rename(found.base)
    return found


def test_a_captioner_knows_the_size_of_its_images(large: Life) -> None:
    run = ("--run", f"{large.name}/mle")
    config = without_size(large)
    tiny.run(large.yard, "fit", "--config", config, *run, "--test_after_fit", "true")
    said = large.said_by_test("mle")
    captions = large.said_by_caption(f"runs/{large.name}/mle")
    assert {name: captions[name] for name in said} == said
    kind = families.ADAPTERS[large.family].__name__
    assert len(large.said_by_caption(f"base/{large.name}", "--captioner", kind)) == len(captions)


def test_a_size_that_is_not_the_captioners_is_one_line(large: Life, capsys: pytest.CaptureFixture[str]) -> None:
    config = without_size(large)
    line = refused(large, capsys, "fit", "--config", config, "--run", f"{large.name}/x", "--data.image_size", "32")
    assert "48" in line
    assert not (large.folder("x") / "trace-0.jsonl").exists()


@pytest.mark.slow
def test_a_finished_run_is_resumed_for_more_epochs_as_if_it_had_never_stopped(life: Life) -> None:
    longer = life.config("mle", max_epochs=EPOCHS + 1, check_val_every_n_epoch=EPOCHS + 1)
    tiny.run(life.yard, "fit", "--config", longer, "--run", f"{life.name}/whole")
    life.fit("mle", "mle", "--ckpt_path", "last", max_epochs=EPOCHS + 1, check_val_every_n_epoch=EPOCHS + 1)
    assert_equal(life.weights("mle"), life.weights("whole"))


@pytest.mark.slow
def test_of_two_fits_at_once_in_one_folder_one_is_refused(life: Life) -> None:
    """The first waits for the second to end: it is still there when the second begins."""
    from concurrent.futures import ThreadPoolExecutor

    config = life.config("mle", max_epochs=400, check_val_every_n_epoch=400)
    with ThreadPoolExecutor() as pool:
        both = [
            pool.submit(
                shell, life.yard, "fit", "--config", config, "--run", "both", "--trainer.max_time", "00:00:00:40"
            )
            for _ in range(2)
        ]
        codes = sorted(one.result().returncode for one in both)
    assert codes == [0, 2]


def read_only(*args: str) -> list[str]:
    """Permissions count for root, too, without these capabilities."""
    if os.geteuid():
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root may write anywhere, and there is no setpriv")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]


@pytest.mark.slow
@pytest.mark.parametrize("cache", [False, True])
def test_photos_that_must_not_be_written_to(cache: bool, life: Life) -> None:
    """With a cache folder elsewhere all is well; without one, a line names the flag before the first step."""
    shutil.rmtree(life.yard / "photos" / ".distcap", ignore_errors=True)
    os.chmod(life.yard / "photos", 0o555)
    args = [
        "fit",
        "--config",
        life.config("mle"),
        "--run",
        "readonly",
        *(["--data.cache_dir", "cache"] if cache else []),
    ]
    found = shell(life.yard, *args, before=read_only())
    if cache:
        assert found.returncode == 0, found.stdout[-2000:]
        assert (life.yard / "runs" / "readonly" / "captioner").is_dir()
        return
    assert found.returncode == 2, found.stdout[-2000:]
    assert "--data.cache_dir" in found.stdout.splitlines()[-1]
    assert not (life.yard / "runs" / "readonly" / "trace-0.jsonl").exists()
