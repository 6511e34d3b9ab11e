"use strict";
// The two pictures with the box, and the two outputs below them.

roialign.draw = (() => {
  const { page, indices, clamp, scales, valueAt } = roialign;

  /** A number for the eye. */
  function show(value, digits = 4) {
    if (!Number.isFinite(value)) return `${value}`;
    return `${Number(value.toPrecision(digits))}`.replace("-", "−");
  }
  /** Pixels of the image, to a tenth of what a drag moves by; `signed` marks a shift. */
  function pixels(value, signed = false) {
    const digits = clamp(Math.round(1 - Math.log10(page.step())), 0, 12);
    const text = Math.abs(value) < 1e7 ? `${Number(value.toFixed(digits))}` : show(value);
    return (signed && value > 0 ? "+" : "") + text.replace("-", "−");
  }
  const boxWords = (box) => page.text().boxWords(...box.map((edge) => pixels(Number(edge))));

  /** Where things lie on a stage of this width: an edge 0..W of the cells, in CSS pixels. A cell more is drawn around. */
  function geometry(state, width) {
    const [sy, sx] = scales(state);
    const [H, W] = state.size;
    const [my, mx] = [Math.max(0.7, 0.08 * H), Math.max(0.7, 0.08 * W)];
    const full = [(H + 2 * my) / sy, (W + 2 * mx) / sx];
    const unit = Math.min(width / full[1], (1.1 * width) / full[0]); // CSS pixels per pixel of the image
    const [ch, cw] = [unit / sy, unit / sx];
    const left = (width - W * cw) / 2;
    const limit = (value) => clamp(value, -1e4, 1e4); // SVG goes astray with boxes of 1e9 pixels
    return {
      width,
      height: (H + 2 * my) * ch,
      cw,
      ch,
      unit,
      X: (edge) => limit(left + edge * cw),
      Y: (edge) => limit((my + edge) * ch),
      toImage: (x, y) => [(x - left) / unit, (y - my * ch) / unit],
      toCells: (x, y) => [(x - left) / cw, y / ch - my],
    };
  }

  /** Grey for a value: dark is low, as in a photo, so that a map of brightness looks like its photo. */
  function grey(value, [low, high]) {
    const t = high > low ? clamp((value - low) / (high - low), 0, 1) : 0.5;
    return Number.isFinite(value) ? Math.round(45 + 200 * t) : 128;
  }
  /** What depends on the map's values alone, kept until they change: their range, and the map with a pixel per cell. */
  let kept = { key: "" };
  function ofMap(state) {
    const key = [state.source, state.size, Boolean(page.photo)].join();
    if (kept.key === key) return kept;
    const [H, W] = state.size;
    const values = indices(H).flatMap((y) => indices(W).map((x) => valueAt(state, y, x)));
    const finite = values.filter(Number.isFinite);
    const range = [
      finite.reduce((a, b) => Math.min(a, b), Infinity),
      finite.reduce((a, b) => Math.max(a, b), -Infinity),
    ];
    const picture = Object.assign(document.createElement("canvas"), { width: W, height: H });
    const bytes = values.flatMap((value) => [...Array(3).fill(grey(value, range)), 255]);
    picture.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(bytes), W, H), 0, 0);
    kept = { key, range, picture };
    return kept;
  }

  function paintCells(canvas, state, g) {
    const sharp = devicePixelRatio || 1;
    const key = [
      g.width,
      g.height,
      sharp,
      state.view,
      state.size,
      state.source,
      Boolean(page.photo),
      page.theme,
    ].join();
    if (canvas.dataset.key === key) return;
    canvas.dataset.key = key;
    canvas.width = g.width * sharp;
    canvas.height = g.height * sharp;
    Object.assign(canvas.style, { width: `${g.width}px`, height: `${g.height}px` });
    const context = canvas.getContext("2d");
    context.scale(sharp, sharp);
    const [H, W] = state.size;
    const extent = ofMap(state).range;
    const font = Math.min(13, g.cw * 0.36, g.ch * 0.5);
    context.font = `${font}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    if (state.view === "photo" && page.photo) {
      context.drawImage(page.photo, g.X(0), g.Y(0), page.image[1] * g.unit, page.image[0] * g.unit);
      context.strokeStyle = "rgb(255 255 255 / 45%)";
      context.beginPath();
      for (const x of indices(W + 1)) context.rect(g.X(x), g.Y(0), 0, H * g.ch);
      for (const y of indices(H + 1)) context.rect(g.X(0), g.Y(y), W * g.cw, 0);
      context.stroke();
      return;
    }
    const gap = g.cw > 8 ? 1 : 0;
    for (const y of indices(H))
      for (const x of indices(W)) {
        const value = valueAt(state, y, x);
        const level = grey(value, extent);
        context.fillStyle = `rgb(${level} ${level} ${level})`;
        context.fillRect(g.X(x), g.Y(y), g.cw - gap, g.ch - gap);
        if (font < 7) continue;
        context.fillStyle = level > 125 ? "#000" : "#fff";
        context.fillText(show(value, 3), g.X(x + 0.5), g.Y(y + 0.5), g.cw - 2);
      }
  }

  const line = (x1, y1, x2, y2) => `M${x1} ${y1}L${x2} ${y2}`;
  const frame = (g, [x1, y1, x2, y2]) => `M${g.X(x1)} ${g.Y(y1)}H${g.X(x2)}V${g.Y(y2)}H${g.X(x1)}Z`;

  /** The region read, in edges of cells: [x1, y1, x2, y2]. */
  function region(kind, result) {
    const { x, y, pool } = result;
    if (kind === "pool") return [pool.x.first, pool.y.first, pool.x.last + 1, pool.y.last + 1];
    return [x.start + 0.5, y.start + 0.5, x.start + x.size + 0.5, y.start + y.size + 0.5]; // position 0 is a cell's centre
  }
  /** By how many pixels of the image each edge of the region lies from the box's. */
  function shifts(state, edges) {
    const [sy, sx] = scales(state);
    const [left, top, right, bottom] = [sx, sy, sx, sy].map((s, i) => edges[i] / s - Number(state.box[i]));
    return { left, top, right, bottom };
  }

  /** Arrows from the box's edges to those of the region that is read, with their length. */
  function arrows(state, g, edges, box) {
    const shift = shifts(state, edges);
    const middle = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2];
    const parts = [];
    for (const [name, i] of [
      ["left", 0],
      ["top", 1],
      ["right", 2],
      ["bottom", 3],
    ]) {
      if (!(Math.abs(shift[name]) >= page.step() / 2)) continue;
      const flat = i % 2 === 0;
      const [from, to] = [box[i], edges[i]].map((edge) => (flat ? g.X(edge) : g.Y(edge)));
      const across = flat ? g.Y(middle[1]) : g.X(middle[0]);
      const head = Math.min(6, Math.abs(to - from)) * Math.sign(to - from);
      const path = flat
        ? `${line(from, across, to, across)}M${to - head} ${across - 4}L${to} ${across}L${to - head} ${across + 4}`
        : `${line(across, from, across, to)}M${across - 4} ${to - head}L${across} ${to}L${across + 4} ${to - head}`;
      const outer = i < 2 ? Math.min(from, to) - 5 : Math.max(from, to) + 5;
      const x = flat ? clamp(outer, i ? 4 : 52, g.width - (i ? 52 : 4)) : clamp(across, 30, g.width - 30);
      const y = flat ? clamp(across, 14, g.height - 8) : clamp(outer + (i === 3 ? 10 : 0), 14, g.height - 4);
      const anchor = flat ? (i ? "start" : "end") : "middle";
      parts.push(
        `<path class="halo" d="${path}"/><path class="arrow" d="${path}"/>` +
          `<text x="${x}" y="${y + (flat ? 4 : 0)}" text-anchor="${anchor}">${pixels(Math.abs(shift[name]))} px</text>`,
      );
    }
    return parts.join("");
  }

  function crosses(g, ys, xs, size) {
    return ys
      .flatMap((y) =>
        xs.map((x) => {
          const [cx, cy] = [g.X(x + 0.5), g.Y(y + 0.5)];
          return line(cx - size, cy - size, cx + size, cy + size) + line(cx - size, cy + size, cx + size, cy - size);
        }),
      )
      .join("");
  }

  /** The selected bin and the bins' borders, in edges of cells. */
  function bins(kind, state, result) {
    const [p, q] = state.bin;
    const { x, y, pool } = result;
    if (kind === "pool") {
      const [[y1, y2], [x1, x2]] = [pool.y.cells[p], pool.x.cells[q]];
      const few = (a, b) => indices(Math.min(b - a, 65)).map((i) => a + i);
      return {
        selected: [x1, y1, x2, y2],
        xs: few(pool.x.first, pool.x.last + 1),
        ys: few(pool.y.first, pool.y.last + 1),
      };
    }
    const at = (axis, i) => axis.start + 0.5 + i * axis.bin;
    return {
      selected: [at(x, q), at(y, p), at(x, q + 1), at(y, p + 1)],
      xs: indices(state.output_size[1]).map((i) => at(x, i)),
      ys: indices(state.output_size[0]).map((i) => at(y, i)),
    };
  }

  function overlay(kind, state, result, g) {
    if (!result.finite) return "";
    const [sy, sx] = scales(state);
    const box = state.box.map((edge, i) => Number(edge) * (i % 2 ? sy : sx));
    const edges = region(kind, result);
    const clipped = edges.map((edge, i) => clamp(edge, 0, state.size[1 - (i % 2)]));
    const { selected, xs, ys } = bins(kind, state, result);
    const grid =
      xs
        .slice(1)
        .map((x) => line(g.X(x), g.Y(edges[1]), g.X(x), g.Y(edges[3])))
        .join("") +
      ys
        .slice(1)
        .map((y) => line(g.X(edges[0]), g.Y(y), g.X(edges[2]), g.Y(y)))
        .join("");
    const parts = [
      `<path class="dim" fill-rule="evenodd" d="${frame(g, [0, 0, state.size[1], state.size[0]])}${frame(g, clipped)}"/>`,
    ];
    parts.push(`<path class="selected" d="${frame(g, selected)}"/>`);
    parts.push(
      `<path class="halo" d="${frame(g, edges)}"/><path class="grid" d="${grid}"/><path class="region" d="${frame(g, edges)}"/>`,
    );
    if (kind === "align") {
      const [cy, cx] = [result.y.samples, result.x.samples];
      const spacing = Math.min(
        (Math.abs(result.y.bin) * g.ch) / Math.max(result.y.grid, 1),
        (Math.abs(result.x.bin) * g.cw) / Math.max(result.x.grid, 1),
      );
      const size = clamp(spacing / 4, 1, 5);
      const count = cy.flat().length * cx.flat().length;
      if (count > 0 && count < 4000) {
        const all = crosses(g, cy.flat(), cx.flat(), size);
        parts.push(`<path class="halo" d="${all}"/><path class="cross" d="${all}"/>`);
      }
      const [p, q] = state.bin;
      if (count > 0 && cy[p].length * cx[q].length <= 1024)
        parts.push(`<path class="cross own" d="${crosses(g, cy[p], cx[q], size + 1)}"/>`);
    }
    parts.push(`<path class="halo" d="${frame(g, box)}"/><path class="box" d="${frame(g, box)}"/>`);
    if (box[0] <= box[2] && box[1] <= box[3]) parts.push(arrows(state, g, edges, box));
    return parts.join("");
  }

  /** Draw one stage: the canvas of cells, the overlay, and the handles, which stay the same elements while dragged. */
  function drawStage(stage, state, result, name) {
    const { host, kind, canvas, svg, layer, move, corners } = stage;
    const g = geometry(state, host.clientWidth);
    stage.geometry = g;
    paintCells(canvas, state, g);
    svg.setAttribute("viewBox", `0 0 ${g.width} ${g.height}`);
    svg.style.height = `${g.height}px`;
    svg.setAttribute("aria-label", page.text().stageLabel(name, boxWords(state.box)));
    layer.innerHTML = overlay(kind, state, result, g);
    const [sy, sx] = scales(state);
    const box = state.box.map((edge, i) => (Number.isFinite(Number(edge)) ? Number(edge) : 0) * (i % 2 ? sy : sx));
    const sides = [Math.abs(box[2] - box[0]) * g.cw, Math.abs(box[3] - box[1]) * g.ch];
    const touch = clamp(Math.min(...sides) / 3, 11, 22); // on a small box leave room to take hold of the box itself
    move.setAttribute("d", frame(g, box));
    move.setAttribute("aria-label", page.text().moveBox(boxWords(state.box)));
    corners.forEach((corner, i) => {
      const [x, y] = [2 * (i % 2), 1 + 2 * (i >> 1)];
      corner.firstChild.setAttribute("r", touch);
      corner.setAttribute("transform", `translate(${g.X(box[x])} ${g.Y(box[y])})`);
      const words = [state.box[x], state.box[y]].map((edge) => pixels(Number(edge)));
      corner.setAttribute("aria-label", page.text().corner(page.text().corners[i], ...words));
    });
  }

  /** The output as a grid of bins: one stop of Tab, arrow keys inside. */
  function drawOutput(host, state, result, name) {
    const [ph, pw] = state.output_size;
    const key = `${ph},${pw}`;
    if (host.dataset.key !== key) {
      host.dataset.key = key;
      const cell = (p, q) => `<div role="gridcell" data-bin="${p},${q}"></div>`;
      const rows = indices(ph).map(
        (p) =>
          `<div role="row">${indices(pw)
            .map((q) => cell(p, q))
            .join("")}</div>`,
      );
      host.innerHTML = `<p aria-hidden="true"></p><div role="grid">${rows.join("")}</div>`;
    }
    const grid = host.lastChild;
    const side = clamp(Math.floor(Math.min(host.clientWidth, 420) / pw) - 2, 8, ph > 4 ? 34 : 56);
    host.style.setProperty("--side", `${side}px`);
    host.firstChild.textContent = page.text().outputCaption(ph, pw, state.source === "photo");
    grid.setAttribute("aria-label", page.text().outputLabel(name, ph, pw));
    const extent = ofMap(state).range;
    for (const cell of grid.querySelectorAll("[data-bin]")) {
      const [p, q] = cell.dataset.bin.split(",").map(Number);
      const value = result.bins[p][q];
      const level = grey(value, extent);
      const own = p === state.bin[0] && q === state.bin[1];
      cell.textContent = side >= 30 ? show(value, side >= 44 ? 4 : 3) : "";
      cell.style.background = `rgb(${level} ${level} ${level})`;
      cell.style.color = level > 125 ? "#000" : "#fff";
      cell.setAttribute("aria-label", page.text().binLabel(p, q, show(value, 6)));
      cell.setAttribute("aria-selected", `${own}`);
      cell.tabIndex = own ? 0 : -1;
    }
  }

  return { show, pixels, boxWords, grey, ofMap, region, shifts, bins, drawStage, drawOutput };
})();
