"""Models of transformers and peft, and a checkpoint of Lightning, where these are installed.

Neither is a dependency: `pip install transformers peft lightning`, then
`python -m pytest tests/risk/test_frameworks.py`.
"""

import copy
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape import EmpiricalRisk, measure, problems
from landscape.params import LAYERS
from landscape.risk import _tokens

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = {"vocab_size": 60, "bos_token_id": 0, "eos_token_id": 0}
IDS = torch.randint(1, 60, (8, 10), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(10)[None] < torch.arange(4, 12)[:, None].clamp(max=10)).long()
CLASSES = torch.arange(8) % 3
WORDS = {
    "input_ids": IDS, "attention_mask": MASK, "labels": IDS.masked_fill(MASK == 0, -100),
}  # fmt: skip


def gpt2():
    hf = pytest.importorskip("transformers")
    config = hf.GPT2Config(n_positions=16, n_embd=16, n_layer=2, n_head=2, **SMALL)
    return hf.GPT2LMHeadModel(config)


def llama():
    hf = pytest.importorskip("transformers")
    config = hf.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16, **SMALL,
    )  # fmt: skip
    return hf.LlamaForCausalLM(config)


def adapted(make, modules, **options):
    peft = pytest.importorskip("peft")
    base = make()
    config = peft.LoraConfig(r=2, target_modules=modules, lora_dropout=0.1, **options)
    model = peft.get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return model


def next_tokens(model):
    logits = model(input_ids=IDS, attention_mask=MASK).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), WORDS["labels"][:, 1:])


def agrees(risk, model, loss, *, within=1e-9):
    """Loss, gradient and a Hessian product beside torch's own double backward.

    within: relative to their size; LLaMA's norms and angles are computed in float32 by itself, and
    in float64 by the risk.
    """
    model = copy.deepcopy(model).eval()
    weights = [p for p in model.parameters() if p.requires_grad]
    v = torch.randn(len(risk.theta), generator=torch.Generator().manual_seed(1)).double()
    with sdpa_kernel([SDPBackend.MATH]):
        value = loss(model)
        gradient = torch.autograd.grad(value, weights, create_graph=True)
        flat = torch.cat([g.reshape(-1) for g in gradient])
        product = torch.autograd.grad(flat @ v, weights, materialize_grads=True)
    products = torch.cat([p.reshape(-1) for p in product])
    for ours, theirs in (
        (risk.loss(risk.theta), value.detach()),
        (risk.gradient(risk.theta), flat.detach()),
        (risk.hvp(risk.theta, v), products),
    ):
        assert float((ours - theirs).norm()) <= within * float(theirs.norm())


MODELS = {
    "gpt2": gpt2,
    "llama": llama,
    "gpt2 with adapters": lambda: adapted(gpt2, ["c_attn"], fan_in_fan_out=True),
    "llama with adapters": lambda: adapted(llama, ["q_proj", "v_proj"]),
}


@pytest.mark.parametrize("loss", ["causal_lm", "model"])
@pytest.mark.parametrize("name", MODELS)
def test_language_models(name, loss):
    torch.manual_seed(0)
    model = MODELS[name]().double().train()
    whole = EmpiricalRisk(model, loss, [WORDS])
    agrees(whole, model, next_tokens, within=1e-5 if "llama" in name else 1e-9)
    cut = [{k: v[:3] for k, v in WORDS.items()}, {k: v[3:] for k, v in WORDS.items()}]
    parts = EmpiricalRisk(model, loss, cut)
    torch.testing.assert_close(parts.loss(parts.theta), whole.loss(whole.theta), rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_language_models_whose_logits_are_not_held(name, monkeypatch):
    monkeypatch.setattr(_tokens, "_LEAST", 0)
    torch.manual_seed(0)
    model = MODELS[name]().double()
    few, whole = (EmpiricalRisk(model, "causal_lm", [WORDS], memory=m) for m in (2**15, 2**30))
    assert few.provenance()["tokens_at_once"] > 0
    assert "tokens_at_once" not in whole.provenance()
    agrees(few, model, next_tokens, within=1e-5 if name == "llama" else 1e-9)
    v = whole.gradient(whole.theta)
    for product in ("linearized_hvp", "linearized_ggn"):
        a, b = (getattr(risk, product)(risk.theta)(v) for risk in (few, whole))
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12 * float(b.abs().max()))


def test_activation_checkpointing_of_transformers():
    model = gpt2().double()
    model.gradient_checkpointing_enable()
    agrees(EmpiricalRisk(model.train(), "causal_lm", [WORDS]), model, next_tokens)


def test_an_encoder_with_a_batch_encoding():
    hf = pytest.importorskip("transformers")
    config = hf.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    model = hf.BertForSequenceClassification(config).double()
    data = hf.BatchEncoding({"input_ids": IDS, "attention_mask": MASK, "labels": CLASSES})

    def loss(m):
        return F.cross_entropy(m(input_ids=IDS, attention_mask=MASK).logits, CLASSES)

    agrees(EmpiricalRisk(model, nn.CrossEntropyLoss(), data), model, loss)
    agrees(EmpiricalRisk(model, "model", data), model, loss)


def test_the_table_of_layers_says_what_gpt2_computes():
    hf = pytest.importorskip("transformers")
    layer = hf.pytorch_utils.Conv1D(5, 3)  # 3 in, 5 out
    assert LAYERS["transformers.pytorch_utils.Conv1D"].outputs == (1,)
    assert layer.weight.shape == (3, 5)
    assert layer(torch.ones(1, 3)).shape == (1, 5)
    risk = EmpiricalRisk(gpt2().double(), "causal_lm", [WORDS])
    found = {t.name: (t.kind, t.outputs) for t in risk.layout.tensors}
    assert found["transformer.h.0.attn.c_attn.weight"] == ("linear", (1,))
    blocks = measure.block_curvature(
        risk, risk.theta, by={"attention": "*attn*", "mlp": "*mlp*"}, num_probes=2,
        tolerance=0.1, certify="none", seed=0,
    )  # fmt: skip
    assert set(blocks.block.values) == {"attention", "mlp", "(rest)"}


def small():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def lightning_run(folder):
    """Two epochs of a module with averaged weights beside the raw ones, and its checkpoint."""
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = small()
            self.ema = copy.deepcopy(self.net).requires_grad_(False)

        def training_step(self, batch, _):
            with torch.no_grad():
                for kept, p in zip(self.ema.parameters(), self.net.parameters(), strict=True):
                    kept.lerp_(p, 0.1)
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-2)

    x, y = torch.randn(32, 4), torch.arange(32) % 3
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 8)
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    module = Module()
    trainer.fit(module, loader)
    trainer.save_checkpoint(folder / "run.ckpt")
    return types.SimpleNamespace(
        net=module.net, ema=module.ema, x=x, y=y, loader=loader, path=folder / "run.ckpt"
    )


def test_a_lightning_checkpoint_with_averaged_weights(tmp_path):
    run = lightning_run(tmp_path)
    for key, trained in ((None, run.net), ("state_dict.ema", run.ema)):
        model = small()
        said = str(problems.load_weights(model, run.path, weights_key=key))
        assert "which the file also holds" in said
        for own, theirs in zip(model.parameters(), trained.parameters(), strict=True):
            assert torch.equal(own, theirs)
        risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), run.loader)
        expected = F.cross_entropy(trained(run.x), run.y).detach()
        torch.testing.assert_close(risk.loss(risk.theta), expected)
