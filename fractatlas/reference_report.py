"""Accuracies of the reference report, shown next to this project's in tables and pages.

The report is described in full in ``docs/tutorials/reproduce.md``.
"""

# By task name and subset: the two baselines, and the best configuration of the report's search.
REFERENCE_ACCURACY = {
    "baseline_resnet": {"val": 0.8254},
    "baseline_densenet": {"val": 0.8630},
    "tuned_densenet": {"val": 0.8611, "test": 0.8515},
}
