"""What lies between the runs of a setting; made once all of them are trained.

Each run measures its own part, so that the pool shares them out and a killed study goes on: a row
of the barrier matrix, or the curve or plane that starts at it.
"""

from collections.abc import Sequence

import xarray as xr

from landscape import measure
from landscape.errors import LandscapeError
from landscape.results import Variable
from landscape.risk import BNMode
from landscape.study.finished_run import FinishedRun
from landscape.study.measurements.record import FORWARD, Record
from landscape.study.spec import Run


def barrier(
    done: FinishedRun,
    *,
    variants: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (),
    points: int,
    bn: BNMode,
) -> xr.Dataset | None:
    """Barriers from this run to half of the others (the matrix is symmetric), and 0 to itself.

    variants, seeds: which runs take part; all by default.
    """
    chosen = [
        run
        for run in done.job.peers
        if (not variants or run.variant in variants or run.family in variants)
        and (not seeds or run.seed in seeds)
    ]
    if len(chosen) < 2:
        raise LandscapeError(
            f"[measure.barrier] variants = {list(variants)}, seeds = {list(seeds)} leave "
            f"{len(chosen)} trained run of setting {done.run.setting!r}; a barrier is between two."
        )
    if done.run not in chosen:
        return None
    others = _half(chosen, chosen.index(done.run))
    return measure.barrier(
        done.risk(),
        done.theta,
        others={run.run_id: done.theta_of(run) for run in (done.run, *others)},
        points=points,
        bn=bn,
    )


def _half(runs: Sequence[Run], start: int) -> list[Run]:
    """The next half of a ring of runs, so that every pair is somebody's and the work is even."""
    count = len(runs)
    reach = (count - 1) // 2 + (count % 2 == 0 and start < count // 2)
    return [runs[(start + step) % count] for step in range(1, reach + 1)]


def bezier(
    done: FinishedRun,
    *,
    between: tuple[str, ...] = (),
    steps: int,
    lr: float,
    momentum: float,
    batch_size: int,
    points: int,
    bn: BNMode,
) -> xr.Dataset | None:
    """A trained curve between two runs.

    between: "variant" or "variant/seed" of both; the first two variants, or else seeds, by default.
    """
    named = _named(done, "bezier", between, 2)
    if done.run != named[0]:
        return None
    how = measure.CurveTraining(steps=steps, lr=lr, momentum=momentum, batch_size=batch_size)
    ds = measure.bezier(
        done.risk(),
        done.theta,
        end=done.theta_of(named[1]),
        training=how,
        points=points,
        bn=bn,
        seed=done.seed,
    )
    # Large, and made again by the same seed.
    ds = ds.drop_vars("control_point")
    return ds.assign(end=Variable((), _label(named[1]), "1", "Run at the end").as_xarray())


def three_points(
    done: FinishedRun,
    *,
    through: tuple[str, ...] = (),
    cells: int,
    margin: float,
    bn: BNMode,
) -> xr.Dataset | None:
    """The plane through three runs.

    through: "variant" or "variant/seed" of each; the first three variants, or else seeds, by
    default.
    """
    named = _named(done, "three_points", through, 3)
    if done.run != named[0]:
        return None
    return measure.three_points(
        done.risk(),
        {_label(run): done.theta_of(run) for run in named},
        cells=cells,
        margin=margin,
        bn=bn,
        seed=done.seed,
    )


def _label(run: Run) -> str:
    return f"{run.label}, seed {run.seed}"


def _named(done: FinishedRun, measurement: str, names: Sequence[str], count: int) -> list[Run]:
    """The runs that were named, or the first of each variant, then any others."""
    if names:
        found = [done.peer(name) for name in names]
    else:
        firsts = {run.variant: run for run in reversed(done.job.peers)}
        lowest = [run for run in done.job.peers if firsts[run.variant] == run]
        found = [*lowest, *(run for run in done.job.peers if run not in lowest)][:count]
    if len({run.run_id for run in found}) != count or len(found) != count:
        raise LandscapeError(
            f"[measure.{measurement}] needs {count} different runs of setting "
            f"{done.run.setting!r}; {', '.join(names) or f'it has {len(found)}'} was given. Name "
            f"them as 'variant/seed', or run more seeds."
        )
    return found


# Of all runs of a setting together, as the share of each; statistics re-estimated at each point.
RECORDS = (
    Record(
        barrier,
        cost=lambda o, work: ((work.num_runs - 1) / 2 * (o["points"] - 1) + 1) * 2 * FORWARD,
        across_runs=True,
        least={"seeds": 0},
        variants=("variants",),
    ),
    Record(
        bezier,
        of=(measure.bezier, measure.CurveTraining),
        above=("lr",),
        below={"momentum": 1},
        least={"batch_size": 2},
        cost=lambda o, work: (o["steps"] / 2 + 4 * o["points"] * FORWARD) / work.num_runs,
        across_runs=True,
        variants=("between",),
    ),
    Record(
        three_points,
        cost=lambda o, work: (
            (o["cells"] * (1 + 2 * o["margin"]) + 1) ** 2 * 2 * FORWARD / work.num_runs
        ),
        most={"margin": 10},
        across_runs=True,
        variants=("through",),
    ),
)
