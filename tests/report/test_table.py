from fractatlas.report.table import markdown


def run(task: str, model: str, random: list[str]) -> dict:
    score = {"value": 0.9, "low": 0.8, "high": 0.95}
    names = ("accuracy", "auroc", "average_precision", "sensitivity", "specificity")
    part = {"n": 528, "positives": 93, "majority_rate": 0.8239} | dict.fromkeys(names, score)
    weights = {"file": "w.pth", "loaded": 10, "of": 20, "random": random}
    return {"task_name": task, "model": model, "weights": weights, "val": part, "test": part | {"auroc": None}}


def test_ours_stand_beside_the_studys_and_the_majority_rate():
    table = markdown([run("baseline_resnet", "resnet50", ["layer4", "head"]), run("mine", "densenet121", ["head"])])
    head, _, val, test, other, _ = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
    )
    row = dict(zip(head, val, strict=True))
    assert row["run"] == "baseline_resnet (resnet50, random layer4)"
    assert (row["accuracy"], row["study's accuracy"], row["majority rate"]) == ("90.00 [80.0, 95.0]", "82.54", "82.39")
    assert row["AUROC"] == "0.900 [0.80, 0.95]"
    assert dict(zip(head, test, strict=True))["AUROC"] == "undefined"
    assert dict(zip(head, other, strict=True))["study's accuracy"] == ""
    assert other[0] == "mine (densenet121)"
