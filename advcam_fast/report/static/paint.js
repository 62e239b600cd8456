"use strict";
// Loads the maps of an image and draws them over its photo.

const Paint = (() => {
  const MOST_KEPT = 240; // images whose maps stay in memory
  const STRIDE = 4;
  const kept = new Map(); // number -> promise of its maps
  const waiting = new Map(); // number -> what to do with its script's content

  // Called by the data scripts: scripts, unlike fetch, load from disk too.
  window.advcamItem = (number, content) => waiting.get(number)?.(content);

  const place = (number) => {
    const folder = String(Math.floor(number / advcamIndex.perFolder)).padStart(3, "0");
    return `${folder}/${String(number).padStart(6, "0")}`;
  };

  function load(number) {
    let promise = kept.get(number);
    kept.delete(number); // the last used is the last to go
    promise ??= loadScript(number).then(decodeAll);
    kept.set(number, promise);
    if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
    return promise;
  }

  function loadScript(number) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `data/${place(number)}.js`;
      script.onload = script.onerror = () => {
        waiting.delete(number);
        script.remove();
        reject(new Error(`no maps of image ${number}`)); // without effect once resolved
      };
      waiting.set(number, resolve);
      document.head.append(script);
    });
  }

  async function decodeAll(content) {
    const list = (texts) => Promise.all(texts.map(decode));
    const [cam, advcam] = await Promise.all([list(content.cam), list(content.advcam)]);
    const mask = content.mask === null ? null : await decode(content.mask);
    return { cam, advcam, mask, values: content.values };
  }

  // A grey PNG as its bytes. Data URLs, unlike files, may be read back from a canvas that opened from disk.
  async function decode(text) {
    const image = new Image();
    image.src = `data:image/png;base64,${text}`;
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = image.width;
    canvas.height = image.height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, image.width, image.height).data;
    const values = new Uint8Array(image.width * image.height);
    for (let i = 0; i < values.length; i++) values[i] = pixels[4 * i];
    return { width: image.width, height: image.height, values };
  }

  // A map at stride 4 as bytes at the canvas's size, bilinear between the centres of its cells.
  function enlarged(map, width, height, photoWidth, photoHeight) {
    const out = new Uint8Array(width * height);
    const left = new Uint16Array(width);
    const share = new Float32Array(width);
    for (let x = 0; x < width; x++) {
      const at = Math.min(Math.max(((x + 0.5) * photoWidth) / width / STRIDE - 0.5, 0), map.width - 1);
      left[x] = Math.min(Math.floor(at), Math.max(map.width - 2, 0));
      share[x] = at - left[x];
    }
    const right = map.width > 1 ? 1 : 0;
    for (let y = 0; y < height; y++) {
      const at = Math.min(Math.max(((y + 0.5) * photoHeight) / height / STRIDE - 0.5, 0), map.height - 1);
      const top = Math.min(Math.floor(at), Math.max(map.height - 2, 0));
      const down = at - top;
      const upper = top * map.width;
      const lower = upper + (map.height > 1 ? map.width : 0);
      for (let x = 0; x < width; x++) {
        const a = map.values[upper + left[x]], b = map.values[upper + left[x] + right];
        const c = map.values[lower + left[x]], d = map.values[lower + left[x] + right];
        const high = a + (b - a) * share[x], low = c + (d - c) * share[x];
        out[y * width + x] = high + (low - high) * down + 0.5;
      }
    }
    return out;
  }

  // The map's colours where it exceeds the threshold, and a line around that.
  function heat(canvas, map, threshold, photoWidth, photoHeight) {
    const { width, height } = canvas;
    const values = enlarged(map, width, height, photoWidth, photoHeight);
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    const pixels = image.data, colours = advcamIndex.colours, least = threshold * 255;
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        const value = values[i], over = value > least;
        const edge = threshold > 0 &&
          ((x > 0 && over !== values[i - 1] > least) || (y > 0 && over !== values[i - width] > least));
        if (edge) {
          pixels.set([255, 255, 255, 235], 4 * i);
        } else if (over) {
          const at = 3 * value;
          pixels[4 * i] = colours[at];
          pixels[4 * i + 1] = colours[at + 1];
          pixels[4 * i + 2] = colours[at + 2];
          pixels[4 * i + 3] = 0.65 * 255 * Math.min(1, (3 * value) / 255);
        }
      }
    }
    context.putImageData(image, 0, 0);
  }

  // A mask: the chosen class in full colour, the image's other classes lightly.
  function mask(canvas, map, value) {
    const { width, height } = canvas;
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    const at = (x, y) =>
      map.values[Math.floor((y * map.height) / height) * map.width + Math.floor((x * map.width) / width)];
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        const own = at(x, y);
        const line = (x > 0 && (own === value) !== (at(x - 1, y) === value)) ||
          (y > 0 && (own === value) !== (at(x, y - 1) === value));
        if (line) image.data.set([255, 255, 255, 235], 4 * i);
        else if (own === value) image.data.set([232, 62, 40, 150], 4 * i);
        else if (own !== 0 && own !== 255) image.data.set([60, 120, 240, 70], 4 * i);
      }
    }
    context.putImageData(image, 0, 0);
  }

  // Fills a canvas that lies over a photo; says whether there was anything to draw.
  function draw(canvas, maps, layer, chosen, threshold, photoWidth, photoHeight) {
    canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    if (layer === "mask" && maps.mask && maps.values.length) mask(canvas, maps.mask, maps.values[chosen]);
    else if ((layer === "cam" || layer === "advcam") && maps[layer].length)
      heat(canvas, maps[layer][chosen], threshold, photoWidth, photoHeight);
    else return false;
    return true;
  }

  return { load, draw, thumbnail: (number) => `thumbs/${place(number)}.jpg` };
})();
