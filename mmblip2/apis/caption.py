"""Captions of images."""
from pathlib import Path
from typing import Any

from mmblip2.errors import ConfigError

from .generation import TextInferencer
from .images import count_images


class ImageCaptionInferencer(TextInferencer):
    """Write captions. See :class:`BaseInferencer` for the arguments.

    Example:
        >>> ImageCaptionInferencer('work_dirs/quickstart/stage2')('data/shapes/test/000000004501.jpg')
        [{'pred_caption': 'a small red circle and a large blue star'}]
    """

    def __call__(self, images: Any, prompt: str | None = None, num_captions: int = 1, batch_size: int = 1,
                 return_datasamples: bool = False, show: bool = False, wait_time: float = 0,
                 show_dir: str | Path | None = None, resize: int | None = None, progress: bool = True,
                 seed: int | None = None, **generation) -> list:
        """Caption images.

        Args:
            images: One image or several, see ``mmblip2.apis.images.iterate_images``: path, URL, ``PIL.Image``, array
                (BGR), list, generator or directory.
            prompt: What the captions continue; '' for nothing. Default: as in the model's config. A Q-Former that
                reads text reads it, too.
            num_captions: Captions an image: the best beams, or, with ``do_sample=True``, so many samples.
            batch_size: Images that the model sees at once.
            return_datasamples: Return data samples, whose ``pred_text`` is the caption, in the place of dicts.
            show, wait_time, show_dir, resize: See :meth:`BaseInferencer.visualize`.
            progress: Show a progress bar where there is more than one batch.
            seed: Of sampling, see :class:`TextInferencer`.
            **generation: See :class:`TextInferencer`.

        Returns:
            list[dict]: ``{'pred_caption'}`` an image: a text, or with ``num_captions`` above 1 a list of texts.

        Raises:
            ConfigError: The config has no caption prompt and none is given; a setting is wrong; the prompt is longer
                than the language model's context.
            DataError: An image cannot be read; the message names it.
        """
        steps = self._steps(prompt)
        settings = self.settings(generation, num_captions)
        samples = self.run(self.image_rows(images), lambda rows: self.predict(rows, steps, settings, seed),
                           count_images(images), batch_size, show, show_dir, wait_time, resize, progress)
        return samples if return_datasamples else [dict(pred_caption=sample.pred_text) for sample in samples]

    def lines(self, result) -> list[str]:
        """What is written below the image."""
        text = result.pred_text
        return [text] if isinstance(text, str) else [f'{number}. {item}' for number, item in enumerate(text, 1)]

    def _steps(self, prompt):
        if prompt is None:
            if self.prompt_step('CaptionPrompt') is None:
                raise ConfigError('the test pipeline of this model has no CaptionPrompt, it answers questions: give '
                                  "prompt='a photo of', or ask it with VisualQuestionAnsweringInferencer")
            return self.pipeline_steps()
        if not isinstance(prompt, str):
            raise ConfigError(f'prompt is one text for all images, got {prompt!r}' +
                              ('; write return_datasamples=, it is not the second argument here'
                               if isinstance(prompt, bool) else ''))
        text = prompt if self.model.reads_qformer_text else None
        return self.steps_with([dict(type='CaptionPrompt', prompt=prompt, qformer_text=text)])
