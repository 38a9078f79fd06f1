for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, place) => {
    const cell = row.cells[place];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  heads.forEach((head, place) => {
    head.querySelector("button").addEventListener("click", () => {
      const text = head.classList.contains("text");
      const before = head.getAttribute("aria-sort");
      const rising = before === null ? text : before === "descending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const rows = [...body.rows].sort((one, other) => {
        const [a, b] = [value(one, place), value(other, place)];
        return (text ? a.localeCompare(b) : a - b) * (rising ? 1 : -1);
      });
      body.append(...rows);
    });
  });
}
{
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);
  const say = (mark) => {
    const box = mark.getBoundingClientRect();
    tip.textContent = mark.getAttribute("aria-label");
    tip.hidden = false;
    const left = Math.min(box.right + 8, document.documentElement.clientWidth - tip.offsetWidth - 6);
    tip.style.left = `${Math.max(6, left) + scrollX}px`;
    tip.style.top = `${box.bottom + 8 + scrollY}px`;
  };
  for (const mark of document.querySelectorAll(".plotted .mark")) {
    const title = mark.querySelector("title");
    if (title) title.remove();
    mark.addEventListener("pointerenter", () => say(mark));
    mark.addEventListener("pointerleave", () => { tip.hidden = true; });
    mark.addEventListener("focus", () => say(mark));
    mark.addEventListener("blur", () => { tip.hidden = true; });
  }
}
