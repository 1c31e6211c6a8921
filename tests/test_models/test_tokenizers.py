import torch

from mmblip2.models.tokenizers import BertTokenizer


def test_added_words_follow_the_vocabulary_in_the_order_of_blip(bert_folder):
    plain, blip = BertTokenizer(bert_folder), BertTokenizer(bert_folder, enc_token=True)
    words = len(plain) - 1
    assert plain.dec_id == blip.dec_id == words and blip.enc_id == words + 1 and len(blip) == words + 2
    assert plain.enc_id is None
    assert torch.equal(plain(['a red star'], 9).input_ids, blip(['a red star'], 9).input_ids)


def test_another_first_token_leaves_the_batch_as_it_was(bert_folder):
    tokenizer = BertTokenizer(bert_folder, enc_token=True)
    text = tokenizer(['a red star', 'star'], 9)
    before = text.input_ids.clone()
    changed = text.begin_with(tokenizer.enc_id)
    assert torch.equal(text.input_ids, before) and changed.mask is text.mask
    assert (changed.input_ids[:, 0] == tokenizer.enc_id).all() and torch.equal(changed.input_ids[:, 1:], before[:, 1:])
