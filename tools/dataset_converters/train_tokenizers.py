"""Train the two small tokenizers of the quickstart on a text file (one text a line), without a network.

Writes two Hugging Face folders that ``transformers.AutoTokenizer.from_pretrained`` reads: ``bert`` (uncased
WordPiece, ``[CLS] ... [SEP]``) and ``opt`` (byte-level BPE, ``</s>`` in front, as OPT's). The same texts give
the same bytes; a second call finds its work done.
"""
import argparse
import collections
import hashlib
import json
import string
import sys
from pathlib import Path

FORMAT = 2  # raise it when the same texts would give other files
BERT_SPECIALS = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
OPT_SPECIALS = ('<s>', '<pad>', '</s>', '<unk>')  # ids 0 to 3, as OPT's


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--corpus', default='data/shapes/annotations/corpus_train.txt',
                        help='file with one text a line')
    parser.add_argument('--out', default='data/shapes/tokenizers', help='folder for the folders bert and opt')
    parser.add_argument('--bert-vocab', type=int, default=400, help='most entries of the WordPiece')
    parser.add_argument('--opt-vocab', type=int, default=600, help='most entries of the BPE, at least 261')
    args = parser.parse_args(argv)
    if args.bert_vocab < 200:
        parser.error(f'--bert-vocab is {args.bert_vocab}; expected at least 200 (characters and some words)')
    if args.opt_vocab < 261:
        parser.error(f'--opt-vocab is {args.opt_vocab}; expected at least 261 (256 bytes, 4 special)')
    return args


def bert_vocabulary(texts, size):
    """WordPiece entries: special tokens, characters alone and as continuations, then the most frequent words.

    The trainer of ``tokenizers`` breaks ties differently in every run; this list depends on the texts alone.
    """
    from tokenizers import normalizers, pre_tokenizers

    normalize, split = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts = collections.Counter(word for text in texts
                                 for word, _ in split.pre_tokenize_str(normalize.normalize_str(text)))
    characters = sorted({*string.ascii_lowercase, *string.digits, *string.punctuation, *''.join(counts)})
    words = sorted(counts, key=lambda word: (-counts[word], word))
    continuations = ['##' + character for character in characters if character.isalnum()]
    return list(dict.fromkeys([*BERT_SPECIALS, *characters, *continuations, *words]))[:size]


def train_bert(texts, folder, size):
    """Make an uncased WordPiece tokenizer with BERT's special tokens (pad id 0) and save it in ``folder``."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import BertTokenizerFast

    vocabulary = {entry: index for index, entry in enumerate(bert_vocabulary(texts, size))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token='[UNK]'))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(
        ('[SEP]', vocabulary['[SEP]']), ('[CLS]', vocabulary['[CLS]']))
    BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, do_lower_case=True, pad_token='[PAD]',
                      unk_token='[UNK]', cls_token='[CLS]', sep_token='[SEP]',
                      mask_token='[MASK]').save_pretrained(folder)


def train_opt(texts, folder, size):
    """Train an OPT-like byte-level BPE (``</s>`` prepended, pad id 1, newline one id) into ``folder``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(OPT_SPECIALS), show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single='</s> $A', pair='</s> $A </s> $B', special_tokens=[('</s>', tokenizer.token_to_id('</s>'))])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token='</s>', eos_token='</s>', pad_token='<pad>',
                            unk_token='<unk>', padding_side='left', model_max_length=2048,
                            clean_up_tokenization_spaces=False).save_pretrained(folder)


def main(argv=None):
    args = parse_args(argv)
    corpus, out = Path(args.corpus), Path(args.out)
    if not corpus.is_file():
        sys.exit(f'{corpus} is not a file. Expected texts, one a line; '
                 'tools/dataset_converters/make_shapes.py writes one for the quickstart, or give --corpus.')
    content = corpus.read_bytes()
    texts = [line for line in content.decode('utf-8').splitlines() if line.strip()]
    if not texts:
        sys.exit(f'{corpus} holds no text. Expected texts, one a line; write it again or change --corpus.')
    source = {'format': FORMAT, 'corpus_sha256': hashlib.sha256(content).hexdigest(),
              'bert_vocab': args.bert_vocab, 'opt_vocab': args.opt_vocab}
    record = out / 'source.json'
    if record.is_file() and record.read_text(encoding='utf-8') == json.dumps(source):
        print(f'{out} is up to date')
        return
    record.unlink(missing_ok=True)
    from transformers import AutoTokenizer  # after the checks: it takes seconds
    for name, train, size in (('bert', train_bert, args.bert_vocab), ('opt', train_opt, args.opt_vocab)):
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        train(texts, folder, size)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        length = sum(len(ids) for ids in tokenizer(texts[:1000])['input_ids']) / len(texts[:1000])
        print(f'{folder}: {len(tokenizer)} entries, {length:.1f} tokens a text with the special ones')
    record.write_text(json.dumps(source), encoding='utf-8')


if __name__ == '__main__':
    main()
