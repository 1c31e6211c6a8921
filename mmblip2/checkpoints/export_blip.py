"""What a folder of transformers' BLIP holds beside the weights; see ``export.py``."""
import torch

from ..models.tokenizers import BertTokenizer
from .blip import kind_of

_NO_CLASS = {'NLVR2': 'two images', 'features': 'features alone'}


def problems(model) -> list[str]:
    """Why transformers has no class for a BLIP; none if it has one."""
    from ..models import MED, VisionTransformer
    found = []
    kind = kind_of(model.state_dict())
    if kind in _NO_CLASS:
        return [f'model is a {type(model).__name__}, a BLIP for {_NO_CLASS[kind]}']
    vision = model.vision
    if type(vision) is not VisionTransformer:
        return [f'model.vision is a {type(vision).__name__}; its vision encoder can only be our VisionTransformer']
    if not isinstance(vision.pre_norm, torch.nn.Identity):
        found.append('model.vision.pre_norm is True; its vision encoder has no norm before the first block')
    if isinstance(vision.norm, torch.nn.Identity):
        found.append('model.vision.final_norm is False; its vision encoder has a norm after the last block')
    if vision.patch_embed.bias is None:
        found.append('model.vision.patch_bias is False; its patch embedding has a bias')
    towers = _towers(model)
    for name, tower in towers.items():
        if type(tower) is not MED:
            found.append(f'model.{name} is a {type(tower).__name__}, expected a MED')
        elif tower.vision_width != vision.embed_dim:
            found.append(f'model.{name}.vision_width is {tower.vision_width} and the vision encoder {vision.embed_dim} '
                         'wide; its BERTs all read rows of the latter width')
    if not found and len({str(_text_config(tower)) for tower in towers.values()}) > 1:
        found.append('text_encoder and text_decoder have other sizes; it has one text_config for both')
    return found


def _towers(model):
    return {name: getattr(model, name) for name in ('text_encoder', 'text_decoder')
            if getattr(model, name, None) is not None}


def _text_config(tower):
    layer = tower.layers[0]
    return dict(
        model_type='blip_text_model', vocab_size=tower.vocab_size, hidden_size=tower.width,
        num_hidden_layers=len(tower.layers), num_attention_heads=layer.attention.num_heads,
        intermediate_size=layer.mlp.fc1.out_features, hidden_act='gelu', hidden_dropout_prob=tower.dropout.p,
        attention_probs_dropout_prob=tower.dropout.p, max_position_embeddings=tower.max_positions,
        layer_norm_eps=tower.embedding_norm.eps, encoder_hidden_size=tower.vision_width, projection_dim=768,
        initializer_range=0.02, is_decoder=True, use_cache=True)


def files(cfg, model, kind, notes) -> tuple[dict[str, dict], dict]:
    """Json files by name, and tokenizers by folder.

    Args:
        cfg (Config): Of the model.
        model (nn.Module): On the meta device.
        kind (str): Class of transformers.
        notes (list): Gets what the user should know.
    """
    tokenizer = BertTokenizer(cfg.model.tokenizer.path, enc_token=True)
    ids = dict(bos_token_id=tokenizer.dec_id, eos_token_id=tokenizer.sep_id, pad_token_id=tokenizer.pad_id)
    vision, block = model.vision, model.vision.blocks[0]
    smoothing = float(getattr(model, 'label_smoothing', 0.))
    text = _text_config(next(iter(_towers(model).values())))
    config: dict = dict(
        architectures=[kind], model_type='blip', projection_dim=512, initializer_factor=1.0, initializer_range=0.02,
        logit_scale_init_value=2.6592, label_smoothing=smoothing, tie_word_embeddings=True,
        image_text_hidden_size=model.itc_head.vision_proj.out_features if hasattr(model, 'itc_head') else 256,
        vision_config=dict(
            model_type='blip_vision_model', hidden_size=vision.embed_dim, num_hidden_layers=len(vision.blocks),
            num_attention_heads=block.attn.num_heads, intermediate_size=block.mlp.fc1.out_features,
            image_size=vision.image_size, patch_size=vision.patch_embed.kernel_size[0],
            hidden_act=block.mlp.activation.__name__, layer_norm_eps=block.norm1.eps, attention_dropout=0.0,
            projection_dim=512, initializer_range=0.02),
        text_config=dict(text, **ids, sep_token_id=tokenizer.sep_id, label_smoothing=smoothing))
    processor = dict(processor_class='BlipProcessor')
    result = {'config.json': config, 'preprocessor_config.json': dict(processor),
              'processor_config.json': dict(processor)}
    if getattr(model, 'generation', None):
        said = ', '.join(f'{key}={value!r}' for key, value in model.generation.items())
        notes.append(f"generate of transformers' BLIP does not read generation_config.json: call it with {said}")
    if hasattr(model, 'generation'):
        result['generation_config.json'] = dict(model.generation, **ids)
    return result, {'.': tokenizer.tokenizer}
