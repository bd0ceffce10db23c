"""The ``fractatlas`` command: one module per verb."""
