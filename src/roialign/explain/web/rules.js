"use strict";
// The rules of region pooling in float64: axis.py, operation by operation, so that page and Python agree.
// Positions and lengths are in cells of the feature map; cell j has its centre at position j.

window.roialign = (() => {
  const LISTED = 32; // samples per bin and axis that are listed for the eye; larger grids are only counted

  const indices = (count) => [...Array(count).keys()];
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  function scales(state) {
    return Array.isArray(state.spatial_scale) ? state.spatial_scale : [state.spatial_scale, state.spatial_scale];
  }

  /** Place RoIAlign's bins on one axis of the map. */
  function alignWindow(lo, hi, bins, scale, ratio, aligned) {
    const offset = aligned ? 0.5 : 0;
    const start = lo * scale - offset;
    let size = hi * scale - offset - start;
    const widened = !aligned && size < 1;
    if (!aligned) size = Math.max(size, 1);
    const bin = size / bins;
    return {
      start,
      bin,
      size,
      widened,
      grid: ratio > 0 ? ratio : Math.max(Math.ceil(bin), 0),
      ratio: Math.max(ratio, 0),
    };
  }

  /** Position of sample i of bin p, rounded in exactly this order. */
  function samplePosition(w, p, i) {
    return w.start + p * w.bin + ((i + 0.5) * w.bin) / Math.max(w.grid, 1);
  }

  /** Count samples by ascending position: those of an inverted box run backwards. */
  const mirrored = (w, i) => (w.bin < 0 ? w.grid - 1 - i : i);

  /** How many samples of bin p lie before each of the edges -1, 0, ..., L - 1, and up to L (inclusive). */
  function firstSamples(w, p, length) {
    const position = (i) => samplePosition(w, p, mirrored(w, i));
    return indices(length + 2).map((m) => {
      const edge = m - 1;
      const before = (i) => (m === length + 1 ? position(i) <= edge : position(i) < edge);
      if (w.ratio > 0) {
        let [low, high] = [0, w.grid];
        while (low < high) {
          const middle = Math.floor((low + high) / 2);
          if (before(middle)) low = middle + 1;
          else high = middle;
        }
        return low;
      }
      const guess = Math.ceil((edge - position(0)) / (Math.abs(w.bin) / Math.max(w.grid, 1)));
      let first = Math.min(Math.max(Number.isNaN(guess) ? 0 : guess, 0), w.grid);
      if (first > 0 && !before(first - 1)) first -= 1;
      if (first < w.grid && before(first)) first += 1;
      return first;
    });
  }

  /** Spread samples over the cells: count[m] of them, their offsets past cell m - 1 summing to offset[m]. */
  function intervalWeights(count, offset) {
    const last = count.length - 1;
    const toNext = count.map((n, m) => (m === 0 ? n : m === last ? 0 : offset[m]));
    return indices(last).map((j) => count[j + 1] - toNext[j + 1] + toNext[j]);
  }

  /** Average RoIAlign: a row per bin, the mean of its samples' weights, in closed form whatever the grid. */
  function meanMatrix(w, bins, length) {
    return bins.map((p) => {
      const first = firstSamples(w, p, length);
      const count = indices(length + 1).map((m) => first[m + 1] - first[m]);
      const offset = count.map((n, m) => {
        if (!(n > 0)) return 0;
        const head = samplePosition(w, p, mirrored(w, first[m]));
        const tail = samplePosition(w, p, mirrored(w, first[m + 1] - 1));
        return n * ((head + tail) / 2 - (m - 1));
      });
      return intervalWeights(count, offset).map((weight) => weight / Math.max(w.grid, 1));
    });
  }

  /** The bilinear weights of one sample along the axis; none if it lies outside [-1, L]. */
  function sampleRow(position, length) {
    const inside = position >= -1 && position <= length;
    const interval = clamp(Math.floor(position), -1, length - 1) + 1;
    const count = indices(length + 1).map((m) => (inside && m === interval ? 1 : 0));
    return intervalWeights(
      count,
      count.map((n, m) => (n ? position - (m - 1) : 0)),
    );
  }

  /** Max RoIAlign: for each bin a row per sample, or per sample that can be the maximum where the grid is large. */
  function sampleMatrix(w, bins, length) {
    const most = 2 * (length + 2);
    return bins.map((p) => {
      let listed = indices(Math.min(w.grid, most));
      if (w.grid >= most) {
        const first = firstSamples(w, p, length);
        const candidates = [...first.map((i) => i - 1), ...first].map((i) => mirrored(w, clamp(i, 0, w.grid - 1)));
        listed = [...new Set(candidates)].sort((a, b) => a - b);
      }
      return listed.map((i) => ({ index: i, row: sampleRow(samplePosition(w, p, i), length) }));
    });
  }

  /** Precise RoI pooling: the integral of each cell's hat function over the bin, by the bin's length. */
  function integralMatrix({ start, bin }, bins, length) {
    return bins.map((p) => {
      const row = indices(length).map(() => 0);
      if (!(bin > 0)) return row;
      const begin = start + p * bin;
      // Between the centres of cells j and j + 1 the map is linear: that piece acts as one sample at its middle.
      for (let j = -1; j < length; j++) {
        const skipped = Math.max(j - begin, 0);
        const piece = Math.max(Math.min(j + 1 - begin, bin - skipped, bin, 1), 0);
        const share = piece / bin;
        const toNext = share * (Math.max(begin - j, 0) + piece / 2);
        if (j >= 0) row[j] += share - toNext;
        if (j + 1 < length) row[j + 1] += toNext;
      }
      return row;
    });
  }

  /** C's round: halves go away from 0. */
  function round(value) {
    const whole = Math.trunc(value);
    return whole + (Math.abs(value - whole) >= 0.5 ? Math.sign(value) : 0);
  }

  /** RoIPool's two roundings along one axis: the box to whole cells first..last, then each bin's cells [begin, end). */
  function poolCells(lo, hi, bins, scale) {
    const [first, last] = [round(lo * scale), round(hi * scale)];
    const bin = Math.max(last - first + 1, 1) / bins;
    const cells = indices(bins).map((p) => [Math.floor(p * bin) + first, Math.ceil((p + 1) * bin) + first]);
    return { first, last: Math.max(last, first), cells };
  }

  /** Values at [y, x], or a function of them: null is the counting map 0, 1, 2, ... */
  const valueAt = (state, y, x) => (state.values ? Number(state.values[y][x]) : y * state.size[1] + x);

  /** The cells of a row that weigh something; a cell without weight counts nothing, even if it is not finite. */
  const taps = (row) => row.flatMap((weight, cell) => (weight !== 0 ? [[cell, weight]] : []));

  function weighted(state, tapsY, tapsX) {
    let total = 0;
    for (const [y, wy] of tapsY) {
      let along = 0;
      for (const [x, wx] of tapsX) along += wx * valueAt(state, y, x);
      total += wy * along;
    }
    return total;
  }

  const maximum = (values) => values.reduce((best, value) => Math.max(best, value), -Infinity);

  /** Everything between a state and its output; the page draws nothing else.
   *
   * @param only [p, q]: compute this bin alone, the one of `bins`.
   * @returns bins [PH][PW]; Ay, Ax: a row per bin (in max mode per sample, rowsY and rowsX of them in each bin, in order);
   *   y, x: the window { start, bin, size, grid, samples: [P][n] positions (empty where the grid is too large to list) }
   *   of RoIAlign or the exact operator; pool: RoIPool's cells of the same box along y and x; finite: whether the box is usable.
   */
  function compute(state, only) {
    const wanted = [0, 1].map((d) => (only ? [only[d]] : indices(state.output_size[d])));
    const box = state.box.map(Number);
    const scale = scales(state);
    const axes = [0, 1].map((d) => {
      const [lo, hi, bins, length] = [box[1 - d], box[3 - d], state.output_size[d], state.size[d]];
      const exact = state.operator === "prroi_pool";
      const w = exact
        ? { start: lo * scale[d], size: Math.max(hi * scale[d] - lo * scale[d], 0), grid: 0, ratio: 0 }
        : alignWindow(lo, hi, bins, scale[d], state.sampling_ratio, state.aligned);
      w.bin = w.size / bins;
      w.samples = indices(bins).map((p) =>
        !exact && w.grid <= LISTED ? indices(w.grid).map((i) => samplePosition(w, p, i)) : [],
      );
      return { length, window: w, pool: poolCells(lo, hi, bins, scale[d]), span: [lo * scale[d], hi * scale[d]] };
    });
    const finite = axes.every(({ span: [lo, hi] }) => [lo, hi, hi - lo].every(Number.isFinite));
    const max = state.operator === "roi_align" && state.mode === "max";
    const listed = axes.map((axis, d) =>
      finite ? rowsOf(axis, wanted[d], state.operator, max) : wanted[d].map(() => []),
    );
    const sparse = listed.map((bins) => bins.map((rows) => rows.map(({ row }) => taps(row))));
    const bins = sparse[0].map((rows) =>
      sparse[1].map((columns) => {
        if (!finite) return NaN;
        if (state.operator === "roi_pool") {
          const cells = rows[0].flatMap(([y]) => columns[0].map(([x]) => valueAt(state, y, x)));
          return cells.length ? maximum(cells) : 0;
        }
        if (!max) return weighted(state, rows[0], columns[0]);
        const samples = rows.flatMap((row) => columns.map((column) => weighted(state, row, column)));
        return samples.length ? maximum(samples) : 0;
      }),
    );
    return {
      bins,
      finite,
      Ay: listed[0].flat().map(({ row }) => row),
      Ax: listed[1].flat().map(({ row }) => row),
      rowsY: listed[0].map((rows) => rows.map(({ index }) => index)),
      rowsX: listed[1].map((rows) => rows.map(({ index }) => index)),
      y: axes[0].window,
      x: axes[1].window,
      pool: { y: axes[0].pool, x: axes[1].pool },
    };
  }

  function rowsOf({ length, window, pool }, bins, operator, max) {
    if (max) return sampleMatrix(window, bins, length);
    let matrix;
    if (operator === "roi_align") matrix = meanMatrix(window, bins, length);
    else if (operator === "prroi_pool") matrix = integralMatrix(window, bins, length);
    else
      matrix = bins.map((p) => {
        const [begin, end] = pool.cells[p];
        return indices(length).map((j) => (begin <= j && j < end ? 1 : 0));
      });
    return matrix.map((row, i) => [{ index: bins[i], row }]);
  }

  /** The samples of one bin in order: position, the cells read with their weights, and the value. */
  function samplesOf(state, result, p, q) {
    const read = (position, length) => taps(sampleRow(position, length));
    return result.y.samples[p].flatMap((y) =>
      result.x.samples[q].map((x) => {
        const [ty, tx] = [read(y, state.size[0]), read(x, state.size[1])];
        const cells = ty.flatMap(([i, wy]) =>
          tx.map(([j, wx]) => ({ y: i, x: j, weight: wy * wx, value: valueAt(state, i, j) })),
        );
        return { y, x, cells, value: weighted(state, ty, tx) };
      }),
    );
  }

  return { compute, samplesOf, scales, valueAt, taps, indices, clamp, LISTED };
})();
