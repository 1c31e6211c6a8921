"""The data sample: what travels with one image (or one text) from the data set to the metric."""
from typing import NamedTuple

from mmengine.structures import BaseDataElement


class Field(NamedTuple):
    """One row of the table below: the Python type, who writes the field, who reads it."""
    type: str
    writer: str
    reader: str


FIELDS = {
    'sample_idx': Field('int', 'data set (always)', 'loops and metrics: results are gathered by it'),
    'img_path': Field('str, or a tuple of them', 'data set',
                      'error messages, result pages; ITC/ITM targets: its folder, with image_id'),
    'augmented': Field('str', 'random image transforms: the last one', 'samples that share an image, galleries'),
    'image_id': Field('int or str', 'data set, as in the annotation', 'ITC/ITM targets, metrics'),
    'text': Field('str or list[str]', 'data set (training caption, sentence)',
                  'Blip2Representation, BlipRepresentation, BlipNLVR'),
    'texts': Field('list[str]', 'COCORetrieval in test mode', 'retrieval loop'),
    'prompt': Field('str', 'CaptionPrompt, PrefixSplit, VQAPrompt, TextCorpus',
                    'language adapter, BlipGeneration; "" means none'),
    'target': Field('str or list[str]', 'CaptionPrompt, PrefixSplit, VQAPrompt, TextCorpus',
                    'language adapter, BlipGeneration, mode "loss"'),
    'targets': Field('dict[str, float]', 'VQAPrompt: every different answer and its weight',
                     'BlipGeneration, mode "loss"'),
    'qformer_text': Field('str', 'CaptionPrompt, VQAPrompt', 'Q-Former: text read beside the queries'),
    'gt_caption': Field('list[str]', 'caption data sets in test mode, uncleaned', 'caption metric'),
    'question': Field('str', 'question data sets', 'result pages'),
    'question_id': Field('int or str', 'question data sets', 'VQA metrics and submission file'),
    'gt_answer': Field('list[str]', 'question data sets: the raw answers, ten in VQAv2', 'VQA metrics'),
    'gt_annotator': Field('list[int]', 'COCOVQA: equal numbers for answers that the file does not tell apart '
                          '(without answer_id)', 'VQAMetric'),
    'question_type': Field('str', 'COCOVQA, GQA', 'VQA metrics'),
    'answer_type': Field('str', 'COCOVQA, GQA', 'VQA metrics'),
    'patch_labels': Field('int64 tensor (A, P)', 'SceneLabels', 'VisionPretraining'),
    'image_labels': Field('float tensor (N,)', 'SceneLabels', 'VisionPretraining'),
    'identifier': Field('str or int', 'NLVR2', 'NLVRAccuracy and its file of predictions'),
    'gt_label': Field('int, 0 or 1', 'NLVR2', 'BlipNLVR, mode "loss"; NLVRAccuracy'),
    'pred_label': Field('int', 'BlipNLVR, mode "predict"', 'NLVRAccuracy'),
    'pred_score': Field('float32 tensor (N,)', 'retrieval inferencers; BlipNLVR (probabilities)', 'their callers'),
    'replaced': Field('list[str]', 'WebShards: bad samples in the place of which this one is', 'BadSamplesHook'),
    'stream_at': Field('tuple[int, ...]', 'streams: worker, its shard, of which stream of several', 'SeekIterLoop'),
    'pred_text': Field('str', 'the model, mode "predict"', 'caption and VQA metrics'),
}


class DataSample(BaseDataElement):
    """Annotations and predictions of one sample; every value is a plain data field (no metainfo).

    A field that does not apply is absent: ask with ``'question' in sample`` or ``sample.get('question')``.
    ``FIELDS`` of this module is the table of all fields:

    ============= =================== ============================== ===============================
    field         type                written by                     read by
    ============= =================== ============================== ===============================
    sample_idx    int, index in the   data set, always               loops, metrics
                  data set
    img_path      str; a tuple where  data set                       messages, result pages,
                  a sample has                                       ITC/ITM targets (folder)
                  several images
    augmented     str, transform name random image transforms        samples that share an image
    image_id      int or str          data set, as annotated         ITC/ITM targets, metrics
    text          str; a list with    data set, training caption     Blip2Representation,
                  captions_per_image  or sentence                    BlipRepresentation, BlipNLVR
    texts         list[str]           COCORetrieval in test mode     retrieval loop
    prompt        str, '' for none    CaptionPrompt, PrefixSplit,    language adapter
                                      VQAPrompt, TextCorpus
    target        str; a list with    CaptionPrompt, PrefixSplit,    language adapter, mode 'loss'
                  captions_per_image  VQAPrompt, TextCorpus
    targets       dict[str, float],   VQAPrompt                      BlipGeneration, mode 'loss'
                  answer to weight
    qformer_text  str                 CaptionPrompt, VQAPrompt       Q-Former, beside the queries
    gt_caption    list[str], raw      caption sets in test mode      caption metric
    question      str                 question data sets             result pages
    question_id   int or str          question data sets             VQA metrics, submission file
    gt_answer     list[str], raw      question data sets             VQA metrics
    gt_annotator  list[int], one an   COCOVQA, without answer_id     VQAMetric
                  answer
    question_type str                 COCOVQA, GQA                   VQA metrics
    answer_type   str                 COCOVQA, GQA                   VQA metrics
    patch_labels  int64 (A, P)        SceneLabels                    VisionPretraining
    image_labels  float (N,)          SceneLabels                    VisionPretraining
    identifier    str or int          NLVR2                          NLVRAccuracy
    gt_label      int, 0 or 1         NLVR2                          BlipNLVR, NLVRAccuracy
    pred_label    int                 BlipNLVR, mode 'predict'       NLVRAccuracy
    pred_score    float32 (N,)        retrieval inferencers;         their callers
                                      BlipNLVR (probabilities)
    replaced      list[str]           WebShards, bad samples         BadSamplesHook
    stream_at     tuple of int        streams: worker, its shard,    SeekIterLoop
                                      of which stream
    pred_text     str                 the model, mode 'predict'      caption and VQA metrics
    ============= =================== ============================== ===============================
    """
