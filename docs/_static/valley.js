// The first page's picture: four paths walk, by the button or by the slider.
(() => {
  const PAUSE = 90; // milliseconds for a step

  const start = (figure) => {
    const { points, heights } = JSON.parse(
      figure.querySelector('script[type="application/json"]').textContent);
    const ways = [...figure.querySelectorAll("[data-way]")];
    const told = figure.querySelectorAll(".valley-legend output");
    const slider = figure.querySelector("input");
    const button = figure.querySelector("button");
    let timer = 0;

    const show = () => {
      const step = Number(slider.value);
      slider.nextElementSibling.textContent = step;
      ways.forEach((way, i) => {
        const path = points[way.dataset.way].slice(0, step + 1);
        const [x, y] = path[path.length - 1];
        way.querySelector("polyline").setAttribute("points", path.join(" "));
        way.querySelector("circle").setAttribute("cx", x);
        way.querySelector("circle").setAttribute("cy", y);
        told[i].textContent = heights[way.dataset.way][step].toFixed(3);
      });
      const all = ways.map((w) => `${w.dataset.way} at ` +
        heights[w.dataset.way][step].toFixed(3));
      slider.setAttribute("aria-valuetext", `${step}: ${all.join(", ")}`);
    };

    const stop = () => {
      window.clearInterval(timer);
      timer = 0;
      button.textContent = "Play";
    };
    const play = () => {
      if (slider.value === slider.max) slider.value = 0;
      button.textContent = "Pause";
      timer = window.setInterval(() => {
        slider.value = Number(slider.value) + 1;
        show();
        if (slider.value === slider.max) stop();
      }, PAUSE);
    };

    button.addEventListener("click", () => (timer ? stop() : play()));
    slider.addEventListener("input", () => { stop(); show(); });
    figure.querySelector(".valley-controls").hidden = false;
    show();
    const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (!still) play(); // once, and it ends by itself
  };
  document.addEventListener("DOMContentLoaded", () =>
    document.querySelectorAll("figure.valley").forEach(start));
})();
