"""mmblip2: train and evaluate BLIP-2 and BLIP on mmengine.

Importing the package is cheap: models, data sets and APIs load when they are first used.
"""
from .version import __version__

_APIS = ('BaseInferencer', 'ChatInferencer', 'FeatureExtractor', 'ImageCaptionInferencer',
         'ImageTextMatchingInferencer', 'ImageToTextRetrievalInferencer', 'NLVRInferencer',
         'TextToImageRetrievalInferencer', 'VisualQuestionAnsweringInferencer', 'get_model', 'inference_model',
         'list_models')

__all__ = ('__version__', *_APIS)


def __getattr__(name):
    if name in _APIS:
        from . import apis
        return getattr(apis, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
