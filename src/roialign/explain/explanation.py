"""One box explained: every number between the feature map and what is pooled, and the ways to look at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..backends import reference
from ..spec import (
    OutputSize,
    Pooling,
    SpatialScale,
    check_aligned,
    check_mode,
    check_output_size,
    check_sampling_ratio,
    check_scale,
)
from .values import AxisValues, axis_values, describe, feature_map, read_box, sample_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Gradient(NamedTuple):
    """What one bin sends back.

    Attributes:
        map: ``[H, W]`` derivative of the bin by each cell of the feature map.
        box: ``[4]`` derivative of the bin by x1, y1, x2, y2, per pixel of the image.
    """

    map: Tensor
    box: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """One box pooled from one feature map, with every number on the way; made by :func:`roialign.explain`.

    Two-dimensional arrays are indexed ``[bin row, bin column, sample row, sample column]``. All are float64.

    Attributes:
        map: ``[H, W]`` the feature map.
        box: (x1, y1, x2, y2) in pixels of the image.
        output_size: (PH, PW).
        sampling_ratio: samples per bin and axis; 0 is adaptive.
        aligned: whether positions are shifted by half a cell.
        mode: ``"avg"`` or ``"max"``.
        y: the axis of the rows, :class:`AxisValues`.
        x: the axis of the columns.
        avg: ``[PH, PW]`` RoIAlign, the mean of each bin's samples.
        max: ``[PH, PW]`` RoIAlign, their maximum.
        exact: ``[PH, PW]`` Precise RoI pooling of RoIAlign's bins: the mean over the whole bin, as of infinitely many
            samples (:func:`roialign.prroi_pool` itself knows no half-cell shift and no least size). An inverted box
            gives 0.
        roi_pool: ``[PH, PW]`` RoIPool, the maximum over whole cells.
        image: ``[3, h, w]`` the photo, or None.
    """

    map: Tensor
    box: tuple[float, float, float, float]
    output_size: tuple[int, int]
    sampling_ratio: int
    aligned: bool
    mode: str
    y: AxisValues
    x: AxisValues
    avg: Tensor
    max: Tensor
    exact: Tensor
    roi_pool: Tensor
    image: Tensor | None

    @property
    def output(self) -> Tensor:
        """``[PH, PW]`` what :func:`roialign.roi_align` gives in this mode."""
        return self.avg if self.mode == "avg" else self.max

    @property
    def Ay(self) -> Tensor:
        """``[PH, H]`` the matrix that pools the rows: ``avg = Ay @ map @ Ax.T``."""
        return self.y.matrix

    @property
    def Ax(self) -> Tensor:
        """``[PW, W]`` the matrix that pools the columns."""
        return self.x.matrix

    @property
    def samples(self) -> Tensor:
        """``[PH, PW, Sy, Sx, 2]`` positions (y, x) of the samples."""
        return torch.stack(self._grid(self.y.samples, self.x.samples), -1)

    @property
    def taps(self) -> Tensor:
        """``[PH, PW, Sy, Sx, 4, 2]`` int64, the cells (y, x) that a sample reads: upper two, lower two; -1 for none."""
        y, x = self._grid(self.y.taps, self.x.taps)
        taps = torch.stack([y[..., [0, 0, 1, 1]], x[..., [0, 1, 0, 1]]], -1)
        return torch.where((taps < 0).any(-1, keepdim=True), -1, taps)

    @property
    def weights(self) -> Tensor:
        """``[PH, PW, Sy, Sx, 4]`` what the taps weigh."""
        y, x = self._grid(self.y.weights, self.x.weights)
        return y[..., [0, 0, 1, 1]] * x[..., [0, 1, 0, 1]]

    @cached_property
    def sample_values(self) -> Tensor:
        """``[PH, PW, Sy, Sx]`` the interpolated values."""
        by_row = sample_rows(self.y)  # [PH, Sy, H]
        by_column = sample_rows(self.x)
        return torch.einsum("psh,hw,qtw->pqst", by_row, self.map, by_column)

    def gradient(self, row: int, column: int) -> Gradient:
        """What the bin at ``output[row, column]`` sends back to the feature map and to the box's edges."""
        bins = self.output
        if not (0 <= row < bins.shape[0] and 0 <= column < bins.shape[1]):
            raise ValueError(f"row, column: got {row}, {column}; expected a bin of {bins.shape[0]} x {bins.shape[1]}")
        features = self.map[None, None].clone().requires_grad_()
        rois = torch.tensor([[0, *self.box]], dtype=torch.float64, requires_grad=True)
        scale = (self.y.scale, self.x.scale)
        spec = Pooling(self.mode, self.output_size, scale, self.sampling_ratio, self.aligned)
        output = reference.pool([features], rois, None, spec)
        to_map, to_rois = torch.autograd.grad(output[0, 0, row, column], (features, rois))
        return Gradient(to_map[0, 0], to_rois[0, 1:])

    def plot(self, figure: str = "overview", bin: tuple[int, int] | None = None) -> Figure:
        """Draw a figure with Matplotlib.

        Args:
            figure: ``"overview"``, or one of ``"map"``, ``"sample"``, ``"values"``, ``"sums"``, ``"roi_pool"``,
                ``"matrices"``, ``"gradient"``.
            bin: (row, column) of the bin that the figure looks at; None takes the first one that has a sample inside.

        Returns:
            A Matplotlib figure that belongs to no window: ``.savefig("figure.pdf")`` writes it.

        Raises:
            ModuleNotFoundError: Matplotlib is not installed.
            ValueError: there is no such figure or bin.
        """
        try:
            from . import figures
        except ModuleNotFoundError as missing:
            if missing.name != "matplotlib":
                raise
            raise ModuleNotFoundError(
                "plot: needs Matplotlib; install it with: pip install 'roialign[explain]'", name="matplotlib"
            ) from missing
        return figures.draw(self, figure, bin)

    def to_html(self, language: str = "en") -> str:
        """The interactive page, one self-contained HTML file that begins at this explanation.

        Args:
            language: ``"en"`` or ``"zh"``; the page can switch.
        """
        from .page import make_page

        scale: float | list[float] = self.y.scale if self.y.scale == self.x.scale else [self.y.scale, self.x.scale]
        return make_page({
            "size": list(self.map.shape),
            "box": list(self.box),
            "output_size": list(self.output_size),
            "sampling_ratio": self.sampling_ratio,
            "spatial_scale": scale,
            "aligned": self.aligned,
            "operator": "roi_align",
            "mode": self.mode,
            "values": self.map.tolist(),
            "photo": None if self.image is None else _data_uri(self.image),
            "language": language,
        })  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Every value as plain lists and numbers, for JSON. ``sample_values`` is left out where it is very long."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "image"}
        for name in ("y", "x"):
            part = values[name]
            values[name] = {field.name: _plain(getattr(part, field.name)) for field in fields(part)}
        listed = self.output_size[0] * self.y.grid * self.output_size[1] * self.x.grid <= 100_000
        values |= {"sample_values": self.sample_values if listed else None, "output": self.output}
        return {name: _plain(value) for name, value in values.items()}

    def __repr__(self) -> str:
        return (
            f"Explanation(map={'x'.join(map(str, self.map.shape))}, box={self.box}, output_size={self.output_size}, "
            f"spatial_scale={(self.y.scale, self.x.scale)}, sampling_ratio={self.sampling_ratio}, "
            f"aligned={self.aligned}, mode={self.mode!r}, output={self.output.tolist()})"
        )

    def _repr_html_(self) -> str:
        """The page, for notebooks."""
        from html import escape

        page = escape(self.to_html(), quote=True)
        return f'<iframe srcdoc="{page}" width="100%" height="760" style="border:0" title="roialign"></iframe>'

    def _grid(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Arrays of the two axes ``[P, S, ...]``, spread over all bins and samples."""
        shape = (y.shape[0], x.shape[0], y.shape[1], x.shape[1], *y.shape[2:])
        return y[:, None, :, None].expand(shape), x[None, :, None].expand(shape)


def explain(
    input_or_size: Tensor | Sequence[int],
    box: Tensor | Sequence[float],
    output_size: OutputSize,
    spatial_scale: SpatialScale | None = None,
    sampling_ratio: int = -1,
    aligned: bool = False,
    *,
    mode: str = "avg",
    image: Tensor | None = None,
) -> Explanation:
    """Compute and keep every number between a feature map, a box and what :func:`roialign.roi_align` makes of them.

    Example:
        >>> import torch, roialign
        >>> ramp = torch.arange(64.0).reshape(8, 8)
        >>> told = roialign.explain(ramp, (0, 3, 7, 8), output_size=2, sampling_ratio=2, mode="max")
        >>> told.x.samples  # positions of the samples along x, per bin
        tensor([[0.8750, 2.6250],
                [4.3750, 6.1250]], dtype=torch.float64)
        >>> told.sample_values[0, 0]  # the four samples of the first bin
        tensor([[29.8750, 31.6250],
                [39.8750, 41.6250]], dtype=torch.float64)
        >>> told.output
        tensor([[41.6250, 45.1250],
                [58.6250, 62.1250]], dtype=torch.float64)
        >>> told.plot("map").savefig("map.pdf")  # doctest: +SKIP

    Args:
        input_or_size: the feature map, ``[H, W]`` or ``[1, 1, H, W]``, of no other rank; or its size (H, W), for a
            built-in map of whole numbers from 0 to 9, or of the image's grey values if there is an image.
        box: x1, y1, x2, y2 in pixels of the image.
        output_size: bins, an int or (height, width).
        spatial_scale: cells of the feature map per pixel of the image, or (y, x) scales; None means 1, or with an image
            the scales that make it as large as the map.
        sampling_ratio: samples per bin along each axis; 0 or less is adaptive.
        aligned: shift positions by half a cell.
        mode: ``"avg"`` or ``"max"``.
        image: a photo ``[3, h, w]`` with values in [0, 1], to show the box on.

    Returns:
        Every value as a named float64 array, ``.plot()``, ``.to_html()``, ``.to_dict()``; in a notebook, the page.

    Raises:
        TypeError, ValueError: as :func:`roialign.roi_align` does; and for a map of several channels or images, and a
            box that is not finite.
    """
    height, width = check_output_size(output_size, 2)
    size, ratio = (height, width), check_sampling_ratio(sampling_ratio)
    aligned = check_aligned(aligned)
    check_mode(mode)
    if image is not None and (not isinstance(image, Tensor) or image.dim() != 3 or image.shape[0] != 3):
        raise ValueError(f"image: got {describe(image)}; expected a Tensor [3, h, w] with values in [0, 1]")
    values = feature_map(input_or_size, image)
    if spatial_scale is None:
        spatial_scale = 1.0 if image is None else [values.shape[i] / image.shape[i + 1] for i in (0, 1)]
    scales = check_scale(spatial_scale, 2)
    edges = read_box(box)
    y = axis_values(edges[1], edges[3], size[0], values.shape[0], scales[0], ratio, aligned)
    x = axis_values(edges[0], edges[2], size[1], values.shape[1], scales[1], ratio, aligned)
    rois = torch.tensor([[0, *edges]], dtype=torch.float64)
    features = values[None, None]
    avg, most = (
        reference.pool([features], rois, None, Pooling(each, size, scales, ratio, aligned))[0, 0]
        for each in ("avg", "max")
    )
    # In cells of the map, where RoIAlign's window lies.
    window = torch.stack([rois[0, 0], x.edges[0], y.edges[0], x.edges[-1], y.edges[-1]])[None]
    exact = reference.pool([features], window, None, Pooling("integral", size, (1.0, 1.0)))[0, 0]
    pooled = reference.pool([features], rois, None, Pooling("cells", size, scales))[0, 0]
    return Explanation(values, edges, size, ratio, aligned, mode, y, x, avg, most, exact, pooled, image)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value


def _data_uri(image: Tensor) -> str:
    """The photo as a JPEG of at most 512 pixels, small enough to carry inside a page. Needs Pillow."""
    import base64
    import io

    from PIL import Image

    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous()
    photo = Image.fromarray(pixels.numpy())
    photo.thumbnail((512, 512))
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
