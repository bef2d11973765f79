"use strict";
(() => {
  const root = document.documentElement;
  const problems = [];
  const report = (message) => {
    problems.push(String(message));
    root.dataset.errors = problems.length;
    root.dataset.problems = problems.join(" | ");
  };
  root.dataset.errors = 0;
  addEventListener("error", (event) => report(event.message));
  addEventListener("unhandledrejection", (event) => report(event.reason));

  const NS = "http://www.w3.org/2000/svg";
  const svg = (name, attributes, parent) => {
    const node = document.createElementNS(NS, name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (parent) parent.append(node);
    return node;
  };
  const html = (name, text, parent, className) => {
    const node = document.createElement(name);
    if (text !== undefined) node.textContent = text;
    if (className) node.className = className;
    if (parent) parent.append(node);
    return node;
  };
  const number = (value, digits = 3) =>
    value === null || value === undefined ? "–" : Number(value.toPrecision(digits)).toString().replaceAll("-", "\u2212");
  const short = (text, limit) => {
    if (text.length <= limit) return text;
    const tail = Math.floor(((limit - 1) * 2) / 3);
    return text.slice(0, limit - 1 - tail) + "…" + text.slice(text.length - tail);
  };

  // --- tables that sort ---------------------------------------------------------------------
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = html("button");
      button.type = "button";
      button.append(...head.childNodes); // with the places where a long name may break
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const sign = down ? -1 : 1;
        const numeric = head.classList.contains("number");
        const key = (row) => row.cells[column].dataset.value;
        const rows = [...body.rows].sort((x, y) => {
          const [p, q] = [key(x), key(y)];
          if (p === "" || q === "") return (p === "") - (q === "");
          return sign * (numeric ? p - q : p.localeCompare(q, undefined, { numeric: true }));
        });
        body.append(...rows);
      });
    });
  }
  root.dataset.tables = document.querySelectorAll("table.sortable").length;

  // --- the heat map and the curve of a pair --------------------------------------------------
  const unpack = async (node) => {
    if (!node.type.includes("gzip")) return JSON.parse(node.textContent);
    const bytes = Uint8Array.from(atob(node.textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  };

  const mix = (colours, share) => {
    const at = Math.min(Math.max(share, 0), 1) * (colours.length - 1);
    const k = Math.min(Math.floor(at), colours.length - 2);
    const part = (colour, i) => parseInt(colour.slice(1 + 2 * i, 3 + 2 * i), 16);
    const rgb = [0, 1, 2].map((i) =>
      Math.round(part(colours[k], i) + (at - k) * (part(colours[k + 1], i) - part(colours[k], i))));
    return `rgb(${rgb.join(",")})`;
  };

  class Explorer {
    constructor(place, data) {
      this.data = data;
      this.n = data.names.length;
      this.state = { quantity: data.quantities[0].key, set: 0, order: 0 };
      this.box = html("div", undefined, undefined, "explorer");
      this.controls();
      this.left = html("div", undefined, this.box);
      this.side = html("div", undefined, this.box);
      this.readout = html("div", undefined, this.side, "readout");
      this.readout.setAttribute("aria-live", "polite");
      this.plot = html("div", undefined, this.side);
      this.index = data.sets.map((set) => {
        const index = new Map();
        set.pairs.forEach((pair, k) => {
          index.set(pair.i * this.n + pair.j, k);
          index.set(pair.j * this.n + pair.i, k);
        });
        return index;
      });
      this.pinned = this.largest();
      this.draw();
      place.replaceChildren(this.box);
      this.show(this.pinned);
    }

    controls() {
      const bar = html("div", undefined, this.box, "controls");
      const choose = (label, options, key) => {
        if (options.length < 2) return;
        const select = html("select", undefined, html("label", label + " ", bar));
        options.forEach(([value, text]) => {
          html("option", short(text, 60), select).value = value;
        });
        select.addEventListener("change", () => {
          this.state[key] = key === "quantity" ? select.value : Number(select.value);
          this.draw();
          this.show(this.pinned);
        });
      };
      const { quantities, sets, orders } = this.data;
      choose("Show", quantities.map((q) => [q.key, q.label]), "quantity");
      choose("on", sets.map((s, k) => [k, s.name]), "set");
      choose("ordered by", orders.map((o, k) => [k, o.label]), "order");
      html("span", "Point at a cell, or use the arrow keys; click or Enter to keep a pair.", bar, "hint");
    }

    pair(i, j) {
      const k = this.index[this.state.set].get(i * this.n + j);
      return k === undefined ? undefined : this.data.sets[this.state.set].pairs[k];
    }

    largest() {
      const pairs = this.data.sets[0].pairs;
      const top = pairs.reduce((best, p) => (p.convexity_gap > best.convexity_gap ? p : best), pairs[0]);
      return [top.i, top.j];
    }

    draw() {
      const { names, colours, basinColours } = this.data;
      const order = this.data.orders[this.state.order].rows;
      const n = this.n, key = this.state.quantity;
      const values = this.data.sets[this.state.set].pairs.map((p) => p[key]).filter((v) => v !== null);
      const kind = this.data.quantities.find((q) => q.key === key);
      const least = values.length ? Math.min(...values) : 0;
      const top = (kind.height ? Math.max(...values, 0) : Math.max(...values, least)) || 1;
      const low = kind.height ? 0 : kind.share ? least : least - 0.1 * Math.abs(least);
      // What is alike is light in every map.
      const scale = kind.share ? [...colours].reverse() : colours;
      const longest = Math.max(...names.map((name) => name.length));
      const label = n <= 40 ? Math.min(96, Math.max(24, 10 + 6.8 * longest)) : 8, size = 420 / n, strip = 7;
      const width = label + 420 + 12 + strip, height = strip + 4 + 420 + label;
      const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "img",
        "aria-label": "heat map of all pairs of checkpoints" });
      const x0 = label, y0 = strip + 4;
      this.geometry = { x0, y0, size, order };
      const cells = svg("g", { class: "cells", "shape-rendering": "crispEdges" }, picture);
      order.forEach((i, r) => {
        order.forEach((j, c) => {
          if (i === j) return;
          const found = this.pair(i, j), value = found && found[key];
          const known = value !== undefined && value !== null;
          const fill = known ? mix(scale, (value - low) / (top - low || 1)) : "none";
          const cell = svg("rect", { x: x0 + c * size, y: y0 + r * size, width: size, height: size, fill }, cells);
          if (!known) { cell.setAttribute("stroke", "currentColor"); cell.setAttribute("stroke-opacity", 0.12); }
          cell.dataset.at = `${r},${c}`;
          if (known && n <= 12) {
            const text = svg("text", { x: x0 + (c + 0.5) * size, y: y0 + (r + 0.5) * size, "text-anchor": "middle",
              "dominant-baseline": "central", "font-size": Math.min(13, size * 0.3), "pointer-events": "none" }, cells);
            text.textContent = (top < 1 ? value.toFixed(n > 8 ? 2 : 3) : number(value)).replace(/^0\./, ".");
            text.style.fill = kind.share !== ((value - low) / (top - low || 1) > 0.5) ? "#fff" : "#1d2430";
          }
        });
      });
      order.forEach((i, k) => {
        const fill = basinColours[i];
        svg("rect", { x: x0 + k * size, y: 0, width: size, height: strip, fill }, picture);
        svg("rect", { x: x0 + 420 + 4, y: y0 + k * size, width: strip, height: size, fill }, picture);
        if (n > 40) return;
        const font = Math.min(12, size * 0.85);
        const text = short(names[i], Math.floor(label / (font * 0.56)));
        const row = svg("text", { x: x0 - 5, y: y0 + (k + 0.5) * size, "text-anchor": "end",
          "dominant-baseline": "central", "font-size": font }, picture);
        row.textContent = text;
        const column = svg("text", { "text-anchor": "end", "dominant-baseline": "central", "font-size": font,
          transform: `translate(${x0 + (k + 0.5) * size} ${y0 + 425}) rotate(-90)` }, picture);
        column.textContent = text;
      });
      this.cursor = svg("rect", { class: "cursor", width: size, height: size, visibility: "hidden" }, picture);
      this.pin = svg("rect", { class: "pinned", width: size, height: size, visibility: "hidden" }, picture);
      this.listen(picture, cells);
      const legend = html("div", undefined, undefined, "legend");
      html("span", number(low, 2), legend);
      html("i", "", legend).style.background = `linear-gradient(90deg, ${scale.join(",")})`;
      html("span", number(top), legend);
      html("span", kind.label, legend);
      this.left.replaceChildren(picture, legend);
      root.dataset.cells = cells.querySelectorAll("rect").length;
      this.place(this.pin, ...this.pinned);
    }

    listen(picture, cells) {
      const { order } = this.geometry;
      const at = (event) => event.target.dataset && event.target.dataset.at
        ? event.target.dataset.at.split(",").map((k) => order[k]) : undefined;
      cells.addEventListener("pointerover", (event) => { const c = at(event); if (c) this.show(c); });
      cells.addEventListener("pointerleave", () => this.show(this.pinned));
      cells.addEventListener("click", (event) => { const c = at(event); if (c) this.keep(c); });
      picture.addEventListener("keydown", (event) => {
        const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
        const now = this.current || this.pinned;
        if (event.key === "Enter") return this.keep(now);
        if (!step) return undefined;
        event.preventDefault();
        const clip = (k) => Math.min(Math.max(k, 0), this.n - 1);
        let r = clip(order.indexOf(now[0]) + step[0]), c = clip(order.indexOf(now[1]) + step[1]);
        if (r === c) { r = clip(r + step[0]); c = clip(c + step[1]); }
        if (r !== c) this.show([order[r], order[c]]);
        return undefined;
      });
    }

    place(mark, i, j) {
      const { x0, y0, size, order } = this.geometry;
      mark.setAttribute("x", x0 + order.indexOf(j) * size);
      mark.setAttribute("y", y0 + order.indexOf(i) * size);
      mark.setAttribute("visibility", "visible");
    }

    keep(cell) {
      this.pinned = cell;
      this.place(this.pin, ...cell);
      this.show(cell);
    }

    show(cell) {
      this.current = cell;
      const [i, j] = cell, { names, basinNames } = this.data;
      this.place(this.cursor, i, j);
      const pair = this.pair(i, j);
      this.readout.replaceChildren();
      html("h5", `${names[i]} – ${names[j]}`, this.readout);
      if (basinNames[i]) {
        html("p", basinNames[i] === basinNames[j] ? `both in ${basinNames[i]}` : `${basinNames[i]} and ${basinNames[j]}`, this.readout);
      }
      this.plot.replaceChildren();
      if (!pair) { html("p", "This line was not walked.", this.readout, "hint"); return; }
      const { unit } = this.data.sets[this.state.set];
      const span = (low, high) => (low === null || low === undefined ? "" : ` [${number(low)}, ${number(high)}]`);
      html("p", `convexity gap ${number(pair.convexity_gap)}${span(pair.gap_low, pair.gap_high)} ${unit}` +
        (pair.noise_floor === null || pair.noise_floor === undefined ? "" : `, noise floor ${number(pair.noise_floor, 2)}`), this.readout);
      html("p", `barrier height ${number(pair.barrier_height)}${span(pair.barrier_low, pair.barrier_high)} ${unit}`, this.readout);
      const others = this.data.quantities.filter(({ key }) => !["convexity_gap", "barrier_height"].includes(key) && pair[key] !== null && pair[key] !== undefined);
      html("p", others.map(({ key, label }) => `${label.replace(/ \(.*\)/, "")} ${number(pair[key])}`).join(", "), this.readout);
      this.curve(pair, i, j);
    }

    curve(pair, i, j) {
      const set = this.data.sets[this.state.set];
      if (!pair.loss) return;
      // Drawn from the row's checkpoint to the column's, whichever way the line was walked.
      const turned = pair.i !== i;
      const flip = (list) => (turned ? [...list].reverse() : list);
      const t = turned ? flip(pair.t || set.t).map((v) => 1 - v) : pair.t || set.t;
      const loss = flip(pair.loss), low = flip(pair.low || pair.loss), high = flip(pair.high || pair.loss);
      const w = 380, h = 224, left = 46, bottom = 24, right = 8, topPad = 10;
      const min = Math.min(...low), max = Math.max(...high), span = max - min || 1;
      const x = (v) => left + v * (w - left - right);
      const y = (v) => topPad + (1 - (v - min) / span) * (h - topPad - bottom);
      const picture = svg("svg", { viewBox: `0 0 ${w} ${h}`, role: "img", class: "pair-curve",
        "aria-label": `loss on the line between ${this.data.names[i]} and ${this.data.names[j]}` });
      const step = 10 ** Math.floor(Math.log10(span / 2));
      const unit = [1, 2, 5, 10].map((m) => m * step).find((u) => span / u <= 5) || span;
      for (let v = Math.ceil(min / unit) * unit; v <= max + 1e-9; v += unit) {
        svg("line", { x1: left, x2: w - right, y1: y(v), y2: y(v), class: "axis" }, picture);
        const tick = svg("text", { x: left - 5, y: y(v), "text-anchor": "end", "dominant-baseline": "central", "font-size": 11, class: "soft" }, picture);
        tick.textContent = number(v, 4);
      }
      const points = (list) => list.map((v, k) => `${x(t[k]).toFixed(1)},${y(v).toFixed(1)}`);
      svg("polygon", { points: [...points(low), ...points(high).reverse()].join(" "), fill: "#3a93cc", "fill-opacity": 0.22 }, picture);
      svg("line", { x1: x(0), y1: y(loss[0]), x2: x(1), y2: y(loss[loss.length - 1]), stroke: "currentColor", "stroke-opacity": 0.55, "stroke-dasharray": "5 4" }, picture);
      svg("polyline", { points: points(loss).join(" "), fill: "none", stroke: "#3a93cc", "stroke-width": 2 }, picture);
      loss.forEach((v, k) => svg("circle", { cx: x(t[k]), cy: y(v), r: 2.4, fill: "#3a93cc" }, picture));
      const names = [[0, "start", i], [1, "end", j]];
      for (const [at, anchor, k] of names) {
        const text = svg("text", { x: at ? w - right : left, y: h - bottom + 16, "text-anchor": anchor, "font-size": 11 }, picture);
        text.textContent = short(this.data.names[k], 22);
      }
      this.plot.append(picture);
      html("p", `${set.loss} on ${set.name} along the line. Dashed: the chord between the ends.`, this.plot, "hint");
      root.dataset.curves = Number(root.dataset.curves || 0) + 1;
    }
  }

  // --- a plane of models ----------------------------------------------------------------------
  class Plane {
    constructor(place, data) {
      this.data = data;
      this.state = { set: 0, metric: 0, clip: [0, 100] };
      this.box = html("div", undefined, undefined, "explorer");
      this.bar = html("div", undefined, this.box, "controls");
      this.left = html("div", undefined, this.box);
      this.readout = html("div", undefined, html("div", undefined, this.box), "readout");
      this.readout.setAttribute("aria-live", "polite");
      const first = data.models[0] || { x: data.x[0], y: data.y[0] };
      this.cell = [this.nearest(data.x, first.x), this.nearest(data.y, first.y)];
      this.edges = [this.between(data.x), this.between(data.y)];
      this.controls();
      this.draw();
      this.show(...this.cell);
      place.replaceChildren(this.box);
    }

    nearest(list, value) {
      return list.reduce((best, v, k) => (Math.abs(v - value) < Math.abs(list[best] - value) ? k : best), 0);
    }

    // Cells reach half way to their neighbours; the grid need not be even.
    between(list) {
      const n = list.length, inner = list.slice(1).map((v, k) => (v + list[k]) / 2);
      const step = (a, b) => (n > 1 ? (list[a] - list[b]) / 2 : 0.5);
      return [list[0] - step(1, 0), ...inner, list[n - 1] + step(n - 1, n - 2)];
    }

    get metric() {
      const { metrics } = this.data.sets[this.state.set];
      return metrics[Math.min(this.state.metric, metrics.length - 1)];
    }

    controls() {
      const choose = (label, options, key) => {
        if (options.length < 2) return;
        const select = html("select", undefined, html("label", label + " ", this.bar));
        options.forEach((text, k) => { html("option", short(text, 60), select).value = k; });
        select.addEventListener("change", () => {
          this.state[key] = Number(select.value);
          this.draw();
          this.show(...this.cell);
        });
      };
      choose("Show", this.data.sets[0].metrics.map((m) => m.label), "metric");
      choose("on", this.data.sets.map((s) => s.name), "set");
      ["Colours from", "to"].forEach((label, end) => {
        const slider = html("input", undefined, html("label", label + " ", this.bar));
        Object.assign(slider, { type: "range", min: 0, max: 100, value: 100 * end });
        slider.setAttribute("aria-label", end ? "upper end of the colours" : "lower end of the colours");
        slider.addEventListener("input", () => {
          this.state.clip[end] = Number(slider.value);
          this.draw();
        });
      });
      html("span", "Point at a cell, or use the arrow keys.", this.bar, "hint");
    }

    // The least and the largest value, and whether colours and sliders go by their logarithm: the
    // steep corners of a loss would leave the models one colour.
    get range() {
      const known = this.metric.values.filter((v) => v !== null);
      const min = Math.min(...known), max = Math.max(...known);
      return { min, max, log: this.metric.low_is_good && min > 0 && max > 8 * min };
    }

    get ends() {
      const { min, max, log } = this.range, [a, b] = this.state.clip;
      const at = (percent) =>
        log ? min * (max / min) ** (percent / 100) : min + (percent / 100) * (max - min);
      const low = at(Math.min(a, b)), high = at(Math.max(a, b));
      return [low, high > low ? high : low + (Math.abs(low) || 1) * 1e-6];
    }

    draw() {
      const { x, y, models, colours, unit } = this.data;
      const [ex, ey] = this.edges, spanX = ex[x.length] - ex[0], spanY = ey[y.length] - ey[0];
      const left = 46, bottom = 40, top = 8, w = 420, h = Math.min(Math.max((w * spanY) / spanX, 120), 640);
      const width = left + w + 10, height = top + h + bottom;
      this.px = (v) => left + ((v - ex[0]) / spanX) * w;
      this.py = (v) => top + (1 - (v - ey[0]) / spanY) * h;
      const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "img",
        "aria-label": `map of ${this.metric.label} over the plane` });
      svg("image", { x: left, y: top, width: w, height: h, href: this.image(w, h), preserveAspectRatio: "none" }, picture);
      this.axes(picture, left, top, w, h, unit);
      this.cursor = svg("rect", { class: "cursor" }, picture);
      if (models.length > 2) {
        const points = models.map((m) => `${this.px(m.x)},${this.py(m.y)}`).join(" ");
        svg("polygon", { points, class: "triangle" }, picture);
      }
      const centre = [0, 1].map((k) => models.reduce((sum, m) => sum + (k ? m.y : m.x), 0) / (models.length || 1));
      for (const model of models) this.model(picture, model, centre);
      this.listen(picture);
      const scale = this.metric.low_is_good ? colours : [...colours].reverse();
      const legend = html("div", undefined, undefined, "legend"), [low, high] = this.ends;
      html("span", number(low), legend);
      html("i", "", legend).style.background = `linear-gradient(90deg, ${scale.join(",")})`;
      html("span", number(high), legend);
      html("span", this.metric.label + (this.range.log ? ", log scale" : ""), legend);
      const focused = this.left.contains(document.activeElement);
      this.left.replaceChildren(picture, legend);
      if (focused) picture.focus();
      this.mark();
    }

    // One pixel picture for all cells: thousands of rectangles would be slow.
    image(w, h) {
      const { x, y, colours } = this.data, { values, low_is_good: plain } = this.metric;
      const evaluated = this.data.sets[this.state.set].evaluated;
      const canvas = document.createElement("canvas"), factor = 2;
      canvas.width = w * factor;
      canvas.height = Math.round(h * factor);
      const pen = canvas.getContext("2d"), [low, high] = this.ends, [ex, ey] = this.edges;
      const place = this.range.log ? Math.log : (v) => v, span = place(high) - place(low);
      const at = (edges, k, size) => Math.round(((edges[k] - edges[0]) / (edges[edges.length - 1] - edges[0])) * size);
      const scale = plain ? colours : [...colours].reverse();
      y.forEach((_, r) => {
        x.forEach((__, c) => {
          const value = values[r * x.length + c];
          if (value === null) return;
          const share = (place(value) - place(low)) / span;
          const [x0, x1] = [at(ex, c, canvas.width), at(ex, c + 1, canvas.width)];
          const [y0, y1] = [canvas.height - at(ey, r + 1, canvas.height), canvas.height - at(ey, r, canvas.height)];
          pen.fillStyle = mix(scale, share);
          pen.fillRect(x0, y0, x1 - x0, y1 - y0);
          if (evaluated.length && !evaluated[r * x.length + c]) {
            pen.fillStyle = share > 0.5 === plain ? "rgba(255,255,255,.6)" : "rgba(29,36,48,.6)";
            pen.fillRect((x0 + x1) / 2 - 2, (y0 + y1) / 2 - 2, 4, 4);
          }
        });
      });
      return canvas.toDataURL();
    }

    axes(picture, left, top, w, h, unit) {
      const { x, y } = this.data;
      const ticks = (list) => {
        const [a, b] = [list[0], list[list.length - 1]], step = 10 ** Math.floor(Math.log10((b - a) / 5 || 1));
        const size = [1, 2, 5, 10].map((m) => m * step).find((u) => (b - a) / u <= 5) || 1;
        const found = [];
        for (let v = Math.ceil(a / size - 1e-9) * size; v <= b + 1e-9; v += size) found.push(v);
        return found;
      };
      const text = (value, attributes) => {
        svg("text", { "font-size": 11, class: "soft", ...attributes }, picture).textContent = value;
      };
      for (const v of ticks(x)) text(number(v), { x: this.px(v), y: top + h + 15, "text-anchor": "middle" });
      for (const v of ticks(y)) text(number(v), { x: left - 5, y: this.py(v), "text-anchor": "end", "dominant-baseline": "central" });
      text(`both axes: 1 = ${number(unit)} in the space of weights`, { x: left + w / 2, y: top + h + 33, "text-anchor": "middle" });
    }

    model(picture, model, centre) {
      const [x, y] = [this.px(model.x), this.py(model.y)];
      svg("circle", { cx: x, cy: y, r: 5, class: "model" }, picture);
      const dx = model.x - centre[0], dy = model.y - centre[1], beside = Math.abs(dx) > Math.abs(dy);
      const text = svg("text", { "font-size": 12.5, class: "model-name", "pointer-events": "none",
        x: x + (beside ? 9 * Math.sign(dx) : 0), y: y + (beside ? 0 : dy >= 0 ? -12 : 14),
        "text-anchor": beside ? (dx > 0 ? "start" : "end") : "middle", "dominant-baseline": "central" }, picture);
      text.textContent = short(model.name, 18);
      // A name that would leave the map goes above its model.
      const wide = 7.2 * text.textContent.length + 12;
      if (beside && (dx > 0 ? x + wide > this.px(this.edges[0][this.data.x.length]) : x - wide < this.px(this.edges[0][0]))) {
        for (const [key, value] of [["x", x], ["y", y - 13], ["text-anchor", "middle"]]) text.setAttribute(key, value);
      }
    }

    listen(picture) {
      picture.addEventListener("pointermove", (event) => {
        const box = picture.getBoundingClientRect(), { width, height } = picture.viewBox.baseVal;
        const [p, q] = [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
        const find = (list, to, value) => list.reduce((best, v, k) => (Math.abs(to(v) - value) < Math.abs(to(list[best]) - value) ? k : best), 0);
        this.show(find(this.data.x, this.px, p), find(this.data.y, this.py, q));
      });
      picture.addEventListener("keydown", (event) => {
        const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
        if (!step) return;
        event.preventDefault();
        const clip = (k, n) => Math.min(Math.max(k, 0), n - 1);
        this.show(clip(this.cell[0] + step[0], this.data.x.length), clip(this.cell[1] + step[1], this.data.y.length));
      });
    }

    mark() {
      const [c, r] = this.cell, [ex, ey] = this.edges;
      const x = this.px(ex[c]), y = this.py(ey[r + 1]);
      for (const [key, value] of [["x", x], ["y", y], ["width", this.px(ex[c + 1]) - x], ["height", this.py(ey[r]) - y]]) {
        this.cursor.setAttribute(key, value);
      }
    }

    show(c, r) {
      this.cell = [c, r];
      this.mark();
      const { x, y, models, sets } = this.data, set = sets[this.state.set], k = r * x.length + c;
      this.readout.replaceChildren();
      const here = models.filter((m) => this.nearest(x, m.x) === c && this.nearest(y, m.y) === r).map((m) => m.name);
      html("h5", `x ${number(x[c])}, y ${number(y[r])}${here.length ? `: ${here.join(", ")}` : ""}`, this.readout);
      html("p", `on ${set.name}${set.evaluated.length && !set.evaluated[k] ? ", interpolated from its neighbours" : ""}`, this.readout, "hint");
      for (const metric of set.metrics) {
        const known = metric.low && metric.low[k] !== null && metric.high && metric.high[k] !== null;
        const span = known ? ` [${number(metric.low[k])}, ${number(metric.high[k])}]` : "";
        html("p", `${metric.label} ${number(metric.values[k])}${span}`, this.readout);
      }
      root.dataset.cell = `${c},${r}`;
    }
  }

  // --- any query of an influence result -------------------------------------------------------
  class Chooser {
    constructor(place, data) {
      this.data = data;
      const label = html("label", "Any query: ", undefined);
      const select = html("select", undefined, label);
      html("option", "choose", select).value = "";
      data.queries.forEach((query, k) => {
        const loss = query.facts.find((fact) => fact.label === "loss");
        html("option", `${query.number}: ${short(query.texts.join(" / "), 60)}${query.wrong ? " (wrong)" : ""}` +
          (loss ? `, loss ${loss.value}` : ""), select).value = k;
      });
      this.shown = html("div");
      this.shown.setAttribute("aria-live", "polite");
      select.addEventListener("change", () => this.show(select.value === "" ? undefined : data.queries[select.value]));
      place.replaceChildren(label);
      if (data.queries.length < data.of) {
        html("p", `The first ${data.queries.length} of ${data.of} queries are in this file.`, place, "hint");
      }
      // Beside the control, not within it: it prints as the queries below do.
      place.after(this.shown);
    }

    show(query) {
      this.shown.replaceChildren();
      if (!query) return;
      const box = html("section", undefined, this.shown, "query");
      this.texts(query.texts, html("p", undefined, box, "asked"));
      const meta = html("p", undefined, box, "meta");
      html("b", `query ${query.number}`, meta);
      if (query.id) { meta.append(" "); html("span", query.id, meta, "soft"); }
      for (const fact of query.facts) {
        meta.append(" ");
        html("b", fact.value, html("span", `${fact.label} `, meta, "fact"));
      }
      if (query.wrong) { meta.append(" "); html("span", "wrong", meta, "tag wrong"); }
      const sides = html("div", undefined, box, "sides");
      const top = Math.max(...[...query.helpful, ...query.harmful].map(([, score]) => Math.abs(score)), 0) || 1;
      this.side(query.helpful, "helpful", top, sides);
      this.side(query.harmful, "harmful", top, sides);
      root.dataset.query = query.number;
    }

    side(rows, name, top, parent) {
      const side = html("div", undefined, parent, `side ${name}`);
      html("h6", name[0].toUpperCase() + name.slice(1), side);
      if (!rows.length) { html("p", `No training row is ${name}.`, side, "note"); return; }
      const list = html("ol", undefined, side);
      for (const [row, score, text] of rows) {
        const item = html("li", undefined, list), { label, texts } = this.data.train[row];
        html("span", undefined, item, "bar").style.width = `${Math.round((100 * Math.abs(score)) / top)}%`;
        const meta = html("span", undefined, item, "meta");
        html("b", text, meta);
        if (label) { meta.append(" "); html("span", label, meta, "tag"); }
        meta.append(" ");
        html("span", `row ${row}`, meta, "soft");
        this.texts(texts, html("span", undefined, item, "words"));
      }
    }

    texts(pieces, parent) {
      for (const piece of pieces) html("span", piece, parent, "piece");
    }
  }

  // --- a data map: every dot with its text ------------------------------------------------------
  class DataMap {
    constructor(place, data) {
      this.data = data;
      this.n = data.ids.length;
      this.state = { colour: "correctness", label: "", sort: "all", text: "" };
      this.words = data.texts.map((pieces, k) => `${data.ids[k]} ${pieces.join(" ")}`.toLowerCase());
      this.box = html("div", undefined, undefined, "explorer");
      this.controls();
      this.left = html("div", undefined, this.box);
      this.side = html("div", undefined, this.box);
      this.readout = html("div", undefined, this.side, "readout example");
      this.readout.setAttribute("aria-live", "polite");
      this.pinned = data.y.reduce((best, v, k) => (v < data.y[best] ? k : best), 0);
      this.draw();
      this.show(this.pinned);
      place.replaceChildren(this.box);
    }

    controls() {
      const bar = html("div", undefined, this.box, "controls"), { labels, forgetting, texts } = this.data;
      const choose = (label, options, key) => {
        const select = html("select", undefined, html("label", `${label} `, bar));
        for (const [value, text] of options) html("option", text, select).value = value;
        select.addEventListener("change", () => { this.state[key] = select.value; this.draw(); });
      };
      const colours = [["correctness", "correctness"]];
      if (labels.length) colours.push(["label", "label"]);
      if (Math.max(...forgetting) > 0) colours.push(["forgetting", "times forgotten"]);
      colours.push(["learned", "first right after epoch"]);
      choose("Colour", colours, "colour");
      choose("show", [["all", "all"], ["easy", "easy: always right"], ["ambiguous", "ambiguous: sometimes"],
        ["hard", "hard: never right"], ["forgotten", "forgotten"]], "sort");
      if (labels.length) choose("label", [["", "all"], ...labels.map((name) => [name, short(name, 40)])], "label");
      if (texts.some((pieces) => pieces.length)) {
        const field = html("input", undefined, html("label", "find ", bar));
        Object.assign(field, { type: "search", placeholder: "words of the text" });
        field.addEventListener("input", () => { this.state.text = field.value.toLowerCase(); this.draw(); });
      }
      html("span", "Point at a dot, or use the arrow keys; click or Enter to keep it.", bar, "hint");
    }

    // The examples that the controls leave.
    get chosen() {
      const { correctness: c, forgetting, label } = this.data, { sort, text } = this.state;
      const fits = { all: () => true, easy: (k) => c[k] === 1, hard: (k) => c[k] === 0,
        ambiguous: (k) => c[k] > 0 && c[k] < 1, forgotten: (k) => forgetting[k] > 0 }[sort];
      return [...Array(this.n).keys()].filter((k) => fits(k) &&
        (!this.state.label || label[k] === this.state.label) && (!text || this.words[k].includes(text)));
    }

    // A colour for every example, and the legend's parts: [colour, words].
    scale() {
      const { correctness, forgetting, learned, labels, label, epochs, colours } = this.data;
      const palette = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b4c9a"];
      const seen = (list) => [...new Set(list)];
      if (this.state.colour === "label") {
        const of = (name) => (labels.indexOf(name) < palette.length ? palette[labels.indexOf(name)] : "#8a9099");
        return { of: (k) => of(label[k]), keys: labels.slice(0, 8).map((name) => [of(name), short(name, 24)]) };
      }
      if (this.state.colour === "forgetting") {
        const top = Math.max(...forgetting, 1), of = (v) => mix(["#b9c2cc", "#e8a33d", "#a63603"], v / top);
        return { of: (k) => of(forgetting[k]), keys: seen(forgetting).sort((a, b) => a - b).map((v) => [of(v), `${v}`]) };
      }
      const back = [...colours].reverse(), last = epochs.length;
      if (this.state.colour === "learned") {
        const at = (v) => (v === null ? last : epochs.indexOf(v));
        const of = (v) => mix(back, at(v) / last);
        const keys = seen(learned).sort((a, b) => at(a) - at(b));
        return { of: (k) => of(learned[k]), keys: keys.map((v) => [of(v), v === null ? "never" : number(v)]) };
      }
      const of = (v) => mix(colours, v);
      const keys = last <= 12 ? [...Array(last + 1).keys()].map((k) => k / last) : [0, 0.25, 0.5, 0.75, 1];
      return { of: (k) => of(correctness[k]), keys: keys.map((v) => [of(v), last <= 12 ? `${Math.round(v * last)} of ${last}` : `${100 * v} %`]) };
    }

    draw() {
      const { x, y, forgetting } = this.data, width = 520, height = 470, left = 42, bottom = 38, top = 10, right = 8;
      const most = Math.max(0.05, ...x) * 1.05;
      this.px = (v) => left + (v / most) * (width - left - right);
      this.py = (v) => top + (1 - v) * (height - top - bottom);
      const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "img",
        "aria-label": "data map: mean confidence against variability" });
      const text = (value, attributes) => {
        svg("text", { "font-size": 11, class: "soft", ...attributes }, picture).textContent = value;
      };
      for (let v = 0; v <= 1.001; v += 0.2) {
        svg("line", { x1: left, x2: width - right, y1: this.py(v), y2: this.py(v), class: "axis" }, picture);
        text(number(v, 2), { x: left - 5, y: this.py(v), "text-anchor": "end", "dominant-baseline": "central" });
      }
      const step = most > 0.25 ? 0.1 : most > 0.1 ? 0.05 : 0.01;
      for (let v = 0; v <= most; v += step) text(number(v, 2), { x: this.px(v), y: height - bottom + 15, "text-anchor": "middle" });
      text("variability", { x: (left + width) / 2, y: height - 5, "text-anchor": "middle" });
      text("mean confidence", { "text-anchor": "middle", transform: `translate(9 ${(top + height - bottom) / 2}) rotate(-90)` });
      const chosen = this.chosen, scale = this.scale(), size = this.n > 1500 ? 2.6 : 3.6;
      const inside = new Set(chosen), dots = svg("g", { class: "dots" }, picture);
      for (let k = 0; k < this.n; k += 1) {
        if (!inside.has(k)) svg("circle", { cx: this.px(x[k]).toFixed(1), cy: this.py(y[k]).toFixed(1), r: 1.4, class: "left-out" }, dots);
      }
      // What was forgotten is drawn last: it is what is looked for, and there is little of it.
      const order = [...chosen.filter((k) => !forgetting[k]), ...chosen.filter((k) => forgetting[k])];
      for (const k of order) {
        svg("circle", { cx: this.px(x[k]).toFixed(1), cy: this.py(y[k]).toFixed(1), r: size, fill: scale.of(k),
          class: forgetting[k] ? "forgotten" : "" }, dots);
      }
      this.order = order;
      this.cursor = svg("circle", { class: "cursor", r: size + 3 }, picture);
      this.pin = svg("circle", { class: "pinned", r: size + 3 }, picture);
      this.listen(picture);
      const legend = html("div", undefined, undefined, "legend keys");
      for (const [colour, words] of scale.keys) {
        html("i", "", html("span", undefined, legend), "dot").style.background = colour;
        legend.lastChild.append(words);
      }
      if (forgetting.some((v) => v > 0)) { html("i", "", html("span", undefined, legend), "dot ring"); legend.lastChild.append("forgotten"); }
      html("span", `${chosen.length.toLocaleString("en")} of ${this.n.toLocaleString("en")} dots`, legend);
      const focused = this.left.contains(document.activeElement);
      this.left.replaceChildren(picture, legend);
      if (focused) picture.focus();
      root.dataset.dots = chosen.length;
      this.place(this.pin, this.pinned);
      this.place(this.cursor, this.current === undefined ? this.pinned : this.current);
    }

    place(mark, k) {
      mark.setAttribute("cx", this.px(this.data.x[k]));
      mark.setAttribute("cy", this.py(this.data.y[k]));
    }

    listen(picture) {
      const nearest = (event, within) => {
        const box = picture.getBoundingClientRect(), { width, height } = picture.viewBox.baseVal;
        const at = [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
        let best, least = within * within;
        for (const k of this.order) {
          const away = (this.px(this.data.x[k]) - at[0]) ** 2 + (this.py(this.data.y[k]) - at[1]) ** 2;
          if (away <= least) { best = k; least = away; }
        }
        return best;
      };
      picture.addEventListener("pointermove", (event) => {
        const k = nearest(event, 14);
        if (k !== undefined && k !== this.current) this.show(k);
      });
      picture.addEventListener("pointerleave", () => this.show(this.pinned));
      picture.addEventListener("click", (event) => { const k = nearest(event, 24); if (k !== undefined) this.keep(k); });
      picture.addEventListener("keydown", (event) => {
        const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
        if (event.key === "Enter") { this.keep(this.current); return; }
        if (!way) return;
        event.preventDefault();
        const now = [this.px(this.data.x[this.current]), this.py(this.data.y[this.current])];
        let best, least = Infinity;
        for (const k of this.order) {
          const d = [this.px(this.data.x[k]) - now[0], this.py(this.data.y[k]) - now[1]];
          const ahead = d[0] * way[0] + d[1] * way[1], aside = Math.abs(d[0] * way[1]) + Math.abs(d[1] * way[0]);
          if (ahead > 0.5 && aside <= ahead && ahead + 2 * aside < least) { best = k; least = ahead + 2 * aside; }
        }
        if (best !== undefined) this.show(best);
      });
    }

    keep(k) {
      this.pinned = k;
      this.place(this.pin, k);
      this.show(k);
    }

    show(k) {
      this.current = k;
      this.place(this.cursor, k);
      const d = this.data, box = this.readout;
      box.replaceChildren();
      html("h5", d.ids[k], box);
      const asked = html("p", undefined, box, "asked");
      for (const piece of d.texts[k]) html("span", piece, asked, "piece");
      const facts = html("p", undefined, box, "facts-line");
      const fact = (name, value) => { html("b", value, html("span", `${name} `, facts)); facts.append(" "); };
      if (d.label.length) fact("label", d.label[k]);
      fact("confidence", number(d.y[k]));
      fact("variability", number(d.x[k]));
      fact("right after", `${[...d.right[k]].filter((c) => c === "1").length} of ${d.epochs.length} epochs`);
      fact("forgotten", d.forgetting[k] === 1 ? "once" : d.forgetting[k] ? `${d.forgetting[k]} times` : "never");
      this.course(k, box);
      root.dataset.example = d.ids[k];
    }

    // The gold probability after every epoch: full dots where the model is right.
    course(k, parent) {
      const { epochs, course, right } = this.data, w = 360, h = 130, left = 34, bottom = 22, top = 8, end = 8;
      const first = epochs[0], span = epochs[epochs.length - 1] - first;
      const x = (v) => (span ? left + 6 + ((v - first) / span) * (w - left - end - 12) : (left + w) / 2);
      const y = (v) => top + (1 - v) * (h - top - bottom);
      const picture = svg("svg", { viewBox: `0 0 ${w} ${h}`, role: "img", class: "course",
        "aria-label": "confidence after every epoch" });
      for (const v of [0, 0.5, 1]) {
        svg("line", { x1: left, x2: w - end, y1: y(v), y2: y(v), class: "axis" }, picture);
        svg("text", { x: left - 5, y: y(v), "text-anchor": "end", "dominant-baseline": "central", "font-size": 10.5, class: "soft" }, picture).textContent = v;
      }
      const points = course[k].map((v, e) => `${x(epochs[e]).toFixed(1)},${y(v).toFixed(1)}`);
      svg("polyline", { points: points.join(" "), fill: "none", stroke: "currentColor", "stroke-opacity": 0.5, "stroke-width": 1.2 }, picture);
      course[k].forEach((v, e) => svg("circle", { cx: x(epochs[e]), cy: y(v), r: 4, class: right[k][e] === "1" ? "right" : "wrong" }, picture));
      const every = Math.ceil(epochs.length / 10);
      epochs.forEach((v, e) => {
        if (e % every) return;
        svg("text", { x: x(v), y: h - 6, "text-anchor": "middle", "font-size": 10.5, class: "soft" }, picture).textContent = number(v);
      });
      parent.append(picture);
      html("p", "Probability of the gold answer after every epoch; blue: right, vermilion: wrong.", parent, "hint");
    }
  }

  const start = async () => {
    for (const place of document.querySelectorAll(".datamap")) {
      try {
        new DataMap(place, await unpack(document.getElementById(place.dataset.source)));
        root.dataset.maps = Number(root.dataset.maps || 0) + 1;
      } catch (error) {
        report(error);
      }
    }
    for (const place of document.querySelectorAll(".heatmap")) {
      const node = document.getElementById(place.dataset.source);
      try {
        new Explorer(place, await unpack(node));
      } catch (error) {
        // The static figure stays in its place.
        report(error);
      }
    }
    for (const place of document.querySelectorAll(".plane")) {
      try {
        new Plane(place, await unpack(document.getElementById(place.dataset.source)));
        root.dataset.planes = Number(root.dataset.planes || 0) + 1;
      } catch (error) {
        report(error);
      }
    }
    for (const place of document.querySelectorAll(".chooser")) {
      try {
        new Chooser(place, await unpack(document.getElementById(place.dataset.source)));
      } catch (error) {
        report(error);
      }
    }
    root.dataset.ready = "yes";
  };
  start();
})();
