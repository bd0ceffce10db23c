"""The one exception that means: the input is wrong, and here is what to do."""


class InputError(Exception):
    """A mistake that the user can mend: what is wrong, where, and what to do, in one or two lines.

    Entry points print the message without a traceback and exit with status 1.
    """
