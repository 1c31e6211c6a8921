from .answers import anls, aokvqa_accuracy, gqa_accuracy, textvqa_accuracy
from .caption import caption_scores, find_java
from .nlvr import nlvr_accuracy, nlvr_consistency
from .retrieval import Ranks, recall_from_ranks, retrieval_ranks, retrieval_recall
from .submission import check_submission
from .vqa import normalise_answer, vqa_accuracy

__all__ = ['Ranks', 'anls', 'aokvqa_accuracy', 'caption_scores', 'check_submission', 'find_java', 'gqa_accuracy',
           'nlvr_accuracy', 'nlvr_consistency', 'normalise_answer', 'recall_from_ranks', 'retrieval_ranks',
           'retrieval_recall', 'textvqa_accuracy', 'vqa_accuracy']
