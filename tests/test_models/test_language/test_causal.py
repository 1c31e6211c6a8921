"""CausalLM against the rules of BLIP-2: what is read, what is a target, what a batch changes (nothing)."""
import copy

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mmblip2.errors import CheckpointError, ConfigError
from mmblip2.models.language import CausalLM, Seq2SeqLM, causal

TEXTS = ['a photo of a red circle above a small blue square', 'Question: what colour is it? Answer: green',
         'two\n']
OPT = dict(model_type='opt', hidden_size=32, word_embed_proj_dim=32, num_hidden_layers=2,
           num_attention_heads=4, ffn_dim=64, max_position_embeddings=64, init_std=0.2)
LLAMA = dict(model_type='llama', hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, intermediate_size=64, max_position_embeddings=64, initializer_range=0.2)
QWEN2 = dict(model_type='qwen2', hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             intermediate_size=64, max_position_embeddings=64, initializer_range=0.2)
GPT2 = dict(model_type='gpt2', n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2)
FAMILIES = ['opt', 'llama', 'qwen2', 'gpt2']
PROMPTS = ['a photo of', '', 'Question: what colour is it? Answer:']
TARGETS = ['a red circle', 'two', 'green']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A byte-level BPE tokenizer like OPT's: </s> is prepended, a new line is one id."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS * 5, trainers.BpeTrainer(
        vocab_size=340, special_tokens=['<s>', '<pad>', '</s>', '<unk>'], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.post_processor = processors.TemplateProcessing(single='</s> $A', special_tokens=[('</s>', 2)])
    folder = tmp_path_factory.mktemp('tokenizer')
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token='</s>', eos_token='</s>', pad_token='<pad>',
                            unk_token='<unk>').save_pretrained(folder)
    return str(folder)


def build(folder, config=OPT, **kwargs):
    torch.manual_seed(0)
    return CausalLM(config=config, tokenizer=folder, **kwargs).eval()


@pytest.fixture(scope='module')
def opt(folder):
    return build(folder)


@pytest.fixture(scope='module')
def llama(folder):
    return build(folder, LLAMA, add_special_tokens=False)


@pytest.fixture(scope='module')
def qwen2(folder):
    return build(folder, QWEN2, add_special_tokens=False)


@pytest.fixture(scope='module')
def gpt2(folder):
    return build(folder, GPT2, add_special_tokens=False)


@pytest.fixture(scope='module')
def prefix():
    return torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1))


def next_token_loss(lm, prefix, ids, first):
    """Hand calculation for one row without padding: summed -log p of ids[first:]."""
    ids = torch.tensor([ids])
    logits = lm.model(inputs_embeds=torch.cat([prefix, lm.embed(ids)], dim=1)).logits[0]
    log_p = logits.double().log_softmax(-1)[prefix.size(1) - 1:-1]
    return -log_p[torch.arange(ids.size(1)), ids[0]][first:].sum()


def test_opt_row_is_bos_prompt_target_newline_and_the_prompt_is_no_target(opt, prefix):
    ids = opt.tokenizer('a photo of a red circle\n').input_ids
    n_prompt = len(opt.tokenizer('a photo of').input_ids)
    assert ids[0] == 2 and opt.tokenizer.decode(ids[-1:]) == '\n'
    loss, count = opt.loss(prefix[:1], PROMPTS[:1], TARGETS[:1])
    assert count.item() == len(ids) - n_prompt
    expected = next_token_loss(opt, prefix[:1], ids, n_prompt)
    torch.testing.assert_close(loss.double(), expected, atol=1e-4, rtol=1e-5)


