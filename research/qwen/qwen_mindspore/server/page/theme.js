// A plain script, run before the first paint, so that a dark page does not flash white. `theme.choice` is "system",
// "light" or "dark"; what the style sheet reads is data-theme, which is one of the latter two.
globalThis.theme = (() => {
  const KEY = "qwen-theme";
  const system = matchMedia("(prefers-color-scheme: dark)");
  let choice = "system";
  try {
    choice = localStorage.getItem(KEY) ?? "system";
  } catch { /* a browser that keeps nothing */ }

  function apply() {
    const isDark = choice === "dark" || (choice !== "light" && system.matches);
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
  }

  system.addEventListener("change", apply);
  addEventListener("storage", event => {
    if (event.key === KEY) {
      choice = event.newValue ?? "system";
      apply();
    }
  });
  apply();
  return {
    get choice() { return choice; },
    set choice(value) {
      choice = value;
      try {
        localStorage.setItem(KEY, value);
      } catch { /* then it holds for this visit */ }
      apply();
    },
  };
})();
