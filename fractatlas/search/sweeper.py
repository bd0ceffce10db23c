"""The plugin that Hydra instantiates; light, so that ``--help`` and mistakes need neither Optuna nor torch."""

from typing import Any

from hydra.plugins.sweeper import Sweeper


class StudySweeper(Sweeper):
    """Hydra's Optuna sweeper, made to go on with its study."""

    def __init__(self, **config: Any):
        pass  # its values refer to others of the whole configuration, which ``setup`` is given

    def setup(self, **context: Any) -> None:
        """Keep Hydra's context for the search."""
        from fractatlas.search.study import StudySweeperImpl

        self._sweeper = StudySweeperImpl(**context)

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that the study still lacks."""
        self._sweeper.sweep(arguments)
