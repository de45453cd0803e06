"""The data module: what it yields, in which order, and what it says about data that is not as it should be."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import LightningModule, Trainer

from distcap.data.coco import CocoCaptions
from distcap.types import UserError

TRAIN = [*range(100, 112), 112, 113]
TEST = [117, 118, 119]


@pytest.fixture
def coco(tmp_path, write_json, karpathy):
    """Builds a CocoCaptions on the tiny data set, after an optional change to its annotations."""

    def build(**arguments) -> CocoCaptions:
        defaults = {"images": str(tmp_path / "images"), "image_size": 8, "batch_size": 4, "num_workers": 0}
        return CocoCaptions(write_json("tiny.json", karpathy), **{**defaults, **arguments})

    return build


@pytest.fixture
def corrupt(tmp_path):
    """Cuts image 118, the second of the test split, short."""
    path = tmp_path / "images" / "val2014" / "18.png"

    def cut(*_):
        path.write_bytes(path.read_bytes()[:50])
        return path

    return cut


def ids(loader) -> list[int]:
    return [image_id for batch in loader for image_id in batch.image_ids]


def epoch(data: CocoCaptions, number: int) -> list[int]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return ids(loader)


def complaint(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Recorder(LightningModule):
    """Notes which images each epoch trained on, in order."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.epochs: dict[int, list[int]] = {}

    def training_step(self, batch, _):
        self.epochs.setdefault(self.current_epoch, []).extend(batch.image_ids)
        return self.weight * batch.images.mean()

    def predict_step(self, batch, _):
        return batch.image_ids

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer(tmp_path, **arguments) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=tmp_path, limit_val_batches=0, **quiet, **arguments)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batch_holds_pixels_captions_and_ids_of_the_same_images(coco, num_workers):
    [batch] = coco(num_workers=num_workers).test_dataloader()
    assert batch.image_ids == TEST
    assert batch.images.shape == (3, 3, 8, 8)
    assert torch.equal(batch.images[:, 0, 0, 0], torch.tensor([170.0, 180.0, 190.0]) / 255)
    assert batch.captions[1] == ["A dog, number 18.", "dog 18 on a porch"]


def test_pixels_kept_in_memory_are_the_same_pixels(coco):
    [read], [kept] = coco().test_dataloader(), coco(cache=True).test_dataloader()
    assert torch.equal(read.images, kept.images)


def test_pixels_kept_in_memory_are_decoded_once(coco, corrupt):
    data = coco(cache=True)
    assert ids(data.test_dataloader()) == TEST
    corrupt()
    assert ids(data.test_dataloader()) == TEST


def test_training_epoch_shuffles_every_image_and_drops_the_last_short_batch(coco):
    seen = epoch(coco(), 0)
    assert len(seen) == len(set(seen)) == 12  # of 14, in batches of 4
    assert set(seen) <= set(TRAIN)
    assert seen != sorted(seen)  # in order by chance: 1 in 12!


def test_order_depends_on_seed_and_epoch_alone(coco):
    orders = {(seed, number): epoch(coco(seed=seed), number) for seed in (0, 1) for number in (0, 1)}
    torch.manual_seed(1234)
    assert epoch(coco(num_workers=2), 1) == orders[0, 1]
    assert len({tuple(order) for order in orders.values()}) == 4  # two alike by chance: 6 in 14! / 2!


def test_lightning_gives_each_epoch_its_order(coco, tmp_path):
    model, data = Recorder(), coco(num_workers=1)
    trainer(tmp_path, max_epochs=2, enable_checkpointing=False).fit(model, data)
    assert model.epochs == {number: epoch(data, number) for number in (0, 1)}


def test_resumed_run_sees_the_batches_that_an_uninterrupted_one_would(coco, tmp_path):
    first = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    first.fit(Recorder(), coco())
    first.save_checkpoint(tmp_path / "interrupted.ckpt")
    resumed, data = Recorder(), coco()
    trainer(tmp_path, max_epochs=3, enable_checkpointing=False).fit(
        resumed, data, ckpt_path=tmp_path / "interrupted.ckpt"
    )
    assert resumed.epochs == {number: epoch(data, number) for number in (1, 2)}


