// The theme, applied before the first paint: "light", "dark", or the system's when nothing is stored.
(() => {
  let theme = null;
  try {
    theme = localStorage.getItem('polargrid.theme');
  } catch {
    /* storage may be forbidden; then the system decides */
  }
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
})();
