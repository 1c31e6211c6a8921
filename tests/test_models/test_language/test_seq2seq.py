"""Seq2SeqLM (T5): the encoder reads prefix and prompt, the decoder's targets end with </s>."""
import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mmblip2.errors import CheckpointError, ConfigError
from mmblip2.models.language import Seq2SeqLM

TEXTS = ['a photo of a red circle above a small blue square', 'Question: what colour is it? Answer: green',
         'two']
T5 = dict(model_type='t5', d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
          feed_forward_proj='gated-gelu')
FLAN = dict(T5, tie_word_embeddings=False)
PROMPTS = ['a photo of', '', 'Question: what colour is it? Answer:']
TARGETS = ['a red circle', 'two', 'green']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A unigram tokenizer like T5's: </s> is appended."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(TEXTS * 5, trainers.UnigramTrainer(
        vocab_size=80, special_tokens=['<pad>', '</s>', '<unk>'], unk_token='<unk>', show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(single='$A </s>', special_tokens=[('</s>', 1)])
    folder = tmp_path_factory.mktemp('tokenizer')
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token='</s>', pad_token='<pad>',
                            unk_token='<unk>').save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope='module')
def prefix():
    return torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1))


def build(folder, config=T5, **kwargs):
    torch.manual_seed(0)
    return Seq2SeqLM(config=config, tokenizer=folder, **kwargs).eval()


@pytest.fixture(scope='module')
def lm(folder):
    return build(folder)


def test_loss_is_the_cross_entropy_of_the_target_and_its_ending(lm, prefix):
    labels = torch.tensor([lm.tokenizer('a red circle').input_ids])
    assert labels[0, -1] == 1
    prompt = torch.tensor([lm.tokenizer('a photo of').input_ids])
    embeds = torch.cat([prefix[:1], lm.embed(prompt)], dim=1)
    shifted = torch.cat([torch.zeros(1, 1, dtype=torch.int64), labels[:, :-1]], dim=1)
    logits = lm.model(inputs_embeds=embeds, decoder_input_ids=shifted).logits
    loss, count = lm.loss(prefix[:1], PROMPTS[:1], TARGETS[:1])
    assert count.item() == labels.size(1)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits[0], labels[0], reduction='sum'))


def test_loss_of_a_batch_is_the_sum_of_its_rows(lm, prefix):
    loss, count = lm.loss(prefix, PROMPTS, TARGETS)
    rows = [lm.loss(prefix[i:i + 1], PROMPTS[i:i + 1], TARGETS[i:i + 1]) for i in range(3)]
    torch.testing.assert_close(loss, sum(row[0] for row in rows), atol=1e-4, rtol=1e-5)
    assert count.item() == sum(row[1].item() for row in rows)


def test_several_targets_of_a_sample_are_as_each_alone_and_the_encoder_reads_it_once(lm, prefix, monkeypatch):
    several = [[TARGETS[0], TARGETS[2]], TARGETS[1], [TARGETS[2]]]
    owners, texts = [0, 0, 1, 2], [TARGETS[0], TARGETS[2], TARGETS[1], TARGETS[2]]
    given = [prefix.clone().requires_grad_() for _ in range(2)]
    rows = [lm.loss(given[0][i:i + 1], [PROMPTS[i]], [text]) for i, text in zip(owners, texts)]
    read = []
    encoder = lm.model.get_encoder()
    monkeypatch.setattr(encoder, 'forward', lambda *args, _forward=encoder.forward, **kwargs: (
        read.append(len(kwargs['inputs_embeds'])), _forward(*args, **kwargs))[1])
    loss, count = lm.loss(given[1], PROMPTS, several)
    torch.testing.assert_close(loss, sum(row[0] for row in rows), atol=1e-4, rtol=1e-5)
    assert count.item() == sum(row[1].item() for row in rows) and read == [3]
    grads = [torch.autograd.grad(total, leaf)[0] for total, leaf in zip((sum(row[0] for row in rows), loss), given)]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)


def test_a_long_target_is_cut_and_keeps_its_ending(folder, prefix):
    lm = build(folder, max_text_len=4)
    assert lm._tokenize(TEXTS[0], 4) == lm.tokenizer(TEXTS[0]).input_ids[:3] + [1]
    assert lm.loss(prefix[:1], [''], TEXTS[:1])[1].item() == 4


