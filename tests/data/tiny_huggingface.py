"""Tiny models of transformers' BLIP-2 and InstructBLIP for parity tests: sizes, tokenizers, weights, photographs."""
import os

import numpy as np
import torch
from PIL import Image, ImageDraw

NUM_QUERY, SIDE = 5, 28
VISION = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=SIDE,
              patch_size=7, initializer_range=0.02)
QFORMER = dict(hidden_size=40, num_hidden_layers=4, num_attention_heads=4, intermediate_size=56,
               max_position_embeddings=32)
LANGUAGE = dict(
    opt=dict(model_type='opt', hidden_size=24, word_embed_proj_dim=24, num_hidden_layers=2, num_attention_heads=2,
             ffn_dim=48, max_position_embeddings=128, bos_token_id=2, eos_token_id=2, pad_token_id=1),
    llama=dict(model_type='llama', hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
               num_key_value_heads=2, intermediate_size=48, max_position_embeddings=128, bos_token_id=0,
               eos_token_id=2, pad_token_id=1),
    t5=dict(model_type='t5', d_model=24, d_kv=8, d_ff=48, num_layers=2, num_heads=2, feed_forward_proj='gated-gelu',
            tie_word_embeddings=False, decoder_start_token_id=0, eos_token_id=1, pad_token_id=0))
TEXTS = ['a small red circle left of a star', 'two green stars', 'what color is the star?']
PROMPTS = ['a photo of', 'Question: what color is the star? Answer:', 'there are']
TARGETS = ['a small red circle', 'green', 'three objects above one cross']


def write_tokenizers(root):
    """Tokenizer folders by name below ``root``, not trained, because trainers break ties by chance: BERT's and T5's of
    words, OPT's and Llama's of bytes. OPT's puts </s> first, Llama's <s>; T5's adds </s> at the end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import BertTokenizerFast, PreTrainedTokenizerFast
    folders = {name: f'{root}/{name}' for name in ('bert', 'opt', 'llama', 't5')}
    os.makedirs(folders['bert'])
    words = sorted({word for text in TEXTS + PROMPTS + TARGETS for word in text.replace('?', ' ?').split()})

    with open(f'{folders["bert"]}/vocab.txt', 'w') as file:
        file.write('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'] + words))
    BertTokenizerFast.from_pretrained(folders['bert']).save_pretrained(folders['bert'])

    specials = dict(pad_token='<pad>', eos_token='</s>', unk_token='<unk>')
    tokens = ['<s>', '<pad>', '</s>', '<unk>'] + sorted(pre_tokenizers.ByteLevel.alphabet())
    for name, start in (('opt', '</s>'), ('llama', '<s>')):
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f'{start} $A', special_tokens=[(start, tokens.index(start))])
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=start,
                                **specials).save_pretrained(folders[name])

    scores = [('<pad>', 0.), ('</s>', 0.), ('<unk>', 0.)] + [(f'\u2581{word}', -2.) for word in words] + [('?', -2.)]
    tokenizer = Tokenizer(models.Unigram(scores, 2))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single='$A </s>', special_tokens=[('</s>', 1)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials).save_pretrained(folders['t5'])
    return folders


@torch.no_grad()
def redraw(model, seed):
    """New weights, none of them zero, one or tiny."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        is_norm = 'norm' in name.lower() and name.endswith('weight')
        std = 1. if 'embedding' in name or name == 'language_projection.weight' else 0.2
        std = 0.05 if name.endswith('.q.weight') else std  # T5 does not divide its attention scores by sqrt(d)
        parameter.normal_(std=std, generator=generator).add_(float(is_norm))
    return model.eval()


def write_photos(root):
    """Paths of three JPEG files of other sizes and shapes than the model's: gradients, shapes and noise."""
    paths = []
    for number, (width, height) in enumerate([(61, 47), (40, 90), (133, 75)]):
        rng = np.random.default_rng(number)
        across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
        pixels = np.stack([across, down, 255 - across], axis=-1)[..., rng.permutation(3)]
        pixels = np.clip(pixels + rng.normal(0, 25, pixels.shape), 0, 255).astype(np.uint8)
        image = Image.fromarray(pixels)
        draw = ImageDraw.Draw(image)
        for _ in range(4):
            x, y = rng.integers(0, width - 12), rng.integers(0, height - 12)
            colour = tuple(int(value) for value in rng.integers(0, 256, 3))
            (draw.ellipse if rng.random() < 0.5 else draw.rectangle)((x, y, x + 20, y + 14), fill=colour)
        paths.append(f'{root}/photo{number}.jpg')
        image.save(paths[-1], quality=85)
    return paths
