"""A BERT tokenizer of whole words, not trained, because trainers break ties by chance; tests put this folder on
sys.path and import it."""
from pathlib import Path


def write_bert(folder, texts):
    """Write the tokenizer of the words of texts.

    Args:
        folder (str | Path): Is there already.
        texts (Iterable[str]): In lower case, words and punctuation separated by spaces.

    Returns:
        tuple[str, int]: The folder, and the number of tokens: five special ones, then the words in alphabetical order.
    """
    from transformers import BertTokenizerFast
    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *sorted({word for text in texts for word in text.split()})]
    Path(folder, 'vocab.txt').write_text('\n'.join(words))
    BertTokenizerFast.from_pretrained(str(folder)).save_pretrained(str(folder))
    return str(folder), len(words)
