"""The names of BLIP in the original repository, LAVIS, mmpretrain and transformers: whole key sets of the published
models, both ways, and the values behind the names."""
import re
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'data'))
from blip_key_lists import LARGE, SMALL, openmmlab, salesforce
from key_lists import assert_same, drawn, empty, shapes

from mmblip2.checkpoints import layouts
from mmblip2.errors import CheckpointError

OUTPUT, INPUT = 'text_decoder.cls.predictions.decoder.weight', 'text_decoder.bert.embeddings.word_embeddings.weight'
KINDS = ['caption', 'VQA', 'retrieval', 'pre-training', 'NLVR2']


def small_file(kind, project='LAVIS'):
    """A file with random values, tied as the original ties."""
    keys = (salesforce if project == 'LAVIS' else openmmlab)(kind, **SMALL)
    file = drawn(keys)
    for key in file:
        if key.endswith(('queue_ptr', 'ptr_queue')):
            file[key] = torch.tensor([4])
        elif key.endswith('idx_queue'):
            file[key] = torch.tensor([[7, 7, -100, 12, 3, -100, -100, 9]])
        elif kind == 'pre-training' and key.startswith('text_decoder.bert.') and '.attention.' not in key:
            file[key] = file[key.replace('text_decoder.bert', 'text_encoder')]
    if kind == 'pre-training':
        file[OUTPUT] = torch.randn(SMALL['vocab'], SMALL['width'])
    if 'head.temp' in file:
        file['head.temp'] = file['temp']
    return file


def in_ours(key):
    """Our name of a tensor of the original repository, by hand."""
    momentum = re.match(r'(visual_encoder|text_encoder|vision_proj|text_proj)_m\.', key)
    if momentum:
        return 'momentum.' + in_ours(key.replace('_m.', '.', 1)).removeprefix('itc_head.')
    for old, new in (('visual_encoder.patch_embed.proj', 'vision.patch_embed'), ('visual_encoder', 'vision'),
                     ('text_decoder.cls.predictions.transform.dense', 'lm_head.transform'),
                     ('text_decoder.cls.predictions.transform.LayerNorm', 'lm_head.norm'),
                     ('text_decoder.cls.predictions', 'lm_head'), ('text_decoder.bert', 'text_decoder'),
                     ('embeddings.LayerNorm', 'embedding_norm'), ('.embeddings.', '.'),
                     ('.encoder.layer.', '.layers.'), ('crossattention', 'cross_attention'),
                     ('attention.self.', 'attention.'), ('attention.output.dense', 'attention.output'),
                     ('attention.output.LayerNorm', 'attention_norm'), ('.intermediate.dense', '.mlp.fc1'),
                     ('.output.dense', '.mlp.fc2'), ('.output.LayerNorm', '.mlp_norm')):
        if '.attention.output' in key and old == '.output.dense':
            break
        key = key.replace(old, new)
    for old, new in (('vision_proj.', 'itc_head.vision_proj.'), ('text_proj.', 'itc_head.text_proj.'),
                     ('itm_head.', 'itm_head.classifier.')):
        key = new + key.removeprefix(old) if key.startswith(old) else key
    return {'temp': 'itc_head.temperature', 'idx_queue': 'image_id_queue', 'ptr_queue': 'queue_ptr'}.get(key, key)


CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'blip'
# project, config, keys of the file
FILES = {
    'caption': ('LAVIS', 'blip-base_8xb32_caption', salesforce('caption')),
    'caption, large': ('LAVIS', 'blip-large_16xb16_caption', salesforce('caption', **LARGE)),
    'VQA': ('LAVIS', 'blip-base_8xb32_vqa', salesforce('VQA', image=480)),
    'retrieval': ('LAVIS', 'blip-base_8xb32_retrieval', salesforce('retrieval')),
    'retrieval, large': ('LAVIS', 'blip-large_16xb16_retrieval', salesforce('retrieval', **LARGE)),
    'pre-training': ('LAVIS', 'blip-base_32xb90_pretrain', salesforce('pre-training', image=224)),
    'pre-training, large': ('LAVIS', 'blip-large_32xb75_pretrain',
                            salesforce('pre-training', **dict(LARGE, image=224))),
    'NLVR2': ('LAVIS', 'blip-base_8xb32_nlvr', salesforce('NLVR2')),
    'caption of mmpretrain': ('mmpretrain', 'blip-base_8xb32_caption', openmmlab('caption')),
    'VQA of mmpretrain': ('mmpretrain', 'blip-base_8xb32_vqa', openmmlab('VQA', image=480)),
    'retrieval of mmpretrain': ('mmpretrain', 'blip-base_8xb32_retrieval', openmmlab('retrieval')),
    'NLVR2 of mmpretrain': ('mmpretrain', 'blip-base_8xb32_nlvr', openmmlab('NLVR2')),
}
# what we have and they do not: the number of steps, and ids of a queue that has none yet
OURS_ALONE = {'num_steps', 'image_id_queue'}


