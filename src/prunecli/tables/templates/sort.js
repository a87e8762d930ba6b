document.querySelectorAll("table").forEach((table) => {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, index) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.ariaSort === "ascending" ? -1 : 1;
      heads.forEach((other) => (other.ariaSort = null));
      head.ariaSort = sign > 0 ? "ascending" : "descending";
      const key = (row) => row.cells[index].dataset.value ?? row.cells[index].textContent;
      const body = table.tBodies[0];
      const order = (a, b) => {
        const [one, other] = [key(a), key(b)];
        if (!one !== !other) return one ? -1 : 1; // what is empty comes last, either way
        return sign * one.localeCompare(other, "en", { numeric: false }) * 1;
      };
      const numeric = (a, b) => {
        const [one, other] = [key(a), key(b)].map((text) => (text ? Number(text) : NaN));
        if (isNaN(one) || isNaN(other)) return order(a, b);
        return sign * (one - other);
      };
      body.append(...[...body.rows].sort(numeric));
    });
  });
});
addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((one) => (one.open = true));
});