def test_gradient_flows_through_the_frozen_model_to_every_prefix_token(folder, prefix):
    lm, prefix = build(folder, dtype='bfloat16'), prefix.clone().requires_grad_()
    lm.requires_grad_(False)
    loss, _ = lm.loss(prefix, PROMPTS, TARGETS)
    loss.backward()
    assert loss.dtype == torch.float32
    assert (prefix.grad.abs().sum(-1) > 0).all()


def test_trained_text_comes_back_and_a_batch_equals_single_runs(folder, prefix):
    lm = build(folder)      # without dropout: the loss falls by a straight way on every machine
    optimizer = torch.optim.Adam(lm.parameters(), 1e-2)
    for _ in range(200):
        loss, count = lm.loss(prefix, PROMPTS, TARGETS)
        if loss < 0.01 * count:
            break
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
    assert lm.generate(prefix, PROMPTS, max_new_tokens=12) == TARGETS
    assert lm.generate(prefix, PROMPTS, max_new_tokens=12, num_beams=3, length_penalty=-1.0) == TARGETS
    for i in range(3):
        assert lm.generate(prefix[i:i + 1], PROMPTS[i:i + 1], max_new_tokens=12) == TARGETS[i:i + 1]


def test_flan_t5_keeps_its_weights_with_the_activation_of_lavis(folder, tmp_path):
    """The hub's Flan-T5 has an output layer of its own and says gelu_new; the shipped configs override the latter."""
    import json

    from safetensors.torch import save_file
    lm = build(folder)
    state = {key: value.clone() for key, value in lm.model.state_dict().items() if 'embed_tokens' not in key}
    state['lm_head.weight'] = torch.randn_like(state['lm_head.weight'])
    save_file(state, tmp_path / 'model.safetensors', metadata=dict(format='pt'))
    architecture = dict(T5, vocab_size=lm.model.config.vocab_size)
    (tmp_path / 'config.json').write_text(json.dumps(dict(
        architecture, tie_word_embeddings=False, architectures=['T5ForConditionalGeneration'])))
    for tied in ({}, dict(tie_word_embeddings=False)):
        config = dict(architecture, dense_act_fn='gelu', **tied)
        loaded = Seq2SeqLM(model=str(tmp_path), tokenizer=folder, config=config)
        assert loaded.model.config.dense_act_fn == 'gelu'
        assert torch.equal(loaded.model.lm_head.weight, state['lm_head.weight'])
        for stack in (loaded.model.encoder, loaded.model.decoder):
            assert torch.equal(stack.embed_tokens.weight, state['shared.weight'])
        assert scale(loaded) == pytest.approx(1)


def scale(lm):
    """By what the output of the decoder's last norm is multiplied before it meets the output layer."""
    seen = []
    handles = [lm.model.decoder.final_layer_norm.register_forward_hook(lambda _, args, output: seen.append(output)),
               lm.model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))]
    lm.eval().loss(None, PROMPTS[:1], TARGETS[:1])
    for handle in handles:
        handle.remove()
    normed, head_input = seen
    return (head_input / normed).mean().item()


@pytest.mark.parametrize('config, factor', [(T5, 32**-0.5), (FLAN, 1)], ids=['t5', 'flan-t5'])
def test_the_shape_of_flan_t5_brings_its_own_output_layer_and_does_not_scale_before_it(folder, config, factor):
    lm = build(folder, config)
    own = config is FLAN
    assert (lm.model.lm_head.weight is not lm.model.shared.weight) == own
    assert ('model.lm_head.weight' in dict(lm.named_parameters())) == own
    for stack in (lm.model.encoder, lm.model.decoder):
        assert stack.embed_tokens.weight is lm.model.shared.weight
    assert scale(lm) == pytest.approx(factor)
    lm.loss(None, PROMPTS, TARGETS)[0].backward()
    assert lm.model.lm_head.weight.grad.any() and lm.model.shared.weight.grad.any()


def test_folder_and_config_agree_on_the_output_layer(folder, tmp_path):
    build(folder).model.save_pretrained(tmp_path / 't5')
    flan = build(folder, FLAN)
    flan.model.save_pretrained(tmp_path / 'flan')
    with pytest.raises(ConfigError, match='t5 is its embedding, config says tie_word_embeddings=False: take that out'):
        Seq2SeqLM(model=str(tmp_path / 't5'), tokenizer=folder, config=FLAN)
    with pytest.raises(ConfigError, match='flan is not its embedding, config says tie_word_embeddings=True: take that'):
        Seq2SeqLM(model=str(tmp_path / 'flan'), tokenizer=folder, config=dict(T5, tie_word_embeddings=True))
    loaded = Seq2SeqLM(model=str(tmp_path / 'flan'), tokenizer=folder, config=FLAN)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in flan.state_dict().items())
    assert scale(loaded) == pytest.approx(1)


