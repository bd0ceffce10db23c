"""Every legal combination of sample formats, compared with independent readers."""

import pytest

from tests.robustness import reading

WITH_DCMTK = pytest.mark.skipif(not reading.DCMTK, reason="needs dcm2pnm: install dcmtk")
OTHERS = tuple(generator for generator in reading.GENERATORS if generator not in reading.NEED_DCMTK)


def require_right(rows: dict[str, reading.Row]) -> int:
    """Require that no file is read wrongly or refused without a reason; return the number of files."""
    assert not {kind: row.wrong for kind, row in rows.items() if row.wrong}
    assert not {kind: row.unread for kind, row in rows.items() if row.unread}
    assert max(row.largest for row in rows.values()) <= 1
    return sum(row.tried for row in rows.values())


@pytest.mark.filterwarnings("ignore")  # pydicom warns of invalid attributes
@pytest.mark.parametrize("generator", OTHERS, ids=lambda generator: generator.__name__)
def test_a_part_of_all_files_is_read_right(generator):
    rows = reading.run(every=3 if generator is reading.invalid_cases else 17, generators=(generator,))
    assert require_right(rows) >= 1


@WITH_DCMTK
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("generator", reading.NEED_DCMTK, ids=lambda generator: generator.__name__)
def test_a_part_of_all_dicom_files_is_read_as_dcmtk_does(generator):
    assert require_right(reading.run(every=97, generators=(generator,))) >= 5


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")
@pytest.mark.fault("generated image file of every kind and sample format",
                   "as an independent reader renders it, to one grey level")  # fmt: skip
@pytest.mark.parametrize(
    "generators", [OTHERS, pytest.param(reading.NEED_DCMTK, marks=WITH_DCMTK)], ids=["numpy", "dcmtk"]
)
def test_every_file_is_read_right(generators, record_property):
    record_property("tried", require_right(reading.run(generators=generators)))


def test_the_table_has_a_row_for_each_kind_and_a_line_for_each_refusal():
    rows = {
        "PNG": reading.Row(tried=1200, right=1199, wrong=["a.png: 3 grey levels"], largest=3, above_one=7, confirmed=5)
    }
    table = reading.markdown(rows)
    made, reader = reading.KINDS["PNG"]
    assert f"| PNG | {made} | {reader} (5 files read back) | 1,200 | 1,199 | 0 | 1 | 3 | 7 |" in table
    assert "| zip | not an image but a zip archive; give it as input=FILE.zip, or unpack it |" in table
    assert "not refused" not in table
