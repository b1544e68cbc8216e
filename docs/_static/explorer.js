// A widget's stand-in: sliders choose among pictures that were drawn beforehand.
(() => {
  const start = (figure) => {
    const controls = figure.querySelector(".explorer-controls");
    const data = figure.querySelector('script[type="application/json"]');
    if (!controls || !data) return;
    const pictures = JSON.parse(data.textContent);
    const image = figure.querySelector("img");
    const words = figure.querySelector(".explorer-words");
    const sliders = [...controls.querySelectorAll("input")];

    // The last slider counts fastest, as the pictures were drawn.
    const position = () =>
      sliders.reduce((n, s) => n * (Number(s.max) + 1) + Number(s.value), 0);

    const show = () => {
      for (const slider of sliders) {
        const value = JSON.parse(slider.dataset.values)[Number(slider.value)];
        slider.setAttribute("aria-valuetext", value);
        slider.nextElementSibling.textContent = value;
      }
      const { src, alt, width, height } = pictures[position()];
      Object.assign(image, { src, alt, width, height });
      words.textContent = alt;
    };

    const preload = () => {
      for (const { src } of pictures) new Image().src = src;
    };
    controls.addEventListener("focusin", preload, { once: true });
    controls.addEventListener("pointerenter", preload, { once: true });
    for (const slider of sliders) slider.addEventListener("input", show);
    controls.hidden = sliders.length === 0;
  };
  document.addEventListener("DOMContentLoaded", () =>
    document.querySelectorAll("figure.explorer").forEach(start));
})();
