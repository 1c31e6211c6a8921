import pytest
import torch

from mmblip2.models.heads.lm import LMHead
from mmblip2.models.med import MED
from mmblip2.models.med.search import search

END, PAD = 3, 0
DRAWN = torch.Generator().manual_seed(1)
IDS = torch.randint(5, 30, (3, 4), generator=DRAWN)
PATCHES = torch.randn(3, 5, 12, generator=DRAWN)


@pytest.fixture(scope='module')
def writer():
    """Decoder and head, redrawn from a seed."""
    parts = (MED(vision_width=12, num_layers=3, width=16, num_heads=2, vocab_size=30, max_positions=40, dropout=0.),
             LMHead(16, 30))
    generator = torch.Generator().manual_seed(2)
    for part in parts:
        for parameter in part.eval().parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(0, 0.5, generator=generator)
    return parts


def run(writer, ids=IDS, patches=PATCHES, image_mask=None, **settings):
    decoder, head = writer
    return search(decoder, head, ids, decoder.project_image(patches), image_mask,
                  **{**dict(max_new_tokens=6, eos_token_id=END, pad_token_id=PAD), **settings})


@torch.no_grad()
def next_log_probs(writer, ids, patches):
    """Of one row, read as a whole, without any cache."""
    decoder, head = writer
    states, _ = decoder.forward_causal(ids, torch.ones_like(ids), decoder.project_image(patches))
    return head(states, decoder.word_embeddings.weight)[0, -1].log_softmax(0)


def test_greedy_search_takes_the_most_probable_token_each_time(writer):
    found = run(writer, min_new_tokens=6)
    for row, ids, patches in zip(found, IDS, PATCHES):
        for _ in range(6):
            log_probs = next_log_probs(writer, ids[None], patches[None])
            log_probs[END] = -torch.inf
            ids = torch.cat([ids, log_probs.argmax()[None]])
        assert row.tolist() == ids.tolist()
    assert len({tuple(row[4:]) for row in found.tolist()}) == 3


def test_beams_find_the_best_of_all_continuations(writer):
    """As many beams as there are tokens, two steps: nothing can be missed."""
    for ids, patches in zip(IDS[:, None], PATCHES[:, None]):
        first = next_log_probs(writer, ids, patches)
        scores = {}
        for token in range(30):
            if token != END:
                after = next_log_probs(writer, torch.cat([ids, torch.tensor([[token]])], dim=1), patches)
                scores.update({(token, other): float(first[token] + after[other]) for other in range(30)
                               if other != END})
        found = run(writer, ids, patches, num_beams=30, max_new_tokens=2, min_new_tokens=2)
        assert tuple(found[0, 4:].tolist()) == max(scores, key=scores.get)


def test_beams_and_several_texts_share_what_cross_attention_reads(writer):
    decoder, read = writer[0], []
    hook = decoder.layers[1].cross_attention.register_forward_pre_hook(
        lambda module, args: read.append((len(args[0]), len(args[1].key))))
    try:
        run(writer, num_beams=4, num_return_sequences=2)
    finally:
        hook.remove()
    assert {rows for rows, _ in read[1:]} == {12} and {images for _, images in read} == {3}


@pytest.mark.parametrize('settings', [dict(), dict(num_beams=3), dict(num_beams=4, num_return_sequences=2)])
def test_a_batch_gives_what_its_rows_give_alone(writer, settings):
    mask = torch.tensor([[1] * 5, [1] * 3 + [0] * 2, [1] * 4 + [0]])
    together = run(writer, image_mask=mask, min_new_tokens=6, **settings)
    alone = [run(writer, IDS[i:i + 1], PATCHES[i:i + 1, :int(mask[i].sum())], min_new_tokens=6, **settings)
             for i in range(3)]
    assert together.tolist() == torch.cat(alone).tolist()
    assert together.tolist() != run(writer, min_new_tokens=6, **settings).tolist(), 'the mask has no effect'


def test_sampling_follows_torchs_seed_and_its_settings(writer):
    def sample(seed, **settings):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return run(writer, do_sample=True, min_new_tokens=6, **settings).tolist()

    assert sample(0) == sample(0) and len({str(sample(seed)) for seed in range(4)}) > 1
    assert sample(0, top_k=1) == sample(1, top_k=1) == run(writer, min_new_tokens=6).tolist()
    assert sample(0, top_p=1e-6) == run(writer, min_new_tokens=6).tolist()
    assert sample(0, top_k=1, repetition_penalty=5.) == run(writer, min_new_tokens=6, repetition_penalty=5.).tolist()
    assert run(writer, min_new_tokens=6, repetition_penalty=5.).tolist() != run(writer, min_new_tokens=6).tolist()


def test_the_parts_stay_as_they_are(writer):
    decoder, head = writer
    decoder.train()
    try:
        run(writer)
        assert decoder.training and decoder.layers[0].training
        assert all(parameter.requires_grad for parameter in decoder.parameters())
        assert {type(part).__name__ for part in (decoder, head)} == {'MED', 'LMHead'}
    finally:
        decoder.eval()
