// The page: its controls, and what they draw.

import { load, networks } from "./network.js";
import { Diffusion, SAMPLERS, normal, slerp, withLabels } from "./sampler.js";

const COUNT = 16, BETWEEN = 11, FILM = 10; // pictures drawn together, between two noises, and in the film
const TITLES = { mnist: "MNIST", fashion_mnist: "Fashion-MNIST", cifar10: "CIFAR-10", flower102: "Flowers 102" };
const EACH = { en: "each in turn", zh: "依次取每一类" };
const CHINESE = {
  "T-shirt": "T恤", trouser: "裤子", pullover: "套头衫", dress: "连衣裙", coat: "外套", sandal: "凉鞋", shirt: "衬衫",
  sneaker: "运动鞋", bag: "包", "ankle boot": "短靴", airplane: "飞机", automobile: "汽车", bird: "鸟", cat: "猫",
  deer: "鹿", dog: "狗", frog: "青蛙", horse: "马", ship: "船", truck: "卡车",
};
const $ = (id) => document.getElementById(id);
const range = (count) => Array.from({ length: count }, (_, i) => i);
const value = (id) => Number($(id).value);
const language = () => document.documentElement.lang;

const all = await networks();
const loaded = {}; // by name: the promise of a network
let facts; // of the network that is chosen
let frames = []; // of the pictures that are shown: { t, noisy, guess }, both of all pictures
let chosen = 0; // the picture whose film is shown
let held = {}; // left and right: { noise, label }
let way = []; // the pictures between

// --- what is drawn ---------------------------------------------------------------------------------------------------

/** The frames of pictures from these noises, as they come. terms: the classes of each picture, see `withLabels`. */
async function* draw(noises, terms) {
  const { name } = facts;
  const network = await (loaded[name] ??= load(facts).catch((error) => { delete loaded[name]; throw error; }));
  const diffusion = new Diffusion(facts), none = noises.map(() => facts.classes.length);
  const guidance = facts.classes.length ? value("guidance") : 1;
  const guided = terms.map(({ labels, weights }) => ({ labels, weights: weights.map((weight) => guidance * weight) }));
  const model = withLabels(network, [...guided, { labels: none, weights: none.map(() => 1 - guidance) }]);
  let noisy = joined(noises);
  const steps = diffusion.steps(value("calls"));
  for await (const { t, sample, xStart } of SAMPLERS[$("sampler").value](diffusion, model, noisy, steps)) {
    yield { t, noisy, guess: xStart };
    noisy = sample;
  }
  yield { t: -1, noisy, guess: noisy }; // the result
}

async function drawSamples(isStale) {
  const noises = range(COUNT).map(noiseOf), labels = range(COUNT).map(labelOf), started = performance.now();
  const drawn = [];
  for await (const frame of draw(noises, [{ labels, weights: labels.map(() => 1) }])) {
    if (isStale()) return;
    drawn.push(frame);
    frames = drawn;
    $("step").max = drawn.length - 1;
    $("step").value = drawn.length - 1;
    show();
    const seconds = ((performance.now() - started) / 1000).toFixed(1), calls = drawn.length - 1;
    say(`${calls} network calls for ${COUNT} pictures: ${seconds} s`, `${COUNT} 张图像，${calls} 次网络调用：${seconds} 秒`);
  }
  for (const [i, side] of ["left", "right"].entries()) if (!held[side]) hold(side, i);
}

async function drawWay(isStale) {
  const { left, right } = held;
  if (!left || !right) return;
  const lambdas = range(BETWEEN).map((k) => k / (BETWEEN - 1));
  const noises = lambdas.map((lambda) => slerp(left.noise, right.noise, lambda));
  const terms = [
    { labels: lambdas.map(() => left.label), weights: lambdas.map((lambda) => 1 - lambda) },
    { labels: lambdas.map(() => right.label), weights: lambdas },
  ];
  for await (const { guess } of draw(noises, terms)) {
    if (isStale()) return;
    way = range(BETWEEN).map((k) => pictureOf(guess, k));
    showWay();
  }
}

const numbers = () => facts.image_channel * facts.image_size ** 2; // of a picture
const noiseOf = (i) => normal(value("seed"), i, numbers());
const labelOf = (i) => ($("class").value === "" ? i % Math.max(1, facts.classes.length) : value("class"));
const pictureOf = (batch, i) => batch.subarray(i * numbers(), (i + 1) * numbers());
const joined = (arrays) => Float32Array.from(arrays.flatMap((array) => [...array]));

// --- what is shown ---------------------------------------------------------------------------------------------------

