"""Models are found by name, built with the weights that belong to them, and say what is wrong with a request."""
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmblip2 import get_model, list_models
from mmblip2.apis import models
from mmblip2.checkpoints import io
from mmblip2.errors import CheckpointError, ConfigError
from mmblip2.structures import DataSample

IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)


@pytest.fixture
def tiny(tiny_parts, tmp_path, monkeypatch):
    """Config of a captioning model, an index that names it, and its checkpoint in MMBLIP2_WEIGHTS."""
    tiny_parts.pop('tokenizer')
    tiny_parts['qformer'].pop('vocab_size')
    cfg = Config(dict(model=dict(type='Blip2Generation', frozen=(), generation=dict(max_new_tokens=4), **tiny_parts),
                      test_dataloader=dict(dataset=dict(pipeline=[]))))
    root = tmp_path / 'root'
    (root / 'configs' / 'tiny').mkdir(parents=True)
    (root / 'tools').mkdir()
    cfg.dump(str(root / 'configs' / 'tiny' / 'captions.py'))
    entry = dict(Name='Tiny_Caption', Config='configs/tiny/captions.py', Weights='https://nowhere.invalid/tiny.pth',
                 Results=[dict(Task='Image Caption', Dataset='a', Metrics=None)])
    (root / 'model-index.yml').write_text('Import: [configs/tiny/metafile.yml]')
    (root / 'configs' / 'tiny' / 'metafile.yml').write_text(yaml.safe_dump(dict(Models=[
        entry, dict(Name='tiny_vqa', Config='configs/tiny/captions.py', Results=None)])))
    monkeypatch.setattr('mmblip2.utils.paths.resource_root', lambda: root)
    monkeypatch.setattr('mmblip2.checkpoints.sources.urllib.request.urlopen', _no_network)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path / 'mmengine'))
    monkeypatch.setenv('MMBLIP2_WEIGHTS', str(tmp_path / 'weights'))
    models.model_index.cache_clear()
    torch.manual_seed(0)
    model = get_model(cfg, pretrained=False, device='cpu')
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    io.write_checkpoint(dict(state_dict=io.saved_state(model)), tmp_path / 'weights' / 'tiny.pth')
    yield cfg, model, tmp_path / 'weights' / 'tiny.pth'
    models.model_index.cache_clear()


def _no_network(*args, **kwargs):
    raise OSError('no route to host')


def captions(model):
    samples = [DataSample(prompt='a'), DataSample(prompt='there are')]
    return [sample.pred_text for sample in model(IMAGES, samples, mode='predict')]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


# ------------------------------------------------------------------------------------------------- the list

def test_names_are_listed_as_in_mmpretrain():
    every = list_models()
    assert every == sorted(every) and all(name == name.lower() for name in every)
    assert {'blip2-opt2.7b_3rdparty-zeroshot_caption', 'blip2-opt2.7b_3rdparty-zeroshot_vqa',
            'blip2_3rdparty_retrieval'} <= set(every)
    assert list_models('BLIP2-opt2.7b') == list_models('blip2-opt2.7b*') != []
    assert all(name.startswith('blip2') and 'retrieval' in name for name in list_models('blip2*retrieval'))
    assert set(list_models('blip2', exclude_patterns=['blip2-opt', '*flan'])) == {
        name for name in every
        if name.startswith('blip2') and not name.startswith('blip2-opt') and 'flan' not in name}
    assert list_models('nothing-is-called-so') == [] == list_models(task='Visual Grounding')
    assert list_models(task='NLVR') == ['blip-base_3rdparty_nlvr', 'blip-base_nlvr']


def test_threads_may_build_at_the_same_time(tiny):
    cfg, model, path = tiny

    def scope():
        return getattr(DefaultScope.get_current_instance(), 'scope_name', None)

    before = scope()
    with ThreadPoolExecutor(4) as pool:
        built = list(pool.map(lambda _: get_model(cfg, pretrained=path, device='cpu'), range(24)))
    assert all(same(one, model) for one in built)
    assert scope() == before


def test_names_are_listed_by_task():
    answers = list_models(task='Visual Question Answering')
    assert 'blip2-opt2.7b_3rdparty-zeroshot_vqa' in answers
    assert 'blip2_3rdparty_retrieval' not in answers
    assert 'blip2_3rdparty_retrieval' in list_models('blip2', task='Text-To-Image Retrieval')
    without = list_models(task='null')
    assert 'quickstart_language_model' in without and not set(without) & set(answers)


# ------------------------------------------------------------------------------------------------ one model

def test_a_name_brings_its_config_and_its_weights(tiny):
    cfg, model, path = tiny
    found = get_model('tiny_CAPTION')
    assert same(found, model) and not found.training
    assert found._metainfo['Name'] == 'Tiny_Caption' and found._config.model.type == 'Blip2Generation'
    assert get_model(cfg, pretrained=str(path))._metainfo is None
    assert same(get_model('tiny_vqa', pretrained=path), model)


