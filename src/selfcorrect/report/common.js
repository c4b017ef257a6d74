"use strict";
// What the report and the served page share: the theme, nodes that hold text alone, and the differences of two texts.
const common = (() => {
  const root = document.documentElement;
  const KEY = "selfcorrect-theme";
  const recall = () => { try { return localStorage.getItem(KEY); } catch { return null; } };
  const remember = (value) => { try { localStorage.setItem(KEY, value); } catch { /* private window: only now */ } };
  const saved = recall();
  if (saved === "light" || saved === "dark") root.dataset.theme = saved; // before the first paint

  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  function themeToggle() {
    const button = document.getElementById("theme");
    const system = matchMedia("(prefers-color-scheme: dark)");
    const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
    const show = () => {
      button.textContent = dark() ? "Light theme" : "Dark theme";
      button.setAttribute("aria-pressed", String(dark()));
      button.setAttribute("aria-label", "Dark theme");
    };
    button.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      remember(root.dataset.theme);
      show();
    });
    system.addEventListener("change", show);
    show();
    button.hidden = false;
  }

  // Which words of `a` and of `b` are not in their longest common subsequence; null where that is too much work.
  function differences(a, b) {
    let head = 0;
    while (head < a.length && head < b.length && a[head] === b[head]) head += 1;
    let tail = 0;
    while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail += 1;
    const n = a.length - head - tail;
    const m = b.length - head - tail;
    if (n * m > 4e6) return null;
    const length = new Uint16Array((n + 1) * (m + 1));
    for (let i = n - 1; i >= 0; i -= 1) {
      for (let j = m - 1; j >= 0; j -= 1) {
        length[i * (m + 1) + j] = a[head + i] === b[head + j]
          ? length[(i + 1) * (m + 1) + j + 1] + 1
          : Math.max(length[(i + 1) * (m + 1) + j], length[i * (m + 1) + j + 1]);
      }
    }
    const gone = new Set();
    const fresh = new Set();
    let i = 0;
    let j = 0;
    while (i < n || j < m) {
      if (i < n && j < m && a[head + i] === b[head + j]) { i += 1; j += 1; }
      else if (j === m || (i < n && length[(i + 1) * (m + 1) + j] >= length[i * (m + 1) + j + 1])) { gone.add(head + i); i += 1; }
      else { fresh.add(head + j); j += 1; }
    }
    return { gone, fresh };
  }

  const words = (text) => text.match(/\S+/g) || [];

  return { make, themeToggle, differences, words };
})();
