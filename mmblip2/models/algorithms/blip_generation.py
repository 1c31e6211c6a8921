"""BLIP that writes: captioning and visual question answering (section 3.2 and 5).

Shapes: B samples, P patches, E vision width, S rows that the decoder reads, T text tokens, D width, V vocabulary,
A answers of a batch, N candidates, K of them that are ranked.
"""
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from mmblip2.errors import ConfigError, DataError
from mmblip2.registry import MODELS
from mmblip2.utils.dist import share_of_global

from ..heads import QUEUES, LMHead
from ..language.base import search_settings
from ..layers.attention import KeyValue
from ..med import MED
from ..med.search import search
from ..tokenizers import TextBatch
from .base import check_text_fits, select_kv, single_text
from .candidates import read_candidates, tokenize_candidates
from .text_generation import TextGeneration, shared_rows

_LOGIT_ROWS = 2048  # so many rows of V logits are in memory at a time where no gradient is needed


class DecoderContext:
    """What the decoder reads of B samples; an index, a list of them or a slice chooses samples.

    Args:
        kv (list[KeyValue]): Its cross-attention keys and values, an entry a layer.
        mask (Tensor, optional): (B, S), nonzero at the rows that are real; None: all are.
    """

    def __init__(self, kv: list[KeyValue | None], mask: torch.Tensor | None = None):
        self.kv = kv
        self.mask = mask

    def __len__(self) -> int:
        return next(len(layer.key) for layer in self.kv if layer is not None)

    def __getitem__(self, rows) -> 'DecoderContext':
        return DecoderContext(select_kv(self.kv, rows), self.mask[rows] if self.mask is not None else None)


