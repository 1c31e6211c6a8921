"""Reading, writing and matching checkpoints."""
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

__all__ = ['FORMAT', 'LoadReport', 'find_checkpoints', 'frozen_record', 'load_weights', 'read_checkpoint',
           'saved_state', 'write_checkpoint']
