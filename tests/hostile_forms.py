"""Hostile calls, as in ``hostile.py``, of what takes other arguments: rotated boxes, bins that move, lines, volumes."""

from __future__ import annotations

import torch

import roialign
from hostile_arguments import (
    BOXES,
    GAMMA,
    INF,
    INPUT,
    NAN,
    OFFSET,
    SCALE,
    SIZE,
    TURNED,
    Call,
    boxes,
    deform,
    freed,
    line,
    map_,
    rotated,
    turned,
    volume,
)

FORMS: dict[str, Call] = {
    "rotated index": Call(rotated(map_(), turned(0, 1, 7)), IndexError, ("boxes", "row 2", "7", "N = 2", "[0, 2)")),
    "rotated index NaN": Call(rotated(map_(), turned(NAN)), IndexError, ("boxes", "row 0", "nan", "N = 2")),
    "rotated boxes None": Call(rotated(map_(), None), TypeError, (*TURNED, "NoneType")),
    "rotated boxes not rotated": Call(rotated(map_(), boxes()), ValueError, (*TURNED, "(1, 5)", "[boxes]")),
    "rotated boxes width 7": Call(rotated(map_(), torch.ones(3, 7)), ValueError, (*TURNED, "(3, 7)")),
    "rotated boxes bool": Call(rotated(map_(), turned().bool()), TypeError, ("boxes", "torch.bool", "expected")),
    "rotated boxes complex": Call(rotated(map_(), turned() + 0j), TypeError, ("boxes", "torch.complex64", "expected")),
    "rotated boxes on another device": Call(rotated(map_(), turned().to("meta")), ValueError, ("boxes", "meta", "cpu")),
    "rotated boxes freed": Call(rotated(map_(), freed(turned())), ValueError, ("boxes", "0 bytes", "expected 24")),
    "rotated boxes in radians freed": Call(
        rotated(map_(), freed(turned(), 20), unit="radians"), ValueError, ("boxes", "20 bytes", "expected 24")
    ),
    "rotated list of width 4": Call(
        rotated(map_(), [torch.ones(1, 4)] * 2), ValueError, ("boxes[0]", "(1, 4)", "Tensor[L, 5]", "expected")
    ),
    "rotated list freed": Call(
        rotated(map_(), [torch.ones(1, 5), freed(torch.ones(1, 5))]), ValueError, ("boxes[1]", "0 bytes", "expected 20")
    ),
    "rotated input of a line": Call(rotated(map_(2, 3, 8)), ValueError, (*INPUT, "(2, 3, 8)", "[N, C, H, W]")),
    "rotated input of a volume": Call(rotated(map_(2, 3, 4, 4, 4)), ValueError, (*INPUT, "(2, 3, 4, 4, 4)")),
    "rotated input freed": Call(rotated(freed(map_())), ValueError, ("(2, 3, 8, 8)", "0 bytes", "expected 1536")),
    "rotated empty height": Call(rotated(map_(2, 3, 0, 8)), ValueError, ("boxes", "1 boxes", "(2, 3, 0, 8)")),
    "rotated size of three": Call(rotated(map_(), turned(), (1, 2, 3)), ValueError, (*SIZE, "(1, 2, 3)")),
    "rotated ratio": Call(
        rotated(sampling_ratio=2**15), ValueError, ("sampling_ratio", "32768", "(2, 2)", "expected at most 2**26")
    ),
    "rotated unit": Call(rotated(unit="turns"), ValueError, ("unit", "'turns'", "expected 'degrees' or 'radians'")),
    "rotated unit None": Call(rotated(unit=None), ValueError, ("unit", "None", "expected 'degrees'")),
    "rotated clockwise": Call(rotated(clockwise="yes"), TypeError, ("clockwise", "'yes'", "expected True or False")),
    "rotated clockwise 2": Call(rotated(clockwise=2), TypeError, ("clockwise", "2", "expected True or False")),
    "rotated aligned": Call(rotated(aligned=0.5), TypeError, ("aligned", "0.5", "expected True or False")),
    "rotated module unit": Call(
        lambda: roialign.RoIAlignRotated(2, 1.0, 2, unit="grad"), ValueError, ("unit", "'grad'", "expected")
    ),
    "offset no tensor": Call(deform(map_(), boxes(), [[0.0]]), TypeError, (*OFFSET, "list", "Tensor [K, 2,", "None")),
    "offset flat": Call(deform(map_(), boxes(), torch.zeros(1, 8)), ValueError, (*OFFSET, "(1, 8)", "[1, 2, 2, 2]")),
    "offset of other bins": Call(
        deform(map_(), boxes(), torch.zeros(1, 2, 2, 3)), ValueError, (*OFFSET, "(1, 2, 2, 3)", "[1, 2, 2, 2]")
    ),
    "offset of more boxes": Call(
        deform(map_(), boxes(), torch.zeros(2, 2, 2, 2)), ValueError, (*OFFSET, "(2, 2, 2, 2)", "[1, 2, 2, 2]")
    ),
    "offset of one axis": Call(
        deform(map_(), boxes(), torch.zeros(1, 1, 2, 2)), ValueError, (*OFFSET, "(1, 1, 2, 2)", "[1, 2, 2, 2]")
    ),
    "offset bool": Call(deform(map_(), boxes(), torch.ones(1, 2, 2, 2).bool()), TypeError, (*OFFSET, "torch.bool")),
    "offset complex": Call(deform(map_(), boxes(), torch.ones(1, 2, 2, 2) + 0j), TypeError, (*OFFSET, "complex64")),
    "offset sparse": Call(deform(map_(), boxes(), torch.ones(1, 2, 2, 2).to_sparse()), TypeError, (*OFFSET, "sparse")),
    "offset on another device": Call(
        deform(map_(), boxes(), torch.zeros(1, 2, 2, 2, device="meta")), ValueError, (*OFFSET, "meta", "cpu")
    ),
    "offset freed": Call(
        deform(map_(), boxes(), freed(torch.zeros(1, 2, 2, 2))), ValueError, (*OFFSET, "0 bytes", "expected 32")
    ),
    "offset partly freed": Call(
        deform(map_(), boxes(), freed(torch.zeros(1, 2, 2, 2), 28)), ValueError, (*OFFSET, "28 bytes", "expected 32")
    ),
    "offset in the size's place": Call(deform(map_(), boxes(), 2, torch.zeros(1, 2, 2, 2)), TypeError, (*SIZE, "0.")),
    "gamma NaN": Call(deform(gamma=NAN), ValueError, (*GAMMA, "nan")),
    "gamma infinite": Call(deform(gamma=-INF), ValueError, (*GAMMA, "-inf")),
    "gamma string": Call(deform(gamma="0.1"), TypeError, (*GAMMA, "'0.1'")),
    "gamma None": Call(deform(gamma=None), TypeError, (*GAMMA, "None")),
    "gamma bool": Call(deform(gamma=True), TypeError, (*GAMMA, "True")),
    "gamma too large for a float": Call(deform(gamma=10**400), ValueError, (*GAMMA, "10000")),
    "gamma without an offset": Call(deform(map_(), boxes(), None, gamma="x"), TypeError, (*GAMMA, "'x'")),
    "gamma of a gradient": Call(deform(gamma=torch.ones((), requires_grad=True)), TypeError, (*GAMMA, "no gradient")),
    "moved index": Call(
        deform(map_(), boxes(0, 9), torch.zeros(2, 2, 2, 2)), IndexError, ("boxes", "row 1", "9", "N = 2")
    ),
    "moved boxes freed": Call(deform(map_(), freed(boxes())), ValueError, ("boxes", "0 bytes", "expected 20")),
    "moved boxes freed, no offset": Call(
        deform(map_(), freed(boxes(), 16), None), ValueError, ("boxes", "16 bytes", "expected 20")
    ),
    "moved boxes rotated": Call(deform(map_(), turned()), ValueError, (*BOXES, "(1, 6)")),
    "moved input of a volume": Call(deform(map_(2, 3, 4, 4, 4)), ValueError, (*INPUT, "(2, 3, 4, 4, 4)")),
    "moved input freed": Call(deform(freed(map_())), ValueError, ("(2, 3, 8, 8)", "0 bytes", "expected 1536")),
    "moved empty width": Call(deform(map_(2, 3, 8, 0)), ValueError, ("boxes", "1 boxes", "(2, 3, 8, 0)")),
    "moved module gamma": Call(lambda: roialign.DeformRoIPool(2, gamma=INF), ValueError, (*GAMMA, "inf")),
    "line index": Call(line(map_(2, 3, 8), torch.tensor([[2.0, 1, 5]])), IndexError, ("row 0", "2", "N = 2")),
    "line of boxes": Call(line(map_(2, 3, 8), boxes()), ValueError, ("boxes", "(1, 5)", "Tensor[K, 3]", "x1, x2")),
    "line of a list of boxes": Call(
        line(map_(2, 3, 8), [torch.ones(1, 4)] * 2), ValueError, ("boxes[0]", "(1, 4)", "Tensor[L, 2]", "expected")
    ),
    "line size of two": Call(line(map_(2, 3, 8), torch.ones(1, 3), (2, 2)), ValueError, (*SIZE, "(2, 2)", "(length,)")),
    "line scale of two": Call(line(spatial_scale=(1.0, 1.0)), ValueError, (*SCALE, "(1.0, 1.0)", "one as (x,)")),
    "line empty": Call(line(map_(2, 3, 0)), ValueError, ("boxes", "1 boxes", "(2, 3, 0)", "expected")),
    "line freed": Call(line(freed(map_(2, 3, 8))), ValueError, ("(2, 3, 8)", "0 bytes", "expected 192")),
    "volume index": Call(
        volume(map_(2, 3, 8, 8, 8), torch.tensor([[-1.0, 1, 1, 1, 5, 5, 5]])), IndexError, ("row 0", "-1", "N = 2")
    ),
    "volume of boxes": Call(
        volume(map_(2, 3, 8, 8, 8), boxes()), ValueError, ("boxes", "(1, 5)", "Tensor[K, 7]", "z1", "expected")
    ),
    "volume of one image's boxes": Call(
        volume(map_(2, 3, 8, 8, 8), torch.ones(1, 6)), ValueError, ("boxes", "(1, 6)", "Tensor[K, 7]", "[boxes]")
    ),
    "volume size of two": Call(
        volume(map_(2, 3, 8, 8, 8), torch.ones(1, 7), (2, 2)), ValueError, (*SIZE, "(2, 2)", "(depth, height, width)")
    ),
    "volume size beyond memory": Call(
        volume(map_(2, 3, 8, 8, 8), torch.ones(1, 7), 2**24), ValueError, ("output_size", "1 boxes", "memory")
    ),
    "volume scale of two": Call(volume(spatial_scale=(1.0, 1.0)), ValueError, (*SCALE, "(1.0, 1.0)", "(z, y, x)")),
    "volume of no depth": Call(volume(map_(2, 3, 0, 8, 8)), ValueError, ("boxes", "1 boxes", "(2, 3, 0, 8, 8)")),
    "volume of no width": Call(volume(map_(2, 3, 8, 8, 0)), ValueError, ("boxes", "1 boxes", "(2, 3, 8, 8, 0)")),
    "volume freed, channels_last": Call(
        volume(freed(map_(2, 3, 2, 4, 8).to(memory_format=torch.channels_last_3d), 1532)),
        ValueError,
        ("(2, 3, 2, 4, 8)", "1532 bytes", "expected 1536"),
    ),
    "volume of bins' own channels": Call(
        lambda: roialign.ps_roi_align(map_(2, 8, 4, 4, 4), torch.ones(1, 7), 2), ValueError, (*INPUT, "(2, 8, 4, 4, 4)")
    ),
}