@cache
def ours(config):
    """State dict of the model of ``configs/blip/<config>.py`` on the meta device."""
    from mmengine.config import Config

    from mmblip2.utils.meta import build_on_meta
    return build_on_meta(Config.fromfile(str(CONFIGS / f'{config}.py')).model.to_dict()).state_dict()


@pytest.mark.parametrize('name', FILES)
def test_whole_key_sets_of_the_published_models(name):
    project, config, expected = FILES[name]
    state = ours(config)
    converted = layouts.recognise(expected).to_ours(empty(expected))
    alone = {key for key in state if key not in converted.state}
    assert alone <= OURS_ALONE
    assert shapes(converted.state) == {key: shape for key, shape in shapes(state).items() if key not in alone}
    file, left = layouts.to_write(project, state).from_ours({key: state[key] for key in state if key not in alone})
    assert shapes(file) == expected and not left


def test_the_hand_table_is_right():
    assert in_ours('text_decoder.bert.encoder.layer.3.attention.output.dense.bias') == \
        'text_decoder.layers.3.attention.output.bias'
    assert in_ours('text_encoder_m.encoder.layer.3.output.dense.bias') == 'momentum.text_encoder.layers.3.mlp.fc2.bias'


@pytest.mark.parametrize('kind', KINDS[:4])
def test_values_behind_the_names(kind):
    file = small_file(kind)
    layout = layouts.recognise(file)
    assert (layout.name, layout.kind) == ('LAVIS', f'BLIP, {kind}')
    found = layout.to_ours(file)
    expected = {in_ours(key): value for key, value in file.items()
                if not key.endswith('position_ids') and key not in found.dropped and key != OUTPUT}
    if kind == 'pre-training':
        expected['text_decoder.word_embeddings.weight'] = file[OUTPUT]
    assert found.state.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found.state[key].flatten(), value.flatten()), key
    second = {'text_decoder.cls.predictions.decoder.bias', INPUT if kind == 'pre-training' else OUTPUT}
    assert set(found.dropped) == {key for key in file if key.endswith('position_ids') or key in second}
    memory = {value.untyped_storage().data_ptr() for value in file.values()}
    assert {value.untyped_storage().data_ptr() for value in found.state.values()} <= memory, 'a copy'


def test_values_of_the_model_of_two_images():
    file = small_file('NLVR2')
    layout = layouts.recognise(file)
    assert (layout.name, layout.kind) == ('LAVIS', 'BLIP, NLVR2')
    found = layout.to_ours(file).state
    theirs, mine = 'text_encoder.encoder.layer.7.', 'text_encoder.layers.7.'
    for i in range(2):
        for part in ('query', 'key', 'value'):
            assert found[f'{mine}cross_attention.{i}.{part}.weight'] is file[
                f'{theirs}crossattention.self{i}.{part}.weight']
        assert found[f'{mine}cross_attention.{i}.output.bias'] is file[f'{theirs}crossattention.output.dense{i}.bias']
    assert found[f'{mine}cross_attention_norm.bias'] is file[f'{theirs}crossattention.output.LayerNorm.bias']
    assert found[f'{mine}merge.weight'] is file[f'{theirs}crossattention.output.merge_layer.weight']
    assert found[f'{mine}attention.output.bias'] is file[f'{theirs}attention.output.dense.bias']
    assert found['head.2.weight'] is file['cls_head.2.weight'] and found['head.0.bias'] is file['cls_head.0.bias']
    assert len(found) == len(file) - 1  # position_ids


@pytest.mark.parametrize('project, kind', [*(('LAVIS', kind) for kind in KINDS), *(
    ('mmpretrain', kind) for kind in KINDS if kind != 'pre-training')])
def test_there_and_back_is_exact(project, kind):
    file = small_file(kind, project)
    layout = layouts.recognise(file)
    assert (layout.name, layout.kind) == (project, f'BLIP, {kind}')
    found = layout.to_ours(file)
    back, left = layouts.to_write(project, found.state).from_ours(found.state)
    assert not left
    assert_same(back, file)


