// A click on a column's heading sorts the rows by it, highest first; a second click reverses the order.
// A click on the first column restores the original order.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const original = [...body.rows];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const upwards = head.getAttribute("aria-sort") === "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (column === 0) return body.append(...original);
      head.setAttribute("aria-sort", upwards ? "ascending" : "descending");
      const value = (row) => Number(row.cells[column].dataset.value);
      const last = (x) => Number.isNaN(x);
      const compare = (a, b) => last(a) - last(b) || (upwards ? a - b : b - a);
      body.append(...[...original].sort((a, b) => compare(value(a), value(b))));
    });
  });
}

// A click on an image shows it as wide as the page; another click makes it small again.
for (const image of document.querySelectorAll(".row img")) {
  image.addEventListener("click", () => image.closest("figure").classList.toggle("large"));
}
