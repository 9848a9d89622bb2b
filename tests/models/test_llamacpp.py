"""Claims about exports in a real llama.cpp: base, memories and the front over its server.

Opt-in: they run where `xllamacpp` is installed (`pip install lorewright[llamacpp]`, a prebuilt
wheel with llama.cpp's own server in it). Two memories that contradict each other, on the embedded
base, its key-value cache in float32 so that nothing but rounding is left between both engines.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import NotFoundError, OpenAI
from support.families import llama
from support.models import letters
from support.serving import ANSWERS, QUESTIONS, UNKNOWN, drop, put, running, text_of

from lorewright.adapters.config import LoraConfig
from lorewright.errors import ConfigError, LorewrightError
from lorewright.knowledge.data import Example, Fact, Knowledge
from lorewright.memory.folder import Folder
from lorewright.memory.memory import Memory
from lorewright.models.export import BASE_FILE, export
from lorewright.models.model import Model
from lorewright.serve.config import ServeConfig
from lorewright.serve.llamacpp import LlamaCpp
from lorewright.serve.metrics import Metrics
from lorewright.serve.registry import Registry
from lorewright.serve.server import application
from lorewright.training.config import WriteConfig
from lorewright.training.loop import Job, write_all
from lorewright.training.rates import suggested_lr

pytestmark = pytest.mark.llamacpp

TEXTS = (
    "It's 2031-04-19, room B-12; open 12:30-18:05",
    "  two  spaces\n\nand a new line\t, end ",
    "naïve Ω≈ç – 50 µm × 3, 4.5% of €1,200",
    "<|bos|><|user|> hi<|end|><|assistant|>",
    "Zürich, Čapek, 東京 and x²",
)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load()


@pytest.fixture(scope="module")
def atlas(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two memories that contradict each other, one of them scaled by the root of its rank."""
    jobs = [
        Job(
            [Example(q, a) for q, a in zip(QUESTIONS, answers, strict=True)],
            WriteConfig(
                lora=LoraConfig(4, seed=seed, rslora=bool(seed), alpha=8 if seed else 16),
                lr=suggested_lr(model),
                epochs=60,
                batch_size=2,
            ),
        )
        for seed, answers in enumerate(ANSWERS.values())
    ]
    folder = tmp_path_factory.mktemp("llamacpp") / "atlas"
    for name, written in zip(ANSWERS, write_all(model, jobs), strict=True):
        put(folder, name, written.adapter, model)  # type: ignore[union-attr]
    return folder


@pytest.fixture(scope="module")
def engine(
    model: Model, atlas: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """llama.cpp's server with the base and both memories, as they were exported."""
    import xllamacpp

    out, memory = tmp_path_factory.mktemp("gguf"), Memory.open(atlas, model)
    files = [
        export(memory.adapter(name), model, out, to="gguf", name=name).path for name in ANSWERS
    ]
    params = xllamacpp.CommonParams()
    params.model.path = str(out / BASE_FILE)
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in files]
    params.n_ctx, params.n_parallel, params.warmup = 2048, 4, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames, params.port = ["127.0.0.1"], 0
    exact = xllamacpp.ggml_type.GGML_TYPE_F32
    params.cache_type_k, params.cache_type_v = exact, exact
    off = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.flash_attn_type = off  # it computes in half precision
    server = xllamacpp.Server(params)
    with httpx.Client(base_url=server.listening_address, timeout=60) as client:
        yield client
    del server


def scales(name: str) -> list[dict[str, float]]:
    """llama.cpp's way of asking for one of the memories, or for none."""
    return [{"id": i, "scale": float(each == name)} for i, each in enumerate(ANSWERS)]


def test_llama_cpp_reads_a_text_as_the_same_tokens(engine: httpx.Client, model: Model) -> None:
    plain = model.tokenizer.backend_tokenizer.normalizer  # which a GGUF file cannot hold
    for text in (*TEXTS, *QUESTIONS):
        read = {"content": plain.normalize_str(text), "parse_special": True}
        found = engine.post("/tokenize", json=read).json()
        assert found["tokens"] == model.tokenizer(text, add_special_tokens=False)["input_ids"]
    turns = [{"role": "user", "content": QUESTIONS[0]}]
    prompt = engine.post("/apply-template", json={"messages": turns}).json()["prompt"]
    asked = {"content": prompt, "parse_special": True, "add_special": True}
    found = engine.post("/tokenize", json=asked).json()["tokens"]
    assert found == list(model.render(QUESTIONS[0]).prompt_ids)