def test_the_loss_depends_on_the_prefix(lm, prefix):
    assert abs(lm.loss(prefix.flip(0), PROMPTS, TARGETS)[0] - lm.loss(prefix, PROMPTS, TARGETS)[0]) > 0.01


def test_float16_is_refused(folder):
    with pytest.raises(ConfigError, match="'float16', in which T5 overflows: use 'bfloat16' or 'float32'"):
        build(folder, dtype='float16')


def test_float16_autocast_is_refused(lm, prefix):
    with torch.autocast('cpu', torch.float16):
        for call in (lambda: lm.loss(prefix, PROMPTS, TARGETS), lambda: lm.generate(prefix, PROMPTS)):
            with pytest.raises(ConfigError, match="autocast dtype is 'float16', in which T5 overflows: use 'bfloat16'"):
                call()
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.isfinite(lm.loss(prefix, PROMPTS, TARGETS)[0])


@pytest.mark.parametrize('settings, activation', [
    (dict(feed_forward_proj='relu'), 'ReLU'), (dict(feed_forward_proj='gated-gelu'), 'NewGELUActivation'),
    (dict(feed_forward_proj='gated-gelu', dense_act_fn='gelu'), 'GELUActivation')])
def test_the_activation_comes_from_the_config(folder, settings, activation):
    """T5, Flan-T5, and Flan-T5 as LAVIS runs it."""
    lm = Seq2SeqLM(config=dict(T5, **settings), tokenizer=folder)
    feed_forward = lm.model.encoder.block[0].layer[1].DenseReluDense
    assert type(feed_forward.act).__name__ == activation
    assert hasattr(feed_forward, 'wi_1') == settings['feed_forward_proj'].startswith('gated')


BART = dict(model_type='bart', d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=20)


def test_too_many_positions_are_refused_before_an_index_error(folder, prefix):
    lm = build(folder, BART, max_text_len=15)
    with pytest.raises(ConfigError, match='max_text_len alone makes 21 tokens, but the language model has 20 position'):
        build(folder, BART, max_text_len=21)
    fills = [PROMPTS[2] * 9]  # cut to 15
    assert torch.isfinite(lm.loss(prefix[:1], fills, fills)[0])
    for call in (lambda: lm.loss(torch.zeros(1, 6, 32), fills, fills),
                 lambda: lm.generate(torch.zeros(1, 20, 32), [''], max_new_tokens=3)):
        with pytest.raises(ConfigError, match='prefix and prompt make 21 tokens, but the language model has 20 posit'):
            call()
    with pytest.raises(ConfigError, match='max_new_tokens makes 21 tokens, .* 20 positions: lower max_text_len or max'):
        lm.generate(prefix[:1], [''], max_new_tokens=21)
    assert len(lm.generate(prefix[:1], [''], max_new_tokens=20, min_new_tokens=20)) == 1
    assert build(folder, max_text_len=600).generate(prefix[:1], [''], max_new_tokens=2)  # T5 has no such table


def test_a_decoder_only_model_is_sent_to_the_other_adapter(folder):
    with pytest.raises(ConfigError, match="model_type='opt' does not fit Seq2SeqLM, it is decoder-only: set "
                                          "type='CausalLM'"):
        Seq2SeqLM(config=dict(model_type='opt'), tokenizer=folder)


@pytest.mark.parametrize('written', [dict(tie_word_embeddings=False),
                                     dict(tie_word_embeddings=True, scale_decoder_outputs=False)])
