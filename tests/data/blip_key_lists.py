"""What BLIP checkpoints of other projects hold, written out from the descriptions of their files and not from our key
maps; see ``key_lists``.

Sizes default to those of the base models; ``LARGE`` are those of the large ones.
"""
from key_lists import linear, norm

BASE = dict(vision=768, depth=12, vision_mlp=3072, image=384, patch=16, width=768, layers=12, mlp=3072, vocab=30524,
            positions=512, contrast=256, queue=57600)
LARGE = dict(BASE, vision=1024, depth=24, vision_mlp=4096)
SMALL = dict(BASE, vision=16, depth=2, vision_mlp=24, image=32, width=12, layers=8, mlp=20, vocab=50, positions=130,
             contrast=6, queue=8)
# names inside the vision encoder: patches, blocks, what is in a block, the norm at the end
TIMM = ('patch_embed.proj', 'blocks', ('norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2'), 'norm')
OPENMMLAB = ('patch_embed.projection', 'layers',
             ('ln1', 'attn.qkv', 'attn.proj', 'ln2', 'ffn.layers.0.0', 'ffn.layers.1'), 'ln1')


def vision(prefix, names, vision, depth, vision_mlp, image, patch, **_):
    """A ViT with a bias of queries, keys and values, and a norm at the end."""
    patches, blocks, (norm1, qkv, proj, norm2, fc1, fc2), end = names
    keys = {f'{prefix}.cls_token': (1, 1, vision), f'{prefix}.pos_embed': (1, (image // patch)**2 + 1, vision),
            f'{prefix}.{patches}.weight': (vision, 3, patch, patch), f'{prefix}.{patches}.bias': (vision, ),
            **norm(f'{prefix}.{end}', vision)}
    for i in range(depth):
        block = f'{prefix}.{blocks}.{i}'
        keys |= {**norm(f'{block}.{norm1}', vision), **norm(f'{block}.{norm2}', vision),
                 **linear(f'{block}.{qkv}', 3 * vision, vision), **linear(f'{block}.{proj}', vision, vision),
                 **linear(f'{block}.{fc1}', vision_mlp, vision), **linear(f'{block}.{fc2}', vision, vision_mlp)}
    return keys


def med(prefix, vision, width, layers, mlp, vocab, positions, twin=False, seen=None, **_):
    """A BERT with cross-attention in every layer; ``twin``: for two images, merged from layer 6 on; ``seen``: width of
    what the cross-attention reads, if it is not an image."""
    seen = seen or vision
    keys = {f'{prefix}.embeddings.position_ids': (1, positions),
            f'{prefix}.embeddings.word_embeddings.weight': (vocab, width),
            f'{prefix}.embeddings.position_embeddings.weight': (positions, width),
            **norm(f'{prefix}.embeddings.LayerNorm', width)}
    for i in range(layers):
        layer = f'{prefix}.encoder.layer.{i}'
        for name, read in (('attention', width), ('crossattention', seen)):
            ends = ('0', '1') if twin and name == 'crossattention' else ('', )
            for end in ends:
                keys |= {**linear(f'{layer}.{name}.self{end}.query', width, width),
                         **linear(f'{layer}.{name}.self{end}.key', width, read),
                         **linear(f'{layer}.{name}.self{end}.value', width, read),
                         **linear(f'{layer}.{name}.output.dense{end}', width, width)}
            keys |= norm(f'{layer}.{name}.output.LayerNorm', width)
        if twin and i >= 6:
            keys |= linear(f'{layer}.crossattention.output.merge_layer', width, 2 * width)
        keys |= {**linear(f'{layer}.intermediate.dense', mlp, width), **linear(f'{layer}.output.dense', width, mlp),
                 **norm(f'{layer}.output.LayerNorm', width)}
    return keys


def decoder(prefix, width, vocab, **sizes):
    """The BERT that writes, with its head."""
    head = f'{prefix}.cls.predictions'
    return {**med(f'{prefix}.bert', width=width, vocab=vocab, **sizes), f'{head}.bias': (vocab, ),
            **linear(f'{head}.transform.dense', width, width), **norm(f'{head}.transform.LayerNorm', width),
            **linear(f'{head}.decoder', vocab, width)}


def salesforce(kind, pointer='queue_ptr', **changed):
    """The original repository, and LAVIS. ``kind``: 'caption', 'VQA', 'retrieval', 'pre-training', 'ITM', 'NLVR2'."""
    sizes = {**BASE, **changed}
    eye, width, contrast, queue = sizes['vision'], sizes['width'], sizes['contrast'], sizes['queue']
    keys = vision('visual_encoder', TIMM, **sizes)
    if kind == 'NLVR2':
        return keys | {**med('text_encoder', twin=True, **sizes), **linear('cls_head.0', width, width),
                       **linear('cls_head.2', 2, width)}
    if kind != 'caption':
        keys |= med('text_encoder', **sizes)
    if kind in ('caption', 'VQA', 'pre-training'):
        # of VQA it reads the states of the question
        keys |= decoder('text_decoder', **sizes, **(dict(seen=width) if kind == 'VQA' else {}))
    if kind in ('caption', 'VQA'):
        return keys
    keys |= {**linear('vision_proj', contrast, eye), **linear('text_proj', contrast, width),
             **linear('itm_head', 2, width)}
    if kind == 'ITM':
        return keys
    keys |= {**vision('visual_encoder_m', TIMM, **sizes), **med('text_encoder_m', **sizes),
             **linear('vision_proj_m', contrast, eye), **linear('text_proj_m', contrast, width), 'temp': (),
             'image_queue': (contrast, queue), 'text_queue': (contrast, queue), pointer: (1, )}
    return keys | ({'idx_queue': (1, queue)} if kind == 'retrieval' else {})


def openmmlab(kind, **changed):
    """mmpretrain. ``kind``: 'caption', 'VQA', 'retrieval', 'NLVR2'."""
    sizes = {**BASE, **changed}
    eye, width, contrast, queue = sizes['vision'], sizes['width'], sizes['contrast'], sizes['queue']
    if kind == 'caption':
        return vision('visual_encoder', OPENMMLAB, **sizes) | decoder('seq_gen_head.decoder', **sizes)
    keys = vision('vision_backbone', OPENMMLAB, **sizes)
    if kind == 'VQA':
        return keys | med('multimodal_backbone', **sizes) | decoder('vqa_head.decoder', seen=width, **sizes)
    if kind == 'NLVR2':
        return keys | {**med('multimodal_backbone', twin=True, **sizes), **linear('head.0', width, width),
                       **linear('head.2', 2, width)}
    return keys | {
        **vision('vision_backbone_m', OPENMMLAB, **sizes), **med('text_backbone', **sizes),
        **med('text_backbone_m', **sizes), 'temp': (), 'head.temp': (),
        **{name: shape for end in ('', '_m') for name, shape in {
            **linear(f'vision_neck{end}', contrast, eye), **linear(f'text_neck{end}', contrast, width)}.items()},
        **linear('multimodal_head.fc', 2, width), 'head.image_queue': (contrast, queue),
        'head.text_queue': (contrast, queue), 'head.idx_queue': (1, queue), 'head.queue_ptr': (1, )}