/** Paints x (C, H, W) in [-1, 1], one pixel a pixel; the style sheet enlarges them. */
function paint(canvas, x) {
  const size = (canvas.width = canvas.height = facts.image_size), image = new ImageData(size, size);
  const channel = (c) => (facts.image_channel === 3 ? c * size * size : 0);
  for (let i = 0; i < size * size; i++)
    for (const c of [0, 1, 2, 3]) image.data[4 * i + c] = c < 3 ? Math.round((x[channel(c) + i] + 1) * 127.5) : 255;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function show() {
  const frame = frames[value("step")], view = document.querySelector("[name=view]:checked").value;
  if (!frame) return;
  $("samples").querySelectorAll("button").forEach((button, i) => {
    paint(button.firstChild, pictureOf(frame[view], i));
    button.ariaPressed = i === chosen;
    button.ariaLabel = facts.classes.length ? named(facts.classes[labelOf(i)]) : String(i + 1);
  });
  document.querySelectorAll("label:has(output)").forEach(tell);
  const last = frames.length - 1, count = Math.min(FILM, frames.length);
  const strip = range(count).map((k) => Math.round((k * last) / Math.max(1, count - 1)));
  fill($("film"), 3 * count, (i) => (i % 3 < 2 ? document.createElement("canvas") : document.createElement("small")));
  strip.forEach((k, i) => {
    const [noisy, guess, number] = [...$("film").children].slice(3 * i);
    paint(noisy, pictureOf(frames[k].noisy, chosen));
    paint(guess, pictureOf(frames[k].guess, chosen));
    number.textContent = k;
  });
}

function showWay() {
  $("slide").hidden = !way.length;
  fill($("between"), way.length, () => document.createElement("canvas"));
  way.forEach((x, k) => paint($("between").children[k], x));
  if (!way.length) return;
  paint($("left"), way[0]);
  paint($("right"), way.at(-1));
  paint($("middle"), way[value("slide")]);
}

/** Gives a node `count` children, which `make` makes, if it has not so many. */
function fill(node, count, make) {
  if (node.children.length !== count) node.replaceChildren(...range(count).map(make));
}

function say(english, chinese) {
  const [en, zh] = $("status").children;
  [en.textContent, zh.textContent] = [english, chinese];
}

const tell = (label) => (label.querySelector("output").value = label.querySelector("input").value);
const named = (name) => (language() === "zh" && CHINESE[name]) || name;

function showClasses() {
  const before = $("class").value;
  const options = facts.classes.map((name, i) => new Option(named(name), i));
  $("class").replaceChildren(new Option(EACH[language()], ""), ...options);
  $("class").value = before;
  $("class").disabled = $("guidance").disabled = !facts.classes.length;
}

// --- what the controls do --------------------------------------------------------------------------------------------

const newest = new Map(); // by what is drawn: the number of its newest task
let count = 0, waiting = 0, queue = Promise.resolve();

/** Draws one thing after the other. A newer task for the same thing ends those before it at their next frame. */
function task(work) {
  const mine = ++count, isStale = () => newest.get(work) !== mine;
  newest.set(work, mine);
  waiting++;
  document.body.ariaBusy = true;
  queue = queue
    .then(() => isStale() || work(isStale))
    .catch((error) => say(`This did not work: ${error.message}`, `出错了：${error.message}`))
    .then(() => (document.body.ariaBusy = --waiting > 0));
}

function choose() {
  facts = all[value("network")];
  [held, way, frames] = [{}, [], []];
  showWay();
  $("middle").width = 0; // empty
  $("calls").max = Math.min(30, facts.alphas_cumprod.length);
  showClasses();
  $("class").value = "";
  say("loading…", "加载中……");
  newest.delete(drawWay);
  task(drawSamples);
}

function hold(side, i) {
  if (!frames.length) return;
  held[side] = { noise: noiseOf(i), label: labelOf(i) };
  paint($(side), pictureOf(frames.at(-1).guess, i));
}

$("network").replaceChildren(...all.map(({ name }, i) => new Option(TITLES[name] ?? name, i)));
fill($("samples"), COUNT, () => document.createElement("button"));
$("samples").querySelectorAll("button").forEach((button, i) => {
  button.append(document.createElement("canvas"));
  button.onclick = () => { chosen = i; show(); };
});
$("network").onchange = choose;
for (const id of ["class", "guidance", "calls", "sampler", "seed"]) $(id).onchange = () => task(drawSamples);
$("new").onclick = () => { $("seed").value = Math.floor(Math.random() * 1e6); task(drawSamples); };
for (const side of ["left", "right"]) $(`hold_${side}`).onclick = () => { hold(side, chosen); task(drawWay); };
$("way").onclick = () => task(drawWay);
$("slide").oninput = showWay;
$("step").oninput = show;
document.querySelectorAll("[name=view]").forEach((radio) => (radio.onchange = show));
document.querySelectorAll("label:has(output)").forEach((label) => (label.oninput = () => tell(label)));
$("language").onclick = () => {
  document.documentElement.lang = language() === "zh" ? "en" : "zh";
  showClasses();
};
document.documentElement.lang = navigator.language.startsWith("zh") ? "zh" : "en";
choose();
