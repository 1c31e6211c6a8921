"""Frozen (or small, trainable) language models behind three methods: embed, loss, generate."""
from .base import LanguageModel
from .causal import CausalLM
from .seq2seq import Seq2SeqLM

__all__ = ['CausalLM', 'LanguageModel', 'Seq2SeqLM']
