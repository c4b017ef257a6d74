// Theme, chart read-outs and the rollout browser. Model text enters the page through textContent only.
(() => {
  const { make, themeToggle, differences, words } = common;
  const count = (n) => n.toLocaleString("en-US");

  // The value of every line under the pointer, read back from the drawing itself.
  function readout(svg) {
    const [x0, x1, px0, px1] = svg.dataset.x.split(" ").map(Number);
    const [y0, y1, py0, py1] = svg.dataset.y.split(" ").map(Number);
    const box = svg.parentElement.querySelector(".readout");
    const lines = [...svg.querySelectorAll("path.smooth")].map((path) => ({
      name: path.dataset.name,
      points: path.getAttribute("d").split(/[ML]/).filter(Boolean).map((p) => p.trim().split(" ").map(Number)),
    }));
    const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
    cursor.setAttribute("class", "cursor");
    const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(y1 - y0) || 1)));
    const hide = () => { cursor.remove(); box.textContent = ""; };
    svg.addEventListener("pointermove", (event) => {
      const place = svg.getBoundingClientRect();
      const px = ((event.clientX - place.left) / place.width) * svg.viewBox.baseVal.width;
      if (px < px0 - 4 || px > px1 + 4) { hide(); return; }
      const step = Math.round(x0 + ((Math.min(px1, Math.max(px0, px)) - px0) / (px1 - px0)) * (x1 - x0));
      const parts = [`step ${count(step)}`];
      for (const line of lines) {
        const near = line.points.reduce((a, b) => (Math.abs(b[0] - px) < Math.abs(a[0] - px) ? b : a));
        const value = y0 + ((near[1] - py0) / (py1 - py0)) * (y1 - y0);
        const shown = value.toLocaleString("en-US", { maximumFractionDigits: digits, minimumFractionDigits: digits });
        parts.push(lines.length > 1 ? `${line.name} ${shown}` : shown);
      }
      for (const [key, value] of [["x1", px], ["x2", px], ["y1", py0], ["y2", py1]]) cursor.setAttribute(key, value);
      svg.append(cursor);
      box.textContent = parts.join("   ");
    });
    svg.addEventListener("pointerleave", hide);
  }

  // The text as written, its words at the given places inside `tag`.
  function marked(text, places, tag) {
    const pre = make("pre");
    pre.tabIndex = 0;
    let index = 0;
    let plain = "";
    let open = null; // the last mark, while nothing but blanks of the same line has followed it
    for (const part of text.split(/(\s+)/)) {
      const word = part.trim() !== "";
      if (word && places.has(index)) {
        if (open) open.textContent += plain + part;
        else pre.append(plain, open = make(tag, "", part));
        plain = "";
      } else {
        plain += part;
        if (word || part.includes("\n")) open = null;
      }
      index += word;
    }
    pre.append(plain);
    return pre;
  }

  const NONE = new Set();

  function attemptCard(attempts, index) {
    const attempt = attempts[index];
    const card = make("div", "attempt");
    const title = make("h3", "", `Attempt ${index + 1}`);
    title.append(make("span", attempt.outcome === "correct" ? "correct" : "not", attempt.outcome.replaceAll("_", " ")));
    if (attempt.answer) title.append(make("span", "muted", `answer ${attempt.answer}`));
    card.append(title);
    // The first attempt shows what it lost to the next; every later one what it added to the one before.
    const other = attempts[index === 0 ? 1 : index - 1];
    const pair = other && (index === 0 ? [attempt, other] : [other, attempt]).map((one) => words(one.text));
    const found = pair ? differences(pair[0], pair[1]) : null;
    if (index > 0 && other.text === attempt.text) title.append(make("span", "muted", "unchanged"));
    else if (index > 0 && !found) title.append(make("span", "muted", "too long to compare"));
    card.append(marked(attempt.text, found ? (index === 0 ? found.gone : found.fresh) : NONE, index === 0 ? "del" : "ins"));
    if (attempt.detail) card.append(make("p", "", attempt.detail));
    return card;
  }

  function rolloutCard(item, names) {
    const card = make("article", `rollout c-${item.category}`);
    card.dataset.category = item.category;
    const header = make("header");
    header.append(make("b", "", names[item.category]), make("span", "", [item.when, item.id].filter(Boolean).join(" · ")));
    const prompt = make("p", "prompt", item.prompt);
    prompt.tabIndex = 0;
    card.append(header, prompt);
    if (item.reference) card.append(make("p", "reference", item.reference));
    const attempts = make("div", "attempts");
    item.attempts.forEach((_, index) => attempts.append(attemptCard(item.attempts, index)));
    card.append(attempts);
    return card;
  }

  function browser() {
    const holder = document.getElementById("rollout-data");
    if (!holder) return;
    const { names, order, sources } = JSON.parse(holder.textContent);
    const at = (id) => document.getElementById(id);
    const PAGE = 6;
    const state = { source: 0, category: "", query: "", page: 0 };

    function chips(source) {
      const group = at("chips");
      const total = order.reduce((sum, key) => sum + source.totals[key], 0);
      const entries = [["", "All", total], ...order.map((key) => [key, names[key], source.totals[key]])];
      group.replaceChildren(...entries.filter(([key, , n]) => n || key !== "left_out").map(([key, name, n]) => {
        const chip = make("button", key ? `c-${key}` : "all", name);
        chip.type = "button";
        chip.dataset.category = key;
        chip.append(make("b", "", count(n)));
        chip.addEventListener("click", () => { state.category = state.category === key ? "" : key; state.page = 0; draw(); });
        return chip;
      }));
    }

    function draw() {
      const source = sources[state.source];
      const needle = state.query.trim().toLowerCase();
      const inside = source.items.filter((item) => !state.category || item.category === state.category);
      const hits = needle
        ? inside.filter((item) => [item.id, item.prompt, ...item.attempts.map((a) => a.text)].join("\n").toLowerCase().includes(needle))
        : inside;
      const pages = Math.max(1, Math.ceil(hits.length / PAGE));
      state.page = Math.min(state.page, pages - 1);
      const start = state.page * PAGE;
      for (const chip of at("chips").children) chip.setAttribute("aria-pressed", String(chip.dataset.category === state.category));
      const total = state.category ? source.totals[state.category] : order.reduce((sum, key) => sum + source.totals[key], 0);
      const kept = inside.length < total ? `${count(inside.length)} of ${count(total)} are in this page, evenly picked` : `all ${count(total)} are in this page`;
      at("count").textContent = needle ? `${count(hits.length)} match; ${kept}` : kept[0].toUpperCase() + kept.slice(1);
      at("where").textContent = hits.length ? `${count(start + 1)}–${count(Math.min(start + PAGE, hits.length))} of ${count(hits.length)}` : "none";
      at("previous").disabled = state.page === 0;
      at("next").disabled = state.page >= pages - 1;
      const shown = hits.slice(start, start + PAGE).map((item) => rolloutCard(item, names));
      at("list").replaceChildren(...(shown.length ? shown : [make("p", "empty", "Nothing here.")]));
    }

    at("source").addEventListener("change", (event) => {
      Object.assign(state, { source: Number(event.target.value), page: 0 });
      chips(sources[state.source]);
      draw();
    });
    at("query").addEventListener("input", (event) => { state.query = event.target.value; state.page = 0; draw(); });
    at("previous").addEventListener("click", () => { state.page -= 1; draw(); });
    at("next").addEventListener("click", () => { state.page += 1; draw(); });
    at("source").value = "0"; // a browser may bring an old choice back
    at("query").value = "";
    chips(sources[0]);
    draw();
    at("browser").hidden = false;
  }

  document.addEventListener("DOMContentLoaded", () => {
    themeToggle();
    document.querySelectorAll("svg.curve").forEach(readout);
    browser();
  });
})();
