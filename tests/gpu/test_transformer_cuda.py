"""The transformer on a GPU: what the CPU gives, FlexAttention's documents, caches, compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genus.data.pack_text import pack_text
from genus.draws import Draws
from genus.networks.transformer import documents
from genus.networks.transformer.attention import attend
from genus.networks.transformer.cache import Cache
from genus.networks.transformer.decoder import Transformer, TransformerConfig
from genus.networks.transformer.scores import token_scores
from genus.samplers.beam import beam_search
from genus.samplers.tokens import generate
from genus.tracking import read_metrics
from launching import ROOT, command, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
DEVICE = "cuda"
V, LENGTH, CLASSES = 61, 200, 3
# FlexAttention on CUDA wants 16 channels a head and more.
CONFIGS = {
    "gpt2": TransformerConfig(width=64, depth=2, heads=2, positions="learned"),
    "llama": TransformerConfig(
        width=64, depth=2, heads=4, kv_heads=2, mlp="swiglu", mlp_width=96, norm="rms",
        tied=False, bias=False,
    ),
    "qk": TransformerConfig(width=96, depth=2, heads=3, kv_heads=1, qk_norm=True, norm="rms"),
}  # fmt: skip
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


@pytest.fixture(autouse=True)
def _no_tf32() -> None:
    """Products in float32 as the CPU makes them."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def built(config: TransformerConfig, classes: int = 0) -> Transformer:
    """On the CPU, with weights far from 0, so that everything matters."""
    torch.manual_seed(0)
    network = config.build(vocabulary=V, length=LENGTH, classes=classes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def tokens(rows: int = 3, length: int = LENGTH) -> Tensor:
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(1))


def packing(rows: int = 3) -> Tensor:
    """(rows, LENGTH): five documents a row or fewer."""
    number = torch.randint(5, (rows, LENGTH), generator=torch.Generator().manual_seed(2))
    return number.sort(1).values


def outputs(network: Transformer, document: Tensor | None = None) -> dict[str, Tensor]:
    """Logits, scores, and the gradient of the mean loss, on the CPU whatever made them."""
    device = network.embedding.weight.device
    x, y = tokens().to(device), tokens().flip(1).to(device)
    document = None if document is None else document.to(device)
    network.zero_grad()
    scores: Any = network(x, targets=y, document=document)
    scores.nats.mean().backward()
    with torch.no_grad():
        logits = network(x, document=document)
    gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
    named = {**scores._asdict(), "logits": logits, "gradient": torch.cat(gradients)}
    return {name: value.detach().cpu() for name, value in named.items()}


def distance(a: Tensor, b: Tensor) -> float:
    """Of ``b`` from ``a``, relative to a."""
    return float((a - b).norm() / a.norm())


@every_config
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "documents"])
def test_logits_scores_and_gradients_are_the_cpus(config: TransformerConfig, packed: bool) -> None:
    """``documents``: by FlexAttention here, by a dense mask on the CPU."""
    network, document = built(config), packing() if packed else None
    expected = outputs(network, document)
    network.to(DEVICE)
    exact = outputs(network, document)
    with torch.autocast(DEVICE, torch.bfloat16):
        rounded = outputs(network, document)
    for name, value in expected.items():
        assert distance(value, exact[name]) < 1e-4, name
        assert distance(value, rounded[name]) < (0.1 if name == "gradient" else 0.03), name
    if packed:  # and documents matter
        assert distance(expected["logits"], outputs(network)["logits"]) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flex_attention_is_attention_under_the_dense_mask(dtype: torch.dtype) -> None:
    number, _ = documents.document_spans(packing(2).to(DEVICE))
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 4, LENGTH, 32), (2, 2, LENGTH, 32), (2, 2, LENGTH, 32)
    q, k, v = (torch.randn(s, generator=generator).to(DEVICE, dtype) for s in shapes)
    blocks = documents.block_mask(number)
    flex = documents.flex_attention(q, k, v, blocks).transpose(1, 2).flatten(2)
    dense = attend(q.float(), k.float(), v.float(), mask=documents.dense_mask(number))
    assert flex.dtype == dtype
    assert distance(dense, flex.float()) < (1e-5 if dtype == torch.float32 else 0.01)


# ---- caches and samplers -------------------------------------------------------------------------


@torch.no_grad()
def follow(network: Transformer, x: Tensor, cache: Cache, parts: list[int]) -> Tensor:
    """Logits of x fed in parts, side by side."""
    return torch.cat([network(part, cache=cache) for part in x.split(parts, 1)], 1)


@every_config
@pytest.mark.parametrize("static", [False, True], ids=["eager", "static"])
def test_cached_logits_are_the_full_ones(config: TransformerConfig, static: bool) -> None:
    network, x = built(config).to(DEVICE), tokens()[:, :12].to(DEVICE)
    with torch.no_grad():
        full = network(x)
    for parts in ([5, *[1] * 7], [3, 4, 1, 4]):
        cached = follow(network, x, Cache(12, static=static), parts)
        torch.testing.assert_close(cached, full, rtol=1e-4, atol=1e-4)
        with torch.autocast(DEVICE, torch.bfloat16):
            rounded = follow(network, x, Cache(12, static=static), parts)
        assert distance(full, rounded) < 0.03


