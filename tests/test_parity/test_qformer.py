"""The Q-Former equals transformers' ``Blip2QFormerModel`` on the same (random) weights."""
import pytest
import torch

from mmblip2.models.qformer import QFormer

transformers = pytest.importorskip('transformers')
from transformers import Blip2QFormerConfig, Blip2QFormerModel  # noqa: E402

NAMES = {
    'attention.query': 'attention.attention.query', 'attention.key': 'attention.attention.key',
    'attention.value': 'attention.attention.value', 'attention.output': 'attention.output.dense',
    'attention_norm': 'attention.output.LayerNorm',
    'cross_attention.query': 'crossattention.attention.query', 'cross_attention.key': 'crossattention.attention.key',
    'cross_attention.value': 'crossattention.attention.value', 'cross_attention.output': 'crossattention.output.dense',
    'cross_attention_norm': 'crossattention.output.LayerNorm',
    'query_mlp.fc1': 'intermediate_query.dense', 'query_mlp.fc2': 'output_query.dense',
    'query_norm': 'output_query.LayerNorm',
    'text_mlp.fc1': 'intermediate.dense', 'text_mlp.fc2': 'output.dense', 'text_norm': 'output.LayerNorm',
}


@pytest.fixture(scope='module')
def pair():
    """Our Q-Former and theirs with the same redrawn weights."""
    torch.manual_seed(0)
    config = Blip2QFormerConfig(vocab_size=40, hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
                                intermediate_size=48, encoder_hidden_size=24, cross_attention_frequency=2,
                                use_qformer_text_input=True)
    theirs = Blip2QFormerModel(config).eval()
    ours = QFormer(vision_width=24, num_layers=4, width=32, num_heads=4, mlp_width=48, num_query=5,
                   vocab_size=40, max_positions=16).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(std=0.2).add_(1. if name.endswith('LayerNorm.weight') else 0.)
            else:
                parameter.normal_(std=0.2)
        ours.queries.normal_(std=0.2)
        for embedding in (ours.word_embeddings, ours.position_embeddings):
            embedding.weight.normal_(std=0.2)
    source = theirs.state_dict()
    own = {name: value for name, value in ours.state_dict().items()
           if not name.startswith(('layers.', 'embedding_norm.'))}
    for end in ('weight', 'bias'):
        own[f'embedding_norm.{end}'] = source[f'layernorm.{end}']
        for layer in range(4):
            for mine, other in NAMES.items():
                if layer % 2 and mine.startswith('cross_'):
                    continue
                own[f'layers.{layer}.{mine}.{end}'] = source[f'encoder.layer.{layer}.{other}.{end}']
    ours.load_state_dict(own)
    return ours, theirs


def inputs():
    generator = torch.Generator().manual_seed(1)
    patches = torch.randn(3, 7, 24, generator=generator)
    ids = torch.randint(0, 40, (3, 6), generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]])
    return patches, ids, mask


def text_embeddings(ours, ids):
    return ours.word_embeddings(ids) + ours.position_embeddings.weight[:ids.size(1)]


def assert_close(ours, theirs):
    assert theirs.std() > 0.1, 'the reference output is too flat to prove anything'
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@torch.no_grad()
def test_image_queries_equal_transformers(pair):
    ours, theirs = pair
    patches, _, _ = inputs()
    expected = theirs(query_embeds=ours.queries.expand(3, -1, -1), encoder_hidden_states=patches).last_hidden_state
    assert_close(ours.forward_queries(ours.project_image(patches))[0], expected)


@torch.no_grad()
def test_joint_queries_equal_transformers(pair):
    ours, theirs = pair
    patches, ids, mask = inputs()
    embeds = torch.cat([ours.queries.expand(3, -1, -1), text_embeddings(ours, ids)], dim=1)
    expected = theirs(query_embeds=embeds, query_length=5, encoder_hidden_states=patches,
                      attention_mask=torch.cat([mask.new_ones(3, 5), mask], dim=1)).last_hidden_state[:, :5]
    assert_close(ours.forward_joint(ours.project_image(patches), ids, mask), expected)


@torch.no_grad()
def test_text_equals_transformers(pair):
    ours, theirs = pair
    _, ids, mask = inputs()
    expected = theirs(query_embeds=text_embeddings(ours, ids), query_length=0,
                      attention_mask=mask).last_hidden_state[:, 0]
    assert_close(ours.forward_text(ids, mask), expected)


@torch.no_grad()
def test_one_image_for_many_texts_equals_repeated_image(pair):
    ours, _ = pair
    patches, ids, mask = inputs()
    shared = ours.forward_joint(ours.project_image(patches[:1]), ids, mask)
    repeated = ours.forward_joint(ours.project_image(patches[:1].expand(3, -1, -1)), ids, mask)
    torch.testing.assert_close(shared, repeated, atol=1e-5, rtol=0)
