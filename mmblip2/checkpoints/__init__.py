"""Reading, writing and matching checkpoints."""
from .huggingface import from_huggingface, to_huggingface
from .io import (
    FORMAT,
    LoadReport,
    find_checkpoints,
    frozen_record,
    load_weights,
    read_checkpoint,
    saved_state,
    write_checkpoint,
)

__all__ = ['FORMAT', 'LoadReport', 'find_checkpoints', 'from_huggingface', 'frozen_record', 'load_weights',
           'read_checkpoint', 'saved_state', 'to_huggingface', 'write_checkpoint']
