"""Pictures of predictions; importing this registers the hook."""
from .hook import PredictionVisualizationHook
from .visualizer import draw_caption

__all__ = ['PredictionVisualizationHook', 'draw_caption']
