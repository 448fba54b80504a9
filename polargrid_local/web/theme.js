// The theme, applied before the first paint: "light", "dark", or the system's when nothing is stored.
(() => {
  const folder = new URL('.', document.currentScript.src).pathname;
  let theme = null;
  try {
    theme = localStorage.getItem(`polargrid.theme${folder === '/' ? '' : folder}`); // as place.js has it
  } catch {
    /* storage may be forbidden; then the system decides */
  }
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
})();
