"""tools/analysis_tools/eval_metric.py on files of every format."""
import importlib.util
import json
from pathlib import Path

import pytest

from mmblip2.errors import ConfigError, DataError

PATH = Path(__file__).resolve().parents[2] / 'tools' / 'analysis_tools' / 'eval_metric.py'
spec = importlib.util.spec_from_file_location('eval_metric', PATH)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

ANSWERS = [dict(question_id=1, answer='cat'), dict(question_id=2, answer='yes')]
OFFICIAL = dict(annotations=[
    dict(question_id=1, question_type='what', answer_type='other', answers=[
        dict(answer='cat' if i < 3 else 'dog', answer_id=i) for i in range(10)]),
    dict(question_id=2, question_type='is', answer_type='yes/no', answers=[
        dict(answer='yes', answer_id=i) for i in range(10)])])


@pytest.fixture
def score(tmp_path):
    """Run the tool on Python values, give its metrics."""
    def run(predictions, references=None, *options):
        files = []
        for name, content in (('predictions.json', predictions), ('references.json', references)):
            files.append(str(tmp_path / name))
            Path(files[-1]).write_text(json.dumps(content))
        given = ['--ann-file', files[1]] if references is not None else []
        tool.main([files[0], *given, *options, '--out', str(tmp_path / 'out.json')])
        return json.loads((tmp_path / 'out.json').read_text())
    return run


def test_answers_of_the_server_format_against_official_annotations(score, capsys):
    expected = {'vqa/accuracy': pytest.approx(95), 'vqa/other': pytest.approx(90), 'vqa/yes_no': 100,
                'vqa/question_type/is': 100, 'vqa/question_type/what': pytest.approx(90)}
    assert score(ANSWERS, OFFICIAL) == expected
    assert 'vqa/accuracy' in capsys.readouterr().out


@pytest.mark.parametrize('variant, key', [('official', 'official'), ('pre2021', 'official_pre2021')])
def test_every_golden_case_from_official_files_also_without_answer_ids(score, variant, key):
    cases = json.loads((Path(__file__).parents[1] / 'data' / 'vqa_accuracy.json').read_text())['cases']
    with_ids = [case['with_answer_id'] for case in cases]
    assert any(with_ids) and not all(with_ids)
    annotations = [dict(question_id=i, question_type=str(i), answers=[
        dict(answer=answer, **(dict(answer_id=n) if case['with_answer_id'] else {}))
        for n, answer in enumerate(case['answers'])]) for i, case in enumerate(cases)]
    found = score([dict(question_id=i, answer=case['prediction']) for i, case in enumerate(cases)],
                  dict(annotations=annotations), '--options', f'variant={variant}')
    assert [round(found[f'vqa/question_type/{i}'], 2) for i in range(len(cases))] == [
        round(case[key], 2) for case in cases]


def test_predictions_for_nlvr2_are_scored_again(score, tmp_path, capsys):
    """Against the published lines and a list of BLIP; and records of tools/test.py --dump."""
    lines = [dict(identifier=f'dev-1-{pair}-0', sentence='A dog.', label=str(pair == 0)) for pair in (0, 1)]
    lines.append(dict(identifier='dev-2-0-0', sentence='A cat.', label='True'))
    (tmp_path / 'dev.json').write_text('\n'.join(map(json.dumps, lines)))
    written = [dict(identifier=line['identifier'], prediction='True') for line in lines]
    expected = {'nlvr/accuracy': pytest.approx(200 / 3), 'nlvr/consistency': 50}
    assert score(written, None, '--ann-file', str(tmp_path / 'dev.json')) == expected
    assert score([dict(sample_idx=i, identifier=line['identifier'], pred_label=1, gt_label=int(line['label'] == 'True'))
                  for i, line in enumerate(lines)]) == expected
    listed = [dict(images=['a.png', 'b.png'], sentence='A dog.', label=line['label']) for line in lines]
    assert score([dict(row, identifier=i) for i, row in enumerate(written)], listed) == {
        'nlvr/accuracy': pytest.approx(200 / 3)}
    with pytest.raises(DataError, match='1 of 3 have no prediction .*dev-2-0-0'):
        score(written[:2], None, '--ann-file', str(tmp_path / 'dev.json'))
    with pytest.raises(DataError, match="the prediction for dev-1-0-0 is 'yes': expected"):
        score([dict(written[0], prediction='yes')], None, '--ann-file', str(tmp_path / 'dev.json'), '--subset')


