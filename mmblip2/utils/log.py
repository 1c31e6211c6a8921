"""Messages of code that runs in a training as well as in somebody's script."""
import sys


def say(text: str, level: int | None = None):
    """Log to the logger of the running tool; in a script, which has none, to stderr: its stdout is its own.

    Args:
        text: One line.
        level: Of ``logging``; default: INFO.
    """
    import logging

    from mmengine.logging import MMLogger, print_log
    if set(MMLogger._instance_dict) - {'mmengine'}:  # that of a Runner; 'mmengine' is made when a model is built
        print_log(text, logger='current', level=level or logging.INFO)
    else:
        print(text, file=sys.stderr)
