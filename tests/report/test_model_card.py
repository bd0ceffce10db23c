"""Model cards of several configurations, on the made-up run folder."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from fractatlas.config.schema import TrainConfig
from fractatlas.config.validation import validate
from fractatlas.data.sources.phantom import is_generated
from fractatlas.evaluation import provenance
from fractatlas.evaluation.run_folder import RunFolder
from fractatlas.report.report_page import model_card, write_report
from tests.conftest import REPOSITORY

WEIGHTS = {"file": "resnet50-x.pth", "loaded": 215, "of": 265, "random": ["layer4", "head"]}
# What a value of Python, YAML or an internal name would look like in a sentence.
LEAKS = re.compile(r"\b(None|True|False|nan|null|Identity|functools|_target_|binary_cross_entropy|\w+_split|_\w+_)\b"
                   r"|[{}]|\[\d+\.?\d*(, \d+\.?\d*){2}|\bval/|(?<![a-z])'|\.\.(?!\.)|  (?!\|)")  # fmt: skip
CASES = {
    "random weights": ("model=densenet", "model.variant=densenet_tiny", "model.weights=null", "data=phantom"),
    "pretrained": ("model=resnet", "model.variant=resnet50", "loss.pos_weight=4", "optimizer=sgd",
                   "model.freeze=2", "trainer.max_epochs=5", "data.keep_contradictions=true"),
    "mirror, average, letterbox": ("experiment=strong_densenet", "trainer.precision=bf16-mixed"),
    "folds": ("split=kfold", "split.fold=1", "trainer.limit_train_batches=0.25", "callbacks=early_stopping",
              "optimizer=sgd", "model.dropout=0.1", "threshold=sensitivity", "threshold.sensitivity=0.9"),
    "manifest": ("split=manifest", "split.path=/a/m.csv", "trainer.limit_train_batches=1",
                 "model.weights=/weights/mine.pth", "trainer.accumulate_grad_batches=2"),
    "head only": ("model.freeze=trunk", "split=random", "split.previous=/a/split.csv", "preprocess=letterbox",
                  "preprocess.fill=9"),
}  # fmt: skip


@pytest.fixture
def run_with(run_folder, tmp_path):
    """Copy the run folder with another configuration and other entries of metrics.json."""

    def make(*overrides: str, **entries) -> RunFolder:
        folder = tmp_path / "run"
        shutil.copytree(run_folder, folder)
        paths = (f"paths.root={tmp_path}", f"paths.output_dir={folder}", f"paths.cache_dir={tmp_path}")
        with initialize_config_dir(str(REPOSITORY / "conf"), job_name="test"):
            config = validate(compose("train", [*overrides, *paths]), TrainConfig)
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
        metrics = json.loads((folder / "metrics.json").read_text()) | {"model": config["model"]["variant"]}
        (folder / "metrics.json").write_text(json.dumps(metrics | entries))
        return RunFolder(folder)

    return make


def answer(card: str, item: int) -> str:
    (text,) = re.findall(rf"^\| {item} \| .+ \| (.+) \|$", card, re.MULTILINE)
    return text


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("trained", [True, False])
def test_a_card_contains_sentences_and_no_values_of_python(run_with, name, trained):
    monitor = {"name": "val/average_precision", "value": 0.5, "epoch": 1}
    history = [{"epoch": 1, "val/loss": 1.0}]
    run = run_with(*CASES[name], **({"monitor": monitor, "history": history, "weights": WEIGHTS} if trained else {}))
    card = model_card(run)
    assert [found[0] for found in LEAKS.finditer(card)] == []
    assert all(text.endswith(".") for text in re.findall(r"^\| \d+ \| .+ \| (.+) \|$", card, re.MULTILINE)[:22])


def test_random_weights_are_not_called_fine_tuned(run_with):
    card = model_card(run_with(*CASES["random weights"]))
    assert "densenet_tiny, trained from random weights." in card
    assert "fine-tuned" not in card
    assert answer(card, 24) == "Random."
    assert answer(card, 27) == "One network. Nothing is averaged."
    assert "Training images are not augmented." in answer(card, 25)
    assert "radiologists" not in card


def test_averages_over_mirror_images_and_weights_are_stated(run_with):
    card = model_card(run_with(*CASES["mirror, average, letterbox"]))
    assert "densenet169, fine-tuned from ImageNet weights; dropout 0.3 before the last layer." in card
    assert "logits of the image and of its mirror image are averaged" in answer(card, 27)
    assert "exponential moving average" in answer(card, 27)
    assert "The longer side is resized to 448 px" in answer(card, 9)
    assert "Training images are randomly flipped horizontally with probability 0.5" in answer(card, 25)
    assert "decreases to zero along a cosine" in answer(card, 25)


def test_pretrained_weights_stages_and_epochs_are_stated(run_with):
    history = [{"epoch": 1, "val/loss": 1.0}, {"epoch": 2, "val/loss": 0.9}]
    monitor = {"name": "val/auroc", "value": 0.9, "epoch": 2}
    card = model_card(run_with(*CASES["pretrained"], weights=WEIGHTS, history=history, monitor=monitor))
    assert "resnet50, fine-tuned from ImageNet weights; layer4 started from random weights; the first 2 of 5" in card
    assert answer(card, 25).startswith("2 epochs of at most 5, batch size 32")
    assert "with weight 4 for fractured images" in answer(card, 25)
    assert answer(card, 26) == "Epoch 2, the one with the best validation AUROC (0.9000)."


def test_folds_partial_epochs_and_manifests_are_described(run_with, tmp_path):
    card = model_card(run_with(*CASES["folds"]))
    assert "Fold 1 of 5 (counted from 0) is test, fold 2 is val" in answer(card, 20)
    assert "Each epoch used 25 % of the batches of the training subset" in answer(card, 25)
    shutil.rmtree(tmp_path / "run")
    card = model_card(run_with(*CASES["manifest"]))
    assert "Read from the file m.csv." in answer(card, 20)
    assert "Each epoch used 1 batch of the training subset" in answer(card, 25)
    assert "fine-tuned from the weights of mine.pth" in card


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ({"rule": "fixed", "threshold": 0.5, "temperature": 1.0}, "(fixed). No temperature was chosen."),
        ({"rule": "fixed", "threshold": 0.5, "temperature": 1.5},
         "(fixed). Calibrated probabilities divide the logit by the temperature 1.500, which was chosen"),
        ({"rule": "youden", "threshold": 0.3, "temperature": 1.5}, "(the largest sensitivity + specificity on the val"),
        ({"rule": "default", "threshold": 0.5, "temperature": 1.0}, "(the default). No temperature was chosen."),
    ],
)  # fmt: skip
def test_the_threshold_is_called_chosen_only_if_it_was(run_with, point, expected):
    assert expected in model_card(run_with(operating_point=point))


def test_relations_that_were_not_checked_are_stated_in_card_and_page(run_with):
    run = run_with()
    page = write_report(run.path).read_text()
    stated = "patients: not checked: there is no column patient"
    assert stated in answer((run.path / "model_card.md").read_text(), 21)
    assert stated in page
    assert "Patients are not known: images of several visits of one patient count as independent." in page


def test_page_and_card_begin_with_the_images_that_were_scored_in_part(run_with):
    run = run_with()
    test = run.metrics["test"] | {"n_subset": 529}
    n = test["n"]
    (run.path / "metrics.json").write_text(json.dumps(run.metrics | {"test": test}))
    page = write_report(run.path).read_text()
    card = (run.path / "model_card.md").read_text()
    notice = f"Only {n} of 529 images of the test subset were scored."
    assert card.splitlines()[2] == f"**{notice}**"
    assert page.index(notice) < page.index('<p class="summary">') < page.index(f"Accuracy on {n} of 529 images (test)")
    assert f'<td class="n">{n} of 529 (' in page
    assert notice in answer(card, 10)
    assert Path(run.path / "report.html").is_file()


def test_page_and_card_begin_with_patients_in_several_subsets(run_with):
    leak = {"of": 9, "known": 9, "groups": 4, "linked": 9, "divided": 2, "names": ["p1", "p2"], "images": {"val": 2},
            "subsets": ["train", "val", "test"]}  # fmt: skip
    run = run_with(leaks={"patients": leak})
    page = write_report(run.path).read_text()
    notice = "2 of 4 patients (column patient) are in several subsets: the scores can be too high."
    assert (run.path / "model_card.md").read_text().splitlines()[2] == f"**{notice}**"
    assert page.index(notice) < page.index('<p class="summary">')
    assert "(p1, p2)" in page


@pytest.mark.parametrize("known", [True, False])
def test_the_card_of_all_images_describes_no_split_of_them(run_with, known):
    facts = {"split": "split.csv" if known else None, "train": 3, "val": 1, "test": 1, "none": 0}
    run = run_with(all_images=facts)
    for name in ("predictions.csv", "strata.csv"):
        text = (run.path / name).read_text()
        (run.path / name).write_text(re.sub(r"\b(test)\b", "all", text))
    metrics = json.loads((run.path / "metrics.json").read_text())
    metrics["data"]["split"] = {"all": {"n": 50, "positives": 20}}
    (run.path / "metrics.json").write_text(json.dumps(metrics | {"all": metrics["test"]}))
    card = model_card(RunFolder(run.path))
    text = answer(card, 20)
    assert text.startswith(
        "No split was made: every image that is not excluded is scored. all: 50 images, 20 fractured."
    )
    assert text.endswith("seed 0.") if known else text.endswith("The split of the training is not known.")
    assert ("Split of the training: Groups of related images" in text) == known
    assert "50 scored" in answer(card, 7)


def test_generated_phantoms_are_recognised_by_the_data(run_with, phantoms):
    run = run_with()  # the configuration is that of FracAtlas, the data folder contains phantoms
    assert "The images are generated phantoms" in answer(model_card(run), 14)
    page = write_report(run.path).read_text()
    assert "box of a generated fracture" in page
    assert "radiologists" not in page[: page.index("Configuration")]
    assert is_generated(phantoms)
    assert not is_generated(phantoms / "images")


@pytest.mark.parametrize(("temperature", "limit"), [(19.9998, True), (0.05, True), (3.0, False)])
def test_a_temperature_at_the_limit_of_its_search_is_stated_as_such(run_with, temperature, limit):
    card = model_card(run_with(operating_point={"rule": "fixed", "threshold": 0.5, "temperature": temperature}))
    assert ("This is the limit of the search range (0.05 to 20)." in card) == limit


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ({"temperature": 1.0}, ""),
        ({"temperature": 1.5}, "The temperature was selected on these images: the calibrated scores are optimistic."),
        ({"temperature": 1.0, "box_threshold": 0.3},
         "The box threshold was selected on these images: the scores of candidate boxes are optimistic."),
        ({"temperature": 1.5, "box_threshold": 0.3},
         "The box threshold and the temperature were selected on these images: the calibrated scores and those of "
         "candidate boxes are optimistic."),
    ],
)  # fmt: skip
def test_only_the_scores_that_a_choice_affects_are_called_optimistic(point, expected):
    record = {"operating_point": {"rule": "fixed", "threshold": 0.5, **point}}
    assert provenance.describe_use("val", record, None) == expected
