import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load():
    spec = importlib.util.spec_from_file_location('demo_report', ROOT / 'demo' / 'report.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


report = load()
ROWS = [('vqa', 'accuracy (%)', 70.0, 30.0, 40.0, 95.0, 65.0),
        ('caption', 'CIDEr (%)', 50.0, 30.0, None, None, 90.0),
        ('vqa', 'yes_no', 80.0, 50.0, None, None, None)]


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def folders(tmp_path):
    """A work and a data folder of two images."""
    from PIL import Image
    work, data = tmp_path / 'work', tmp_path / 'data'
    for i in (1, 2):
        path = data / 'test' / f'{i}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8), (i * 100, 0, 0)).save(path)
    images = [{'id': i, 'file_name': f'{i}.jpg'} for i in (1, 2)]
    write(data / 'annotations' / 'captions_test.json', {'images': images, 'annotations': [
        {'image_id': 1, 'caption': 'reference one'}, {'image_id': 2, 'caption': 'reference two'}]})
    write(data / 'annotations' / 'questions_test.json', {'questions': [
        {'question_id': 11, 'image_id': 1, 'question': 'how many?'},
        {'question_id': 21, 'image_id': 2, 'question': 'what color?'}]})
    write(data / 'annotations' / 'answers_test.json', {'annotations': [
        {'question_id': 11, 'answers': [{'answer': '2'}] * 10},
        {'question_id': 21, 'answers': [{'answer': 'red'}] * 10}]})
    write(work / 'test_caption' / 'predictions' / 'caption.json', [
        {'image_id': 1, 'caption': 'generated <b> one'}, {'image_id': 2, 'caption': 'generated two'}])
    write(work / 'test_vqa' / 'predictions' / 'vqa.json', [
        {'question_id': 11, 'answer': '2'}, {'question_id': 21, 'answer': 'blue'}])
    write(work / 'test_retrieval' / 'predictions' / 'retrieval.json', {
        'images': [str(data / 'test' / f'{i}.jpg') for i in (1, 2)], 'texts': ['text one', 'text two'],
        'text_to_image': [0, 1], 'i2t': [{'image': i, 'top': [[0, 2.0], [1, 1.0]]} for i in (0, 1)],
        't2i': [{'text': i, 'top': [[0, 2.0], [1, 1.0]]} for i in (0, 1)]})
    write(work / 'summary.json', {'seconds': {'installation': 10.0, 'run': 100.0, 'stage1': 90.0},
                                  'machine': {'cores': 2}})
    scalars = work / 'stage1' / '2025' / 'vis_data' / 'scalars.json'
    scalars.parent.mkdir(parents=True)
    scalars.write_text('{"loss": 3.0, "loss_itc": 2.0, "loss_itm": 1.0, "iter": 10}\n'
                       '{"loss": 2.0, "loss_itc": 1.5, "loss_itm": 0.5, "iter": 20}\n'
                       '{"accuracy": 1.0}\n{"loss": 1.')
    return work, data


def test_page_needs_no_other_resource(folders):
    page = report.render(*folders, ROWS)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert 'http' not in page and '<script' not in page
    assert page.count('src="data:image/jpeg;base64,') == 2 + 2 + 2 + 4


def test_page_shows_captions_answers_and_retrievals(folders):
    page = report.render(*folders, ROWS)
    assert 'reference one' in page and 'generated two' in page
    assert 'generated &lt;b&gt; one' in page
    assert 'how many? <b>2</b> <span class="good">✓' in page
    assert 'what color? <b>blue</b> <span class="bad">✗</span> <span class="dim">(annotators: red)' in page
    assert page.count('<div class="good">✓ text one</div>') == 1  # only for the image that it belongs to
    assert page.count('class="hit"') == 2


def test_page_shows_table_and_seconds(folders):
    page = report.render(*folders, ROWS)
    assert '<td class="result good">70.0</td>' in page and '<td class="result bad">50.0</td>' in page
    assert '<td class="result">80.0</td>' in page
    assert 'Installation 10 s, run 100 s' in page and '>90 s</text>' in page


def test_loss_curves_have_a_point_for_each_logged_value(folders):
    curves = report.read_losses(folders[0] / 'stage1')
    assert curves['loss'] == [(10, 3.0), (20, 2.0)] and set(curves) == {'loss', 'loss_itc', 'loss_itm'}
    chart = report.loss_chart('Stage 1', curves)
    lines = re.findall(r'points="([^"]*)"', chart)
    assert [len(line.split()) for line in lines] == [2, 2, 2]
    heights = [float(point.split(',')[1]) for point in lines[0].split()]
    assert heights[0] < heights[1]  # a falling loss goes down the page
    assert 'nothing was logged' in report.loss_chart('Stage 1', {})


def test_a_single_loss_term_is_drawn_once():
    chart = report.loss_chart('LM', {'loss': [(1, 2.0)], 'loss_lm': [(1, 2.0)]})
    assert chart.count('<polyline') == 1


def test_resumed_training_gives_one_curve(folders):
    second = folders[0] / 'stage1' / '2026' / 'vis_data' / 'scalars.json'
    second.parent.mkdir(parents=True)
    second.write_text('{"loss": 1.9, "iter": 20}\n{"loss": 1.0, "iter": 30}\n')
    assert report.read_losses(folders[0] / 'stage1')['loss'] == [(10, 3.0), (20, 1.9), (30, 1.0)]


def test_missing_predictions_are_named(folders):
    (folders[0] / 'test_vqa' / 'predictions' / 'vqa.json').unlink()
    with pytest.raises(FileNotFoundError, match='no predictions/vqa.json below .*test_vqa'):
        report.render(*folders, ROWS)


def test_answer_marks_count_annotators():
    answers = ['red'] * 7 + ['Pink'] * 2 + ['blue']
    assert [report.answer_mark(answer, answers) for answer in ('Red ', 'pink', 'green')] == [
        'right', 'partly', 'wrong']


def test_examples_are_spread_evenly():
    assert report.spread(range(10), 5) == [0, 2, 4, 6, 8]
    assert report.spread(range(3), 5) == [0, 1, 2]


def test_page_of_flickr8k_shows_recall_curves_aims_and_examples(folders):
    work, data = folders
    coco = json.loads((data / 'annotations' / 'captions_test.json').read_text())
    coco['images'] = [dict(image, file_name=f'test/{image["file_name"]}') for image in coco['images']]
    write(data / 'annotations' / 'captions_val.json', coco)
    summary = json.loads((work / 'summary.json').read_text())
    write(work / 'summary.json', dict(summary, aim={'retrieval': {'i2t/Recall@1': 30.0}}))
    scalars = next(work.glob('stage1/*/vis_data/scalars.json'))
    scalars.write_text('{"loss": 3.0, "loss_itc": 2.0, "loss_itm": 1.0, "iter": 10}\n'
                       '{"i2t/itc/Recall@1": 5.0, "t2i/itc/Recall@1": 4.0, "i2t/itc/Recall@5": 9.0, "step": 10}\n'
                       '{"i2t/itc/Recall@1": 8.5, "t2i/itc/Recall@1": 7.5, "step": 20}\n')
    assert report.read_recalls(work / 'stage1') == {'image to text': [(10, 5.0), (20, 8.5)],
                                                    'text to image': [(10, 4.0), (20, 7.5)]}
    write(work / 'retrieval' / '1' / 'vis_data' / 'scalars.json', {'i2t/itc/Recall@1': 9.5, 't2i/itc/Recall@1': 7.0,
                                                                    'step': 20})
    page = report.render_flickr8k(work, data, ROWS)
    assert 'image to text 8.5' in page and 'image to text 9.5' in page and 'Aims: retrieval i2t/Recall@1 30.' in page
    assert 'reference one' in page and 'generated two' in page and page.count('class="hit"') == 2
    assert 'is missing' not in page and not re.search(r'(src|href)="(?!data:)', page)