def test_every_way_to_a_config_gives_the_same_model(tiny):
    cfg, model, path = tiny
    file = Path(models._entry('tiny_vqa')['Config'])
    for given in (cfg, 'captions', 'tiny/captions', file, models.Path(path).parents[1] / 'root' / file):
        assert same(get_model(given, pretrained='tiny.pth', device='cpu'), model)


def test_random_weights_only_where_they_are_asked_for(tiny):
    cfg, model, path = tiny
    cfg = Config(dict(cfg.to_dict()))
    cfg.model.frozen = ('vision', 'language_model')
    cfg.model.vision.weights = 'no/such/file.pth'
    before = cfg.pretty_text
    assert not same(get_model(cfg, pretrained=False), model)
    assert cfg.pretty_text == before, 'the config of the caller stays as it is'
    for given, message in ((cfg, 'this is a config: give pretrained=CHECKPOINT, or no weights would be loaded'),
                           ('captions', r'captions is a config: .*, one of the names whose weights are known '
                                        r'\(Tiny_Caption\)'),
                           ('tiny_vqa', 'tiny_vqa has no published weights: give pretrained=CHECKPOINT')):
        with pytest.raises(ConfigError, match=message):
            get_model(given)
    with pytest.raises(ConfigError, match='is a checkpoint already'):
        get_model(path, pretrained=False)


def test_without_network_the_error_names_model_file_and_folder(tiny, tmp_path):
    tiny[2].unlink()
    with pytest.raises(CheckpointError) as caught:
        get_model('tiny_caption')
    for said in ('weights of Tiny_Caption https://nowhere.invalid/tiny.pth not found', 'no route to host',
                 str(tmp_path / 'weights'), 'Give the path of tiny.pth, or put it into a folder and set '
                                            'MMBLIP2_WEIGHTS=FOLDER'):
        assert said in str(caught.value), said


def test_an_unknown_name_says_which_are_close():
    with pytest.raises(ConfigError, match='not found: .*close names of models: blip2_3rdparty_retrieval'):
        get_model('blip2_3rdparty_retreival')
    with pytest.raises(ConfigError, match='blip2/blip2_8xb32_retrievl not found: .*did you mean blip2/blip2_8xb32_ret'):
        get_model('blip2/blip2_8xb32_retrievl')
    with pytest.raises(ConfigError, match=r'xyzzy not found: .*list_models\(\) has the names'):
        get_model('xyzzy')
    with pytest.raises(ConfigError, match='model is a int'):
        get_model(3)


def test_a_published_file_alone_says_what_it_belongs_to(tiny):
    with pytest.raises(CheckpointError, match=r"is that of the weights of Tiny_Caption: call "
                                              r"get_model\('Tiny_Caption', pretrained='.*tiny.pth'\)"):
        get_model(tiny[2])


def test_settings_replace_those_of_the_config(tiny):
    model = get_model('tiny_caption', generation=dict(num_beams=2))
    assert model.generation == dict(num_beams=2, max_new_tokens=4)
    with pytest.raises(ConfigError, match="setting of Blip2Generation is called 'devise'; did you mean 'device'"):
        get_model('tiny_caption', devise='cpu')
    with pytest.raises(ConfigError, match='cannot be built with .*widht'):
        get_model('tiny_caption', qformer=dict(widht=3))


# ----------------------------------------------------------------------------------------- type and device

@pytest.mark.parametrize('dtype', ['float16', torch.bfloat16])
def test_half_precision_generates_and_keeps_its_norms(tiny, dtype):
    exact = tiny[1]
    model = get_model('tiny_caption', dtype=dtype, device='cpu')
    half = getattr(torch, str(dtype).removeprefix('torch.'))
    assert {parameter.dtype for parameter in model.language_model.parameters()} == {half}
    assert model.vision.blocks[0].mlp.fc1.weight.dtype == model.vision.patch_embed.weight.dtype == half
    for kept in (model.vision.blocks[0].norm1, model.vision_norm, model.qformer, model.language_projection):
        assert {parameter.dtype for parameter in kept.parameters()} == {torch.float32}
    assert model.vision.pos_embed.dtype == torch.float32
    assert model._config.optim_wrapper.dtype == str(half).removeprefix('torch.')
    assert all(isinstance(text, str) for text in captions(model))
    with torch.no_grad():
        near, patches = model.encode_image(IMAGES).patches, exact.encode_image(IMAGES).patches
    assert near.dtype == torch.float32
    error = (near - patches).norm() / patches.norm()
    assert 0 < error < 0.05
    # the residual stream is in float32: what half precision loses does not add up over the blocks
    assert get_model('tiny_caption', dtype='float32').vision_dtype is None


def test_full_precision_is_exact(tiny):
    model = get_model('tiny_caption', dtype='float32', device='cpu')
    assert same(model, tiny[1]) and captions(model) == captions(tiny[1])


