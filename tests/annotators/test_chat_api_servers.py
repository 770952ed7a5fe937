"""Real servers on loopback: one that gives log-probs, those of the same weights in this process; one that gives none."""

from importlib.util import find_spec

import pytest
import torch

from lit_align.annotators import ChatAPI, LocalLM, PairwiseJudge, ScoringJudge
from lit_align.metering import metered
from tests.annotators.worlds import CHAT, PAIRWISE, SCORING, make_tokenizer, rollouts, write_judge
from tests.servers.gguf_file import write_gguf
from tests.servers.meters import Notebook
from tests.servers.processes import free_port, llama_cpp, running, transformers_serve

TEN = tuple(str(i) for i in range(1, 11))
QUESTIONS = ["ab=", "c", "abcdefghij 10 abcdefghij|", "j 1 9 =", "hgf|", "a|b|=", "10", "d d d"]
TEXTS = [["abc", "d", "aaa"], ["e", "aa", "j"]]


def needs(*packages):
    missing = [package for package in packages if find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    write_judge(folder, make_tokenizer(ten=True, chat_template=CHAT))
    (folder / "scoring.yaml").write_text(SCORING, encoding="utf-8")
    (folder / "pairwise.yaml").write_text(PAIRWISE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def api(folder):
    """Of a llama.cpp server on the weights of the folder; all 40 tokens are among the likeliest."""
    port = free_port()
    gguf = write_gguf(str(folder), make_tokenizer(ten=True, chat_template=CHAT), folder / "judge.gguf")
    with running(llama_cpp(gguf, port), port, folder, limit=60) as url:
        yield ChatAPI("judge", url, api_key_env=None, top_logprobs=40, concurrency=4)


def asked(texts):
    return [({"role": "user", "content": text},) for text in texts]


@needs("openai", "xllamacpp", "gguf")
def test_through_a_server_are_the_log_probs_of_the_same_weights(api, folder):
    """Of ten options, one of them of two characters; the server is asked four questions at once."""
    meter = Notebook()
    with metered(meter):
        served = api.option_logps(asked(QUESTIONS), TEN)
    local = LocalLM(str(folder)).option_logps(asked(QUESTIONS), TEN)
    torch.testing.assert_close(served, local, atol=1e-4, rtol=0)
    assert (local.std(0) > 0.1).all(), "questions that differ"
    assert meter.told == ["answered"] * (1 + len(QUESTIONS))
    assert all(prompt > 0 and completion == 1 for prompt, completion in meter.tokens)


@needs("openai", "xllamacpp", "gguf")
@pytest.mark.parametrize(("kind", "template"), [(ScoringJudge, "scoring.yaml"), (PairwiseJudge, "pairwise.yaml")])
def test_judges_judge_through_a_server_as_they_do_here(kind, template, api, folder):
    served, local = (kind(backend, str(folder / template), min_mass=0.0) for backend in (api, LocalLM(str(folder))))
    one, other = served.annotate(rollouts(TEXTS)), local.annotate(rollouts(TEXTS))
    for (name, mine, _), (_, theirs, _) in zip(one.tensors(), other.tensors(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0, equal_nan=True, msg=name)
    assert one.scores.std() > 0.01
    assert served.waits
    assert not local.waits


@pytest.mark.slow
@needs("openai", "fastapi", "uvicorn")
def test_a_server_without_log_probs_is_read_by_its_text(folder, tmp_path):
    """`transformers serve`, with a model that grades by its last letter: 7 after a b, else 10."""

    def examples(n):
        ends = [("ab"[i % 2], "cdefgh"[i % 6]) for i in range(n)]
        return [(f"j\n\n|{middle}{end}\n\n=<eos>:", "7" if end == "b" else "10") for end, middle in ends]

    tokenizer = make_tokenizer(ten=True, chat_template=CHAT)
    judge, port = write_judge(tmp_path / "grader", tokenizer, examples, steps=60), free_port()
    with running(transformers_serve(judge, port), port, tmp_path, limit=120) as url:
        api = ChatAPI(judge, url, api_key_env=None, timeout=120)
        annotation = ScoringJudge(api, str(folder / "scoring.yaml")).annotate(rollouts([["ca", "cb"], ["db", "da"]]))
    assert api._decided == {TEN: "text"}
    assert annotation.valid.all()
    torch.testing.assert_close(annotation.scores, (torch.tensor([[10.0, 7.0], [7.0, 10.0]]) - 5.5) / 4.5)
    assert annotation.mass is not None
    assert (annotation.mass == 1).all()
