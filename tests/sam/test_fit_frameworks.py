"""The documented loops in the frameworks themselves, where they are installed.

pip install pytorch-lightning transformers accelerate
"""

import pytest
import torch
from torch import nn

from landscape import sam
from tests.sam.test_fit_loops import documented
from tests.sam_models import same

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


def network():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return model


def examples():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 20, generator=generator)
    return x, torch.randint(0, 3, (64,), generator=generator)


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def loss_and_backward(model, x, y):
    def closure():
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def test_lightning_trains_with_the_documented_step():
    lightning = pytest.importorskip("pytorch_lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization, self.model = False, network()

        def compute_loss(self, batch):
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return sam.SAM(self, sgd(self), sam.zsharp(0.1))

        training_step = documented(0)["training_step"]

    data = torch.utils.data.TensorDataset(*examples())
    loader = torch.utils.data.DataLoader(data, batch_size=16)
    module = Module()
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader)
    theirs = network()
    reference = sam.SAM(theirs, sgd(theirs), sam.zsharp(0.1))
    for _ in range(3):
        for x, y in loader:
            loss = reference.step(loss_and_backward(theirs, x, y))
    assert same(module.model.parameters(), theirs.parameters())
    assert float(trainer.callback_metrics["loss"]) == float(loss)


def test_the_trainer_of_transformers_accumulates_clips_and_steps(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network()

        def forward(self, x, labels):
            logits = self.network(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    ours, (x, y) = Model(), examples()
    optimizer = sam.SAM(ours, sgd(ours), sam.sam(0.1))
    trainer = documented(1, Trainer=transformers.Trainer, sam_optimizer=optimizer)["SAMTrainer"]
    trainer = trainer(
        model=ours,
        args=transformers.TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=8,
            num_train_epochs=2,
            gradient_accumulation_steps=2,
            max_grad_norm=0.3,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=[{"x": a, "labels": b} for a, b in zip(x, y, strict=True)],
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
    )
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(x)
    trainer.train()

    theirs = network()
    base, reference = sgd(theirs), sam.SAM(theirs, sgd(theirs, lr=0.0), sam.sam(0.1))
    for start in [*range(0, 64, 16)] * 2:
        total = [torch.zeros_like(p) for p in theirs.parameters()]
        for i in (start, start + 8):
            reference.step(loss_and_backward(theirs, x[i : i + 8], y[i : i + 8]))
            total = [t + p.grad / 2 for t, p in zip(total, theirs.parameters(), strict=True)]
        for p, t in zip(theirs.parameters(), total, strict=True):
            p.grad = t
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.3)
        base.step()
        base.zero_grad()  # what the next step would find was put there by hand
    assert optimizer.step_count == 8
    for p, q in zip(ours.network.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
