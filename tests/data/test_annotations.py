"""Both formats of COCO captions, read; and everything an annotation file can get wrong, said in one line."""

from pathlib import Path

import pytest

from distcap.data.annotations import Entry, read_addresses, read_coco, read_karpathy
from distcap.types import UserError


def image(**changes):
    fields = {
        "cocoid": 7,
        "filepath": "val2014",
        "filename": "a.jpg",
        "split": "train",
        "sentences": [{"raw": "a dog"}],
    }
    return {key: value for key, value in {**fields, **changes}.items() if value is not None}


def complaint(read, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        read(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_karpathy_file_is_read_in_its_order(write_json):
    path = write_json("k.json", {"images": [image(), image(cocoid=3, filename="b.jpg", split="test")]})
    assert read_karpathy(path) == [
        Entry(7, Path("val2014/a.jpg"), ("a dog",), "train"),
        Entry(3, Path("val2014/b.jpg"), ("a dog",), "test"),
    ]


def test_karpathy_file_without_coco_ids_and_folders_is_read_by_imgid(write_json):
    path = write_json("flickr.json", {"images": [image(cocoid=None, filepath=None, imgid=5)]})
    assert read_karpathy(path) == [Entry(5, Path("a.jpg"), ("a dog",), "train")]


def test_restval_belongs_to_train(write_json):
    path = write_json("k.json", {"images": [image(split="restval")]})
    assert [entry.split for entry in read_karpathy(path)] == ["train"]


def test_restval_is_dropped_on_request(write_json):
    path = write_json("k.json", {"images": [image(), image(cocoid=8, split="restval")]})
    assert [entry.image_id for entry in read_karpathy(path, restval="drop")] == [7]


def test_white_space_is_normalised_and_empty_captions_are_left_out(write_json):
    path = write_json("k.json", {"images": [image(sentences=[{"raw": " a\ndog  "}, {"raw": " "}])]})
    assert read_karpathy(path)[0].captions == ("a dog",)


def test_official_file_gathers_the_captions_of_each_image(write_json):
    document = {
        "images": [{"id": 2, "file_name": "b.jpg"}, {"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": i, "caption": c} for i, c in [(1, "a dog"), (2, "a cat"), (1, "a puppy")]],
    }
    assert read_coco(write_json("captions.json", document), "val") == [
        Entry(2, Path("b.jpg"), ("a cat",), "val"),
        Entry(1, Path("a.jpg"), ("a dog", "a puppy"), "val"),
    ]


def test_official_file_without_annotations_holds_images_to_be_captioned(write_json):
    path = write_json("image_info.json", {"images": [{"id": 2, "file_name": "b.jpg"}]})
    assert read_coco(path, "test") == [Entry(2, Path("b.jpg"), (), "test")]


def test_absent_file_is_named(tmp_path):
    assert complaint(read_karpathy, tmp_path / "no.json").endswith("no.json: No such file or directory")


def test_broken_json_is_located(write_json):
    path = write_json("k.json", '{"images": [\n  {"cocoid": 7,')
    assert "is not JSON" in complaint(read_karpathy, path)
    assert "line 2, column 16" in complaint(read_karpathy, path)


@pytest.mark.parametrize("content", [b"PK\x03\x04\xff\xfe", b"[" * 100_000], ids=["zip", "nested too deep"])
def test_file_that_is_no_text_or_no_sensible_json_is_refused(tmp_path, content):
    (tmp_path / "k.json").write_bytes(content)
    assert "k.json" in complaint(read_karpathy, tmp_path / "k.json")


def test_json_of_another_shape_says_what_was_found(write_json):
    assert "found 'info', 'licenses'" in complaint(read_karpathy, write_json("a.json", {"info": 1, "licenses": 2}))
    assert "found a list" in complaint(read_karpathy, write_json("b.json", [1, 2]))


def test_each_format_is_recognised_when_given_as_the_other(write_json):
    official = write_json("captions.json", {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []})
    assert "official COCO captions file" in complaint(read_karpathy, official)
    assert "Karpathy split file" in complaint(read_coco, write_json("k.json", {"images": [image()]}), "train")


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (image(cocoid=None), 'image number 0: "imgid" is missing'),
        (image(cocoid="7"), "image number 0: \"cocoid\" should be of type int, found '7'"),
        (image(cocoid=True), "should be of type int, found 'True'"),
        (image(split=None), 'image id 7: "split" is missing'),
        (image(filename=3), "image id 7: \"filename\" should be of type str, found '3'"),
        (image(sentences={}), "image id 7: \"sentences\" should be of type list, found '{}'"),
        (image(sentences=["a dog"]), 'image id 7: expected a JSON object with "raw", found a str'),
        ("a.jpg", "image number 0: expected a JSON object"),
    ],
)
def test_wrong_field_is_named_with_its_image(write_json, wrong, found):
    assert found in complaint(read_karpathy, write_json("k.json", {"images": [wrong]}))


