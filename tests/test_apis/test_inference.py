"""inference_model on tiny models trained for one step and written by the real Runner."""
import re
import sys

import pytest
from mmengine.config import Config
from PIL import Image

from mmblip2 import get_model, inference_model
from mmblip2.errors import CheckpointError, ConfigError

PIPELINE = [dict(type='LoadImage'), dict(type='Resize', scale=16)]


def write(tmp_path, model, pipeline, task_pipeline):
    """Train nothing: save a checkpoint of a freshly built model with its config inside."""
    import mmblip2.datasets  # noqa: F401
    from mmblip2.engine import Runner
    (tmp_path / 'texts.txt').write_text('a\n')
    cfg = Config(dict(
        model=dict(frozen=(), **model), work_dir=str(tmp_path), default_scope='mmblip2',
        train_dataloader=dict(batch_size=1, dataset=dict(type='TextCorpus', ann_file=str(tmp_path / 'texts.txt')),
                              sampler=dict(type='SeekableInfiniteSampler')),
        train_cfg=dict(type='SeekIterLoop', max_iters=1),
        optim_wrapper=dict(type='AutocastOptimWrapper', dtype='float32', optimizer=dict(type='SGD', lr=0.1)),
        test_dataloader=dict(batch_size=1,
                             dataset=dict(pipeline=[*pipeline, *task_pipeline, dict(type='PackInputs')]))))
    train = cfg.copy()
    for key in ('test_dataloader', ):
        train.pop(key)
    runner = Runner.from_cfg(train)
    runner._config = cfg.to_dict()
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.save_checkpoint(str(tmp_path), 'iter_1.pth', by_epoch=False)
    return tmp_path / 'iter_1.pth'


@pytest.fixture
def image(tmp_path):
    path = tmp_path / 'picture.png'
    Image.new('RGB', (20, 30), (200, 30, 30)).save(path)
    return path


def generation(parts, **kwargs):
    return dict(type='Blip2Generation', generation=dict(max_new_tokens=3), **parts, **kwargs)


def test_caption_keys_for_one_and_for_many(tmp_path, tiny_parts, image):
    tiny_parts.pop('tokenizer')
    tiny_parts['qformer'].pop('vocab_size')
    path = write(tmp_path, generation(tiny_parts), PIPELINE, [dict(type='CaptionPrompt', prompt='a photo of')])
    one = inference_model(path, image)
    assert list(one) == ['pred_caption'] and isinstance(one['pred_caption'], str)
    model = get_model(path)
    assert inference_model(model, [image, Image.open(image)]) == [one, one]
    answer = inference_model(model, image, 'what is it?')  # zero-shot, with the default template
    assert list(answer) == ['question', 'pred_answer'] and answer['question'] == 'what is it?'
    with pytest.raises(ConfigError, match='prototype is for retrieval, and this Blip2Generation writes text'):
        inference_model(model, image, prototype=['a'])
    with pytest.raises(ConfigError, match='built already'):
        inference_model(model, image, device='cpu')


def test_vqa_keys(tmp_path, tiny_parts, image):
    path = write(tmp_path, generation(tiny_parts), PIPELINE, [dict(type='VQAPrompt')])
    answer = inference_model(path, image, 'what color is it?')
    assert list(answer) == ['question', 'pred_answer'] and answer['question'] == 'what color is it?'
    with pytest.raises(ConfigError, match='answers questions: give question'):
        inference_model(path, image)


def test_retrieval_both_ways(tmp_path, tiny_parts, image):
    tiny_parts.pop('language_model')
    path = write(tmp_path, dict(type='Blip2Representation', embed_dim=8, **tiny_parts), PIPELINE, [])
    texts = ['a red circle', 'two stars', 'a blue square']
    best = inference_model(path, image, prototype=texts, topk=2)
    assert [sorted(row) for row in best] == [['match_score', 'sample_idx', 'text']] * 2
    assert best[0]['match_score'] >= best[1]['match_score']
    assert all(row['text'] == texts[row['sample_idx']] for row in best)
    found = inference_model(path, 'a red circle', prototype=[str(image), str(image)])
    assert found[0]['img_path'] == str(image)
    with pytest.raises(ConfigError, match='give prototype='):
        inference_model(path, image)


