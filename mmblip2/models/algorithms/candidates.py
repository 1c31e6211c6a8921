"""The answers among which a model chooses."""
import json
from pathlib import Path

from mmblip2.errors import ConfigError, DataError, MMBlip2Error, first_lines

from ..tokenizers import TextBatch


def read_candidates(source) -> list[str]:
    """Candidates of a list or a file.

    Args:
        source (Sequence[str] | str | Path): Texts; or a file, whose place is found as ``checkpoints.sources.locate``
            says: ``.json`` with a list of texts, any other with one text a line.

    Returns:
        list[str]: As they are written.

    Raises:
        ConfigError: A list is empty, holds something else than texts, an empty text, or one text twice.
        DataError: The same of a file, or it cannot be read.
        CheckpointError: The file is not there.
    """
    if not isinstance(source, (str, Path)):
        return _checked(list(source) if isinstance(source, (list, tuple)) else source, 'candidates', ConfigError)
    from mmblip2.checkpoints.sources import locate
    path = locate(source, 'file of the candidates')
    try:
        text = Path(path).read_text(encoding='utf-8-sig')
        content = json.loads(text) if path.suffix == '.json' else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f'the candidates cannot be read from {path} ({first_lines(error)}): expected a JSON list of '
                        'texts (.json), or a text file with one candidate a line') from error
    return _checked(content, f'the candidates in {path}', DataError)


def _checked(found, what: str, kind: type[MMBlip2Error]) -> list[str]:
    if not isinstance(found, list):
        raise kind(f'{what}: expected a list of texts, got a {type(found).__name__}')
    if not found:
        raise kind(f'{what} are empty: a model that ranks needs at least one answer to choose')
    for index, text in enumerate(found):
        if not isinstance(text, str) or not text.strip():
            raise kind(f'{what}: number {index} is {text!r}, expected a text with at least one word')
    first: dict[str, int] = {}
    for index, text in enumerate(found):
        if first.setdefault(text, index) != index:
            raise kind(f'{what}: {text!r} stands there twice, as number {first[text]} and {index}: take one out')
    return found


def tokenize_candidates(texts: list[str], tokenizer, max_length: int) -> TextBatch:
    """Ids of candidates, [DEC] first and [SEP] last.

    Args:
        texts: N candidates.
        tokenizer (BertTokenizer): Of the model.
        max_length: Most tokens.

    Returns:
        TextBatch: (N, T), on the CPU.

    Raises:
        ConfigError: The tokenizer does not know a word of a candidate.
    """
    batch = tokenizer(texts, max_length).begin_with(tokenizer.dec_id)
    unknown = tokenizer.tokenizer.unk_token_id
    blind = [text for text, row in zip(texts, batch.input_ids.tolist()) if unknown in row]
    if blind:
        raise ConfigError(f'the tokenizer does not know every word of {len(blind)} of the {len(texts)} candidates, the '
                          f'first is {blind[0]!r}: all unknown words are alike to the model. Take them out, or use the '
                          'tokenizer that the model was trained with')
    return batch
