// The contrast of every visible word on the page with what lies behind it.
// Returns those below 4.5 (3 for large letters), as WCAG 2 defines both.
() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (color) => { // any form of CSS color
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], under) =>
    [r, g, b].map((v, i) => v * a + under[i] * (1 - a));
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map(
      (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      layers.push(rgba(getComputedStyle(e).backgroundColor));
      if (layers[layers.length - 1][3] === 1) break;
    }
    return layers.reverse().reduce((under, layer) => over(layer, under), [255, 255, 255]);
  };
  const low = new Map();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode.textContent.trim();
    const element = walk.currentNode.parentElement;
    if (!/\w/.test(text) || !element.checkVisibility({visibilityProperty: true})) continue;
    if (element.closest("script, style, noscript, svg, title")) continue;
    const style = getComputedStyle(element);
    const ground = behind(element);
    let color = rgba(style.color);
    for (let e = element; e; e = e.parentElement)
      color[3] *= Number(getComputedStyle(e).opacity);
    const [light, dark] = [luminance(over(color, ground)), luminance(ground)]
      .sort((a, b) => b - a);
    const contrast = (light + 0.05) / (dark + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (contrast < (large ? 3 : 4.5)) {
      const where = `${element.tagName.toLowerCase()}.${element.className} in ` +
        `${element.parentElement.tagName.toLowerCase()}.${element.parentElement.className}`;
      low.set(where, `${contrast.toFixed(2)} ${where}: ${text.slice(0, 40)} ` +
        `(${style.color} on ${ground.map(Math.round)})`);
    }
  }
  return [...low.values()];
}