def test_two_images_of_one_id_are_refused(write_json):
    path = write_json("k.json", {"images": [image(), image(filename="b.jpg", split="test")]})
    assert "image id 7 is used by 2 images" in complaint(read_karpathy, path)
    path = write_json("captions.json", {"images": [{"id": 7, "file_name": "a.jpg"}] * 2})
    assert "image id 7 is used by 2 images" in complaint(read_coco, path, "train")


def test_caption_of_an_unknown_image_is_refused(write_json):
    document = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 9, "caption": "a dog"}]}
    assert "annotation number 0: its image id 9" in complaint(read_coco, write_json("captions.json", document), "val")


@pytest.mark.parametrize("filename", ["../secret.png", "a/../../secret.png", "/etc/secret.png", "", "a\0.png"])
def test_file_name_that_leads_out_of_the_image_folder_is_refused(write_json, filename):
    karpathy = write_json("k.json", {"images": [image(filepath="", filename=filename)]})
    assert "leads out of the image folder" in complaint(read_karpathy, karpathy)
    official = write_json("captions.json", {"images": [{"id": 1, "file_name": filename}]})
    assert "leads out of the image folder" in complaint(read_coco, official, "val")


def test_folder_that_leads_out_of_the_image_folder_is_refused(write_json):
    path = write_json("k.json", {"images": [image(filepath="..")]})
    assert "leads out of the image folder" in complaint(read_karpathy, path)


def test_a_domain_is_read_where_the_file_names_one(write_json):
    document = {"images": [{"id": 1, "file_name": "a.jpg", "domain": "in-domain"}, {"id": 2, "file_name": "b.jpg"}]}
    assert [entry.domain for entry in read_coco(write_json("n.json", document), "test")] == ["in-domain", None]
    path = write_json("k.json", {"images": [image(domain="out-domain")]})
    assert [entry.domain for entry in read_karpathy(path)] == ["out-domain"]


def test_addresses_are_read_by_file_name(write_json):
    address = "https://example.org/a.jpg"
    path = write_json("n.json", {"images": [{"id": 1, "file_name": "a.jpg", "coco_url": address}]})
    assert read_addresses(path) == {Path("a.jpg"): address}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"file_name": "a.jpg"}, '"coco_url" is missing'),
        ({"file_name": "../a.jpg", "coco_url": "https://example.org/a.jpg"}, "leads out of the image folder"),
    ],
)
def test_images_without_a_proper_name_or_address_are_refused(write_json, record, message):
    assert message in complaint(read_addresses, write_json("n.json", {"images": [record]}))


# What is left out is counted and named.


def test_null_and_empty_captions_are_none_and_are_counted(write_json):
    sentences = [{"raw": None}, {"raw": "a dog"}, {"raw": " \n"}, {"raw": "\ufeff"}]
    path = write_json("k.json", {"images": [image(sentences=sentences)]})
    with pytest.warns(
        UserWarning, match=r"left out of .*k\.json: 3 captions that are empty or null, the first: .*id 7"
    ):
        assert read_karpathy(path)[0].captions == ("a dog",)
    document = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 1, "caption": None}, {"image_id": 1, "caption": "a dog"}],
    }
    with pytest.warns(UserWarning, match=r"1 captions that are empty or null"):
        assert read_coco(write_json("c.json", document), "val")[0].captions == ("a dog",)


@pytest.mark.parametrize(
    ("told", "split"),
    [("validation", "val"), ("valid", "val"), ("val2014", "val"), ("train2017", "train"), ("Test", "test")],
)
def test_splits_are_known_by_the_names_that_data_sets_give_them(write_json, told, split):
    assert [entry.split for entry in read_karpathy(write_json("k.json", {"images": [image(split=told)]}))] == [split]


def test_images_of_an_unknown_split_are_counted(write_json):
    path = write_json("k.json", {"images": [image(), image(cocoid=8, split="spare"), image(cocoid=9, split="spare")]})
    with pytest.warns(UserWarning, match=r"2 images of the split 'spare', which is none of train, val and test, the"):
        read_karpathy(path)


# Encodings and other formats.


def test_a_byte_order_mark_does_no_harm(write_json, tmp_path):
    path = write_json("k.json", {"images": [image(sentences=[{"raw": "\ufeffa \ufeffdog"}])]})
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + Path(path).read_bytes())
    assert read_karpathy(tmp_path / "bom.json")[0].captions == ("a dog",)
    (tmp_path / "bom16.json").write_bytes(Path(path).read_text().encode("utf-16"))
    assert "is not a JSON file in UTF-8, but text in UTF-16" in complaint(read_karpathy, tmp_path / "bom16.json")


def test_blips_list_of_captions_is_recognised(write_json):
    path = write_json("coco_karpathy_train.json", [{"caption": "a dog", "image": "a.jpg", "image_id": "coco_7"}])
    assert "found a list, as BLIP's coco_karpathy_train.json is one; name" in complaint(read_karpathy, path)


@pytest.mark.parametrize("number", ["1" * 30, "1" * 5000])
def test_a_number_that_is_too_long_is_one_line(tmp_path, number):
    (tmp_path / "k.json").write_text(f'{{"images": [{{"id": {number}, "file_name": "a.jpg"}}]}}')
    assert "k.json" in complaint(read_coco, tmp_path / "k.json", "val")
