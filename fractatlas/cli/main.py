"""Dispatch ``fractatlas VERB`` to the function of the verb."""

import os
import sys
from importlib import import_module

import fractatlas
from fractatlas.signals import exit_on_stop_signals

# For each verb, the module of ``fractatlas.cli`` with its function, and a summary.
VERBS = {
    "train": ("train", "Fine-tune a network"),
    "evaluate": ("evaluate", "Score a checkpoint, or a table of predictions of any system"),
    "predict": ("predict", "Predict fractures in image files"),
    "serve": ("serve", "Serve a page and a JSON API that predict uploaded images"),
    "export": ("export", "Export a checkpoint to ONNX"),
    "data": ("data", "Download FracAtlas, audit a data set, or export it as a table"),
    "search": ("train", "Search hyperparameters with Optuna"),
    "report": ("runs", "Write the report page and the model card of a run folder again"),
    "compare": ("runs", "Compare runs on the same images"),
    "table": ("runs", "Print a Markdown table of runs"),
    "plan": ("experiments", "Train, score and tabulate the runs of an experiment"),
    "crossval": ("experiments", "Cross-validate a training over folds of groups"),
    "probe": ("experiments", "Score frozen ImageNet features with a linear classifier"),
}
HELP = """usage: fractatlas VERB [ARGUMENT ...]

Detect bone fractures in radiographs.

verbs:
{rows}

fractatlas VERB --help describes a verb; fractatlas --version prints the version."""
CHILD_VERB = "FRACATLAS_VERB"  # environment variable: the verb of the processes that Lightning starts


def main(verb: str | None = None) -> None:
    """Run one verb with the arguments of the process.

    Exits with status 1 after a mistake, 130 after Ctrl-C, and 75 after SIGTERM or SIGUSR1.

    Args:
        verb: its name; ``None`` takes the first argument.
    """
    if verb is None and set(sys.argv[1:2]) & set(VERBS):
        verb = sys.argv.pop(1)
    elif verb is None and "LOCAL_RANK" in os.environ:
        verb = os.environ.get(CHILD_VERB)  # Lightning starts the other processes of a run without the verb
    if verb:
        os.environ[CHILD_VERB] = verb
        with exit_on_stop_signals():
            getattr(import_module(f"fractatlas.cli.{VERBS[verb][0]}"), verb)()
    elif sys.argv[1:2] in ([], ["-h"], ["--help"]):
        rows = "\n".join(f"  {verb:10}{summary}" for verb, (_, summary) in VERBS.items())
        print(HELP.format(rows=rows))
    elif sys.argv[1] == "--version":
        print(f"fractatlas {fractatlas.__version__}")
    else:
        sys.exit(f"error: fractatlas has no verb '{sys.argv[1]}'; the verbs are {', '.join(VERBS)}")
