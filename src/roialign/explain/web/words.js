"use strict";
// The sentences that say what is seen, the rounding step by step, and the call in Python.

roialign.words = (() => {
  const { page, draw, scales, indices } = roialign;
  const { show, pixels } = draw;
  const byId = (id) => document.getElementById(id);
  const put = (id, html) => {
    if (byId(id).dataset.html === html) return; // do not disturb a reader's selection
    byId(id).dataset.html = html;
    byId(id).innerHTML = html;
  };
  const EDGES = ["left", "top", "right", "bottom"];
  const times = (w, h) => `${pixels(w)}\u00a0×\u00a0${pixels(h)}`;

  /** The difference between the two operators, in a sentence or two. */
  function answer(state, results) {
    const t = page.text();
    const { align, pool } = results;
    const [x1, y1, x2, y2] = state.box.map(Number);
    if (!align.finite) return t.answerBad;
    if (x2 < x1 || y2 < y1) return t.answerInverted;
    const [sy, sx] = scales(state);
    const edges = draw.region("pool", pool);
    const [width, height] = [(edges[2] - edges[0]) / sx, (edges[3] - edges[1]) / sy];
    const area = (width * height) / ((x2 - x1) * (y2 - y1));
    const shift = draw.shifts(state, edges);
    const parts = { cuts: [], adds: [] };
    for (const edge of EDGES.filter((name) => Math.abs(shift[name]) >= page.step() / 2)) {
      const inward = (edge === "left" || edge === "top") === shift[edge] > 0;
      parts[inward ? "cuts" : "adds"].push(t.atEdge(pixels(Math.abs(shift[edge])), t.edges[edge]));
    }
    const joined = (list) => (list.length > 1 ? list.slice(0, -1).join(t.comma) + t.andWord + list.at(-1) : list[0]);
    const list = ["cuts", "adds"]
      .filter((kind) => parts[kind].length)
      .map((kind) => t[kind](joined(parts[kind])))
      .join(t.both);
    const more = Number.isFinite(area) && Math.abs(area - 1) >= 0.05 ? t.times(show(area, 2)) : "";
    const own = draw.shifts(state, draw.region("align", align));
    const shifted = Math.max(Math.abs(own.left), Math.abs(own.top)) >= page.step() / 2;
    const why = state.operator === "prroi_pool" ? t.exactOperator : t.withoutAligned;
    const name = (html) => (state.operator === "prroi_pool" ? html.replace("RoIAlign", t.exact) : html);
    const said = shifted ? t.answerShift(pixels(own.left), pixels(own.top)).replace("ALIGNED", why) : t.answerExact;
    return t.answerPool(times(x2 - x1, y2 - y1), times(width, height), more) + list + t.stop + name(said);
  }

  /** What a reader might stumble over in this state, per picture. */
  function notes(state, results) {
    const t = page.text().notes;
    const { align, pool } = results;
    const box = state.box.map(Number);
    const list = { align: [], pool: [] };
    if (!align.finite) return list;
    const inverted = box[2] < box[0] || box[3] < box[1];
    if (state.operator === "prroi_pool") {
      if (!(align.y.size > 0 && align.x.size > 0)) list.align.push(t.noArea);
    } else {
      const counts = [align.y.grid, align.x.grid];
      if (inverted && (align.y.size < 0 || align.x.size < 0)) list.align.push(t.inverted);
      if (counts.includes(0)) list.align.push(t.empty);
      else if (state.sampling_ratio <= 0) list.align.push(t.adaptive(...counts.map((n) => show(n, 6))));
      if (align.y.widened || align.x.widened) list.align.push(t.widened);
      const [ys, xs] = [align.y.samples.flat(), align.x.samples.flat()];
      if (!counts.includes(0) && !(ys.length && xs.length)) list.align.push(t.many);
      const [H, W] = state.size;
      const inside = (positions, length) => positions.filter((s) => s >= -1 && s <= length).length;
      const off = ys.length * xs.length - inside(ys, H) * inside(xs, W);
      if (off) list.align.push(t.outside(off, ys.length * xs.length));
    }
    if (!pool.Ay.every((row) => row.includes(1)) || !pool.Ax.every((row) => row.includes(1))) list.pool.push(t.poolOff);
    if ([pool.pool.y, pool.pool.x].some(({ cells }) => cells.some(([begin], p) => p && begin < cells[p - 1][1]))) {
      list.pool.push(t.overlap);
    }
    return list;
  }

  /** RoIPool's rounding of each edge, step by step, and how far it moves the edge. */
  function rounding(state, { pool }) {
    const t = page.text();
    const scale = scales(state).toReversed(); // x, y
    const edges = draw.region("pool", pool);
    const shift = draw.shifts(state, edges);
    const head = `<tr>${t.roundingHead.map((word) => `<th scope="col">${word}</th>`).join("")}</tr>`;
    const rows = EDGES.map((edge, i) => {
      const s = scale[i % 2];
      const whole = i < 2 ? edges[i] : edges[i] - 1;
      return (
        `<tr><th scope="row">${t.edges[edge]}</th><td>${pixels(Number(state.box[i]))} ÷ ${show(1 / s)} = ${show(state.box[i] * s)}</td>` +
        `<td>${t.cellWord} ${show(whole)}</td><td>${(i < 2 ? t.from : t.upto)(pixels(edges[i] / s))}</td>` +
        `<td class="shift">${pixels(shift[edge], true)} px</td></tr>`
      );
    });
    const worst = EDGES.reduce((a, b) => (Math.abs(shift[b]) > Math.abs(shift[a]) ? b : a));
    const cells = Math.abs(shift[worst]) * scale[EDGES.indexOf(worst) % 2];
    put("rounding", `<thead>${head}</thead><tbody>${rows.join("")}</tbody>`);
    put("rounding-note", t.roundingNote(t.edges[worst], pixels(shift[worst], true), show(cells, 2)));
  }

  /** The exact call, with everything that it needs. */
  function python(state) {
    const number = (value) => {
      const n = Number(value);
      if (!Number.isFinite(n)) return `float("${n > 0 ? "inf" : n < 0 ? "-inf" : "nan"}")`;
      return Number.isInteger(n) && Math.abs(n) < 1e15 ? `${n}.0` : `${n}`;
    };
    const [H, W] = state.size;
    const map = state.values
      ? `torch.tensor([\n${state.values.map((row) => `    [${row.map(number).join(", ")}],`).join("\n")}\n], dtype=torch.float64)[None, None]`
      : `torch.arange(${H * W}, dtype=torch.float64).reshape(1, 1, ${H}, ${W})`;
    const scale = scales(state);
    const call = [`feature_map`, `boxes`, `(${state.output_size.join(", ")})`];
    call.push(`spatial_scale=${scale[0] === scale[1] ? number(scale[0]) : `(${scale.map(number).join(", ")})`}`);
    if (state.operator === "roi_align") {
      call.push(
        `sampling_ratio=${state.sampling_ratio}`,
        `aligned=${state.aligned ? "True" : "False"}`,
        `mode="${state.mode}"`,
      );
    }
    return [
      `import torch`,
      `from roialign import ${state.operator}`,
      ``,
      `feature_map = ${map}`,
      `boxes = [torch.tensor([[${state.box.map(number).join(", ")}]], dtype=torch.float64)]  # x1, y1, x2, y2`,
      `pooled = ${state.operator}(${call.join(", ")})`,
      `print(pooled[0, 0])`,
    ].join("\n");
  }

  /** Never let the sentence get shorter, or the pictures below it would jump while the box is dragged. */
  let tallest = { width: 0, height: 0 };
  function keepHeight(sentence) {
    if (tallest.width !== sentence.clientWidth) {
      sentence.style.minHeight = "";
      tallest = { width: sentence.clientWidth, height: 0 };
    }
    tallest.height = Math.max(tallest.height, sentence.offsetHeight);
    sentence.style.minHeight = `${tallest.height}px`;
  }

  function showWords(state, results) {
    const t = page.text();
    const cell = scales(state)
      .toReversed()
      .map((scale) => show(1 / scale));
    put("lede", t.lede(`${cell[0]} × ${cell[1]}`, `${state.output_size[0]} × ${state.output_size[1]}`));
    put("answer", answer(state, results));
    keepHeight(byId("answer"));
    const exact = state.operator === "prroi_pool";
    const { y, x } = results.align;
    put("align-title", exact ? t.exactTitle : t.alignTitle);
    put("align-sub", exact ? t.exactSub : t.alignSub(y.grid * x.grid > 0 ? show(y.grid * x.grid, 6) : null));
    const said = notes(state, results);
    for (const kind of ["align", "pool"]) put(`${kind}-notes`, said[kind].map((note) => `<li>${note}</li>`).join(""));
    if (results.pool.finite) rounding(state, results);
    byId("python").textContent = python(state);
  }

  return { showWords, put };
})();
