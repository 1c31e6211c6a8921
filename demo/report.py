"""Writes the page of a quickstart: pictures with captions, answers and retrievals, loss curves, the table.

    python demo/report.py --work work_dirs/quickstart --data data/shapes
    python demo/report.py --flickr8k --work work_dirs/flickr8k --data data/flickr8k

The page is one file without external resources. The examples are spread evenly over the
evaluated split, not chosen.
"""
import argparse
import base64
import collections
import contextlib
import html
import json
import math
import sys
from pathlib import Path

TRAININGS = {'language_model': 'Language model (texts alone)',
             'vision_encoder': 'Vision encoder (scene labels)',
             'stage1': 'Stage 1: representation', 'stage2': 'Stage 2: generation', 'vqa': 'VQA fine-tuning'}
FLICKR8K_TRAININGS = {'stage1': TRAININGS['stage1'], 'retrieval': 'Retrieval fine-tuning: ITC',
                      'stage2': TRAININGS['stage2']}
# by the contrastive score alone, which the trainings of Flickr8k log
RECALLS = {'i2t/itc/Recall@1': 'image to text', 't2i/itc/Recall@1': 'text to image'}
COLORS = ('#2563eb', '#ea580c', '#16a34a', '#9333ea', '#0891b2')
STYLE = '''
:root { --ink: #1f2430; --dim: #667085; --line: #e3e6ec; --card: #fff; --page: #f5f6f9; --good: #15803d;
        --bad: #c2261d; --mark: #e8f0fe }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ee; --dim: #98a1b3; --line: #333a48; --card: #1d222c; --page: #14181f; --good: #4ade80;
          --bad: #f87171; --mark: #22304d } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px }
h1 { font-size: 28px; margin: 0 0 4px } h2 { font-size: 20px; margin: 40px 0 4px } p { margin: 0 0 12px }
.dim, figcaption, th { color: var(--dim) } .good { color: var(--good) } .bad { color: var(--bad) }
.scroll { overflow-x: auto }
.grid { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)) }
.wide { grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)) }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px }
.card h3 { font-size: 14px; margin: 0 0 8px } .card ul { margin: 6px 0 0; padding-left: 18px }
.big { font-size: 30px; font-weight: 650; line-height: 1.2 }
img { border-radius: 6px; display: block; width: 112px; height: 112px; object-fit: cover }
.row { display: flex; gap: 12px; align-items: flex-start } .row > div { min-width: 0; flex: 1 }
.five { display: flex; gap: 6px; margin-top: 8px } .five img { width: 100%; height: auto }
.five div { flex: 1; border: 3px solid transparent; border-radius: 9px }
.five .hit { border-color: var(--good) }
table { border-collapse: collapse; width: 100%; background: var(--card); border-radius: 10px }
th, td { padding: 7px 12px; text-align: right; border-bottom: 1px solid var(--line); font-weight: 400 }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left } td.result { font-weight: 650 }
svg { width: 100%; height: auto; display: block }
svg text { fill: var(--dim); font: 10px system-ui, sans-serif }
svg .axis { stroke: var(--line) } .bar { fill: #2563eb }
'''


# ------------------------------------------------------------------------------------------------ reading
def read_json(path):
    return json.loads(Path(path).read_text(encoding='utf-8'))


def read_curves(folder, wanted):
    """Returns what a training logged in scalars.json files, ``{name: [(iteration, value)]}``.

    Args:
        folder (Path): Work folder of the training.
        wanted (Callable): Whether a name belongs to the curves.
    """
    curves = collections.defaultdict(dict)
    for path in sorted(Path(folder).glob('*/vis_data/scalars.json')):
        for line in path.read_text(encoding='utf-8').splitlines():
            with contextlib.suppress(ValueError):  # the last line of an interrupted run
                row = json.loads(line)
                for name, value in row.items():
                    if wanted(name) and isinstance(value, (int, float)) and math.isfinite(value):
                        curves[name][row.get('iter', row.get('step', 0))] = value
    return {name: sorted(points.items()) for name, points in curves.items()}


