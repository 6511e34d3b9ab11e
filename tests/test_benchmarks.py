"""The benchmarks do what they say. How fast anything is, is never asserted."""

import io
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import roialign.integrations.accelerate as accelerated

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import compare, floors, models, runner
from benchmarks.__main__ import app
from benchmarks.device import CPU
from benchmarks.directions import DIRECTIONS, Mode, directions_on
from benchmarks.peer import Peer, Pool
from benchmarks.peers import OURS, PEERS, Torchvision
from benchmarks.plot import plot
from benchmarks.report import FLOOR, FLOOR_AT_HAND, PLAIN_FLOOR, Report, Result, Timing, geometric_mean, print_report
from benchmarks.workloads import FAMILY, PYRAMID, SIX, TINY, WORKLOADS, Map, Workload, make_case, select


def shrink(workload: Workload) -> Workload:
    """Few boxes and channels; and few cells, but where the boxes are to keep off the last of them."""
    if workload.group == "position_sensitive":
        return replace(workload, channels=3 * 49, boxes=6)
    maps = tuple(Map(tuple(length // 4 for length in map.size), map.stride * 4) for map in workload.maps)
    return replace(workload, channels=5, boxes=6, maps=maps)


SMALL = {it.name: shrink(it) for it in (*SIX, PYRAMID, *FAMILY) if "coco" not in it.name}


def small_report() -> Report:
    timing = {"torchvision": 8.0, "our float32": 1.5, FLOOR: 0.5, PLAIN_FLOOR: 0.8}
    others = {name: Timing([1e-3 * value] * 3, 0.0) for name, value in timing.items()}
    first = Result("fpn_p2", "six", "forward", 2, Timing([1e-3, 1e-3, 5e-3]), others, {})
    second = replace(
        first, workload="fpn_p4", others={"torchvision": Timing([2e-3])}, refused={"openvino": "fails: no"}
    )
    return Report(runner.machine(2, 0.0), [first, second])


def test_the_six_workloads_are_those_of_the_design() -> None:
    table = {
        "fpn_p2": (256, 200, 336, 4, 1000, 7, 2, False, 16, 112),
        "fpn_p4": (256, 50, 84, 16, 1000, 7, 2, False, 112, 448),
        "fpn_p2_adaptive": (256, 200, 336, 4, 1000, 7, 0, True, 16, 112),
        "c4_adaptive": (1024, 50, 84, 16, 300, 14, 0, True, 32, 600),
        "mobilenet": (1280, 25, 42, 32, 1000, 7, 2, False, 32, 600),
        "mask": (256, 100, 168, 8, 100, 14, 2, False, 56, 224),
    }
    found = {
        it.name: (
            it.channels,
            *it.maps[0].size,
            it.maps[0].stride,
            it.boxes,
            it.output,
            it.ratio,
            it.aligned,
            *it.sides,
        )
        for it in SIX
    }
    assert found == table


def test_boxes_follow_the_stated_distribution() -> None:
    wide = replace(SIX[0], maps=(Map((5000, 8000), 4),), boxes=20_000)  # so large an image that few boxes are clipped
    boxes = wide.make_boxes().double()
    size = boxes[:, 2:] - boxes[:, :2]
    inside = (boxes[:, :2] > 0).all(1) & (boxes[:, 2] < 32_000) & (boxes[:, 3] < 20_000)
    assert inside.double().mean() > 0.98
    side, aspect = size[inside].prod(1).sqrt(), size[inside, 0] / size[inside, 1]
    centre = (boxes[:, 2:] + boxes[:, :2]) / 2 / torch.tensor([32_000, 20_000])
    assert side.min() >= 16 - 1e-2
    assert side.max() <= 112 + 1e-2
    assert aspect.min() >= 0.5 - 1e-2
    assert aspect.max() <= 2 + 1e-2
    quarters = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    for uniform in ((side / 16).log() / math.log(7), aspect.log2() / 2 + 0.5, *centre.T):
        torch.testing.assert_close(uniform.quantile(quarters), quarters, atol=0.02, rtol=0)


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_boxes_lie_in_the_image_and_are_the_same_every_time(workload: Workload) -> None:
    boxes = workload.make_boxes()
    low, high = boxes.chunk(2, 1)
    assert boxes.shape == (workload.boxes, 2 * workload.rank)
    assert (low >= 0).all()
    assert (high <= torch.tensor(workload.image[::-1])).all()
    assert (high > low).all()
    assert torch.equal(workload.make_rois(), workload.make_rois())


@pytest.mark.parametrize("direction", directions_on("cpu"))
@pytest.mark.parametrize("workload", [*SMALL.values(), TINY], ids=lambda it: it.name)
def test_everyone_installed_agrees_with_us(workload: Workload, direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "ROUNDS", (1, 1))
    if reason := OURS.why_not(workload, DIRECTIONS[direction].mode):
        pytest.skip(reason)
    peers = [peer for peer in PEERS.values() if not peer.not_installed()]
    result = runner.measure(workload, direction, DIRECTIONS[direction], peers, 1, 0)
    able = {peer.name for peer in peers if not peer.why_not(workload, DIRECTIONS[direction].mode)}
    if direction == "float16":
        result.refused.pop("torchvision", None)  # it computes positions in float16
        able.discard("torchvision")
    assert not result.refused
    assert able | {FLOOR, PLAIN_FLOOR, FLOOR_AT_HAND} <= set(result.others)
    assert all(seconds > 0 for timing in (result.ours, *result.others.values()) for seconds in timing.samples)


class Wrong(Torchvision):
    name = "wrong"

    def pool(self, workload: Workload) -> Pool:
        pool = super().pool(workload)
        return lambda maps, rois: pool(maps, rois) * 1.001


class Broken(Torchvision):
    name = "broken"

    def pool(self, workload: Workload) -> Pool:
        raise RuntimeError("not today")


@pytest.mark.parametrize("direction", ["forward", "backward", "step"])
def test_a_peer_that_disagrees_or_fails_is_reported_and_not_timed(direction: str) -> None:
    peers: list[Peer] = [Wrong(), Broken(), Torchvision()]
    result = runner.measure(TINY, direction, DIRECTIONS[direction], peers, 1, 0)
    assert set(result.others) == {"torchvision", FLOOR, PLAIN_FLOOR, FLOOR_AT_HAND}
    assert result.refused["wrong"].startswith("disagrees: largest difference 1.0e-03")
    assert result.refused["broken"] == "fails: not today"


def test_deviation_is_relative_and_infinite_where_results_do_not_compare() -> None:
    ours = torch.tensor([0.0, -4.0])
    assert runner.deviation((ours,), (torch.tensor([1.0, -4.0]),)) == 0.25
    assert runner.deviation((ours,), (torch.tensor([math.nan, -4.0]),)) == math.inf
    assert runner.deviation((ours,), (torch.zeros(3),)) == math.inf
    assert runner.deviation((ours, ours), (ours,)) == 0  # only what both have


@pytest.mark.parametrize("workload", SMALL.values(), ids=SMALL)
def test_reused_output_is_the_public_functions_output(workload: Workload) -> None:
    mode = Mode(reuse_output=True)
    if reason := OURS.why_not(workload, mode):
        pytest.skip(reason)
    ((reused,), (fresh,)) = (OURS.prepare(make_case(workload, it))() for it in (mode, Mode()))
    assert torch.equal(reused, fresh)


def test_floor_writes_as_many_bytes_as_the_call() -> None:
    (pooled,) = floors.floor(TINY, Mode(), huge_pages=True)()
    (gradient,) = floors.floor(TINY, Mode("backward", torch.float16), huge_pages=False)()
    assert pooled.nbytes == 4 * 8 * 7 * 7
    assert gradient.nbytes == 2 * 8 * 16 * 16


def test_turns_go_forth_and_back() -> None:
    order: list[str] = []
    contenders = [runner.Contender(name, lambda name=name: order.append(name) or (), 1) for name in "ab"]  # type: ignore[misc]
    with runner.use_threads(1):
        runner.take_turns(contenders, 0)
    assert order == list("abbaab")


def test_selection_by_name_and_group() -> None:
    usual = {"six", "pyramid", "crowded", "tiny", "position_sensitive", "rotated", "deformable", "volumes", "signals"}
    assert {it.group for it in select()} == usual
    assert [it.name for it in select(["tiny", "mask"])] == ["mask", "tiny"]
    assert {it.group for it in select(["series"])} == {"series"}
    with pytest.raises(
        ValueError, match="workload: got 'nonsense'; expected one of six, pyramid, crowded, tiny, position_sensitive, "
    ):
        select(["nonsense"])
    with pytest.raises(ValueError, match="direction: got 'sideways'"):
        runner.make_plan(directions=["sideways"])
    with pytest.raises(ValueError, match="peer: got 'nobody'"):
        runner.make_plan(peers=["nobody"])
    assert "reference" not in [peer.name for peer in runner.make_plan().peers]
    assert [peer.name for peer in runner.make_plan(peers=["reference"]).peers] == ["reference"]


def test_floors_read_and_write_what_a_call_must() -> None:
    """One value is read and written for each number; at hand means that the same memory is written again."""
    case = SMALL["fpn_p2"]
    for part, sizes in (
        ("forward", [case.pooled()]),
        ("backward", [case.cells()]),
        ("step", [case.pooled(), case.cells()]),
    ):
        calls = floors.memory_alone(case, Mode(part=part), CPU)
        assert list(calls) == [FLOOR, PLAIN_FLOOR, FLOOR_AT_HAND]
        for name, call in calls.items():
            first, again = call(), call()
            assert [each.numel() for each in first] == sizes
            assert all(bool((each == 1).all()) for each in again)
            same = [one.data_ptr() == two.data_ptr() for one, two in zip(first, again, strict=True)]
            assert all(same) if name == FLOOR_AT_HAND else not any(same)


def test_geometric_mean_by_hand() -> None:
    assert geometric_mean([2, 8]) == pytest.approx(4)
    assert geometric_mean([1, 10, 100]) == pytest.approx(10)


def test_summary_takes_medians_and_names_the_worst() -> None:
    rows = {row["rival"]: row for row in small_report().summary()}
    assert rows["torchvision"]["geometric_mean"] == pytest.approx(4)  # of 8 and 2
    assert rows["torchvision"]["worst"] == pytest.approx(2)
    assert rows["torchvision"]["worst_on"] == "fpn_p4"
    assert rows[FLOOR]["workloads"] == 1


def test_table_holds_times_ratios_and_reasons() -> None:
    text = io.StringIO()
    print_report(small_report(), Console(file=text, width=120))
    for part in ("1 ms", "8 ms 8x", "500 us 2x", "4x (2)", "2x (1)", "openvino not timed: it fails: no", "threads"):
        assert part in text.getvalue()


def test_json_comes_back_as_it_was_and_the_plot_is_one(tmp_path: Path) -> None:
    report = small_report()
    report.save(tmp_path / "a.json")
    assert Report.load(tmp_path / "a.json") == report
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["results"][0]["milliseconds"] == pytest.approx(
        {"roialign": 1, "torchvision": 8, "our float32": 1.5, FLOOR: 0.5, PLAIN_FLOOR: 0.8}
    )
    facts = {"cpu", "cores", "threads", "instruction_set", "caches", "huge_pages", "virtual", "versions", "date"}
    assert facts <= set(content["machine"])
    assert content["machine"]["versions"]["torch"]
    plot(report, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        colours = picture.convert("RGB").getcolors(1 << 24)
    assert colours is not None
    assert len(colours) > 20


def test_compare_shows_what_a_change_did(tmp_path: Path) -> None:
    before = small_report()
    # The machine is three times as slow, and we take half the time.
    slow = {name: Timing([3 * value for value in it.samples]) for name, it in before.results[0].others.items()}
    ours = Timing([1.5 * value for value in before.results[0].ours.samples])
    after = Report(before.machine | {"threads": 1}, [replace(before.results[0], ours=ours, others=slow)])
    rows = compare.compare(before, after)
    assert [name for _, _, name, _, _ in rows] == ["torchvision", "our float32", FLOOR, PLAIN_FLOOR]
    assert [new / old for *_, old, new in rows] == pytest.approx([2] * 4)
    before.save(tmp_path / "a.json")
    after.save(tmp_path / "b.json")
    command = typer.Typer()
    command.command()(compare.main)
    result = CliRunner().invoke(command, [str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert result.exit_code == 0, result.output
    assert "threads differs: 2, 1" in result.output
    assert "16x" in result.output
    assert "geometric mean" in result.output


def test_command_times_a_workload_and_writes(tmp_path: Path) -> None:
    arguments = ["--workload", "tiny", "--direction", "forward", "--peer", "torchvision", "--threads", "1"]
    result = CliRunner().invoke(app, [*arguments, "--budget", "0", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "torchvision" in result.output
    (only,) = Report.load(tmp_path / "benchmarks.json").results
    assert (only.workload, only.direction, only.threads) == ("tiny", "forward", 1)
    assert len(only.ours.samples) == runner.ROUNDS[0]
    assert (tmp_path / "benchmarks.png").stat().st_size > 0


def test_command_names_what_there_is_where_a_name_is_unknown() -> None:
    result = CliRunner().invoke(app, ["--workload", "nonsense"])
    assert result.exit_code == 2
    assert "nonsense" in result.output


def tiny_detector() -> torch.nn.Module:
    """One convolution, few boxes."""
    from torchvision.models import detection
    from torchvision.ops import MultiScaleRoIAlign

    backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 16, 1), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    backbone.out_channels = 8  # type: ignore[assignment]
    anchors = detection.anchor_utils.AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),))
    few = {"rpn_post_nms_top_n_train": 20, "rpn_post_nms_top_n_test": 20}
    return detection.FasterRCNN(
        backbone, 2, 96, 96, rpn_anchor_generator=anchors, box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2), **few
    )


def test_models_are_timed_before_and_after_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, on a tiny detector: shares are parts, both ways agree, nothing stays taken over."""
    monkeypatch.setattr(models, "MODELS", {"tutorial": tiny_detector})
    before = torch._C._dispatch_dump("torchvision::roi_align")
    arguments = ["--models", "--threads", "1", "--budget", "0", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert torch._C._dispatch_dump("torchvision::roi_align") == before
    content = json.loads((tmp_path / "models.json").read_text())
    assert [(row["model"], row["part"]) for row in content["results"]] == [("tutorial", part) for part in models.PARTS]
    for row in content["results"]:
        assert len(row["before"]["samples"]) == len(row["after"]["samples"]) == runner.ROUNDS[0]
        assert 0 < row["share_before"] < 1
        assert 0 < row["share_after"] < 1
        assert row["after"]["deviation"] < 1e-5
        assert f"{row['speedup']:.3g}x" in result.output


def test_share_is_that_of_the_pooling_operators_forward_and_backward() -> None:
    import torchvision.ops

    x, rois = torch.rand(1, 64, 40, 40, requires_grad=True), torch.tensor([[0.0, 1, 1, 30, 30]] * 200)

    def pool() -> None:
        torchvision.ops.roi_align(x, rois, 7, 1.0, 2).sum().backward()

    alone = models.pooling_share(pool)
    beside = models.pooling_share(lambda: (pool(), time.sleep(0.5)))
    assert 0.5 < alone <= 1
    assert beside < alone
    assert models.pooling_share(lambda: torch.ones(1000).sum()) == 0


def test_models_that_disagree_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "MODELS", {"tutorial": tiny_detector})
    wrong = lambda theirs: lambda *arguments: theirs.call_boxed(accelerated.CPU, *arguments) * 2  # noqa: E731
    monkeypatch.setitem(accelerated.KERNELS, "roi_align", wrong)
    with pytest.raises(RuntimeError, match=r"tutorial, inference: differs by"):
        models.measure_model("tutorial", "inference", 1, 0)


def test_models_names_what_there_is() -> None:
    for option in ("--workload", "--direction"):
        result = CliRunner().invoke(app, ["--models", option, "nonsense"])
        assert result.exit_code == 2
        assert "nonsense" in result.output
