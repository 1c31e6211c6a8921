"""Score a file of predictions, without a model.

    python tools/analysis_tools/eval_metric.py predictions.json                          # of tools/test.py --dump
    python tools/analysis_tools/eval_metric.py work_dirs/X/predictions/retrieval.json
    python tools/analysis_tools/eval_metric.py captions.json --ann-file captions_val2014.json
    python tools/analysis_tools/eval_metric.py answers.json --ann-file v2_mscoco_val2014_annotations.json
    python tools/analysis_tools/eval_metric.py answers.json --ann-file vqa_val.json --options variant=pre2021
    python tools/analysis_tools/eval_metric.py gqa.json --ann-file testdev_balanced_questions.json \\
        --options variant=normalised                                                     # as the config's metric has it
    python tools/analysis_tools/eval_metric.py work_dirs/X/predictions/nlvr.json --ann-file dev.json
    python tools/analysis_tools/eval_metric.py answers.json --check vqa --split test

The format is recognised: records of tools/test.py --dump (.json, with the references inside), the COCO result format,
the VQA server's, GQA's and A-OKVQA's (scored by their own metrics), NLVR2's, retrieval.json of our retrieval loops.
"""
import argparse
import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.errors import ConfigError, DataError
from mmblip2.utils import cli

FORMATS = ('[{"image_id", "caption"}] (COCO), [{"question_id", "answer"}] (VQA), [{"questionId", "prediction"}] (GQA), '
           '{question id: {"direct_answer"}} (A-OKVQA), [{"identifier", "prediction"}] (NLVR2), '
           'the records of tools/test.py --dump, or retrieval.json')


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('predictions', help='file of predictions (.json)')
    parser.add_argument('--ann-file', help='references: a COCO or Karpathy caption file, official annotations of '
                        'VQA, GQA, A-OKVQA, TextVQA or NLVR2, or a LAVIS list; not needed where the predictions have '
                        'them')
    parser.add_argument('--metric', help='metric of the registry, e.g. TextVQAMetric; default: as the format says; '
                        'COCOCaptionMetric or VQAMetric for records')
    parser.add_argument('--options', nargs='+', default=[], metavar='KEY=VALUE', help='arguments of the metric, e.g. '
                        "variant=pre2021 or metrics=['CIDEr']")
    parser.add_argument('--subset', action='store_true', help='score what is predicted; default: references without a '
                        'prediction are an error')
    parser.add_argument('--check', choices=['vqa', 'coco', 'nocaps'], help='check the format for this server instead')
    parser.add_argument('--split', choices=['val', 'test'], help='with --check: the number of predictions, too; '
                        'else the split of a caption file of Karpathy')
    parser.add_argument('--out', help='JSON file for the metrics')
    args = parser.parse_args(argv)
    if args.split and not args.check and not args.ann_file:
        parser.error('--split belongs to --check or to a caption file of Karpathy')
    return args