def in_lavis(key, kind):
    """Name in LAVIS of a tensor of mmpretrain, by hand."""
    for old, new in (('seq_gen_head.decoder', 'text_decoder'), ('vqa_head.decoder', 'text_decoder'),
                     ('multimodal_backbone', 'text_encoder'), ('text_backbone', 'text_encoder'),
                     ('vision_backbone', 'visual_encoder'), ('patch_embed.projection', 'patch_embed.proj'),
                     ('vision_neck', 'vision_proj'), ('text_neck', 'text_proj'), ('multimodal_head.fc', 'itm_head')):
        key = key.replace(old, new)
    if key.startswith('visual_encoder'):
        end = re.match(r'(visual_encoder(?:_m)?)\.ln1\.(.+)', key)
        key = f'{end.group(1)}.norm.{end.group(2)}' if end else key
        for old, new in (('.layers.', '.blocks.'), ('ln1', 'norm1'), ('ln2', 'norm2'), ('ffn.blocks.0.0', 'mlp.fc1'),
                         ('ffn.blocks.1', 'mlp.fc2')):
            key = key.replace(old, new)
    return key.replace('head.', 'cls_head.', 1) if kind == 'NLVR2' else key.removeprefix('head.')


@pytest.mark.parametrize('kind', ['caption', 'VQA', 'retrieval', 'NLVR2'])
def test_mmpretrain_has_the_values_of_lavis(kind):
    file = small_file(kind, 'mmpretrain')
    found = layouts.recognise(file).to_ours(file).state
    lavis, left = layouts.to_write('LAVIS', found).from_ours(found)
    assert not left
    expected = {in_lavis(key, kind): value for key, value in file.items() if key != 'head.temp'}
    assert_same(lavis, expected)


def test_queues_of_the_original_repository_and_of_lavis():
    for pointer in ('ptr_queue', 'queue_ptr'):
        file = small_file('retrieval')
        file[pointer] = file.pop('queue_ptr')
        assert layouts.recognise(file).to_ours(file).state['queue_ptr'] == 4


def test_a_matching_model_lacks_what_only_training_needs():
    file = drawn(salesforce('ITM', **SMALL))
    layout = layouts.recognise(file)
    assert layout.kind == 'BLIP, retrieval'
    whole = layouts.recognise(small_file('retrieval')).to_ours(small_file('retrieval')).state
    from fnmatch import fnmatch
    lacks = whole.keys() - layout.to_ours(file).state.keys() - {'itc_head.temperature'}
    assert lacks and all(any(fnmatch(key, pattern) for pattern in layout.loses) for key in lacks)


@pytest.mark.parametrize('second, first', [
    (OUTPUT, INPUT), ('text_decoder.cls.predictions.decoder.bias', 'text_decoder.cls.predictions.bias')])
def test_a_captioner_whose_head_is_not_tied_is_refused(second, first):
    file = small_file('caption')
    file[second] = file[second] + 1e-3
    with pytest.raises(CheckpointError, match=re.escape(f'{second} and {first} differ')):
        layouts.recognise(file).to_ours(file)


def test_a_pretraining_whose_decoder_is_not_tied_is_refused():
    file = small_file('pre-training')
    file[INPUT] = file[INPUT] + 1e-3
    with pytest.raises(CheckpointError, match=re.escape(f'{INPUT} and text_encoder.embeddings.word_embeddings.weight')):
        layouts.recognise(file).to_ours(file)


def test_unknown_keys_are_named():
    file = {**small_file('VQA'), 'answer_head.weight': torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r'1 of \d+ keys are unknown in a file of LAVIS \(BLIP, VQA\) '
                                              r'\(answer_head.weight\)'):
        layouts.recognise(file).to_ours(file)


# ----------------------------------------------------------------------------------------- transformers

# class, our config, our keys that it has no place for
CLASSES = [
    ('BlipForConditionalGeneration', 'blip-base_8xb32_caption', ()),
    ('BlipForConditionalGeneration', 'blip-large_16xb16_caption', ()),
    ('BlipForQuestionAnswering', 'blip-base_8xb32_vqa', ()),
    ('BlipForImageTextRetrieval', 'blip-base_8xb32_retrieval', ('itc_head.temperature', )),
    ('BlipForImageTextRetrieval', 'blip-large_16xb16_retrieval', ('itc_head.temperature', )),
    ('BlipForImageTextRetrieval', 'blip-base_32xb90_pretrain', ('itc_head.temperature', 'text_decoder.', 'lm_head.'))]
