"use strict";
// What the reader does: drag, press keys, move sliders.

(() => {
  const { page, draw, details, scales, clamp, indices } = roialign;
  const byId = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";

  function element(parent, name, attributes) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return parent.appendChild(made);
  }

  /** A stage's elements. Only the first stage's handles take the focus: the second shows the same box. */
  function makeStage(kind) {
    const host = byId(`${kind}-stage`);
    const focus = kind === "align" ? { tabindex: 0, role: "button" } : { "aria-hidden": "true" };
    const svg = element(host, "svg", { role: kind === "align" ? "group" : "img" });
    const layer = element(svg, "g", { "aria-hidden": "true" });
    const move = element(svg, "path", { class: "move", "data-part": "move", ...focus });
    const corners = indices(4).map((i) => {
      const corner = element(svg, "g", { class: "corner", "data-part": i, ...focus });
      element(corner, "circle", { r: 22, class: "touch" });
      element(corner, "rect", { x: -6, y: -6, width: 12, height: 12, rx: 3 });
      return corner;
    });
    return { kind, host, canvas: host.querySelector("canvas"), svg, layer, move, corners };
  }

  /** The box with one part of it moved: the whole of it, or a corner, which does not pass its opposite. */
  function moved(box, part, dx, dy) {
    if (part === "move") {
      const [x1, y1] = [page.snap(box[0] + dx), page.snap(box[1] + dy)];
      return [x1, y1, page.snap(x1 + box[2] - box[0]), page.snap(y1 + box[3] - box[1])];
    }
    const next = [...box];
    const [x, y] = [2 * (part % 2), 1 + 2 * (part >> 1)];
    next[x] = page.snap(box[x] + dx);
    next[y] = page.snap(box[y] + dy);
    for (const edge of [x, y]) {
      const other = (edge + 2) % 4;
      if (box[edge] > box[other] || (box[edge] === box[other] && edge > 1))
        next[edge] = Math.max(next[edge], box[other]);
      else if (box[edge] <= box[other]) next[edge] = Math.min(next[edge], box[other]);
    }
    return next;
  }

  /** The bin at a point of a stage, or null. */
  function binAt(stage, x, y) {
    const result = page.results[stage.kind];
    if (!result.finite) return null;
    const place = stage.geometry.toCells(x, y);
    const edges = draw.region(stage.kind, result);
    const found = [1, 0].map((d) =>
      Math.floor(((place[d] - edges[d]) / (edges[d + 2] - edges[d])) * page.state.output_size[1 - d]),
    );
    return found.every((index, d) => index >= 0 && index < page.state.output_size[d]) ? found : null;
  }

  function listen(stage) {
    const { svg, host } = stage;
    let drag = null;
    const place = (event) => {
      const { left, top } = host.getBoundingClientRect();
      return [event.clientX - left, event.clientY - top];
    };
    const select = (event) => {
      const bin = binAt(stage, ...place(event));
      if (bin && bin.join() !== page.state.bin.join()) page.update({ bin });
    };
    svg.addEventListener("pointerdown", (event) => {
      const part = event.target.closest("[data-part]")?.dataset.part;
      if (event.button !== 0) return;
      if (part === undefined) return select(event);
      stopSliding();
      drag = {
        part: part === "move" ? part : Number(part),
        from: [event.clientX, event.clientY],
        box: page.state.box.map(Number),
        moved: false,
      };
      svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", (event) => {
      if (!drag) return event.pointerType === "mouse" ? select(event) : undefined;
      return follow(event);
    });
    const follow = (event) => {
      const [dx, dy] = [event.clientX - drag.from[0], event.clientY - drag.from[1]];
      if (!drag.moved && Math.hypot(dx, dy) < 3) return;
      drag.moved = true;
      const { unit } = stage.geometry;
      page.update({ box: moved(drag.box, drag.part, dx / unit, dy / unit) });
    };
    const end = (event) => {
      if (drag && event.type === "pointerup") drag.moved ? follow(event) : select(event); // moves may come bundled
      drag = null;
    };
    // A finger on the box drags it and does not scroll the page; touch-action alone is not heeded inside an SVG.
    const holdStill = (event) => event.target.closest("[data-part]") && event.preventDefault();
    svg.addEventListener("touchstart", holdStill, { passive: false });
    svg.addEventListener("pointerup", end);
    svg.addEventListener("pointercancel", end);
    svg.addEventListener("keydown", (event) => {
      const direction = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      const part = event.target.dataset?.part;
      if (!direction || part === undefined) return;
      event.preventDefault();
      const [sy, sx] = scales(page.state);
      const [dx, dy] = event.shiftKey ? [direction[0] / sx, direction[1] / sy] : direction.map((n) => n * page.step());
      page.update({ box: moved(page.state.box.map(Number), part === "move" ? part : Number(part), dx, dy) });
    });
  }

  function listenOutput(host) {
    const binOf = (target) => target.closest("[data-bin]")?.dataset.bin.split(",").map(Number);
    const select = (event) => {
      const bin = binOf(event.target);
      if (bin) page.update({ bin });
    };
    for (const type of ["pointerover", "focusin", "click"]) host.addEventListener(type, select);
    host.addEventListener("keydown", (event) => {
      const [ph, pw] = page.state.output_size;
      const [p, q] = page.state.bin;
      const to = {
        ArrowLeft: [p, q - 1],
        ArrowRight: [p, q + 1],
        ArrowUp: [p - 1, q],
        ArrowDown: [p + 1, q],
        Home: [p, 0],
        End: [p, pw - 1],
      }[event.key];
      if (!to) return;
      event.preventDefault();
      const bin = [clamp(to[0], 0, ph - 1), clamp(to[1], 0, pw - 1)];
      host.querySelector(`[data-bin="${bin}"]`).focus();
    });
  }

  // Sliding the box one and a half cells to the right and back, for those who rather watch.
  let sliding = 0;
  function stopSliding() {
    cancelAnimationFrame(sliding);
    sliding = 0;
    label();
  }
  function slide() {
    if (sliding) return stopSliding();
    const box = page.state.box.map(Number);
    const reach = 1.5 / scales(page.state)[1];
    const begin = performance.now();
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const steps = still ? 6 : Infinity; // a few slow steps for those who do not want motion
    const frame = (now) => {
      const t = (now - begin) / 6000;
      if (t >= 1) {
        page.update({ box });
        return stopSliding();
      }
      const there = Number.isFinite(steps) ? Math.floor(t * steps) / steps : t;
      const dx = (reach * (1 - Math.cos(2 * Math.PI * there))) / 2;
      page.update({ box: moved(box, "move", dx, 0) });
      sliding = requestAnimationFrame(frame);
      return undefined;
    };
    sliding = requestAnimationFrame(frame);
    return label();
  }
  const label = () => (byId("slide").textContent = sliding ? page.text().stopSlide : page.text().slide);

  /** "1/32", "0.5" or "1/16, 1/8" as a scale; null if it is none. */
  function readScale(text) {
    const parts = text.split(",").map((part) => {
      const [top, bottom = "1", ...rest] = part
        .split("/")
        .map((number) => (number.trim() === "" ? NaN : Number(number)));
      return rest.length ? NaN : top / Number(bottom);
    });
    if (parts.length > 2 || !parts.every((scale) => scale > 0 && scale < Infinity)) return null;
    return parts.length === 1 || parts[0] === parts[1] ? parts[0] : parts;
  }
  const writeScale = (scale) => {
    const inverse = 1 / scale;
    return scale < 1 && Math.abs(inverse - Math.round(inverse)) < 1e-9 ? `1/${Math.round(inverse)}` : `${scale}`;
  };

  const sliders = {
    rows: [(s) => s.output_size[0], (n, s) => ({ output_size: [n, s.output_size[1]] })],
    columns: [(s) => s.output_size[1], (n, s) => ({ output_size: [s.output_size[0], n] })],
    ratio: [(s) => Math.max(s.sampling_ratio, 0), (n) => ({ sampling_ratio: n }), (n, t) => n || t.adaptive],
    scale: [
      (s) => -Math.log2(scales(s)[1]),
      (n) => ({ spatial_scale: 2 ** -n }),
      () =>
        scales(page.state)
          .toReversed()
          .map((scale) => draw.show(1 / scale))
          .filter((n, i, all) => n !== all[i - 1])
          .join(" × "),
    ],
  };

  function listenControls() {
    const form = document.querySelector("form");
    form.addEventListener("submit", (event) => event.preventDefault());
    for (const [id, [, write]] of Object.entries(sliders)) {
      byId(id).addEventListener("input", (event) => page.update(write(Number(event.target.value), page.state)));
    }
    for (const radio of form.querySelectorAll("[type=radio]")) {
      radio.addEventListener("change", () => page.update({ [radio.name]: radio.value }));
    }
    byId("aligned").addEventListener("change", (event) => page.update({ aligned: event.target.checked }));
    byId("scale-text").addEventListener("change", (event) => {
      const scale = readScale(event.target.value);
      if (scale !== null) page.update({ spatial_scale: scale });
      event.target.setAttribute("aria-invalid", `${scale === null}`);
    });
    ["x1", "y1", "x2", "y2"].forEach((id, i) =>
      byId(id).addEventListener("input", (event) => {
        if (Number.isFinite(event.target.valueAsNumber))
          page.update({ box: page.state.box.with(i, event.target.valueAsNumber) });
      }),
    );
    byId("slide").addEventListener("click", slide);
    byId("reset").addEventListener("click", () => (stopSliding(), page.reset()));
    byId("language").addEventListener("click", () => page.update({ language: page.text().otherLang }));
    byId("theme").addEventListener("click", () => {
      page.theme = theme() === "dark" ? "light" : "dark";
      document.documentElement.dataset.theme = page.theme;
      page.draw();
    });
    byId("copy").addEventListener("click", () => copy(byId("python").textContent));
    byId("share").addEventListener("click", () => copy(location.href.split("#")[0] + page.fragment()));
  }
  const theme = () => page.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
      byId("copied").textContent = page.text().copiedText;
    } catch {
      const field = Object.assign(document.createElement("textarea"), { value: text, className: "unseen" });
      document.body.append(field);
      field.select();
      const done = document.execCommand("copy"); // where a page from a file may not use the clipboard
      field.remove();
      byId("copied").textContent = done ? page.text().copiedText : page.text().copyFailed;
    }
    setTimeout(() => (byId("copied").textContent = ""), 3000);
  }

  /** Set what the controls show; a field that is being typed in is left alone. */
  function showControls(state) {
    const t = page.text();
    document.documentElement.lang = { en: "en", zh: "zh-Hans" }[state.language];
    for (const part of document.querySelectorAll("[data-t]")) part.textContent = t[part.dataset.t];
    document.title = t.title;
    byId("credit").textContent = page.initial.credit ? t.credit(page.initial.credit) : "";
    byId("language").textContent = t.other;
    byId("language").lang = { en: "en", zh: "zh-Hans" }[t.otherLang];
    byId("theme").textContent = theme() === "dark" ? t.toLight : t.toDark;
    label();
    // From 64 cells along the image to 2, and wherever the scale is now.
    const image = Math.log2(Math.max(...page.image));
    Object.assign(byId("scale"), { min: Math.ceil(image - 6), max: Math.floor(image - 1) });
    for (const [id, [read, , words = (n) => n]] of Object.entries(sliders)) {
      const slider = byId(id);
      slider.max = Math.max(slider.max, read(state));
      if (slider !== document.activeElement || Number(slider.value) !== read(state)) slider.value = read(state);
      slider.previousElementSibling.textContent = words(read(state), t);
      slider.setAttribute("aria-valuetext", words(read(state), t));
    }
    const exact = state.operator === "prroi_pool";
    for (const control of document.querySelectorAll("#ratio, #aligned, [name=mode]")) control.disabled = exact;
    for (const radio of document.querySelectorAll("[type=radio]")) radio.checked = state[radio.name] === radio.value;
    byId("aligned").checked = state.aligned;
    const fields = { "scale-text": [...new Set(scales(state))].map(writeScale).join(", ") };
    ["x1", "y1", "x2", "y2"].forEach(
      (id, i) => (fields[id] = Number.isFinite(Number(state.box[i])) ? `${state.box[i]}` : ""),
    );
    for (const [id, text] of Object.entries(fields)) if (byId(id) !== document.activeElement) byId(id).value = text;
    for (const id of ["x1", "y1", "x2", "y2"]) byId(id).step = page.step();
    for (const [id, name] of [
      ["view-photo-label", "photo"],
      ["source-photo-label", "photo"],
      ["source-given-label", "given"],
    ]) {
      byId(id).hidden = !page.sources().includes(name);
    }
    byId("view-photo-label").parentElement.hidden = !page.sources().includes("photo");
    byId("source").hidden = page.sources().length < 2;
  }

  const stages = ["align", "pool"].map(makeStage);
  page.start();
  stages.forEach(listen);
  for (const kind of ["align", "pool"]) listenOutput(byId(`${kind}-output`));
  listenControls();

  let speaking = 0;
  page.changed.push((state, results) => {
    showControls(state);
    roialign.words.showWords(state, results);
    const names = { align: state.operator === "prroi_pool" ? page.text().exact : "RoIAlign", pool: "RoIPool" };
    for (const stage of stages) {
      draw.drawStage(stage, state, results[stage.kind], names[stage.kind]);
      draw.drawOutput(byId(`${stage.kind}-output`), state, results[stage.kind], names[stage.kind]);
    }
    details.showDetails(state, results);
    document.body.dataset.chosen = state.operator === "roi_pool" ? "pool" : "align";
    if (!state.photo || page.photo) document.body.dataset.ready = "yes";
    clearTimeout(speaking);
    speaking = setTimeout(
      () => (byId("live").textContent = `${byId("answer").textContent} ${byId("bin-title").textContent}`),
      600,
    );
  });
  new ResizeObserver(() => page.draw()).observe(byId("align-stage"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => page.draw());
  page.draw();
})();
