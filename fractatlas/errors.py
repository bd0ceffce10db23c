"""The exception for mistakes that a user can correct."""


class InputError(Exception):
    """Report a mistake that the user can correct: the problem, the place and the remedy, in one or two lines.

    Commands print the message without a traceback and exit with status 1.
    """
