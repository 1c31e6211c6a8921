"""The text tokenizer of Q-Former and MED, and a stand-in for tokenizers without files."""
import json
from types import SimpleNamespace
from typing import NamedTuple

import torch

from mmblip2.compat import read_tokenizer
from mmblip2.errors import ConfigError, first_lines
from mmblip2.registry import MODELS

from .hub import TOKENIZER_FILES, cannot_read

_PLACEHOLDER = '<image>'


class TextBatch(NamedTuple):
    """A padded batch of token ids: both int64 (B, T), the mask 1 at real tokens and 0 at padding on the right."""
    input_ids: torch.Tensor
    mask: torch.Tensor

    def rows(self, index) -> 'TextBatch':
        """The rows ``index``."""
        return TextBatch(self.input_ids[index], self.mask[index])

    def trimmed(self, device=None) -> 'TextBatch':
        """Without the columns that are padding in every row, on ``device``."""
        length = int(self.mask.sum(dim=1).max())
        return TextBatch(self.input_ids[:, :length].to(device), self.mask[:, :length].to(device))

    def begin_with(self, token_id: int) -> 'TextBatch':
        """With another first token: [DEC] for text that is written, [ENC] for text that reads an image (BLIP)."""
        input_ids = self.input_ids.clone()
        input_ids[:, 0] = token_id
        return TextBatch(input_ids, self.mask)


def _without_placeholder(tokenizer):
    """The tokenizer without the ``<image>`` that ``Blip2Processor`` adds behind the vocabulary."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast
    if _PLACEHOLDER not in tokenizer.get_added_vocab() or not tokenizer.is_fast:
        return tokenizer
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content['added_tokens'] = [token for token in content['added_tokens'] if token['content'] != _PLACEHOLDER]
    specials = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), **specials)


@MODELS.register_module()
class BertTokenizer:
    """WordPiece tokenizer of a BERT folder, with the ``[DEC]`` token that starts generated text, and BLIP's ``[ENC]``
    that starts a text that reads an image.

    An ``<image>`` that a processor of transformers has added is taken out again: no table has a row for it.

    Args:
        path (str): Folder that ``transformers.AutoTokenizer`` can read, or a hub name; of a path that is not there, the
            last part may be a folder in ``MMBLIP2_WEIGHTS``, or 'bert-base-uncased'.
        enc_token (bool): Add [ENC], after [DEC], as BLIP does; BLIP-2 has none.

    Raises:
        ConfigError: If ``path`` cannot be read, or has no [CLS], [SEP] and [PAD].
    """

    def __init__(self, path: str, enc_token: bool = False):
        from mmblip2.checkpoints.sources import local_or_hub
        path = local_or_hub(path)
        try:
            tokenizer = _without_placeholder(read_tokenizer(path))
        except (OSError, ValueError) as error:
            raise ConfigError(f'no BERT tokenizer could be read from {path!r}: {cannot_read(path, TOKENIZER_FILES)} '
                              f'({first_lines(error)})') from error
        for name in ('cls', 'sep', 'pad'):
            if getattr(tokenizer, f'{name}_token_id') is None:
                raise ConfigError(f'the tokenizer in {path!r} has no {name}_token: a BERT tokenizer is needed')
        tokenizer.add_special_tokens({'bos_token': '[DEC]'})
        if enc_token:
            tokenizer.add_special_tokens({'additional_special_tokens': ['[ENC]']})
        self.tokenizer = tokenizer
        self.dec_id = tokenizer.bos_token_id
        self.enc_id = tokenizer.convert_tokens_to_ids('[ENC]') if enc_token else None
        self.sep_id = tokenizer.sep_token_id
        self.pad_id = tokenizer.pad_token_id

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __call__(self, texts: list[str], max_length: int, device=None) -> TextBatch:
        """Tokenise to ``[CLS] text [SEP]``, cut to ``max_length`` tokens and padded to the longest of the batch."""
        batch = self.tokenizer(texts, padding='longest', padding_side='right', truncation=True,
                               max_length=max_length, return_tensors='pt')
        return TextBatch(batch['input_ids'].to(device), batch['attention_mask'].to(device))


@MODELS.register_module()
class SizeOnlyTokenizer:
    """Stands in for a tokenizer whose files are not there, where only its size counts: ``build_on_meta``, and a Hugging
    Face folder without a tokenizer.

    It has as many ids as said, its special tokens are 0, and it reads no text.

    Args:
        size (int): Number of ids.
    """

    pad_token_id = bos_token_id = eos_token_id = 0
    pad_id = sep_id = dec_id = enc_id = 0
    pad_token = bos_token = eos_token = '</s>'

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __call__(self, text, *args, **kwargs):
        """The ids of the one text it knows, an end of text.

        Raises:
            ConfigError: For any other text.
        """
        if text not in ('\n', self.eos_token):
            raise ConfigError(f'this model was built without its tokenizer files and cannot read {text!r}: build it '
                              'from the config instead of build_on_meta; or put the tokenizer into its Hugging Face '
                              'folder')
        return SimpleNamespace(input_ids=[0])
