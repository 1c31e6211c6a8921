"""Text transforms: cleaning as LAVIS does it, and the prompts that turn a task into data."""
import re
from collections import Counter
from collections.abc import Callable

from mmblip2.errors import ConfigError, DataError
from mmblip2.registry import TRANSFORMS

_REMOVED = re.compile(r'[.!"()*#:;~]')  # hyphen, comma, question mark and apostrophe stay
_SPACES = re.compile(r'\s{2,}')
_KEPT = re.compile(r'[^\s.!"()*#:;~]')


def is_empty(text):
    """Whether cleaning leaves nothing of ``text``."""
    return _KEPT.search(text) is None


def clean_caption(text, max_words=50):
    """Lower case, ``.!"()*#:;~`` become spaces, runs of white space one space, at most ``max_words`` words.

    Agrees with LAVIS's ``BlipCaptionProcessor``.
    """
    text = _SPACES.sub(' ', _REMOVED.sub(' ', text.lower())).rstrip('\n').strip(' ')
    return ' '.join(text.split(' ')[:max_words])


def clean_question(text, max_words=50):
    """Lower case, ``.!"()*#:;~`` removed (not replaced), at most ``max_words`` words.

    Agrees with LAVIS's ``BlipQuestionProcessor``.
    """
    return ' '.join(_REMOVED.sub('', text.lower()).rstrip(' ').split(' ')[:max_words])


class _Clean:
    """Apply a cleaning function to texts, or to lists of texts, of the results dict."""
    clean: Callable[[str, int], str]
    of_image = False

    def __init__(self, keys, max_words):
        self.keys = tuple(keys)
        self.max_words = max_words

    def __call__(self, results):
        for key in self.keys:
            if isinstance(results.get(key), str):
                results[key] = type(self).clean(results[key], self.max_words)
            elif key in results:
                results[key] = [type(self).clean(text, self.max_words) for text in results[key]]
        return results


@TRANSFORMS.register_module()
class CleanCaption(_Clean):
    """Clean captions with ``clean_caption``; references of the caption metric (``gt_caption``) stay raw.

    Args:
        keys (Sequence[str]): Keys of texts or lists of texts; absent ones are skipped.
        max_words (int): Words kept.
    """
    clean = staticmethod(clean_caption)

    def __init__(self, keys=('caption', 'text', 'texts'), max_words=50):
        super().__init__(keys, max_words)


@TRANSFORMS.register_module()
class CleanQuestion(_Clean):
    """Clean questions with ``clean_question``.

    Args:
        keys (Sequence[str]): Keys of texts; absent ones are skipped.
        max_words (int): Words kept.
    """
    clean = staticmethod(clean_question)

    def __init__(self, keys=('question', ), max_words=50):
        super().__init__(keys, max_words)


@TRANSFORMS.register_module()
class CaptionPrompt:
    """Captioning as data: ``prompt`` is fixed, ``target`` is the caption, or the list of several, where there is one.

    Args:
        prompt (str): The same for all images; '' for none.
        qformer_text (str, optional): Text that the Q-Former reads beside its queries; for InstructBLIP the prompt.
    """

    of_image = False

    def __init__(self, prompt='a photo of', qformer_text=None):
        self.prompt = prompt
        self.qformer_text = qformer_text

    def __call__(self, results):
        results['prompt'] = self.prompt
        if self.qformer_text is not None:
            results['qformer_text'] = self.qformer_text
        if 'caption' in results:
            results['target'] = results['caption']
        return results


@TRANSFORMS.register_module()
class PrefixSplit:
    """Prefix language modeling as data (BLIP-2, section 3.3), for stage 2 with an encoder-decoder.

    The first words of the caption become ``prompt``, which the encoder reads, the others ``target``. The number of
    first words is drawn uniformly from 1 to half of the words (rounded down) with ``results['rng']``, so it depends
    on nothing but the seed and the position of the draw. A caption of one word has no prompt. LAVIS never published
    its split; its authors describe this one.

    Raises:
        ConfigError: There are no random numbers, as in pipelines for single images.
        DataError: There is no caption, or a list of several.
    """

    of_image = False

    def __call__(self, results):
        if 'rng' not in results:
            raise ConfigError("PrefixSplit needs random numbers in results['rng'], which the data sets put there: use "
                              'CaptionPrompt in pipelines for single images')
        if 'caption' not in results:
            raise DataError(f'PrefixSplit needs a training caption, the sample has only {sorted(results)}: use '
                            'CaptionPrompt for evaluation')
        if not isinstance(results['caption'], str):
            raise DataError('PrefixSplit splits one caption, the sample has several: take captions_per_image out of '
                            'the data set, or use CaptionPrompt')
        words = results['caption'].split()
        middle = len(words) // 2
        split = int(results['rng'].integers(1, middle + 1)) if middle else 0
        results['prompt'], results['target'] = ' '.join(words[:split]), ' '.join(words[split:])
        return results


@TRANSFORMS.register_module()
class VQAPrompt:
    """Question answering as data: ``prompt`` from the question, ``target`` from the human answers.

    The target is drawn from the answers with ``results['rng']``, so an answer counts as often as people gave
    it; without random numbers it is the most frequent one. Without answers there is no target.

    Args:
        template (str): Prompt with ``{}`` for the question; ``'{}'`` for BLIP, whose text encoder reads it.
        qformer_text (str, optional): Text with ``{}`` that the Q-Former reads beside its queries.
        every_answer (bool): Also ``targets``: every different answer, with the share of people who gave it as its
            weight (BLIP; of ten answers in VQAv2 a count of 3 is 0.3), times ``answer_weight`` of the data set.

    Raises:
        ConfigError: A template does not have exactly one ``{}``.
    """

    of_image = False

    def __init__(self, template='Question: {} Answer:', qformer_text='{}', every_answer=False):
        for name, value in (('template', template), ('qformer_text', qformer_text)):
            if value is not None and value.count('{}') != 1:
                raise ConfigError(
                    f'{name} of VQAPrompt needs exactly one {{}} for the question, got {value!r}')
        self.template = template
        self.qformer_text = qformer_text
        self.every_answer = every_answer

    def __call__(self, results):
        if 'question' not in results:
            raise DataError(f'VQAPrompt needs a question, the sample has only {sorted(results)}')
        results['prompt'] = self.template.replace('{}', results['question'])
        if self.qformer_text is not None:
            results['qformer_text'] = self.qformer_text.replace('{}', results['question'])
        answers = [answer for answer in results.get('gt_answer', ()) if answer.strip()]
        if answers and 'rng' in results:
            results['target'] = answers[int(results['rng'].integers(len(answers)))]
        elif answers:
            results['target'] = Counter(answers).most_common(1)[0][0]
        if answers and self.every_answer:
            whole = results.get('answer_weight', 1.)
            results['targets'] = {answer: whole * count / len(results['gt_answer'])
                                  for answer, count in Counter(answers).items()}
        return results
