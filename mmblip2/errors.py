"""The three errors that a user can cause and mend.

Each message says what failed, what it got, what was expected and how to fix it.
``tools/*.py`` print them without a traceback and exit with status 2.
"""


class MMBlip2Error(Exception):
    """Base of the errors below; never raised itself."""


class ConfigError(MMBlip2Error):
    """The config asks for something that cannot be built or does not fit together."""


class DataError(MMBlip2Error):
    """An annotation file, an image or a set of predictions is missing or malformed."""


class CheckpointError(MMBlip2Error):
    """A checkpoint or a frozen part is missing, broken, or belongs to another model."""


def first_lines(error, count=1):
    """The gist of another package's error, for the end of one of our messages.

    Args:
        error (Exception): Any; one without a message gives the name of its class.
        count (int): Lines of the message that are kept, joined by spaces.

    Returns:
        str: One line.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ' '.join(line.strip() for line in lines[:count])
