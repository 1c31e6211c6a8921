"""LAVIS's side of ``benchmark.py stage1``, in a process of its own, where the packages of
requirements/benchmark_lavis.txt come before all others.

    python benchmark_lavis.py FOLDER INPUTS

Runs LAVIS's own ``Blip2Qformer.forward`` with gloo and one process. What is not needed for it has stand-ins: registry,
download, logger, CLIP, timm's three small functions. INPUTS (torch.save) has the state dict in LAVIS's names, sizes,
pixels, padded tokens and the negatives. Each line read is a command ('step', 'operations', 'memory'), answered by one
line of JSON.
"""
import json
import os
import sys
import tempfile
import time
import types
from functools import partial
from pathlib import Path
from unittest import mock


def import_lavis(folder):
    """The classes ``Blip2Qformer``, its vision encoder, ``BertConfig`` and ``BertLMHeadModel``."""
    sys.path.insert(0, str(folder))
    import torch
    import transformers.modeling_utils  # noqa: F401  before timm has a stand-in

    def stand_in(name, **attributes):
        module = types.ModuleType(name)
        vars(module).update(attributes)
        sys.modules[name] = module

    def unused(*args, **kwargs):
        raise RuntimeError('a stand-in was called')

    def grouped():
        return torch.distributed.is_available() and torch.distributed.is_initialized()

    for name in ('lavis', 'lavis.common', 'lavis.models', 'lavis.models.blip2_models', 'lavis.models.blip_models'):
        stand_in(name, __path__=[str(Path(folder, *name.split('.')))])
    stand_in('lavis.common.registry', registry=types.SimpleNamespace(register_model=lambda name: lambda kind: kind))
    stand_in('lavis.common.dist_utils', download_cached_file=unused, is_dist_avail_and_initialized=grouped)
    stand_in('lavis.common.utils', is_url=unused, get_abs_path=unused)
    stand_in('lavis.common.logger', MetricLogger=unused)
    stand_in('lavis.models.clip_vit', create_clip_vit_L=unused)
    stand_in('omegaconf', OmegaConf=unused)
    stand_in('timm', __path__=[])
    stand_in('timm.models', __path__=[])
    stand_in('timm.models.layers', drop_path=unused, to_2tuple=lambda x: (x, x),
             trunc_normal_=torch.nn.init.trunc_normal_)
    stand_in('timm.models.registry', register_model=lambda function: function)
    from lavis.models.blip2_models.blip2 import LayerNorm
    from lavis.models.blip2_models.blip2_qformer import Blip2Qformer
    from lavis.models.blip2_models.Qformer import BertConfig, BertLMHeadModel
    from lavis.models.eva_vit import VisionTransformer
    return Blip2Qformer, VisionTransformer, LayerNorm, BertConfig, BertLMHeadModel


class Tokens(dict):
    """Tokens that are ready, in the place of a tokenizer and of what it returns."""
    bos_token_id, pad_token_id = 30522, 0
    input_ids = property(lambda self: self['input_ids'])
    attention_mask = property(lambda self: self['attention_mask'])

    def __len__(self):
        return 30523

    def __call__(self, texts, **kwargs):
        return self

    def to(self, device):
        return self


def build(folder, inputs):
    """LAVIS's model with the weights of INPUTS, in training mode, dropout 0."""
    import torch
    from torch import nn
    kind, vision_kind, norm, config_kind, qformer_kind = import_lavis(folder)
    vision, qformer = inputs['vision'], inputs['qformer']
    tokens = Tokens(input_ids=inputs['input_ids'], attention_mask=inputs['mask'])

    class Model(kind):
        def init_tokenizer(self):
            return tokens

        def init_vision_encoder(self, *args):
            encoder = vision_kind(
                img_size=vision['image_size'], patch_size=vision['patch_size'], use_mean_pooling=False,
                embed_dim=vision['width'], depth=vision['depth'], num_heads=vision['num_heads'],
                mlp_ratio=vision['mlp_width'] / vision['width'], qkv_bias=True,
                norm_layer=partial(nn.LayerNorm, eps=vision['eps']))
            return encoder, norm(vision['width'])

        def init_Qformer(self, num_query, width, freq):
            config = config_kind(
                vocab_size=30523, hidden_size=qformer['width'], num_hidden_layers=qformer['num_layers'],
                num_attention_heads=qformer['num_heads'], intermediate_size=4 * qformer['width'],
                hidden_dropout_prob=0., attention_probs_dropout_prob=0., encoder_width=width, add_cross_attention=True,
                cross_attention_freq=freq, query_length=num_query)
            return qformer_kind(config), nn.Parameter(torch.zeros(1, num_query, qformer['width']))

    model = Model(num_query_token=qformer['num_query'], embed_dim=256, max_txt_len=32)
    found = model.load_state_dict(inputs['state'], strict=False)
    missing = [name for name in found.missing_keys if not name.endswith('position_ids')]
    if missing or found.unexpected_keys:
        raise SystemExit(f'the weights do not fit LAVIS: missing {missing[:3]}, unexpected {found.unexpected_keys[:3]}')
    return model.train()


def main(folder, inputs):
    out = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what LAVIS prints is no answer
    import torch
    sys.path.append(str(Path(__file__).resolve().parent))
    from measuring import operations, peak_mib
    inputs = torch.load(inputs, weights_only=True)
    torch.set_num_threads(inputs['threads'])
    before = peak_mib()
    torch.distributed.init_process_group('gloo', init_method=f'file://{tempfile.mktemp()}', rank=0, world_size=1)
    model = build(folder, inputs)
    inputs['state'] = None
    clock = time.process_time if inputs['cpu_time'] else time.perf_counter
    precision = torch.autocast('cpu', torch.bfloat16, enabled=inputs['bfloat16'])
    losses = {}

    def step():
        drawn = iter(inputs['negatives'].tolist())
        with mock.patch.object(torch, 'multinomial', lambda *args: torch.tensor([next(drawn)])), precision:
            result = model(dict(image=inputs['pixels'], text_input=None))
        result.loss.backward()
        model.zero_grad(set_to_none=True)
        losses.update(loss_itc=float(result.loss_itc), loss_itm=float(result.loss_itm), loss_itg=float(result.loss_lm))

    for line in sys.stdin:
        command = line.strip()
        if command == 'step':
            start = clock()
            step()
            answer = dict(seconds=clock() - start, **losses)
        elif command == 'operations':
            answer = operations(step)
        else:
            answer = dict(before=before, peak=peak_mib())
        print(json.dumps(answer), file=out, flush=True)


if __name__ == '__main__':
    main(*sys.argv[1:])