def test_with_an_empty_prompt_the_bos_is_predicted_from_the_last_prefix_token(opt, prefix):
    ids = opt.tokenizer('two\n').input_ids
    loss, count = opt.loss(prefix[:1], [''], ['two'])
    assert count.item() == len(ids)
    torch.testing.assert_close(loss.double(), next_token_loss(opt, prefix[:1], ids, 0), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize('name', FAMILIES[1:])
def test_without_special_tokens_the_ending_is_the_models_own_token(name, prefix, request):
    llama = request.getfixturevalue(name)
    ids = llama.tokenizer('two', add_special_tokens=False).input_ids + [2]
    loss, count = llama.loss(prefix[:1], [''], ['two'])
    assert count.item() == len(ids)
    expected = next_token_loss(llama, prefix[:1], ids, 0)
    torch.testing.assert_close(loss.double(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize('name', FAMILIES)
def test_loss_of_a_batch_is_the_sum_of_its_rows(name, prefix, request):
    lm = request.getfixturevalue(name)
    loss, count = lm.loss(prefix, PROMPTS, TARGETS)
    rows = [lm.loss(prefix[i:i + 1], PROMPTS[i:i + 1], TARGETS[i:i + 1]) for i in range(3)]
    torch.testing.assert_close(loss, sum(row[0] for row in rows), atol=1e-4, rtol=1e-5)
    assert count.item() == sum(row[1].item() for row in rows) and count.dtype == torch.int64


SEVERAL = [['a red circle', 'two', 'a small blue square'], 'two', ['green', 'a small']]
MORE_CONFIGS = {
    'mistral': {**QWEN2, 'model_type': 'mistral'},
    'bloom': dict(model_type='bloom', hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                  initializer_range=0.2)}


def one_by_one(lm, prefix, prompts, targets):
    """Loss, number of targets and gradient of the prefix, each target in a call of its own."""
    prefix = prefix.clone().requires_grad_()
    parts = [lm.loss(prefix[i:i + 1], prompts[i:i + 1], [text])
             for i, texts in enumerate(targets) for text in ([texts] if isinstance(texts, str) else texts)]
    total, count = sum(part[0] for part in parts), sum(part[1].item() for part in parts)
    return total, count, torch.autograd.grad(total, prefix)[0]


@pytest.mark.parametrize('attention', ['eager', 'sdpa'])
@pytest.mark.parametrize('name', [*FAMILIES, *MORE_CONFIGS])
def test_several_targets_behind_one_prefix_are_as_each_alone(folder, prefix, name, attention):
    """The law of ``_PACKED``; bloom reads them in rows of their own."""
    config = dict(opt=OPT, llama=LLAMA, qwen2=QWEN2, gpt2=GPT2, **MORE_CONFIGS)[name]
    if (name, attention) == ('bloom', 'sdpa'):
        pytest.skip('transformers has none')
    lm = build(folder, config, add_special_tokens=name == 'opt', attention=attention)
    total, count, grad = one_by_one(lm, prefix, PROMPTS, SEVERAL)
    given = prefix.clone().requires_grad_()
    loss, number = lm.loss(given, PROMPTS, SEVERAL)
    torch.testing.assert_close(loss, total, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(loss, given)[0], grad, atol=1e-5, rtol=1e-4)
    assert number.item() == count


def test_several_targets_of_a_verified_family_are_read_behind_one_prefix(llama, prefix, monkeypatch):
    read = []
    monkeypatch.setattr(llama.model, 'forward', lambda *args, _forward=llama.model.forward, **kwargs: (
        read.append(tuple(kwargs['inputs_embeds'].shape[:2])), _forward(*args, **kwargs))[1])
    llama.loss(prefix, ['a photo of'] * 3, [['a red circle', 'two']] * 3)
    prompt, texts = (len(llama.tokenizer(text, add_special_tokens=False).input_ids)
                     for text in ('a photo of', 'a photo of a red circle a photo of two'))
    assert read == [(3, 5 + prompt + texts - 2 * prompt + 2)]  # two endings


def test_several_long_targets_are_each_cut(folder, prefix):
    lm = build(folder, max_text_len=6)
    targets = [[TEXTS[0], 'two']] * 3
    loss, count = lm.loss(prefix, ['a photo of'] * 3, targets)
    total, number, _ = one_by_one(lm, prefix, ['a photo of'] * 3, targets)
    torch.testing.assert_close(loss, total, atol=1e-4, rtol=1e-5)
    assert count.item() == number


def test_several_targets_without_a_prefix_are_rows(llama):
    loss, count = llama.loss(None, ['a photo of', ''], [['two', 'a red circle'], 'green'])
    rows = llama.loss(None, ['a photo of', 'a photo of', ''], ['two', 'a red circle', 'green'])
    torch.testing.assert_close(loss, rows[0])
    assert count.item() == rows[1].item()


def test_a_long_text_is_cut_on_the_right_and_loses_its_ending(folder, prefix):
    lm = build(folder, max_text_len=6)
    ids = lm.tokenizer(TEXTS[0]).input_ids[:6]
    loss, count = lm.loss(prefix[:1], [''], [TEXTS[0]])
    assert count.item() == 6
    torch.testing.assert_close(loss.double(), next_token_loss(lm, prefix[:1], ids, 0), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize('with_prefix', [True, False])
def test_a_batch_without_room_for_any_target_is_refused(folder, prefix, with_prefix):
    lm, longest = build(folder, max_text_len=2), len(build(folder).tokenizer(PROMPTS[2]).input_ids)
    with pytest.raises(ConfigError, match='none of the 2 texts of a batch has room for its target: max_text_len of '
                                          f'the language model is 2 tokens, .* prompt has {longest}: raise max_text'):
        lm.loss(prefix[:2] if with_prefix else None, [PROMPTS[0], PROMPTS[2]], TARGETS[:2])


def test_rows_without_room_for_their_target_teach_nothing_and_are_told_once(folder, prefix, monkeypatch):
    told = []
    monkeypatch.setattr(causal, 'print_log', lambda text, **kwargs: told.append(text))
    lm, prefix = build(folder, max_text_len=8), prefix.clone().requires_grad_()
    longest = len(lm.tokenizer(PROMPTS[2]).input_ids)
    loss, count = lm.loss(prefix, PROMPTS, TARGETS)
    alone = [lm.loss(prefix[i:i + 1], PROMPTS[i:i + 1], TARGETS[i:i + 1]) for i in range(2)]
    torch.testing.assert_close(loss, alone[0][0] + alone[1][0], atol=1e-4, rtol=1e-5)
    assert count.item() == alone[0][1].item() + alone[1][1].item() and longest >= 8
    loss.backward()
    assert prefix.grad[2].abs().sum() == 0 and prefix.grad[0].abs().sum() > 0
    assert len(told) == 1 and told[0].startswith('1 of the 3 texts of a batch have no room for their target')
    assert f'is 8 tokens, prompt and target together, and the longest prompt has {longest}: raise' in told[0]
    lm.loss(prefix, PROMPTS, TARGETS)
    assert len(told) == 1
    other = build(folder)
    other.loss(prefix, PROMPTS, TARGETS)
    assert len(told) == 1


def test_text_only_training_predicts_all_but_the_first_token(opt):
    ids = torch.tensor([opt.tokenizer('a red circle\n').input_ids])
    loss, count = opt.loss(None, ['', ''], ['a red circle', 'two'])
    expected = torch.nn.functional.cross_entropy(opt.model(ids).logits[0, :-1], ids[0, 1:], reduction='sum')
    second = opt.loss(None, [''], ['two'])
    torch.testing.assert_close(loss - second[0], expected, atol=1e-4, rtol=1e-5)
    assert (count - second[1]).item() == ids.size(1) - 1


def test_gradient_flows_through_the_frozen_model_to_every_prefix_token(folder, prefix):
    lm, prefix = build(folder, dtype='bfloat16'), prefix.clone().requires_grad_()
    lm.requires_grad_(False)
    loss, _ = lm.loss(prefix, PROMPTS, TARGETS)
    loss.backward()
    assert loss.dtype == torch.float32
    assert (prefix.grad.abs().sum(-1) > 0).all()
    assert {p.dtype for p in lm.parameters()} == {torch.bfloat16}
    assert all(p.grad is None for p in lm.parameters())


@pytest.mark.parametrize('name', FAMILIES)
@pytest.mark.parametrize('beams', [1, 3])
def test_generation_of_a_batch_equals_single_runs(name, beams, prefix, request):
    lm = request.getfixturevalue(name)
    together = lm.generate(prefix, PROMPTS, max_new_tokens=8, num_beams=beams)
    alone = [lm.generate(prefix[i:i + 1], PROMPTS[i:i + 1], max_new_tokens=8, num_beams=beams)[0]
             for i in range(3)]
    assert together == alone
    assert len(set(together)) == 3


@pytest.mark.parametrize('name', FAMILIES)
def test_greedy_generation_equals_a_loop_over_full_forward_passes(name, prefix, request):
    lm = request.getfixturevalue(name)
    ids = lm._tokenize('a photo of')
    n_prompt = len(ids)
    for _ in range(6):
        embeds = torch.cat([prefix[:1], lm.embed(torch.tensor([ids]))], dim=1)
        ids.append(lm.model(inputs_embeds=embeds).logits[0, -1].argmax().item())
        if ids[-1] == lm.end_id:
            break
    expected = lm.tokenizer.decode(ids[n_prompt:], skip_special_tokens=True).strip()
    assert lm.generate(prefix[:1], ['a photo of'], max_new_tokens=6) == [expected]


@pytest.mark.parametrize('config', [
    dict(model_type='mistral', num_key_value_heads=2), dict(model_type='gemma', num_key_value_heads=2, head_dim=8),
    dict(model_type='gpt_neox'), dict(model_type='bloom')], ids=lambda config: config['model_type'])
def test_other_families_do_the_same_in_a_batch_and_alone(folder, prefix, config):
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    if config['model_type'] != 'bloom':
        sizes.update(intermediate_size=64, max_position_embeddings=64)
    lm = build(folder, {**sizes, 'initializer_range': 0.2, **config}, add_special_tokens=False)
    rows = [(prefix[i:i + 1], PROMPTS[i:i + 1], TARGETS[i:i + 1]) for i in range(3)]
    loss, _ = lm.loss(prefix, PROMPTS, TARGETS)
    torch.testing.assert_close(loss, sum(lm.loss(*row)[0] for row in rows), atol=1e-3, rtol=1e-5)
    for beams in (1, 3):
        together = lm.generate(prefix, PROMPTS, max_new_tokens=8, num_beams=beams)
        assert together == [lm.generate(*row[:2], max_new_tokens=8, num_beams=beams)[0] for row in rows]
        assert len(set(together)) > 1


def test_generation_depends_on_the_prefix(opt, prefix):
    assert len(set(opt.generate(prefix * 5, [''] * 3, max_new_tokens=8))) > 1


def test_trained_text_comes_back_and_stops_at_the_ending(folder, prefix):
    lm = build(folder)      # without dropout: the loss falls by a straight way on every machine
    optimizer = torch.optim.Adam(lm.parameters(), 1e-2)
    prompts = ['a photo of', '', 'Answer:']
    for _ in range(200):
        loss, count = lm.loss(prefix, prompts, TARGETS)
        if loss < 0.01 * count:
            break
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
    assert lm.generate(prefix, prompts, max_new_tokens=20) == TARGETS
    assert lm.generate(prefix, prompts, max_new_tokens=20, num_beams=3) == TARGETS
    longer = lm.generate(prefix, prompts, max_new_tokens=20, min_new_tokens=15)
    assert all(len(text) >= len(target) for text, target in zip(longer, TARGETS)) and longer != TARGETS


def test_calls_change_neither_tokenizer_nor_arguments(opt, prefix):
    def state():
        tokenizer = opt.tokenizer
        return (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.backend_tokenizer.to_str())
    before, prompts, targets = state(), list(PROMPTS), list(TARGETS)
    opt.loss(prefix, prompts, targets)
    opt.generate(prefix, prompts, max_new_tokens=2)
    assert state() == before and prompts == PROMPTS and targets == TARGETS


def test_a_saved_folder_loads_with_equal_weights_and_names_its_source(folder, opt, prefix, tmp_path):
    opt.model.save_pretrained(tmp_path)
    loaded = CausalLM(model=str(tmp_path), tokenizer=folder).eval()
    assert loaded.weights_source == str(tmp_path) and opt.weights_source is None
    expected = opt.loss(prefix, PROMPTS, TARGETS)[0]
    torch.testing.assert_close(loaded.loss(prefix, PROMPTS, TARGETS)[0], expected)


def test_a_folder_and_the_config_of_its_architecture_go_together(folder, opt, prefix, tmp_path):
    opt.model.save_pretrained(tmp_path)
    loaded = CausalLM(model=str(tmp_path), config=OPT, tokenizer=folder).eval()
    torch.testing.assert_close(loaded.loss(prefix, PROMPTS, TARGETS)[0], opt.loss(prefix, PROMPTS, TARGETS)[0])
    with pytest.raises(ConfigError, match="is of model_type 'opt', its config says 'llama': give the folder and the"):
        CausalLM(model=str(tmp_path), config=dict(model_type='llama'), tokenizer=folder)


def test_a_checkpoint_file_loads_with_equal_weights_and_names_its_source(folder, opt, tmp_path):
    pytest.importorskip('mmblip2.checkpoints.io')
    state = {f'language_model.{key}': value for key, value in opt.state_dict().items()}
    path = str(tmp_path / 'iter_1.pth')
    torch.save({'format': 'mmblip2/1', 'meta': {}, 'state_dict': state}, path)
    torch.manual_seed(7)
    loaded = CausalLM(config=OPT, tokenizer=folder, weights=path)
    assert loaded.weights_source == path
    for key, value in opt.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_a_folder_with_missing_tensors_is_an_error_not_random_weights(folder, opt, tmp_path):
    opt.model.save_pretrained(tmp_path)
    bigger = dict(num_hidden_layers=3)
    with pytest.raises(ConfigError, match=r'lacks \d+ tensors of OPTForCausalLM, first .*layers.2.*random'):
        CausalLM(model=str(tmp_path), config=bigger, tokenizer=folder)


def test_two_models_share_no_config_and_leave_the_given_dict_alone(folder):
    given = copy.deepcopy(OPT)
    one, two = (CausalLM(config=given, tokenizer=folder) for _ in range(2))
    assert given == OPT and one.model.config is not two.model.config
    assert one.model.generation_config is not two.model.generation_config


def test_a_prefix_has_the_width_of_the_embeddings_not_of_the_layers(folder, prefix):
    lm = build(folder, dict(OPT, word_embed_proj_dim=16))
    assert lm.hidden_size == 16
    loss, _ = lm.loss(prefix[..., :16], PROMPTS, TARGETS)
    assert torch.isfinite(loss)


def test_a_folder_with_more_layers_than_the_model_is_an_error(folder, opt, tmp_path):
    opt.model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r'has 1 layers more than OPTForCausalLM, first model.decoder.layers.1: they '
                                          'would be left out. Take the number of layers out of config'):
        CausalLM(model=str(tmp_path), config=dict(num_hidden_layers=1), tokenizer=folder)


def test_a_checkpoint_with_another_number_of_layers_is_an_error(folder, opt, tmp_path):
    path = str(tmp_path / 'iter_1.pth')
    torch.save({f'language_model.{key}': value for key, value in opt.state_dict().items()}, path)
    for layers, message in ((3, r'16 missing in the file \(model.model.decoder.layers.2'),
                            (1, r'16 unknown to the model \(model.model.decoder.layers.1')):
        with pytest.raises(CheckpointError, match=message):
            CausalLM(config=dict(OPT, num_hidden_layers=layers), tokenizer=folder, weights=path)


def test_a_folder_with_other_widths_names_a_tensor_and_both_shapes(folder, opt, tmp_path):
    opt.model.save_pretrained(tmp_path)
    in_file = r'\(64,\)' if int(transformers.__version__.split('.')[0]) >= 5 else 'another shape'  # 4.57 hides it
    with pytest.raises(ConfigError, match=r'has 6 tensors of another shape than OPTForCausalLM, first '
                                          rf'model.decoder.layers.0.fc1.bias: {in_file} in the file, \(48,\) in the '
                                          'model. Take the sizes out of config'):
        CausalLM(model=str(tmp_path), config=dict(ffn_dim=48), tokenizer=folder)


def test_a_folder_of_the_other_family_names_the_right_adapter(folder, opt, tmp_path):
    opt.model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="model_type='opt' does not fit Seq2SeqLM, it is decoder-only: set "
                                          "type='CausalLM'"):
        Seq2SeqLM(model=str(tmp_path), tokenizer=folder)
    t5 = transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=400)
    transformers.T5ForConditionalGeneration(t5).save_pretrained(tmp_path / 't5')
    with pytest.raises(ConfigError, match="t5: model_type='t5' does not fit CausalLM, it is an encoder-decoder: set "
                                          "type='Seq2SeqLM'"):
        CausalLM(model=str(tmp_path / 't5'), tokenizer=folder)


def test_a_folder_without_a_model_says_what_it_holds(folder):
    with pytest.raises(ConfigError, match=r'expected config.json and model.safetensors .* in that folder, which holds '
                                          '.*tokenizer.json, tokenizer_config.json'):
        CausalLM(model=folder)


@pytest.mark.parametrize('change, message', [
    (dict(config=None), 'has neither `model` nor `config`'),
    (dict(tokenizer=None), 'has no tokenizer: set tokenizer=<folder>'),
    (dict(dtype='half'), "'half', expected one of float32, bfloat16, float16"),
    (dict(config=dict(OPT, vocab_size=100)), r'has \d+ ids, but the language model embeds only 100'),
    (dict(config=dict(OPT, hiden_size=3)), "'opt' has no setting 'hiden_size'; did you mean 'hidden_size'"),
    (dict(config=dict(OPT, model_type='optt')), "model_type='optt' is not known to transformers"),
    (dict(config=dict(model_type='t5')),
     "model_type='t5' does not fit CausalLM, it is an encoder-decoder: set type='Seq2SeqLM'"),
    (dict(config=dict(model_type='bert')), "model_type='bert' does not fit CausalLM, it is an encoder.*'opt'"),
    (dict(config=dict(model_type='vit')), "model_type='vit' does not fit AutoModelForCausalLM"),
    (dict(max_text_len=65), 'max_text_len alone makes 65 tokens, but the language model has 64 positions'),
    (dict(config=GPT2, max_text_len=65), 'max_text_len alone makes 65 tokens, but the language model has 64 positions'),
    (dict(ending='two photos'), r"ending='two photos' of the language model is \d+ tokens, expected one"),
    (dict(tokenizer='no/such/folder'), 'no tokenizer could be loaded from no/such/folder: there is no such folder'),
    (dict(model='no/such/folder', config=None), 'language model no/such/folder could not be loaded: there is no'),
    (dict(model='facebook/opt-2.7b', config=None),
     'could not be loaded: .* on a machine with network run `hf download facebook/opt-2.7b --local-dir opt-2.7b`, '
     'which gets config.json and model.safetensors .*pytorch_model.bin.* copy the folder to here, and give its path .* '
     'copy the whole of .*models--facebook--opt-2.7b from there'),
    (dict(tokenizer='facebook/opt-2.7b'),
     'no tokenizer .* from facebook/opt-2.7b: .* `hf download facebook/opt-2.7b --local.* gets tokenizer.json'),
])
def test_bad_arguments_are_refused(folder, change, message):
    with pytest.raises(ConfigError, match=message):
        CausalLM(**{**dict(config=OPT, tokenizer=folder), **change})


def test_too_many_positions_are_refused_before_an_index_error(opt):
    with pytest.raises(ConfigError, match='make 76 tokens, but the language model has 64 positions'):
        opt.generate(torch.zeros(1, 35, 32), [''], max_new_tokens=40)
    with pytest.raises(ConfigError, match=r'make 65 tokens, but the language model has 64 positions: lower max_text_l'):
        opt.loss(torch.zeros(1, 62, 32), [''], ['two'])


@pytest.mark.parametrize('settings', [dict(num_beams=3), dict(do_sample=True)], ids=['beams', 'samples'])
def test_several_texts_belong_to_their_sample(opt, prefix, settings):
    prompts = ['a photo of', '', 'two'][:len(prefix)]
    torch.manual_seed(0)
    texts = opt.generate(prefix, prompts, max_new_tokens=5, num_return_sequences=3, **settings)
    assert [len(row) for row in texts] == [3] * len(prefix)
    if 'num_beams' in settings:  # a row alone has the same texts, the best of which is that of one text a sample
        for i, row in enumerate(texts):
            alone = opt.generate(prefix[i:i + 1], prompts[i:i + 1], max_new_tokens=5, num_return_sequences=3,
                                 **settings)
            assert alone == [row] and len(set(row)) > 1
        assert [row[0] for row in texts] == opt.generate(prefix, prompts, max_new_tokens=5, **settings)
    with pytest.raises(ConfigError, match=r'4 texts a sample \(num_return_sequences\) need as many beams, got'):
        opt.generate(prefix, prompts, num_return_sequences=4, num_beams=3)


def test_count_of_the_context_is_what_generate_takes(opt, prefix):
    assert opt.max_context == 64
    for prompt in PROMPTS:
        most = 64 - opt.count_context(prefix.size(1), prompt, 0)
        opt.generate(prefix[:1], [prompt], max_new_tokens=most, min_new_tokens=most)
        with pytest.raises(ConfigError, match='65 tokens, but the language model has 64 positions: shorten the prompt '
                                              'or lower max_new_tokens'):
            opt.generate(prefix[:1], [prompt], max_new_tokens=most + 1)


def in_two_ways(lm, monkeypatch, prefix, **settings):
    """Texts where prefix and prompt are read once a sample, then once a beam; and of each (rows, tokens) of the first
    layer's longest input."""
    texts, shapes = [], []
    layers = next(part for part in lm.model.modules() if isinstance(part, torch.nn.ModuleList))
    hook = layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple((*args, *kwargs.values())[0].shape[:2])), with_kwargs=True)
    for name in ('_read_once', '_never'):
        seen: list = []
        if name == '_never':
            monkeypatch.setattr(lm, '_read_once', lambda *args: None)
        torch.manual_seed(3)
        texts.append(lm.generate(prefix, PROMPTS, max_new_tokens=8, **settings))
        shapes.append(max(seen, key=lambda shape: shape[1]))
    hook.remove()
    return texts, shapes