def test_a_checkpoint_trained_beside_a_frozen_language_model_can_be_cast(tiny, tmp_path):
    """Its language model is known by its bytes, so it is cast after the check."""
    cfg, model, _ = tiny
    model._frozen = ('language_model', )
    weights = {f'language_model.{key}': value for key, value in model.language_model.state_dict().items()}
    torch.save(weights, tmp_path / 'language_model.pth')
    config = cfg.to_dict()
    config['model'].update(frozen=('language_model', ))
    config['model']['language_model'].update(weights=str(tmp_path / 'language_model.pth'))
    state = {key: value for key, value in io.saved_state(model).items() if not key.startswith('language_model.')}
    meta = dict(config=config, frozen=model.frozen_record())
    io.write_checkpoint(dict(format=io.FORMAT, meta=meta, state_dict=state), tmp_path / 'iter_1.pth')
    found = get_model(tmp_path / 'iter_1.pth', dtype='bfloat16', device='cpu')
    assert {parameter.dtype for parameter in found.language_model.parameters()} == {torch.bfloat16}


def test_t5_is_refused_in_float16(tiny):
    cfg = Config(tiny[0].to_dict())
    cfg.model.language_model.type = 'Seq2SeqLM'
    with pytest.raises(ConfigError, match="dtype is 'float16', in which T5, .* overflows: use dtype='bfloat16'"):
        get_model(cfg, pretrained=False, dtype=torch.float16)


def test_wrong_types_and_devices_are_refused(tiny):
    with pytest.raises(ConfigError, match="dtype 'int8' is none of float16, bfloat16, float32, auto"):
        get_model('tiny_caption', dtype='int8')
    with pytest.raises(ConfigError, match="cannot go to device 'nowhere'"):
        get_model('tiny_caption', device='nowhere')


def test_device_map_without_accelerate_says_so(tiny, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ConfigError, match='device_map needs the package accelerate: pip install accelerate'):
        get_model('tiny_caption', device_map='auto')


@pytest.mark.parametrize('device_map', [
    {'': 'cpu'}, {'model.decoder.embed_tokens': 'cpu', 'model.decoder': 'cpu', 'lm_head': 'cpu'}])
def test_device_map_spreads_the_language_model(tiny, device_map):
    pytest.importorskip('accelerate')
    model = get_model('tiny_caption', device='cpu', device_map=device_map)
    assert model.language_model.model.hf_device_map == device_map
    assert model.language_model.device == torch.device('cpu')
    assert captions(model) == captions(tiny[1])


def test_a_wrong_device_map_is_refused(tiny):
    pytest.importorskip('accelerate')
    with pytest.raises(ConfigError, match="device_map 'cpu' is none of auto"):
        get_model('tiny_caption', device_map='cpu')
    with pytest.raises(ConfigError, match='cannot be spread by device_map=.*no_such_part'):
        get_model('tiny_caption', device='cpu', device_map={'no_such_part': 'cpu'})


def test_a_page_of_the_hub_and_its_name_are_one_model():
    assert models._entry('Salesforce/blip2-opt-2.7b')['Name'] == 'blip2-opt-2.7b'
    assert models._entry('BLIP2-opt-2.7b') is models._entry('Salesforce/blip2-opt-2.7b')
    assert models._entry('Salesforce/blip2-opt-2.7') is None


@pytest.fixture(scope='module')
def hub_folder(tmp_path_factory):
    """A tiny Blip2ForConditionalGeneration in a folder that is called as a published one."""
    transformers = pytest.importorskip('transformers')
    import sys
    sys.path.insert(0, str(Path(__file__).parents[1] / 'data'))
    from tiny_huggingface import LANGUAGE, NUM_QUERY, QFORMER, VISION, redraw, write_tokenizers
    root = tmp_path_factory.mktemp('hub')
    tokenizer = transformers.AutoTokenizer.from_pretrained(write_tokenizers(root / 'tokenizers')['opt'])
    config = transformers.Blip2Config(
        vision_config=VISION, qformer_config=dict(QFORMER, encoder_hidden_size=VISION['hidden_size']),
        text_config=dict(LANGUAGE['opt'], vocab_size=len(tokenizer)), num_query_tokens=NUM_QUERY)
    model = redraw(transformers.Blip2ForConditionalGeneration(config), 0)
    folder = root / 'weights' / 'blip2-opt-2.7b'
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model


@pytest.mark.parametrize('name', ['blip2-opt-2.7b', 'Salesforce/blip2-opt-2.7b'])
def test_a_name_on_the_hub_is_built_from_its_own_config(hub_folder, monkeypatch, tmp_path, name):
    folder, theirs = hub_folder
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MMBLIP2_WEIGHTS', str(folder.parent))
    model = get_model(name, device='cpu')
    assert model._metainfo['Name'] == 'blip2-opt-2.7b'
    assert model._config.model.vision.width == 32, 'not the sizes of the config in the index'
    projection = theirs.language_projection.weight
    assert torch.equal(model.language_projection.weight, projection)
    half = get_model(name, device='cpu', dtype='bfloat16')
    assert {parameter.dtype for parameter in half.language_model.parameters()} == {torch.bfloat16}
    assert half.language_projection.weight.dtype == torch.float32
    images = torch.zeros(1, 3, 28, 28)
    assert isinstance(half(images, [DataSample(prompt='a')], mode='predict')[0].pred_text, str)