@every_config
def test_a_compiled_step_with_a_static_cache(config: TransformerConfig) -> None:
    """The full logits for prompts of unequal length; one graph serves every position."""
    from torch._dynamo.testing import CompileCounterWithBackend

    network, x = built(config).to(DEVICE), tokens()[:, :12].to(DEVICE)
    lengths = torch.tensor([2, 5, 1], device=DEVICE)
    rows = torch.arange(3, device=DEVICE)
    counter = CompileCounterWithBackend("inductor")
    torch._dynamo.reset()
    step = torch.compile(network, backend=counter, fullgraph=True, dynamic=False)
    cache = Cache(12, static=True)
    with torch.no_grad():
        full = network(x)
        network(x[:, :5], cache=cache, lengths=lengths.clone())
        for new in range(7):
            logits = step(x[rows, lengths + new][:, None], cache=cache)[:, 0]
            torch.testing.assert_close(logits, full[rows, lengths + new], rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1


@every_config
@pytest.mark.parametrize("static", [False, True], ids=["eager", "static"])
def test_generated_tokens_are_the_cpus(config: TransformerConfig, static: bool) -> None:
    """In float64, where rounding can't decide which token comes; numbers drawn on the CPU."""
    network = built(config, CLASSES).double()
    given = tokens()[:, :5], torch.tensor([2, 5, 1]), torch.tensor([0, 2, CLASSES])

    def drawn(device: str, **how: Any) -> Tensor:
        prompts, lengths, label = (part.to(device) for part in given)
        how |= {"label": label, "classes": CLASSES, "static": static}
        args = network.to(device), prompts, lengths, 40, Draws.of(range(3))
        return generate(*args, **how).cpu()

    for how in (
        {"temperature": 0},
        {"temperature": 0.8, "top_k": 20, "end": 7},
        {"top_p": 0.9, "min_p": 0.01, "guidance": 2.0},
    ):
        expected = drawn("cpu", **how)
        assert torch.equal(drawn(DEVICE, **how), expected)
        assert len(expected.unique()) > 3


@every_config
@pytest.mark.parametrize("static", [False, True], ids=["eager", "static"])
def test_beam_search_finds_what_the_cpu_finds(config: TransformerConfig, static: bool) -> None:
    network, prompts, lengths = built(config).double(), tokens()[:, :5], torch.tensor([2, 5, 1])
    how: dict[str, Any] = {"beams": 4, "end": 7, "static": static}
    expected = beam_search(network, prompts, lengths, 20, **how)
    found = beam_search(network.to(DEVICE), prompts.to(DEVICE), lengths.to(DEVICE), 20, **how)
    assert torch.equal(found.tokens.cpu(), expected.tokens)
    torch.testing.assert_close(found.scores.cpu(), expected.scores, rtol=0, atol=1e-9)


# ---- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bf16", [False, True])
def test_chunked_scores_need_less_memory_than_whole_logits(bf16: bool) -> None:
    rows, vocabulary, width = 32 * 1024, 50_304, 64
    hidden = torch.randn(rows, width, device=DEVICE, requires_grad=True)
    weight = torch.randn(vocabulary, width, device=DEVICE, requires_grad=True)
    targets = torch.randint(vocabulary, (rows,), device=DEVICE)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.autocast(DEVICE, torch.bfloat16, enabled=bf16):
        nats, _ = token_scores(hidden, weight, targets)
    nats.mean().backward()
    peak = torch.cuda.max_memory_allocated() - before
    whole = 4 * rows * vocabulary  # bytes, of the float32 logits alone, without a gradient
    assert peak < 0.35 * whole, f"{peak / 2**30:.2f} GiB of {whole / 2**30:.2f}"


@every_config
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "documents"])
def test_compiled_bfloat16_training_follows_the_eager_one(
    config: TransformerConfig, packed: bool
) -> None:
    x, document = tokens().to(DEVICE), packing().to(DEVICE) if packed else None
    losses: dict[str, list[float]] = {"eager": [], "compiled": []}
    for name in losses:
        network = built(config).to(DEVICE).train()
        if name == "compiled":
            torch._dynamo.reset()
            network.compile()
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, fused=True)
        for _ in range(8):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(DEVICE, torch.bfloat16):
                scores: Any = network(x, targets=x.roll(-1, 1), document=document)
            loss = scores.nats.mean()
            loss.backward()
            optimizer.step()
            losses[name].append(loss.item())
    assert losses["compiled"] == pytest.approx(losses["eager"], rel=0.02)
    assert losses["eager"][-1] < 0.8 * losses["eager"][0]


@pytest.mark.parametrize("compiled", ["false", "true"])
def test_the_recipe_trains_on_packed_text(compiled: str, tmp_path: Path) -> None:
    text = ROOT / "tests" / "data" / "shakespeare.txt"
    pack_text([text], tmp_path / "text", tokenizer="characters", separator="\n\n")
    words = ["--preset", "tiny", "tracking.wandb=off", "run.root=.", "run.name=run",
             f"data.url={tmp_path / 'text'}", "data.size=128", "objective.documents=true",
             "objective.label_dropout=0", "train.sample_every=320", "train.precision=bf16",
             f"train.compile={compiled}"]  # fmt: skip
    run(command(1, *words, recipe="recipes/autoregressive.py"), tmp_path, timeout=500, cuda=True)
    losses = [row["predict/loss"] for row in read_metrics(tmp_path / "run") if "step" in row]
    assert losses[-1] < losses[0] - 0.3
    assert len(list((tmp_path / "run" / "samples").glob("*.txt"))) == 2