def read(path):
    """Content of a JSON file.

    Raises:
        DataError: Not there, or no JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except OSError as error:
        raise DataError(f'cannot read {path}: {error.strerror}') from error
    except ValueError as error:
        raise DataError(f'{path} is not JSON ({error}): expected {FORMATS}') from error


def recognise(content, path):
    """What a file of predictions is.

    Returns:
        tuple: 'retrieval', 'dump', 'coco', 'nlvr' or 'vqa'; the predictions, those of GQA and A-OKVQA as for VQA; the
        metric.

    Raises:
        DataError: None of the formats.
    """
    if isinstance(content, dict) and 'i2t' in content and 't2i' in content:
        return 'retrieval', content, None
    if isinstance(content, dict) and content and all(
            isinstance(row, dict) and 'direct_answer' in row for row in content.values()):
        return 'vqa', [dict(question_id=name, answer=row['direct_answer']) for name, row in content.items()
                       ], 'AOKVQAMetric'
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        for kind, metric, keys in (('dump', 'COCOCaptionMetric', {'sample_idx', 'pred_text', 'gt_caption'}),
                                   ('dump', 'VQAMetric', {'sample_idx', 'pred_text'}),
                                   ('dump', 'NLVRAccuracy', {'sample_idx', 'pred_label'}),
                                   ('nlvr', 'NLVRAccuracy', {'identifier', 'prediction'}),
                                   ('coco', 'COCOCaptionMetric', {'image_id', 'caption'}),
                                   ('vqa', 'VQAMetric', {'question_id', 'answer'}),
                                   ('vqa', 'GQAMetric', {'questionId', 'prediction'})):
            if all(keys <= set(row) for row in content):
                if metric == 'GQAMetric':
                    content = [dict(question_id=row['questionId'], answer=row['prediction']) for row in content]
                return kind, content, metric
    raise DataError(f'{path} has none of the known formats: expected {FORMATS}')


def recall(content, topk):
    """Metrics of a retrieval.json, by its ranks."""
    from mmblip2.evaluation.functional import Ranks, recall_from_ranks
    if 'ranks' not in content:
        raise DataError('this retrieval.json is of an earlier version and has no ranks: run tools/test.py again')
    metrics = {}
    for name, ranks in content['ranks'].items():
        found = recall_from_ranks(Ranks(*ranks), topk)
        metrics.update({f'{name}/Recall@{k}': value for k, value in found.items()})
        metrics[f'{name}/Recall@mean'] = sum(found.values()) / len(found)
    return metrics


def samples_of(rows, kind, ann_file, subset, split):
    """Data samples as dicts, from predictions and references.

    Raises:
        ConfigError: References are needed.
        DataError: Ids repeat, or do not agree with those of the references.
    """
    if kind == 'dump':
        if ann_file:
            raise ConfigError('these predictions have their references inside: leave --ann-file out')
        return records_of(rows, subset)
    if not ann_file:
        raise ConfigError('predictions in this format have no references: give --ann-file')
    if split and kind != 'coco':
        raise ConfigError('--split chooses captions of a file of Karpathy: leave it out for answers')
    key, text = dict(coco=('image_id', 'caption'), nlvr=('identifier', 'prediction')).get(
        kind, ('question_id', 'answer'))
    references = (captions_of(ann_file, split) if kind == 'coco' else labels_of(ann_file) if kind == 'nlvr' else
                  answers_of(ann_file))
    refuse_repeated(str(row[key]) for row in rows)
    wrong = [row for row in rows if not isinstance(row[text], str)]
    if wrong:
        raise DataError(f'{len(wrong)} predictions are no strings, the first {wrong[0][text]!r} of {wrong[0][key]}')
    predicted = {str(row[key]): row for row in rows}
    unknown = [name for name in predicted if name not in references]
    missing = [name for name in references if name not in predicted]
    if unknown or (missing and not subset):
        raise DataError(f'predictions and {ann_file} do not agree: {len(missing)} of {len(references)} have no '
                        f'prediction {missing[:5]}, {len(unknown)} predictions have no reference {unknown[:5]}'
                        + ('' if unknown else '; --subset scores what is predicted'))
    return [{'sample_idx': number, key: row[key], **(judgement(row) if kind == 'nlvr' else {'pred_text': row[text]}),
             **references[name]} for number, (name, row) in enumerate(predicted.items())]


def records_of(rows, subset):
    """Records of tools/test.py --dump as data samples."""
    wrong = [row['sample_idx'] for row in rows if not isinstance(row['sample_idx'], int)]
    if wrong:
        raise DataError(f'{len(wrong)} records have a sample_idx that is no whole number, the first {wrong[0]!r}')
    refuse_repeated(row['sample_idx'] for row in rows)
    missing = sum(1 for row in rows if row['sample_idx'] >= len(rows))  # as many as there are holes before them
    if missing and not subset:
        raise DataError(f'{len(rows)} records have sample_idx up to {max(row["sample_idx"] for row in rows)}: at least '
                        f'{missing} are missing; --subset scores what is there')
    return [dict(row, sample_idx=number) for number, row in enumerate(rows)]


def refuse_repeated(ids):
    """Raises:
        DataError: An id occurs twice.
    """
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DataError(f'{len(repeated)} ids are predicted more than once, for example {repeated[:5]}: keep one each')


def captions_of(ann_file, split):
    """Image id as text to its ``gt_caption``."""
    from mmblip2.datasets.caption_file import read_captions
    return {str(image.image_id): dict(gt_caption=image.captions) for image in read_captions(ann_file, '', split=split)
            if image.captions}


def labels_of(ann_file):
    """Identifier as text to ``gt_label`` (None where it is not published)."""
    from mmblip2.datasets.nlvr2 import read_statements
    return {str(statement.identifier): dict(gt_label=statement.label) for statement in read_statements(ann_file)}


def judgement(row):
    """``pred_label`` of a prediction for NLVR2.

    Raises:
        DataError: It is neither true nor false.
    """
    text = row['prediction'].lower()
    if text not in ('true', 'false'):
        raise DataError(f'the prediction for {row["identifier"]} is {row["prediction"]!r}: expected "True" or "False"')
    return dict(pred_label=int(text == 'true'))


def answers_of(ann_file):
    """Question id as text to ``gt_answer``, ``gt_annotator`` where there is one, and the types."""
    from mmblip2.datasets.vqa import same_annotators
    content = read(ann_file)
    rows = content
    if isinstance(content, dict):  # annotations of VQA, data of TextVQA, or GQA's {question id: {"answer"}}
        rows = content.get('annotations', content.get('data')) or [
            dict(row, question_id=name) for name, row in content.items() if isinstance(row, dict)]
    found = {}
    for row in rows if isinstance(rows, list) else ():
        row = row if isinstance(row, dict) else {}
        answers = next((row[key] for key in ('answers', 'answer', 'direct_answers') if key in row), None)
        if answers is None or 'question_id' not in row:
            break
        answers = [answers] if isinstance(answers, str) else answers
        found[str(row['question_id'])] = dict(
            gt_answer=[answer.get('answer') if isinstance(answer, dict) else answer for answer in answers],
            **(same_annotators(answers) if all(isinstance(answer, dict) for answer in answers) else {}),
            **{key: row[key] for key in ('answer_type', 'question_type') if key in row})
    if not found or len(found) != len(rows):
        raise DataError(f'{ann_file} holds no answers: expected official annotations '
                        '{"annotations": [{"question_id", "answers"}]} or a list [{"question_id", "answer"}] or GQA\'s '
                        '{question id: {"answer"}}')
    return found


def main(argv=None):
    args = parse_args(argv)
    rows = read(args.predictions)
    if args.check:
        from mmblip2.evaluation.functional import check_submission
        check_submission(rows, args.check, args.split)
        print(f'{args.predictions}: {len(rows)} predictions in the format of the {args.check} server')
        return
    kind, rows, default = recognise(rows, args.predictions)
    options = {}
    for option in args.options:
        key, equals, value = option.partition('=')
        if not equals:
            raise ConfigError(f'--options {option}: expected key=value')
        options[key] = cli.parse_value(value)
    if kind == 'retrieval':
        unknown = set(options) - {'topk'}
        if unknown or args.metric or args.ann_file:
            raise ConfigError('a retrieval.json has its references inside; --options topk=... is all it takes')
        metrics = recall(rows, options.get('topk', (1, 5, 10)))
    else:
        from mmblip2.evaluation import metrics as _  # noqa: F401
        from mmblip2.registry import METRICS
        name = args.metric or default
        if name not in METRICS.module_dict:
            raise ConfigError(f'--metric {name} is not one of {", ".join(sorted(METRICS.module_dict))}')
        try:
            metric = METRICS.build(dict(type=name, **options))
        except TypeError as error:
            raise ConfigError(f'--options: {error}') from error
        samples = samples_of(rows, kind, args.ann_file, args.subset, args.split)
        metric.process(None, samples)
        metrics = metric.evaluate(len(samples))
    width = max(map(len, metrics), default=0)
    for key, value in metrics.items():
        print(f'{key:{width}}  {value:.4f}')
    if args.out:
        path = Path(args.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(metrics, indent=2) + '\n')


if __name__ == '__main__':
    cli.run(main)
