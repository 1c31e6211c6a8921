"""Tiny models behind the names of the published ones: what the calls of docs/ load, in the same layouts."""
import contextlib
import json
import shutil
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import recipe_files
import tiny_huggingface as tiny

ROOT = Path(__file__).parents[2]
HUB = {  # last part of a name on the hub, to (class, language model) of the folder behind it
    'blip2-opt-2.7b': ('Blip2ForConditionalGeneration', 'opt'),
    'blip2-opt-6.7b': ('Blip2ForConditionalGeneration', 'opt'),
    'blip2-opt-2.7b-coco': ('Blip2ForConditionalGeneration', 'opt'),
    'blip2-opt-6.7b-coco': ('Blip2ForConditionalGeneration', 'opt'),
    'blip2-flan-t5-xl': ('Blip2ForConditionalGeneration', 't5'),
    'blip2-flan-t5-xl-coco': ('Blip2ForConditionalGeneration', 't5'),
    'blip2-flan-t5-xxl': ('Blip2ForConditionalGeneration', 't5'),
    'blip2-itm-vit-g': ('Blip2ForImageTextRetrieval', None),
    'blip2-itm-vit-g-coco': ('Blip2ForImageTextRetrieval', None),
    'instructblip-vicuna-7b': ('InstructBlipForConditionalGeneration', 'llama'),
    'instructblip-vicuna-13b': ('InstructBlipForConditionalGeneration', 'llama'),
    'instructblip-flan-t5-xl': ('InstructBlipForConditionalGeneration', 't5'),
    'instructblip-flan-t5-xxl': ('InstructBlipForConditionalGeneration', 't5'),
    'blip-image-captioning-base': ('BlipForConditionalGeneration', None),
    'blip-image-captioning-large': ('BlipForConditionalGeneration', None),
    'blip-vqa-base': ('BlipForQuestionAnswering', None),
    'blip-vqa-capfilt-large': ('BlipForQuestionAnswering', None),
    **{f'blip-itm-{name}': ('BlipForImageTextRetrieval', None)
       for name in ('base-coco', 'large-coco', 'base-flickr', 'large-flickr')},
}
SAVED = ('Blip2VisionModel', 'Blip2QFormerModel', 'Blip2VisionModelWithProjection', 'Blip2TextModelWithProjection',
         'Blip2Model', 'BlipModel')  # folders of one's own, saved/<class>
_IN_LAVIS = {'opt': 'opt', 't5': 't5', 'llama': 'llm'}


@contextlib.contextmanager
def published(root, patch):
    """A working directory with data of every kind and a model behind every published name.

    Configs are shrunk when they are loaded. Files have the names of the published ones, of which some carry a hash
    that a tiny file cannot have: it is not checked.

    Args:
        root (Path): An empty folder, which becomes the working directory.
        patch (pytest.MonkeyPatch): Is undone by the caller.

    Yields:
        list[str]: Names of the weights that were looked for since it was emptied.
    """
    import transformers

    from mmblip2.apis.models import model_index
    from mmblip2.checkpoints import sources
    from mmblip2.utils import run_config
    from mmblip2.utils.shrink import shrink
    recipe_files.write_data(root)
    (root / 'photos').mkdir()
    shutil.copy(tiny.write_photos(root / 'photos')[0], root / 'photo.jpg')
    _write_textvqa(root / 'data' / 'textvqa', root / 'photo.jpg')
    bert, language = recipe_files.write_tokenizers(root)
    for name in ('configs', 'tools', 'demo', 'model-index.yml'):
        (root / name).symlink_to(ROOT / name)
    shipped, locate = run_config.load_config, sources.locate
    looked_for: list[str] = []

    def load_small(path, options=()):
        given = shipped(path, options)
        cfg = shrink(given, bert, language)
        if any(option.startswith('load_from=') for option in options):
            cfg.load_from = given.load_from
        if cfg.model.vision.get('image_size') in (224, 364):  # one file has to fit both, by interpolated positions
            cfg.model.vision.patch_size = 28
        if 'generation' in cfg.model:
            cfg.model.generation = dict(num_beams=cfg.model.generation.get('num_beams', 1), max_new_tokens=4)
        return cfg

    def locate_and_tell(source, *args):
        looked_for.append(Path(str(source)).name)
        return locate(source, *args)

    patch.chdir(root)
    for name in ('TORCH_HOME', 'MMENGINE_HOME'):
        patch.setenv(name, str(root / 'nowhere'))
    patch.setenv('MMBLIP2_WEIGHTS', str(root / 'weights'))
    patch.setattr(run_config, 'load_config', load_small)
    patch.setattr(sources, 'locate', locate_and_tell)
    patch.setattr(sources, '_said_hash', lambda name: '')
    (root / 'weights').mkdir()
    _write_files(root / 'weights', model_index())
    _write_folders(root, transformers)
    yield looked_for


def _write_textvqa(folder, photo):
    """One question of TextVQA as published, which no config reads."""
    for name in ('annotations', 'train_images'):
        (folder / name).mkdir(parents=True)
    shutil.copy(photo, folder / 'train_images' / '1.jpg')
    (folder / 'annotations' / 'TextVQA_0.5.1_val.json').write_text(json.dumps(dict(data=[
        dict(question_id=1, image_id='1', question='what does it say?', answers=['stop'] * 10)])))


