// Runs before the first paint: the theme chosen in the dashboard, else the system's. Swagger UI goes by the class.
"use strict";
(function () {
  const system = matchMedia("(prefers-color-scheme: dark)");
  function paint() {
    let chosen = "system";
    try {
      chosen = localStorage.getItem("fleetproxy.theme") || "system";
    } catch (error) {
      // Storage is off: the system decides.
    }
    const dark = chosen === "dark" || (chosen !== "light" && system.matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    document.documentElement.classList.toggle("dark-mode", dark);
  }
  paint();
  system.addEventListener("change", paint);
  addEventListener("storage", paint);
})();