def read_losses(folder):
    """Returns the losses that a training logged, as :func:`read_curves`."""
    return read_curves(folder, lambda name: 'loss' in name)


def read_recalls(folder):
    """Returns the recall@1 by the contrastive score alone that a training logged, as :func:`read_curves`."""
    curves = read_curves(folder, lambda name: name in RECALLS)
    return {RECALLS[name]: points for name, points in sorted(curves.items())}


def find_prediction(work, step, task):
    """Returns the content of ``<work>/<step>/**/predictions/<task>.json``.

    Raises:
        FileNotFoundError: the evaluation has written none.
    """
    folder = Path(work) / step
    found = sorted(folder.rglob(f'predictions/{task}.json'), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f'no predictions/{task}.json below {folder}: run the quickstart again')
    return read_json(found[-1])


def spread(items, count):
    """Returns `count` elements at even distances."""
    items = list(items)
    return items if len(items) <= count else [items[i * len(items) // count] for i in range(count)]


# ------------------------------------------------------------------------------------------------ pieces
def text(value):
    return html.escape(str(value))


def picture(path):
    """Returns an <img> that carries the file (JPEG or PNG) itself."""
    path = Path(path)
    if not path.is_file():
        return f'<span class="bad">{text(path.name)} is missing</span>'
    kind = 'png' if path.suffix.lower() == '.png' else 'jpeg'
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{text(path.name)}" src="data:image/{kind};base64,{data}">'


def loss_chart(title, curves, width=340, height=190):
    """Returns curves (``{name: [(iteration, value)]}``) as an inline SVG; the axis begins at 0."""
    terms = sorted((name for name in curves if name != 'loss'), key=str)
    names = (['loss'] if 'loss' in curves else []) + (terms if len(terms) > 1 else [])
    points = [point for name in names for point in curves.get(name, [])]
    if not points:
        return f'<div class="card"><h3>{text(title)}</h3><p class="dim">nothing was logged</p></div>'
    left, right, top, bottom = 34, width - 8, 8, height - 22
    last, high = max(x for x, _ in points) or 1, max(y for _, y in points) or 1.0
    parts = []
    for share in (0, 0.5, 1):
        y = bottom - share * (bottom - top)
        parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
                     f'<text x="{left - 5}" y="{y + 3:.1f}" text-anchor="end">{share * high:.3g}</text>')
        anchor = {0: 'start', 0.5: 'middle', 1: 'end'}[share]
        parts.append(f'<text x="{left + share * (right - left):.1f}" y="{height - 8}" text-anchor="{anchor}">'
                     f'{share * last:.0f}</text>')
    legend = []
    for name, color in zip(names, COLORS):
        line = ' '.join(f'{left + x / last * (right - left):.1f},'
                        f'{bottom - max(y, 0) / high * (bottom - top):.1f}' for x, y in curves.get(name, []))
        parts.append(f'<polyline fill="none" stroke="{color}" stroke-width="{2 if name == "loss" else 1.2}" '
                     f'points="{line}"/>')
        legend.append(f'<span style="color:{color}">{text(name)} {curves[name][-1][1]:.3g}</span>')
    return (f'<div class="card"><h3>{text(title)}</h3><svg viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="{text(title)}">{"".join(parts)}</svg>{" &nbsp; ".join(legend)}</div>')


def score_table(rows):
    """Returns the rows (task, metric, result, shuffled, chance, ceiling, floor) as an HTML table."""
    def cell(value):
        return '–' if value is None else text(value) if isinstance(value, str) else f'{value:.1f}'

    lines = []
    for row in rows:
        result, floor = row[2], row[6]
        kind = '' if floor is None else ' good' if result >= floor else ' bad'
        lines.append('<tr>' + ''.join(f'<td class="{"result" + kind if i == 2 else ""}">{cell(value)}</td>'
                                      for i, value in enumerate(row)) + '</tr>')
    head = ''.join(f'<th>{name}</th>' for name in ('task', 'metric', 'result', 'shuffled images', 'chance',
                                                   'ceiling', 'floor'))
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def caption_cards(images, references, captions, count=12):
    """Returns cards of generated and reference captions.

    Args:
        images (dict): Image id -> path.
        references (dict): Image id -> captions (list of str).
        captions (list[dict]): ``{'image_id', 'caption'}``.
        count (int): Number of cards.
    """
    cards = []
    for row in spread(captions, count):
        key = str(row['image_id'])
        listed = ''.join(f'<li>{text(reference)}</li>' for reference in references.get(key, []))
        cards.append(f'<div class="card row">{picture(images.get(key, key))}<div>'
                     f'<b>{text(row["caption"])}</b><ul class="dim">{listed}</ul></div></div>')
    return '<div class="grid wide">' + ''.join(cards) + '</div>'


def answer_mark(answer, answers):
    """Returns 'right' when at least three of the annotators gave this answer, else 'partly' or 'wrong'."""
    count = sum(other.strip().lower() == answer.strip().lower() for other in answers)
    return 'right' if count >= min(3, len(answers)) else 'partly' if count else 'wrong'


def answer_cards(images, questions, answers, predictions, count=12):
    """Returns cards with the questions of one image each, their answers marked.

    Args:
        images (dict): Image id -> path.
        questions (dict): Question id -> ``{'image_id', 'question'}``.
        answers (dict): Question id -> answers of the annotators (list of str).
        predictions (list[dict]): ``{'question_id', 'answer'}``.
        count (int): Number of cards.
    """
    by_image = collections.defaultdict(list)
    for row in predictions:
        key = str(row['question_id'])
        asked = questions[key]
        by_image[str(asked['image_id'])].append((asked['question'], row['answer'], answers[key]))
    signs = {'right': '<span class="good">✓</span>', 'partly': '<span class="dim">~</span>',
             'wrong': '<span class="bad">✗</span>'}
    cards = []
    for image, asked in spread(by_image.items(), count):
        lines = []
        for question, answer, given in asked:
            mark = answer_mark(answer, given)
            usual = collections.Counter(given).most_common(1)[0][0]
            expected = '' if mark == 'right' else f' <span class="dim">(annotators: {text(usual)})</span>'
            lines.append(f'<div>{text(question)} <b>{text(answer) or "(empty)"}</b> {signs[mark]}{expected}'
                         '</div>')
        cards.append(f'<div class="card row">{picture(images.get(image, image))}'
                     f'<div>{"".join(lines)}</div></div>')
    return '<div class="grid wide">' + ''.join(cards) + '</div>'


def retrieval_cards(result, root, count=8):
    """Returns cards with the five best texts of an image, and the five best images of a text.

    Args:
        result (dict): retrieval.json: ``images`` (paths), ``texts``, ``text_to_image``, ``i2t`` (list of
            ``{'image', 'top': [[text, score]]}``) and ``t2i`` (of ``{'text', 'top': [[image, score]]}``).
        root (Path): Folder to which relative image paths belong.
        count (int): Number of cards of each kind.
    """
    images, texts, owner = result['images'], result['texts'], result['text_to_image']
    to_text, to_image = [], []
    for row in spread(result['i2t'], count):
        marks = [(index, owner[index] == row['image']) for index, _ in row['top']]
        lines = ''.join(f'<div class="{"good" if hit else "dim"}">{"✓" if hit else "✗"} '
                        f'{text(texts[index])}</div>' for index, hit in marks)
        to_text.append(f'<div class="card row">{picture(root / images[row["image"]])}'
                       f'<div>{lines}</div></div>')
    for row in spread(result['t2i'], count):
        five = ''.join(f'<div class="{"hit" if owner[row["text"]] == index else ""}">'
                       f'{picture(root / images[index])}</div>' for index, _ in row['top'])
        to_image.append(f'<div class="card"><b>{text(texts[row["text"]])}</b>'
                        f'<div class="five">{five}</div></div>')
    return ('<h3>Image to text</h3><div class="grid wide">' + ''.join(to_text) + '</div>'
            '<h3>Text to image</h3><div class="grid wide">' + ''.join(to_image) + '</div>')


def seconds_chart(seconds):
    """Returns the seconds of the steps as bars."""
    steps = [(name, value) for name, value in seconds.items() if name not in ('run', 'installation')]
    longest, rows = max((value for _, value in steps), default=0) or 1, []
    for i, (name, value) in enumerate(steps):
        y, width = 18 * i, 380 * value / longest
        rows.append(f'<text x="150" y="{y + 12}" text-anchor="end">{text(name)}</text>'
                    f'<rect class="bar" x="158" y="{y + 3}" rx="2" width="{max(1, width):.1f}" height="11"/>'
                    f'<text x="{164 + width:.1f}" y="{y + 12}">{value:.0f} s</text>')
    return (f'<div class="card"><svg viewBox="0 0 600 {18 * len(steps) + 4}" role="img" '
            f'aria-label="seconds of the steps">{"".join(rows)}</svg></div>')


# ------------------------------------------------------------------------------------------------ the page
def render(work, data, rows, root=Path('.')):
    """Returns the page as HTML.

    Args:
        work (Path): Folder of the quickstart's results, with summary.json.
        data (Path): Folder of the data set.
        rows (list[tuple]): The table: task, metric, result, shuffled, chance, ceiling, floor.
        root (Path): Folder to which relative image paths of the predictions belong.

    Raises:
        FileNotFoundError: a file of predictions or annotations is missing.
    """
    work, data = Path(work), Path(data)
    summary, annotations = read_json(work / 'summary.json'), data / 'annotations'
    coco = read_json(annotations / 'captions_test.json')
    images = {str(image['id']): data / 'test' / image['file_name'] for image in coco['images']}
    references = collections.defaultdict(list)
    for row in coco['annotations']:
        references[str(row['image_id'])].append(row['caption'])
    questions = {str(row['question_id']): row
                 for row in read_json(annotations / 'questions_test.json')['questions']}
    answers = {str(row['question_id']): [item['answer'] for item in row['answers']]
               for row in read_json(annotations / 'answers_test.json')['annotations']}
    charts = ''.join(loss_chart(title, read_losses(work / name)) for name, title in TRAININGS.items())
    intro = (f'BLIP-2 pre-trained in two stages on the embedded data set "shapes" and evaluated on its test split '
             f'({len(images)} images). The examples below are spread evenly over that split.')
    legend = ('Chance: random ranking, captions of another image, the most frequent answer. Ceiling: exact knowledge '
              'of the scene; for CIDEr one reference against the other four.')
    return page('mmblip2 quickstart', intro, legend, rows, summary, f'''<h2>Captions</h2>
<p class="dim">Generated, and the five references.</p>
{caption_cards(images, references, find_prediction(work, 'test_caption', 'caption'))}
<h2>Questions and answers</h2>
<p class="dim">✓ three or more of ten annotators agree, ~ one or two do, ✗ none.</p>
{answer_cards(images, questions, answers, find_prediction(work, 'test_vqa', 'vqa'))}
<h2>Retrieval</h2><p class="dim">The five best, re-ranked; green: the caption belongs to the image.</p>
{retrieval_cards(find_prediction(work, 'test_retrieval', 'retrieval'), Path(root))}
<h2>Losses</h2><p class="dim">By iteration; behind each name its last value.</p>
<div class="grid wide">{charts}</div>''')


def render_flickr8k(work, data, rows, root=Path('.')):
    """Returns the page of configs/flickr8k as HTML; arguments and errors as of :func:`render`."""
    work, data = Path(work), Path(data)
    summary, coco = read_json(work / 'summary.json'), read_json(data / 'annotations' / 'captions_val.json')
    images = {str(image['id']): data / image['file_name'] for image in coco['images']}
    references = collections.defaultdict(list)
    for row in coco['annotations']:
        references[str(row['image_id'])].append(row['caption'])
    aims = ', '.join(f'{task} {key} {value:g}' for task, values in summary['aim'].items()
                     for key, value in values.items())
    intro = ('BLIP-2 from a frozen EfficientNet-Lite0, MiniLM and a frozen SmolLM2-135M-Instruct, trained on the '
             'train split of Flickr8k for retrieval and for captions, evaluated on its val split '
             f'({len(images)} images). The examples below are spread evenly over that split.')
    legend = ('Recall: by the contrastive score, without re-ranking. Chance: random ranking. '
              f'Ceiling: one of the five captions of people against the other four. Aims: {aims}.')
    charts = ''.join(loss_chart(title, read_losses(work / name)) for name, title in FLICKR8K_TRAININGS.items())
    charts += ''.join(
        loss_chart(f'{FLICKR8K_TRAININGS[name]}: recall@1 on val by the contrastive score alone, percent',
                   read_recalls(work / name)) for name in ('stage1', 'retrieval'))
    return page('mmblip2 on Flickr8k', intro, legend, rows, summary, f'''<h2>Captions</h2>
<p class="dim">Generated, and the references.</p>
{caption_cards(images, references, find_prediction(work, 'test_caption', 'caption'))}
<h2>Retrieval</h2><p class="dim">The five best; green: the caption belongs to the image.</p>
{retrieval_cards(find_prediction(work, 'test_retrieval', 'retrieval'), Path(root))}
<h2>Curves</h2><p class="dim">By iteration; behind each name its last value.</p>
<div class="grid wide">{charts}</div>''')


def page(title, intro, legend, rows, summary, sections):
    """Returns a page as HTML.

    Args:
        title (str): Title.
        intro (str): What was done.
        legend (str): What chance and ceiling are.
        rows (list[tuple]): The table, see :func:`render`.
        summary (dict): With ``seconds`` and ``machine``.
        sections (str): HTML between the table and the seconds.
    """
    cards = ''.join(f'<div class="card"><div class="dim">{text(row[0])}: {text(row[1])}</div>'
                    f'<div class="big">{row[2]:.1f}</div>'
                    f'<div class="dim">images shuffled {row[3]:.1f}</div></div>'
                    for row in rows if row[6] is not None)
    seconds = summary['seconds']
    described = ', '.join(f'{key} {value}' for key, value in summary['machine'].items())
    return f'''<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title><style>{STYLE}</style></head><body><main>
<h1>{text(title)}</h1>
<p class="dim">{text(intro)}</p>
<div class="grid">{cards}</div>
<h2>Results</h2><p class="dim">Percent. Shuffled: the same model, every image exchanged for another one.
{text(legend)}</p>{score_table(rows)}
{sections}
<h2>Seconds</h2>
<p class="dim">Installation {seconds.get('installation', 0):.0f} s, run {seconds['run']:.0f} s.
{text(described)}</p>{seconds_chart(seconds)}
</main></body></html>
'''


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work', default='work_dirs/quickstart', help='folder of the results')
    parser.add_argument('--data', default='data/shapes', help='folder of the data set')
    parser.add_argument('--flickr8k', action='store_true', help='the page of configs/flickr8k')
    args = parser.parse_args(argv)
    from quickstart import table
    work = Path(args.work)
    try:
        written = (render_flickr8k if args.flickr8k else render)(
            work, args.data, table(read_json(work / 'summary.json')))
    except FileNotFoundError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    (work / 'index.html').write_text(written, encoding='utf-8')
    print(f'wrote {work / "index.html"}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