@MODELS.register_module()
class BlipGeneration(TextGeneration):
    """A MED decoder writes what it sees: in the image, or, with a text encoder, in a question about the image.

    The samples carry the task. Without ``text_encoder`` the decoder reads the image and writes
    ``[DEC] prompt target [SEP]``, of which the prompt (may be empty) is no target. With it the encoder reads
    ``[ENC] prompt`` (the question) and the image, and the decoder reads the encoder's states and writes
    ``[DEC] target [SEP]``; ``targets``, where a sample has them, are several targets with their weights.

    Agrees with ``blip_decoder`` and ``blip_vqa`` of BLIP, and with ``BlipForConditionalGeneration`` and
    ``BlipForQuestionAnswering`` of transformers where nothing is padded: padding is never read here.

    Args:
        vision (nn.Module): Encoder, images to normalised tokens (B, P, E), with ``embed_dim``.
        text_decoder (MED): Its ``vision_width`` is E, or with a text encoder the width of that.
        tokenizer (BertTokenizer): With [ENC] (``enc_token=True``) if there is a text encoder.
        text_encoder (MED, optional): Reads the prompt and the image, for the decoder.
        candidates (Sequence[str] | str, optional): Answers, or a file of them (JSON list, or one a line): the best of
            them is predicted. None: answers are generated. Only with a text encoder.
        rank_topk (int): Candidates whose loss is computed: those whose first token is the most probable.
        max_text_len (int): Longest row of the decoder in training, [DEC] and [SEP] included; longer ones are cut.
        max_question_len (int): Most tokens that the text encoder reads, longer prompts are cut.
        label_smoothing (float): Of the loss, in training and for ranking.
        global_token_mean (bool): Divide the loss by the tokens (with a text encoder: the samples) of all processes;
            False by the own ones, as LAVIS.
        generation (dict, optional): Arguments of :meth:`write`.
        generation_batch_size (int, optional): Texts that are generated, or questions that are read and ranked, at a
            time; default: all of a batch. For large batches, in which the questions about an image meet.
        frozen (Sequence[str]): Parts that are not trained, of 'vision', 'text_encoder', 'text_decoder'.
        allow_random (bool): Accept frozen parts with random weights.
        data_preprocessor (dict, optional): Config of the data preprocessor.

    Raises:
        ConfigError: Widths, vocabulary or lengths do not fit together; there are candidates and no text encoder, or a
            list of them that :func:`read_candidates` refuses; a size is no positive number; what ``TextGeneration``
            refuses.
    """

    droppable: tuple[str, ...] = ('itc_head.*', 'itm_head.*', 'momentum.*', *QUEUES, 'num_steps')
    answering = dict(num_beams=3, max_new_tokens=9, min_new_tokens=None, length_penalty=1.)
    candidates: Sequence[str] | str | None = None
    text_encoder: MED | None

    def __init__(self, vision: nn.Module, text_decoder: MED, tokenizer, text_encoder: MED | None = None,
                 candidates: Sequence[str] | str | None = None, rank_topk: int = 128, max_text_len: int = 40,
                 max_question_len: int = 35, label_smoothing: float = 0.1, global_token_mean: bool = True,
                 generation: dict | None = None, generation_batch_size: int | None = None,
                 frozen: Sequence[str] = (), allow_random: bool = False, data_preprocessor: dict | None = None):
        parts: dict[str, nn.Module] = dict(vision=vision, text_decoder=text_decoder)
        check_text_fits(text_decoder, tokenizer, max_text_len, 'text_decoder')
        if rank_topk < 1:
            raise ConfigError(f'rank_topk is {rank_topk}, expected a positive number')
        if text_encoder is None:
            if candidates is not None:
                raise ConfigError('candidates are answers to questions, and there is no text_encoder to read these: '
                                  'set text_encoder, or leave candidates out')
        else:
            parts['text_encoder'] = text_encoder
            check_text_fits(text_encoder, tokenizer, max_question_len, 'text_encoder', needs_enc=True)
            if text_decoder.vision_width != text_encoder.width:
                raise ConfigError(f'text_decoder.vision_width is {text_decoder.vision_width}, but it reads the states '
                                  f'of the text encoder, which are {text_encoder.width} wide: set it to that')
        super().__init__(parts, 'text_decoder' if text_encoder is None else 'text_encoder', generation,
                         generation_batch_size, frozen, allow_random, data_preprocessor)
        self.lm_head = LMHead(text_decoder.width, len(text_decoder.word_embeddings.weight))
        self.tokenizer = tokenizer
        self.candidates = candidates if isinstance(candidates, str | None) else read_candidates(candidates)
        self.rank_topk = rank_topk
        self.max_text_len = max_text_len
        self.max_question_len = max_question_len
        self.label_smoothing = label_smoothing
        self.global_token_mean = global_token_mean
        self._answers: tuple[list[str], TextBatch] | None = None
        if text_encoder is None:
            self.text_encoder = None
            self.droppable = (*self.droppable, 'text_encoder.*')

    @property
    def text_reader(self) -> MED | None:
        """See ``VisionLanguageModel``: the decoder writes."""
        return self.text_encoder

    @property
    def question_template(self) -> str | None:  # type: ignore[override]
        """See ``TextGeneration``: the text encoder reads the question as it is."""
        return '{}' if self.text_encoder is not None else None

    @property
    def writer(self) -> Callable[..., list]:
        """See ``TextGeneration``."""
        return self.write if self.candidates is None else self._choose

    def generation_problems(self, settings: dict) -> dict:
        """See ``TextGeneration``."""
        if self.candidates is None:
            return super().generation_problems(settings)
        return {key: f'{key}={value!r} has no effect: this model chooses among its candidates; built with '
                     'candidates=None it generates' for key, value in settings.items()}

    def init_weights(self):
        """See ``VisionLanguageModel``; candidates that are wrong are said before the training, not after it."""
        super().init_weights()
        if self.candidates is not None:
            self.answers()

    # ---- what the decoder reads
    def visual_prefix(self, images: torch.Tensor, data_samples: Sequence) -> DecoderContext:
        """Images (B, 3, H, W), and the prompts if there is a text encoder, to what the decoder reads.

        Outside training an image that several samples share, by their ``img_path`` and its pixels, is encoded once.
        """
        prompts = [sample.prompt for sample in data_samples]
        shared = None if self.training else shared_rows(images, data_samples)
        if shared is None:
            return self.context_of(self.encode_image(images).image_kv, prompts)
        return self.context_of(self.encode_image(images[shared.first]).image_kv, prompts, shared.of_sample)

    def context_of(self, image_kv: list[KeyValue | None], prompts: Sequence[str],
                   rows: Sequence[int] | None = None) -> DecoderContext:
        """What the decoder reads of B prompts and their images.

        Args:
            image_kv: Of :meth:`encode_image`.
            prompts: B.
            rows: The row of ``image_kv`` of each prompt; None: the prompts are as many, in the same order.
        """
        if self.text_encoder is None:
            return DecoderContext(image_kv if rows is None else select_kv(image_kv, rows))
        text = self.tokenizer(list(prompts), self.max_question_len, self._device).begin_with(self.tokenizer.enc_id)
        images = range(len(DecoderContext(image_kv)))
        rows = images if rows is None else rows
        size = len(prompts) if self.training else self.generation_batch_size or len(prompts)
        states = []  # the keys and values of an image are large: no more copies of them than questions at a time
        for start in range(0, len(prompts), size):
            part = slice(start, start + size)
            kv = image_kv if list(rows[part]) == list(images) else select_kv(image_kv, rows[part])
            states.append(self.text_encoder.forward_joint(kv, *text.rows(part)))
        return DecoderContext(self.text_decoder.project_image(torch.cat(states)), text.mask)

    @property
    def _device(self) -> torch.device:
        return self.text_decoder.word_embeddings.weight.device

    # ---- training
    def loss(self, images: torch.Tensor, data_samples: Sequence) -> dict:
        """Next-token loss of the targets, given image and prompt.

        Without a text encoder the mean over all tokens; with it each target's sum over tokens times its weight, summed,
        by the number of samples.

        Args:
            images: float (B, 3, H, W).
            data_samples: With ``prompt`` and ``target``; with a text encoder ``targets`` comes before ``target``.

        Returns:
            dict: loss_lm.

        Raises:
            DataError: A sample has no target.
            ConfigError: No text of the batch has room for its target.
        """
        context = self.visual_prefix(images, data_samples)
        if self.text_encoder is not None:
            total, count = self._loss_of_answers(context, data_samples)
        else:
            total, count = self._loss_of_texts(context, data_samples)
        return dict(loss_lm=share_of_global(total, count) if self.global_token_mean else total / count)

    def _loss_of_texts(self, context, data_samples):
        """Sum over the tokens of all targets, and their number."""
        prompts = [sample.prompt.rstrip() for sample in data_samples]
        texts = [f'{prompt} {_target(sample).strip()}'.lstrip() for prompt, sample in zip(prompts, data_samples)]
        starts = self.tokenizer(prompts, self.text_decoder.max_positions, self._device).mask.sum(dim=1) - 1  # (B,)
        losses, _ = self._losses(context, self.tokenizer(texts, self.max_text_len, self._device), starts)
        if not len(losses):
            raise ConfigError(f'none of the {len(texts)} texts of a batch has room for its target: max_text_len is '
                              f'{self.max_text_len} tokens, prompt and target together, and the longest prompt has '
                              f'{int(starts.max())}: raise max_text_len, or shorten the prompts')
        return losses.sum(), torch.tensor(len(losses), device=losses.device)

    def _loss_of_answers(self, context, data_samples):
        """Weighted sum over the targets of all samples, and the number of samples."""
        pairs = [(i, target, weight) for i, sample in enumerate(data_samples)
                 for target, weight in (sample.get('targets') or {_target(sample): 1.}).items()]
        rows, targets, weights = map(list, zip(*pairs))
        losses, of_target = self._losses(context[rows], self.tokenizer(targets, self.max_text_len, self._device))
        total = (losses * torch.tensor(weights, device=losses.device)[of_target]).sum()
        return total, torch.tensor(len(data_samples), device=losses.device)

    def _losses(self, context, text: TextBatch, starts: torch.Tensor | None = None):
        """Loss of each target token (M,), of text (A, T) from ``starts`` (A,) on, and the row of text it is from (M,).
        """
        ids, mask = text.begin_with(self.tokenizer.dec_id)
        is_target = mask[:, 1:].bool()  # (A, T-1)
        if starts is not None:
            is_target = is_target & (torch.arange(1, ids.size(1), device=ids.device) >= starts[:, None])
        states, _ = self.text_decoder.forward_causal(ids[:, :-1], mask[:, :-1], context.kv, context.mask)
        return self._token_losses(states[is_target], ids[:, 1:][is_target]), is_target.nonzero()[:, 0]

    def _token_losses(self, states, labels):
        """Loss of each of the labels (M,) given the decoder's states (M, D)."""
        size = max(len(labels), 1) if torch.is_grad_enabled() else _LOGIT_ROWS
        return torch.cat([
            F.cross_entropy(self._logits(part), wanted, reduction='none', label_smoothing=self.label_smoothing)
            for part, wanted in zip(states.split(size), labels.split(size))])

    def _logits(self, states):
        """(..., D) to (..., V), float32."""
        return self.lm_head(states, self.text_decoder.word_embeddings.weight).float()

    # ---- generation
    def write(self, prefix: DecoderContext, prompts: Sequence[str], max_new_tokens: int = 30, num_beams: int = 1,
              min_new_tokens: int | None = None, length_penalty: float = 1.0, num_return_sequences: int = 1,
              **kwargs) -> list:
        """Texts that the decoder writes; see ``LanguageModel.generate``.

        Prompts of different lengths are continued one length after the other, so nothing is padded and each text is
        what it would be alone.

        Differs from BLIP: new tokens are counted, without [DEC] and prompt (of its lengths of 5 to 20 the prompt 'a
        picture of' leaves 1 to 16), and a beam's score is divided by the length without these, as transformers does.

        Args:
            prefix: What is read of B samples.
            prompts: B; with a text encoder they were read by it, and the decoder begins with [DEC] alone.
            max_new_tokens, num_beams, min_new_tokens, length_penalty, num_return_sequences, **kwargs: See there.

        Returns:
            list[str] | list[list[str]]: See there.

        Raises:
            ConfigError: Prompt and new tokens exceed the decoder's positions; more texts than beams without sampling.
        """
        tokenizer, limit = self.tokenizer, self.text_decoder.max_positions
        count = num_return_sequences or 1
        settings = search_settings(tokenizer.sep_id, tokenizer.pad_id, max_new_tokens, num_beams, min_new_tokens,
                                   length_penalty, count, kwargs)
        prompts = [''] * len(prompts) if self.text_encoder is not None else [prompt.rstrip() for prompt in prompts]
        text = tokenizer(prompts, limit + 2, self._device).begin_with(tokenizer.dec_id)
        lengths = (text.mask.sum(dim=1) - 1).tolist()  # without [SEP]
        if max(lengths, default=0) + (max_new_tokens or 0) > limit:
            raise ConfigError(f'prompt and new tokens make {max(lengths) + max_new_tokens} tokens, but the decoder has '
                              f'{limit} positions: shorten the prompt or lower max_new_tokens')
        texts: list = [None] * len(prompts)
        for length in sorted(set(lengths)):
            rows = [i for i, other in enumerate(lengths) if other == length]
            context = prefix if len(rows) == len(prompts) else prefix[rows]
            found = search(self.text_decoder, self.lm_head, text.input_ids[rows, :length], context.kv, context.mask,
                           **settings).tolist()
            for i, row in enumerate(rows):
                written = [self._decode(ids, length) for ids in found[i * count:(i + 1) * count]]
                texts[row] = written[0] if count == 1 else written
        return texts

    def _decode(self, ids: list[int], first: int) -> str:
        """The text of ids from ``first`` to [SEP]."""
        def decode(part):
            return self.tokenizer.tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=True)
        end = ids.index(self.tokenizer.sep_id, first) if self.tokenizer.sep_id in ids[first:] else len(ids)
        whole, prompt = decode(ids[:end]), decode(ids[:first])  # of the new ids alone, '##s' would stay as it is
        return (whole[len(prompt):] if whole.startswith(prompt) else decode(ids[first:end])).strip()

    # ---- ranking
    def answers(self) -> tuple[list[str], TextBatch]:
        """The candidates, and their ids, [DEC] first.

        Raises:
            ConfigError, DataError, CheckpointError: See :func:`read_candidates` and :func:`tokenize_candidates`.
        """
        if self._answers is None:
            texts = read_candidates(self.candidates)
            self._answers = texts, tokenize_candidates(texts, self.tokenizer, self.max_text_len)
        return self._answers

    @torch.no_grad()
    def rank(self, context: DecoderContext) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses of the candidates whose first token is the most probable (``rank_topk`` of N).

        [DEC] is read once a sample, not once a candidate, and of the candidates only what follows it.

        Args:
            context: What is read of B samples.

        Returns:
            tuple: int64 (B, K), places in the list of candidates; and float32 (B, K), their losses in nats, summed over
            tokens and [SEP], the least for the best.
        """
        ids, mask = (part.to(self._device) for part in self.answers()[1])  # (N, T)
        rows, topk = len(context), min(self.rank_topk, len(ids))
        start = ids.new_full((rows, 1), self.tokenizer.dec_id)
        states, past = self.text_decoder.forward_causal(start, torch.ones_like(start), context.kv, context.mask)
        log_probs = self._logits(states)[:, 0].log_softmax(dim=1)  # (B, V)
        of_first = log_probs[:, ids[:, 1]]  # (B, N)
        chosen = of_first.sort(dim=1, descending=True, stable=True).indices[:, :topk]  # (B, K)
        smoothing = self.label_smoothing
        loss = -(1 - smoothing) * of_first.gather(1, chosen) - smoothing * log_probs.mean(dim=1, keepdim=True)

        text = TextBatch(ids[chosen.flatten()], mask[chosen.flatten()]).trimmed(self._device)  # (B*K, T)
        past = [layer.rows(torch.arange(rows, device=self._device).repeat_interleave(topk)) for layer in past]
        states, _ = self.text_decoder.forward_causal(  # the keys of a sample are shared by its K candidates
            text.input_ids[:, 1:-1], text.mask[:, :-1], context.kv, context.mask, past)
        is_target = text.mask[:, 2:].bool()  # (B*K, T-2)
        losses = self._token_losses(states[is_target], text.input_ids[:, 2:][is_target])
        return chosen, loss.flatten().index_add(0, is_target.nonzero()[:, 0], losses).view(rows, topk)

    def _choose(self, prefix: DecoderContext, prompts: Sequence[str], **settings) -> list[str]:
        """The best candidates, in the place of :meth:`write`."""
        if (settings.get('num_return_sequences') or 1) > 1:
            raise ConfigError(f'num_return_sequences is {settings["num_return_sequences"]}, but a model that chooses '
                              'among candidates gives one answer: leave it out, or build it with candidates=None')
        texts, _ = self.answers()
        chosen, losses = self.rank(prefix)
        return [texts[i] for i in chosen.gather(1, losses.argmin(dim=1, keepdim=True))[:, 0].tolist()]


def _target(sample) -> str:
    """The target of a training sample.

    Raises:
        DataError: It has none, or several.
    """
    if 'target' not in sample:
        raise DataError('a training sample has no target: the pipeline needs CaptionPrompt or VQAPrompt, and the data '
                        'captions or answers')
    return single_text(sample, 'target')