def test_two_processes_share_the_batches_of_one(coco):
    alone = coco(batch_size=4)
    shares = [coco(batch_size=2) for _ in range(2)]
    for rank, data in enumerate(shares):
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank, training=False)
    left, right = (list(data.train_dataloader()) for data in shares)
    for whole, *halves in zip(alone.train_dataloader(), left, right, strict=True):
        assert sorted(whole.image_ids) == sorted(halves[0].image_ids + halves[1].image_ids)


def test_predict_yields_the_test_split_once_and_in_order(coco, tmp_path):
    predictions = trainer(tmp_path).predict(Recorder(), coco(eval_batch_size=2))
    assert predictions == [[117, 118], [119]]


def test_images_to_be_captioned_need_no_captions(coco, karpathy):
    karpathy["images"][18]["sentences"] = []
    assert ids(coco().predict_dataloader()) == TEST


def test_references_are_the_captions_by_image_id(coco):
    assert coco().references("test")[117] == ["A dog, number 17.", "dog 17 on a porch"]


def test_restval_is_part_of_train_unless_dropped(coco):
    assert [entry.image_id for entry in coco().entries("train")] == TRAIN
    assert [entry.image_id for entry in coco(restval="drop").entries("train")] == TRAIN[:-2]


def test_limit_takes_the_first_images_of_each_split(coco):
    data = coco(limit=2)
    assert [len(data.entries(split)) for split in ("train", "val", "test")] == [2, 2, 2]
    assert data.entries("test")[0].image_id == 117


def test_official_files_are_read_with_a_folder_for_each_split(tmp_path, write_json, karpathy):
    (tmp_path / "images" / "val2014").rename(tmp_path / "val2017")
    document = {
        "images": [{"id": 5, "file_name": "3.png"}, {"id": 6, "file_name": "4.png"}],
        "annotations": [{"image_id": 5, "caption": "a dog"}, {"image_id": 6, "caption": "a cat"}],
    }
    path = write_json("captions_val2017.json", document)
    # One file may serve as val and as test: COCO's own test captions are secret.
    data = CocoCaptions({"val": path, "test": path}, {split: str(tmp_path / "val2017") for split in ("val", "test")})
    data.setup("validate")
    data.setup("test")
    assert data.references("val") == data.references("test") == {5: ["a dog"], 6: ["a cat"]}
    assert data.path(data.entries("test")[0]) == tmp_path / "val2017" / "3.png"


def test_one_id_for_two_images_of_different_files_is_refused(tmp_path, write_json):
    files = {
        split: write_json(f"{split}.json", {"images": [{"id": 1, "file_name": f"{split}.png"}]})
        for split in ("train", "val")
    }
    message = complaint(CocoCaptions(files, str(tmp_path)).entries, "train")
    assert "image id 1" in message
    assert "train.png" in message
    assert "val.png" in message


def test_absent_data_set_says_how_to_get_it_and_what_to_run_without_it(tmp_path, coco):
    for data in (CocoCaptions(str(tmp_path / "no.json"), str(tmp_path)), coco(images=str(tmp_path / "nowhere"))):
        message = complaint(data.setup, "fit")
        assert "there is no" in message
        assert "https://cocodataset.org" in message
        assert "distcap prepare coco" in message
        assert "distcap fit --config demo/mle.yaml" in message


def test_absent_images_are_counted_before_the_run(coco, tmp_path):
    for number in (3, 4):
        (tmp_path / "images" / "val2014" / f"{number}.png").unlink()
    message = complaint(coco().setup, "fit")
    assert "2 of 14 images of train are not there, the first: image id 103, " in message
    assert str(tmp_path / "images" / "val2014" / "3.png") in message


def test_absent_images_are_left_out_and_counted_on_request(coco, tmp_path):
    (tmp_path / "images" / "val2014" / "17.png").unlink()
    data = coco(on_error="skip")
    with pytest.warns(UserWarning, match="1 of 3 images of test are not there"):
        data.setup("test")
    assert ids(data.test_dataloader()) == [118, 119]


def test_image_without_captions_is_named(coco, karpathy):
    karpathy["images"][18]["sentences"] = []
    assert "1 of 3 images of test have no captions, the first: image id 118" in complaint(coco().setup, "test")


def test_images_without_captions_are_left_out_and_counted_on_request(coco, karpathy):
    karpathy["images"][18]["sentences"] = []
    with pytest.warns(UserWarning, match="1 of 3 images of test have no captions"):
        assert ids(coco(on_error="skip").test_dataloader()) == [117, 119]


