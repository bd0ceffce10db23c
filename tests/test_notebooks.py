"""Run the notebooks on phantoms and on the committed tables, and check their committed outputs."""

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.mark.integration
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs(file, phantoms, tmp_path, monkeypatch):
    monkeypatch.setenv("FRACATLAS_ROOT", str(phantoms))
    monkeypatch.setenv("FRACATLAS_EXPERIMENTS", str(REPOSITORY / "experiments"))
    notebook = nbformat.read(file, as_version=4)
    NotebookClient(
        notebook, timeout=300, startup_timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert all(cell.get("execution_count") for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_committed_outputs_are_small_and_have_no_radiographs_and_no_paths(file):
    assert file.stat().st_size < 250_000
    assert str(REPOSITORY) not in file.read_text(encoding="utf-8")
    for cell in nbformat.read(file, as_version=4).cells:
        if cell.cell_type == "code":
            hidden = "radiographs" in cell.metadata.get("tags", [])
            assert cell.execution_count
            assert not (hidden and cell.outputs)
            assert "imshow" not in cell.source or hidden
