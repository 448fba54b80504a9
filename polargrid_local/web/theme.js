// The theme, applied before the first paint: "light", "dark", or the system's when nothing is stored.
(() => {
  const folder = new URL('.', document.currentScript.src).pathname;
  let theme = null;
  try {
    // The key that place.js makes with FOLDER; modules load too late for the first paint.
    theme = localStorage.getItem(`polargrid.theme${folder === '/' ? '' : folder}`);
  } catch {
    /* storage may be forbidden; then the system decides */
  }
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
})();