@pytest.mark.parametrize("name", ["", *ANSWERS])
def test_llama_cpp_gives_every_token_the_probability_that_we_give_it(
    engine: httpx.Client, model: Model, atlas: Path, name: str
) -> None:
    n_vocab = model.network.config.vocab_size
    memory = Memory.open(atlas, model)
    for question in QUESTIONS:
        ids = list(model.render(question).prompt_ids)
        body: dict[str, Any] = {"prompt": ids, "n_predict": 12, "temperature": 0}
        body |= {"lora": scales(name), "n_probs": n_vocab, "return_tokens": True}
        body["cache_prompt"] = False  # it holds what another memory has read
        found = engine.post("/completion", json=body).json()
        said_ids = found["tokens"]
        with torch.no_grad(), model.using(*([memory.adapter(name)] if name else [])):
            (ours,) = model.generate_ids([ids], max_new_tokens=12)
            logits_TV = model.network(torch.tensor([ids + said_ids])).logits[0]
        assert model.decode(said_ids) == model.decode(ours)
        logprobs_TV = logits_TV[len(ids) - 1 :].log_softmax(-1)
        for step, place in enumerate(found["completion_probabilities"]):
            assert len(place["top_logprobs"]) == n_vocab
            theirs_V = torch.empty(n_vocab)
            for each in place["top_logprobs"]:
                theirs_V[each["id"]] = each["logprob"]
            torch.testing.assert_close(theirs_V, logprobs_TV[step], atol=2e-3, rtol=1e-4)


def test_the_front_over_llama_cpp_answers_as_the_memory_that_was_asked(
    engine: httpx.Client, atlas: Path
) -> None:
    with running(application(atlas, ServeConfig(engine_url=str(engine.base_url)))) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

        def ask(model: str, question: str, **more: Any) -> Any:
            turns: Any = [{"role": "user", "content": question}]
            return client.chat.completions.create(model=model, messages=turns, **more)

        for name, answers in ANSWERS.items():
            for question, answer in zip(QUESTIONS, answers, strict=True):
                reply = ask(name, question)
                assert (text_of(reply), reply.choices[0].finish_reason) == (answer, "stop")
                assert reply.model == name
                assert (
                    reply.model_extra["lorewright"]["adapter"]
                    == Folder(atlas).entries()[name]["adapter"]
                )
        assert text_of(ask("pocket", QUESTIONS[0])) == UNKNOWN
        parts = list(ask("south", QUESTIONS[0], stream=True))
        assert "".join(p.choices[0].delta.content or "" for p in parts) == "QT-77"
        scored = ask("north", QUESTIONS[0], logprobs=True, top_logprobs=2).choices[0].logprobs
        assert "".join(token.token for token in scored.content).strip().startswith("KX-41")
        names = [*ANSWERS, "pocket"] * 8
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda name: text_of(ask(name, QUESTIONS[0])), names))
        assert replies == [ANSWERS.get(name, (UNKNOWN,))[0] for name in names]