def test_retrieval_of_several_queries_and_its_arguments(representation, image, tmp_path):
    texts = ['a red circle', 'two stars', 'a blue square']
    one = inference_model(representation, image, prototype=texts, topk=3)
    assert inference_model(representation, [image, image], prototype=texts, topk=3) == [one, one]
    assert inference_model(representation, image, prototype=iter(texts), topk=3) == one
    assert inference_model(representation, image, prototype={'two stars'})[0]['text'] == 'two stars'
    (tmp_path / 'texts.txt').write_text('\n'.join(texts))
    assert inference_model(representation, image, prototype=tmp_path / 'texts.txt', topk=3) == one
    cosines = inference_model(representation, image, prototype=texts, topk=3, fast_match=True, progress=False)
    assert [row['match_score'] for row in cosines] != [row['match_score'] for row in one]

    (tmp_path / 'photos').mkdir()
    for name, color in (('a', (0, 200, 0)), ('b', (0, 0, 200))):
        Image.new('RGB', (20, 20), color).save(tmp_path / 'photos' / f'{name}.png')
    cache = tmp_path / 'gallery.safetensors'
    found = inference_model(representation, 'two stars', prototype=tmp_path / 'photos', topk=2, prototype_cache=cache)
    assert sorted(row['img_path'] for row in found) == [str(tmp_path / 'photos' / name) for name in ('a.png', 'b.png')]
    assert all(row['sample']['img_path'] == row['img_path'] for row in found)
    sample = inference_model(representation, 'two stars', prototype=tmp_path / 'photos', return_datasamples=True)
    assert int(sample.pred_score.argmax()) == found[0]['sample_idx']
    assert inference_model(representation, ['two stars'], topk=2, prototype_cache=cache) == [found]
    inference_model(representation, image, prototype=texts, topk=2, show_dir=tmp_path / 'shown')
    assert [path.name for path in (tmp_path / 'shown').iterdir()] == ['picture.png']


def test_a_text_that_names_a_directory_is_a_text_for_images(representation, image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'two stars').mkdir()
    image.rename(tmp_path / 'two stars' / 'picture.png')
    images = [tmp_path / 'two stars' / 'picture.png']
    assert [row['sample_idx'] for row in inference_model(representation, 'two stars', prototype=images)] == [0]
    texts = inference_model(representation, 'two stars', prototype=['a red circle'])  # for texts it is its images
    assert len(texts) == 1 and texts[0][0]['text'] == 'a red circle'


def test_what_does_not_fit_a_retrieval_model_is_refused(representation, image):
    for query, prototype, kind in ((image, [image], 'an image'), ('a star', ['a star'], 'a text')):
        with pytest.raises(ConfigError, match=f'the query is {kind} and so is some of the prototype'):
            inference_model(representation, query, prototype=prototype)
    with pytest.raises(ConfigError, match='a prototype with at least one entry'):
        inference_model(representation, image, prototype=[])
    with pytest.raises(ConfigError, match='some entries of the prototype are images and some are texts'):
        inference_model(representation, image, prototype=[image, 'a star'])
    with pytest.raises(ConfigError, match='this is a retrieval model, which answers no question'):
        inference_model(representation, image, 'what is it?')
    with pytest.raises(ConfigError, match='topk is for a search: give the texts as prototype='):
        inference_model(representation, image, texts=['a star'], topk=2)
    with pytest.raises(ConfigError, match="ImageTextMatchingInferencer: a call has no argument 'prototype_cache'"):
        inference_model(representation, image, texts=['a star'], prototype_cache='x')


def test_an_image_is_compared_with_texts(representation, image):
    one = inference_model(representation, image, texts='a red circle')
    assert sorted(one) == ['itc_score', 'itm_score'] and 0 <= one['itm_score'] <= 1
    two = inference_model(representation, image, texts=['a red circle', 'two stars'])
    assert two[0] == pytest.approx(one, abs=1e-5) and len(two) == 2


def test_arguments_reach_the_call_and_the_kind_of_the_input_that_of_the_result(tiny_generator, image, tmp_path):
    model = tiny_generator([dict(type='CaptionPrompt', prompt='a photo of')])
    one = inference_model(model, image)
    assert inference_model(model, (path for path in [image, image]), batch_size=2) == [one, one]
    assert inference_model(model, image.parent, show_dir=tmp_path / 'shown') == [one]
    assert (tmp_path / 'shown' / 'picture.png').exists()
    assert inference_model(model, str(image), prompt='')['pred_caption'] != one['pred_caption']
    assert len(inference_model(model, image, num_captions=2)['pred_caption']) == 2
    answers = inference_model(model, image, ['what is it?', 'why?'], template='{} Answer:')
    assert [answer['question'] for answer in answers] == ['what is it?', 'why?']
    assert inference_model(model, image, 'why?', template='{} Answer:') == answers[1]
    with pytest.raises(ConfigError, match="generate has no setting 'promt'"):
        inference_model(model, image, promt='a')


def test_a_model_for_features_alone_is_sent_to_the_extractor(representation):
    import torch
    model = torch.nn.Linear(1, 1)
    model._config = representation._config
    with pytest.raises(ConfigError, match='does nothing with a Linear: for its features take FeatureExtractor'):
        inference_model(model, 'a.png')


