"""What the parts of BLIP-2 and BLIP that have features alone refuse, each in its own words."""
import pytest

from mmblip2.errors import ConfigError
from mmblip2.registry import MODELS


@pytest.mark.parametrize('kind, whole, text_part, trained_as', [
    ('Blip2Features', 'BLIP-2', 'text half', 'give its folder to load_from of a Blip2Representation'),
    ('BlipFeatures', 'BLIP', 'text encoder', 'take a BlipRepresentation or a BlipGeneration')])
def test_what_a_vision_encoder_alone_cannot_do_is_said(tiny_blip, kind, whole, text_part, trained_as):
    model = MODELS.build(dict(type=kind, vision=tiny_blip['vision']))
    with pytest.raises(ConfigError, match=f'this {kind} has no {text_part}: .* from a part of {whole} without'):
        model.tokenize(['a star'])
    with pytest.raises(ConfigError, match=f'{kind} is not trained: {trained_as}'):
        model(mode='loss')
    with pytest.raises(ConfigError, match=f'{kind} has features only: call encode_image'):
        model(mode='predict')
