"""Check configurations: the schema, its validation, and the overrides of a command line."""
