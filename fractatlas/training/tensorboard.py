"""Write the TensorBoard log of a run."""

from lightning.pytorch import loggers
from lightning.pytorch.utilities import rank_zero_only


class RunLogger(loggers.TensorBoardLogger):
    """Lightning's logger, with one event file for each process of a run.

    Lightning's class closes its file after each stage (fit, validate, test) and opens another for the next stage.
    TensorBoard reads the files of a run in the order of their names, which is not the order in which they were written
    if two were opened in the same second. Entries of a resumed run could then be removed as entries of the stopped run.
    """

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write everything to disk after a stage, and keep the file open."""
        if self._experiment is not None:
            self.save()

    def close(self) -> None:
        """Close the file at the end of the run."""
        if self._experiment is not None:
            self._experiment.close()