def test_a_split_of_which_no_image_has_captions_is_one_without_captions(coco, karpathy):
    for image in karpathy["images"]:
        image["sentences"] = []
    assert coco().references("test") == {117: [], 118: [], 119: []}


def test_split_whose_images_are_all_absent_is_an_error_even_where_errors_are_skipped(coco, tmp_path):
    for number in (17, 18, 19):
        (tmp_path / "images" / "val2014" / f"{number}.png").unlink()
    assert "3 of 3 images of test are not there" in complaint(coco(on_error="skip").setup, "test")


@pytest.mark.parametrize("arguments", [{"num_workers": 0}, {"num_workers": 2}, {"cache": True}])
def test_corrupt_image_is_one_line_in_the_main_process(coco, corrupt, arguments):
    path = corrupt()
    data = coco(**arguments)
    data.setup("test")
    message = complaint(lambda: list(data.test_dataloader()))
    assert f"image id 118: cannot read the image {path}" in message


def test_corrupt_image_is_one_line_from_the_trainer_too(coco, corrupt, tmp_path):
    corrupt()
    message = complaint(trainer(tmp_path).predict, Recorder(), coco(num_workers=2))
    assert message.startswith("image id 118: cannot read the image")


@pytest.mark.parametrize("arguments", [{"num_workers": 0}, {"num_workers": 2}, {"cache": True}])
@pytest.mark.parametrize("stage", ["test", "predict"])
def test_corrupt_image_is_left_out_and_counted_on_request(coco, corrupt, arguments, stage):
    path = corrupt()
    data = coco(on_error="skip", **arguments)
    with pytest.warns(UserWarning, match=f"1 of 3 images of test cannot be read, the first: image id 118, {path}"):
        data.setup(stage)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ids(getattr(data, f"{stage}_dataloader")()) == [117, 119]


def test_an_image_that_breaks_after_it_was_looked_at_is_left_out_of_evaluation_and_counted(coco, corrupt):
    data = coco(on_error="skip")
    data.setup("test")
    corrupt()
    with pytest.warns(UserWarning, match="images left out, for they could not be read: 1; the first: image id 118"):
        assert ids(data.test_dataloader()) == [117, 119]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_an_image_that_breaks_during_training_stops_it(coco, tmp_path, on_error):
    """A smaller batch is none that other processes could gather with theirs."""
    data = coco(on_error=on_error, batch_size=2)
    data.setup("fit")
    file = next(path for path in data.dataset("train").paths)
    content = file.read_bytes()
    file.write_bytes(b"no image")
    remedy = "put it back, and go on" if on_error == "skip" else "--data.on_error skip"
    message = complaint(lambda: [batch for _ in range(2) for batch in data.train_dataloader()])
    assert f"cannot read the image {file}" in message
    assert remedy in message
    file.write_bytes(content)
    assert {len(batch) for batch in data.train_dataloader()} == {2}


def test_absent_split_says_which_there_are(coco, karpathy):
    karpathy["images"] = karpathy["images"][:12]
    message = complaint(coco().setup, "validate")
    assert "no images of split val, found {'train': 12}" in message


def test_unknown_split_of_official_files_is_refused():
    assert "['training']" in complaint(lambda: CocoCaptions({"training": "a.json"}, "images"))


def test_training_split_smaller_than_a_batch_is_refused(coco):
    assert "train has 14 images, too few for one batch of 32" in complaint(coco(batch_size=32).train_dataloader)


def test_data_sets_in_one_folder_do_not_share_embeddings(tmp_path):
    caches = {CocoCaptions(str(tmp_path / name), "images").cache_dir for name in ("coco.json", "flickr.json")}
    assert len(caches) == 2
    assert all(cache.parent == tmp_path / ".distcap" for cache in caches)


@pytest.mark.parametrize(
    "annotations", ["k.json", {"train": "captions_train2017.json", "val": "captions_val2017.json"}]
)
def test_command_line_reads_the_signature(annotations):
    parser = ArgumentParser()
    parser.add_class_arguments(CocoCaptions, "data")
    config = parser.parse_object({"data": {"annotations": annotations, "images": "images", "on_error": "skip"}})
    data = parser.instantiate_classes(config).data
    assert (data.annotations, data.on_error) == (annotations, "skip")
    assert "restval" in parser.format_help()
