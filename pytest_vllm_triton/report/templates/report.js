// The filter. Its state is the page's fragment, so that a filtered page can be linked to:
// #verdict=FAIL,ERROR&level=MUST&group=STR&q=words. A fragment without "=" names a requirement.
(() => {
  "use strict";
  const box = document.getElementById("q");
  const shown = document.getElementById("shown");
  const rows = [...document.querySelectorAll(".req")];
  const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const keys = ["verdict", "level", "group"];

  const fragment = () => decodeURIComponent(location.hash.slice(1));
  const state = () => new URLSearchParams(fragment().includes("=") ? location.hash.slice(1) : "");

  function matches(row, wanted) {
    const listed = keys.every((key) => {
      const values = (wanted.get(key) || "").split(",").filter(Boolean);
      return values.length === 0 || values.includes(row.dataset[key]);
    });
    const text = (wanted.get("q") || "").toLowerCase().split(/\s+/);
    return listed && text.every((word) => words.get(row).includes(word));
  }

  function apply() {
    const wanted = state();
    let count = 0;
    for (const row of rows) {
      row.hidden = !matches(row, wanted);
      count += row.hidden ? 0 : 1;
    }
    for (const group of document.querySelectorAll(".group")) {
      group.hidden = !group.querySelector(".req:not([hidden])");
    }
    shown.textContent = `${count} of ${rows.length}`;
    if (document.activeElement !== box) box.value = wanted.get("q") || "";
    for (const link of document.querySelectorAll(".tools a")) {
      const current = (wanted.get("verdict") || "") === link.dataset.verdict;
      current ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
    }
    const target = document.getElementById(fragment());
    if (target && target.matches("details")) target.open = true;
  }

  function write(key, value) {
    const wanted = state();
    value ? wanted.set(key, value) : wanted.delete(key);
    // Without an entry in the history for each letter that is typed.
    history.replaceState(null, "", "#" + wanted.toString());
    apply();
  }

  box.addEventListener("input", () => write("q", box.value.trim()));
  for (const link of document.querySelectorAll(".tools a")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      write("verdict", link.dataset.verdict);
    });
  }
  addEventListener("hashchange", () => {
    apply();
    // The figures of the matrix link to filters: show what was asked for.
    if (fragment().includes("=")) document.getElementById("all").scrollIntoView();
  });
  document.documentElement.classList.add("js");
  apply();
})();