def _write_files(folder, index):
    """Those of LAVIS and mmpretrain, from models with random weights."""
    from mmblip2 import get_model
    from mmblip2.checkpoints import io
    from mmblip2.checkpoints.layouts import to_write
    for name, entry in index.items():
        file = folder / Path(entry.get('Weights') or '').name
        if file.suffix != '.pth' or file.exists():
            continue
        torch.manual_seed(0)
        model = get_model(name, pretrained=False, device='cpu')
        state = {key: value for key, value in io.saved_state(model).items() if not key.startswith('language_model.')}
        project = 'mmpretrain' if 'openmmlab' in entry['Weights'] else 'LAVIS'
        if project == 'mmpretrain' and not any(key.startswith('vision.') for key in state):
            state.update({f'vision.{key}': value for key, value in model.vision.state_dict().items()})
        what = {}
        if project == 'LAVIS' and hasattr(model, 'language_model'):
            what['language'] = _IN_LAVIS[model.language_model.model.config.model_type]
        written, left = to_write(project, state, **what).from_ours(state)
        torch.save({'model' if project == 'LAVIS' else 'state_dict': written,
                    **({io.EXTRA_KEY: {key: state[key] for key in left}} if left else {})}, file)


def _write_folders(root, transformers):
    """Those of transformers: one of each class and language model, under all of its names."""
    tokenizers = tiny.write_tokenizers(root / 'tokenizers')
    made = {}
    for name, (kind, language) in HUB.items():
        if (kind, language) not in made:
            made[kind, language] = root / 'folders' / f'{kind}-{language}'
            write_folder(made[kind, language], kind, language, tokenizers, transformers)
        (root / 'weights' / name).symlink_to(made[kind, language])
    for kind in SAVED:
        write_folder(root / 'saved' / kind, kind, 'opt' if kind == 'Blip2Model' else None, tokenizers, transformers)


def write_folder(folder, kind, language, tokenizers, transformers):
    """What ``save_pretrained`` of model and processor write."""
    if kind.startswith('Blip') and not kind.startswith('Blip2'):
        _write_folder_of_blip(folder, kind, tokenizers['bert'], transformers)
        return
    instruct, texts = kind.startswith('Instruct'), kind in ('Blip2ForImageTextRetrieval',
                                                            'Blip2TextModelWithProjection')
    bert = transformers.AutoTokenizer.from_pretrained(tokenizers['bert'])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizers[language or 'bert'])
    qformer = dict(tiny.QFORMER, vocab_size=len(bert) + 1, **({} if instruct else dict(use_qformer_text_input=texts)))
    text = dict(text_config=dict(tiny.LANGUAGE[language], vocab_size=len(tokenizer) + 1)) if language else {}
    config = getattr(transformers, 'InstructBlipConfig' if instruct else 'Blip2Config')(
        vision_config=tiny.VISION, qformer_config=qformer, num_query_tokens=tiny.NUM_QUERY, image_text_hidden_size=8,
        image_token_index=len(tokenizer) if language else None, **text)
    config = {'Blip2VisionModel': config.vision_config, 'Blip2QFormerModel': config.qformer_config}.get(kind, config)
    torch.manual_seed(0)
    model = tiny.redraw(getattr(transformers, kind)(config), 0)
    if language:
        model.generation_config = transformers.GenerationConfig(max_new_tokens=4, num_beams=2)
    model.save_pretrained(folder)
    processor = getattr(transformers, 'BlipImageProcessorPil', transformers.BlipImageProcessor)(
        size=dict(height=tiny.SIDE, width=tiny.SIDE))
    if instruct:
        transformers.InstructBlipProcessor(processor, tokenizer, bert,
                                           num_query_tokens=tiny.NUM_QUERY).save_pretrained(folder)
    elif kind == 'Blip2VisionModel':
        processor.save_pretrained(folder)
    elif kind != 'Blip2QFormerModel':
        transformers.Blip2Processor(processor, tokenizer, num_query_tokens=tiny.NUM_QUERY if language else
                                    None).save_pretrained(folder)


def _write_folder_of_blip(folder, kind, bert, transformers):
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    text = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=56,
                max_position_embeddings=64, vocab_size=len(tokenizer) + 2, bos_token_id=len(tokenizer),
                **{f'{name}_token_id': tokenizer.sep_token_id for name in ('eos', 'sep')},
                pad_token_id=tokenizer.pad_token_id)
    config = transformers.BlipConfig(vision_config=dict(tiny.VISION), text_config=text, projection_dim=8,
                                     image_text_hidden_size=8)
    torch.manual_seed(0)
    model = tiny.redraw(getattr(transformers, kind)(config), 0)
    model.save_pretrained(folder)
    processor = getattr(transformers, 'BlipImageProcessorPil', transformers.BlipImageProcessor)(
        size=dict(height=tiny.SIDE, width=tiny.SIDE))
    transformers.BlipProcessor(processor, tokenizer).save_pretrained(folder)