@pytest.mark.parametrize('settings', [dict(num_beams=5), dict(num_beams=5, num_return_sequences=3, length_penalty=-1.),
                                      dict(do_sample=True, num_return_sequences=3), dict(num_beams=1),
                                      dict(num_beams=2, do_sample=True)],
                         ids=['beams', 'best beams', 'samples', 'greedy', 'beams of samples'])
@pytest.mark.parametrize('name', FAMILIES)
def test_prefix_and_prompt_are_read_once_for_all_beams_and_the_text_is_the_same(name, prefix, request, monkeypatch,
                                                                                settings):
    (ours, plain), (once, often) = in_two_ways(request.getfixturevalue(name), monkeypatch, prefix, **settings)
    assert ours == plain and len(set(map(str, plain))) > 1
    rows = max(settings.get('num_beams', 1), settings.get('num_return_sequences', 1))
    assert often[0] == 3 * rows and once == (3, often[1] - (rows > 1))


def test_where_the_cache_cannot_be_repeated_it_is_said_once_and_the_text_is_the_same(folder, prefix, monkeypatch):
    lm, told = build(folder), []
    expected = lm.generate(prefix, PROMPTS, max_new_tokens=8, num_beams=3)
    monkeypatch.setattr('mmblip2.models.language.base.print_log', lambda text, **kwargs: told.append(text))
    monkeypatch.setattr(transformers.DynamicCache, 'batch_repeat_interleave',
                        lambda cache, rows: (_ for _ in ()).throw(NotImplementedError()))
    for _ in range(2):
        assert lm.generate(prefix, PROMPTS, max_new_tokens=8, num_beams=3) == expected
    assert len(told) == 1
    assert 'OPTForCausalLM (DynamicCache) cannot be repeated: prefix and prompt are read once a beam' in told[0]


