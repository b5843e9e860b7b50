"use strict";
const tip = document.getElementById("tip");

function show(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const { offsetWidth: w, offsetHeight: h } = tip;
  tip.style.left = Math.max(6, Math.min(x + 14, innerWidth - w - 6)) + "px";
  tip.style.top = (y + 18 + h > innerHeight ? y - h - 12 : y + 18) + "px";
}
function hide() { tip.hidden = true; }
function time(s) {
  const [scale, unit] = Math.abs(s) >= 1 ? [1, "s"] : Math.abs(s) >= 1e-3 ? [1e3, "ms"] : [1e6, "us"];
  return Number((s * scale).toPrecision(3)) + " " + unit;
}

// Whatever carries its own words.
for (const element of document.querySelectorAll("[data-tip]")) {
  element.addEventListener("pointermove", (e) => show(element.dataset.tip, e.clientX, e.clientY));
  element.addEventListener("pointerleave", hide);
}

// Loss: a cursor on the nearest step, by pointer or arrow keys.
for (const plot of document.querySelectorAll(".plot")) {
  const points = JSON.parse(plot.querySelector("script").textContent);
  const cursor = plot.querySelector(".cursor");
  let at = points.length - 1;
  const place = (index, y) => {
    at = Math.max(0, Math.min(points.length - 1, index));
    const [x, step, loss, validation, exchange] = points[at];
    cursor.setAttribute("x1", 100 * x + "%");
    cursor.setAttribute("x2", 100 * x + "%");
    cursor.setAttribute("visibility", "visible");
    const box = plot.getBoundingClientRect();
    const lines = [`step ${step}`, `loss ${loss === null ? "not finite" : loss.toFixed(4)}`];
    if (validation !== null) lines.push(`validation ${validation.toFixed(4)}`);
    if (exchange) lines.push("with exchange");
    show(lines.join("\n"), box.left + x * box.width, y ?? box.top + 20);
  };
  const leave = () => { cursor.setAttribute("visibility", "hidden"); hide(); };
  plot.addEventListener("pointermove", (e) => {
    const box = plot.getBoundingClientRect();
    const x = (e.clientX - box.left) / box.width;
    const nearer = (best, point, i) => (Math.abs(point[0] - x) < Math.abs(points[best][0] - x) ? i : best);
    place(points.reduce(nearer, 0), e.clientY);
  });
  plot.addEventListener("pointerleave", leave);
  plot.addEventListener("blur", leave);
  plot.addEventListener("keydown", (e) => {
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: points.length - 1 }[e.key];
    if (to === undefined) return;
    e.preventDefault();
    place(to);
  });
}

// Timeline: hover names the action and its twin in the other half of the lane; drag, buttons and keys zoom.
for (const panel of document.querySelectorAll(".panel")) {
  const span = Number(panel.dataset.span), lanes = panel.querySelector(".lanes");
  const bars = [...panel.querySelectorAll(".bars rect")].map((rect) => {
    const text = rect.nextElementSibling?.tagName === "text" ? rect.nextElementSibling : null;
    return { rect, text, start: Number(rect.dataset.s), end: Number(rect.dataset.e) };
  });
  const axis = panel.querySelector(".time");
  let [from, to] = [0, span];

  function draw() {
    const width = axis.getBoundingClientRect().width, percent = (t) => (100 * (t - from)) / (to - from) + "%";
    for (const { rect, text, start, end } of bars) {
      rect.setAttribute("x", percent(start));
      rect.setAttribute("width", (100 * (end - start)) / (to - from) + "%");
      if (!text) continue;
      text.setAttribute("x", percent((start + end) / 2));
      const fits = ((end - start) / (to - from)) * width > 7 * text.textContent.length + 3;
      text.setAttribute("visibility", fits ? "visible" : "hidden");
    }
    const least = (to - from) / Math.max(2, Math.min(8, width / 90)), power = 10 ** Math.floor(Math.log10(least));
    const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= least);
    axis.replaceChildren();
    for (let i = Math.ceil(from / step); i * step <= to; i++) {
      const label = document.createElementNS("http://www.w3.org/2000/svg", "text");
      label.setAttribute("class", "below");
      label.setAttribute("x", percent(i * step));
      label.setAttribute("y", 14);
      label.textContent = i === 0 ? "0" : time(i * step);
      axis.append(label);
    }
  }
  function zoom(a, b) {
    const width = Math.max(span / 1000, Math.min(span, b - a));
    from = Math.max(0, Math.min(span - width, a));
    to = from + width;
    draw();
  }
  const about = (factor, middle = (from + to) / 2) =>
    zoom(middle - (middle - from) * factor, middle + (to - middle) * factor);
  const actions = {
    in: () => about(0.5), out: () => about(2), all: () => zoom(0, span),
    left: () => zoom(from - (to - from) / 4, to - (to - from) / 4),
    right: () => zoom(from + (to - from) / 4, to + (to - from) / 4),
  };
  for (const button of panel.querySelectorAll("[data-zoom]"))
    button.addEventListener("click", () => actions[button.dataset.zoom]());
  lanes.addEventListener("keydown", (e) => {
    const keys = { "+": "in", "=": "in", "-": "out", 0: "all", Escape: "all", ArrowLeft: "left", ArrowRight: "right" };
    const action = actions[keys[e.key]];
    if (!action || e.ctrlKey || e.metaKey) return;
    e.preventDefault();
    action();
  });
  lanes.addEventListener("dblclick", actions.all);

  const at = (e) => {
    const box = axis.getBoundingClientRect();
    return from + ((e.clientX - box.left) / box.width) * (to - from);
  };
  let grabbed = null;
  lanes.addEventListener("pointerdown", (e) => { if (e.pointerType === "mouse") grabbed = { x: e.clientX, t: at(e) }; });
  lanes.addEventListener("pointerup", (e) => {
    if (grabbed && Math.abs(e.clientX - grabbed.x) > 6) zoom(Math.min(grabbed.t, at(e)), Math.max(grabbed.t, at(e)));
    grabbed = null;
  });
  lanes.addEventListener("pointerleave", () => { grabbed = null; hide(); });
  lanes.addEventListener("pointermove", (e) => {
    const rect = e.target.closest(".bars rect");
    if (!rect) return hide();
    const half = rect.parentNode, other = half.nextElementSibling ?? half.previousElementSibling;
    const words = (r, half) => `${half.getAttribute("class")} ${time(r.dataset.e - r.dataset.s)}, from ${time(Number(r.dataset.s))}`;
    const twin = other.querySelector(`[data-do="${rect.dataset.do}"]`);
    const lines = [rect.dataset.do, words(rect, half), twin ? words(twin, other) : ""];
    show(lines.join("\n").trim(), e.clientX, e.clientY);
  });
  new ResizeObserver(() => { if (axis.getBoundingClientRect().width > 0) draw(); }).observe(axis);
}
addEventListener("scroll", hide, { passive: true });