TRAINING = ('num_steps', 'momentum.', 'image_queue', 'text_queue', 'image_id_queue', 'queue_ptr')


def theirs(name, config='base', small=False):
    """A model of transformers; of the real size on the meta device."""
    transformers = pytest.importorskip('transformers')
    sizes = {**(SMALL if small else LARGE if 'large' in config else {}),
             'image': 32 if small else 480 if 'vqa' in config else 224 if 'pretrain' in config else 384}
    vision = {} if not sizes.get('vision') else dict(
        hidden_size=sizes['vision'], num_hidden_layers=sizes['depth'], intermediate_size=sizes['vision_mlp'],
        num_attention_heads=2)
    text = {} if not small else dict(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=20,
        max_position_embeddings=130)
    ids = dict(bos_token_id=4, eos_token_id=3, sep_token_id=3)
    vision, text = dict(vision, image_size=sizes['image']), dict(text, **ids)
    if name == 'BlipVisionModel':
        whole = transformers.BlipVisionConfig(**vision)
    elif name == 'BlipTextModel':
        whole = transformers.BlipTextConfig(**text)
    else:
        whole = transformers.BlipConfig(vision_config=vision, text_config=text, image_text_hidden_size=256)
    with torch.device('cpu' if small else 'meta'):
        return getattr(transformers, name)(whole)


@pytest.mark.parametrize('name, config, alone', CLASSES)
def test_whole_key_sets_of_the_classes_of_transformers(name, config, alone):
    file, state = theirs(name, config).state_dict(), ours(config)
    layout = layouts.recognise(file)
    assert (layout.name, layout.kind) == ('transformers', name)
    found = layout.to_ours(file)
    assert set(found.dropped) == {key for key in file if '.decoder.' in key}
    lacks = {key for key in state if key not in found.state}
    assert lacks == {key for key in state if key.startswith((*alone, *TRAINING))}
    assert shapes(found.state) == {key: shape for key, shape in shapes(state).items() if key not in lacks}
    written = layouts.to_write('transformers', state)
    assert written is layout
    back, left = written.from_ours(state)
    assert set(left) == lacks
    assert shapes(back) == {key: shape for key, shape in shapes(file).items() if '.decoder.' not in key}


@pytest.mark.parametrize('name', [*dict.fromkeys(name for name, _, _ in CLASSES), 'BlipModel', 'BlipTextModel',
                                  'BlipVisionModel'])
def test_there_and_back_is_exact_for_what_transformers_saves(name, tmp_path):
    from safetensors.torch import load_file
    theirs(name, small=True).save_pretrained(tmp_path)
    file = load_file(tmp_path / 'model.safetensors')
    generator = torch.Generator().manual_seed(0)
    for value in file.values():
        value.normal_(generator=generator)
    layout = layouts.recognise(file, 'blip_vision_model' if name == 'BlipVisionModel' else None)
    assert layout.kind == name
    found = layout.to_ours(file)
    assert not found.dropped and not found.notes
    memory = {value.untyped_storage().data_ptr() for value in file.values()}
    assert {value.untyped_storage().data_ptr() for value in found.state.values()} <= memory, 'a copy'
    kind = name if name == 'BlipVisionModel' else None
    back, left = layouts.to_write('transformers', found.state, kind=kind).from_ours(found.state)
    assert not left
    assert_same(back, file)


def test_second_names_and_buffers_of_older_files_of_transformers_are_dropped():
    file = theirs('BlipForQuestionAnswering', small=True).state_dict()
    buffers = {f'{name}.embeddings.position_ids': torch.arange(130)[None]
               for name in ('text_encoder', 'text_decoder.bert')}
    found = layouts.recognise(file).to_ours({**file, **buffers})
    assert set(found.dropped) == {*buffers, *(key for key in file if '.decoder.' in key)}


def test_what_transformers_has_no_class_for_is_refused():
    from mmblip2.checkpoints import blip
    state = dict.fromkeys(blip.LAVIS['NLVR2'].to_ours(small_file('NLVR2')).state)
    with pytest.raises(CheckpointError, match='transformers has no BLIP for NLVR2'):
        layouts.to_write('transformers', state)
    with pytest.raises(CheckpointError, match='mmpretrain has no BLIP for pre-training'):
        layouts.to_write('mmpretrain', ours('blip-base_32xb90_pretrain'))
