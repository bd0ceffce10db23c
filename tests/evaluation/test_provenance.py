import pytest

from fractatlas.evaluation.provenance import (
    UNSEEN,
    describe_origin,
    describe_validation,
    finding_notices,
    use_notices,
)

OWN = {"name": "MURA", "finding": "abnormality"}


def elsewhere(seen: int | None, same: bool = False) -> dict:
    return {"name": "GRAZ", "near_duplicates": None if seen is None else {"n": seen}, "same_source": same, "own": OWN}


@pytest.mark.parametrize(
    ("entry", "origin", "validation"),
    [
        (elsewhere(0), "not those of the training: GRAZ. No image nearly equals a tr", "Done on GRAZ"),
        (elsewhere(1), "overlap with those of the training: GRAZ. 1 image that nearly equals", "In part. These"),
        (elsewhere(110), "overlap with those of the training: GRAZ. 110 images that nearly", "In part. These"),
        (elsewhere(None), "are not those of the training: GRAZ. Whether these images nearly equal", "In part. These"),
        (elsewhere(110, same=True), "These data are those of the training: GRAZ. 110 images", "Not done. These"),
    ],
)  # fmt: skip
def test_data_that_overlap_with_those_of_the_training_are_not_called_external(entry, origin, validation):
    assert origin in describe_origin(entry)
    assert describe_validation(entry).startswith(validation)


def test_data_of_an_earlier_version_have_no_source_of_the_training():
    entry = {"name": "GRAZ", "near_duplicates": {"n": 0}}
    assert describe_validation(entry) == "Done on GRAZ, on which the network was not trained."


def test_two_meanings_of_the_label_are_stated():
    fracture, abnormality = {"name": "GRAZ", "finding": "fracture"}, {"name": "MURA", "finding": "abnormality"}
    (notice,) = finding_notices({"data": fracture, "elsewhere": elsewhere(0)})
    assert notice.startswith(
        "The network was trained on MURA, where label 1 means abnormality, and is scored on GRAZ, where it means fr"
    )
    (notice,) = finding_notices({"data": abnormality, "elsewhere": elsewhere(0)})
    assert notice == 'In MURA, label 1 ("fractured" here) means abnormality, not fracture.'
    assert finding_notices({"data": fracture}) == []


def test_images_that_the_network_has_not_seen_are_no_notice():
    facts = {"train": 0, "val": 0, "found_by": "content"}
    assert use_notices("all", {"all_images": facts}, None) == []
    (notice,) = use_notices("all", {"all_images": facts | {"found_by": "name"}}, None)
    assert notice.startswith(UNSEEN)
    (notice,) = use_notices("all", {"all_images": facts | {"train": 2}}, None)
    assert notice.startswith("Of these images, 2 are in the training subset")
