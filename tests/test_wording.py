import pytest

from fractatlas.wording import format_duration, join_names, plural


def test_one_thing_is_singular():
    assert [plural(count, "image") for count in (0, 1, 2, 1234)] == ["0 images", "1 image", "2 images", "1,234 images"]


def test_a_long_list_names_five_and_counts_the_others():
    assert join_names("abcde") == "a, b, c, d, e"
    assert join_names([f"IMG{number}" for number in range(59)]) == "IMG0, IMG1, IMG2, IMG3, IMG4 and 54 more"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00:00"), (59.6, "0:01:00"), (3723, "1:02:03"), (100_000, "27:46:40")]
)
def test_a_duration_is_shown_as_hours_minutes_and_seconds(seconds, shown):
    assert format_duration(seconds) == shown
