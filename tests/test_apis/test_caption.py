"""ImageCaptionInferencer: whose caption is whose, prompts, and how text is searched or sampled."""
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from mmblip2.apis import ImageCaptionInferencer
from mmblip2.errors import ConfigError, DataError

CAPTION = [dict(type='CaptionPrompt', prompt='a photo of')]


def images(count=3):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture
def caption(tiny_generator):
    return ImageCaptionInferencer(tiny_generator(CAPTION))


def texts(results):
    return [result['pred_caption'] for result in results]


def prompts(inferencer, *args, **kwargs):
    """(prompt, qformer_text) of what the model was given."""
    return [(sample.prompt, sample.get('qformer_text'))
            for sample in inferencer(*args, return_datasamples=True, **kwargs)]


def test_captions_are_those_of_the_models_own_prediction(caption):
    several = caption(images())
    assert [list(result) for result in several] == [['pred_caption']] * 3
    batch = caption.prepare(caption.image_rows(images()))
    expected = [sample.pred_text for sample in caption.model.predict(**batch)]
    assert texts(several) == expected == texts(caption(images(), batch_size=2)) == texts(caption(iter(images())))
    assert len(set(expected)) > 1  # the image matters
    assert texts(caption(images()[1])) == expected[1:2]
    samples = caption(images(), return_datasamples=True)
    assert [sample.pred_text for sample in samples] == expected


def test_prompt_is_that_of_the_config_unless_one_is_given(caption, tiny_generator):
    assert prompts(caption, images(1)) == [('a photo of', None)]
    assert prompts(caption, images(2), prompt='') == [('', None)] * 2
    reader = ImageCaptionInferencer(tiny_generator([dict(type='CaptionPrompt', prompt='x', qformer_text='y')],
                                                   reads_text=True))
    assert prompts(reader, images(1)) == [('x', 'y')]
    assert prompts(reader, images(1), prompt='describe it') == [('describe it', 'describe it')]
    with pytest.raises(ConfigError, match=r"prompt is one text for all images, got \['a', 'b'\]$"):
        caption(images(2), prompt=['a', 'b'])
    with pytest.raises(ConfigError, match='got True; write return_datasamples=, it is not the second argument here'):
        caption(images(1), True)  # as mmpretrain takes it


def test_a_model_that_answers_questions_captions_with_a_prompt(tiny_generator):
    caption = ImageCaptionInferencer(tiny_generator([dict(type='CleanQuestion'), dict(type='VQAPrompt')], True))
    with pytest.raises(ConfigError, match="has no CaptionPrompt, it answers questions: give prompt='a photo of'"):
        caption(images(1))
    assert prompts(caption, images(1), prompt='a photo of') == [('a photo of', 'a photo of')]


@pytest.mark.parametrize('settings', [dict(num_beams=3), dict(do_sample=True, seed=0), dict()])
def test_several_captions_belong_to_their_image(caption, settings):
    together = texts(caption(images(), num_captions=3, batch_size=3, **settings))
    assert [len(row) for row in together] == [3] * 3
    assert together == texts(caption(images(), num_captions=3, **settings))
    if 'do_sample' not in settings:  # the best of the beams is the caption of a plain search with as many
        assert [row[0] for row in together] == texts(caption(images(), num_beams=3))
        assert all(len(set(row)) > 1 for row in together)


def test_more_captions_than_beams_are_refused(caption):
    with pytest.raises(ConfigError, match='4 texts a sample .* need as many beams, got num_beams=2: set num_beams=4'):
        caption(images(1), num_captions=4, num_beams=2)
    for wrong in (0, 1.5, True):
        with pytest.raises(ConfigError, match='num_captions is the number of texts an image, 1 or more, got'):
            caption(images(1), num_captions=wrong)
    with pytest.raises(ConfigError, match='num_return_sequences is called num_captions here'):
        caption(images(1), num_return_sequences=2)


def test_a_file_that_changes_between_two_of_a_batch_is_two_images(caption, tmp_path):
    def frames():
        for image in images():
            image.save(tmp_path / 'frame.png')
            yield tmp_path / 'frame.png'
    assert texts(caption(frames(), batch_size=3)) == texts(caption(images()))


def test_a_seed_fixes_the_text_whatever_the_batch_size_and_touches_no_other_random_numbers(caption):
    sample = dict(do_sample=True, top_p=0.95, temperature=1.5)
    first = texts(caption(images(), seed=1, **sample))
    state = torch.get_rng_state()
    assert texts(caption(images(), seed=1, batch_size=3, **sample)) == first
    assert torch.equal(torch.get_rng_state(), state)
    seeds = [texts(caption(images(), seed=seed, **sample)) for seed in range(5)]
    assert len({tuple(found) for found in seeds}) > 1
    # row i is drawn from seed + i: the second image alone with the next seed gives its text again
    assert texts(caption(images()[1], seed=2, **sample)) == first[1:2]
    torch.manual_seed(0)
    unseeded = [texts(caption(images(), **sample)) for _ in range(5)]
    assert len({tuple(found) for found in unseeded}) > 1
    torch.manual_seed(0)
    assert texts(caption(images(), **sample)) == unseeded[0]


def test_a_seed_fixes_the_text_whatever_other_threads_do(caption):
    def sample(seed):
        return texts(caption(images(), do_sample=True, top_p=0.95, max_new_tokens=10, progress=False, seed=seed))
    seeds = [0, 1, 2, None] * 3
    alone = [sample(seed) for seed in seeds]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(sample, seeds))
    assert [found for seed, found in zip(seeds, together) if seed is not None] == [
        found for seed, found in zip(seeds, alone) if seed is not None]