def test_an_output_layer_of_its_own_survives_a_folder_and_is_never_lost_in_silence(folder, prefix, tmp_path, written):
    """Flan-T5's output layer is not its embedding.

    ``written`` is how Flan-T5's config.json says it, and how transformers 5 does.
    """
    lm = build(folder, FLAN)
    lm.model.save_pretrained(tmp_path / 'flan')
    file = tmp_path / 'flan' / 'config.json'
    config = json.loads(file.read_text())
    config.pop('scale_decoder_outputs', None)
    file.write_text(json.dumps({**config, **written}))
    loaded = Seq2SeqLM(model=str(tmp_path / 'flan'), tokenizer=folder).eval()
    torch.testing.assert_close(loaded.loss(prefix, PROMPTS, TARGETS), lm.loss(prefix, PROMPTS, TARGETS))

    torch.save({f'language_model.{key}': value for key, value in lm.state_dict().items()}, tmp_path / 'flan.pth')
    with pytest.raises(CheckpointError, match=r'two tensors in the file are one in the model \(model.shared.weight and '
                                              r'model.*lm_head.weight\).* from the folder that it was made from, or '
                                              r'with config=dict\(tie_word_embeddings=False\)'):
        Seq2SeqLM(config=T5, tokenizer=folder, weights=str(tmp_path / 'flan.pth'))
    for source in (dict(config=FLAN), dict(model=str(tmp_path / 'flan'))):
        again = Seq2SeqLM(**source, tokenizer=folder, weights=str(tmp_path / 'flan.pth')).eval()
        torch.testing.assert_close(again.loss(prefix, PROMPTS, TARGETS), lm.loss(prefix, PROMPTS, TARGETS))


@pytest.mark.parametrize('settings', [dict(num_beams=3), dict(do_sample=True)], ids=['beams', 'samples'])
def test_several_texts_belong_to_their_sample(lm, prefix, settings):
    prompts = ['a photo of', '', 'two'][:len(prefix)]
    torch.manual_seed(0)
    texts = lm.generate(prefix, prompts, max_new_tokens=5, num_return_sequences=3, **settings)
    assert [len(row) for row in texts] == [3] * len(prefix)
    if 'num_beams' in settings:  # a row alone has the same texts, the best of which is that of one text a sample
        for i, row in enumerate(texts):
            alone = lm.generate(prefix[i:i + 1], prompts[i:i + 1], max_new_tokens=5, num_return_sequences=3,
                                **settings)
            assert alone == [row] and len(set(row)) > 1
        assert [row[0] for row in texts] == lm.generate(prefix, prompts, max_new_tokens=5, **settings)
    with pytest.raises(ConfigError, match=r'4 texts a sample \(num_return_sequences\) need as many beams, got'):
        lm.generate(prefix, prompts, num_return_sequences=4, num_beams=3)


def test_the_context_is_that_of_the_encoder(lm, prefix, monkeypatch):
    assert lm.max_context is None
    monkeypatch.setattr(lm.tokenizer, 'model_max_length', 512)
    assert lm.max_context == 512
    embeds, _ = lm._encoder_input(prefix[:1], ['a photo of'], None)
    assert lm.count_context(prefix.size(1), 'a photo of', 1000) == embeds.size(1)


@pytest.mark.parametrize('settings', [dict(num_beams=5), dict(num_beams=3, num_return_sequences=2), dict(num_beams=1),
                                      dict(do_sample=True, num_return_sequences=3)],
                         ids=['beams', 'best beams', 'greedy', 'samples'])
@pytest.mark.parametrize('config', ['t5', 'bart'])
def test_cross_attention_keys_are_computed_once_for_all_beams_and_the_text_is_the_same(folder, prefix, monkeypatch,
                                                                                       config, settings):
    lm = build(folder, T5 if config == 't5' else dict(BART, max_position_embeddings=64))
    with torch.no_grad():
        for table in lm.model.parameters():
            table.mul_(3.)  # so that texts differ
    seen, texts, rows = [], [], []
    keys = next(part for name, part in lm.model.get_decoder().named_modules()
                if name.endswith(('EncDecAttention.k', 'encoder_attn.k_proj')))
    keys.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    for plain in (False, True):
        if plain:
            monkeypatch.setattr(lm, '_read_once', lambda *args: None)
        seen.clear()
        torch.manual_seed(3)
        texts.append(lm.generate(prefix, PROMPTS, max_new_tokens=8, **settings))
        rows.append(list(seen))
    assert texts[0] == texts[1] and (config == 'bart' or len(set(map(str, texts[0]))) > 1)
    assert rows == [[3], [3 * max(settings.get('num_beams', 1), settings.get('num_return_sequences', 1))]]


def test_logits_are_computed_for_targets_alone(lm, prefix):
    seen = []
    hook = lm.model.get_output_embeddings().register_forward_hook(lambda module, args, out: seen.append(out.shape))
    _, count = lm.loss(prefix, PROMPTS, TARGETS)
    hook.remove()
    assert seen == [(count.item(), lm.model.config.vocab_size)]