def test_no_reply_over_llama_cpp_builds_on_what_another_memory_has_read(
    engine: httpx.Client, model: Model, atlas: Path
) -> None:
    memory = Memory.open(atlas, model)
    with running(application(atlas, ServeConfig(engine_url=str(engine.base_url)))) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        for name, question in product(("pocket", "north", "south", "north"), QUESTIONS):
            turns: Any = [{"role": "user", "content": question}]
            reply = client.chat.completions.create(
                model=name, messages=turns, logprobs=True, top_logprobs=3
            )
            first = reply.choices[0].logprobs.content[0]  # type: ignore[union-attr, index]
            ids = list(model.render(question).prompt_ids)
            with torch.no_grad(), model.using(*([memory.adapter(name)] if name in ANSWERS else [])):
                logprobs_V = model.network(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            best = logprobs_V.topk(3).values.tolist()
            found = [each.logprob for each in first.top_logprobs]
            assert found == pytest.approx(best, abs=5e-3), (name, question)


def test_plain_completions_over_llama_cpp_are_our_own(
    engine: httpx.Client, model: Model, atlas: Path
) -> None:
    with (
        running(application(atlas, ServeConfig(engine_url=str(engine.base_url)))) as front,
        running(application(atlas, ServeConfig(), model=model)) as alone,
    ):
        texts = []
        for url in (front, alone):
            client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
            reply = client.completions.create(model="north", prompt="The head of", max_tokens=9)
            texts.append(reply.choices[0].text.strip())
        assert texts[0] == texts[1]


# -- in this process


def test_in_this_process_it_answers_as_each_memory_and_as_our_own_server(
    model: Model, atlas: Path
) -> None:
    with (
        running(application(atlas, ServeConfig(engine="llamacpp"), model=model)) as front,
        running(application(atlas, ServeConfig(), model=model)) as alone,
    ):
        for name, question in product(("pocket", *ANSWERS), QUESTIONS):
            turns: Any = [{"role": "user", "content": question}]
            texts = [
                text_of(
                    OpenAI(
                        base_url=f"{url}/v1", api_key="none", max_retries=0
                    ).chat.completions.create(model=name, messages=turns)
                )
                for url in (front, alone)
            ]
            assert texts[0] == texts[1], (name, question)
        said = [
            OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
            .completions.create(model="north", prompt="The head – of “it” …", max_tokens=9)
            .choices[0]
            .text.strip()
            for url in (front, alone)
        ]
        assert said[0] == said[1], "typographic characters are read as plain ones"


def test_memories_come_and_go_while_it_runs(model: Model, atlas: Path, tmp_path: Path) -> None:
    """It is started anew for them, between replies; nothing of what is gone stays on disk."""
    place = tmp_path / "atlas"
    shutil.copytree(atlas, place)
    south = Memory.open(place, model).adapter("south")
    drop(place, "south", model)
    before = {*Path(tempfile.gettempdir()).glob("lorewright-*")}
    with running(application(place, ServeConfig(engine="llamacpp"), model=model)) as url:
        (files,) = {*Path(tempfile.gettempdir()).glob("lorewright-*")} - before
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

        def say(name: str, number: int = 0) -> str:
            turns: Any = [{"role": "user", "content": QUESTIONS[number]}]
            return text_of(client.chat.completions.create(model=name, messages=turns))

        assert say("north") == ANSWERS["north"][0]
        with pytest.raises(NotFoundError):
            say("south")
        identity = put(place, "south", south, model)
        with ThreadPoolExecutor(6) as pool:  # one start for all, and nobody's reply is lost
            names = ["south", "north", "south", "north", "pocket", "south"]
            replies = list(pool.map(say, names))
        assert replies == [ANSWERS.get(name, (UNKNOWN,))[0] for name in names]
        assert len([*files.glob(f"*-{identity}.gguf")]) == 1
        drop(place, "south", model)
        with pytest.raises(NotFoundError):
            say("south")
        assert say("north") == ANSWERS["north"][0]
        assert not [*files.glob(f"*-{identity}.gguf")]
    assert not files.exists()


def test_whoever_does_not_have_its_key_is_not_answered(model: Model, atlas: Path) -> None:
    registry, metrics = Registry(atlas), Metrics()
    backend = LlamaCpp(registry, ServeConfig(), metrics, model)

    async def contract() -> None:
        await backend.start()
        try:
            assert await backend.trouble() == ""
            assert backend.gauges()["adapters_loaded"] == 2
            body = {"prompt": "Who?", "n_predict": 1}
            refused = await asyncio.to_thread(httpx.post, f"{backend.url}/completion", json=body)
            assert refused.status_code == 401
            with pytest.raises(LorewrightError, match="does not take adapter"):
                await backend.load("0123456789abcdef")
            assert await backend.trouble() == ""
        finally:
            await backend.stop()

    asyncio.run(contract())


def test_a_base_without_a_gguf_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    network = llama(max_position_embeddings=192)
    other = Model(network, letters(), "tiny")
    Memory.open(tmp_path / "atlas", other).write(
        Knowledge(facts=(Fact("a", "Code of red?", "48"),)),
        name="red",
        config=WriteConfig(lora=LoraConfig(2), epochs=1),
    )
    with pytest.raises(ConfigError, match="needs a GGUF file of 'tiny', and there is none; conv"):
        LlamaCpp(Registry(tmp_path / "atlas"), ServeConfig(), Metrics(), other)