def test_answers_against_a_list_with_another_variant_and_metric(score):
    lavis = [dict(question_id=1, question='?', answer=['a cat'] * 9 + ['dog'])]
    assert score(ANSWERS[:1], lavis)['vqa/accuracy'] == 100
    assert score(ANSWERS[:1], lavis, '--options', 'variant=pre2021')['vqa/accuracy'] == 0
    assert score(ANSWERS[:1], [dict(question_id=1, answer='cat')], '--metric', 'GQAMetric') == {'gqa/accuracy': 100}


def test_what_the_metrics_of_gqa_and_aokvqa_write_is_scored_by_them(score, tmp_path):
    from mmblip2.registry import METRICS
    files = dict(GQAMetric={'1': dict(imageId='1', question='?', answer='cat'),
                            '2': dict(imageId='1', question='?', answer='no')},
                 AOKVQAMetric=[dict(question_id='1', direct_answers=['cat'] * 2 + ['dog'] * 8),
                               dict(question_id='2', direct_answers=['yes'] * 10)])
    for name, references in files.items():
        metric = METRICS.build(dict(type=name, out_file=str(tmp_path / 'written.json')))
        answers = [['cat'], ['no']] if name == 'GQAMetric' else [row['direct_answers'] for row in references]
        metric.process(None, [dict(sample_idx=i, question_id=str(i + 1), pred_text=text, gt_answer=answers[i])
                              for i, text in enumerate(('cat', 'yes'))])
        assert metric.evaluate(2) == score(json.loads((tmp_path / 'written.json').read_text()), references)


def test_official_file_of_textvqa_and_captions_of_karpathy(score):
    textvqa = dict(data=[dict(question_id=i, image_id='a', question='?', answers=['yes'] * 10) for i in (1, 2)])
    assert score(ANSWERS, textvqa, '--metric', 'TextVQAMetric') == {'textvqa/accuracy': 50}
    with pytest.raises(ConfigError, match='--split chooses captions of a file of Karpathy'):
        score(ANSWERS, textvqa, '--split', 'val')
    pytest.importorskip('pycocoevalcap')
    karpathy = dict(images=[dict(filename=f'{i}.jpg', cocoid=i, split=split, sentences=[dict(raw='a dog runs')])
                            for i, split in enumerate(('val', 'test', 'val'))])
    predictions = [dict(image_id=i, caption='a dog runs') for i in (0, 2)]
    assert score(predictions, karpathy, '--split', 'val', '--options', 'metrics=ROUGE_L') == {
        'caption/ROUGE_L': pytest.approx(100)}


def test_holes_and_repeats_in_records_are_named(score):
    records = [dict(sample_idx=i, question_id=i, pred_text='yes', gt_answer=['yes'] * 10) for i in range(4)]
    assert score(records[::-1]) == {'vqa/accuracy': 100}
    with pytest.raises(DataError, match='3 records have sample_idx up to 3: at least 1 are missing; --subset scores'):
        score(records[:1] + records[2:])
    assert score(records[:1] + records[2:], None, '--subset') == {'vqa/accuracy': 100}
    with pytest.raises(DataError, match=r'1 ids are predicted more than once, for example \[2\]'):
        score([*records, records[2]])


@pytest.mark.parametrize('predictions, references, message', [
    ([dict(question_id=1, answer=None)], OFFICIAL, '1 predictions are no strings, the first None of 1'),
    ([dict(sample_idx='0', pred_text='a')], None, "1 records have a sample_idx that is no whole number, the first '0'"),
    (ANSWERS[:1], dict(annotations=[dict(question_id=1, answers=[dict(a=1)])]), 'answer 1 of 1 must be a string')])
def test_values_of_another_type_are_named(score, predictions, references, message):
    with pytest.raises(DataError, match=message):
        score(predictions, references, '--subset')


