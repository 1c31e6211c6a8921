"""The tool fills what the training then finds."""
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'data'))
from recipe_files import load_tool

from mmblip2.errors import ConfigError

CONFIG = '''
default_scope = 'mmblip2'
custom_imports = dict(imports=['cache_run'])
pipeline = [dict(type='LoadImage'), dict(type='Resize', scale=16), dict(type='CleanCaption'), dict(type='PackInputs')]
model = dict(
    type='Blip2Representation', embed_dim=8, vision=dict(type='PixelTokens'),
    qformer=dict(type='QFormer', vision_width=16, num_layers=1, width=16, num_heads=2, num_query=2, max_positions=32,
                 vocab_size=100),
    tokenizer=dict(type='BertTokenizer', path='{folder}/bert'))
train_dataloader = dict(
    batch_size=3, num_workers=0, sampler=dict(type='SeekableInfiniteSampler'),
    dataset=dict(type='COCORetrieval', data_root='{folder}', ann_file='train.json', pipeline=pipeline{cache}))
train_cfg = dict(max_iters=2)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2))
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
test_dataloader = dict(
    batch_size=3, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='COCORetrieval', data_root='{folder}', ann_file='val.json', test_mode=True, indices=4,
                 pipeline=pipeline{cache}))
test_cfg = dict(type='RetrievalTestLoop', k_test=2)
test_evaluator = dict(type='RetrievalRecall')
'''


def test_training_and_test_find_what_the_tool_has_cached(tmp_path, monkeypatch, capsys):
    from cache_run import PixelTokens, write_files
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    config = tmp_path / 'config.py'
    cache = f", feature_cache=dict(dir='{tmp_path}/features')"
    config.write_text(CONFIG.format(folder=tmp_path, cache=cache))
    load_tool('cache_features').main([str(config), '--splits', 'train'])
    assert len(list((tmp_path / 'features').iterdir())) == 1
    load_tool('cache_features').main([str(config)])
    shards = list((tmp_path / 'features').glob('*/shard-*.bin'))
    assert len(shards) == 2 and 'all there' in capsys.readouterr().out
    monkeypatch.setattr(PixelTokens, 'forward', None)
    load_tool('../train').main([str(config), '--work-dir', 'work'])
    load_tool('../test').main([str(config), 'work/iter_2.pth', '--work-dir', 'test', '--out', 'test/metrics.json'])
    assert Path('test/metrics.json').is_file()
    assert sorted((tmp_path / 'features').glob('*/shard-*.bin')) == sorted(shards)
    config.write_text(CONFIG.format(folder=tmp_path, cache=''))
    with pytest.raises(ConfigError, match=r'no data set of .*config.py .* has feature_cache: set it, feature_'):
        load_tool('cache_features').main([str(config)])
