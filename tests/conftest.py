"""Shared by all tests: one thread a process, so that parallel processes do not slow one another down."""
import os
import sys
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

import pytest

SENTENCES = ['a small red circle left of a large blue square', 'two green stars above one yellow cross',
             'Question: what color is the star? Answer: green', 'there are three objects']


@pytest.fixture(scope='session')
def bert_folder(tmp_path_factory):
    """Folder of a WordPiece tokenizer trained on a few sentences."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast
    folder = tmp_path_factory.mktemp('bert')
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(SENTENCES, vocab_size=120, show_progress=False)
    tokenizer.save_model(str(folder))
    BertTokenizerFast.from_pretrained(str(folder)).save_pretrained(str(folder))
    return str(folder)


@pytest.fixture(scope='session')
def opt_folder(tmp_path_factory):
    """Folder of an OPT-like byte-level BPE tokenizer that puts ``</s>`` first, as OPT's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast
    folder = tmp_path_factory.mktemp('opt')
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(SENTENCES, trainers.BpeTrainer(
        vocab_size=330, special_tokens=['<s>', '<pad>', '</s>', '<unk>'], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.post_processor = processors.TemplateProcessing(single='</s> $A', special_tokens=[('</s>', 2)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token='</s>', eos_token='</s>', pad_token='<pad>',
                            unk_token='<unk>').save_pretrained(str(folder))
    return str(folder)


@pytest.fixture
def tiny_parts(bert_folder, opt_folder):
    """Configs of a model that builds in milliseconds: vision 16 px, Q-Former and OPT of width 16."""
    return dict(
        vision=dict(type='VisionTransformer', image_size=16, patch_size=8, width=16, depth=2, num_heads=2),
        qformer=dict(type='QFormer', vision_width=16, num_layers=2, width=16, num_heads=2, num_query=3,
                     max_positions=32, vocab_size=130),
        tokenizer=dict(type='BertTokenizer', path=bert_folder),
        language_model=dict(
            type='CausalLM', tokenizer=opt_folder,
            config=dict(model_type='opt', hidden_size=16, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=2,
                        num_attention_heads=2, max_position_embeddings=64)))


@pytest.fixture
def tiny_blip(bert_folder):
    """Configs of BLIP's parts that build in milliseconds: vision 16 px, MEDs of width 16."""
    med = dict(type='MED', vision_width=16, num_layers=2, width=16, num_heads=2, max_positions=40, vocab_size=130)
    return dict(
        vision=dict(type='VisionTransformer', image_size=16, patch_size=8, width=16, depth=2, num_heads=2,
                    qkv_bias='full', final_norm=True),
        text_encoder=med, text_decoder=dict(med),
        tokenizer=dict(type='BertTokenizer', path=bert_folder, enc_token=True))


@pytest.fixture
def real_parts(monkeypatch):
    """A stand-in for the vision package of configs/flickr8k, which the tests do not require; False where it is used."""
    if find_spec('efficientnet_lite_pytorch') is not None:
        yield True
        return
    monkeypatch.syspath_prepend(Path(__file__).parent / 'data' / 'stand_ins')
    yield False
    sys.modules.pop('efficientnet_lite_pytorch', None)


# the image part of the tiny models' test pipeline
PIPELINE = [dict(type='LoadImage'), dict(type='Resize', scale=16)]


@pytest.fixture
def tiny_generator(tiny_parts):
    """Function ``(task, reads_text=False, **model) -> Blip2Generation`` with ``_config``, redrawn from a
    seed; ``task`` is the transform of the test pipeline that makes the prompt."""
    import torch
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
                parameter.data.normal_(0, 0.3 if 'language_model' in name else 1., generator=generator)
        return built
    return build


@pytest.fixture(scope='module')
def representation(bert_folder):
    """A ``Blip2Representation`` with ``_config``, redrawn from a seed; its vision has 4 patches of 16 pixels."""
    import torch
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    import mmblip2.models  # noqa: F401
    from mmblip2.registry import MODELS
    cfg = Config(dict(
        model=dict(
            type='Blip2Representation', embed_dim=8, max_text_len=24, frozen=(),
            vision=dict(type='VisionTransformer', image_size=16, patch_size=8, width=16, depth=2, num_heads=2),
            qformer=dict(type='QFormer', vision_width=16, num_layers=2, width=16, num_heads=2, num_query=3,
                         max_positions=32, vocab_size=130),
            tokenizer=dict(type='BertTokenizer', path=bert_folder)),
        test_dataloader=dict(dataset=dict(pipeline=[*PIPELINE, dict(type='CleanCaption'), dict(type='PackInputs')]))))
    with DefaultScope.overwrite_default_scope('mmblip2'), torch.random.fork_rng():
        torch.manual_seed(0)  # biases, which are not redrawn
        built = MODELS.build(cfg.model).eval()
    built._config = cfg
    generator = torch.Generator().manual_seed(0)
    for parameter in built.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.3, generator=generator)
    return built
