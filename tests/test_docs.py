"""Run the commands of the README and of the documentation, and check that its reference is complete.

A block of shell commands in a tested page follows a comment, which readers do not see: ``<!-- test: run -->`` runs it
on small data, ``<!-- test: skip REASON -->`` does not. The blocks of one page run in order, in one folder.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from fractatlas.cli.main import VERBS
from fractatlas.config.overrides import CONF
from fractatlas.config.schema import TrainConfig
from fractatlas.config.validation import known_keys
from fractatlas.evaluation.markdown import METRIC_TITLES
from tests.conftest import REPOSITORY
from tests.data.sources.miniatures import write_dicoms

DOCS = REPOSITORY / "docs"
TESTED = [REPOSITORY / "README.md", DOCS / "get_started.md", DOCS / "howto" / "config_dir.md",
          DOCS / "howto" / "cross_validate.md", DOCS / "howto" / "extension.md", DOCS / "howto" / "grid.md",
          *sorted((DOCS / "tutorials").glob("*.md"))]  # fmt: skip
PAGES = [REPOSITORY / "README.md", *sorted(REPOSITORY.glob("experiments/**/README.md")),
         *(file for file in sorted(DOCS.rglob("*.md")) if "_build" not in file.parts)]  # fmt: skip
BLOCK = re.compile(r"(?:^<!-- test: (?P<how>.*?) -->\n)?^```bash\n(?P<commands>.*?)^```$", re.MULTILINE | re.DOTALL)
# Appended to every command that trains.
SMALL = "data.prepare.images=160 data.batch_size=16 data.num_workers=0 preprocess.resize=64 preprocess.crop=64"
SMALL_IMAGES = "data.batch_size=16 data.num_workers=0 preprocess.resize=64 preprocess.crop=64"  # without phantoms
OWN = "own_radiographs"  # the page that starts with a folder of DICOM files
TRAINS = re.compile(
    r"^((python train\.py|fractatlas train)(?! resume=| --help)|fractatlas (search|crossval)).*$", re.MULTILINE
)

sys.path.insert(0, str(DOCS / "_ext"))


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return how each block of shell commands is tested, and the commands."""
    return [(found["how"] or "", found["commands"]) for found in BLOCK.finditer(page.read_text(encoding="utf-8"))]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MyST form them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TESTED, ids=lambda page: page.stem)
def test_every_block_of_commands_is_run_or_states_why_not(page):
    assert [commands for how, commands in blocks(page) if not re.match(r"run$|skip .", how)] == []


@pytest.mark.integration
@pytest.mark.parametrize(
    "page", [page for page in TESTED if any(how == "run" for how, _ in blocks(page))], ids=lambda page: page.stem
)
def test_commands_of_a_page_run(page, tmp_path):
    for script in ("train.py", "evaluate.py", "predict.py"):
        (tmp_path / script).write_bytes((REPOSITORY / script).read_bytes())
    commands = "\n".join(commands for how, commands in blocks(page) if how == "run")
    commands = re.sub(r" \\\n +", " ", commands)  # one line for each command, to which SMALL is appended
    small = SMALL
    if page.stem == OWN:
        write_dicoms(tmp_path / "scans", 150).to_csv(tmp_path / "labels.csv", index=False)
        small = SMALL_IMAGES
    commands = TRAINS.sub(lambda found: f"{found[0].partition('  #')[0]} {small}", commands)
    commands = commands.replace("phantom-1600-0", "phantom-160-0")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FRACATLAS_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=550, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{commands}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def test_arguments_of_the_search_tutorial_have_the_described_values():
    text = (DOCS / "tutorials" / "search.md").read_text(encoding="utf-8")
    arguments = [shlex.split(one)[0] for one in re.findall(r"^\| `([^`]+=[^`]+)` \| .* \|$", text, re.MULTILINE)]
    spaces = {argument: create_params_from_overrides([argument])[0] for argument in arguments}
    assert {argument: next(iter(space.values()), None) for argument, space in spaces.items()} == {
        "optimizer.lr=interval(1e-4,1e-3)": FloatDistribution(1e-4, 1e-3),
        "optimizer.lr=tag(log,interval(1e-4,1e-2))": FloatDistribution(1e-4, 1e-2, log=True),
        "trainer.max_epochs=range(2,6)": IntDistribution(2, 5),
        "model.dropout=range(0.1,0.6,0.2)": FloatDistribution(0.1, 0.5, step=0.2),
        "model.variant=choice(densenet121,densenet169)": CategoricalDistribution(["densenet121", "densenet169"]),
        "augment=none,light": CategoricalDistribution(["none", "light"]),
        "model.dropout=0.3": None,
    }
    assert {argument.partition("=")[0] for argument in arguments} <= {*known_keys(TrainConfig)}


