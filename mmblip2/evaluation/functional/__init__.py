from .caption import caption_scores, find_java
from .retrieval import retrieval_recall
from .vqa import normalise_answer, vqa_accuracy

__all__ = ['caption_scores', 'find_java', 'normalise_answer', 'retrieval_recall', 'vqa_accuracy']
