"""The ``fractatlas`` command: ``main`` lists the module of each verb."""