def test_captions_against_a_coco_file_and_records_with_references_inside(score):
    coco = dict(images=[dict(id=i, file_name=f'{i}.jpg') for i in (1, 2)], annotations=[
        dict(id=1, image_id=1, caption='a dog runs'), dict(id=2, image_id=2, caption='two cats sleep')])
    predictions = [dict(image_id=1, caption='a dog runs'), dict(image_id='2', caption='two cats')]
    records = [dict(sample_idx=i, image_id=row['image_id'], pred_text=row['caption'], gt_caption=[other['caption']])
               for i, (row, other) in enumerate(zip(predictions, coco['annotations']))]
    pytest.importorskip('pycocoevalcap')
    found = score(predictions, coco, '--options', "metrics=['ROUGE_L']")
    assert found == score(records, None, '--options', "metrics=['ROUGE_L']")
    assert 50 < found['caption/ROUGE_L'] < 100


def test_retrieval_is_scored_by_its_ranks(score):
    content = dict(i2t=[], t2i=[], ranks={'i2t/retrieval': [[0, 3], [1, 1], [1, 1]], 't2i/itc': [[7], [1], [1]]})
    assert score(content, None, '--options', 'topk=(1, 5)') == {
        'i2t/retrieval/Recall@1': 50, 'i2t/retrieval/Recall@5': 100, 'i2t/retrieval/Recall@mean': 75,
        't2i/itc/Recall@1': 0, 't2i/itc/Recall@5': 0, 't2i/itc/Recall@mean': 0}
    with pytest.raises(DataError, match='has no ranks: run tools/test.py again'):
        score(dict(i2t=[], t2i=[]))


def test_holes_repeats_and_strangers_are_named(score):
    with pytest.raises(DataError, match=r"1 of 2 have no prediction \['2'\].*--subset scores what is predicted"):
        score(ANSWERS[:1], OFFICIAL)
    assert score(ANSWERS[:1], OFFICIAL, '--subset')['vqa/accuracy'] == pytest.approx(90)
    with pytest.raises(DataError, match=r"1 ids are predicted more than once, for example \['1'\]"):
        score([*ANSWERS, dict(question_id='1', answer='dog')], OFFICIAL)
    with pytest.raises(DataError, match=r"1 predictions have no reference \['3'\]"):
        score([*ANSWERS, dict(question_id=3, answer='dog')], OFFICIAL, '--subset')


@pytest.mark.parametrize('predictions, references, message', [
    ([], OFFICIAL, 'none of the known formats'), ([dict(a=1)], OFFICIAL, 'none of the known formats'),
    (ANSWERS, dict(questions=[]), 'holds no answers: expected official annotations'),
    (ANSWERS, [dict(image='a.jpg', caption='b')], 'holds no answers')])
def test_files_of_another_kind_are_refused(score, predictions, references, message):
    with pytest.raises(DataError, match=message):
        score(predictions, references)


def test_wrong_arguments_are_refused(score):
    with pytest.raises(ConfigError, match='give --ann-file'):
        score(ANSWERS)
    with pytest.raises(ConfigError, match='--metric VQAMetrik is not one of'):
        score(ANSWERS, OFFICIAL, '--metric', 'VQAMetrik')
    with pytest.raises(ConfigError, match="unexpected keyword argument 'varianti'"):
        score(ANSWERS, OFFICIAL, '--options', 'varianti=x')
    with pytest.raises(DataError, match='cannot read .*nowhere.json'):
        tool.main(['nowhere.json'])


def test_check_for_a_server(tmp_path, capsys):
    path = tmp_path / 'answers.json'
    path.write_text(json.dumps(ANSWERS))
    tool.main([str(path), '--check', 'vqa'])
    assert '2 predictions in the format of the vqa server' in capsys.readouterr().out
    empty = tmp_path / 'empty.json'
    empty.write_text('[]')
    with pytest.raises(DataError, match='no list of objects, or there are none'):
        tool.main([str(empty), '--check', 'vqa'])
    with pytest.raises(DataError, match='2 rows, vqa test has 447793'):
        tool.main([str(path), '--check', 'vqa', '--split', 'test'])
