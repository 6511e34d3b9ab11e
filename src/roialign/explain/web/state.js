"use strict";
// The page's state: where it begins, how the URL's fragment carries it, and what follows from it.

roialign.page = (() => {
  const { compute, scales, indices, clamp } = roialign;
  const initial = JSON.parse(document.getElementById("initial").textContent);
  const MOST_CELLS = 128; // along an axis of a map that the page makes itself

  const page = { initial, state: null, changed: [], photo: null, brightness: null, sample: 0 };

  function start() {
    const source = initial.values ? "given" : initial.photo ? "photo" : "counting";
    const view = initial.photo ? "photo" : "map";
    page.state = { ...structuredClone(initial), source, view, bin: [0, 0] };
    readFragment();
    fit();
  }

  /** Bring a changed state into line with itself. A map that the page makes itself gets finer or coarser with the scale. */
  function fit() {
    const { state } = page;
    const [scale, before] = [scales(state), scales(initial)];
    const given = state.source === "given";
    page.image = initial.size.map((cells, d) => cells / (given ? scale[d] : before[d])); // pixels, (height, width)
    state.size = given ? initial.size : page.image.map((size, d) => clamp(Math.round(size * scale[d]), 1, MOST_CELLS));
    refit();
  }

  /** The map's values, and a selected bin and sample that exist. */
  function refit() {
    const { state } = page;
    state.values = { given: () => initial.values, photo: photoBrightness, counting: () => null }[state.source]();
    state.bin = state.bin.map((index, d) => clamp(index, 0, state.output_size[d] - 1));
  }

  /** Change the state; everything is drawn anew before the next frame. */
  function update(patch) {
    const { state } = page;
    Object.assign(state, patch);
    if (patch.source === undefined && patch.spatial_scale === undefined) refit();
    else fit();
    page.sample = patch.bin ? 0 : page.sample;
    draw();
  }

  let waiting = false;
  function draw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      const results = {
        align: compute({ ...page.state, operator: page.state.operator === "prroi_pool" ? "prroi_pool" : "roi_align" }),
        pool: compute({ ...page.state, operator: "roi_pool" }),
      };
      results.chosen = page.state.operator === "roi_pool" ? results.pool : results.align;
      page.results = results;
      for (const listener of page.changed) listener(page.state, results);
      writeFragment();
    });
  }

  /** The mean brightness of the photo under each cell, 0 to 255, rounded so that it can be written out. */
  function photoBrightness() {
    const [height, width] = page.state.size;
    if (!page.photo) return indices(height).map(() => Array(width).fill(0)); // still to come
    const key = `${height},${width}`;
    if (page.brightness?.key === key) return page.brightness.values;
    const fine = 8; // pixels averaged along each side of a cell
    const canvas = Object.assign(document.createElement("canvas"), { width: width * fine, height: height * fine });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingQuality = "high";
    const [tall, wide] = page.image.map((pixels, d) => pixels * scales(page.state)[d] * fine);
    context.drawImage(page.photo, 0, 0, wide, tall);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    const values = indices(height).map((y) =>
      indices(width).map((x) => {
        let [sum, count] = [0, 0];
        for (let i = 0; i < fine; i++)
          for (let j = 0; j < fine; j++) {
            const at = 4 * ((y * fine + i) * canvas.width + x * fine + j);
            if (!data[at + 3]) continue; // the map may reach beyond the photo
            sum += 0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2];
            count += 1;
          }
        return Math.round(sum / Math.max(count, 1));
      }),
    );
    page.brightness = { key, values };
    return values;
  }

  // Each part of the state in the fragment: how it is written, and how it is read (null if it makes no sense).
  const numbers = (count, fits) => (text) => {
    const list = text.split(",").map((part) => (part.trim() === "" ? NaN : Number(part)));
    return list.length === count && list.every(fits) ? list : null;
  };
  const oneOf =
    (...options) =>
    (text) =>
      options.includes(text) ? text : null;
  const whole = (low, high) => (n) => Number.isInteger(n) && n >= low && n <= high;
  const PARTS = {
    box: [(s) => s.box.join(), numbers(4, Number.isFinite)],
    out: [(s) => s.output_size.join(), numbers(2, whole(1, 64)), "output_size"],
    ratio: [(s) => `${s.sampling_ratio}`, (text) => numbers(1, whole(-1e6, 1e6))(text)?.[0] ?? null, "sampling_ratio"],
    scale: [(s) => scales(s).join(), numbers(2, (n) => n > 0 && n < Infinity), "spatial_scale"],
    aligned: [(s) => `${+s.aligned}`, (text) => ({ 0: false, 1: true })[text] ?? null],
    op: [(s) => s.operator, oneOf("roi_align", "prroi_pool", "roi_pool"), "operator"],
    mode: [(s) => s.mode, oneOf("avg", "max")],
    bin: [(s) => s.bin.join(), numbers(2, whole(0, 63))],
    map: [(s) => s.source, (text) => (sources().includes(text) ? text : null), "source"],
    view: [(s) => s.view, (text) => (text === "map" || (text === "photo" && initial.photo) ? text : null)],
    lang: [(s) => s.language, oneOf("en", "zh"), "language"],
  };

  function sources() {
    return [...(initial.values ? ["given"] : []), ...(initial.photo ? ["photo"] : []), "counting"];
  }

  function fragment() {
    return `#${Object.entries(PARTS)
      .map(([name, [write]]) => `${name}=${write(page.state)}`)
      .join("&")}`;
  }

  function readFragment() {
    for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
      const [, read, key = name] = PARTS[name] ?? [];
      const value = read?.(text) ?? null;
      if (value !== null) page.state[key] = value;
    }
  }

  let timer = 0;
  function writeFragment() {
    clearTimeout(timer);
    timer = setTimeout(() => {
      try {
        history.replaceState(null, "", fragment());
      } catch {
        // A page inside another (a notebook's srcdoc) has no address of its own.
      }
    }, 150);
  }

  addEventListener("hashchange", () => {
    readFragment();
    fit();
    draw();
  });

  if (initial.photo) {
    const photo = new Image();
    photo.onload = () => {
      page.photo = photo;
      refit();
      draw();
    };
    photo.src = initial.photo;
  }

  /** Pixels of the image that a drag or an arrow key moves by: 1, or less on a small image. */
  page.step = () => Math.min(1, 10 ** Math.floor(Math.log10(Math.min(...page.image) / 100)));
  page.snap = (pixels) => {
    const step = page.step();
    return Number((Math.round(pixels / step) * step).toFixed(12));
  };
  page.text = () => roialign.texts[page.state.language];
  return Object.assign(page, {
    start,
    update,
    draw,
    fragment,
    sources,
    reset: () => (history.replaceState?.(null, "", "#"), start(), draw()),
  });
})();
