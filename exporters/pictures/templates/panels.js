"use strict";
for (const gallery of document.querySelectorAll(".gallery")) {
  const { grid, columns } = JSON.parse(gallery.querySelector("script.data").textContent);
  const panels = [...gallery.querySelectorAll(".panel")];
  const tip = document.createElement("div");
  const spoken = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  spoken.className = "unseen";
  spoken.setAttribute("aria-live", "polite");
  gallery.append(spoken);
  document.body.append(tip);
  let current = 0;

  const fate = (column, patch) => {
    if (column.left[patch] !== null) return `left at ${column.left[patch]}`;
    if (column.into[patch] !== null) return column.into[patch] < 0 ? "in the [CLS] token" : `in the token of patch ${column.into[patch]}`;
    return "kept to the end";
  };
  const words = (panel, patch) => {
    const head = `patch ${patch}: row ${Math.floor(patch / grid.columns)}, column ${patch % grid.columns}`;
    if (panel.dataset.column === undefined) {
      return [head, ...columns.map((column) => `${column.name}: ${fate(column, patch)}`)].join("\n");
    }
    const column = columns[Number(panel.dataset.column)];
    const lines = [head, fate(column, patch)];
    const stage = panel.dataset.stage === undefined ? null : column.stages[Number(panel.dataset.stage)];
    if (stage && stage.scores) {
      const found = stage.scores[patch];
      lines.push(found ? `score ${found[0]} at ${stage.site}, above ${Math.round(100 * found[1])} % of the scores` : `not scored at ${stage.site}`);
    }
    return lines.join("\n");
  };
  const place = (panel, patch) => {
    current = patch;
    for (const one of panels) {
      const at = one.querySelector(".at");
      at.style.display = "block";
      at.style.left = `${(100 * (patch % grid.columns)) / grid.columns}%`;
      at.style.top = `${(100 * Math.floor(patch / grid.columns)) / grid.rows}%`;
      at.style.width = `${100 / grid.columns}%`;
      at.style.height = `${100 / grid.rows}%`;
    }
    const box = panel.querySelector(".at").getBoundingClientRect();
    tip.textContent = words(panel, patch);
    tip.hidden = false;
    const left = Math.min(box.right + 10, document.documentElement.clientWidth - tip.offsetWidth - 6);
    tip.style.left = `${Math.max(6, left) + scrollX}px`;
    tip.style.top = `${box.bottom + 10 + scrollY}px`;
  };
  const leave = () => {
    tip.hidden = true;
    for (const one of panels) one.querySelector(".at").style.display = "none";
  };
  const under = (panel, event) => {
    const box = panel.querySelector(".seen").getBoundingClientRect();
    const column = Math.floor((grid.columns * (event.clientX - box.left)) / box.width);
    const row = Math.floor((grid.rows * (event.clientY - box.top)) / box.height);
    return column >= 0 && row >= 0 && column < grid.columns && row < grid.rows ? row * grid.columns + column : null;
  };
  for (const panel of panels) {
    const move = (event) => {
      const patch = under(panel, event);
      if (patch === null) leave();
      else place(panel, patch);
    };
    panel.addEventListener("pointermove", move);
    panel.addEventListener("pointerdown", move);
    panel.addEventListener("pointerleave", leave);
    panel.addEventListener("focus", () => { if (panel.matches(":focus-visible")) place(panel, current); });
    panel.addEventListener("blur", leave);
    panel.addEventListener("keydown", (event) => {
      const [row, column] = [Math.floor(current / grid.columns), current % grid.columns];
      const moves = {
        ArrowLeft: [row, Math.max(0, column - 1)],
        ArrowRight: [row, Math.min(grid.columns - 1, column + 1)],
        ArrowUp: [Math.max(0, row - 1), column],
        ArrowDown: [Math.min(grid.rows - 1, row + 1), column],
        Home: [row, 0],
        End: [row, grid.columns - 1],
      };
      if (event.key === "Escape") leave();
      if (!(event.key in moves)) return;
      event.preventDefault();
      place(panel, moves[event.key][0] * grid.columns + moves[event.key][1]);
      spoken.textContent = tip.textContent;
    });
  }
}
