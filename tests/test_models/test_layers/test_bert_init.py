"""A Q-Former started from BERT is that BERT on text alone; what BERT lacks is reported as new."""
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel

from mmblip2.errors import CheckpointError
from mmblip2.models.layers.bert_init import init_from_bert
from mmblip2.models.qformer import QFormer

SIZES = dict(num_layers=3, width=16, num_heads=2, mlp_width=24, max_positions=12)


@pytest.fixture(scope='module')
def bert():
    torch.manual_seed(0)
    bert = BertModel(BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
                                intermediate_size=24, max_position_embeddings=20)).eval()
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.normal_(std=0.3)
    return bert


def build(**kwargs):
    torch.manual_seed(1)
    return QFormer(vision_width=10, num_query=4, **{**SIZES, 'vocab_size': 41, **kwargs}).eval()


@pytest.mark.parametrize('safe', [True, False])
def test_text_alone_gives_the_hidden_states_of_bert(bert, tmp_path, safe):
    if safe:
        bert.save_pretrained(tmp_path)
    else:
        torch.save(bert.state_dict(), tmp_path / 'pytorch_model.bin')
    qformer = build()
    init_from_bert(qformer, str(tmp_path))
    ids = torch.randint(40, (2, 9))
    mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 4])
    expected = bert(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
    assert expected.std() > 0.1
    torch.testing.assert_close(qformer.forward_text(ids, mask), expected, atol=1e-5, rtol=0)


def test_a_masked_language_model_gives_the_same_weights(bert, tmp_path):
    whole = BertForMaskedLM(bert.config)
    whole.bert.load_state_dict(bert.state_dict(), strict=False)
    whole.save_pretrained(tmp_path / 'mlm')
    bert.save_pretrained(tmp_path / 'bare')
    one, two = build(), build()
    init_from_bert(one, str(tmp_path / 'mlm'))
    init_from_bert(two, str(tmp_path / 'bare'))
    assert all(torch.equal(one.state_dict()[key], value) for key, value in two.state_dict().items())


def test_loaded_and_new_together_are_all_parameters_and_new_ones_are_untouched(bert, tmp_path):
    bert.save_pretrained(tmp_path)
    qformer = build()
    before = {name: value.detach().clone() for name, value in qformer.named_parameters()}
    report = init_from_bert(qformer, str(tmp_path))
    assert sorted(report.loaded + report.new) == sorted(before)
    assert all('cross_attention' in name or name == 'queries' for name in report.new)
    assert 'queries' in report.new and 'layers.2.cross_attention_norm.bias' in report.new
    after = dict(qformer.named_parameters())
    for name in report.new:
        assert torch.equal(after[name], before[name]), name
    for name in report.loaded:
        assert not torch.equal(after[name], before[name]), name
    assert report.new_words == 1
    assert torch.equal(after['word_embeddings.weight'][40], before['word_embeddings.weight'][40])
    assert '  new: queries, layers.*.cross_attention (' in str(report)
    assert '  new: the last 1 rows of word_embeddings.weight' in str(report)
    assert all(name.startswith('pooler') for name in report.unused)


def test_the_query_mlp_is_a_copy_of_the_text_mlp(bert, tmp_path):
    bert.save_pretrained(tmp_path)
    qformer = build()
    init_from_bert(qformer, str(tmp_path))
    for layer in qformer.layers:
        assert torch.equal(layer.query_mlp.fc1.weight, layer.text_mlp.fc1.weight)
        assert layer.query_mlp.fc1.weight is not layer.text_mlp.fc1.weight
        assert torch.equal(layer.query_norm.bias, layer.text_norm.bias)


def test_without_a_text_half_the_query_half_is_loaded(bert, tmp_path):
    bert.save_pretrained(tmp_path)
    whole, half = build(), build(vocab_size=None)
    init_from_bert(whole, str(tmp_path))
    report = init_from_bert(half, str(tmp_path))
    for name in report.loaded:
        assert torch.equal(half.state_dict()[name], whole.state_dict()[name])
    assert len(report.loaded) == 2 + 3 * 16


@pytest.mark.parametrize('sizes, message', [
    (dict(num_layers=4), r'encoder.layer.3.attention.self.query.weight is missing'),
    (dict(mlp_width=32), r'layer.0.intermediate.dense.weight is \(24, 16\).*fc1.weight is \(32, 16\)'),
    (dict(vocab_size=39), r'word embeddings are \(40, 16\), the Q-Former\'s \(39, 16\)'),
    (dict(max_positions=21), 'BERT has 20 positions, the Q-Former 21'),
])
def test_other_sizes_are_refused_and_change_nothing(bert, tmp_path, sizes, message):
    bert.save_pretrained(tmp_path)
    qformer = build(**sizes)
    before = {key: value.clone() for key, value in qformer.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        init_from_bert(qformer, str(tmp_path))
    assert all(torch.equal(value, before[key]) for key, value in qformer.state_dict().items())


def test_a_folder_without_bert_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match='holds neither model.safetensors nor pytorch_model.bin: expected the'):
        init_from_bert(build(), str(tmp_path))
    with pytest.raises(CheckpointError, match='folder of a BERT data/pretrained/no-bert not found: .* Give the path of '
                                              'no-bert, or put it into .*; or set bert=None'):
        init_from_bert(build(), 'data/pretrained/no-bert')
    torch.save({'weight': torch.zeros(2)}, tmp_path / 'pytorch_model.bin')
    with pytest.raises(CheckpointError, match='is no BERT: it has no embeddings.LayerNorm'):
        init_from_bert(build(), str(tmp_path))
