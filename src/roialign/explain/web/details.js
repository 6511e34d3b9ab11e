"use strict";
// What the selected bin is made of: its samples, one sample's neighbours, the two matrices, and what a nudge does.

roialign.details = (() => {
  const { page, draw, compute, samplesOf, taps, indices, clamp, scales, valueAt } = roialign;
  const { show, pixels } = draw;
  const { put } = roialign.words;
  const byId = (id) => document.getElementById(id);
  const ROWS = 36; // of the table of samples

  const row = (cells, attributes = "") => `<tr${attributes}>${cells.map((cell) => `<td>${cell}</td>`).join("")}</tr>`;
  const head = (words) => `<thead><tr>${words.map((word) => `<th scope="col">${word}</th>`).join("")}</tr></thead>`;

  /** The cells of the chosen bin with what each weighs, from the matrices; RoIPool's weigh 1. */
  function cellsOf(state, result) {
    const [p, q] = state.bin;
    const [ys, xs] = [taps(result.Ay[p] ?? []), taps(result.Ax[q] ?? [])];
    return ys.flatMap(([y, wy]) => xs.map(([x, wx]) => ({ y, x, weight: wy * wx, value: valueAt(state, y, x) })));
  }

  function showBin(state, { chosen }) {
    const t = page.text();
    const [p, q] = state.bin;
    const name = { roi_align: "RoIAlign", prroi_pool: t.exact, roi_pool: "RoIPool" }[state.operator];
    const value = show(chosen.bins[p][q], 6);
    put("bin-title", t.binTitle(p, q, value, name));
    put("bin-sub", t.binSub);
    byId("samples-region").setAttribute("aria-label", t.samplesLabel);
    const align = state.operator === "roi_align";
    const samples = align && chosen.finite ? samplesOf(state, chosen, p, q) : [];
    const max = state.mode === "max";
    if (samples.length) {
      const best = max ? samples.reduce((a, s, i) => (s.value > samples[a].value ? i : a), 0) : -1;
      page.sample = clamp(page.sample, 0, samples.length - 1);
      const rows = samples.slice(0, ROWS).map((s, i) => {
        const terms = s.cells.map((c) => `${show(c.value)}·${show(c.weight, 4)}`).join(" + ") || t.outsideSample;
        const classes = [i === page.sample ? "own" : "", i === best ? "best" : ""].join(" ");
        return row(
          [
            `<button type="button" data-sample="${i}">${i + 1}</button>`,
            `${show(s.y)}, ${show(s.x)}`,
            terms,
            show(s.value, 5),
          ],
          ` class="${classes}"`,
        );
      });
      if (samples.length > ROWS) rows.push(row(["", "", t.more(samples.length - ROWS), ""]));
      const shown = samples.slice(0, 9).map((s) => show(s.value, 5));
      if (samples.length > 9) shown.push("…");
      put("sum", max ? t.sumMax(shown.join(", "), value) : t.sumAvg(shown.join(" + "), samples.length, value));
      return replaceRows(head(t.samplesHead), rows, samples);
    }
    const cells = chosen.finite && !(align && max) ? cellsOf(state, chosen) : [];
    const pool = state.operator === "roi_pool";
    const rows = cells.slice(0, ROWS).map((c) => {
      const best = pool && c.value === chosen.bins[p][q] ? ' class="best"' : "";
      const place = `${c.y}, ${c.x}`;
      return row(
        pool ? [place, show(c.value)] : [place, show(c.value), show(c.weight, 4), show(c.value * c.weight)],
        best,
      );
    });
    if (cells.length > ROWS) rows.push(row([t.more(cells.length - ROWS)]));
    const many =
      align && chosen.y.grid * chosen.x.grid > 0 ? `${t.counted(show(chosen.y.grid, 6), show(chosen.x.grid, 6))} ` : "";
    const list =
      cells
        .slice(0, 9)
        .map((c) => show(c.value))
        .join(", ") + (cells.length > 9 ? ", …" : "");
    if (many && max) put("sum", `${many}<b>${value}</b>`);
    else put("sum", many + (cells.length ? (pool ? t.sumMax(list, value) : t.sumWeights(value)) : t.sumNothing));
    return replaceRows(rows.length ? head(pool ? t.poolHead : t.cellsHead) : "", rows, cells, true);
  }

  /** Write the table; the row's button that has the focus keeps it. */
  function replaceRows(heading, rows, parts, areCells = false) {
    const focused = document.activeElement?.dataset?.sample;
    put("samples", heading + `<tbody>${rows.join("")}</tbody>`);
    if (focused !== undefined) byId("samples").querySelector(`[data-sample="${focused}"]`)?.focus();
    return areCells ? { cells: parts } : { samples: parts };
  }

  /** One sample between its four neighbours, each weighing as the area opposite; or the cells of the bin. */
  function showZoom(state, { chosen }, { samples, cells }) {
    const t = page.text();
    if (!samples) return showCells(state, chosen, cells);
    const s = samples[page.sample];
    const n = page.sample + 1;
    if (!s.cells.length) {
      put("zoom", "");
      return put("zoom-text", t.zoomOutside(n));
    }
    // Centres of cells stand 150 apart at 75 and 225; a cell reaches half of that to each side.
    const [y0, x0] = [Math.floor(clamp(s.y, 0, state.size[0] - 1)), Math.floor(clamp(s.x, 0, state.size[1] - 1))];
    const [fy, fx] = [clamp(s.y, 0, state.size[0] - 1) - y0, clamp(s.x, 0, state.size[1] - 1) - x0];
    const [cy, cx] = [75 + 150 * fy, 75 + 150 * fx];
    const parts = [];
    indices(4).forEach((i) => {
      const [dy, dx] = [i >> 1, i % 2];
      const cell = s.cells.find((c) => c.y === y0 + dy && c.x === x0 + dx);
      if (!cell) return;
      parts.push(`<rect class="cell" x="${150 * dx + 1}" y="${150 * dy + 1}" width="148" height="148"/>`);
      const [ax, aw] = dx ? [75, cx - 75] : [cx, 225 - cx]; // the area opposite
      const [ay, ah] = dy ? [75, cy - 75] : [cy, 225 - cy];
      parts.push(`<rect class="area a${i}" x="${ax}" y="${ay}" width="${aw}" height="${ah}"/>`);
    });
    for (const { y, x, weight, value } of s.cells) {
      const [dy, dx] = [y - y0, x - x0];
      const i = 2 * dy + dx;
      const [px, py] = [75 + 150 * dx, 75 + 150 * dy];
      const letter = "ABCD"[i];
      const [ax, ay] = [(dx ? 75 + cx : cx + 225) / 2, (dy ? 75 + cy : cy + 225) / 2];
      const large = (dx ? cx - 75 : 225 - cx) > 18 && (dy ? cy - 75 : 225 - cy) > 18;
      parts.push(`<circle class="a${i}" cx="${px}" cy="${py}" r="5"/>`);
      parts.push(
        `<text x="${dx ? 296 : 4}" y="${dy ? 276 : 18}" text-anchor="${dx ? "end" : "start"}" class="letter">${letter}: ${show(value)}</text>`,
      );
      parts.push(
        `<text x="${dx ? 296 : 4}" y="${dy ? 294 : 36}" text-anchor="${dx ? "end" : "start"}">× ${show(weight, 3)}</text>`,
      );
      if (large)
        parts.push(`<text x="${ax}" y="${ay + 5}" text-anchor="middle" class="letter">${letter.toLowerCase()}</text>`);
    }
    parts.push(
      `<path class="halo" d="M${cx - 8} ${cy - 8}l16 16m0 -16l-16 16"/><path class="cross own" d="M${cx - 8} ${cy - 8}l16 16m0 -16l-16 16"/>`,
    );
    put("zoom", `<svg viewBox="0 0 300 300" role="img" aria-labelledby="zoom-text">${parts.join("")}</svg>`);
    return put("zoom-text", (s.cells.length === 4 ? t.zoomSample : t.zoomEdge)(n, show(s.value, 5)));
  }

  function showCells(state, chosen, cells) {
    const t = page.text();
    const pool = state.operator === "roi_pool";
    put("zoom-text", cells.length ? (pool ? t.zoomPool : t.zoomExact) : "");
    if (!cells.length || cells.length > 400) return put("zoom", "");
    const [ys, xs] = ["y", "x"].map((key) => cells.map((c) => c[key]));
    const [y0, x0] = [Math.min(...ys), Math.min(...xs)];
    const [rows, columns] = [Math.max(...ys) - y0 + 1, Math.max(...xs) - x0 + 1];
    const side = Math.min(300 / Math.max(rows, columns), 110);
    const top = Math.max(...cells.map((c) => Math.abs(c.weight)));
    const value = chosen.bins[state.bin[0]][state.bin[1]];
    const parts = cells.map((c) => {
      const [x, y] = [(c.x - x0) * side, (c.y - y0) * side];
      const best = pool && c.value === value ? "best" : "";
      const words =
        side < 40
          ? ""
          : `<text x="${x + side / 2}" y="${y + side / 2 + 5}" text-anchor="middle">${show(pool ? c.value : c.weight, 3)}</text>`;
      const strength = pool ? 0.15 : (0.6 * Math.abs(c.weight)) / top;
      return (
        `<rect class="cell" x="${x + 2}" y="${y + 2}" width="${side - 4}" height="${side - 4}"/>` +
        `<rect class="weight ${state.operator} ${best}" x="${x + 2}" y="${y + 2}" width="${side - 4}" height="${side - 4}" fill-opacity="${strength}"/>${words}`
      );
    });
    const size = `viewBox="0 0 300 ${rows * side}"`;
    return put("zoom", `<svg ${size} role="img" aria-labelledby="zoom-text">${parts.join("")}</svg>`);
  }

  /** Ay, the map, Ax transposed and the output side by side, with the chosen bin's rows framed. */
  function showMatrices(state, { chosen }) {
    const t = page.text();
    const [p, q] = state.bin;
    const max = state.operator === "roi_align" && state.mode === "max";
    put("matrices-sub", t.matricesSub(max ? t.matricesMax : state.operator === "roi_pool" ? t.matricesPool : ""));
    const [H, W] = state.size;
    const { Ay, Ax, rowsY, rowsX } = chosen;
    const canvas = byId("matrices");
    const room = canvas.parentElement.clientWidth - 2 * parseFloat(getComputedStyle(canvas.parentElement).paddingLeft);
    const columns = [H, W, Ax.length, state.output_size[1]];
    const signs = ["×", "×", "="];
    const gap = 22;
    const side = Math.min(26, (room - gap * 3 - 28) / columns.reduce((a, b) => a + b, 0));
    const rows = [Ay.length, H, W, state.output_size[0]];
    const tall = Math.max(...rows) * side;
    const sharp = devicePixelRatio || 1;
    const styles = getComputedStyle(document.body);
    const [ink, align, pool] = ["--ink", "--align", "--pool"].map((name) => styles.getPropertyValue(name));
    const [width, height] = [columns.reduce((a, b) => a + b, 0) * side + gap * 3 + 28, tall + 26]; // with room for a name wider than its matrix
    Object.assign(canvas, { width: width * sharp, height: height * sharp });
    Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
    const context = canvas.getContext("2d");
    context.scale(sharp, sharp);
    context.font = "600 13px system-ui, sans-serif";
    context.textAlign = "center";
    const extent = draw.ofMap(state).range;
    const colour = state.operator === "roi_pool" ? pool : align;
    const weightPaint = (matrix) => {
      const top = Math.max(1e-300, ...matrix.flat().map(Math.abs));
      return (value) => [colour, Math.min(1, Math.abs(value) / top)];
    };
    const greyPaint = (value) => {
      const level = draw.grey(value, extent);
      return [`rgb(${level} ${level} ${level})`, 1];
    };
    const own = (lists, index) => [lists.slice(0, index).flat().length, lists[index].length];
    const [ownY, ownX] = [own(rowsY, p), own(rowsX, q)];
    const transposed = indices(W).map((x) => Ax.map((line) => line[x]));
    const blocks = [
      ["Ay", Ay, weightPaint(Ay), [0, ownY[0], H, ownY[1]]],
      [t.mapWord, null, greyPaint, null],
      ["Axᵀ", transposed, weightPaint(Ax), [ownX[0], 0, ownX[1], W]],
      [t.outWord, chosen.bins, greyPaint, [q, p, 1, 1]],
    ];
    let left = 2;
    blocks.forEach(([name, matrix, paint, mark], b) => {
      const top = 22 + (tall - rows[b] * side) / 2;
      context.globalAlpha = 1;
      context.fillStyle = ink;
      context.fillText(name, left + (columns[b] * side) / 2, top - 7);
      const inset = side > 6 ? 0.5 : 0;
      context.imageSmoothingEnabled = false;
      if (!matrix) context.drawImage(draw.ofMap(state).picture, left, top, columns[b] * side, rows[b] * side);
      matrix?.forEach((line, i) =>
        line.forEach((value, j) => {
          [context.fillStyle, context.globalAlpha] = paint(value);
          context.fillRect(left + j * side, top + i * side, side - inset, side - inset);
        }),
      );
      context.globalAlpha = 0.35;
      context.strokeStyle = ink;
      context.lineWidth = 1;
      context.strokeRect(left - 0.5, top - 0.5, columns[b] * side + 1, rows[b] * side + 1);
      context.globalAlpha = 1;
      if (mark && mark[2] * mark[3]) {
        context.lineWidth = 2;
        context.strokeRect(left + mark[0] * side, top + mark[1] * side, mark[2] * side, mark[3] * side);
      }
      left += columns[b] * side;
      if (b < 3) context.fillText(signs[b], left + gap / 2, 22 + tall / 2 + 4);
      left += gap;
    });
    const words = (name, matrix, [first, count]) =>
      indices(Math.min(count, 8)).map((i) => {
        const list = taps(matrix[first + i]).map(([cell, weight]) => `${t.cellWord} ${cell} → ${show(weight, 4)}`);
        return t.matricesRows(
          name,
          first + i,
          list.slice(0, 12).join(", ") + (list.length > 12 ? ", …" : "") || t.allZero,
        );
      });
    const [wy, wx] = [words("Ay", Ay, ownY), words("Ax", Ax, ownX)];
    put("matrices-rows", [...wy, ...wx].map((line) => `<span>${line}</span>`).join(""));
    canvas.setAttribute("aria-label", t.matricesLabel(wy.join("; "), wx.join("; ")));
  }

  /** The chosen bin's value as the box slides sideways: a smooth line and a staircase. */
  function showSweep(state, results) {
    const t = page.text();
    const [p, q] = state.bin;
    const cell = 1 / scales(state)[1];
    const at = (operator, dx) => {
      const [x1, y1, x2, y2] = state.box.map(Number);
      return compute({ ...state, operator, box: [x1 + dx, y1, x2 + dx, y2] }, state.bin).bins[0][0];
    };
    const kind = state.operator === "prroi_pool" ? "prroi_pool" : "roi_align";
    const most = 60;
    const xs = indices(2 * most + 1).map((i) => ((i - most) / most) * 1.5 * cell);
    const lines = { align: xs.map((dx) => at(kind, dx)), pool: xs.map((dx) => at("roi_pool", dx)) };
    const all = [...lines.align, ...lines.pool].filter(Number.isFinite);
    if (!all.length) {
      put("sweep", "");
      return put("sweep-text", t.answerBad);
    }
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const room = clamp(byId("sweep").clientWidth, 260, 560);
    const [W, H, left, bottom] = [room, 190, 48, 34];
    const X = (dx) => left + ((dx / cell + 1.5) / 3) * (W - left - 10);
    const Y = (value) => (high > low ? 22 + ((high - value) / (high - low)) * (H - bottom - 30) : (H - bottom) / 2);
    const path = (values, steps) =>
      values
        .map((v, i) => {
          if (!Number.isFinite(v)) return ""; // a gap
          if (!Number.isFinite(values[i - 1])) return `M${X(xs[i])} ${Y(v)}`;
          return steps ? `H${(X(xs[i - 1]) + X(xs[i])) / 2}V${Y(v)}H${X(xs[i])}` : `L${X(xs[i])} ${Y(v)}`;
        })
        .join("");
    const ticks = [-1, -0.5, 0, 0.5, 1].map(
      (f) => `<text x="${X(f * cell)}" y="${H - 18}" text-anchor="middle">${pixels(f * cell, true)}</text>`,
    );
    const scale = (high > low ? [low, high] : [low]).map(
      (v) => `<text x="${left - 6}" y="${Y(v) + 4}" text-anchor="end">${show(v, 3)}</text>`,
    );
    const now = (name, value) =>
      Number.isFinite(value) ? `<circle class="${name}-dot" cx="${X(0)}" cy="${Y(value)}" r="5"/>` : "";
    const names = [
      ["align", kind === "prroi_pool" ? t.exact : "RoIAlign"],
      ["pool", "RoIPool"],
    ]
      .filter(([name]) => Number.isFinite(lines[name].at(-1)))
      .map(([name, word], i) => {
        const above = i === 1 ? lines.pool.at(-1) >= lines.align.at(-1) : lines.align.at(-1) > lines.pool.at(-1);
        return `<text class="${name}-name" x="${W - 12}" y="${clamp(Y(lines[name].at(-1)) + (above ? -7 : 17), 10, H - bottom - 4)}" text-anchor="end">${word}</text>`;
      })
      .join("");
    const here = { align: results.align.bins[p][q], pool: results.pool.bins[p][q] };
    put(
      "sweep",
      `<svg viewBox="0 0 ${W} ${H}" role="img" aria-label="${t.sweepLabel}"><path class="axis" d="M${left} ${H - bottom}H${W - 10}M${X(0)} 6V${H - bottom}"/>` +
        `<path class="pool-line" d="${path(lines.pool, true)}"/><path class="align-line" d="${path(lines.align, false)}"/>` +
        `${now("pool", here.pool)}${now("align", here.align)}${ticks.join("")}${scale.join("")}${names}` +
        `<text x="${(left + W) / 2}" y="${H - 2}" text-anchor="middle">${t.sweepAxis}</text></svg>`,
    );
    const step = 4 * page.step();
    const signed = (value) => (value > 0 ? "+" : "") + show(value, 3);
    const change = (operator, value) => signed(at(operator, step) - value);
    const jumps = indices(xs.length)
      .filter((i) => lines.pool[i] !== here.pool)
      .sort((a, b) => Math.abs(xs[a]) - Math.abs(xs[b]));
    const nearest = jumps.length ? xs[jumps[0]] : 0;
    const far = pixels(Math.ceil(Math.abs(nearest) / page.step()) * page.step());
    const jump = nearest ? t.jump(far, signed(lines.pool[jumps[0]] - here.pool), nearest < 0) : t.noJump;
    const words = t.sweepText(p, q, pixels(step), change(kind, here.align), change("roi_pool", here.pool), jump);
    return put("sweep-text", kind === "prroi_pool" ? words.replace("RoIAlign", t.exact) : words);
  }

  function showDetails(state, results) {
    showZoom(state, results, showBin(state, results));
    showMatrices(state, results);
    showSweep(state, results);
  }

  const table = byId("samples");
  for (const type of ["click", "focusin", "pointerover"]) {
    table.addEventListener(type, (event) => {
      const button = event.target.closest("tr")?.querySelector("[data-sample]");
      if (!button || Number(button.dataset.sample) === page.sample) return;
      page.sample = Number(button.dataset.sample);
      page.draw();
    });
  }

  return { showDetails };
})();
