"""Stands in for the package of this name when a config is checked and nothing is built."""


class EfficientNet:

    @classmethod
    def from_name(cls, model_name):
        raise NotImplementedError('a stand-in; install requirements/real.txt')