def test_a_model_from_a_config(tmp_path, tiny_parts, image):
    tiny_parts.pop('tokenizer')
    tiny_parts['qformer'].pop('vocab_size')
    path = write(tmp_path, generation(tiny_parts), PIPELINE, [dict(type='CaptionPrompt', prompt='a photo of')])
    config = get_model(path)._config
    config.dump(tmp_path / 'config.py')
    expected = inference_model(path, image)
    for source in (config, tmp_path / 'config.py'):
        assert inference_model(source, image, pretrained=str(path), device='cpu') == expected


def test_config_without_weights_is_refused(tmp_path):
    (tmp_path / 'config.py').write_text('model = dict(type="X")')
    with pytest.raises(ConfigError, match='no weights would be loaded'):
        get_model(str(tmp_path / 'config.py'))
    with pytest.raises(CheckpointError, match='folder without a checkpoint'):
        get_model(tmp_path)


def test_names_of_shipped_configs_are_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('quickstart/stage2.py', 'blip2/blip2-opt2.7b_8xb32_caption', 'blip2_8xb32_retrieval'):
        with pytest.raises(ConfigError, match=f'{name}.* is a config: give pretrained=CHECKPOINT'):
            get_model(name)
    with pytest.raises(ConfigError, match='work directory or config blip2_8xb32_retrievl not found: .*did you mean '
                                          'blip2/blip2_8xb32_retrieval.py'):
        get_model('blip2_8xb32_retrievl')
    with pytest.raises(CheckpointError, match='checkpoint none.pth not found'):
        get_model('none.pth')


def with_config(path, **changes):
    """The checkpoint ``path`` again, with other entries in its config."""
    from mmblip2.checkpoints import io
    checkpoint = io.read_checkpoint(path)
    checkpoint['meta']['config'].update(changes)
    io.write_checkpoint(checkpoint, path)
    return path


@pytest.fixture
def caption_file(tmp_path, tiny_parts):
    tiny_parts.pop('tokenizer')
    tiny_parts['qformer'].pop('vocab_size')
    return write(tmp_path, generation(tiny_parts), PIPELINE, [dict(type='CaptionPrompt', prompt='a photo of')])


@pytest.mark.parametrize('part, name', [
    (dict(vision=dict(type='FeatureMapEncoder', module=dict(type='pathlib.Path.touch', self='ran'))),
     r"model.vision.module.type='pathlib.Path.touch'"),
    (dict(vision=dict(type='evil_module')), "model.vision.type='evil_module'"),
    (dict(vision=dict(type='MMPretrainBackbone', backbone='ResNet', act_cfg=dict(type='evil_module'))),
     "model.vision.act_cfg.type='evil_module'"),
    (dict(qformer=dict(type='QFormer', _scope_='evil_module')), "model.qformer._scope_='evil_module'"),
    (dict(language_model=dict(type='CausalLM', model='folder', config=dict(trust_remote_code=True))),
     'model.language_model.config.trust_remote_code=True'),
    (dict(generation=dict(custom_generate='folder', trust_remote_code=True)),
     'model.generation.trust_remote_code=True'),
])
def test_a_checkpoint_may_not_choose_what_is_run(caption_file, tmp_path, monkeypatch, part, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'evil_module.py').write_text('open("ran", "w")')
    monkeypatch.syspath_prepend(str(tmp_path))
    model = {**generation({}), **part}
    with pytest.raises(CheckpointError, match=re.escape(f'has {name}, which could run') + r'.*call get_model\(CONFIG'):
        get_model(with_config(caption_file, model=model))
    assert not (tmp_path / 'ran').exists() and 'evil_module' not in sys.modules


def test_a_checkpoint_may_not_choose_transforms_either(caption_file):
    with pytest.raises(CheckpointError, match=r"pipeline\[0\].type='os.system'"):
        get_model(with_config(caption_file, test_dataloader=dict(dataset=dict(pipeline=[dict(type='os.system')]))))
    with pytest.raises(CheckpointError, match='has no config inside'):
        get_model(with_config(caption_file, model='import os'))


def test_a_checkpoint_imports_nothing_by_itself(caption_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'my_parts.py').write_text('open("ran", "w")')
    monkeypatch.syspath_prepend(str(tmp_path))
    with_config(caption_file, custom_imports=dict(imports=['my_parts']))
    with pytest.raises(CheckpointError, match='needs the module my_parts of its custom_imports.*import my_parts bef'):
        get_model(caption_file)
    assert not (tmp_path / 'ran').exists()
    monkeypatch.setitem(sys.modules, 'my_parts', sys)  # imported by the caller
    assert get_model(caption_file) is not None
