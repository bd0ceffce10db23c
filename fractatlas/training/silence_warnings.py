"""Silence log messages and warnings that require no action."""

import logging
import os
import warnings

IRRELEVANT = (
    ".*LeafSpec.*",  # Lightning uses a deprecated function of torch
    ".*does not have many workers.*",  # the cache delivers images faster than the network processes them
    ".*dataloader is not resumable.*",  # the sampler of the data module is
    ".*exists and is not empty.*",  # normal in a resumed run folder
    ".*callbacks used to create the checkpoint need to be provided.*",  # not for scoring
    ".*smaller than the logging interval.*",  # the last step of an epoch is always logged
    ".*`srun` command is available.*",  # a run on one node needs no srun
    ".*requested to overfit but enabled.*shuffling.*",  # Lightning then takes the batches in the order of the split
    ".*No (positive|negative) samples in targets.*",  # the data module logs that a subset has one class
    ".*in eval mode at the start of training.*",  # the frozen stages
    ".*sync_dist=True.*",  # torchmetrics has synchronised the values
)
# Environment variables with the number of a process: of Lightning and torchrun, and of SLURM.
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


def quieten() -> None:
    """Hide messages that require no action; of several processes, only the first one logs information."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in IRRELEVANT:
        warnings.filterwarnings("ignore", message)
    if any(int(os.environ.get(name, 0)) > 0 for name in RANKS):
        logging.disable(logging.INFO)
