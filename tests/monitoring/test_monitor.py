"""A monitor sees what is measured afterwards, bit for bit, and leaves the training as it is."""

import contextlib
import copy
import importlib.util
import json
import math

import pytest
import torch
from torch import nn

from landscape import EmpiricalRisk, LandscapeError, measure, monitor, sam
from landscape.monitoring import JsonLines, TensorBoard, WandB, looking, sinks, terminal

CRITERION = nn.CrossEntropyLoss()
BOTH = ("critical_sharpness", "lambda_1")
needs = importlib.util.find_spec


def problem(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3)
    )
    y = torch.arange(48) % 3
    return model, torch.randn(48, 4) + y[:, None], y


def base(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def by_hand(model, x, y):
    """SAM as people write it, around any base optimizer."""
    optimizer, rho = base(model), 0.05

    def step():
        optimizer.zero_grad()
        CRITERION(model(x), y).backward()
        with torch.no_grad():
            norm = torch.sqrt(sum(p.grad.square().sum() for p in model.parameters()))
            moves = [rho * p.grad / norm for p in model.parameters()]
            olds = [p.clone() for p in model.parameters()]
            for p, e in zip(model.parameters(), moves, strict=True):
                p += e
        optimizer.zero_grad()
        CRITERION(model(x), y).backward()
        with torch.no_grad():
            for p, old in zip(model.parameters(), olds, strict=True):
                p.copy_(old)
        optimizer.step()

    return optimizer, step


def ours(recipe):
    def make(model, x, y):
        optimizer = sam.SAM(model, base(model), recipe, seed=0)

        def closure():
            optimizer.zero_grad()
            loss = CRITERION(model(x), y)
            loss.backward()
            return loss

        return optimizer, lambda: optimizer.step(closure)

    return make


def plain(model, x, y):
    optimizer = base(model)

    def step():
        optimizer.zero_grad()
        CRITERION(model(x), y).backward()
        optimizer.step()

    return optimizer, step


LOOPS = {
    "sgd": plain, "sam by hand": by_hand, "sam": ours(sam.sam(rho=0.05)),
    "zsharp": ours(sam.zsharp(rho=0.05, percentile=0.5)),
}  # fmt: skip


def trained(loop, steps, *, watched=True, **options):
    """The model, the monitor, copies of the model after each step, and what the optimizer told."""
    model, x, y = problem()
    optimizer, step = loop(model, x[:32], y[:32])
    models, told = {}, {}
    with contextlib.ExitStack() as stack:
        found = None
        if watched:
            options = {"sinks": [], "every": 3, "measures": BOTH} | options
            found = stack.enter_context(monitor(model, optimizer, CRITERION, (x, y), **options))
        for k in range(1, steps + 1):
            step()
            models[k] = copy.deepcopy(model)
            if isinstance(optimizer, sam.SAM):
                told[k] = optimizer.perturbation
    return model, found, models, told


@pytest.mark.parametrize("name", LOOPS)
def test_the_training_keeps_its_bits(name):
    alone, *_ = trained(LOOPS[name], 10, watched=False)
    rng = torch.get_rng_state()
    watched, found, *_ = trained(LOOPS[name], 10)
    assert torch.equal(torch.get_rng_state(), rng)
    assert len(found.records) == 3
    for a, b in zip(alone.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(alone.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("name", ["sgd", "zsharp"])
def test_what_is_seen_is_what_is_measured_afterwards_bit_for_bit(name):
    _, found, models, _ = trained(LOOPS[name], 9)
    _, x, y = problem()
    assert [r["step"] for r in found.records] == [3, 6, 9]
    for record in found.records:
        risk = EmpiricalRisk(models[record["step"]], CRITERION, (x, y))
        ds = measure.top_eigenvalues(risk, risk.theta, k=1, seed=0)
        assert record["risk"] == float(risk.loss(risk.theta))
        assert record["lambda_1"] == float(ds.eigenvalue[0])
        assert record["lambda_1_bound"] == float(ds.bound[0])
        assert record["lambda_1_converged"] == bool(ds.converged[0])
        ds = measure.critical_sharpness(risk, risk.theta)
        assert record["critical_sharpness"] == float(ds.critical_sharpness)


def test_what_a_step_perturbed_is_what_the_optimizer_tells():
    _, found, _, told = trained(LOOPS["zsharp"], 6)
    for record in found.records:
        e = told[record["step"]]
        assert record["rho"] == float(e.rho) == 0.05
        # e as it was added to the weights differs from e by the rounding of the sum.
        assert record["perturbation_norm"] == pytest.approx(float(e.norm), rel=1e-5)
        assert record["radius_ratio"] == pytest.approx(1.0, rel=1e-5)
        assert record["loss_clean"] == float(e.loss_clean)
        assert record["loss_perturbed"] == float(e.loss_perturbed)
        assert record["loss_gap"] == record["loss_perturbed"] - record["loss_clean"]
        for name, share in e.energy_share.items():
            assert record["energy_share"][name] == pytest.approx(float(share), rel=1e-4, abs=1e-12)
        density = {n: float(d) for n, d in e.density.items()}
        # A bias before BatchNorm has no gradient but rounding, which moves no weight.
        assert record["density"] == density | {"0.bias": 0.0}


def test_sam_of_somebody_else_and_no_sam_at_all():
    _, found, *_ = trained(LOOPS["sam by hand"], 6)
    record = found.records[-1]
    assert record["perturbation_norm"] == pytest.approx(0.05, rel=1e-5)
    assert record["loss_perturbed"] != record["loss_clean"]
    assert math.isnan(record["rho"])  # nobody names it
    _, found, *_ = trained(LOOPS["sgd"], 3)
    assert found.records[0]["perturbation_norm"] == 0.0
    assert found.records[0]["energy_share"] == {}


def test_the_doctors_alarms_come_with_the_steps():
    _, found, *_ = trained(LOOPS["sam by hand"], 3)
    assert any(alarm.startswith("dropout: ") for alarm in found.records[0]["alarms"])


def test_without_data_only_steps_are_looked_at():
    model, x, y = problem()
    optimizer, step = by_hand(model, x, y)
    with monitor(model, optimizer, every=1, sinks=[]) as found:
        step()
    assert "lambda_1" not in found.records[0]
    assert found.records[0]["perturbation_norm"] > 0


class Clock:
    """Seconds that only pass where the test says so."""

    now = 0.0

    def perf_counter(self):
        return self.now

    process_time = perf_counter


class BusyClock(Clock):
    """Of a machine that others use: this process has a tenth of the time, unless it is `alone`."""

    own, alone = 0.0, False

    def process_time(self):
        return self.own

    def passes(self, seconds):
        """Of work."""
        self.own += seconds
        self.now += seconds if self.alone else 10 * seconds


def test_looks_take_their_share_of_this_process_where_others_take_the_time(monkeypatch):
    clock = BusyClock()
    monkeypatch.setattr(looking, "time", clock)
    model, *_ = problem()
    optimizer = base(model)
    with monitor(model, optimizer, share=0.01, sinks=[lambda _: clock.passes(3.0)]) as found:
        for k in range(20_000):
            clock.alone = k % 1000 > 800
            clock.passes(1.0)
            found._stepped()
            if len(found.records) > 1:
                for spent, passed in zip(found.looks.spent, found.looks.passed(), strict=True):
                    assert spent <= 0.01 * passed + 1e-9
    assert len(found.records) > 30


@pytest.mark.parametrize(("look", "share"), [(50.0, 0.01), (3.0, 0.05)])
def test_looks_take_their_share_of_the_time_and_no_more(look, share, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(looking, "time", clock)
    model, *_ = problem()
    optimizer = base(model)

    def costly(_):
        clock.now += look

    with monitor(model, optimizer, share=share, sinks=[costly]) as found:
        for _ in range(15_000):
            clock.now += 1.0
            found._stepped()  # a step, as far as the monitor sees
            if found.records:
                assert found.look_seconds <= share * clock.now or len(found.records) == 1
    assert len(found.records) >= 2
    apart = [b["step"] - a["step"] for a, b in zip(found.records[1:], found.records[2:])]
    assert all(gap == pytest.approx(look * (1 - share) / share, abs=2) for gap in apart)


def test_a_look_that_takes_longer_than_the_one_before_stays_within_the_share(monkeypatch):
    clock, looks = Clock(), iter([0.2, 0.27, 0.33, 0.3, 0.42, 0.3, 0.44] + [0.4] * 1000)
    monkeypatch.setattr(looking, "time", clock)
    model, *_ = problem()

    def costly(_):
        clock.now += next(looks)

    with monitor(model, base(model), share=0.01, sinks=[costly]) as found:
        for _ in range(60_000):
            clock.now += 0.01
            found._stepped()
            if len(found.records) > 1:
                assert found.look_seconds <= 0.01 * clock.now + 1e-9
    assert len(found.records) > 10


def test_lambda_1_waits_until_its_time_has_passed(monkeypatch):
    """A loss takes a second here and a step ten: 25 products of 8 losses are affordable, later."""
    clock = Clock()
    monkeypatch.setattr(looking, "time", clock)
    loss = EmpiricalRisk.loss

    def slow(risk, theta):
        clock.now += 1.0
        return loss(risk, theta)

    monkeypatch.setattr(EmpiricalRisk, "loss", slow)
    model, x, y = problem()
    with monitor(model, base(model), CRITERION, (x, y), share=0.5, sinks=[]) as found:
        while len(found.records) < 3:
            clock.now += 10.0
            found._stepped()
            if len(found.records) == 2:
                assert found.look_seconds + 200 <= 0.5 * (clock.now + 200)
    assert ["lambda_1" in record for record in found.records] == [False, True, True]
    assert found.notes == []


def test_what_is_dear_is_left_out_unless_it_is_asked_for():
    _, found, *_ = trained(LOOPS["sgd"], 3, measures=None, share=1e-9)
    assert "lambda_1" not in found.records[0]
    assert "critical_sharpness" in found.records[0]
    assert found.notes[0].startswith("lambda_1 is left out: it takes about")
    _, found, *_ = trained(LOOPS["sgd"], 3, measures=("critical_sharpness",))
    assert found.notes == []


def test_json_lines_and_the_terminal(tmp_path, capsys):
    path = tmp_path / "log" / "monitor.jsonl"
    _, found, *_ = trained(LOOPS["sgd"], 6, sinks=[JsonLines(path), terminal])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6]
    assert lines[0]["lambda_1"] == found.records[0]["lambda_1"]
    assert lines[0]["loss_perturbed"] is None  # nan has no JSON
    said = capsys.readouterr().err
    assert said.startswith("step 3: risk ")
    assert "λ₁" in said


class Writer:
    def __init__(self):
        self.scalars, self.texts, self.logged, self.alerts, self.defined = {}, {}, [], [], []

    def add_scalar(self, tag, value, step):
        self.scalars[tag, step] = value

    def add_text(self, tag, text, step):
        self.texts[tag, step] = text

    def flush(self):
        pass

    def define_metric(self, *arguments, **options):
        self.defined.append((arguments, options))

    def log(self, values):
        self.logged.append(values)

    def alert(self, *, title, text):
        self.alerts.append(title)


def test_loggers_get_numbers_at_the_step_and_each_alarm_once():
    writer = Writer()
    _, found, *_ = trained(LOOPS["sam by hand"], 6, sinks=[TensorBoard(writer), WandB(writer)])
    record = found.records[1]
    assert writer.scalars["landscape/lambda_1", 6] == record["lambda_1"]
    share = record["energy_share"]["0.weight"]
    assert writer.scalars["landscape/energy_share/0.weight", 6] == share
    assert ("landscape/rho", 6) not in writer.scalars  # nan
    assert "dropout" in writer.texts["landscape/alarms", 3]
    assert writer.logged[1]["landscape/step"] == 6
    assert writer.logged[1]["landscape/perturbation_norm"] == record["perturbation_norm"]
    assert writer.alerts.count("landscape: dropout") == 1


@pytest.mark.skipif(not needs("tensorboard"), reason="tensorboard is not installed")
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_what_was_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, found, *_ = trained(LOOPS["sgd"], 6, sinks=[TensorBoard(tmp_path)])
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    seen = events.Scalars("landscape/lambda_1")
    assert [e.step for e in seen] == [3, 6]
    assert seen[0].value == pytest.approx(found.records[0]["lambda_1"], rel=1e-6)


@pytest.mark.skipif(not needs("wandb"), reason="wandb is not installed")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(tmp_path, monkeypatch):
    import wandb

    monkeypatch.chdir(tmp_path)
    run = wandb.init(mode="offline", dir=str(tmp_path), settings=wandb.Settings(silent=True))
    trained(LOOPS["sgd"], 6, sinks=[WandB(run)])
    summary = dict(run.summary)
    run.finish()
    assert summary["landscape/step"] == 6
    assert list(tmp_path.rglob("*.wandb"))


@pytest.mark.skipif(not needs("lightning"), reason="lightning is not installed")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path):
    import lightning

    from landscape.monitoring.callbacks import lightning_callback

    model, x, y = problem()

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = model

        def training_step(self, batch, _):
            return CRITERION(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            return base(self)

    callback = lightning_callback(
        CRITERION, (x, y), every=3, sinks=[], measures=BOTH, module="network"
    )
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16)
    trainer = lightning.Trainer(
        max_epochs=3, callbacks=[callback], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, accelerator="cpu", default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Module(), loader)
    records = callback.monitor.records
    assert [r["step"] for r in records] == [3, 6, 9]
    assert records[0]["perturbation_norm"] == 0.0
    risk = EmpiricalRisk(model, CRITERION, (x, y))
    ds = measure.top_eigenvalues(risk, risk.theta, k=1, seed=0)
    assert records[-1]["lambda_1"] == float(ds.eigenvalue[0])
    assert not callback.monitor.active


@pytest.mark.skipif(
    not (needs("transformers") and needs("accelerate")), reason="transformers is not installed"
)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trainer(tmp_path):
    from transformers import Trainer, TrainingArguments

    from landscape.monitoring.callbacks import trainer_callback

    model, x, y = problem()

    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = model

        def forward(self, x, labels=None):
            logits = self.network(x)
            return {"loss": CRITERION(logits, labels), "logits": logits}

    rows = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
    callback = trainer_callback(every=3, sinks=[])
    arguments = TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=1, per_device_train_batch_size=8, report_to=[],
        use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    Trainer(WithLoss(), arguments, train_dataset=rows, callbacks=[callback]).train()
    assert [r["step"] for r in callback.monitor.records] == [3, 6]
    assert callback.monitor.records[0]["perturbation_norm"] == 0.0


def test_what_is_not_possible_is_refused_by_name():
    model, x, y = problem()
    optimizer = base(model)
    with pytest.raises(LandscapeError, match="loss without data"):
        monitor(model, optimizer, CRITERION)
    with pytest.raises(LandscapeError, match="a Sequential as optimizer"):
        monitor(model, model)
    with pytest.raises(LandscapeError, match="every"):
        monitor(model, optimizer, every=0)
    with pytest.raises(LandscapeError, match="share=0"):
        monitor(model, optimizer, share=0)
    with pytest.raises(LandscapeError, match="trace"):
        monitor(model, optimizer, CRITERION, (x, y), measures=["trace"])
    with pytest.raises(LandscapeError, match="need loss and data"):
        monitor(model, optimizer, measures=BOTH)
    unseen = pytest.warns(UserWarning, match="No step of the SGD was seen")
    with unseen, monitor(model, optimizer, sinks=[]):
        pass


def test_numbers_of_a_record_by_name():
    record = {"step": 3, "a": 1.0, "b": math.nan, "c": {"x": 2.0}, "alarms": ["q"], "d": True}
    assert dict(sinks.scalars(record)) == {"a": 1.0, "c/x": 2.0, "d": 1.0}