def test_sampling_narrowed_to_the_best_token_is_greedy_search(caption):
    greedy = texts(caption(images(), num_beams=1))
    assert texts(caption(images(), do_sample=True, top_k=1, seed=3)) == greedy
    assert texts(caption(images(), do_sample=True, temperature=1e-4, seed=3)) == greedy
    assert texts(caption(images(), do_sample=True, top_p=1e-6, seed=3)) == greedy


def test_settings_of_a_call_replace_those_of_the_config(tiny_generator):
    model = tiny_generator(CAPTION, generation=dict(num_beams=2, max_new_tokens=6))
    caption = ImageCaptionInferencer(model)
    assert caption.settings({}) == dict(num_beams=2, max_new_tokens=6)
    assert caption.settings(dict(do_sample=True)) == dict(num_beams=1, max_new_tokens=6, do_sample=True)
    model.generation['min_new_tokens'] = 4
    assert caption.settings(dict(max_new_tokens=3)) == dict(num_beams=2, max_new_tokens=3, min_new_tokens=3)
    model.generation.pop('min_new_tokens')
    assert caption.settings({}, count=4) == dict(num_beams=4, max_new_tokens=6, num_return_sequences=4)
    given = []
    model.language_model.generate = lambda prefix, prompts, **settings: given.append(settings) or ['a'] * len(prompts)
    caption(images(1), max_new_tokens=2)
    assert given == [dict(num_beams=2, max_new_tokens=2)]
    assert model.generation == dict(num_beams=2, max_new_tokens=6)


@pytest.mark.parametrize('settings, message', [
    (dict(temperature=0.7), r'temperature=0.7 has an effect only with do_sample=True'),
    (dict(do_sample=True, temperature=0), 'temperature=0: expected a number above 0; greedy search is do_sample=False'),
    (dict(do_sample=True, top_p=1.5), 'top_p=1.5: expected a number above 0, at most 1'),
    (dict(num_beam=3), "generate has no setting 'num_beam'.*num_beams"),
    (dict(custom_generate='folder'), 'would run code'),
    (dict(do_sample=True, seed=-1), r'seed is an integer from 0, below 2\*\*63, got -1'),
    (dict(do_sample=True, seed=2**63), r'seed is an integer from 0, below 2\*\*63, got 9223372036854775808'),
    (dict(max_length=30), 'max_length is called max_new_tokens here, and does not count image and prompt'),
    (dict(min_new_tokens=7), 'min_new_tokens=7 is more than max_new_tokens=6'),
    (dict(num_beams=0), 'num_beams=0: expected an integer from 1'),
    (dict(max_new_tokens=2.5), 'max_new_tokens=2.5: expected an integer from 1'),
    (dict(repetition_penalty=-1.), 'transformers refuses to generate with .*repetition_penalty'),
])
def test_wrong_settings_are_refused(caption, settings, message):
    with pytest.raises(ConfigError, match=message):
        caption(images(1), **settings)


def test_a_prompt_longer_than_the_context_is_refused(caption):
    with pytest.raises(ConfigError, match=r'make \d+ tokens, but the language model has 64 positions: shorten the pro'):
        caption(images(1), prompt='a photo of ' * 30)


def test_a_broken_image_in_the_middle_is_named(caption, tmp_path):
    (tmp_path / 'empty.png').touch()
    with pytest.raises(DataError, match=r'cannot read image 1 \(.*empty.png\): the file is empty'):
        caption([images(1)[0], tmp_path / 'empty.png'])


def test_pictures_show_the_captions(caption, tmp_path):
    one, two = caption(images(1), return_datasamples=True), caption(images(1), num_captions=2, return_datasamples=True)
    assert caption.lines(one[0]) == [one[0].pred_text]
    assert [line[:3] for line in caption.lines(two[0])] == ['1. ', '2. ']
    caption(images(2), show_dir=tmp_path / 'new', batch_size=2)
    assert sorted(path.name for path in (tmp_path / 'new').iterdir()) == ['image_000000.png', 'image_000001.png']


def test_half_precision(tiny_generator):
    model = tiny_generator(CAPTION)
    exact = texts(ImageCaptionInferencer(model)(images()))
    model._config.optim_wrapper = dict(dtype='bfloat16')
    rounded = ImageCaptionInferencer(model)
    seen = []
    model.language_projection.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    assert len(texts(rounded(images()))) == len(exact) and set(seen) == {torch.bfloat16}


def test_a_t5_is_never_run_in_float16(tiny_generator, opt_folder):
    t5 = dict(type='Seq2SeqLM', tokenizer=opt_folder,
              config=dict(model_type='t5', d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    model = tiny_generator(CAPTION, language_model=t5)
    assert len(texts(ImageCaptionInferencer(model)(images(), num_captions=2))[0]) == 2
    model._config.optim_wrapper = dict(dtype='float16')
    with pytest.raises(ConfigError, match="autocast dtype is 'float16', in which T5 overflows: use 'bfloat16'"):
        ImageCaptionInferencer(model)(images(1))
    model._config.pop('optim_wrapper')
    model.language_model.half()
    with pytest.raises(ConfigError, match="a T5 in float16, in which it overflows: use dtype='bfloat16' or 'float32'"):
        ImageCaptionInferencer(model)