def test_the_readme_has_at_most_120_lines():
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_every_verb_is_in_the_reference():
    text = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    assert [verb for verb in VERBS if f"### fractatlas {verb}\n" not in text] == []


def test_every_choice_is_in_the_reference():
    import project_reference as generated

    text = (DOCS / "reference" / "configuration.md").read_text(encoding="utf-8")
    groups = [group for group in re.findall(r"^```{configuration} (\S+)$", text, re.MULTILINE)
              if group not in generated.COMMANDS]  # fmt: skip
    shown = "".join(map(generated.group_markdown, groups))
    files = [file.relative_to(CONF) for file in CONF.glob("*/**/*.yaml") if file.parent.name != "hydra"]
    assert [str(file) for file in files if f"`{file.parent.as_posix()}={file.stem}`" not in shown] == []


def test_every_key_in_the_reference_has_a_type_and_a_meaning():
    import project_reference as generated

    rows = [row for command in generated.COMMANDS for row in generated.command_rows(command)]
    for group in generated.groups():
        for file in generated.choices(group):
            _, keys = generated.read_choice(file)
            if schema := generated.schema_of(keys):
                rows += generated.rows(keys, schema, f"{group.replace('/', '.')}.")
    assert len(rows) > 150
    assert [row for row in rows if not (row.kind and row.meaning)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_of_a_page_resolve(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if "://" not in link and (not target.exists() or (anchor and anchor not in anchors(target))):
            broken.append(link)
    assert broken == []


@pytest.mark.integration
def test_the_site_builds_without_a_warning_and_loads_nothing_from_the_network(tmp_path):
    arguments = [
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        "-d",
        str(tmp_path / "doctrees"),
        str(DOCS),
        str(tmp_path / "html"),
    ]
    done = subprocess.run([sys.executable, "-m", "sphinx", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    loaded = re.compile(
        r"<(?:script|link|img|iframe|source)[^>]+(?:src|href)=\"(?:https?:)?//|url\([\"']?(?:https?:)?//"
    )
    files = [*(tmp_path / "html").rglob("*.html"), *(tmp_path / "html").rglob("*.css")]
    assert [file.name for file in files if loaded.search(file.read_text(encoding="utf-8"))] == []


def test_every_file_and_column_of_a_run_folder_is_in_the_reference(run_folder):
    text = (DOCS / "reference" / "run_folder.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([^`]+)`", text))
    metrics = {name for name in named if name in METRIC_TITLES}
    assert metrics | {"brier_calibrated", "calibration_error_calibrated"} == {*METRIC_TITLES}
    intervals = {f"{name}{end}" for name in METRIC_TITLES for end in ("", "_low", "_high")}
    missing = [file.name for file in run_folder.iterdir() if file.is_file() and file.name not in named]
    for file in run_folder.glob("*.csv"):
        missing += [f"{file.name}: {name}" for name in {*pd.read_csv(file)} - named - intervals]
    missing += [
        f"metrics.json: {name}" for name in json.loads((run_folder / "metrics.json").read_text()) if name not in named
    ]
    assert missing == []
