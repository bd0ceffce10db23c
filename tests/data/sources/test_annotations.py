import json

import pytest

from fractatlas.data.sources.annotations import read_coco
from fractatlas.errors import InputError

IMAGES = [{"id": 1, "file_name": "a.png"}]
GOOD = {"id": 7, "image_id": 1, "bbox": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"is not COCO JSON \(Expecting .*\); save it as JSON in UTF-8$"),
        ("[]", "is not COCO JSON; it should have the lists images .each with id and file_name. and annotations$"),
        ({"images": IMAGES}, "it should have the lists images"),
        ({"images": [{"id": 1}], "annotations": []}, "it should have the lists images"),
        (GOOD | {"image_id": 9999}, ": annotation 7: its image_id is not the id of an image in this file; correct or"),
        ({"bbox": [1, 2, 3, 4]}, ": annotation 2 of the list: its image_id is not"),
        (GOOD | {"bbox": [1, 2, 3]}, "annotation 7: bbox should be four numbers: left, top, width, height; correct"),
        (GOOD | {"bbox": [1, 2, 3, float("nan")]}, "annotation 7: bbox should be four numbers"),
        (
            GOOD | {"segmentation": [[1, 2, 3, 4]]},
            "annotation 7: segmentation should be lists of x and y, three points",
        ),
    ],
)
def test_a_mistake_in_a_coco_file_is_reported_with_the_annotation(tmp_path, content, message):
    if isinstance(content, dict) and "images" not in content:
        content = {"images": IMAGES, "annotations": [GOOD, content]}
    (tmp_path / "boxes.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=message) as raised:
        read_coco(tmp_path / "boxes.json")
    assert "download" not in str(raised.value)


def test_a_box_of_negative_width_is_read_because_the_catalogue_ignores_it(tmp_path):
    content = {"images": IMAGES, "annotations": [GOOD | {"bbox": [5, 5, -2, 3]}]}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    assert [one.box for one in read_coco(tmp_path / "boxes.json")] == [[5, 5, 3, 8]]
