"""Tiny models for the inferencers, random but with weights large enough that an image changes the result."""
import pytest
import torch

PIPELINE = [dict(type='LoadImage'), dict(type='Resize', scale=16)]


@pytest.fixture
def tiny_generator(tiny_parts):
    """Function ``(task, reads_text=False, pipeline=..., **model) -> Blip2Generation`` with ``_config``, redrawn from a
    seed; ``task`` is the transform of the test pipeline that makes the prompt."""
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    import mmblip2.models  # noqa: F401
    from mmblip2.registry import MODELS

    def build(task, reads_text=False, language_model=None, **model):
        parts = dict(tiny_parts, qformer=dict(tiny_parts['qformer']))
        if not reads_text:
            parts.pop('tokenizer')
            parts['qformer'].pop('vocab_size')
        if language_model is not None:
            parts['language_model'] = language_model
        cfg = Config(dict(
            model=dict(type='Blip2Generation', frozen=(), **{'generation': dict(max_new_tokens=6), **model}, **parts),
            test_dataloader=dict(dataset=dict(pipeline=[*PIPELINE, *task, dict(type='PackInputs')]))))
        with DefaultScope.overwrite_default_scope('mmblip2'):
            built = MODELS.build(cfg.model).eval()
        built._config = cfg
        generator = torch.Generator().manual_seed(0)
        for name, parameter in built.named_parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(0, 0.3 if 'language_model' in name else 0.2, generator=generator)
        return built
    return build
