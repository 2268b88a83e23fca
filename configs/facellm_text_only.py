"""The control of FaceLLM-1B: the same training and evaluation with a grey picture in place of every face.

    python -m fvjax.main --config=configs/facellm_text_only.py

It shows how much the text alone teaches. The published training scripts name the pictures by a key that their trainer
does not read, so it is not certain that the published models saw any.
"""

from configs.facellm import facellm


def get_config():
    c = facellm("facellm_text_only", "1b")
    c.chat.hide_pictures = True
    return c
