"""Calls that a careless or malicious caller may make, with the answer each must get.

Run as ``hostile.main()`` in a process of its own, it makes all calls and prints what came of each, a JSON line a call:
what crashes the process is then seen by the lines that are missing.
"""

from __future__ import annotations

import json

import torch

import roialign
from hostile_arguments import (
    BOXES,
    INF,
    INPUT,
    NAN,
    RATIO,
    SCALE,
    SIZE,
    Call,
    align,
    bad_index,
    boxes,
    freed,
    map_,
    pyramid,
)
from hostile_forms import FORMS
from roialign import RoIAlign, prroi_pool, roi_pool

CALLS: dict[str, Call] = {
    "index too large": bad_index(2, "2"),
    "index negative": bad_index(-1, "-1"),
    "index fractional": bad_index(0.5, "0.5"),
    "index just below one": bad_index(1 - 2**-24, "0.9999"),
    "index NaN": bad_index(NAN, "nan"),
    "index infinite": bad_index(INF, "inf"),
    "index minus infinite": bad_index(-INF, "-inf"),
    "index huge": bad_index(3e38, "3"),
    "index 2**40 in float64": bad_index(2.0**40, str(2**40), dtype=torch.float64),
    "index in half precision": bad_index(7, "7", dtype=torch.float16),
    "index in int64": bad_index(2, "2", dtype=torch.int64),
    "index with no images": Call(align(map_(0, 3, 8, 8), boxes(0)), IndexError, ("boxes", "row 0", "N = 0")),
    "index in max mode": Call(align(map_(), boxes(9), mode="max"), IndexError, ("row 0", "9", "N = 2")),
    "index in prroi_pool": Call(lambda: prroi_pool(map_(), boxes(9), 2), IndexError, ("row 0", "9", "N = 2")),
    "index in roi_pool": Call(lambda: roi_pool(map_(), boxes(9), 2), IndexError, ("row 0", "9", "N = 2")),
    "input no tensor": Call(align([[1.0]]), TypeError, (*INPUT, "list", "Tensor")),
    "input None": Call(align(None), TypeError, (*INPUT, "NoneType")),
    "input of one image": Call(align(map_(3, 8, 8)), ValueError, ("boxes", "(1, 5)", "Tensor[K, 3]", "[N, C, L]")),
    "input of three axes": Call(align(map_(1, 1, 1, 8, 8)), ValueError, ("boxes", "(1, 5)", "Tensor[K, 7]")),
    "input rank 6": Call(align(map_(1, 1, 1, 1, 8, 8)), ValueError, (*INPUT, "(1, 1, 1, 1, 8, 8)", "[N, C, H, W]")),
    "input rank 0": Call(align(torch.tensor(1.0)), ValueError, (*INPUT, "()", "[N, C, H, W]")),
    "input int": Call(align(map_(dtype=torch.int32)), TypeError, (*INPUT, "torch.int32", "float32")),
    "input bool": Call(align(map_(dtype=torch.bool)), TypeError, (*INPUT, "torch.bool", "float32")),
    "input complex": Call(align(map_(dtype=torch.complex64)), TypeError, (*INPUT, "torch.complex64", "float32")),
    "input sparse": Call(align(map_().to_sparse()), TypeError, (*INPUT, "torch.sparse_coo", "input.to_dense()")),
    "input float8": Call(align(map_().to(torch.float8_e5m2)), TypeError, (*INPUT, "torch.float8_e5m2", "float32")),
    "input on another device": Call(align(map_().to("meta")), ValueError, ("boxes", "cpu", "meta", "expected")),
    "empty height": Call(align(map_(2, 3, 0, 8)), ValueError, ("boxes", "1 boxes", "(2, 3, 0, 8)", "expected")),
    "empty width": Call(align(map_(2, 3, 8, 0)), ValueError, ("boxes", "1 boxes", "(2, 3, 8, 0)", "expected")),
    "boxes None": Call(align(map_(), None), TypeError, (*BOXES, "NoneType")),
    "boxes numbers": Call(align(map_(), [[0.0, 1, 1, 5, 5]] * 2), TypeError, (*BOXES, "boxes[0]", "list")),
    "boxes dict": Call(align(map_(), {}), TypeError, (*BOXES, "dict")),
    "boxes string": Call(align(map_(), "ab"), TypeError, (*BOXES, "str")),
    "boxes rank 1": Call(align(map_(), torch.ones(5)), ValueError, (*BOXES, "(5,)")),
    "boxes rank 3": Call(align(map_(), torch.ones(1, 1, 5)), ValueError, (*BOXES, "(1, 1, 5)")),
    "boxes width 4": Call(align(map_(), torch.ones(3, 4)), ValueError, (*BOXES, "(3, 4)", "[boxes]")),
    "boxes width 6": Call(align(map_(), torch.ones(3, 6)), ValueError, (*BOXES, "(3, 6)")),
    "boxes width 0": Call(align(map_(), torch.ones(0)), ValueError, (*BOXES, "(0,)")),
    "boxes bool": Call(align(map_(), boxes().bool()), TypeError, ("boxes", "torch.bool", "expected", "integer")),
    "boxes complex": Call(align(map_(), boxes() + 0j), TypeError, ("boxes", "torch.complex64", "expected")),
    "boxes sparse": Call(align(map_(), boxes().to_sparse()), TypeError, ("boxes", "torch.sparse_coo", "expected")),
    "boxes freed and apart": Call(
        align(map_(), freed(boxes(0, 1).t().contiguous().t())), ValueError, ("boxes", "0 bytes", "expected")
    ),
    "boxes freed": Call(align(map_(), freed(boxes().half())), ValueError, ("boxes", "0 bytes", "expected 10")),
    "list freed": Call(
        align(map_(), [freed(torch.ones(1, 4)), torch.ones(1, 4)]), ValueError, ("boxes[0]", "0 bytes", "expected 16")
    ),
    "input freed": Call(align(freed(map_())), ValueError, ("(2, 3, 8, 8)", "0 bytes", "expected 1536")),
    "input partly freed": Call(align(freed(map_(), 1532)), ValueError, ("(2, 3, 8, 8)", "1532 bytes", "expected 1536")),
    "boxes on another device": Call(align(map_(), boxes().to("meta")), ValueError, ("boxes", "meta", "cpu")),
    "list too short": Call(
        align(map_(), [torch.ones(1, 4)]), ValueError, ("boxes", "1 tensors", "2 images", "expected")
    ),
    "list too long": Call(align(map_(), [torch.ones(1, 4)] * 3), ValueError, ("boxes", "3 tensors", "2 images")),
    "list empty": Call(align(map_(), []), ValueError, ("boxes", "0 tensors", "2 images", "expected")),
    "list of width 5": Call(align(map_(), [torch.ones(1, 4), torch.ones(1, 5)]), ValueError, ("boxes[1]", "(1, 5)")),
    "list of rank 1": Call(align(map_(), [torch.ones(4)] * 2), ValueError, ("boxes[0]", "(4,)", "expected")),
    "list with None": Call(align(map_(), [torch.ones(1, 4), None]), TypeError, ("boxes[1]", "NoneType", "expected")),
    "list with bool": Call(align(map_(), [torch.ones(1, 4).bool()] * 2), TypeError, ("boxes[0]", "torch.bool")),
    "list on another device": Call(align(map_(), [torch.ones(1, 4).to("meta")] * 2), ValueError, ("boxes[0]", "meta")),
    "size zero": Call(align(map_(), boxes(), 0), ValueError, (*SIZE, "0")),
    "size negative": Call(align(map_(), boxes(), (2, -1)), ValueError, (*SIZE, "(2, -1)")),
    "size of three": Call(align(map_(), boxes(), (1, 2, 3)), ValueError, (*SIZE, "(1, 2, 3)")),
    "size of none": Call(align(map_(), boxes(), ()), ValueError, (*SIZE, "()")),
    "size float": Call(align(map_(), boxes(), 2.0), TypeError, (*SIZE, "2.0")),
    "size bool": Call(align(map_(), boxes(), True), TypeError, (*SIZE, "True")),
    "size string": Call(align(map_(), boxes(), "7"), TypeError, (*SIZE, "'7'")),
    "size None": Call(align(map_(), boxes(), None), TypeError, (*SIZE, "None")),
    "size with float": Call(align(map_(), boxes(), (2, 2.5)), TypeError, (*SIZE, "(2, 2.5)")),
    **{
        f"size {big}": Call(align(map_(), boxes(), big), ValueError, (*SIZE, str(big), "at most 2**24"))
        for big in (2**24 + 1, 2**31, 2**63, 2**64)
    },
    "size too large together": Call(
        align(map_(), boxes(), 2**24), ValueError, ("output_size", "1 boxes of 3 channels", "expected", "memory")
    ),
    "size a bool tensor": Call(align(map_(), boxes(), torch.tensor(True)), TypeError, (*SIZE, "tensor(True)")),
    "size of a float tensor": Call(align(map_(), boxes(), torch.ones(2)), TypeError, (*SIZE, "tensor([1., 1.])")),
    "module size 2**31": Call(lambda: RoIAlign(2**31, 1.0, 2), ValueError, (*SIZE, str(2**31))),
    "module ratio 2**63": Call(lambda: RoIAlign(2, 1.0, 2**63), ValueError, (*RATIO, str(2**63))),
    "pyramid size 2**63": Call(pyramid(output_size=2**63), ValueError, (*SIZE, str(2**63))),
    "ratio 2**63": Call(align(sampling_ratio=2**63), ValueError, (*RATIO, str(2**63), "below 2**63")),
    "ratio a bool tensor": Call(align(sampling_ratio=torch.tensor(True)), TypeError, (*RATIO, "tensor(True)")),
    "ratio a float tensor": Call(align(sampling_ratio=torch.tensor(2.0)), TypeError, (*RATIO, "tensor(2.)")),
    "scale of a gradient": Call(
        align(spatial_scale=torch.tensor(0.5, requires_grad=True)), TypeError, (*SCALE, "0.5", "no gradient", ".item()")
    ),
    "scale on meta": Call(align(spatial_scale=torch.tensor(0.5, device="meta")), TypeError, (*SCALE, "meta")),
    "scale zero": Call(align(spatial_scale=0), ValueError, (*SCALE, "0")),
    "scale negative": Call(align(spatial_scale=-0.5), ValueError, (*SCALE, "-0.5")),
    "scale NaN": Call(align(spatial_scale=NAN), ValueError, (*SCALE, "nan")),
    "scale infinite": Call(align(spatial_scale=INF), ValueError, (*SCALE, "inf")),
    "scale string": Call(align(spatial_scale="1"), TypeError, (*SCALE, "'1'")),
    "scale None": Call(align(spatial_scale=None), TypeError, (*SCALE, "None")),
    "scale bool": Call(align(spatial_scale=True), TypeError, (*SCALE, "True")),
    "scale of three": Call(align(spatial_scale=(1.0, 1.0, 1.0)), ValueError, (*SCALE, "(1.0, 1.0, 1.0)")),
    "scale too large for a float": Call(align(spatial_scale=10**400), ValueError, (*SCALE, "10000")),
    "scale with zero": Call(align(spatial_scale=(1.0, 0.0)), ValueError, (*SCALE, "(1.0, 0.0)")),
    "ratio float": Call(align(sampling_ratio=2.0), TypeError, (*RATIO, "2.0")),
    "ratio string": Call(align(sampling_ratio="2"), TypeError, (*RATIO, "'2'")),
    "ratio None": Call(align(sampling_ratio=None), TypeError, (*RATIO, "None")),
    "ratio bool": Call(align(sampling_ratio=True), TypeError, (*RATIO, "True")),
    "aligned None": Call(align(aligned=None), TypeError, ("aligned", "None", "expected True or False")),
    "aligned 2": Call(align(aligned=2), TypeError, ("aligned", "2", "expected True or False")),
    "aligned float": Call(align(aligned=1.0), TypeError, ("aligned", "1.0", "expected True or False")),
    "mode unknown": Call(align(mode="sum"), ValueError, ("mode", "'sum'", "expected", "'avg'", "'max'")),
    "mode None": Call(align(mode=None), ValueError, ("mode", "None", "expected", "'avg'")),
    "mode a list": Call(align(mode=["avg"]), ValueError, ("mode", "['avg']", "expected", "'avg'")),
    "module size": Call(lambda: RoIAlign(0, 1.0, 2), ValueError, (*SIZE, "0")),
    "module scale": Call(lambda: RoIAlign(2, NAN, 2), ValueError, (*SCALE, "nan")),
    "module ratio": Call(lambda: RoIAlign(2, 1.0, 2.5), TypeError, (*RATIO, "2.5")),
    "module mode": Call(lambda: RoIAlign(2, 1.0, 2, mode="mean"), ValueError, ("mode", "'mean'", "expected")),
    "prroi module size": Call(lambda: roialign.PrRoIPool(-1, 1.0), ValueError, (*SIZE, "-1")),
    "pool module scale": Call(lambda: roialign.RoIPool(1, 0.0), ValueError, (*SCALE, "0.0")),
    "prroi input": Call(lambda: prroi_pool(map_(8, 8), boxes(), 2), ValueError, (*INPUT, "(8, 8)")),
    "pool boxes": Call(lambda: roi_pool(map_(), torch.ones(3, 3), 2), ValueError, (*BOXES, "(3, 3)")),
    "level missing": Call(pyramid(featmap_names=["0", "p7"]), ValueError, ("x", "'p7'", "['0', '1']")),
    "level within missing": Call(
        pyramid(x={"0": map_(2, 3, 16, 16), "2": map_()}, featmap_names=["0", "1", "2"]),
        ValueError,
        ("x", "has no level '1'", "['0', '2']"),
    ),
    "level of the same number": Call(
        pyramid(featmap_names=["0", "01"]), ValueError, ("x", "has no level '01'", "['0', '1']")
    ),
    "levels none": Call(pyramid(featmap_names=[]), ValueError, ("featmap_names", "[]", "expected")),
    "levels a string": Call(pyramid(featmap_names="01"), ValueError, ("featmap_names", "'01'", "expected")),
    "level of other channels": Call(
        pyramid(x={"0": map_(2, 3, 16, 16), "1": map_(2, 4, 8, 8)}), ValueError, ("x['1']", "(2, 4, 8, 8)", "expected")
    ),
    "level of another dtype": Call(
        pyramid(x={"0": map_(2, 3, 16, 16), "1": map_().double()}), ValueError, ("x['1']", "torch.float64", "expected")
    ),
    "level of rank 3": Call(
        pyramid(x={"0": map_(2, 3, 16, 16), "1": map_(3, 8, 8)}), ValueError, ("x['1']", "(3, 8, 8)", "[N, C, H, W]")
    ),
    "level no tensor": Call(pyramid(x={"0": map_(2, 3, 16, 16), "1": 1}), TypeError, ("x['1']", "int", "expected")),
    "pyramid no mapping": Call(pyramid(x=[map_(), map_()]), TypeError, ("x", "list", "expected")),
    "pyramid boxes a tensor": Call(pyramid(boxes=boxes()), TypeError, ("boxes", "Tensor", "expected a list")),
    "pyramid boxes a number": Call(pyramid(boxes=5), TypeError, ("boxes", "int", "expected a list")),
    "pyramid boxes too few": Call(pyramid(boxes=[torch.ones(1, 4)]), ValueError, ("boxes", "1 tensors", "2 images")),
    "images too few": Call(pyramid(image_shapes=[(64, 64)]), ValueError, ("image_shapes", "1 shapes", "2 images")),
    "images flat": Call(
        pyramid(image_shapes=[(64, 64), (64, 0)]), ValueError, ("image_shapes", "(64, 0)", "expected positive")
    ),
    "images none": Call(pyramid(image_shapes=[]), ValueError, ("image_shapes", "0 shapes", "2 images", "expected")),
    "image of no height": Call(
        pyramid(image_shapes=[(0, 64)] * 2), ValueError, ("image_shapes", "(0, 64)", "expected positive")
    ),
    "image of three numbers": Call(
        pyramid(image_shapes=[(3, 64, 64)] * 2), ValueError, ("image_shapes", "(3, 64, 64)", "expected")
    ),
    "levels no halvings": Call(
        pyramid(x={"0": map_(2, 3, 16, 16), "1": map_(2, 3, 11, 11)}), ValueError, ("x['1']", "(11, 11)", "expected")
    ),
    "pyramid scale": Call(pyramid(canonical_scale=0), ValueError, ("canonical_scale", "0", "expected")),
    "pyramid scale infinite": Call(pyramid(canonical_scale=INF), ValueError, ("canonical_scale", "inf", "expected")),
    "pyramid mode": Call(pyramid(mode="median"), ValueError, ("mode", "'median'", "expected")),
    "pyramid operator": Call(pyramid(operator="pool"), ValueError, ("operator", "'pool'", "expected")),
    "pyramid of moved bins": Call(pyramid(operator="deform_roi_pool"), ValueError, ("operator", "'deform_roi_pool'")),
    "pyramid of rotated boxes": Call(
        pyramid(operator="roi_align_rotated"), ValueError, ("boxes[0]", "(1, 4)", "Tensor[L, 5]", "expected")
    ),
    "level of another rank": Call(
        pyramid(x={"0": map_(2, 3, 16, 16), "1": map_(2, 3, 8, 8, 8)}), ValueError, ("x['1']", "(2, 3, 8, 8, 8)")
    ),
    **FORMS,
}


def main() -> None:
    """Make every call and say what came of it."""
    for name, call in CALLS.items():
        print(json.dumps({"name": name, "start": True}), flush=True)
        try:
            call.run()
            raised, message = "nothing", ""
        except Exception as error:  # whatever it is, it is reported
            raised, message = type(error).__name__, str(error)
        print(json.dumps({"name": name, "raised": raised, "message": message}), flush=True)