def test_a_cache_that_the_caller_chooses_is_not_replaced(opt, prefix, monkeypatch):
    monkeypatch.setattr(opt, '_read_once', lambda *args: pytest.fail('the cache was filled'))
    opt.generate(prefix, PROMPTS, max_new_tokens=3, num_beams=2, use_cache=False)


@pytest.mark.parametrize('with_prefix', [True, False])
@pytest.mark.parametrize('can_keep', ['if the model can', False])
def test_logits_are_computed_for_targets_alone(opt, prefix, monkeypatch, with_prefix, can_keep):
    """Neither for the prefix, nor for prompts, nor for padding."""
    seen = []
    hook = opt.model.get_output_embeddings().register_forward_hook(lambda module, args, out: seen.append(out.shape))
    if not can_keep:
        monkeypatch.setattr(opt, '_can_keep', False)
    prompts = ['a photo of', 'two', 'Question: what colour is it? Answer:']
    loss, count = opt.loss(prefix if with_prefix else None, prompts, TARGETS)
    hook.remove()
    assert seen == [(count.item(), opt.model.config.vocab_size)]
    expected = 0
    for row, (prompt, target) in enumerate(zip(prompts, TARGETS)):
        ids = opt.tokenizer(f'{prompt} {target}\n').input_ids
        start = prefix[row:row + 1] if with_prefix else prefix[:1, :0]
        first = len(opt.tokenizer(prompt).input_ids)
        embeds = torch.cat([start, opt.embed(torch.tensor([ids]))], dim=1)
        log_p = opt.model(inputs_embeds=embeds).logits[0].log_softmax(-1)[start.size(1) - 1 + first:-1]
        expected = expected - log_p[torch.arange(len(ids) - first), ids[first:]].sum()
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
